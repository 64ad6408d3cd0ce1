//! Records of a peer, broken in any way or sealed with the right key.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::records(data));
