//! One stream as the driver keeps it: what waits for its reader, how each direction stands, who waits.
//!
//! What its app's socket does not take at once ([`Flow::deliver`]) is kept ([`Flow::push`]) until its
//! reader asks for it ([`Flow::pop`]). Small pieces are packed together as soon as they have to wait
//! behind others: what a stream that nobody reads costs is then little more than its window, however the
//! peer cuts its frames.

use std::{collections::VecDeque, io::IoSlice, sync::Arc, task::Waker};

use bytes::{Bytes, BytesMut};

use super::app::App;
use crate::{copy::HalfEnd, tunnel::TunnelError};

/// Pieces below this size are packed together when they have to wait.
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
    /// Ended otherwise. Boxed: a stream has two directions as long as it lives, and they hardly ever fail.
    Failed(Box<TunnelError>),
}

impl Direction {
    pub(crate) fn because(why: TunnelError) -> Self {
        Self::Failed(Box::new(why))
    }

    pub(crate) fn is_open(&self) -> bool {
        *self == Self::Open
    }

    /// Fails unless it has already ended.
    fn fail(&mut self, why: &TunnelError) {
        if self.is_open() {
            *self = Self::because(why.clone());
        }
    }
}

/// What whoever copies holds of a stream when it has to stop, beside the socket.
#[derive(Debug)]
pub(crate) struct Parked {
    /// How the app's direction ended, if it has.
    pub(crate) up: Option<HalfEnd>,
    /// How the tunnel's direction ended, if it has.
    pub(crate) down: Option<HalfEnd>,
    /// Bytes (sent, received).
    pub(crate) moved: (u64, u64),
    /// Taken from the stream and not with the app's socket yet. It goes before all that waits in the stream.
    pub(crate) waiting: Vec<Bytes>,
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Flow {
    /// None while nothing waits: most streams are idle most of the time.
    queue: Option<Box<Queue>>,
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
    /// It stands in line for room in the output, called up or not.
    pub(crate) in_line: bool,
    /// Where its bytes go in the end, if that is a socket.
    pub(crate) app: Option<Arc<App>>,
    /// All that has come is with the app's socket: what comes next may go there at once.
    pub(crate) clear: bool,
    /// Whoever copies, to be told to stop.
    pub(crate) copier: Option<Waker>,
    /// It has stopped.
    pub(crate) parked: Option<Box<Parked>>,
    /// Its reader cannot be stopped.
    pub(crate) inside: bool,
}

/// What waits for the reader.
#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    /// Small chunks packed together, behind all of `chunks`.
    packed: BytesMut,
}

impl Flow {
    pub(crate) fn new() -> Self {
        Self {
            copier: None,
            parked: None,
            inside: false,
            queue: None,
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
            app: None,
            clear: false,
        }
    }

    /// Gives what came to the app's socket, if nothing waits before it; says how much it took.
    pub(crate) fn deliver(&self, pieces: &[IoSlice<'_>]) -> usize {
        match &self.app {
            Some(app) if self.clear => app.deliver(pieces),
            _ => 0,
        }
    }

    /// Keeps a piece that came.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.clear = false;
        self.queue.get_or_insert_default().push(piece);
    }

    /// The next chunk.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let queue = self.queue.as_mut()?;
        let chunk = queue.pop();
        if queue.is_empty() {
            // An idle stream holds no queue.
            self.queue = None;
        }
        chunk
    }

    /// What waits, in order.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &[u8]> {
        self.queue.iter().flat_map(|queue| queue.waiting())
    }

    /// Throws away what waits.
    pub(crate) fn discard(&mut self) {
        self.queue = None;
    }

    /// Ends both directions, as far as they have not ended. What has come is still to be read.
    pub(crate) fn fail(&mut self, why: &TunnelError) {
        self.receiving.fail(why);
        self.sending.fail(why);
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.packed.is_empty()
    }

    fn push(&mut self, piece: &[u8]) {
        if self.is_empty() || piece.len() >= PACK {
            self.unpack();
            self.chunks.push_back(Bytes::copy_from_slice(piece));
            return;
        }
        self.packed.extend_from_slice(piece);
        if self.packed.len() >= FULL {
            self.unpack();
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.unpack();
        }
        self.chunks.pop_front()
    }

    fn waiting(&self) -> impl Iterator<Item = &[u8]> {
        let packed = Some(&self.packed[..]).filter(|packed| !packed.is_empty());
        self.chunks.iter().map(|chunk| &chunk[..]).chain(packed)
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
    fn small_pieces_that_wait_are_packed_together() {
        let mut flow = Flow::new();
        flow.push(&[1; 1]);
        for _ in 0..100_000 {
            flow.push(&[1; 10]);
        }
        let chunks = |flow: &Flow| flow.queue.as_ref().map_or(0, |queue| queue.chunks.len());
        assert!(chunks(&flow) <= 1 + 1_000_000 / FULL);
        assert_eq!(flow.pop().unwrap().len(), 1);
        flow.discard();
        assert_eq!(flow.pop(), None);
    }

    #[test]
    fn an_end_in_order_is_not_made_a_failure_afterwards() {
        let mut flow = Flow::new();
        flow.receiving = Direction::Ended;
        flow.fail(&TunnelError::Ended);
        assert_eq!(flow.receiving, Direction::Ended);
        assert_eq!(flow.sending, Direction::because(TunnelError::Ended));
        flow.fail(&TunnelError::Reset("later".into()));
        assert_eq!(flow.sending, Direction::because(TunnelError::Ended));
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
                flow.push(&chunk);
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
