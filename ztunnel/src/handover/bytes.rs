//! Bytes of a hand-over, written and read.
//!
//! Numbers are big-endian; texts and lists have their length before them. Whoever reads believes nothing: what cannot be is
//! refused, nothing may be left over, and no length costs memory before its bytes have been seen. There is one way to
//! write each value.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("it is cut off or has a surplus")]
    Length,
    #[error("it is no {0}")]
    Not(&'static str),
}

/// Takes values from the front.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (front, rest) = self.0.split_at_checked(n).ok_or(Malformed::Length)?;
        self.0 = rest;
        Ok(front)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (front, rest) = self.0.split_first_chunk().ok_or(Malformed::Length)?;
        self.0 = rest;
        Ok(*front)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::Not("yes or no")),
        }
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        let length = self.u16()?;
        std::str::from_utf8(self.bytes(length.into())?).map_err(|_| Malformed::Not("text"))
    }

    pub(super) fn address(&mut self) -> Result<SocketAddr, Malformed> {
        let ip = match self.u8()? {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            _ => return Err(Malformed::Not("address")),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    /// What may be absent.
    pub(super) fn maybe<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        self.bool()?.then(|| read(self)).transpose()
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), Malformed> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(Malformed::Length),
        }
    }
}

/// Puts values at the end.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn u8(&mut self, n: u8) {
        self.0.push(n);
    }

    pub(super) fn u16(&mut self, n: u16) {
        self.bytes(&n.to_be_bytes());
    }

    pub(super) fn u32(&mut self, n: u32) {
        self.bytes(&n.to_be_bytes());
    }

    pub(super) fn u64(&mut self, n: u64) {
        self.bytes(&n.to_be_bytes());
    }

    pub(super) fn bool(&mut self, yes: bool) {
        self.u8(yes.into());
    }

    /// Cut, on a character, where it is longer than its length can say: everything here is far below.
    pub(super) fn text(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(u16::MAX.into())];
        self.u16(text.len() as u16);
        self.bytes(text.as_bytes());
    }

    pub(super) fn address(&mut self, address: SocketAddr) {
        match address.ip() {
            IpAddr::V4(ip) => {
                self.u8(4);
                self.bytes(&Ipv4Addr::octets(&ip));
            }
            IpAddr::V6(ip) => {
                self.u8(6);
                self.bytes(&Ipv6Addr::octets(&ip));
            }
        }
        self.u16(address.port());
    }

    pub(super) fn maybe<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }
}
