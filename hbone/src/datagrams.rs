//! Ways for datagrams: CONNECT-UDP (RFC 9298) over HTTP/2 (RFC 8441), with the datagrams in capsules (RFC 9297).
//!
//! 1. a server offers it                                        ([`crate::Limits::datagrams`])
//! 2. a client asks for the way to one address and port          ([`crate::Pool::open_datagrams`], [`path`])
//! 3. the server's caller sees a request like any other          ([`crate::Request::datagrams`], [`target`])
//! 4. what flows in the tunnel are capsules, one for each datagram ([`capsule`], [`Capsules`])
//!
//! Pure. The stream is reliable and in order: nobody may wait in front of it, or a datagram that is late holds up all that
//! come behind it. Whoever sends keeps few, and drops what is more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::client::OpenError;

/// `:protocol`.
pub(crate) const PROTOCOL: &str = "connect-udp";
/// Where RFC 9298 says that paths begin, if nobody says otherwise.
const PREFIX: &str = "/.well-known/masque/udp/";
/// Type of a capsule that is a datagram.
const DATAGRAM: u64 = 0;
/// Type of a capsule that says that nobody listens where a datagram went. It is ours, and far from those that are given out;
/// whoever does not know it passes it over.
const CLOSED: u64 = 0x2b6c_83d1_52e9_0a47;
/// The context of a payload of UDP, which is the only one.
const PAYLOAD: u64 = 0;
/// Bytes of payload that a datagram of UDP may have (RFC 9298, 5).
const MOST_PAYLOAD: u64 = 65_527;
/// The longest head of a datagram that is not malformed: its context.
const CONTEXT: u64 = 8;

/// Why there is no way for datagrams.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoWay {
    /// The peer does not offer it.
    #[error("the peer carries no UDP")]
    Unsupported,
    /// There is no tunnel.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// A datagram in the stream that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a datagram of {0} bytes, more than UDP has")]
pub struct TooLarge(u64);

/// The path that asks for the way to an address.
pub(crate) fn path(to: SocketAddr) -> String {
    let (host, port) = (to.ip().to_string().replace(':', "%3A"), to.port());
    format!("{PREFIX}{host}/{port}/")
}

/// The address that a path asks for; none if it is no such path, or names no address.
pub(crate) fn target(path: &str) -> Option<SocketAddr> {
    let (host, port) = path
        .strip_prefix(PREFIX)?
        .strip_suffix('/')?
        .split_once('/')?;
    if port.starts_with('0') || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok()?;
    let ip = match host.parse::<Ipv4Addr>() {
        Ok(v4) => IpAddr::V4(v4),
        Err(_) => {
            let host = host.replace("%3A", ":").replace("%3a", ":");
            IpAddr::V6(host.parse::<Ipv6Addr>().ok()?)
        }
    };
    Some(SocketAddr::new(ip, port))
}

/// A datagram as it is sent.
pub fn capsule(payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + 10);
    put_number(&mut out, DATAGRAM);
    put_number(&mut out, payload.len() as u64 + 1);
    put_number(&mut out, PAYLOAD);
    out.extend_from_slice(payload);
    out.freeze()
}

/// What says that nobody listens where a datagram went.
pub fn closed() -> Bytes {
    let mut out = BytesMut::with_capacity(9);
    put_number(&mut out, CLOSED);
    put_number(&mut out, 0);
    out.freeze()
}

/// Finds datagrams in what comes, in whatever pieces it does.
#[derive(Debug, Default)]
pub struct Capsules {
    /// Type and length, as far as they have come.
    head: [u8; 16],
    have: usize,
    body: Body,
    closed: bool,
}

#[derive(Debug, Default)]
enum Body {
    /// The next is a head, or the rest of one.
    #[default]
    Head,
    /// Of a datagram so much is to come, and this has.
    Datagram { left: usize, kept: BytesMut },
    /// So much means nothing to us.
    Skip(u64),
}

impl Capsules {
    /// Whether it was said, since this was asked last, that nobody listens.
    pub fn heard_closed(&mut self) -> bool {
        std::mem::take(&mut self.closed)
    }

    /// The next datagram of UDP in `chunk`, of which nothing is left when there is none.
    ///
    /// # Errors
    /// When the peer sends what cannot be; the tunnel is of no use any more.
    pub fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Bytes>, TooLarge> {
        loop {
            match &mut self.body {
                Body::Head => {
                    if !chunk.has_remaining() {
                        return Ok(None);
                    }
                    // Two numbers of eight bytes at most: there is room until both are whole.
                    self.head[self.have] = chunk.get_u8();
                    self.have += 1;
                    if let Some((kind, length)) = head(&self.head[..self.have]) {
                        self.have = 0;
                        self.closed |= kind == CLOSED;
                        self.body = Body::of(kind, length)?;
                    }
                }
                Body::Skip(left) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX);
                    let n = n.min(chunk.remaining());
                    chunk.advance(n);
                    *left -= n as u64;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.body = Body::Head;
                }
                Body::Datagram { left, kept } => {
                    let n = (*left).min(chunk.remaining());
                    let piece = chunk.split_to(n);
                    *left -= n;
                    if *left > 0 {
                        kept.extend_from_slice(&piece);
                        return Ok(None);
                    }
                    let whole = match kept.is_empty() {
                        true => piece,
                        false => {
                            kept.extend_from_slice(&piece);
                            kept.split().freeze()
                        }
                    };
                    self.body = Body::Head;
                    if let Some(payload) = payload(whole)? {
                        return Ok(Some(payload));
                    }
                }
            }
        }
    }
}

impl Body {
    fn of(kind: u64, length: u64) -> Result<Self, TooLarge> {
        if kind != DATAGRAM {
            return Ok(Self::Skip(length)); // RFC 9297, 3.2: what is unknown is passed over
        }
        match usize::try_from(length) {
            Ok(left) if length <= MOST_PAYLOAD + CONTEXT => {
                let kept = BytesMut::new();
                Ok(Self::Datagram { left, kept })
            }
            _ => Err(TooLarge(length)),
        }
    }
}

/// What is in a datagram, if it is for UDP. One of another context, or cut off within it, is dropped.
fn payload(mut whole: Bytes) -> Result<Option<Bytes>, TooLarge> {
    let Some((context, n)) = number(&whole) else {
        return Ok(None);
    };
    whole.advance(n);
    match whole.len() as u64 {
        _ if context != PAYLOAD => Ok(None),
        most if most > MOST_PAYLOAD => Err(TooLarge(most)),
        _ => Ok(Some(whole)),
    }
}

/// Type and length, if both have come.
fn head(bytes: &[u8]) -> Option<(u64, u64)> {
    let (kind, n) = number(bytes)?;
    let (length, _) = number(&bytes[n..])?;
    Some((kind, length))
}

/// A number of one to eight bytes, whose first two bits say how many (RFC 9000, 16), and how many they are.
fn number(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let n = 1 << (first >> 6);
    let rest = bytes.get(1..n)?;
    let begin = u64::from(first & 0x3f);
    let value = rest
        .iter()
        .fold(begin, |value, b| value << 8 | u64::from(*b));
    Some((value, n))
}

fn put_number(out: &mut BytesMut, value: u64) {
    match value {
        0..0x40 => out.put_u8(value as u8),
        0x40..0x4000 => out.put_u16(0x4000 | value as u16),
        0x4000..0x4000_0000 => out.put_u32(0x8000_0000 | value as u32),
        _ => out.put_u64(0xc000_0000_0000_0000 | value),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_says_where_to_and_nothing_else_is_understood() {
        for (to, said) in [
            ("10.0.0.1:53", "/.well-known/masque/udp/10.0.0.1/53/"),
            (
                "[2001:db8::1]:65535",
                "/.well-known/masque/udp/2001%3Adb8%3A%3A1/65535/",
            ),
        ] {
            let to = to.parse().unwrap();
            assert_eq!(path(to), said);
            assert_eq!(target(said), Some(to));
        }
        assert_eq!(
            target("/.well-known/masque/udp/2001%3adb8%3a%3a1/1/"),
            Some("[2001:db8::1]:1".parse().unwrap())
        );
        for bad in [
            "",
            "/",
            "/.well-known/masque/udp/10.0.0.1/53",
            "/.well-known/masque/udp/10.0.0.1//",
            "/.well-known/masque/udp/10.0.0.1/053/",
            "/.well-known/masque/udp/10.0.0.1/65536/",
            "/.well-known/masque/udp/10.0.0.1/+5/",
            "/.well-known/masque/udp/web.shop/53/",
            "/.well-known/masque/udp/10.0.0.1/53/x/",
            "/.well-known/masque/udp/010.0.0.1/53/",
            "/masque?h=10.0.0.1&p=53",
        ] {
            assert_eq!(target(bad), None, "{bad}");
        }
    }

    /// All datagrams in `bytes`, given in pieces of these lengths over and over.
    fn read(bytes: &[u8], lengths: &[usize]) -> Result<Vec<Vec<u8>>, TooLarge> {
        let (mut capsules, mut found, mut rest) = (Capsules::default(), Vec::new(), bytes);
        for n in lengths.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*n).clamp(1, rest.len()));
            rest = after;
            let mut chunk = Bytes::copy_from_slice(piece);
            while let Some(payload) = capsules.next(&mut chunk)? {
                found.push(payload.to_vec());
            }
            assert!(chunk.is_empty());
        }
        Ok(found)
    }

    #[test]
    fn what_is_not_for_udp_is_passed_over_and_what_cannot_be_ends_it() {
        let hi = capsule(b"hi");
        assert_eq!(&hi[..], b"\x00\x03\x00hi");
        for (bytes, found) in [
            // An unknown capsule, with its type and length in eight bytes each.
            (
                &b"\xc0\0\0\0\0\0\x0f\xff\xc0\0\0\0\0\0\0\x02xx\x00\x03\x00hi"[..],
                &[&b"hi"[..]][..],
            ),
            (b"\x00\x00\x00\x03\x00hi", &[b"hi"]), // no context at all
            (b"\x00\x03\x02hi\x00\x01\x00", &[b""]), // another context; an empty datagram
            (b"\x00\x01\x40\x00\x03\x00hi", &[b"hi"]), // cut off within the context
            (b"\x00\x04\x40\x00hi", &[b"hi"]),     // the context in two bytes
            (b"\x00\x03\x00h", &[]),               // not all has come
        ] {
            let read = read(bytes, &[1]).unwrap();
            assert_eq!(read, found, "{bytes:?}");
        }
        let longest = vec![7; 65_527];
        assert_eq!(read(&capsule(&longest), &[9000]).unwrap(), [longest]);
        assert!(read(&capsule(&vec![7; 65_528]), &[9000]).is_err());
        assert!(
            read(b"\x00\x80\x01\x00\x00", &[1]).is_err(),
            "before it has come"
        );
    }

    /// A number in 1 << `class` bytes, or in more if it needs them: nobody has to choose the shortest.
    fn number_in(value: u64, class: u32) -> Vec<u8> {
        let least = match value {
            0..0x40 => 0,
            0x40..0x4000 => 1,
            0x4000..0x4000_0000 => 2,
            _ => 3,
        };
        let class = class.max(least);
        let bytes = (value | u64::from(class) << ((8 << class) - 2)).to_be_bytes();
        bytes[8 - (1 << class)..].to_vec()
    }

    /// Type, context if it is a datagram, and what is in it; numbers as long as they are wanted.
    type Sent = (u64, u64, Vec<u8>, [u32; 3]);

    fn encoded((kind, context, body, classes): &Sent) -> Vec<u8> {
        let [of_kind, of_length, of_context] = *classes;
        let context = match *kind {
            DATAGRAM => number_in(*context, of_context),
            _ => Vec::new(),
        };
        let length = (context.len() + body.len()) as u64;
        let head = [number_in(*kind, of_kind), number_in(length, of_length)].concat();
        [head, context, body.clone()].concat()
    }

    /// Half of them datagrams of UDP, and the rest what a peer may send beside.
    fn sent() -> impl Strategy<Value = Sent> {
        const LARGEST: u64 = (1 << 62) - 1;
        let kind = prop_oneof![3 => Just(DATAGRAM), 1 => 1..100u64, 1 => 1..=LARGEST];
        let context = prop_oneof![4 => Just(PAYLOAD), 1 => 1..=LARGEST];
        let body = prop::collection::vec(any::<u8>(), 0..300);
        let class = || 0..4u32;
        (kind, context, body, [class(), class(), class()])
    }

    fn for_udp(all: &[Sent]) -> Vec<Vec<u8>> {
        let is_for_udp = |(kind, context, ..): &&Sent| *kind == DATAGRAM && *context == PAYLOAD;
        let found = all.iter().filter(is_for_udp);
        found.map(|(_, _, body, _)| body.clone()).collect()
    }

    #[test]
    fn what_is_passed_over_is_not_kept_however_long_it_says_it_is() {
        let mut capsules = Capsules::default();
        let head = [number_in(41, 0), number_in((1 << 62) - 1, 3)].concat();
        assert_eq!(capsules.next(&mut Bytes::from(head)), Ok(None));
        for _ in 0..100 {
            let mut chunk = Bytes::from(vec![0; 16_384]);
            assert_eq!(capsules.next(&mut chunk), Ok(None));
            assert!(chunk.is_empty());
        }
        let left = (1 << 62) - 1 - 100 * 16_384;
        assert!(matches!(capsules.body, Body::Skip(n) if n == left));
    }

    #[test]
    fn that_nobody_listens_is_heard_once_and_changes_nothing_else() {
        let mut capsules = Capsules::default();
        let mut said = Bytes::from([&capsule(b"a")[..], &closed(), &capsule(b"b")].concat());
        assert_eq!(capsules.next(&mut said).unwrap().unwrap(), &b"a"[..]);
        assert!(!capsules.heard_closed());
        assert_eq!(capsules.next(&mut said).unwrap().unwrap(), &b"b"[..]);
        assert!(capsules.heard_closed() && !capsules.heard_closed());
        assert_eq!(capsules.next(&mut said), Ok(None));
        let reserved = (CLOSED - 0x17).is_multiple_of(0x29);
        assert!(CLOSED < 1 << 62 && !reserved, "RFC 9297, 5.4");
    }

    proptest! {
        #[test]
        fn among_capsules_of_any_kind_those_for_udp_are_found_and_a_stream_that_breaks_off_yields_those_that_were_whole(
            all in prop::collection::vec(sent(), 0..12),
            lengths in prop::collection::vec(1usize..400, 1..5),
            broken in any::<prop::sample::Index>(),
        ) {
            let bytes: Vec<u8> = all.iter().flat_map(encoded).collect();
            prop_assert_eq!(read(&bytes, &lengths), Ok(for_udp(&all)));
            let end = broken.index(bytes.len() + 1);
            let (mut whole, mut at) = (0, 0);
            for one in &all {
                at += encoded(one).len();
                whole += usize::from(at <= end);
            }
            prop_assert_eq!(read(&bytes[..end], &lengths), Ok(for_udp(&all[..whole])));
        }

        #[test]
        fn more_than_udp_has_is_refused_by_its_head_alone_however_that_is_cut(
            length in 65_536u64..1 << 62, class in 0..4u32, lengths in prop::collection::vec(1usize..9, 1..5),
        ) {
            let head = [number_in(DATAGRAM, class), number_in(length, class)].concat();
            prop_assert_eq!(read(&head, &lengths), Err(TooLarge(length)));
        }

        #[test]
        fn a_path_says_the_address_that_it_was_made_of(ip in any::<IpAddr>(), port in 1u16..) {
            let to = SocketAddr::new(ip, port);
            prop_assert_eq!(target(&path(to)), Some(to));
        }

        #[test]
        fn datagrams_come_out_as_they_went_in_however_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..10),
            lengths in prop::collection::vec(1usize..400, 1..5),
        ) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|it| capsule(it)).collect();
            prop_assert_eq!(read(&bytes, &lengths).unwrap(), payloads);
        }

        #[test]
        fn no_bytes_panic_and_cuts_change_nothing(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            lengths in prop::collection::vec(1usize..40, 1..5),
        ) {
            prop_assert_eq!(read(&bytes, &lengths), read(&bytes, &[1000]));
        }

        #[test]
        fn no_path_panics(path in any::<String>()) {
            let _ = target(&path);
        }
    }
}
