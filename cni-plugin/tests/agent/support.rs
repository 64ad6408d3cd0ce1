//! What the tests of this folder stand on: network namespaces, a ztunnel that only acknowledges, an
//! agent as its own process. They need root.

#![allow(unreachable_pub)] // a crate of tests has no other side

pub mod agent;
pub mod api_server;
pub mod net;
pub mod ztunnel;

use std::process::{Child, Command, ExitStatus, Output, Stdio};
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

/// A child's end, which must come.
pub fn ended(process: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("a process that was told to end has ended", || {
        status = process.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// [`Command::output`] of little, of a program that is killed if it does not come to its end.
pub fn output(command: &mut Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let end = Instant::now() + PATIENCE;
    while process.try_wait().unwrap().is_none() {
        if Instant::now() >= end {
            let _ = process.kill();
            let _ = process.wait();
            panic!("it did not end within {PATIENCE:?}: {command:?}");
        }
        pause(Duration::from_millis(10));
    }
    process.wait_with_output().unwrap()
}
