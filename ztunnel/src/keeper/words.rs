//! The messages between keeper and worker: one a packet (`SOCK_SEQPACKET`), strictly read.
//!
//! ```text
//!  byte 0     what it is
//!  bytes 1-8  the number under which the sockets are held, big endian
//!  then       in Hold only: the pod's uid, its namespace's id, and a line for each socket that comes along
//! ```
//! The keeper looks at the first nine bytes; the rest only ever comes back to a worker.

use std::fmt::Write;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::agent::packet::LARGEST;
use crate::netns::NetnsId;

/// Number and sockets: hold these. The keeper gives them back with the same words.
pub(super) const HOLD: u8 = b'h';
/// [`HOLD`], given back after [`TAKEN`].
pub(super) const HOLD_TAKEN: u8 = b'H';
/// The worker: a connection has come in by these.
pub(super) const TAKEN: u8 = b't';
/// The worker: close these.
pub(super) const RELEASE: u8 = b'r';
/// The keeper: that is all I hold.
pub(super) const COMPLETE: u8 = b'c';

/// More than a pod has: three doors, and four of the resolver.
pub(super) const MOST_SOCKETS: usize = 16;

/// Where a socket listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    /// TCP, on a port of all addresses.
    Everywhere(u16),
    Tcp(SocketAddr),
    Udp(SocketAddr),
}

/// What [`HOLD`] says of a pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) uid: String,
    pub(super) netns: NetnsId,
    pub(super) spots: Vec<Spot>,
}

/// The first nine bytes of a message.
pub(super) fn head(verb: u8, number: u64) -> [u8; 9] {
    let mut bytes = [verb; 9];
    bytes[1..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// What a message is, its number, and the rest.
pub(super) fn parse(message: &[u8]) -> Option<(u8, u64, &[u8])> {
    let (head, rest) = message.split_first_chunk::<9>()?;
    let (verb, number) = head.split_first()?;
    Some((*verb, u64::from_be_bytes(number.try_into().ok()?), rest))
}

/// Sends a message with the descriptors that belong to it. One whose other end is gone is an error, not a signal.
pub(super) fn send(socket: &OwnedFd, message: &[u8], sockets: &[OwnedFd]) -> nix::Result<()> {
    let numbers: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if numbers.is_empty() { &[] } else { &rights[..] };
    let slices = [IoSlice::new(message)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &slices, rights, flags, None).map(drop)
}

impl Held {
    /// The whole message; `None` when it has no room in a packet, or the uid cannot be told from what follows.
    pub(super) fn message(&self, number: u64) -> Option<Vec<u8>> {
        let mut text = format!("{}\n{}", self.uid, self.netns);
        for spot in &self.spots {
            let _ = match spot {
                Spot::Everywhere(port) => write!(text, "\neverywhere {port}"),
                Spot::Tcp(at) => write!(text, "\ntcp {at}"),
                Spot::Udp(at) => write!(text, "\nudp {at}"),
            };
        }
        let fits = head(HOLD, number).len() + text.len() <= LARGEST
            && (1..=MOST_SOCKETS).contains(&self.spots.len())
            && !self.uid.contains('\n');
        fits.then(|| [&head(HOLD, number)[..], text.as_bytes()].concat())
    }

    /// What [`Held::message`] has after the head.
    pub(super) fn parse(rest: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(rest).ok()?.split('\n');
        Some(Self {
            uid: lines.next()?.to_owned(),
            netns: lines.next()?.parse().ok()?,
            spots: lines.map(Spot::parse).collect::<Option<_>>()?,
        })
    }
}

impl Spot {
    fn parse(line: &str) -> Option<Self> {
        let (kind, at) = line.split_once(' ')?;
        match kind {
            "everywhere" => at.parse().ok().map(Self::Everywhere),
            "tcp" => at.parse().ok().map(Self::Tcp),
            "udp" => at.parse().ok().map(Self::Udp),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(uid: &str) -> Held {
        Held {
            uid: uid.into(),
            netns: "4:4026532621".parse().unwrap(),
            spots: vec![
                Spot::Everywhere(15001),
                Spot::Tcp("127.0.0.1:15053".parse().unwrap()),
                Spot::Udp("[::1]:15053".parse().unwrap()),
            ],
        }
    }

    #[test]
    fn what_is_held_comes_back_as_it_was() {
        let message = held("a uid").message(7).unwrap();
        let (verb, number, rest) = parse(&message).unwrap();
        assert_eq!((verb, number), (HOLD, 7));
        assert_eq!(Held::parse(rest).unwrap(), held("a uid"));
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        assert_eq!(held("two\nlines").message(1), None);
        assert_eq!(held(&"long".repeat(300)).message(1), None);
        let spots = vec![Spot::Everywhere(1); MOST_SOCKETS + 1];
        assert_eq!(
            Held {
                spots,
                ..held("many")
            }
            .message(1),
            None
        );
        let spots = Vec::new();
        assert_eq!(
            Held {
                spots,
                ..held("none")
            }
            .message(1),
            None
        );
    }

    #[test]
    fn other_words_are_not_understood() {
        for text in [
            "",
            "uid",
            "uid\n",
            "uid\n1",
            "uid\n1:2\n",
            "uid\n1:2\nsctp 1",
            "uid\n1:2\ntcp 1",
        ] {
            assert_eq!(Held::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse(b"h1234567"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some((_, _, rest)) = parse(&bytes)
                && let Some(held) = Held::parse(rest)
                && let Some(message) = held.message(1)
            {
                prop_assert_eq!(Held::parse(&message[9..]), Some(held));
            }
        }
    }
}
