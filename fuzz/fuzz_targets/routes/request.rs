//! The head of a request, as a client may write it.
#![no_main]

#[allow(dead_code, unused_imports)] // the other target's
#[path = "../../src/routes.rs"]
mod routes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| routes::request(data));
