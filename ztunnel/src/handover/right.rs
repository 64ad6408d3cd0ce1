//! The right to go on with a connection, which one of two processes gets, once.
//!
//! It lies in the kernel: a counter that holds 1 and that both processes have. Reading takes the 1 away, so whoever reads
//! it first goes on, and the other knows that it must not, ever. This holds whoever is slow, killed at whatever moment, or wrong
//! about the other; no message, no clock and no proof of death is needed. What one has taken and does not go on with (it
//! was killed) is lost, as with any process that is killed; it is never carried twice.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// One process's hold of a right.
#[derive(Debug)]
pub(super) struct Right(OwnedFd);

impl Right {
    /// Nobody has taken it.
    pub(super) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(EventFd::from_value_and_flags(1, flags)?.into()))
    }

    /// One that another process made.
    pub(super) fn received(fd: OwnedFd) -> io::Result<Self> {
        // Nobody may wait in `take`, whatever it is that came.
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(fd))
    }

    /// Takes it; false when the other has.
    ///
    /// # Errors
    /// When it cannot be known. Then nobody here may go on.
    pub(super) fn take(&self) -> io::Result<bool> {
        let mut count = [0; 8];
        match nix::unistd::read(&self.0, &mut count) {
            Ok(8) if u64::from_ne_bytes(count) == 1 => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Right {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    fn both() -> (Right, Right) {
        let elder = Right::new().unwrap();
        let fd = elder.as_fd().try_clone_to_owned().unwrap();
        (elder, Right::received(fd).unwrap())
    }

    #[test]
    fn whoever_is_first_has_it_and_nobody_after() {
        let (elder, successor) = both();
        assert!(successor.take().unwrap());
        assert!(!elder.take().unwrap() && !successor.take().unwrap());
    }

    #[test]
    fn it_outlives_the_other_and_is_not_given_back_by_its_end() {
        let (elder, successor) = both();
        drop(elder);
        assert!(successor.take().unwrap());
        let (elder, successor) = both();
        assert!(successor.take().unwrap());
        drop(successor);
        assert!(!elder.take().unwrap());
    }

    #[test]
    fn of_two_at_the_same_moment_one_has_it() {
        for _ in 0..2000 {
            let (elder, successor) = both();
            let start = Barrier::new(2);
            let race = |right: &Right| {
                start.wait();
                right.take().unwrap()
            };
            let (one, other) = thread::scope(|scope| {
                let one = scope.spawn(|| race(&elder));
                (race(&successor), one.join().unwrap())
            });
            assert!(one ^ other);
        }
    }

    #[test]
    fn what_is_no_right_gives_none() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        assert!(!Right::received(read).unwrap().take().unwrap());
        let file = tempfile::tempfile().unwrap();
        assert!(Right::received(file.into()).unwrap().take().is_err());
    }
}
