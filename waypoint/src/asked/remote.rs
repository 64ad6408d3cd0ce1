//! Where a request comes from, when proxies stand before.
//!
//! `x-forwarded-for` is written by whoever sent the request; each honest proxy appends the address it was asked from.
//! With `n` proxies that are trusted, the n-th entry from the right was written by one of them and is believed. With
//! none, nothing is: the client's own address holds, and what the header says is kept beside it. A condition that
//! would be decided differently by the two is undecidable (`authorize`), hence denied.

use std::net::IpAddr;

use http::HeaderMap;

/// Most entries that are read, from the right.
const MOST_ENTRIES: usize = 64;

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// What is believed.
    pub address: IpAddr,
    /// What an `x-forwarded-for` that nobody vouches for says: its last entry; see [`Claim`].
    pub claim: Claim,
}

/// What nobody vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Nothing is claimed.
    Nothing,
    /// An address.
    Address(IpAddr),
    /// Something that is not an address, or fewer entries than there are trusted proxies.
    Unreadable,
}

/// Where the request comes from: `client` is the other end of the connection.
pub fn remote(client: IpAddr, headers: &HeaderMap, trusted_hops: usize) -> Remote {
    let client = client.to_canonical();
    let mut entries = entries(headers).take(MOST_ENTRIES).peekable();
    if entries.peek().is_none() {
        return Remote {
            address: client,
            claim: Claim::Nothing,
        };
    }
    let entry = entries.nth(trusted_hops.saturating_sub(1)).flatten();
    match (entry, trusted_hops) {
        (Some(address), 0) => Remote {
            address: client,
            claim: Claim::Address(address),
        },
        (Some(address), _) => Remote {
            address,
            claim: Claim::Nothing,
        },
        (None, _) => Remote {
            address: client,
            claim: Claim::Unreadable,
        },
    }
}

/// From the right; None for what is not an address.
fn entries(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let lines = headers.get_all("x-forwarded-for").iter();
    lines.rev().flat_map(|line| {
        let text = line.to_str().unwrap_or("?");
        text.rsplit(',').map(|entry| address(entry.trim()))
    })
}

/// An address, as proxies write it: with a port, or IPv6 in brackets, too.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let plain = bare.unwrap_or(text).parse::<IpAddr>().ok();
    let with_port = || {
        text.parse::<std::net::SocketAddr>()
            .ok()
            .map(|address| address.ip())
    };
    plain
        .or_else(with_port)
        .map(|address| address.to_canonical())
}
