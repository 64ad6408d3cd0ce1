//! A path, and a host.
#![no_main]

#[path = "../../src/access.rs"]
mod access;

libfuzzer_sys::fuzz_target!(|data: &[u8]| access::path(data));
