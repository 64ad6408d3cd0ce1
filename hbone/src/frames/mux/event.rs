//! What [`super::Mux`] tells, and how it says no.

use std::ops::Range;

use crate::{
    frames::{Code, RequestHead, ResponseHead, StreamId},
    limits::Refusal,
};

/// What a peer did that somebody must know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request (server). Answer it with [`super::Mux::respond`] or [`super::Mux::reset`]; it may be anything but a
    /// CONNECT too, which is for the caller to refuse.
    Request {
        /// Its stream.
        stream: StreamId,
        /// What it says.
        head: RequestHead,
        /// Nothing follows.
        end: bool,
    },
    /// The answer to an [`super::Mux::open`] (client); once for each stream.
    Response {
        /// Its stream.
        stream: StreamId,
        /// What it says.
        head: ResponseHead,
        /// Nothing follows.
        end: bool,
    },
    /// Bytes of a tunnel; none, when `end` came by itself. Each byte is given back through
    /// [`super::Mux::consumed`] exactly once, whatever becomes of it.
    Data {
        /// Its stream.
        stream: StreamId,
        /// Where they lie in the bytes that were given to this call of [`super::Mux::take`].
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
    /// ([`super::Mux::ready`]).
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
    /// The answer to [`super::Mux::ping`].
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

/// How far [`super::Mux::take`] came.
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
