//! What an elder and its successor say to each other: one message a packet.
//!
//! ```text
//!  successor                       elder
//!     │ ── Hello ───────────────────▶ │  who I am, what I can read
//!     │ ◀──────────── Hello | Busy ── │  the same; or: another is registered
//!     │                               │  … SIGTERM …
//!     │ ◀──────────────────── Offer ── │  a connection: its right, its state, its sockets (and Sockets, if there are many)
//!     │ ── Took | Refused ──────────▶ │
//! ```
//! Who is which is not said by who knocks: a worker that died beside its registered successor knocks at that one's door when it
//! is back, and its listeners were there first all the while. So each says since when its listeners have been there, and both come to the
//! same ([`Hello::gives_to`]).
//!
//! The first bytes of a Hello never change, so that any two versions can find out that they do not understand each other.

use super::bytes::{Malformed, Reader, Writer};

/// Of these messages and of what ztunnel says of a connection (`record`). A process that finds another hands nothing over.
pub(super) const PROTOCOL: u16 = 2;
/// Descriptors in one packet. The kernel takes 253.
pub(super) const FDS: usize = 250;
/// Sockets of one connection.
pub(super) const SOCKETS: usize = 4096;
/// Bytes of one connection's state: what its streams may have waiting (128 MiB, `hbone::Limits`), and some more.
pub(super) const STATE: u64 = 192 << 20;

/// Longest reason.
const REASON: usize = 512;
/// Longest version.
const VERSION: usize = 64;
/// What a Hello begins with.
const MAGIC: &[u8; 8] = b"ambit-ho";

/// Who one is and what one can read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) protocol: u16,
    /// Of a connection's frozen part, hbone's.
    pub(super) layout: u16,
    /// Since when its listeners have been there: the age of whoever holds them, in the kernel's ticks since it began.
    pub(super) since: u64,
    /// It has been told to stop.
    pub(super) leaves: bool,
    /// What carries tunnels, as the operator names it.
    pub(super) engine: String,
    /// For the log.
    pub(super) version: String,
}

/// A connection, as far as a packet says it; its state is in memory that goes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    /// Names the connection in this conversation; goes up by one.
    pub(super) id: u64,
    /// Bytes in the memory.
    pub(super) state: u64,
    /// Sockets, in this packet and those after it.
    pub(super) sockets: u16,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    Hello(Hello),
    /// Somebody else is registered.
    Busy,
    Offer(Offer),
    /// More sockets of the connection offered last.
    Sockets(u64),
    /// It is the successor's.
    Took(u64),
    /// It stays with the elder.
    Refused(u64, String),
}

impl Hello {
    /// Whether what one writes the other reads.
    pub(super) fn agrees(&self, other: &Self) -> Result<(), Disagreement> {
        let differ = |what, ours: String, theirs: String| match ours == theirs {
            true => Ok(()),
            false => Err(Disagreement { what, ours, theirs }),
        };
        let number = |n: u16| n.to_string();
        differ("protocol", number(self.protocol), number(other.protocol))?;
        differ("layout", number(self.layout), number(other.layout))
    }

    /// Whether this one, at whose door `other` knocks, is the elder: it was here first, or it leaves.
    pub(super) fn gives_to(&self, other: &Self) -> bool {
        self.leaves || self.since <= other.since
    }
}

/// Two versions that do not understand each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the hand-over's {what} is {ours} here and {theirs} there")]
pub(super) struct Disagreement {
    what: &'static str,
    ours: String,
    theirs: String,
}

const HELLO: u8 = 1;
const BUSY: u8 = 2;
const OFFER: u8 = 3;
const MORE: u8 = 4;
const TOOK: u8 = 5;
const REFUSED: u8 = 6;

impl Message {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Self::Hello(hello) => {
                out.u8(HELLO);
                out.bytes(MAGIC);
                out.u16(hello.protocol);
                out.u16(hello.layout);
                out.u64(hello.since);
                out.bool(hello.leaves);
                out.text(shortened(&hello.engine, VERSION));
                out.text(shortened(&hello.version, VERSION));
            }
            Self::Busy => out.u8(BUSY),
            Self::Offer(offer) => {
                out.u8(OFFER);
                out.u64(offer.id);
                out.u64(offer.state);
                out.u16(offer.sockets);
            }
            Self::Sockets(id) => {
                out.u8(MORE);
                out.u64(*id);
            }
            Self::Took(id) => {
                out.u8(TOOK);
                out.u64(*id);
            }
            Self::Refused(id, why) => {
                out.u8(REFUSED);
                out.u64(*id);
                out.text(shortened(why, REASON));
            }
        }
        out.0
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut bytes = Reader::new(bytes);
        let message = match bytes.u8()? {
            HELLO => {
                if bytes.array()? != *MAGIC {
                    return Err(Malformed::Not("hello"));
                }
                let (protocol, layout) = (bytes.u16()?, bytes.u16()?);
                if protocol != PROTOCOL {
                    // What follows is the other's affair.
                    return Ok(Self::Hello(Hello {
                        protocol,
                        layout,
                        ..Hello::default()
                    }));
                }
                let (since, leaves) = (bytes.u64()?, bytes.bool()?);
                let mut short = || match bytes.text()? {
                    text if text.len() <= VERSION => Ok(text.to_owned()),
                    _ => Err(Malformed::Not("version")),
                };
                let (engine, version) = (short()?, short()?);
                Self::Hello(Hello {
                    protocol,
                    layout,
                    since,
                    leaves,
                    engine,
                    version,
                })
            }
            BUSY => Self::Busy,
            OFFER => {
                let (id, state, sockets) = (bytes.u64()?, bytes.u64()?, bytes.u16()?);
                if state > STATE || usize::from(sockets) > SOCKETS {
                    return Err(Malformed::Not("connection of ours: it is too large"));
                }
                Self::Offer(Offer { id, state, sockets })
            }
            MORE => Self::Sockets(bytes.u64()?),
            TOOK => Self::Took(bytes.u64()?),
            REFUSED => {
                let (id, why) = (bytes.u64()?, bytes.text()?);
                if why.len() > REASON {
                    return Err(Malformed::Not("reason"));
                }
                Self::Refused(id, why.to_owned())
            }
            _ => return Err(Malformed::Not("message")),
        };
        bytes.end()?;
        Ok(message)
    }
}

fn shortened(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agent::packet::LARGEST;

    fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL,
            layout: 3,
            since: 5,
            leaves: false,
            engine: "own".into(),
            version: "0.1.0".into(),
        }
    }

    fn hellos() -> impl Strategy<Value = Hello> {
        let numbers = any::<(u16, u64, bool)>();
        ("[a-z0-9]{0,8}", ".{0,20}", numbers).prop_map(
            |(engine, version, (layout, since, leaves))| Hello {
                protocol: PROTOCOL,
                layout,
                since,
                leaves,
                engine,
                version,
            },
        )
    }

    fn message() -> impl Strategy<Value = Message> {
        let offer = (any::<u64>(), 0..=STATE, 0..=SOCKETS as u16);
        prop_oneof![
            hellos().prop_map(Message::Hello),
            Just(Message::Busy),
            offer.prop_map(|(id, state, sockets)| Message::Offer(Offer { id, state, sockets })),
            any::<u64>().prop_map(Message::Sockets),
            any::<u64>().prop_map(Message::Took),
            (any::<u64>(), ".{0,100}").prop_map(|(id, why)| Message::Refused(id, why)),
        ]
    }

    proptest! {
        #[test]
        fn a_message_is_read_back_and_fits_a_packet(message in message()) {
            let bytes = message.write();
            prop_assert!(bytes.len() <= LARGEST);
            prop_assert_eq!(Message::read(&bytes), Ok(message));
        }

        #[test]
        fn a_message_that_is_cut_or_has_a_surplus_is_refused(message in message(), at: prop::sample::Index) {
            let bytes = message.write();
            prop_assert!(Message::read(&bytes[..at.index(bytes.len())]).is_err());
            prop_assert!(Message::read(&[&bytes[..], b"x"].concat()).is_err());
        }

        #[test]
        fn what_is_read_has_one_way_to_be_written(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            // The Hello of another protocol is not read to its end.
            if let Ok(message) = Message::read(&bytes) && !matches!(message, Message::Hello(_)) {
                prop_assert_eq!(message.write(), bytes);
            }
        }
    }

    #[test]
    fn a_hello_of_any_later_protocol_is_understood_as_far_as_to_disagree() {
        let mut bytes = Message::Hello(hello()).write();
        bytes[9..11].copy_from_slice(&7u16.to_be_bytes());
        bytes.extend_from_slice(b"whatever it says then");
        let Ok(Message::Hello(theirs)) = Message::read(&bytes) else {
            panic!("not understood");
        };
        let why = hello().agrees(&theirs).unwrap_err();
        assert_eq!(
            why.to_string(),
            "the hand-over's protocol is 2 here and 7 there"
        );
    }

    #[test]
    fn layouts_must_agree_and_versions_and_engines_need_not() {
        let ours = hello();
        let newer = Hello {
            version: "9".into(),
            engine: "h2".into(),
            ..hello()
        };
        assert_eq!(ours.agrees(&newer), Ok(()));
        let other = Hello {
            layout: 4,
            ..hello()
        };
        assert!(ours.agrees(&other).is_err());
    }

    #[test]
    fn whoever_was_here_first_gives_and_so_does_whoever_leaves() {
        let at = |since, leaves| Hello {
            since,
            leaves,
            ..hello()
        };
        for (door, knocks, gives) in [
            (at(3, false), at(4, false), true),
            // A worker that died is back, and finds its successor.
            (at(4, false), at(3, false), false),
            (at(4, true), at(3, false), true),
            // Of the same age: who is there already.
            (at(4, false), at(4, false), true),
        ] {
            assert_eq!(door.gives_to(&knocks), gives, "{door:?} {knocks:?}");
        }
    }

    #[test]
    fn what_is_larger_than_any_connection_is_refused_before_memory_is_made_for_it() {
        for (state, sockets) in [(STATE + 1, 0), (0, SOCKETS as u16 + 1)] {
            let offer = Message::Offer(Offer {
                id: 1,
                state,
                sockets,
            });
            assert!(Message::read(&offer.write()).is_err());
        }
    }
}
