//! Of `waypoint::session`.
