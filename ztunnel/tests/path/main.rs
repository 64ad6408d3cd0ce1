//! The whole path with real sockets: two nodes in one process, pods in network namespaces, capture by real packet
//! rules. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so"
)]

mod again;
mod bounds;
mod ca;
mod control;
mod egress;
mod fabric;
mod golden;
mod lasting;
mod log;
mod names;
mod networks;
mod on_demand;
mod peers;
mod refusals;
mod resources;
mod said;
mod source;
mod ways;
mod world;
