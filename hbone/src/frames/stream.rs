//! The streams of a connection that are open, and those that were until just now.

use std::collections::VecDeque;

use super::{
    Settings, StreamId,
    state::{Reader, StateError, ensure, put_u16, put_u32},
};

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
    /// Half a window was read while little waited.
    pub(in super::super) const PROMPT: u8 = 64;
    /// Then the other half: its window is the grown one.
    pub(in super::super) const GROWN: u8 = 128;
    /// All that a state may say of a stream; who is queued is said by the queue.
    pub(super) const WRITTEN: u8 =
        THEIRS_ENDED | OURS_ENDED | ANSWERED | TUNNEL | WAITING | PROMPT | GROWN;
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

    /// Of the content that was declared, if any was, all has come.
    pub(super) fn has_come(&self) -> bool {
        matches!(self.declared, 0 | UNDECLARED)
    }

    /// The window that it has by now.
    fn window(&self, ours: &Settings) -> u32 {
        match self.is(is::GROWN) {
            true => ours.grown_stream_window,
            false => ours.stream_window,
        }
    }

    /// `n` bytes were read: the credit that is due to the peer, if it is worth a frame; counted as given. True if the
    /// reader has kept up for a whole window, and that is not the grown one yet.
    pub(super) fn read(&mut self, n: u32, ours: &Settings) -> Option<(u32, bool)> {
        self.owed = self.owed.saturating_add(n);
        let window = self.window(ours);
        if self.owed < (window / 2).max(1) || self.is(is::THEIRS_ENDED) {
            return None;
        }
        let due = std::mem::take(&mut self.owed);
        self.receive += due;
        let kept_up = self.is(is::PROMPT);
        if window.saturating_sub(self.receive) > window / 4 {
            self.state &= !is::PROMPT;
        } else if !self.is(is::GROWN) {
            self.state |= is::PROMPT;
        }
        Some((due, kept_up && self.is(is::PROMPT)))
    }

    /// Grows to its full window: the credit that this is; counted as given. A stream begins with a small window, for what
    /// nobody reads is our memory.
    pub(super) fn grow(&mut self, ours: &Settings) -> u32 {
        let more = ours.grown_stream_window.saturating_sub(self.window(ours));
        self.state = (self.state & !is::PROMPT) | is::GROWN;
        self.receive += more;
        more
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_u32(out, self.id.0);
        out.extend_from_slice(&self.send.to_be_bytes());
        put_u32(out, self.receive);
        put_u32(out, self.owed);
        put_u32(out, self.declared);
        out.push(self.state & is::WRITTEN);
    }

    /// `ours`: what each stream was announced; `client`: we are.
    fn restore(client: bool, ours: &Settings, from: &mut Reader<'_>) -> Result<Self, StateError> {
        let stream = Self {
            id: from.stream()?,
            send: i32::from_be_bytes(from.array()?),
            receive: from.u32()?,
            owed: from.u32()?,
            declared: from.u32()?,
            state: from.u8()?,
        };
        ensure(
            stream.state & !is::WRITTEN == 0,
            "a mark that no stream has",
        )?;
        ensure(
            !stream.is(is::PROMPT | is::GROWN),
            "a stream that has grown grows again",
        )?;
        let window = u64::from(stream.window(ours));
        let sound = u64::from(stream.receive) + u64::from(stream.owed) <= window;
        ensure(sound, "a stream's window is beyond what was announced")?;
        let ended = stream.is(is::OURS_ENDED | is::THEIRS_ENDED);
        ensure(!ended, "a stream that has ended is open")?;
        let [theirs, ours, answered, tunnel] =
            [is::THEIRS_ENDED, is::OURS_ENDED, is::ANSWERED, is::TUNNEL].map(|bit| stream.is(bit));
        let in_order = match client {
            true => answered || !(theirs || tunnel),
            false => answered || !ours,
        };
        ensure(in_order, "a stream went on before it was answered")?;
        // Bytes of a tunnel are no content, and answers are not asked for theirs.
        let content = stream.declared != UNDECLARED;
        ensure(
            !(content && (client || tunnel)),
            "a tunnel declares content",
        )?;
        ensure(!theirs || stream.has_come(), "content ended too soon")?;
        Ok(stream)
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

    /// Bytes that the peers of all of them may still send, or will be told that they may.
    pub(super) fn credit(&self) -> u64 {
        let each = |s: &Stream| u64::from(s.receive) + u64::from(s.owed);
        self.open.iter().map(each).sum()
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

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.open.iter()
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        put_u32(out, self.open.len() as u32); // of 31-bit numbers
        self.open.iter().for_each(|stream| stream.write(out));
        put_u16(out, self.recent.len() as u16); // at most `RECENT`
        for recent in &self.recent {
            put_u32(out, recent.id.0);
            put_u32(out, recent.receive);
            out.push(recent.by_us.into());
        }
    }

    /// `newest`: no stream is beyond it; `ours` and `client` as for each of them.
    pub(super) fn restore(
        client: bool,
        ours: &Settings,
        newest: StreamId,
        from: &mut Reader<'_>,
    ) -> Result<Self, StateError> {
        let mut streams = Self::default();
        let was_opened = |id: StreamId| id <= newest && id.0 % 2 == 1;
        for _ in 0..from.u32()? {
            let stream = Stream::restore(client, ours, from)?;
            let in_order = streams.open.last().is_none_or(|last| last.id < stream.id);
            ensure(in_order && was_opened(stream.id), "streams out of order")?;
            streams.open.push(stream);
        }
        let recent = from.u16()?;
        ensure(usize::from(recent) <= RECENT, "too many streams that ended")?;
        for _ in 0..recent {
            let (id, receive, by_us) = (from.stream()?, from.u32()?, from.bool()?);
            let once = streams.get(id).is_none() && streams.recent(id).is_none();
            ensure(once && was_opened(id), "a stream that never ended")?;
            let what = "a stream's window was beyond what was announced";
            ensure(receive <= ours.grown_stream_window, what)?;
            streams.remember(id, receive, by_us);
        }
        Ok(streams)
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
