//! The socket between an elder and its successor: `AF_UNIX`, `SOCK_SEQPACKET`, one message a packet, descriptors beside it.
//!
//! Who may speak: root, and nobody else. The folder is root's alone, and the kernel says of each side who the other is.
//! Every wait has an end: nobody can hold up the other by being slow.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use super::bytes::Malformed;
use super::door;
use super::message::Message;
use crate::agent::packet;

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
        socket.connect(&SockAddr::unix(folder.join(door::NAME))?)?;
        Self::of(socket)
    }

    pub(super) fn of(socket: Socket) -> Result<Self, Trouble> {
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
                // It went without having read all; what it said before is still to be read, and then its end.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
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

/// It will be better in a moment.
pub(super) fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

/// Waits until `fd` is what `flags` say.
pub(super) fn until(
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

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;
    use std::thread;

    use super::super::door::Door;
    use super::super::message::Offer;
    use super::*;

    pub(in super::super) const SOON: Option<Duration> = Some(Duration::from_secs(10));

    pub(in super::super) fn folder() -> (tempfile::TempDir, PathBuf) {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("handover");
        (outer, folder)
    }

    fn both(folder: &Path) -> (Channel, Channel) {
        let door = Door::open(folder).unwrap();
        let there = Channel::connect(folder).unwrap();
        (door.accept(None, SOON).unwrap(), there)
    }

    #[test]
    fn what_is_said_arrives_with_its_descriptors_and_an_end_is_heard() {
        let (_outer, folder) = folder();
        let (here, there) = both(&folder);
        let (file, offer) = (
            tempfile::tempfile().unwrap(),
            Offer {
                id: 1,
                state: 2,
                sockets: 3,
            },
        );
        let fds = [file.as_fd(), file.as_fd()];
        there
            .send(&Message::Offer(offer), &fds, Duration::ZERO)
            .unwrap();
        let (message, fds) = here.receive(None, SOON).unwrap();
        assert_eq!((message, fds.len()), (Message::Offer(offer), 2));
        assert!(here.is_alive());
        drop(there);
        assert!(!here.is_alive());
        assert!(matches!(here.receive(None, SOON), Err(Trouble::Gone)));
    }

    #[test]
    fn the_last_words_of_one_that_was_killed_are_heard() {
        let (_outer, folder) = folder();
        let (here, there) = both(&folder);
        here.send(&Message::Busy, &[], Duration::ZERO).unwrap();
        there.send(&Message::Took(1), &[], Duration::ZERO).unwrap();
        there.send(&Message::Took(2), &[], Duration::ZERO).unwrap();
        drop(there);
        for id in [1, 2] {
            assert_eq!(here.receive(None, SOON).unwrap().0, Message::Took(id));
        }
        assert!(matches!(here.receive(None, SOON), Err(Trouble::Gone)));
    }

    #[test]
    fn nobody_waits_longer_than_he_wants_to_or_when_the_bell_rings() {
        let (_outer, folder) = folder();
        let (here, there) = both(&folder);
        let none = Some(Duration::ZERO);
        assert!(matches!(here.receive(None, none), Err(Trouble::Slow)));
        // One that does not read.
        let full = loop {
            if let Err(full) = there.send(&Message::Busy, &[], Duration::ZERO) {
                break full;
            }
        };
        assert!(matches!(full, Trouble::Slow));
        let (quiet, _there) = both(&folder);
        let bell = Bell::new().unwrap();
        let minute = Some(Duration::from_secs(60));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| quiet.receive(Some(&bell), minute));
            bell.ring();
            assert!(matches!(waiting.join().unwrap(), Err(Trouble::Stopped)));
        });
    }

    #[test]
    fn who_is_not_root_is_not_heard() {
        // Of this thread alone, which has no other work.
        #[allow(unsafe_code)]
        let other = || {
            // SAFETY: takes numbers; no memory of ours is touched, and no other thread's rights.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
            assert_eq!(changed, 0, "run it as root");
            Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap()
        };
        let (one, _other) = thread::spawn(other).join().unwrap();
        assert!(matches!(Channel::of(one), Err(Trouble::Stranger(65534))));
    }
}
