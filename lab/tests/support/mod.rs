//! What the lab's tests share: one lab at a time, and its logs kept when a test fails.

use std::fs::File;

use anyhow::Result;
use lab::{Builder, Lab};

/// Runs `test` in a lab of its own. Labs do not disturb each other, but two cores carry only one well.
pub(crate) fn in_lab(builder: Builder, test: impl FnOnce(&Lab) -> Result<()>) {
    let _turn = turn();
    let lab = builder.start().unwrap_or_else(|error| panic!("{error:#}"));
    let outcome = test(&lab);
    if let Err(error) = outcome {
        // The panic keeps the logs.
        panic!("{error:?}\nlogs: {}", lab.dir().display());
    }
    lab.stop().unwrap_or_else(|error| panic!("{error:#}"));
}

/// A lock between all test threads and all test programs of this machine.
pub(crate) fn turn() -> File {
    let lock = File::create("/run/ambit-lab-tests.lock").expect("tests of the lab run as root");
    lock.lock().expect("a lock file");
    lock
}
