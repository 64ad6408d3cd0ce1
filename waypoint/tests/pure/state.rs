//! Of `waypoint::state`.
