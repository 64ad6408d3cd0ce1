//! A format of what is reported.
#![no_main]

#[path = "../../src/said.rs"]
mod said;

libfuzzer_sys::fuzz_target!(|data: &[u8]| said::format(data));
