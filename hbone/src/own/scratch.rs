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
/// What is around the payloads of as many.
const AROUND: usize = RECORDS * (RECORD - PAYLOAD);

/// How much of a bulk is read and sealed at once: what makes whole pieces for the kernel. Eight full records are two such pieces of a
/// path of Ethernet and a third of 900 bytes, which passes filters and routes like the others; and an app's loopback sees the same again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch(usize);

impl Batch {
    /// For a connection whose kernel sends so many bytes in one piece.
    pub(crate) fn of(piece: Option<usize>) -> Self {
        let all = RECORDS * RECORD;
        let whole = piece.map_or(all, |piece| all - all % piece.clamp(1, all));
        Self(whole)
    }

    /// Bytes to read from the tunnel.
    pub(crate) fn read(self) -> usize {
        self.0.min(READ)
    }

    /// Bytes to read from an app for as many records.
    pub(crate) fn payload(self, records: usize) -> usize {
        match records {
            RECORDS.. => self.0 - AROUND,
            _ => records * PAYLOAD,
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bulk_is_sealed_to_whole_pieces_of_the_path_and_nearly_as_much() {
        // Segments of Ethernet, of Ethernet with an overlay, of large frames, of the loopback.
        for (piece, expected) in [
            (45 * 1_448, 130_320),
            (46 * 1_398, 128_616),
            (7 * 8_949, 125_286),
            (65_483, 130_966),
        ] {
            let batch = Batch::of(Some(piece));
            let payload = batch.payload(RECORDS);
            let records = payload.div_ceil(PAYLOAD);
            assert_eq!(payload + records * (RECORD - PAYLOAD), expected);
            assert_eq!(batch.read(), expected);
            assert_eq!(expected % piece, 0);
        }
    }

    #[test]
    fn whatever_a_kernel_says_there_is_room_for_it_and_something_to_do() {
        for piece in (0..300_000)
            .step_by(7)
            .map(Some)
            .chain([None, Some(usize::MAX)])
        {
            let batch = Batch::of(piece);
            assert!((1..=READ).contains(&batch.read()), "{piece:?}");
            for records in 1..=RECORDS {
                let payload = batch.payload(records);
                assert!((1..=records * PAYLOAD).contains(&payload), "{piece:?}");
            }
        }
    }
}
