//! The mesh from outside: recorded conversations and verdicts, properties, and both ends of discovery over real sockets.
//! (`allocations.rs` is a program of its own, as it replaces the allocator.)

#![allow(clippy::unwrap_used, clippy::panic)] // in a test they are the report

mod delta_property;
mod door;
mod gateway;
mod golden;
mod harness;
mod large_mesh;
mod on_demand;
mod page;
mod pick_property;
mod policy_table;
mod shelf;
mod snapshot_property;
mod stream;
mod transcripts;
