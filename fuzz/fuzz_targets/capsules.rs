//! What is said in a tunnel for datagrams.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::capsules(data));
