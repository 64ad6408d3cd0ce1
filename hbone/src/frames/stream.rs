//! The streams of a connection that are open, and those that were until just now.

use std::collections::VecDeque;

use super::StreamId;

/// How many streams are remembered after their end. What is on its way to one of them is no mistake of
/// the peer's; a round trip later nothing is.
const RECENT: usize = 256;
/// No `content-length`.
pub(super) const UNDECLARED: u32 = u32::MAX;

/// What a stream may be, beside open; several at once.
pub(super) mod is {
    /// The peer has sent its last.
    pub(in super::super) const THEIRS_ENDED: u8 = 1;
    /// We have sent our last.
    pub(in super::super) const OURS_ENDED: u8 = 2;
    /// The response has been sent or received.
    pub(in super::super) const ANSWERED: u8 = 4;
    /// A CONNECT, which has no trailers: any (server), or one that was accepted (client).
    pub(in super::super) const TUNNEL: u8 = 8;
    /// Somebody has something to send and no room.
    pub(in super::super) const WAITING: u8 = 16;
    /// It stands in the queue of those that wait for the connection's window.
    pub(in super::super) const QUEUED: u8 = 32;
}

/// One stream. Thousands may be open: 24 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) id: StreamId,
    /// What we may send; below zero when the peer took credit back.
    pub(super) send: i32,
    /// What the peer may send.
    pub(super) receive: u32,
    /// Read, and not given back to the peer yet.
    pub(super) owed: u32,
    /// Bytes of content still to come, or [`UNDECLARED`].
    pub(super) declared: u32,
    /// See [`is`].
    pub(super) state: u8,
}

impl Stream {
    pub(super) fn is(&self, bits: u8) -> bool {
        self.state & bits == bits
    }
}

/// A stream that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recent {
    id: StreamId,
    /// What the peer could still send when it ended.
    pub(super) receive: u32,
    /// We ended it while the peer had not; it may not know yet.
    pub(super) by_us: bool,
}

/// All streams, in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: Vec<Stream>,
    recent: VecDeque<Recent>,
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn get(&self, id: StreamId) -> Option<&Stream> {
        self.open.get(self.index(id).ok()?)
    }

    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        let index = self.index(id).ok()?;
        self.open.get_mut(index)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.open.iter_mut()
    }

    /// Adds a stream with a higher number than any before.
    pub(super) fn insert(&mut self, stream: Stream) {
        self.open.push(stream);
    }

    /// Forgets a stream, but for what is on its way to it.
    pub(super) fn remove(&mut self, id: StreamId, by_us: bool) -> Option<Stream> {
        let stream = self.open.remove(self.index(id).ok()?);
        self.remember(id, stream.receive, by_us);
        Some(stream)
    }

    /// Removes those beyond `last`.
    pub(super) fn truncate(&mut self, last: StreamId) {
        let keep = self.open.partition_point(|s| s.id <= last);
        self.open.truncate(keep);
    }

    /// Remembers a stream that never was open.
    pub(super) fn remember(&mut self, id: StreamId, receive: u32, by_us: bool) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent { id, receive, by_us });
    }

    pub(super) fn recent(&mut self, id: StreamId) -> Option<&mut Recent> {
        // What arrives late belongs to what ended last.
        self.recent.iter_mut().rev().find(|r| r.id == id)
    }

    fn index(&self, id: StreamId) -> Result<usize, usize> {
        // One busy stream is the common case, and the newest comes next.
        match self.open.last() {
            Some(last) if last.id == id => Ok(self.open.len() - 1),
            _ => self.open.binary_search_by_key(&id, |s| s.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(id: u32) -> Stream {
        Stream {
            id: StreamId(id),
            send: 0,
            receive: id,
            owed: 0,
            declared: UNDECLARED,
            state: 0,
        }
    }

    #[test]
    fn a_stream_is_small() {
        assert!(size_of::<Stream>() <= 24, "{}", size_of::<Stream>());
    }

    #[test]
    fn streams_are_found_by_number_and_remembered_for_a_while() {
        let mut streams = Streams::default();
        (0..10).for_each(|n| streams.insert(stream(2 * n + 1)));
        assert!((0..10).all(|n| streams.get(StreamId(2 * n + 1)).is_some()));
        assert!((0..10).all(|n| streams.get(StreamId(2 * n)).is_none()));
        assert_eq!(
            streams.remove(StreamId(5), true).map(|s| s.receive),
            Some(5)
        );
        assert_eq!(streams.remove(StreamId(5), true), None);
        assert_eq!(streams.len(), 9);
        let recent = streams.recent(StreamId(5)).unwrap();
        assert_eq!((recent.receive, recent.by_us), (5, true));
        for _ in 0..RECENT {
            streams.remember(StreamId(7), 0, false);
        }
        assert!(streams.recent(StreamId(5)).is_none());
        streams.truncate(StreamId(7));
        assert_eq!(streams.len(), 3);
    }
}
