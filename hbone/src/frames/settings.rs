//! What each side allows the other.
//!
//! Ours are fixed when the connection begins ([`Settings`]); the peer's arrive in SETTINGS frames and
//! may change at any time ([`Remote`]).

use super::{
    Code, StreamId, Violation,
    head::{self, flag, kind},
    state::{Reader, StateError, ensure, put_u32},
};
use crate::limits::{
    CLIENT_HEADER_LIST, CONNECTION_WINDOW, FIRST_STREAM_WINDOW, FRAME, SERVER_HEADER_LIST,
    STREAM_WINDOW, STREAMS,
};

/// Window of each stream and of the connection before anybody says otherwise (RFC 9113, 6.9.2).
pub(super) const FIRST_WINDOW: u32 = 65_535;
/// The largest window there can be.
pub(super) const LARGEST_WINDOW: u32 = (1 << 31) - 1;
/// The smallest largest frame, and the first one.
pub(super) const FIRST_FRAME: u32 = 16_384;
/// Streams a client opens before the server has said how many it takes. The RFC names no limit; each
/// one beyond what the server then allows would come back refused.
const FIRST_STREAMS: u32 = 100;

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;
/// Of RFC 8441: a CONNECT may say what it is for.
const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// What we announce. That of each side is the wire contract of a mesh, but for the window with which a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Receive window of each stream that begins, in bytes.
    pub stream_window: u32,
    /// What it becomes, in bytes, when a reader has kept up for a whole window and [`grow`](super::Mux::grow) has
    /// made room for it; not less than `stream_window`.
    pub grown_stream_window: u32,
    /// Receive window of the connection, in bytes; at least 65,535.
    pub connection_window: u32,
    /// Largest frame taken, in bytes; 16,384 to 2^24 - 1.
    pub frame: u32,
    /// Largest header list taken, in bytes as HTTP/2 counts them (32 more for each field).
    pub header_list: u32,
    /// Streams the peer may have open. A client announces none: servers open none here.
    pub streams: u32,
}

impl Settings {
    /// What a client announces.
    pub const fn client() -> Self {
        Self {
            stream_window: FIRST_STREAM_WINDOW,
            grown_stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            frame: FRAME,
            header_list: CLIENT_HEADER_LIST,
            streams: 0,
        }
    }

    /// What a server announces.
    pub const fn server() -> Self {
        Self {
            header_list: SERVER_HEADER_LIST,
            streams: STREAMS,
            ..Self::client()
        }
    }

    /// SETTINGS, and the WINDOW_UPDATE that widens the connection. `datagrams`: a server's that carries them too.
    pub(super) fn announce(&self, out: &mut Vec<u8>, client: bool, datagrams: bool) {
        let second = if client {
            (ENABLE_PUSH, 0)
        } else {
            (MAX_CONCURRENT_STREAMS, self.streams)
        };
        let datagrams = datagrams.then_some((ENABLE_CONNECT_PROTOCOL, 1));
        let mut payload = Vec::with_capacity(36);
        let usual = [
            (HEADER_TABLE_SIZE, 0),
            second,
            (INITIAL_WINDOW_SIZE, self.stream_window),
            (MAX_FRAME_SIZE, self.frame),
            (MAX_HEADER_LIST_SIZE, self.header_list),
        ];
        for (name, value) in usual.into_iter().chain(datagrams) {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&u32::to_be_bytes(value));
        }
        head::write(out, kind::SETTINGS, 0, StreamId::CONNECTION, &payload);
        let more = self.connection_window.saturating_sub(FIRST_WINDOW);
        if more > 0 {
            head::write_window_update(out, StreamId::CONNECTION, more);
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        put_u32(out, self.stream_window);
        put_u32(out, self.grown_stream_window);
        put_u32(out, self.connection_window);
        put_u32(out, self.frame);
        put_u32(out, self.header_list);
        put_u32(out, self.streams);
    }

    pub(super) fn restore(from: &mut Reader<'_>) -> Result<Self, StateError> {
        let settings = Self {
            stream_window: from.u32()?,
            grown_stream_window: from.u32()?,
            connection_window: from.u32()?,
            frame: from.u32()?,
            header_list: from.u32()?,
            streams: from.u32()?,
        };
        let streams = settings.stream_window.max(settings.grown_stream_window);
        let largest = streams.max(settings.connection_window);
        ensure(largest <= LARGEST_WINDOW, "a window of ours is too large")?;
        let grows = streams == settings.grown_stream_window;
        ensure(grows, "a stream's window becomes smaller")?;
        ensure(is_frame(settings.frame), "our largest frame is none")?;
        Ok(settings)
    }
}

/// Whether a largest frame may be so (RFC 9113, 6.5.2).
fn is_frame(largest: u32) -> bool {
    (FIRST_FRAME..1 << 24).contains(&largest)
}

/// What the peer announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Remote {
    /// Streams we may have open.
    pub(super) streams: u32,
    /// Send window of a stream that begins.
    pub(super) window: u32,
    /// Largest frame it takes.
    pub(super) frame: u32,
    /// It wants a smaller header table than encoders have at first; they must say that they comply.
    pub(super) shrink: bool,
    /// A CONNECT to it may say what it is for. Not written down: connections on which that matters are not handed over.
    pub(super) datagrams: bool,
}

impl Remote {
    pub(super) const fn new() -> Self {
        Self {
            streams: FIRST_STREAMS,
            window: FIRST_WINDOW,
            frame: FIRST_FRAME,
            shrink: false,
            datagrams: false,
        }
    }

    /// Takes the payload of a SETTINGS frame, whose length the caller has checked, and acknowledges it.
    /// `client`: we are.
    pub(super) fn apply(
        &mut self,
        payload: &[u8],
        client: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        for entry in payload.chunks_exact(6) {
            let name = u16::from_be_bytes([entry[0], entry[1]]);
            let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
            self.set(name, value, client)?;
        }
        head::write(out, kind::SETTINGS, flag::ACK, StreamId::CONNECTION, &[]);
        Ok(())
    }

    fn set(&mut self, name: u16, value: u32, client: bool) -> Result<(), Violation> {
        let wrong = |code, what| Err(Violation::protocol(code, what));
        match name {
            HEADER_TABLE_SIZE => self.shrink |= value < super::hpack::FIRST_TABLE,
            // A server must not set it at all but to 0 (RFC 9113, 6.5.2).
            ENABLE_PUSH if value > u32::from(!client) => {
                return wrong(Code::PROTOCOL_ERROR, "ENABLE_PUSH has no such value");
            }
            MAX_CONCURRENT_STREAMS => self.streams = value,
            INITIAL_WINDOW_SIZE if value > LARGEST_WINDOW => {
                return wrong(Code::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large");
            }
            INITIAL_WINDOW_SIZE => self.window = value,
            MAX_FRAME_SIZE if !is_frame(value) => {
                return wrong(Code::PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range");
            }
            MAX_FRAME_SIZE => self.frame = value,
            // It is not taken back once it was said (RFC 8441, 3).
            ENABLE_CONNECT_PROTOCOL if value > 1 => {
                return wrong(
                    Code::PROTOCOL_ERROR,
                    "ENABLE_CONNECT_PROTOCOL has no such value",
                );
            }
            ENABLE_CONNECT_PROTOCOL => self.datagrams |= value == 1,
            // What we send is far below any limit for header lists; what is unknown is ignored.
            _ => {}
        }
        Ok(())
    }

    /// All but the mark that it wants a smaller table.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        put_u32(out, self.streams);
        put_u32(out, self.window);
        put_u32(out, self.frame);
    }

    pub(super) fn restore(shrink: bool, from: &mut Reader<'_>) -> Result<Self, StateError> {
        let remote = Self {
            streams: from.u32()?,
            window: from.u32()?,
            frame: from.u32()?,
            shrink,
            datagrams: false,
        };
        ensure(
            remote.window <= LARGEST_WINDOW,
            "the peer's window is too large",
        )?;
        ensure(is_frame(remote.frame), "the peer's largest frame is none")?;
        Ok(remote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: u16, value: u32) -> Vec<u8> {
        [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat()
    }

    #[test]
    fn values_out_of_range_end_the_connection_with_the_right_code() {
        for (name, value, client, expected) in [
            (ENABLE_PUSH, 2, false, Some(Code::PROTOCOL_ERROR)),
            (ENABLE_PUSH, 1, false, None),
            (ENABLE_PUSH, 1, true, Some(Code::PROTOCOL_ERROR)),
            (ENABLE_PUSH, 0, true, None),
            (
                INITIAL_WINDOW_SIZE,
                1 << 31,
                false,
                Some(Code::FLOW_CONTROL_ERROR),
            ),
            (INITIAL_WINDOW_SIZE, (1 << 31) - 1, false, None),
            (MAX_FRAME_SIZE, 16_383, false, Some(Code::PROTOCOL_ERROR)),
            (MAX_FRAME_SIZE, 16_384, false, None),
            (MAX_FRAME_SIZE, (1 << 24) - 1, false, None),
            (MAX_FRAME_SIZE, 1 << 24, false, Some(Code::PROTOCOL_ERROR)),
            (MAX_CONCURRENT_STREAMS, 0, true, None),
            (HEADER_TABLE_SIZE, u32::MAX, true, None),
            (ENABLE_CONNECT_PROTOCOL, 1, true, None),
            (ENABLE_CONNECT_PROTOCOL, 2, true, Some(Code::PROTOCOL_ERROR)),
            (0xbabe, u32::MAX, true, None),
        ] {
            let mut out = Vec::new();
            let outcome = Remote::new().apply(&entry(name, value), client, &mut out);
            assert_eq!(
                outcome.err().map(|e| e.code),
                expected,
                "{name} = {value}, client: {client}"
            );
            assert_eq!(out.is_empty(), expected.is_some(), "acknowledged if taken");
        }
    }

    #[test]
    fn the_last_of_several_values_counts() {
        let mut remote = Remote::new();
        let payload = [
            entry(INITIAL_WINDOW_SIZE, 1),
            entry(INITIAL_WINDOW_SIZE, 2),
            entry(HEADER_TABLE_SIZE, 0),
            entry(HEADER_TABLE_SIZE, 4096),
        ]
        .concat();
        remote.apply(&payload, false, &mut Vec::new()).unwrap();
        assert_eq!(remote.window, 2);
        assert!(remote.shrink, "the smallest in between must be honoured");
    }
}
