//! Of `waypoint::balance`.
