//! The socket to the node agent: `AF_UNIX`, `SOCK_SEQPACKET`, one message a packet, at most one
//! file descriptor beside it.

#![allow(unsafe_code)] // descriptors arrive from the kernel as bare numbers, and polling one is a promise to keep it open

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg,
    send, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A connection to the node agent.
#[derive(Debug)]
pub(crate) struct Packets(AsyncFd<OwnedFd>);

/// One packet, whole or not.
#[derive(Debug, Default)]
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    /// Bytes did not fit: what is here cannot be trusted.
    pub(crate) truncated: bool,
}

impl Packets {
    /// Connects to the agent's socket.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        // At once or not at all: a unix socket does not need a round trip.
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Self::new(fd)
    }

    /// Takes over a connected socket.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: registration asks that the descriptor stays open and the same for as long as it
        // is registered. `fd` is owned by the `AsyncFd` alone, which is never taken apart, and
        // deregisters before it closes it.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Self(registered.map_err(|error| error.into_parts().1)?))
    }

    /// The next packet; `None` when the agent has gone. Cancel safe.
    pub(crate) async fn receive(&self) -> io::Result<Option<Packet>> {
        let packet = self
            .0
            .async_io(Interest::READABLE, |fd| receive(fd.as_raw_fd()))
            .await?;
        Ok((!packet.bytes.is_empty() || !packet.fds.is_empty()).then_some(packet))
    }

    /// Sends one packet.
    pub(crate) async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let flags = MsgFlags::MSG_NOSIGNAL;
        self.0
            .async_io(Interest::WRITABLE, |fd| {
                Ok(send(fd.as_raw_fd(), bytes, flags)?)
            })
            .await?;
        Ok(())
    }
}

/// One packet, as [`Packets::receive`] gives it; an empty one when the other side has gone.
pub(crate) fn receive(socket: RawFd) -> io::Result<Packet> {
    let mut bytes = vec![0; LARGEST];
    let mut control = nix::cmsg_space!([RawFd; MOST_FDS]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    // CLOEXEC at birth: no child of ours may inherit a pod's namespace.
    let received = recvmsg::<()>(
        socket,
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            // SAFETY: the kernel has just installed these descriptors into our table for this
            // message; nobody else knows their numbers, so each is ours to own, once.
            fds.extend(
                numbers
                    .into_iter()
                    .map(|number| unsafe { OwnedFd::from_raw_fd(number) }),
            );
        }
    }
    let truncated = received.flags.contains(MsgFlags::MSG_TRUNC);
    let length = received.bytes;
    bytes.truncate(length);
    Ok(Packet {
        bytes,
        fds,
        truncated,
    })
}

/// Both sides of the protocol read with buffers of this size; more is an error.
pub(crate) const LARGEST: usize = 1024;
/// One is right; room for as many as the kernel carries (`SCM_MAX_FD`), so that what should not
/// have come is at least closed.
const MOST_FDS: usize = 253;
