//! Bytes of what is frozen: written into memory that is overwritten after use, and read strictly.
//!
//! ```text
//!  version 1 | kind 1 | ...
//! ```
//!
//! Numbers are big-endian, texts and lists have their length before them. Whoever reads believes nothing
//! and keeps nothing before its bytes have been seen, so that no length can cost memory.

use std::{io, os::fd::OwnedFd};

use super::{ThawError, VERSION};
use crate::{copy::HalfEnd, records::wipe, tunnel::TunnelError};

/// Longest reason for an end, in bytes: ours are a tenth of it. The rest of a longer one is left out.
pub(crate) const WORDS: usize = 255;

/// What was frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A connection that a peer opened, with its tunnels.
    Accepted,
    /// A connection that we opened, with its tunnels.
    Dialled,
    /// Two sockets that are copied to each other.
    Pair,
}

/// Everything that somebody needs to go on.
pub(crate) struct Written {
    pub(crate) kind: Kind,
    pub(crate) bytes: Wiped,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) streams: Vec<u32>,
}

/// Bytes that are overwritten when dropped.
pub(crate) struct Wiped(Vec<u8>);

impl Wiped {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Refuses what cannot be.
pub(crate) fn ensure(possible: bool, what: &'static str) -> Result<(), ThawError> {
    match possible {
        true => Ok(()),
        false => Err(ThawError::Impossible(what)),
    }
}

/// Puts values behind each other.
pub(crate) struct Writer {
    kind: Kind,
    bytes: Wiped,
    /// It must not grow, or a copy would be left behind.
    room: usize,
}

impl Writer {
    /// `room`: what all of it will not exceed.
    pub(crate) fn new(kind: Kind, room: usize) -> Self {
        let mut writer = Self {
            kind,
            bytes: Wiped(Vec::with_capacity(room)),
            room,
        };
        writer.u8(VERSION);
        writer.u8(match kind {
            Kind::Accepted => 1,
            Kind::Dialled => 2,
            Kind::Pair => 3,
        });
        writer
    }

    pub(crate) fn done(self, descriptors: Vec<OwnedFd>, streams: Vec<u32>) -> Written {
        debug_assert!(self.bytes.0.len() <= self.room, "more than was announced");
        Written {
            kind: self.kind,
            bytes: self.bytes,
            descriptors,
            streams,
        }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.0.extend_from_slice(bytes);
    }

    pub(crate) fn u8(&mut self, n: u8) {
        self.bytes.0.push(n);
    }

    pub(crate) fn u32(&mut self, n: u32) {
        self.bytes(&n.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, n: u64) {
        self.bytes(&n.to_be_bytes());
    }

    /// A length; of something that is bounded by our limits.
    pub(crate) fn count(&mut self, n: usize) {
        self.u32(n as u32);
    }

    /// Bytes behind their length.
    pub(crate) fn string(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.bytes(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.string(text.as_bytes());
    }

    pub(crate) fn tunnel_error(&mut self, why: &TunnelError) {
        match why {
            TunnelError::Reset(words) => {
                self.u8(0);
                self.text(&words[..words.floor_char_boundary(WORDS)]);
            }
            TunnelError::ConnectionLost(words) => {
                self.u8(1);
                self.text(&words[..words.floor_char_boundary(WORDS)]);
            }
            // Whoever was not believed has no connection that could be frozen.
            TunnelError::Disbelieved(_) | TunnelError::Ended => self.u8(2),
        }
    }

    /// How a direction ended, if it has. What ends both directions at once never is written.
    pub(crate) fn half_end(&mut self, end: Option<&HalfEnd>) {
        match end {
            None => self.u8(0),
            Some(HalfEnd::Finished) => self.u8(1),
            Some(HalfEnd::Socket(kind)) => {
                self.u8(2);
                self.error_kind(Some(*kind));
            }
            Some(HalfEnd::Tunnel(why)) => {
                self.u8(3);
                self.tunnel_error(why);
            }
            Some(HalfEnd::CutOff | HalfEnd::HandedOver) => self.u8(4),
        }
    }

    pub(crate) fn error_kind(&mut self, kind: Option<io::ErrorKind>) {
        let Some(kind) = kind else {
            return self.u8(0);
        };
        let known = KINDS.iter().position(|known| *known == kind);
        // There are few, and the last is for all others.
        self.u8(known.unwrap_or(KINDS.len() - 1) as u8 + 1);
    }
}

/// Takes values from the front.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Of bytes that our version wrote.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<(Kind, Self), ThawError> {
        let mut reader = Self(bytes);
        match reader.u8()? {
            VERSION => {}
            other => return Err(ThawError::Version(other)),
        }
        let kind = match reader.u8()? {
            1 => Kind::Accepted,
            2 => Kind::Dialled,
            3 => Kind::Pair,
            _ => return Err(ThawError::Impossible("a kind that does not exist")),
        };
        Ok((kind, reader))
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), ThawError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(ThawError::Length),
        }
    }

    fn bytes(&mut self, n: usize) -> Result<&'a [u8], ThawError> {
        let (front, rest) = self.0.split_at_checked(n).ok_or(ThawError::Length)?;
        self.0 = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ThawError> {
        let (front, rest) = self.0.split_first_chunk().ok_or(ThawError::Length)?;
        self.0 = rest;
        Ok(*front)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ThawError> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ThawError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ThawError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, ThawError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ThawError::Impossible("neither yes nor no")),
        }
    }

    pub(crate) fn string(&mut self) -> Result<&'a [u8], ThawError> {
        let n = self.u32()?;
        self.bytes(n as usize)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, ThawError> {
        std::str::from_utf8(self.string()?).map_err(|_| ThawError::Impossible("no text"))
    }

    pub(crate) fn tunnel_error(&mut self) -> Result<TunnelError, ThawError> {
        match self.u8()? {
            0 => Ok(TunnelError::Reset(self.text()?.to_owned())),
            1 => Ok(TunnelError::ConnectionLost(self.text()?.to_owned())),
            2 => Ok(TunnelError::Ended),
            _ => Err(ThawError::Impossible("an end without a reason")),
        }
    }

    pub(crate) fn half_end(&mut self) -> Result<Option<HalfEnd>, ThawError> {
        match self.u8()? {
            0 => Ok(None),
            1 => Ok(Some(HalfEnd::Finished)),
            2 => {
                let kind = self.error_kind()?;
                let kind = kind.ok_or(ThawError::Impossible("a failure without a reason"))?;
                Ok(Some(HalfEnd::Socket(kind)))
            }
            3 => Ok(Some(HalfEnd::Tunnel(self.tunnel_error()?))),
            _ => Err(ThawError::Impossible("an end that is none")),
        }
    }

    pub(crate) fn error_kind(&mut self) -> Result<Option<io::ErrorKind>, ThawError> {
        let Some(index) = self.u8()?.checked_sub(1) else {
            return Ok(None);
        };
        let kind = KINDS.get(usize::from(index));
        let kind = kind.ok_or(ThawError::Impossible("an error that does not exist"))?;
        Ok(Some(*kind))
    }
}

/// What sockets fail with, for the report at the end.
const KINDS: [io::ErrorKind; 10] = [
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::BrokenPipe,
    io::ErrorKind::TimedOut,
    io::ErrorKind::ConnectionAborted,
    io::ErrorKind::NotConnected,
    io::ErrorKind::HostUnreachable,
    io::ErrorKind::NetworkUnreachable,
    io::ErrorKind::NetworkDown,
    io::ErrorKind::WriteZero,
    io::ErrorKind::Other,
];
