//! The TCP connections of a pod that go through ztunnel, and their end. In the network namespace of the calling
//! thread, blocking.
//!
//! They are those redirected to ztunnel, and those it opened towards the application in the name of a client, from
//! an address that is not one of the pod's own. Without the marks and the kernel's memory of the redirects both ends
//! of them speak to nobody. So before these go, [`end`] has the kernel end ztunnel's sockets as if
//! ztunnel had reset them: the application and its peer are told at once.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::netlink::{AF_INET, AF_INET6, Message, Netlink};

/// How many there are. Reads `/proc`, which every kernel has.
pub(crate) fn count(own: &[IpAddr]) -> usize {
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .map(|table| counted(&table, own))
        .sum()
}

/// Ends them, and says how many there were.
///
/// # Errors
/// What the kernel says; one that cannot do it at all is told by [`is_missing`].
pub(crate) fn end(own: &[IpAddr]) -> io::Result<usize> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
    let mut ended = 0;
    for family in [AF_INET, AF_INET6] {
        for socket in open_sockets(&mut netlink, family)? {
            if through_ztunnel(&socket.local, socket.port, own) {
                // It may have ended by itself meanwhile.
                netlink.ask(socket.destroy(), &[Errno::ENOENT])?;
                ended += 1;
            }
        }
    }
    Ok(ended)
}

/// Whether [`end`] failed for want of a kernel that can do it.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EOPNOTSUPP | Errno::ENOENT | Errno::EPROTONOSUPPORT)
    )
}

fn through_ztunnel(local: &IpAddr, port: u16, own: &[IpAddr]) -> bool {
    let link_local = matches!(local, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let foreign =
        !local.is_loopback() && !local.is_unspecified() && !link_local && !own.contains(local);
    REDIRECTED.contains(&port) || foreign
}

/// How many of `/proc/net/tcp` or `tcp6`.
fn counted(table: &str, own: &[IpAddr]) -> usize {
    let lines = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        Some((fields.nth(1)?, fields.nth(1)?))
    });
    lines
        .filter(|(_, state)| u8::from_str_radix(state, 16).is_ok_and(is_open))
        .filter_map(|(local, _)| {
            let (ip, port) = local.split_once(':')?;
            Some((address(ip)?, u16::from_str_radix(port, 16).ok()?))
        })
        .filter(|(ip, port)| through_ztunnel(ip, *port, own))
        .count()
}

fn is_open(state: u8) -> bool {
    1u32.checked_shl(state.into())
        .is_some_and(|bit| OPEN & bit != 0)
}

/// The kernel prints addresses as 32 bit words in the machine's order.
fn address(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for at in (0..hex.len()).step_by(8) {
        let word = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    match bytes.len() {
        4 => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
        16 => Some(IpAddr::from(*bytes.first_chunk::<16>()?).to_canonical()),
        _ => None,
    }
}

/// A socket as the kernel lists it.
#[derive(Debug, PartialEq)]
struct Socket {
    family: u8,
    local: IpAddr,
    port: u16,
    /// `struct inet_diag_sockid`: names it, and its successor on the same ports differently.
    id: [u8; ID],
}

fn open_sockets(netlink: &mut Netlink, family: u8) -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    let mut unread = 0;
    let any = [0; ID];
    netlink.list(
        request(SOCK_DIAG_BY_FAMILY, family, &any),
        |body| match Socket::read(body) {
            Some(socket) => sockets.push(socket),
            None => unread += 1,
        },
    )?;
    if unread > 0 {
        return Err(io::Error::other(format!(
            "{unread} sockets of unknown form"
        )));
    }
    Ok(sockets)
}

impl Socket {
    /// From a `struct inet_diag_msg`: family, state, timer, retransmissions, then the id.
    fn read(body: &[u8]) -> Option<Self> {
        let id: [u8; ID] = *body.get(4..)?.first_chunk()?;
        let family = *body.first()?;
        let local = match family {
            AF_INET => Ipv4Addr::from(*id.get(4..)?.first_chunk::<4>()?).into(),
            AF_INET6 => Ipv6Addr::from(*id.get(4..)?.first_chunk::<16>()?).to_canonical(),
            _ => return None,
        };
        Some(Self {
            family,
            local,
            port: u16::from_be_bytes(*id.first_chunk()?),
            id,
        })
    }

    fn destroy(&self) -> Message {
        request(SOCK_DESTROY, self.family, &self.id)
    }
}

/// A `struct inet_diag_req_v2`: family, protocol, no extensions, padding, states, id.
fn request(kind: u16, family: u8, id: &[u8; ID]) -> Message {
    let mut body = vec![family, IPPROTO_TCP, 0, 0];
    body.extend(OPEN.to_ne_bytes());
    body.extend(id);
    Message {
        kind,
        flags: 0,
        body,
    }
}

/// 15001 and 15006.
const REDIRECTED: [u16; 2] = [15001, 15006];
/// The states, as bits, of a connection with two ends: all but CLOSE, TIME_WAIT and LISTEN.
const OPEN: u32 = 0xfff & !(1 | 1 << 6 | 1 << 7 | 1 << 10);
const ID: usize = 48;
const IPPROTO_TCP: u8 = 6;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn connections_through_ztunnel_are_told_from_others() {
        let table = "\
  sl  local_address rem_address   st tx_queue
   0: 00000000:3A98 00000000:0000 0A 0
   1: 0100007F:1F90 0100007F:A000 01 0
   2: 0200630A:A000 0300630A:1F90 01 0
   3: 0900630A:A001 0200630A:1F90 01 0
   4: 0900630A:A002 0200630A:1F90 06 0
   5: 0900630A:A003 0200630A:1F90 08 0
   6: 0100007F:3A99 0200630A:1F90 01 0
   7: 0200630A:3A9E 0200630A:1F90 06 0
";
        let own = ["10.99.0.2".parse().unwrap()];
        assert_eq!(counted(table, &own), 3);
        let v6 = "  sl\n   0: 300000FD00000000000000000200000:1 0:0 01\n   1: 300000FD000000000000000002000000:A0 0:0 01\n   2: 0000000000000000FFFF00000200630A:A0 0:0 01\n";
        assert_eq!(counted(v6, &own), 1);
        assert_eq!(
            address("300000FD000000000000000002000000")
                .unwrap()
                .to_string(),
            "fd00:30::2"
        );
    }

    #[test]
    fn a_listed_socket_is_named_by_what_the_kernel_called_it() {
        let mut body = vec![AF_INET6, 1, 0, 0];
        let mut id = [7; ID];
        id[..2].copy_from_slice(&15006u16.to_be_bytes());
        let mapped = Ipv4Addr::new(10, 99, 0, 2).to_ipv6_mapped();
        id[4..20].copy_from_slice(&mapped.octets());
        body.extend(id);
        assert_eq!(Socket::read(&body[..51]), None);
        body.extend([0; 20]);
        let socket = Socket::read(&body).unwrap();
        let local = (socket.local.to_string(), socket.port);
        assert_eq!(local, ("10.99.0.2".to_owned(), 15006));
        let destroy = socket.destroy();
        assert_eq!(destroy.kind, SOCK_DESTROY);
        assert_eq!(destroy.body[..2], [AF_INET6, IPPROTO_TCP]);
        assert_eq!(destroy.body[8..], id);
    }
}
