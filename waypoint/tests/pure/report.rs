//! Of `waypoint::report`.
