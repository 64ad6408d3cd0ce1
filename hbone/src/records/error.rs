//! What can be wrong with a record, and the alert with which to say so (RFC 8446, 6.2).

use crate::tls::Alert;

/// Why a record was refused. The connection is over; its key may not be used for another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A record that is not of the one type and version that encrypted records have.
    #[error("the peer sent a record with the head {0:02x?}, which no encrypted record has")]
    Head([u8; 3]),
    /// A record whose length is more than TLS allows, before or after opening; in bytes.
    #[error("the peer sent a record of {0} bytes, more than TLS allows")]
    TooLong(usize),
    /// A record too short to hold a type and a tag; in bytes.
    #[error("the peer sent a record of {0} bytes, too short to be one")]
    TooShort(usize),
    /// A record that was not sealed with the key and in the place it should have been.
    #[error("a record was altered, repeated, lost or reordered on its way")]
    Tag,
    /// A record that consists of padding.
    #[error("the peer sent a record without a type")]
    NoType,
    /// A content type, or a message, that has no place after the handshake.
    #[error("the peer sent {what} {number}, which has no place after the handshake")]
    Unexpected {
        /// "content of type" or "the message".
        what: &'static str,
        /// Its number.
        number: u8,
    },
    /// A message with no or broken content.
    #[error("the peer sent a malformed {0}")]
    Malformed(&'static str),
    /// A key update that asks for something that does not exist.
    #[error("the peer's key update asks for {0}, which does not exist")]
    Request(u8),
    /// A message split over records with others between them.
    #[error("the peer interrupted a handshake message")]
    Interrupted,
    /// A key update that is followed by more under the old key.
    #[error("the peer's key update is not the end of its record")]
    Misplaced,
    /// A handshake message that is longer than any we expect; in bytes.
    #[error("the peer sent a handshake message of {0} bytes")]
    Message(usize),
    /// Too many records in a row that carry no data.
    #[error("the peer sent too many records without data")]
    Idle,
    /// The peer ended the connection and said why.
    #[error("the peer ended the connection: {}", Alert(*.0))]
    Alert(u8),
    /// A record to be sealed has more than [`crate::records::MOST`] bytes; ours, not the peer's.
    #[error("{0} bytes do not fit in one record")]
    Surplus(usize),
    /// The numbers of records under one key are used up, all 2^64 of them.
    #[error("no more records can be numbered under this key")]
    Exhausted,
    /// The cryptography library refused, which only a lack of memory explains.
    #[error("the cryptography library failed")]
    Crypto,
    /// A secret whose length is not that of its suite's hash; in bytes.
    #[error("a traffic secret of {0} bytes is none of this cipher suite")]
    Secret(usize),
}

impl RecordError {
    /// The alert to send before hanging up; none where the peer has hung up first.
    pub fn alert(&self) -> Option<u8> {
        Some(match self {
            Self::Head(_)
            | Self::NoType
            | Self::Unexpected { .. }
            | Self::Interrupted
            | Self::Misplaced
            | Self::Idle => UNEXPECTED_MESSAGE,
            Self::TooLong(_) => RECORD_OVERFLOW,
            Self::Request(_) => ILLEGAL_PARAMETER,
            Self::Tag => BAD_RECORD_MAC,
            Self::TooShort(_) | Self::Malformed(_) | Self::Message(_) => DECODE_ERROR,
            Self::Surplus(_) | Self::Exhausted | Self::Crypto | Self::Secret(_) => INTERNAL_ERROR,
            Self::Alert(_) => return None,
        })
    }
}

const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;
const INTERNAL_ERROR: u8 = 80;
