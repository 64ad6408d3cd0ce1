//! What we say on streams: requests, answers, and DATA as far as the peer allows.
//!
//! A stream that has no room waits ([`Mux::wait`]) until credit comes for it; when it is the connection
//! that has none, streams wait in a queue and are served in turn ([`Mux::ready`]).

use super::{
    HEAD, Head, Mux, StreamId, UNDECLARED,
    event::{Gone, NotOpened},
    flag, head, hpack, is, kind,
};
use crate::{
    client::Connect,
    datagrams,
    frames::{fields, settings::FIRST_FRAME},
    incoming::ResponseHeaders,
};

impl Mux {
    /// Asks for a tunnel (client).
    ///
    /// # Errors
    /// When there is no place, or the request cannot be written down. Nothing was sent then.
    pub fn open(&mut self, connect: &Connect) -> Result<StreamId, NotOpened> {
        self.open_as(connect, None)
    }

    /// The same; with a `path` it asks for a way for datagrams (RFC 9298).
    ///
    /// # Errors
    /// As for [`Mux::open`].
    pub fn open_as(
        &mut self,
        connect: &Connect,
        path: Option<&str>,
    ) -> Result<StreamId, NotOpened> {
        if !self.client || self.newest == StreamId::LAST || self.ending() {
            return Err(NotOpened::GoingAway);
        }
        if self.streams.len() >= self.remote.streams as usize {
            return Err(NotOpened::Full);
        }
        let block = self.request_block(connect, path)?;
        // 1, 3, 5, … up to 2^31 - 1.
        let stream = StreamId(match self.newest.0 {
            0 => 1,
            newest => newest + 2,
        });
        self.newest = stream;
        self.insert(stream, UNDECLARED, 0);
        self.put_block(stream, &block, false);
        Ok(stream)
    }

    /// Answers a request (server). After an answer that ends the stream, a peer that has not ended its
    /// own direction may be told to with [`Mux::reset`] and NO_ERROR.
    ///
    /// # Errors
    /// When the stream has been reset meanwhile, or was answered before.
    pub fn respond(
        &mut self,
        stream: StreamId,
        status: u16,
        headers: &ResponseHeaders,
        end: bool,
    ) -> Result<(), Gone> {
        let known = self.streams.get_mut(stream).ok_or(Gone)?;
        if self.client || known.is(is::ANSWERED) {
            return Err(Gone);
        }
        known.state |= is::ANSWERED;
        let mut block = self.block();
        hpack::put_status(&mut block, status);
        let baggage = headers.baggage.as_deref();
        if let Some(baggage) = baggage.filter(|b| fields::is_sendable(b)) {
            hpack::put(&mut block, "baggage", baggage.as_bytes());
        }
        self.put_block(stream, &block, end);
        if end {
            self.ended(stream, is::OURS_ENDED);
        }
        Ok(())
    }

    /// Bytes that one DATA frame of the stream may carry now: what stream, connection and the peer's
    /// frame limit allow. 0 also for a stream that is gone.
    pub fn room(&self, stream: StreamId) -> usize {
        let Some(known) = self.streams.get(stream) else {
            return 0;
        };
        let room = i64::from(known.send)
            .min(self.send)
            .min(self.remote.frame.into());
        usize::try_from(room).unwrap_or(0)
    }

    /// Bytes that several DATA frames of the stream may carry now, each within [`Mux::room`].
    pub fn window(&self, stream: StreamId) -> usize {
        let known = self.streams.get(stream);
        let window = known.map_or(0, |known| i64::from(known.send).min(self.send));
        usize::try_from(window).unwrap_or(0)
    }

    /// Sends `n` bytes, or the end, or both: counts them and gives the head to put before them. `None`
    /// when `n` is more than [`Mux::room`], or the stream is gone, not answered yet (server), or has
    /// ended: then nothing may be sent.
    pub fn data(&mut self, stream: StreamId, n: usize, end: bool) -> Option<[u8; HEAD]> {
        let (room, server) = (self.room(stream), !self.client);
        let known = self.streams.get_mut(stream)?;
        if n > room || known.is(is::OURS_ENDED) || (server && !known.is(is::ANSWERED)) {
            return None;
        }
        known.send -= n as i32; // n is at most `send`
        self.send -= n as i64; // the same
        self.abuse.earn(n);
        if end {
            self.ended(stream, is::OURS_ENDED);
        }
        let head = Head {
            length: n as u32, // at most the peer's largest frame
            kind: kind::DATA,
            flags: if end { flag::END_STREAM } else { 0 },
            stream,
        };
        Some(head.bytes())
    }

    /// The stream has something to send and no room: [`Mux::ready`] will name it when it has.
    pub fn wait(&mut self, stream: StreamId) {
        if let Some(known) = self.streams.get_mut(stream) {
            known.state |= is::WAITING;
            // One whose own window is shut is queued when that opens.
            if known.send > 0 && !known.is(is::QUEUED) {
                known.state |= is::QUEUED;
                self.enqueue(stream);
            }
        }
    }

    /// The next of the waiting streams that has room now, in turn. It no longer waits.
    pub fn ready(&mut self) -> Option<StreamId> {
        if self.send <= 0 {
            return None;
        }
        while let Some(stream) = self.queue.pop_front() {
            let Some(known) = self.streams.get_mut(stream) else {
                continue;
            };
            known.state &= !is::QUEUED;
            if known.is(is::WAITING) && known.send > 0 {
                known.state &= !is::WAITING;
                return Some(stream);
            }
        }
        None
    }

    /// Leaves no stream at the front of the queue that ended while it waited.
    pub(super) fn drop_ended(&mut self) {
        while let Some(first) = self.queue.front()
            && self.streams.get(*first).is_none()
        {
            self.queue.pop_front();
        }
    }

    /// Puts a stream at the end of the queue, which must not grow by those that ended while they waited.
    pub(super) fn enqueue(&mut self, stream: StreamId) {
        if self.queue.len() > 2 * self.streams.len() {
            let streams = &self.streams;
            self.queue.retain(|id| streams.get(*id).is_some());
        }
        self.queue.push_back(stream);
    }

    /// A header block that begins.
    pub(super) fn block(&mut self) -> Vec<u8> {
        let mut block = Vec::with_capacity(64);
        if self.remote.shrink && !self.shrunk {
            self.shrunk = true;
            block.push(hpack::NO_TABLE);
        }
        block
    }

    fn request_block(
        &mut self,
        connect: &Connect,
        path: Option<&str>,
    ) -> Result<Vec<u8>, NotOpened> {
        if let Some((name, _)) = connect
            .headers()
            .find(|(_, value)| !fields::is_sendable(value))
        {
            return Err(NotOpened::Malformed(name));
        }
        let authority = connect.authority.to_string();
        if !fields::is_sendable(&authority) {
            return Err(NotOpened::Malformed("authority"));
        }
        let mut block = self.block();
        block.extend_from_slice(hpack::CONNECT);
        if let Some(path) = path {
            hpack::put(&mut block, ":protocol", datagrams::PROTOCOL.as_bytes());
            hpack::put(&mut block, ":scheme", b"https");
            hpack::put(&mut block, ":path", path.as_bytes());
        }
        hpack::put_indexed(&mut block, hpack::AUTHORITY, authority.as_bytes());
        if path.is_some() {
            hpack::put(&mut block, "capsule-protocol", b"?1");
        }
        for (name, value) in connect.headers() {
            hpack::put(&mut block, name, value.as_bytes());
        }
        Ok(block)
    }

    /// Writes a header block, nearly always in one frame.
    pub(super) fn put_block(&mut self, stream: StreamId, block: &[u8], end: bool) {
        let most = self.remote.frame.min(FIRST_FRAME) as usize;
        let mut kind = kind::HEADERS;
        let mut flags = if end { flag::END_STREAM } else { 0 };
        let mut rest = block;
        while rest.len() > most {
            let (piece, after) = rest.split_at(most);
            head::write(&mut self.out, kind, flags, stream, piece);
            (kind, flags, rest) = (kind::CONTINUATION, 0, after);
        }
        head::write(&mut self.out, kind, flags | flag::END_HEADERS, stream, rest);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::frames::{Code, Settings};

    #[test]
    fn the_queue_does_not_grow_by_streams_that_ended_while_they_waited() {
        let mut mux = Mux::client(&Settings::client());
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        mux.take(&settings, Instant::now()).unwrap();
        let ask = Connect::to("a:1".parse::<crate::Authority>().unwrap());
        let bulk = mux.open(&ask).unwrap();
        while mux.room(bulk) > 0 {
            mux.data(bulk, mux.room(bulk), false).unwrap();
        }
        for _ in 0..1000 {
            let stream = mux.open(&ask).unwrap();
            mux.wait(stream);
            mux.reset(stream, Code::CANCEL);
        }
        assert!(mux.queue.len() <= 2 * 2 + 1, "{}", mux.queue.len());
    }
}
