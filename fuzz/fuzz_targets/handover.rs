//! What an elder process is said to have frozen.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::handover(data));
