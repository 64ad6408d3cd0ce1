//! What the keeper holds: sockets under numbers, with words it does not read.

use std::os::fd::OwnedFd;

use super::words::{HOLD, HOLD_TAKEN, MOST_SOCKETS, RELEASE, TAKEN, parse};
use crate::agent::packet::Packet;

/// Sockets of pods, in the order in which they came.
#[derive(Debug)]
pub(super) struct Shelf {
    parcels: Vec<Parcel>,
    room: usize,
}

/// Sockets of one pod.
#[derive(Debug)]
pub(super) struct Parcel {
    number: u64,
    /// As it came, and as it will be given back.
    pub(super) message: Box<[u8]>,
    pub(super) sockets: Box<[OwnedFd]>,
}

impl Default for Shelf {
    fn default() -> Self {
        Self::with_room(MOST_PODS)
    }
}

impl Shelf {
    fn with_room(room: usize) -> Self {
        Self {
            parcels: Vec::new(),
            room,
        }
    }

    /// Does as a worker says. What makes no sense is left, and its descriptors are closed; `false`: that was so.
    pub(super) fn take(&mut self, packet: Packet) -> bool {
        let Packet {
            bytes,
            fds,
            truncated,
        } = packet;
        let Some((verb, number, _)) = parse(&bytes).filter(|_| !truncated) else {
            return false;
        };
        match verb {
            HOLD if (1..=MOST_SOCKETS).contains(&fds.len()) && self.parcels.len() < self.room => {
                self.parcels.retain(|parcel| parcel.number != number);
                self.parcels.push(Parcel {
                    number,
                    message: bytes.into(),
                    sockets: fds.into(),
                });
            }
            TAKEN => {
                let found = self
                    .parcels
                    .iter_mut()
                    .find(|parcel| parcel.number == number);
                if let Some(first) = found.and_then(|parcel| parcel.message.first_mut()) {
                    *first = HOLD_TAKEN;
                }
            }
            RELEASE => self.parcels.retain(|parcel| parcel.number != number),
            _ => return false,
        }
        true
    }

    pub(super) fn nth(&self, index: usize) -> Option<&Parcel> {
        self.parcels.get(index)
    }

    pub(super) fn pods(&self) -> usize {
        self.parcels.len()
    }
}

/// Beyond what any node has; a worker gone mad must not make the keeper grow without end.
const MOST_PODS: usize = 4096;

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::words::head;
    use super::*;

    fn packet(verb: u8, number: u64, sockets: usize) -> Packet {
        let fds = (0..sockets).map(|_| File::open("/dev/null").unwrap().into());
        Packet {
            bytes: [&head(verb, number)[..], b"words"].concat(),
            fds: fds.collect(),
            truncated: false,
        }
    }

    #[test]
    fn what_was_brought_is_given_back_until_it_is_released() {
        let mut shelf = Shelf::default();
        for number in 1..=3 {
            assert!(shelf.take(packet(HOLD, number, 2)));
        }
        assert!(shelf.take(packet(TAKEN, 3, 0)));
        assert!(shelf.take(packet(RELEASE, 1, 0)));
        let words = |parcel: &Parcel| (parcel.number, parcel.message[0], parcel.sockets.len());
        assert_eq!(shelf.nth(0).map(words), Some((2, HOLD, 2)));
        assert_eq!(shelf.nth(1).map(words), Some((3, HOLD_TAKEN, 2)));
        assert_eq!(&shelf.nth(1).unwrap().message[9..], b"words");
        assert_eq!(shelf.pods(), 2);
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        let mut shelf = Shelf::default();
        shelf.take(packet(HOLD, 1, 1));
        let truncated = Packet {
            truncated: true,
            ..packet(HOLD, 2, 1)
        };
        let short = Packet {
            bytes: vec![RELEASE, 0],
            ..Packet::default()
        };
        for nonsense in [
            packet(HOLD, 2, 0),
            packet(HOLD, 2, MOST_SOCKETS + 1),
            packet(b'?', 1, 1),
            truncated,
            short,
        ] {
            assert!(!shelf.take(nonsense));
        }
        assert_eq!(shelf.pods(), 1);
    }

    #[test]
    fn it_has_an_end() {
        let mut shelf = Shelf::with_room(2);
        for (number, room) in [(1, true), (2, true), (3, false)] {
            assert_eq!(shelf.take(packet(HOLD, number, 1)), room);
        }
    }
}
