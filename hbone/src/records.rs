//! TLS 1.3 records by our own hand (RFC 8446, 5), after rustls has made the handshake.
//!
//! What the handshake leaves is two traffic secrets. From then on bytes are sealed where they were
//! written and opened where they were read; nothing is copied:
//!
//! ```text
//!  plaintext ── begin ─ append ─ finish ──▶ [ head 5 | plaintext | type 1 | tag 16 ]   (Sealer)
//!  socket ──▶ [ head 5 | ciphertext ] ── next ──▶ the range in which the plaintext lies  (Opener)
//! ```
//!
//! | file | part |
//! |---|---|
//! | `secret` | the only file that touches keys: traffic secrets, what is derived from them, the cipher |
//! | `seal` | one direction out; changes its key by itself before the cipher's limit |
//! | `open` | one direction in; strict, and done for good after the first error |
//! | `message` | what a peer may say beside data: tickets and key updates |
//! | `error` | what can be wrong, and the alert for it |
//! | `state` | a direction as bytes, and made again from them |
//!
//! No I/O, no clock and no runtime in here. The handshake is in [`crate::tls::handshake`].

mod error;
mod message;
mod open;
mod seal;
mod secret;
mod state;

pub(crate) use self::secret::wipe;
pub use self::{
    error::RecordError,
    open::{Opened, Opener, TicketReader},
    seal::Sealer,
    secret::{Secret, Suite},
    state::{State, StateError},
};

/// Length of a record's head: type, version, length.
pub const HEAD: usize = 5;
/// What sealing adds behind the plaintext: the type and the tag.
pub const TAIL: usize = 1 + TAG;
/// Most plaintext in one record, in bytes (RFC 8446, 5.1).
pub const MOST: usize = 1 << 14;

/// Length of the tag of AES-GCM.
const TAG: usize = 16;
/// Most ciphertext in one record, in bytes (RFC 8446, 5.2).
const MOST_SEALED: usize = MOST + 256;
/// The version in every head, which means nothing any more.
const VERSION: [u8; 2] = [3, 3];

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    /// The end of the connection, with its reason.
    Alert = 21,
    /// Tickets and key updates.
    Handshake = 22,
    /// Data.
    Data = 23,
}

/// Which side of the connection we are: only a client is given tickets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// We opened the connection.
    Client,
    /// We accepted it.
    Server,
}

/// The alert that closes a connection in order.
const CLOSE_NOTIFY: u8 = 0;
/// The alert that announces [`CLOSE_NOTIFY`] and means nothing by itself.
const USER_CANCELED: u8 = 90;

/// The head of a record of `length` bytes of ciphertext, which must be at most [`MOST_SEALED`].
fn head(length: usize) -> [u8; HEAD] {
    let [.., high, low] = length.to_be_bytes();
    [ContentType::Data as u8, VERSION[0], VERSION[1], high, low]
}
