//! What is done with bytes that a fuzzer chose: each function takes any bytes and panics only when
//! something is wrong with us. `hbone/tests/fuzz.rs` includes these files too.

mod capsules;
mod connect;
mod frames;
mod handover;
mod hpack;
mod records;
mod state;

pub use self::{
    capsules::capsules, connect::connect, frames::frames, handover::handover, hpack::hpack,
    records::records, state::state,
};
