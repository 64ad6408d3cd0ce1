//! One connection's state, and what can be done with it.
//!
//! ```text
//!                 HEADERS in / open                  respond / HEADERS in
//!   (no stream) ─────────────────► asked ─────────────────────────────► connected
//!        ▲                          │                                      │ END_STREAM in
//!        │       RST_STREAM, either │ way                                  │ END_STREAM out
//!        └──────────────────────────┴──────────────────────────────────────┘ (both)
//! ```
//!
//! Streams that have ended are forgotten at once; what still arrives for them is tolerated within
//! bounds (`mux/input`).
//!
//! Order on the wire: [`Mux::out`] must be written before the DATA frame whose head was asked for
//! after it was filled; then nothing is ever sent for a stream that the peer has not heard of.

mod control;
mod headers;
mod input;

use std::{collections::VecDeque, ops::Range, time::Instant};

use super::{
    Code, HEAD, Head, RequestHead, ResponseHead, Settings, StreamId, Violation,
    abuse::Abuse,
    fields,
    head::{self, flag, kind},
    hpack::{self, Decoder},
    settings::{FIRST_FRAME, FIRST_WINDOW, Remote},
    stream::{Stream, Streams, UNDECLARED, is},
    window::Window,
};
use crate::{client::Connect, incoming::ResponseHeaders, limits::Refusal};
use input::Input;

/// What a peer did that somebody must know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request (server). Answer it with [`Mux::respond`] or [`Mux::reset`]; it may be anything but a
    /// CONNECT too, which is for the caller to refuse.
    Request {
        /// Its stream.
        stream: StreamId,
        /// What it says.
        head: RequestHead,
        /// Nothing follows.
        end: bool,
    },
    /// The answer to an [`Mux::open`] (client); once for each stream.
    Response {
        /// Its stream.
        stream: StreamId,
        /// What it says.
        head: ResponseHead,
        /// Nothing follows.
        end: bool,
    },
    /// Bytes of a tunnel; none, when `end` came by itself. Each byte is given back through
    /// [`Mux::consumed`] exactly once, whatever becomes of it.
    Data {
        /// Its stream.
        stream: StreamId,
        /// Where they lie in the bytes that were given to this call of [`Mux::take`].
        range: Range<usize>,
        /// The peer's last.
        end: bool,
    },
    /// A stream that the caller knows of has ended for both, and is forgotten.
    Reset {
        /// Its stream.
        stream: StreamId,
        /// Why.
        code: Code,
        /// We had to, for what the peer did on it; else the peer did.
        ours: bool,
    },
    /// More may be sent: on this stream, or, for [`StreamId::CONNECTION`], on all that wait
    /// ([`Mux::ready`]).
    Capacity {
        /// Which.
        stream: StreamId,
    },
    /// The peer takes no more streams, and knows nothing of those beyond `last` (client: they are
    /// forgotten here; they may be asked for again elsewhere). May come twice, the second time with a
    /// lower `last`.
    GoAway {
        /// The last that it has looked at or will.
        last: StreamId,
        /// Why.
        code: Code,
    },
    /// The answer to [`Mux::ping`].
    Pong {
        /// What we sent.
        payload: [u8; 8],
    },
    /// The peer has taken our SETTINGS.
    SettingsAcknowledged,
    /// A stream was refused here; nobody has heard of it and nothing is left to do but to count.
    Refused {
        /// Its stream.
        stream: StreamId,
        /// Why.
        kind: Refusal,
    },
}

/// How far [`Mux::take`] came.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes that have been looked at and must not be given again. Never 0 for input that is not empty.
    pub used: usize,
    /// What they meant; when nothing, all of them are used.
    pub event: Option<Event>,
}

/// Why no stream was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// As many are open as the peer allows.
    #[error("as many streams are open as the peer allows")]
    Full,
    /// The peer or we have said that there will be no more; another connection may do.
    #[error("the connection takes no more streams")]
    GoingAway,
    /// This header cannot be sent.
    #[error("{0} has characters that no header may have")]
    Malformed(&'static str),
}

/// The stream is not there any more, or its direction has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream has ended")]
pub struct Gone;

/// One connection. Plain data: it can be written down and gone on with elsewhere.
#[derive(Debug)]
pub struct Mux {
    client: bool,
    settings: Settings,
    remote: Remote,
    out: Vec<u8>,
    input: Input,
    decoder: Decoder,
    streams: Streams,
    /// The newest stream of the client's, be it us or the peer.
    newest: StreamId,
    /// What we may send on the connection.
    send: i64,
    /// The most that ever was.
    most_send: i64,
    receive: Window,
    /// Streams that wait for room, each once, in turn. One whose own window is shut may stand here too.
    queue: VecDeque<StreamId>,
    abuse: Abuse,
    /// The peer's first SETTINGS have come.
    greeted: bool,
    /// Ours have been acknowledged.
    acknowledged: bool,
    /// We have said that we keep no header table.
    shrunk: bool,
    leaving: Leaving,
    /// The peer's GOAWAY: the last stream it will look at.
    told: Option<StreamId>,
    over: Option<Violation>,
}

/// What we have said of our going away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// A server: soon. Requests on their way are still served.
    Announced,
    /// No stream beyond this one.
    Said(StreamId),
    /// Nothing is taken any more.
    Gone,
}

/// The PING behind a server's first GOAWAY. Its answer comes behind all requests on their way.
const LAST_CALL: [u8; 8] = *b"lastcall";
/// What a client says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Mux {
    /// A client's end. Preface, SETTINGS and WINDOW_UPDATE are in [`Mux::out`].
    pub fn client(settings: &Settings) -> Self {
        let mut mux = Self::new(settings, true);
        mux.out.extend_from_slice(PREFACE);
        settings.announce(&mut mux.out, true);
        mux
    }

    /// A server's end. SETTINGS and WINDOW_UPDATE are in [`Mux::out`].
    pub fn server(settings: &Settings) -> Self {
        let mut mux = Self::new(settings, false);
        settings.announce(&mut mux.out, false);
        mux
    }

    fn new(settings: &Settings, client: bool) -> Self {
        Self {
            client,
            settings: *settings,
            remote: Remote::new(),
            out: Vec::with_capacity(128),
            input: Input::new(!client),
            decoder: Decoder::default(),
            streams: Streams::default(),
            newest: StreamId::CONNECTION,
            send: FIRST_WINDOW.into(),
            most_send: FIRST_WINDOW.into(),
            receive: Window::new(settings.connection_window.max(FIRST_WINDOW)),
            queue: VecDeque::new(),
            abuse: Abuse::new(),
            greeted: false,
            acknowledged: false,
            shrunk: false,
            leaving: Leaving::No,
            told: None,
            over: None,
        }
    }

    /// Control frames to be sent, whole ones only, in order. The caller takes bytes from the front (or
    /// all) as it sends them. Stop calling [`Mux::take`] while this is longer than you like: answers to
    /// the peer's frames are all that makes it grow.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Takes decrypted bytes up to the next event. `now` is only looked at when a budget is used up.
    ///
    /// # Errors
    /// When the peer broke a rule or passed a limit: send what is in [`Mux::out`] and close. Every later
    /// call gives the same error.
    pub fn take(&mut self, plain: &[u8], now: Instant) -> Result<Taken, Violation> {
        if let Some(violation) = self.over {
            return Err(violation);
        }
        if self.leaving == Leaving::Gone {
            return Ok(Taken {
                used: plain.len(),
                event: None,
            });
        }
        let outcome = self.read(plain, now);
        if let Err(violation) = outcome {
            self.over = Some(violation);
            let last = self.last_served();
            head::write_go_away(&mut self.out, last, violation.code);
        }
        outcome
    }

    /// Asks for a tunnel (client).
    ///
    /// # Errors
    /// When there is no place, or the request cannot be written down. Nothing was sent then.
    pub fn open(&mut self, connect: &Connect) -> Result<StreamId, NotOpened> {
        if !self.client || self.newest == StreamId::LAST || self.ending() {
            return Err(NotOpened::GoingAway);
        }
        if self.streams.len() >= self.remote.streams as usize {
            return Err(NotOpened::Full);
        }
        let block = self.request_block(connect)?;
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
                self.queue.push_back(stream);
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

    /// Gives back `n` bytes of [`Event::Data`], read or thrown away. Credit goes to the peer when half a
    /// window has come together. Also for streams that have ended: each byte exactly once.
    pub fn consumed(&mut self, stream: StreamId, n: usize) {
        self.receive.read(n);
        self.credit_connection();
        // Of bytes that came within a window of 31 bits.
        self.owe(stream, u32::try_from(n).unwrap_or(u32::MAX));
    }

    /// How many bytes may lie unread on this connection, all streams together: at first its window.
    /// While less does, the peer has the whole connection window; it never shrinks.
    pub fn grow(&mut self, unread: u32) {
        self.receive.grow(unread);
        self.credit_connection();
    }

    /// Ends both directions of a stream at once. Nothing happens if it has ended.
    pub fn reset(&mut self, stream: StreamId, code: Code) {
        if self.streams.remove(stream, true).is_some() {
            head::write_reset(&mut self.out, stream, code);
        }
    }

    /// No more streams. With NO_ERROR those that are open go on (a server first announces it, and means
    /// it one round trip later, so that requests on their way are served); with any other code it is
    /// the end, and nothing more is taken.
    pub fn go_away(&mut self, code: Code) {
        if matches!(self.leaving, Leaving::Gone) || self.over.is_some() {
            return;
        }
        if code != Code::NO_ERROR {
            let last = self.last_served();
            self.leaving = Leaving::Gone;
            head::write_go_away(&mut self.out, last, code);
        } else if self.leaving == Leaving::No && self.client {
            self.leaving = Leaving::Said(StreamId::CONNECTION);
            head::write_go_away(&mut self.out, StreamId::CONNECTION, code);
        } else if self.leaving == Leaving::No {
            self.leaving = Leaving::Announced;
            head::write_go_away(&mut self.out, StreamId::LAST, code);
            self.ping(LAST_CALL);
        }
    }

    /// Sends a PING; [`Event::Pong`] is its answer.
    pub fn ping(&mut self, payload: [u8; 8]) {
        head::write(&mut self.out, kind::PING, 0, StreamId::CONNECTION, &payload);
    }

    /// Streams that may be open at once (client): what the peer allows, 0 when no more will be opened.
    pub fn most(&self) -> usize {
        if self.client && !self.ending() {
            self.remote.streams as usize
        } else {
            0
        }
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// At least half of what the peer allows on the connection lies unread there, or is on its way.
    pub fn stalled(&self) -> bool {
        self.send * 2 < self.most_send
    }

    /// The peer has said that there will be no more streams, or we have.
    pub fn going_away(&self) -> bool {
        self.ending()
    }

    /// Going away, and no stream is left: nothing will come of this connection.
    pub fn done(&self) -> bool {
        let said = !matches!(self.leaving, Leaving::No | Leaving::Announced);
        self.over.is_some() || ((said || self.told.is_some()) && self.streams.len() == 0)
    }

    fn ending(&self) -> bool {
        self.told.is_some() || self.leaving != Leaving::No || self.over.is_some()
    }

    /// The last of the peer's streams that we looked at. Servers open none.
    fn last_served(&self) -> StreamId {
        match self.leaving {
            _ if self.client => StreamId::CONNECTION,
            Leaving::Said(last) => last,
            _ => self.newest,
        }
    }

    fn insert(&mut self, id: StreamId, declared: u32, state: u8) {
        self.streams.insert(Stream {
            id,
            send: self.remote.window as i32, // at most 2^31 - 1
            receive: self.settings.stream_window,
            owed: 0,
            declared,
            state,
        });
    }

    /// One direction of a stream has ended; with the other it is forgotten.
    fn ended(&mut self, stream: StreamId, direction: u8) {
        if let Some(known) = self.streams.get_mut(stream) {
            known.state |= direction;
            if known.is(is::OURS_ENDED | is::THEIRS_ENDED) {
                self.streams.remove(stream, false);
            }
        }
    }

    fn credit_connection(&mut self) {
        if let Some(credit) = self.receive.credit() {
            head::write_window_update(&mut self.out, StreamId::CONNECTION, credit);
        }
    }

    /// The stream's window has `n` bytes of room again.
    fn owe(&mut self, stream: StreamId, n: u32) {
        let Some(known) = self.streams.get_mut(stream) else {
            return;
        };
        known.owed = known.owed.saturating_add(n);
        let due = known.owed;
        if due >= (self.settings.stream_window / 2).max(1) && !known.is(is::THEIRS_ENDED) {
            known.owed = 0;
            known.receive += due;
            head::write_window_update(&mut self.out, stream, due);
        }
    }

    /// A header block that begins.
    fn block(&mut self) -> Vec<u8> {
        let mut block = Vec::with_capacity(64);
        if self.remote.shrink && !self.shrunk {
            self.shrunk = true;
            block.push(hpack::NO_TABLE);
        }
        block
    }

    fn request_block(&mut self, connect: &Connect) -> Result<Vec<u8>, NotOpened> {
        let more = [
            ("baggage", &connect.baggage),
            ("forwarded", &connect.forwarded),
            ("traceparent", &connect.traceparent),
            ("x-forwarded-network", &connect.x_forwarded_network),
        ];
        for (name, value) in more {
            if !value.as_deref().is_none_or(fields::is_sendable) {
                return Err(NotOpened::Malformed(name));
            }
        }
        let authority = connect.authority.to_string();
        if !fields::is_sendable(&authority) {
            return Err(NotOpened::Malformed("authority"));
        }
        let mut block = self.block();
        block.extend_from_slice(hpack::CONNECT);
        hpack::put_indexed(&mut block, hpack::AUTHORITY, authority.as_bytes());
        for (name, value) in more {
            if let Some(value) = value {
                hpack::put(&mut block, name, value.as_bytes());
            }
        }
        Ok(block)
    }

    /// Writes a header block, nearly always in one frame.
    fn put_block(&mut self, stream: StreamId, block: &[u8], end: bool) {
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
