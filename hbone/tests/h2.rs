//! Every test of a whole connection once more, with the engine `h2` at each end that is ours
//! (`common::engine` goes by the name of this file).

#![allow(
    clippy::duplicate_mod,
    reason = "each of these is a test of its own elsewhere, with its own `common`"
)]

#[path = "golden_inbound.rs"]
mod golden_inbound;
#[path = "golden_outbound.rs"]
mod golden_outbound;
#[path = "pool.rs"]
mod pool;
#[path = "refusals.rs"]
mod refusals;
#[path = "tunnels.rs"]
mod tunnels;
