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

use std::{ops::Range, time::Instant};

use super::{
    Code, HEAD, RequestHead, ResponseHead, Settings, StreamId, Violation,
};
use crate::{client::Connect, incoming::ResponseHeaders, limits::Refusal};

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

/// One connection.
#[derive(Debug)]
pub struct Mux {
    out: Vec<u8>,
}

impl Mux {
    /// A client's end. Preface, SETTINGS and WINDOW_UPDATE are in [`Mux::out`].
    pub fn client(settings: &Settings) -> Self {
        let mut out = PREFACE.to_vec();
        settings.announce(&mut out, true);
        Self { out }
    }

    /// A server's end. SETTINGS and WINDOW_UPDATE are in [`Mux::out`].
    pub fn server(settings: &Settings) -> Self {
        let mut out = Vec::new();
        settings.announce(&mut out, false);
        Self { out }
    }

    /// Control frames to be sent, whole ones only, in order. The caller takes bytes from the front (or
    /// all) as it sends them. Stop calling [`Mux::take`] while this is longer than you like: answers to
    /// the peer's frames are all that makes it grow.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Takes decrypted bytes up to the next event.
    ///
    /// # Errors
    /// When the peer broke a rule or passed a limit: send what is in [`Mux::out`] and close. Every later
    /// call gives the same error.
    pub fn take(&mut self, plain: &[u8], now: Instant) -> Result<Taken, Violation> {
        let _ = now;
        Ok(Taken { used: plain.len(), event: None })
    }

    /// Asks for a tunnel (client).
    ///
    /// # Errors
    /// When there is no place, or the request cannot be written down. Nothing was sent then.
    pub fn open(&mut self, connect: &Connect) -> Result<StreamId, NotOpened> {
        let _ = connect;
        Err(NotOpened::Full)
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
        let _ = (stream, status, headers, end);
        Err(Gone)
    }

    /// Bytes that one DATA frame of the stream may carry now: what stream, connection and the peer's
    /// frame limit allow. 0 also for a stream that is gone.
    pub fn room(&self, stream: StreamId) -> usize {
        let _ = stream;
        0
    }

    /// Sends `n` bytes, or the end, or both: counts them and gives the head to put before them. `None`
    /// when `n` is more than [`Mux::room`], or the stream is gone, not answered yet, or has ended: then
    /// nothing may be sent.
    pub fn data(&mut self, stream: StreamId, n: usize, end: bool) -> Option<[u8; HEAD]> {
        let _ = (stream, n, end);
        None
    }

    /// The stream has something to send and no room: [`Mux::ready`] will name it when it has.
    pub fn wait(&mut self, stream: StreamId) {
        let _ = stream;
    }

    /// The next of the waiting streams that has room now, in turn. It no longer waits.
    pub fn ready(&mut self) -> Option<StreamId> {
        None
    }

    /// Gives back `n` bytes of [`Event::Data`], read or thrown away. Credit goes to the peer when half a
    /// window has come together. Also for streams that have ended: each byte exactly once.
    pub fn consumed(&mut self, stream: StreamId, n: usize) {
        let _ = (stream, n);
    }

    /// How many bytes may lie unread on this connection, all streams together: at first its window.
    /// While less does, the peer has the whole connection window; it never shrinks.
    pub fn grow(&mut self, unread: u32) {
        let _ = unread;
    }

    /// Ends both directions of a stream at once. Nothing happens if it has ended.
    pub fn reset(&mut self, stream: StreamId, code: Code) {
        let _ = (stream, code);
    }

    /// No more streams. With NO_ERROR those that are open go on (a server first announces it, and means
    /// it one round trip later, so that requests on their way are served); with any other code it is
    /// the end, and nothing more is taken.
    pub fn go_away(&mut self, code: Code) {
        let _ = code;
    }

    /// Sends a PING; [`Event::Pong`] is its answer.
    pub fn ping(&mut self, payload: [u8; 8]) {
        let _ = payload;
    }

    /// Streams that may be open at once: what the peer allows (client), 0 when no more will be opened.
    pub fn most(&self) -> usize {
        0
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        0
    }

    /// At least half of what the peer allows on the connection lies unread there, or is on its way.
    pub fn stalled(&self) -> bool {
        false
    }

    /// Either side has said that there will be no more streams.
    pub fn going_away(&self) -> bool {
        false
    }

    /// Going away, and no stream is left: nothing will come of this connection.
    pub fn done(&self) -> bool {
        false
    }
}

/// What a client says first (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
