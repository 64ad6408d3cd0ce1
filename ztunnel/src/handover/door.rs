//! Where a successor knocks: a socket in a folder that is root's alone, by a name that the next one takes over.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::PollFlags;
use socket2::{Domain, SockAddr, Socket, Type};

use super::channel::{Bell, Channel, Trouble, is_passing, until};

/// Name of the socket in its folder.
pub(super) const NAME: &str = "handover.sock";

/// Where a successor knocks.
#[derive(Debug)]
pub(super) struct Door {
    socket: Socket,
    name: Name,
}

/// The name that a door had, or has: the next one takes it over.
#[derive(Debug, Clone)]
pub(super) struct Name {
    path: PathBuf,
    /// Device and inode, by which it is told from another's.
    id: (u64, u64),
}

impl Name {
    fn of(path: PathBuf, at: &Path) -> io::Result<Self> {
        let id = id(at)?;
        Ok(Self { path, id })
    }

    /// Nobody has taken it over.
    pub(super) fn is_ours(&self) -> bool {
        id(&self.path).is_ok_and(|id| id == self.id)
    }

    /// There is no such name: whoever had taken it over has gone.
    pub(super) fn is_nobodys(&self) -> bool {
        let found = fs::symlink_metadata(&self.path);
        found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// The process ends. Said while the channel to a successor stands: it takes the name only after that.
    pub(super) fn remove(&self) {
        if self.is_ours() {
            // Left behind, nobody would be found there.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Door {
    /// Takes the folder's name over, from nobody or from one that is no more.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        own(folder)?;
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)?;
        // In one step, so that nobody who knocks finds nothing or half of it.
        let fresh = folder.join(format!("{NAME}.{:016x}", crate::headers::random()));
        let opened = (|| -> io::Result<Name> {
            socket.bind(&SockAddr::unix(&fresh)?)?;
            socket.listen(4)?;
            let name = Name::of(folder.join(NAME), &fresh)?;
            fs::rename(&fresh, &name.path)?;
            Ok(name)
        })();
        if opened.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        opened.map(|name| Self { socket, name })
    }

    pub(super) fn name(&self) -> &Name {
        &self.name
    }

    /// The next one who knocks.
    pub(super) fn accept(
        &self,
        bell: Option<&Bell>,
        patience: Option<Duration>,
    ) -> Result<Channel, Trouble> {
        loop {
            until(Some(self.socket.as_fd()), PollFlags::POLLIN, bell, patience)?;
            match self.socket.accept() {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::channel::tests::{SOON, folder};
    use super::*;

    #[test]
    fn a_folder_that_others_may_enter_is_not_used() {
        let (outer, folder) = folder();
        Door::open(&folder).unwrap();
        let mode = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode));
        mode(0o750).unwrap();
        Door::open(&folder).unwrap_err();
        mode(0o700).unwrap();
        let link = outer.path().join("link");
        symlink(&folder, &link).unwrap();
        Door::open(&link).unwrap_err();
    }

    #[test]
    fn the_name_goes_to_the_next_one_and_nobody_is_there_when_he_has_gone() {
        let (_outer, folder) = folder();
        assert!(Channel::connect(&folder).is_err());
        let first = Door::open(&folder).unwrap();
        let second = Door::open(&folder).unwrap();
        let _knock = Channel::connect(&folder).unwrap();
        second.accept(None, SOON).unwrap();
        assert!(matches!(
            first.accept(None, Some(Duration::ZERO)),
            Err(Trouble::Slow)
        ));
        drop(second);
        assert!(Channel::connect(&folder).is_err());
    }

    #[test]
    fn a_name_is_taken_along_unless_it_is_the_next_ones() {
        let (_outer, folder) = folder();
        let first = Door::open(&folder).unwrap();
        assert!(first.name().is_ours());
        let second = Door::open(&folder).unwrap();
        assert!(!first.name().is_ours() && !first.name().is_nobodys());
        first.name().remove();
        let _knock = Channel::connect(&folder).unwrap();
        second.accept(None, SOON).unwrap();
        second.name().remove();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert!(first.name().is_nobodys() && !first.name().is_ours());
        // Nothing is left to remove, and nothing happens.
        second.name().remove();
    }
}
