//! Sockets of type `SOCK_SEQPACKET`: connected like a stream, but one write is one read, and a file
//! descriptor can ride along. tokio has none, so its readiness drives the system calls.
#![allow(unsafe_code)] // registering a socket with tokio promises something about its descriptor

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recvmsg, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for connections.
#[derive(Debug)]
pub(crate) struct Listener(AsyncFd<Socket>);

impl Listener {
    /// Binds `path`, in place of whatever socket was left there.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(BACKLOG)?;
        Ok(Self(watched(socket)?))
    }

    pub(crate) async fn accept(&self) -> io::Result<Connection> {
        let accept = |socket: &Socket| socket.accept();
        let (socket, _) = self.0.async_io(Interest::READABLE, accept).await?;
        Ok(Connection(watched(socket)?))
    }
}

/// One connection. Packets, not bytes, go in and out.
#[derive(Debug)]
pub(crate) struct Connection(AsyncFd<Socket>);

impl Connection {
    /// Sends one packet, and `passenger` with it.
    pub(crate) async fn send(
        &self,
        packet: &[u8],
        passenger: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let fds = passenger.map(|fd| [fd.as_raw_fd()]);
        let rights = fds.as_ref().map(|fds| [ControlMessage::ScmRights(fds)]);
        let control = rights.as_ref().map_or(&[][..], |rights| &rights[..]);
        let parts = [IoSlice::new(packet)];
        self.0
            .async_io(Interest::WRITABLE, |socket| {
                let flags = MsgFlags::MSG_NOSIGNAL;
                Ok(sendmsg::<UnixAddr>(
                    socket.as_raw_fd(),
                    &parts,
                    control,
                    flags,
                    None,
                )?)
            })
            .await
            .map(|_| ())
    }

    /// The next packet, or `None` when the peer is gone. A packet longer than `buffer` is an error.
    pub(crate) async fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut parts = [io::IoSliceMut::new(buffer)];
        let (length, cut) = self
            .0
            .async_io(Interest::READABLE, |socket| {
                let flags = MsgFlags::MSG_CMSG_CLOEXEC;
                let got = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, None, flags)?;
                Ok((got.bytes, got.flags.contains(MsgFlags::MSG_TRUNC)))
            })
            .await?;
        match (length, cut) {
            (_, true) => Err(Errno::EMSGSIZE.into()),
            (0, _) => Ok(None),
            (length, _) => Ok(Some(length)),
        }
    }
}

fn watched(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    socket.set_nonblocking(true)?;
    // SAFETY: the descriptor must be open and the same for as long as it is registered. `Socket` owns
    // its descriptor and cannot exchange it, and `AsyncFd` deregisters before it drops the socket.
    unsafe { AsyncFd::register(socket) }.map_err(Into::into)
}

/// Two or three ztunnels connect, during an upgrade.
const BACKLOG: i32 = 16;
