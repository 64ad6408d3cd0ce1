//! The socket between an elder and its successor: `AF_UNIX`, `SOCK_SEQPACKET`, one message a packet, descriptors beside it.
//!
//! Who may speak: root, and nobody else. The folder is root's alone, and the kernel says of each side who the other is.
//! Every wait has an end: nobody can hold up the other by being slow.

use std::fs::{self, DirBuilder};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use super::bytes::Malformed;
use super::message::Message;
use crate::agent::packet;

/// Name of the socket in its folder.
const NAME: &str = "handover.sock";

/// Why nothing can be said to the other side, or heard.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("the other side is gone")]
    Gone,
    #[error("no answer in time")]
    Slow,
    #[error("this process is stopping")]
    Stopped,
    #[error("the other side is not root but user {0}")]
    Stranger(u32),
    #[error("the other side broke the protocol: {0}")]
    Protocol(#[from] Malformed),
    #[error("the other side broke the protocol: {0}")]
    Unexpected(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Ends every wait, once and for ever.
#[derive(Debug)]
pub(super) struct Bell(EventFd);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(EventFd::from_value_and_flags(0, flags)?))
    }

    pub(super) fn ring(&self) {
        // Full is rung.
        let _ = self.0.write(1);
    }

    pub(super) fn has_rung(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits; true when it rang.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        matches!(
            until(None, PollFlags::POLLIN, Some(self), Some(patience)),
            Err(Trouble::Stopped)
        )
    }
}

/// A connection to the other side.
#[derive(Debug)]
pub(super) struct Channel(Socket);

impl Channel {
    /// Connects to whoever has the folder.
    pub(super) fn connect(folder: &Path) -> Result<Self, Trouble> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)?;
        socket.connect(&SockAddr::unix(folder.join(NAME))?)?;
        Self::of(socket)
    }

    fn of(socket: Socket) -> Result<Self, Trouble> {
        socket.set_nonblocking(true)?;
        let other = getsockopt(&socket, sockopt::PeerCredentials).map_err(io::Error::from)?;
        match other.uid() {
            0 => Ok(Self(socket)),
            uid => Err(Trouble::Stranger(uid)),
        }
    }

    /// Sends a message and what belongs to it, within `patience`.
    pub(super) fn send(
        &self,
        message: &Message,
        fds: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<(), Trouble> {
        let bytes = message.write();
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let end = Instant::now() + patience;
        loop {
            let slices = [IoSlice::new(&bytes)];
            let sent = sendmsg::<()>(
                self.0.as_raw_fd(),
                &slices,
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            match sent {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let left = end.saturating_duration_since(Instant::now());
                    until(Some(self.0.as_fd()), PollFlags::POLLOUT, None, Some(left))?;
                }
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(Trouble::Gone),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    /// The next message, and what came with it.
    pub(super) fn receive(
        &self,
        bell: Option<&Bell>,
        patience: Option<Duration>,
    ) -> Result<(Message, Vec<OwnedFd>), Trouble> {
        let end = patience.map(|patience| Instant::now() + patience);
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            until(Some(self.0.as_fd()), PollFlags::POLLIN, bell, left)?;
            let packet = match packet::receive(self.0.as_raw_fd()) {
                Ok(packet) => packet,
                Err(error) if is_passing(&error) => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(Trouble::Gone);
                }
                Err(error) => return Err(error.into()),
            };
            if packet.bytes.is_empty() && packet.fds.is_empty() {
                return Err(Trouble::Gone);
            }
            if packet.truncated {
                return Err(Trouble::Unexpected("a message that is too long"));
            }
            return Ok((Message::read(&packet.bytes)?, packet.fds));
        }
    }

    /// Whether the other side has not gone. What it has said is left.
    pub(super) fn is_alive(&self) -> bool {
        let mut byte = [0];
        let seen = nix::sys::socket::recv(
            self.0.as_raw_fd(),
            &mut byte,
            MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
        );
        !matches!(seen, Ok(0)) && !matches!(seen, Err(Errno::ECONNRESET))
    }

    /// Waits until the other side speaks, which it should not, or goes; or until the time is over.
    pub(super) fn wait(&self, bell: &Bell, patience: Duration) -> Result<(), Trouble> {
        until(
            Some(self.0.as_fd()),
            PollFlags::POLLIN,
            Some(bell),
            Some(patience),
        )
    }
}

/// Where a successor knocks.
#[derive(Debug)]
pub(super) struct Door(Socket);

impl Door {
    /// Takes the folder's name over, from nobody or from one that is no more.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        own(folder)?;
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)?;
        // In one step, so that nobody who knocks finds nothing or half of it.
        let fresh = folder.join(format!("{NAME}.{:016x}", crate::headers::random()));
        let opened = (|| {
            socket.bind(&SockAddr::unix(&fresh)?)?;
            socket.listen(4)?;
            fs::rename(&fresh, folder.join(NAME))
        })();
        if opened.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        opened.map(|()| Self(socket))
    }

    /// The next one who knocks.
    pub(super) fn accept(
        &self,
        bell: Option<&Bell>,
        patience: Option<Duration>,
    ) -> Result<Channel, Trouble> {
        loop {
            until(Some(self.0.as_fd()), PollFlags::POLLIN, bell, patience)?;
            match self.0.accept() {
                Ok((socket, _)) => return Channel::of(socket),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Makes the folder, or looks whether it is what we would have made.
fn own(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(folder)?;
    match found.is_dir() && found.uid() == 0 && found.mode() & 0o077 == 0 {
        true => Ok(()),
        false => Err(io::Error::other("the folder is not root's alone")),
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

/// Waits until `fd` is what `flags` say.
fn until(
    fd: Option<BorrowedFd<'_>>,
    flags: PollFlags,
    bell: Option<&Bell>,
    patience: Option<Duration>,
) -> Result<(), Trouble> {
    let end = patience.map(|patience| Instant::now() + patience);
    loop {
        let bell = bell.map(|bell| PollFd::new(bell.0.as_fd(), PollFlags::POLLIN));
        let fd = fd.map(|fd| PollFd::new(fd, flags));
        let (rings, speaks) = (bell.is_some(), fd.is_some());
        let mut fds: Vec<PollFd<'_>> = bell.into_iter().chain(fd).collect();
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            // Up to a whole millisecond: one that is over early would be asked for again and again.
            let millis = left.as_micros().div_ceil(1000);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(Trouble::Slow),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
            Ok(_) => {}
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        if rings && ready(&fds[0]) {
            return Err(Trouble::Stopped);
        }
        if speaks && fds.last().is_some_and(ready) {
            return Ok(());
        }
    }
}
