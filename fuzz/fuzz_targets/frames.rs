//! HTTP/2 of a peer, in any pieces, on a connection that stays and on one that is handed over.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::frames(data));
