//! The rule and the route that bring marked packets back to ztunnel: `fwmark 0x111/0xfff lookup 100`,
//! and in table 100 everything is local.
//!
//! Spoken as rtnetlink by hand: four messages, all of fixed shape, microseconds instead of four
//! processes, and the kernel's answer says whether it was there already.

use std::io;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::netlink::{AF_INET, AF_INET6, Message, Netlink};

/// Makes rule and route for the families asked for, in the network namespace of the calling thread.
/// What is already there is fine. Brings the loopback up, which the route goes through.
pub(crate) fn install(v4: bool, v6: bool) -> io::Result<()> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    netlink.ask(loopback_up(), &[])?;
    for family in families(v4, v6) {
        netlink.ask(rule(Change::Add, family), &[Errno::EEXIST])?;
        netlink.ask(route(Change::Add, family), &[Errno::EEXIST])?;
    }
    Ok(())
}

/// Takes both families' rule and route away. What is not there is fine.
pub(crate) fn remove() -> io::Result<()> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
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

/// The kernel makes the loopback first in every namespace.
const LOOPBACK: u32 = 1;
const TABLE: u8 = 100;

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
