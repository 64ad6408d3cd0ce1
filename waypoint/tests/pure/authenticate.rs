//! Of `waypoint::authenticate`.
