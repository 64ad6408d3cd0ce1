//! Of `waypoint::retry`.
