//! HTTP/2 for tunnels: frames in, events out; actions in, frames out.
//!
//! A CONNECT-only HTTP/2 (RFC 9113) for both ends of a connection, without I/O, clock or tasks:
//!
//! 1. [`Mux::client`] or [`Mux::server`] says hello into [`Mux::out`]
//! 2. decrypted bytes go into [`Mux::take`], in any pieces; [`Event`]s come out, DATA as ranges of
//!    the very bytes that went in
//! 3. actions ([`Mux::open`], [`Mux::respond`], [`Mux::data`], [`Mux::consumed`], [`Mux::reset`], …)
//!    write control frames into [`Mux::out`], or give the head of a DATA frame
//! 4. a peer that breaks a rule or passes a limit is a [`Violation`]: its GOAWAY is in [`Mux::out`]
//! 5. at any moment all of it can be written down and gone on with elsewhere ([`Mux::into_state`])
//!
//! ```text
//!  bytes ──► mux/input ──► head ──► DATA ─────────► stream, window ──► Event::Data
//!                            ├────► HEADERS ──────► hpack ──► fields ─► Event::Request, Response
//!                            └────► all others ───► mux/control, abuse
//! ```
//!
//! The compression context that most of HTTP/2's troubles live in is not there: we announce a header
//! table of size 0 and index nothing ourselves. Only until a peer has heard of it is a table kept.

mod abuse;
mod fields;
mod head;
pub mod hpack;
mod mux;
mod settings;
mod state;
mod stream;
mod window;

pub use fields::{Method, RequestHead, ResponseHead};
pub use head::{HEAD, Head, flag, kind};
pub use mux::{Event, Gone, Mux, NotOpened, Taken};
pub use settings::Settings;
pub use state::StateError;

use std::fmt;

use crate::limits::Refusal;

/// A stream's number; odd, since only clients open streams here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

impl StreamId {
    /// What concerns all streams.
    pub const CONNECTION: Self = Self(0);
    /// The largest there can be.
    pub const LAST: Self = Self(0x7fff_ffff);
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An error code of RST_STREAM and GOAWAY (RFC 9113, 7). `Display` says what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

impl Code {
    /// Nothing is wrong.
    pub const NO_ERROR: Self = Self(0);
    /// A rule was broken that has no code of its own.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// The sender's own mistake.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// More was sent than allowed.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// Our SETTINGS were not acknowledged.
    pub const SETTINGS_TIMEOUT: Self = Self(4);
    /// Something was sent after the end.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame of a size it cannot have.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// Not looked at; may be asked again elsewhere.
    pub const REFUSED_STREAM: Self = Self(7);
    /// Nobody wants it any more.
    pub const CANCEL: Self = Self(8);
    /// The header block cannot be decoded.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The connection behind a CONNECT broke.
    pub const CONNECT_ERROR: Self = Self(10);
    /// Too much of something.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
    /// TLS is not good enough.
    pub const INADEQUATE_SECURITY: Self = Self(12);
    /// Only HTTP/1.1 is spoken there.
    pub const HTTP_1_1_REQUIRED: Self = Self(13);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {}", self.0),
        }
    }
}

/// Why the connection cannot go on. The GOAWAY that says so is in [`Mux::out`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({code})")]
pub struct Violation {
    /// What the peer is told.
    pub code: Code,
    /// What it counts as.
    pub refusal: Refusal,
    /// What was wrong.
    pub what: &'static str,
}

impl Violation {
    /// A rule of RFC 9113 was broken.
    pub(crate) const fn protocol(code: Code, what: &'static str) -> Self {
        Self {
            code,
            refusal: Refusal::Protocol,
            what,
        }
    }

    /// Too much of something that is allowed.
    pub(crate) const fn flood(refusal: Refusal, what: &'static str) -> Self {
        Self {
            code: Code::ENHANCE_YOUR_CALM,
            refusal,
            what,
        }
    }
}
