//! Of `waypoint::filter`.
