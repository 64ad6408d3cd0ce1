//! A connection as bytes, so that another process can go on with it.
//!
//! [`Mux::into_state`](super::Mux::into_state) writes them, [`Mux::from_state`](super::Mux::from_state)
//! reads them. Numbers are big-endian; lists have their length before them:
//!
//! ```text
//!  version 1 | marks 1 | ours 6 x 4 | the peer's 3 x 4 | newest stream 4 | send, most ever 2 x 4
//!  | receive: left, unread, most unread 3 x 4 | credits earned 4 | leaving 1 or 5 | told to go 1 or 5
//!  | open streams 4 + n x 21 | ended just now 2 + n x 9 | queue 4 + n x 4
//!  | header table: size 2, fields 2 + n x (2 + name, 2 + value)
//!  | header block that goes on 1 or 11 + n | what the next byte is 1 to 19 + n | to be sent 4 + n
//! ```
//!
//! Whoever reads believes nothing: what no connection can be in is refused, so that a mistake of the
//! other process ends a connection and never bends one. There is one way to write each state. Nothing
//! is kept before its bytes have been seen, so that no length of a list can cost memory.
//!
//! Budgets (`abuse`) are not in there: they count against a clock that the next process does not have,
//! and begin anew.

use super::StreamId;

/// Of the layout; a process that finds another hands nothing over.
pub(super) const VERSION: u8 = 2;

/// Why a connection cannot be gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Another version wrote it.
    #[error("the state is of version {0}, ours is {VERSION}")]
    Version(u8),
    /// Bytes are missing, or there are too many.
    #[error("the state is cut off or has a surplus")]
    Length,
    /// What it says cannot be.
    #[error("no connection has such a state: {0}")]
    Impossible(&'static str),
}

/// Refuses what cannot be.
pub(super) fn ensure(possible: bool, what: &'static str) -> Result<(), StateError> {
    match possible {
        true => Ok(()),
        false => Err(StateError::Impossible(what)),
    }
}

/// Takes bytes from the front.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Of bytes that our version wrote.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, StateError> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => Ok(Self(rest)),
            Some((&other, _)) => Err(StateError::Version(other)),
            None => Err(StateError::Length),
        }
    }

    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8], StateError> {
        let (front, rest) = self.0.split_at_checked(n).ok_or(StateError::Length)?;
        self.0 = rest;
        Ok(front)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (front, rest) = self.0.split_first_chunk().ok_or(StateError::Length)?;
        self.0 = rest;
        Ok(*front)
    }

    pub(super) fn u8(&mut self) -> Result<u8, StateError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, StateError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, StateError> {
        self.array().map(u32::from_be_bytes)
    }

    /// 0 or 1.
    pub(super) fn bool(&mut self) -> Result<bool, StateError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError::Impossible("neither yes nor no")),
        }
    }

    /// A stream's number, or 0.
    pub(super) fn stream(&mut self) -> Result<StreamId, StateError> {
        let stream = StreamId(self.u32()?);
        ensure(stream <= StreamId::LAST, "a stream's number of 32 bits")?;
        Ok(stream)
    }

    /// Bytes behind their length.
    pub(super) fn string(&mut self) -> Result<&'a [u8], StateError> {
        let n = self.u32()?;
        self.bytes(n as usize)
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), StateError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(StateError::Length),
        }
    }
}

pub(super) fn put_u16(out: &mut Vec<u8>, n: u16) {
    out.extend_from_slice(&n.to_be_bytes());
}

pub(super) fn put_u32(out: &mut Vec<u8>, n: u32) {
    out.extend_from_slice(&n.to_be_bytes());
}

/// Bytes behind their length, which is that of something bounded by our limits.
pub(super) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len() as u32);
    out.extend_from_slice(bytes);
}
