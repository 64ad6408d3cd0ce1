//! Every test of the path once more, with the engine `h2` in the tunnels (`world::engine` goes by the name of this file).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so"
)]

#[path = "path/again.rs"]
mod again;
#[path = "path/bounds.rs"]
mod bounds;
#[path = "path/ca.rs"]
mod ca;
#[path = "path/control.rs"]
mod control;
#[path = "path/egress.rs"]
mod egress;
#[path = "path/fabric.rs"]
mod fabric;
#[path = "path/golden.rs"]
mod golden;
#[path = "path/lasting.rs"]
mod lasting;
#[path = "path/log.rs"]
mod log;
#[path = "path/names.rs"]
mod names;
#[path = "path/networks.rs"]
mod networks;
#[path = "path/on_demand.rs"]
mod on_demand;
#[path = "path/peers.rs"]
mod peers;
#[path = "path/refusals.rs"]
mod refusals;
#[path = "path/resources.rs"]
mod resources;
#[path = "path/said.rs"]
mod said;
#[path = "path/source.rs"]
mod source;
#[path = "path/ways.rs"]
mod ways;
#[path = "path/world.rs"]
mod world;
