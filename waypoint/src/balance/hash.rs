//! What of a request decides which endpoint it goes to.

use std::net::IpAddr;

use api::waypoint as wire;
use http::HeaderMap;
use http::header::{COOKIE, HeaderName, HeaderValue};

use crate::asked::Asked;

/// What of a request decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashBy {
    /// A header, all its values.
    Header(HeaderName),
    /// A cookie, which may be given to clients that have none.
    Cookie(Cookie),
    /// The first value of a query parameter.
    Query(Box<str>),
    /// The client's address.
    Source,
}

/// A cookie by which clients come back to their endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    name: Box<str>,
    path: Box<str>,
    /// Seconds; 0: as long as the client's session.
    ttl: u64,
    /// Somebody else gives it to clients.
    only_read: bool,
    /// Further ones, as they are written into the header.
    attributes: Box<str>,
}

impl HashBy {
    pub(super) fn compile(found: &wire::ConsistentHash) -> Result<Self, String> {
        use wire::consistent_hash::Key;
        match &found.key {
            Some(Key::Header(name)) => name
                .parse()
                .map(Self::Header)
                .map_err(|_| format!("{name:?} is not a header's name")),
            Some(Key::Cookie(cookie)) => Cookie::compile(cookie).map(Self::Cookie),
            Some(Key::Query(name)) => Ok(Self::Query(name.as_str().into())),
            Some(Key::SourceIp(_)) => Ok(Self::Source),
            None => Err("a consistent hash of nothing".to_owned()),
        }
    }

    /// The request's hash; none where it has nothing to hash, and any endpoint will do.
    pub fn of(&self, asked: &Asked<'_>) -> Option<u64> {
        match self {
            Self::Header(name) => {
                let mut values = asked.headers.get_all(name).iter().peekable();
                values.peek()?;
                Some(mixed(values.fold(SEED, |hash, value| {
                    fnv(fnv(hash, value.as_bytes()), b",")
                })))
            }
            Self::Cookie(cookie) => cookie
                .value(asked.headers)
                .map(|value| text(value.as_bytes())),
            Self::Query(name) => asked.query.and_then(|query| {
                let mut pairs = query.split('&');
                pairs.find_map(|pair| {
                    let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (found == &**name).then(|| text(value.as_bytes()))
                })
            }),
            Self::Source => Some(address(asked.client.address.ip())),
        }
    }

    /// The same of a connection that nobody looks into: who its client is, is all that there is to hash.
    pub fn of_connection(&self, client: IpAddr) -> Option<u64> {
        match self {
            Self::Source => Some(address(client)),
            Self::Header(_) | Self::Cookie(_) | Self::Query(_) => None,
        }
    }

    /// The cookie for a client that has none, where cookies decide and are made: its value, and the header that sets it.
    pub fn new_cookie(&self, asked: &Asked<'_>, draw: u64) -> Option<(u64, HeaderValue)> {
        match self {
            Self::Cookie(cookie) if !cookie.only_read && cookie.value(asked.headers).is_none() => {
                let value = format!("{:016x}", mixed(draw));
                Some((text(value.as_bytes()), cookie.set(&value)?))
            }
            _ => None,
        }
    }
}

impl Cookie {
    fn compile(found: &wire::HashCookie) -> Result<Self, String> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if found.name.is_empty() || !found.name.bytes().all(token) {
            return Err(format!("{:?} is not a cookie's name", found.name));
        }
        let plain = |byte: u8| (0x21..0x7f).contains(&byte) && byte != b';';
        if !found.path.bytes().all(plain) {
            return Err(format!("{:?} is not a cookie's path", found.path));
        }
        let mut attributes = String::new();
        for wire::Header { name, value } in &found.attributes {
            if name.is_empty() || !name.bytes().all(token) {
                return Err(format!("{name:?} is not the name of a cookie's attribute"));
            }
            if !value.bytes().all(|byte| byte == b' ' || plain(byte)) {
                return Err(format!("{value:?} is not what a cookie's attribute says"));
            }
            attributes.push_str("; ");
            attributes.push_str(name);
            if !value.is_empty() {
                attributes.push('=');
                attributes.push_str(value);
            }
        }
        Ok(Self {
            name: found.name.as_str().into(),
            path: found.path.as_str().into(),
            ttl: found.ttl / 1_000,
            only_read: found.only_read,
            attributes: attributes.into(),
        })
    }

    fn value<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        let mut lines = headers.get_all(COOKIE).iter();
        lines.find_map(|line| {
            let mut pairs = line.to_str().ok()?.split(';');
            pairs.find_map(|pair| {
                let (name, value) = pair.trim().split_once('=')?;
                (name == &*self.name).then_some(value)
            })
        })
    }

    fn set(&self, value: &str) -> Option<HeaderValue> {
        let mut text = format!("{}={value}", self.name);
        if self.ttl > 0 {
            text.push_str(&format!("; Max-Age={}", self.ttl));
        }
        if !self.path.is_empty() {
            text.push_str(&format!("; Path={}", self.path));
        }
        text.push_str("; HttpOnly");
        text.push_str(&self.attributes);
        HeaderValue::try_from(text).ok()
    }
}

fn address(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => text(&ip.octets()),
        IpAddr::V6(ip) => text(&ip.octets()),
    }
}

/// A hash that is the same in every process and version: all replicas of a waypoint must agree.
pub(super) fn text(bytes: &[u8]) -> u64 {
    mixed(fnv(SEED, bytes))
}

/// FNV-1a.
fn fnv(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// SplitMix64's last steps: every bit of the input moves every bit of the output.
pub(super) fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
