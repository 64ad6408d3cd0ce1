//! States of a connection, and what follows.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::state(data));
