//! Of `waypoint::balance`: who is chosen, how often, and by whom that is decided. Clocks and chance are made up.

#[path = "balance/chances.rs"]
mod chances;
#[path = "balance/hashed.rs"]
mod hashed;
#[path = "balance/near.rs"]
mod near;
#[path = "balance/shop.rs"]
pub(crate) mod shop;
#[path = "balance/whom.rs"]
mod whom;
