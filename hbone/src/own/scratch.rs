//! Memory in which records are opened and sealed: one piece for each thread, so that it stays in the
//! second-level cache, and so that no connection holds any of it.

use std::{cell::Cell, ops::Range};

use crate::{
    frames,
    records::{HEAD, MOST, TAIL},
};

/// What one read may bring, in bytes: beyond it the memory no longer stays in the cache together with
/// what the kernel copies from and to.
pub(crate) const READ: usize = 128 << 10;
/// What may be left of the read before: less than one record.
pub(crate) const LEFT: usize = HEAD + MOST + 256;
/// Payload of one record that is one DATA frame.
pub(crate) const PAYLOAD: usize = MOST - frames::HEAD;
/// What stands before the payload.
pub(crate) const BEFORE: usize = HEAD + frames::HEAD;
/// A full record.
pub(crate) const RECORD: usize = BEFORE + PAYLOAD + TAIL;
/// Records made at once.
pub(crate) const RECORDS: usize = 8;

/// The thread's memory, for one step.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) bytes: Vec<u8>,
    /// Where the pieces of one stream stand.
    pub(crate) pieces: Vec<Range<usize>>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Takes one step with the thread's memory. One step within another gets memory of its own.
pub(crate) fn with<R>(step: impl FnOnce(&mut Scratch) -> R) -> R {
    // None while the thread ends.
    let mut scratch = SCRATCH.try_with(Cell::take).unwrap_or_default();
    if scratch.bytes.is_empty() {
        scratch.bytes = vec![0; (LEFT + READ).max(RECORDS * RECORD)];
    }
    let result = step(&mut scratch);
    let _ = SCRATCH.try_with(|place| place.set(scratch));
    result
}
