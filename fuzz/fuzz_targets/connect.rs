//! The head of a CONNECT, and what is read out of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::connect(data));
