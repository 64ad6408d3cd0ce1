//! Sockets of UDP in pods: what they hear, and for whom it was.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use bytes::Bytes;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrLike, SockaddrStorage, recvmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// What came by a door.
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    /// For whom it was, before the rules sent it to us.
    pub(super) to: SocketAddr,
    pub(super) payload: Bytes,
}

/// As much as a datagram can have.
const MOST: usize = 65_536;

thread_local! {
    /// Where this thread reads: most datagrams are small, and not each flow needs room for the largest.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MOST].into());
}

/// The next datagram of a door; none if the kernel does not say for whom it was. Cancel safe.
pub(super) async fn receive(door: &UdpSocket) -> io::Result<Option<Datagram>> {
    let fd = door.as_raw_fd();
    door.async_io(Interest::READABLE, || {
        SCRATCH.with_borrow_mut(|scratch| receive_now(fd, scratch))
    })
    .await
}

/// The next datagram of a socket that is connected. Cancel safe.
pub(super) async fn hear(socket: &UdpSocket) -> io::Result<Bytes> {
    loop {
        socket.readable().await?;
        let heard = SCRATCH.with_borrow_mut(|scratch| {
            let n = socket.try_recv(scratch)?;
            Ok(Bytes::copy_from_slice(&scratch[..n]))
        });
        match heard {
            Err(error) if is_would_block(&error) => {}
            heard => return heard,
        }
    }
}

fn is_would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

fn receive_now(fd: RawFd, scratch: &mut [u8]) -> io::Result<Option<Datagram>> {
    let mut control = nix::cmsg_space!(libc::sockaddr_in6);
    let mut pieces = [IoSliceMut::new(scratch)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let heard = recvmsg::<SockaddrStorage>(fd, &mut pieces, Some(&mut control), flags)?;
    let from = heard.address.as_ref().and_then(address);
    let to = heard.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4OrigDstAddr(to) => {
            let ip = Ipv4Addr::from(u32::from_be(to.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(to.sin_port)))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(to) => {
            let ip = Ipv6Addr::from(to.sin6_addr.s6_addr);
            Some(SocketAddr::new(ip.into(), u16::from_be(to.sin6_port)))
        }
        _ => None,
    });
    let n = heard.bytes;
    let (Some(from), Some(to)) = (from, to) else {
        return Ok(None);
    };
    Ok(Some(Datagram {
        from,
        to,
        payload: Bytes::copy_from_slice(&scratch[..n]),
    }))
}

fn address(said: &SockaddrStorage) -> Option<SocketAddr> {
    debug_assert!(said.len() > 0);
    if let Some(v4) = said.as_sockaddr_in() {
        return Some(SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()));
    }
    let v6 = said.as_sockaddr_in6()?;
    Some(SocketAddr::new(IpAddr::V6(v6.ip()), v6.port()))
}
