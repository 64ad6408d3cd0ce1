//! What a policy says, and a request.
#![no_main]

#[path = "../../src/access.rs"]
mod access;

libfuzzer_sys::fuzz_target!(|data: &[u8]| access::policy(data));
