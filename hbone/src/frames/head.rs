//! The nine bytes with which each frame begins (RFC 9113, 4.1), and the frames that are little more.
//!
//! Bytes enter, a [`Head`] leaves, and the other way round. Nothing is checked here: what a head may
//! say depends on the connection's state.

use super::{Code, StreamId};

/// Bytes of a head.
pub const HEAD: usize = 9;

/// Kinds of frames (RFC 9113, 6).
pub mod kind {
    /// Bytes of a tunnel.
    pub const DATA: u8 = 0;
    /// A header block, or its beginning.
    pub const HEADERS: u8 = 1;
    /// Advice we ignore.
    pub const PRIORITY: u8 = 2;
    /// The end of a stream for both.
    pub const RST_STREAM: u8 = 3;
    /// What the sender allows.
    pub const SETTINGS: u8 = 4;
    /// A server's own request: not allowed here.
    pub const PUSH_PROMISE: u8 = 5;
    /// Is somebody there?
    pub const PING: u8 = 6;
    /// No more streams.
    pub const GOAWAY: u8 = 7;
    /// More credit.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of a header block.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames; each has a meaning only for some kinds.
pub mod flag {
    /// SETTINGS, PING: an answer.
    pub const ACK: u8 = 1;
    /// DATA, HEADERS: the sender's last.
    pub const END_STREAM: u8 = 1;
    /// HEADERS, CONTINUATION: the block is whole.
    pub const END_HEADERS: u8 = 4;
    /// DATA, HEADERS: the first byte says how much of the end is padding.
    pub const PADDED: u8 = 8;
    /// HEADERS: five bytes of priority come first.
    pub const PRIORITY: u8 = 0x20;
}

/// What a frame's head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes of payload, at most 2^24 - 1.
    pub length: u32,
    /// See [`kind`]; any other is to be ignored.
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// 0: the connection. The reserved bit is dropped, as it must be.
    pub stream: StreamId,
}

impl Head {
    /// Reads a head.
    pub fn parse(bytes: &[u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = *bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: StreamId(u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff),
        }
    }

    /// Writes a head. A length beyond 24 bits is cut; callers keep to the peer's largest frame.
    pub fn bytes(self) -> [u8; HEAD] {
        let [_, a, b, c] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.0.to_be_bytes();
        [a, b, c, self.kind, self.flags, s0, s1, s2, s3]
    }

    /// True when all bits of `flag` are set.
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag == flag
    }
}

/// Appends a frame whose payload is at hand. Only for payloads that fit the smallest frame limit.
pub(super) fn write(out: &mut Vec<u8>, kind: u8, flags: u8, stream: StreamId, payload: &[u8]) {
    let head = Head {
        length: payload.len() as u32, // callers pass at most 16 KiB
        kind,
        flags,
        stream,
    };
    out.extend_from_slice(&head.bytes());
    out.extend_from_slice(payload);
}

pub(super) fn write_reset(out: &mut Vec<u8>, stream: StreamId, code: Code) {
    write(out, kind::RST_STREAM, 0, stream, &code.0.to_be_bytes());
}

pub(super) fn write_window_update(out: &mut Vec<u8>, stream: StreamId, increment: u32) {
    write(
        out,
        kind::WINDOW_UPDATE,
        0,
        stream,
        &increment.to_be_bytes(),
    );
}

pub(super) fn write_go_away(out: &mut Vec<u8>, last: StreamId, code: Code) {
    let mut payload = [0; 8];
    payload[..4].copy_from_slice(&last.0.to_be_bytes());
    payload[4..].copy_from_slice(&code.0.to_be_bytes());
    write(out, kind::GOAWAY, 0, StreamId::CONNECTION, &payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_head_is_read_as_it_was_written(length in 0u32..1 << 24, kind: u8, flags: u8, stream in 0u32..1 << 31) {
            let head = Head { length, kind, flags, stream: StreamId(stream) };
            prop_assert_eq!(Head::parse(&head.bytes()), head);
        }
    }

    #[test]
    fn the_reserved_bit_is_ignored() {
        let head = Head::parse(&[0, 0, 0, 0, 0, 0x80, 0, 0, 1]);
        assert_eq!(head.stream, StreamId(1));
    }
}
