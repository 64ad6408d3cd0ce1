//! Of `waypoint::limit`.
