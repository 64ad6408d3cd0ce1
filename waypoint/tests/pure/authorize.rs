//! Of `waypoint::authorize`.
