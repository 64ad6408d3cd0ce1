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
mod event;
mod headers;
mod input;
mod send;
mod state;

use std::{collections::VecDeque, time::Instant};

pub use event::{Event, Gone, NotOpened, Taken};

use super::{
    Code, HEAD, Head, Settings, StreamId, Violation,
    abuse::Abuse,
    head::{self, flag, kind},
    hpack::{self, Decoder},
    settings::{FIRST_WINDOW, Remote},
    stream::{Stream, Streams, UNDECLARED, is},
    window::Window,
};
use crate::limits::Refusal;
use input::Input;

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
    /// A server: a CONNECT may say what it is for.
    datagrams: bool,
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
        settings.announce(&mut mux.out, true, false);
        mux
    }

    /// A server's end. SETTINGS and WINDOW_UPDATE are in [`Mux::out`].
    pub fn server(settings: &Settings) -> Self {
        let mut mux = Self::new(settings, false);
        settings.announce(&mut mux.out, false, false);
        mux
    }

    /// A server's end that carries datagrams too: it says so, and takes CONNECTs that name a protocol (RFC 8441).
    pub fn server_of_datagrams(settings: &Settings) -> Self {
        let mut mux = Self::new(settings, false);
        mux.datagrams = true;
        settings.announce(&mut mux.out, false, true);
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
            datagrams: false,
            over: None,
        }
    }

    /// Control frames to be sent, whole ones only, in order. The caller takes bytes from the front (or
    /// all) as it sends them. Stop calling [`Mux::take`] while this is longer than you like: answers to
    /// the peer's frames are all that makes it grow.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Takes decrypted bytes up to the next event. `now` is only looked at when a budget is begun or used up.
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

    /// The peer has said the first that it says.
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// Whether the peer carries datagrams too; none before its SETTINGS have come, which say so.
    pub fn takes_datagrams(&self) -> Option<bool> {
        self.greeted.then_some(self.remote.datagrams)
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// What has ended of a stream that is open: the peer's direction, ours.
    pub(crate) fn ended_of(&self, stream: StreamId) -> Option<(bool, bool)> {
        let known = self.streams.get(stream)?;
        Some((known.is(is::THEIRS_ENDED), known.is(is::OURS_ENDED)))
    }

    /// Bytes that came and were not given back ([`Mux::consumed`]).
    pub(crate) fn unread(&self) -> u64 {
        u64::try_from(self.receive.unread()).unwrap_or(0)
    }

    /// How many bytes should be able to lie unread ([`Mux::grow`]): what does, what streams are promised, and what one
    /// more is that grows.
    pub(crate) fn most_wanted(&self) -> u64 {
        self.unread() + self.streams.credit() + u64::from(self.settings.grown_stream_window)
    }

    /// By how much more than at first may lie unread.
    pub(crate) fn grown(&self) -> u32 {
        self.receive
            .most_unread()
            .saturating_sub(self.settings.connection_window)
    }

    /// We are a client.
    pub(crate) fn is_client(&self) -> bool {
        self.client
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

    /// The stream's window has `n` bytes of room again. It grows while there is room for what all streams are promised and
    /// for one that begins.
    fn owe(&mut self, stream: StreamId, n: u32) {
        let ours = &self.settings;
        let Some((mut credit, ripe)) = self.streams.get_mut(stream).and_then(|s| s.read(n, ours))
        else {
            return;
        };
        if ripe && self.most_wanted() <= self.receive.most_unread().into() {
            let known = self.streams.get_mut(stream);
            credit += known.map_or(0, |known| known.grow(&self.settings));
        }
        head::write_window_update(&mut self.out, stream, credit);
    }
}
