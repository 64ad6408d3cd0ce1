//! Of `waypoint::outlier`.
