//! Of `waypoint::asked`.
