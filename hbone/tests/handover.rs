//! Connections leave one owner for another in the middle of everything, and apps notice nothing.
//!
//! Both owners are in this process (in `process` in two): what one froze is read from bytes and descriptors
//! alone by the other.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

#[path = "handover/ending.rs"]
mod ending;
#[path = "handover/keys.rs"]
mod keys;
#[path = "handover/limits.rs"]
mod limits;
#[path = "handover/pool.rs"]
mod pool;
#[path = "handover/process.rs"]
mod process;
#[path = "handover/traffic.rs"]
mod traffic;
#[path = "handover/world.rs"]
mod world;
