//! The kernel's netlink, as little of it as is needed: a message and its acknowledgement, or a question and
//! the messages that answer it. In the network namespace of the calling thread, blocking.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// What is sent: the kind and its own flags, and what follows the header.
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) body: Vec<u8>,
}

/// An open socket.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends one message and waits for its acknowledgement; errors in `fine` count as success.
    pub(crate) fn ask(&mut self, message: Message, fine: &[Errno]) -> io::Result<()> {
        match self.exchange(message, NLM_F_ACK, |_| {})? {
            0 => Ok(()),
            errno if fine.contains(&Errno::from_raw(errno)) => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Asks for all there is of something: `each` gets the body of every message of the answer.
    pub(crate) fn list(&mut self, message: Message, each: impl FnMut(&[u8])) -> io::Result<()> {
        match self.exchange(message, NLM_F_DUMP, each)? {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// The errno with which the answer ends, 0 if all went well.
    fn exchange(
        &mut self,
        message: Message,
        flags: u16,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<i32> {
        self.sequence += 1;
        let bytes = message.encode(self.sequence, flags)?;
        let fd = self.socket.as_raw_fd();
        sendto(fd, &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = vec![0; BUFFER];
        loop {
            let length = recv(fd, &mut answer, MsgFlags::empty())?;
            let mut rest = answer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let (heard, next) = split(rest)
                    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "half a message"))?;
                rest = next;
                match heard {
                    // An answer to what was given up on before.
                    heard if heard.sequence != self.sequence => {}
                    Heard {
                        end: Some(errno), ..
                    } => return Ok(errno),
                    Heard { body, .. } => each(body),
                }
            }
        }
    }
}

impl Message {
    fn encode(self, sequence: u32, flags: u16) -> io::Result<Vec<u8>> {
        let length = u32::try_from(HEADER + self.body.len()).map_err(io::Error::other)?;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(self.body);
        Ok(bytes)
    }
}

/// One message of an answer.
#[derive(Debug, PartialEq)]
struct Heard<'a> {
    sequence: u32,
    /// It ends the answer, with this errno (0: done).
    end: Option<i32>,
    body: &'a [u8],
}

/// The first message in `bytes`, and what follows it. `None`: it is shorter than it says.
fn split(bytes: &[u8]) -> Option<(Heard<'_>, &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let message = bytes.get(..length)?;
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let body = message.get(HEADER..)?;
    let end = match kind {
        // struct nlmsgerr, and the end of a list: both begin with a negative errno.
        NLMSG_ERROR | NLMSG_DONE => Some(u32_at(body, 0)?.cast_signed().checked_neg()?),
        _ => None,
    };
    let heard = Heard {
        sequence: u32_at(message, 8)?,
        end,
        body,
    };
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((heard, next))
}

/// The number at `at`, in the machine's order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*word))
}

pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;

const HEADER: usize = 16;
/// Above what the kernel puts into one answer.
const BUFFER: usize = 64 * 1024;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let message = Message {
            kind,
            flags: 0,
            body: body.to_vec(),
        };
        message.encode(7, 0).unwrap()
    }

    #[test]
    fn an_answer_of_several_messages_is_read_to_its_end() {
        let done = message(NLMSG_DONE, &[0; 4]);
        let bytes = [message(20, b"one"), vec![0], message(20, b"four"), done].concat();
        let mut rest = &bytes[..];
        let mut all = Vec::new();
        while let Some((heard, next)) = split(rest) {
            all.push((heard.body, heard.end));
            rest = next;
        }
        assert_eq!(
            all,
            [(&b"one"[..], None), (b"four", None), (&[0; 4], Some(0))]
        );
        assert!(rest.is_empty());
    }

    #[test]
    fn a_refusal_says_its_errno() {
        let bytes = message(NLMSG_ERROR, &(-2i32).to_ne_bytes());
        assert_eq!(split(&bytes).unwrap().0.end, Some(2));
        assert_eq!(split(&bytes[..bytes.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn no_answer_is_misread_beyond_its_end(bytes: Vec<u8>) {
            if let Some((heard, next)) = split(&bytes) {
                prop_assert!(heard.body.len() + HEADER + next.len() <= bytes.len());
            }
        }

        #[test]
        fn a_message_is_as_long_as_it_says(body: Vec<u8>) {
            let bytes = message(20, &body);
            let (heard, next) = split(&bytes).unwrap();
            prop_assert_eq!(heard, Heard { sequence: 7, end: None, body: &body });
            prop_assert!(next.is_empty());
        }
    }
}
