//! The rule and the route that bring marked packets back to ztunnel: `fwmark 0x111/0xfff lookup 100`,
//! and in table 100 everything is local.
//!
//! Spoken as rtnetlink by hand: four messages, all of fixed shape, microseconds instead of four
//! processes, and the kernel's answer says whether it was there already.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Makes rule and route for the families asked for, in the network namespace of the calling thread.
/// What is already there is fine. Brings the loopback up, which the route goes through.
pub(crate) fn install(v4: bool, v6: bool) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.ask(loopback_up(), &[])?;
    for family in families(v4, v6) {
        netlink.ask(rule(Change::Add, family), &[Errno::EEXIST])?;
        netlink.ask(route(Change::Add, family), &[Errno::EEXIST])?;
    }
    Ok(())
}

/// Takes both families' rule and route away. What is not there is fine.
pub(crate) fn remove() -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let absent = [
        Errno::ENOENT,
        Errno::ESRCH,
        Errno::EAFNOSUPPORT,
        Errno::EOPNOTSUPP,
    ];
    for family in families(true, true) {
        netlink.ask(rule(Change::Remove, family), &absent)?;
        netlink.ask(route(Change::Remove, family), &absent)?;
    }
    Ok(())
}

fn families(v4: bool, v6: bool) -> impl Iterator<Item = u8> {
    let v4 = v4.then_some(AF_INET);
    v4.into_iter().chain(v6.then_some(AF_INET6))
}

#[derive(Clone, Copy)]
enum Change {
    Add,
    Remove,
}

struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

fn rule(change: Change, family: u8) -> Message {
    // struct fib_rule_hdr: family, dst_len, src_len, tos, table, two reserved, action, flags
    let mut body = vec![family, 0, 0, 0, TABLE, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    attribute(&mut body, FRA_PRIORITY, &32764u32.to_ne_bytes());
    attribute(&mut body, FRA_FWMARK, &0x111u32.to_ne_bytes());
    attribute(&mut body, FRA_FWMASK, &0xfffu32.to_ne_bytes());
    message(change, RTM_NEWRULE, RTM_DELRULE, body)
}

fn route(change: Change, family: u8) -> Message {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
    let mut body = vec![
        family,
        0,
        0,
        0,
        TABLE,
        RTPROT_BOOT,
        RT_SCOPE_HOST,
        RTN_LOCAL,
        0,
        0,
        0,
        0,
    ];
    attribute(&mut body, RTA_OIF, &LOOPBACK.to_ne_bytes());
    message(change, RTM_NEWROUTE, RTM_DELROUTE, body)
}

fn loopback_up() -> Message {
    // struct ifinfomsg: family and padding, type, index, flags, mask of flags to change
    let mut body = vec![0; 4];
    for word in [LOOPBACK, IFF_UP, IFF_UP] {
        body.extend(word.to_ne_bytes());
    }
    Message {
        kind: RTM_NEWLINK,
        flags: 0,
        body,
    }
}

fn message(change: Change, add: u16, remove: u16, body: Vec<u8>) -> Message {
    match change {
        Change::Add => Message {
            kind: add,
            flags: NLM_F_CREATE | NLM_F_EXCL,
            body,
        },
        Change::Remove => Message {
            kind: remove,
            flags: 0,
            body,
        },
    }
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8; 4]) {
    body.extend(8u16.to_ne_bytes()); // four of header, four of value
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends one message and waits for its acknowledgement; errors in `fine` count as success.
    fn ask(&mut self, message: Message, fine: &[Errno]) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.encode(self.sequence)?;
        let fd = self.socket.as_raw_fd();
        sendto(fd, &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0; 4096];
        loop {
            let length = recv(fd, &mut answer, MsgFlags::empty())?;
            match acknowledgement(&answer[..length]) {
                Some((sequence, _)) if sequence != self.sequence => {}
                Some((_, 0)) => return Ok(()),
                Some((_, errno)) if fine.contains(&Errno::from_raw(errno)) => return Ok(()),
                Some((_, errno)) => return Err(io::Error::from_raw_os_error(errno)),
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "not an acknowledgement",
                    ));
                }
            }
        }
    }
}

impl Message {
    fn encode(self, sequence: u32) -> io::Result<Vec<u8>> {
        let length = u32::try_from(HEADER + self.body.len()).map_err(io::Error::other)?;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(self.body);
        Ok(bytes)
    }
}

/// Sequence and errno (0: done) of a `struct nlmsgerr`.
fn acknowledgement(bytes: &[u8]) -> Option<(u32, i32)> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok();
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(word(8)?);
    let error = i32::from_ne_bytes(word(HEADER)?);
    (kind == NLMSG_ERROR).then_some((sequence, error.checked_neg()?))
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The kernel makes the loopback first in every namespace.
const LOOPBACK: u32 = 1;
const TABLE: u8 = 100;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FWMASK: u16 = 16;
const FR_ACT_TO_TBL: u8 = 1;
const RTA_OIF: u16 = 4;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_HOST: u8 = 254;
const RTN_LOCAL: u8 = 2;
const IFF_UP: u32 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_is_as_long_as_it_says() {
        for message in [
            rule(Change::Add, AF_INET),
            route(Change::Remove, AF_INET6),
            loopback_up(),
        ] {
            let bytes = message.encode(7).unwrap();
            assert_eq!(bytes.len() % 4, 0);
            assert_eq!(
                bytes[..4],
                u32::try_from(bytes.len()).unwrap().to_ne_bytes()
            );
        }
    }

    proptest! {
        #[test]
        fn no_answer_is_misread_beyond_its_end(bytes: Vec<u8>) {
            if let Some((_, errno)) = acknowledgement(&bytes) {
                prop_assert!(bytes.len() >= 20 && errno != i32::MIN);
            }
        }
    }
}
