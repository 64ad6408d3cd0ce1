//! A resource of the control plane, and what becomes of requests under it.
#![no_main]

#[path = "../../src/routes.rs"]
mod routes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| routes::resource(data));
