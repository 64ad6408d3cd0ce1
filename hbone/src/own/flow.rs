//! One stream as the driver keeps it: what waits for its reader, how each direction stands, who waits.
//!
//! Chunks enter as slices of the connection's read buffer ([`Flow::push`]) and leave as they came
//! ([`Flow::pop`]). A slice keeps the whole buffer alive, so a small one is copied as soon as it has to
//! wait behind others: what a stream that nobody reads costs is then a small multiple of its window,
//! however the peer cuts its frames.

use std::{collections::VecDeque, task::Waker};

use bytes::{Bytes, BytesMut};

use crate::tunnel::TunnelError;

/// Chunks below this size are packed together when they have to wait: a sixteenth of the largest read.
const PACK: usize = 8 << 10;
/// Size at which a pack is closed.
const FULL: usize = 16 << 10;

/// How one direction stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Bytes may come.
    Open,
    /// Ended in order.
    Ended,
    /// Ended otherwise.
    Failed(TunnelError),
}

impl Direction {
    pub(crate) fn is_open(&self) -> bool {
        *self == Self::Open
    }

    /// Fails unless it has already ended.
    fn fail(&mut self, why: &TunnelError) {
        if self.is_open() {
            *self = Self::Failed(why.clone());
        }
    }
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Flow {
    chunks: VecDeque<Bytes>,
    /// Small chunks packed together, behind all of `chunks`.
    packed: BytesMut,
    pub(crate) receiving: Direction,
    pub(crate) sending: Direction,
    /// Waits for a chunk, an end, or an answer.
    pub(crate) reader: Option<Waker>,
    /// Waits for room, or for the end of the stream.
    pub(crate) writer: Option<Waker>,
    /// The status that the peer answered.
    pub(crate) answer: Option<u16>,
    /// The peer has not looked at it: it may be asked for elsewhere.
    pub(crate) unseen: bool,
    /// Bytes that came and whose credit has not gone back, read or not.
    pub(crate) unread: usize,
    /// Nobody will read.
    pub(crate) reader_gone: bool,
    /// Nobody will write.
    pub(crate) writer_gone: bool,
    /// It stands in line for room in the output.
    pub(crate) in_line: bool,
}

impl Flow {
    pub(crate) fn new() -> Self {
        Self {
            chunks: VecDeque::new(),
            packed: BytesMut::new(),
            receiving: Direction::Open,
            sending: Direction::Open,
            reader: None,
            writer: None,
            answer: None,
            unseen: false,
            unread: 0,
            reader_gone: false,
            writer_gone: false,
            in_line: false,
        }
    }

    /// A chunk that came.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        let first = self.chunks.is_empty() && self.packed.is_empty();
        if first || chunk.len() >= PACK {
            self.unpack();
            self.chunks.push_back(chunk);
            return;
        }
        self.packed.extend_from_slice(&chunk);
        if self.packed.len() >= FULL {
            self.unpack();
        }
    }

    /// The next chunk.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.unpack();
        }
        let chunk = self.chunks.pop_front();
        if self.chunks.is_empty() && self.packed.is_empty() {
            // An idle stream holds no queue.
            self.chunks = VecDeque::new();
        }
        chunk
    }

    /// Throws away what waits.
    pub(crate) fn discard(&mut self) {
        self.chunks = VecDeque::new();
        self.packed = BytesMut::new();
    }

    /// Ends both directions, as far as they have not ended. What has come is still to be read.
    pub(crate) fn fail(&mut self, why: &TunnelError) {
        self.receiving.fail(why);
        self.sending.fail(why);
    }

    fn unpack(&mut self) {
        if !self.packed.is_empty() {
            self.chunks.push_back(self.packed.split().freeze());
            self.packed = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_chunks_that_wait_do_not_keep_the_read_buffer_alive() {
        let mut flow = Flow::new();
        let buffer = Bytes::from(vec![1; 128 << 10]);
        flow.push(buffer.slice(0..1));
        for _ in 0..100_000 {
            flow.push(buffer.slice(7..17));
        }
        assert!(flow.chunks.len() <= 1 + 1_000_000 / FULL);
        assert_eq!(flow.pop().unwrap().len(), 1);
        assert!(
            buffer.is_unique(),
            "only the first chunk was a slice of the buffer"
        );
        flow.discard();
        assert_eq!(flow.pop(), None);
    }

    #[test]
    fn an_end_in_order_is_not_made_a_failure_afterwards() {
        let mut flow = Flow::new();
        flow.receiving = Direction::Ended;
        flow.fail(&TunnelError::Ended);
        assert_eq!(flow.receiving, Direction::Ended);
        assert_eq!(flow.sending, Direction::Failed(TunnelError::Ended));
        flow.fail(&TunnelError::Reset("later".into()));
        assert_eq!(flow.sending, Direction::Failed(TunnelError::Ended));
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(steps in prop::collection::vec((1usize..20_000, any::<bool>()), 1..60)) {
            let mut flow = Flow::new();
            let (mut next, mut want, mut got) = (0u8, Vec::new(), Vec::new());
            for (length, read) in steps {
                let chunk: Vec<u8> = (0..length).map(|i| next.wrapping_add(i as u8)).collect();
                next = next.wrapping_add(91);
                want.extend_from_slice(&chunk);
                flow.push(chunk.into());
                if read {
                    got.extend_from_slice(&flow.pop().unwrap());
                }
            }
            while let Some(chunk) = flow.pop() {
                prop_assert!(!chunk.is_empty());
                got.extend_from_slice(&chunk);
            }
            prop_assert!(got == want);
        }
    }
}
