//! What the tests of this folder stand on: network namespaces, a ztunnel that only acknowledges, an
//! agent as its own process. They need root.

#![allow(unreachable_pub)] // a crate of tests has no other side

pub mod agent;
pub mod api_server;
pub mod net;
pub mod ztunnel;

use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine; reached only when a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `what` holds; panics with `why` after [`PATIENCE`].
pub fn eventually(why: &str, mut what: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {why}");
        pause(Duration::from_millis(10));
    }
}

/// For what only polling can see: other processes' files and the kernel's tables.
#[allow(clippy::disallowed_methods)] // no runtime here whose worker it could block
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
