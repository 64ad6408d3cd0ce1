//! Of `waypoint::limit`: gates, buckets and quotas, with a clock that is made up.

#[path = "limit/counters.rs"]
mod counters;
#[path = "limit/gates.rs"]
mod gates;
#[path = "limit/rates.rs"]
mod rates;
