//! Of `waypoint::route`.
