//! Which paths below a directory must be looked at again, as the kernel tells it.
//!
//! Enters: inotify events. Leaves: paths below the root, files and folders alike; looking at one
//! finds out whether it is new, changed or gone, so an event need not be believed in detail.
//!
//! A file counts as written when its writer closed it or moved it into place, never while it is
//! being written.
#![allow(unsafe_code)] // one block: tokio asks for a promise about the file descriptor

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::status;

/// The watched folders.
#[derive(Debug)]
pub(super) struct Watch {
    kernel: AsyncFd<Kernel>,
    root: PathBuf,
    folders: HashMap<WatchDescriptor, PathBuf>,
    descriptors: BTreeMap<PathBuf, WatchDescriptor>,
}

#[derive(Debug)]
struct Kernel(Inotify);

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Kernel {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Watch {
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: `Kernel` owns its descriptor, gives out the same one each time, and keeps it open
        // until it is dropped, which happens after tokio let go of it.
        let kernel =
            unsafe { AsyncFd::register_with_interest(Kernel(inotify), Interest::READABLE)? };
        Ok(Self {
            kernel,
            root: root.to_owned(),
            folders: HashMap::new(),
            descriptors: BTreeMap::new(),
        })
    }

    /// Whether the root itself is being watched; not after it was removed or moved away.
    pub(super) fn is_rooted(&self) -> bool {
        self.descriptors.contains_key(Path::new(""))
    }

    /// Waits for events and adds the paths they name to `pending`. Losing the future loses
    /// nothing.
    pub(super) async fn wait(&mut self, pending: &mut BTreeSet<PathBuf>) -> io::Result<()> {
        loop {
            let mut guard = self.kernel.readable().await?;
            let events = match guard.get_inner().0.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => {
                    guard.clear_ready();
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            drop(guard);
            for event in events {
                self.take(event, pending);
            }
            return Ok(());
        }
    }

    fn take(&mut self, event: InotifyEvent, pending: &mut BTreeSet<PathBuf>) {
        // Events were lost: look at everything.
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            pending.insert(PathBuf::new());
            return;
        }
        let Some(folder) = self.folders.get(&event.wd).cloned() else {
            return;
        };
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.folders.remove(&event.wd);
            if self.descriptors.get(&folder) == Some(&event.wd) {
                self.descriptors.remove(&folder);
            }
            return;
        }
        if event
            .mask
            .intersects(AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF)
        {
            pending.insert(folder);
            return;
        }
        let Some(name) = event.name else { return };
        // A mounted ConfigMap changes by swapping the link `..data` that all its files go through.
        if name == "..data" {
            pending.insert(folder);
            return;
        }
        let path = folder.join(name);
        let is_folder = event.mask.contains(AddWatchFlags::IN_ISDIR);
        let only_created = event.mask.contains(AddWatchFlags::IN_CREATE) && !is_folder;
        if !(is_folder && is_wanted_folder(&path) || is_wanted_file(&path))
            || only_created && self.is_being_written(&path)
        {
            return;
        }
        pending.insert(path);
    }

    /// A new file with one name will be closed by its writer; a link to something older will not.
    fn is_being_written(&self, path: &Path) -> bool {
        std::fs::symlink_metadata(self.root.join(path))
            .is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
    }

    /// Stops watching a folder, and those below, that is no longer where it was.
    pub(super) fn forget(&mut self, path: &Path) {
        let below: Vec<PathBuf> = self
            .descriptors
            .range(path.to_owned()..)
            .map(|(folder, _)| folder.clone())
            .take_while(|folder| folder.starts_with(path))
            .collect();
        for folder in below {
            if let Some(descriptor) = self.descriptors.remove(&folder) {
                self.drop_watch(descriptor);
            }
        }
    }

    fn drop_watch(&mut self, descriptor: WatchDescriptor) {
        self.folders.remove(&descriptor);
        // It fails if the kernel forgot it first, which is what we want.
        let _ = self.kernel.get_ref().0.rm_watch(descriptor);
    }

    /// Watches a folder and all below, and adds the files there to `files`. Watching comes first:
    /// a file that appears meanwhile is then named twice rather than never.
    pub(super) fn enter(&mut self, folder: &Path, files: &mut BTreeSet<PathBuf>) -> io::Result<()> {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let descriptor = self
            .kernel
            .get_ref()
            .0
            .add_watch(&self.root.join(folder), flags)?;
        // The folder had another name before, or the name another folder.
        if let Some(before) = self.folders.insert(descriptor, folder.to_owned()) {
            self.descriptors.remove(&before);
        }
        if let Some(before) = self.descriptors.insert(folder.to_owned(), descriptor)
            && before != descriptor
        {
            self.drop_watch(before);
        }
        let mut folders = Vec::new();
        list(&self.root, folder, &mut folders, files)?;
        for folder in folders {
            match self.enter(&folder, files) {
                // Gone again: the event that says so is on its way.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) => {}
                result => result?,
            }
        }
        Ok(())
    }
}

/// Files below `folder`, recursively, without watching.
pub(super) fn files_below(
    root: &Path,
    folder: &Path,
    files: &mut BTreeSet<PathBuf>,
) -> io::Result<()> {
    let mut folders = Vec::new();
    list(root, folder, &mut folders, files)?;
    folders
        .iter()
        .try_for_each(|folder| files_below(root, folder, files))
}

fn list(
    root: &Path,
    folder: &Path,
    folders: &mut Vec<PathBuf>,
    files: &mut BTreeSet<PathBuf>,
) -> io::Result<()> {
    for entry in std::fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        // Links to folders are not followed: they may lead in a circle.
        if entry.file_type()?.is_dir() {
            if is_wanted_folder(&path) {
                folders.push(path);
            }
        } else if is_wanted_file(&path)
            && std::fs::metadata(root.join(&path)).is_ok_and(|metadata| metadata.is_file())
        {
            files.insert(path);
        }
    }
    Ok(())
}

fn is_wanted_folder(path: &Path) -> bool {
    path == Path::new(status::FOLDER) || !is_hidden(path)
}

fn is_wanted_file(path: &Path) -> bool {
    !is_hidden(path)
        && path
            .extension()
            .is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}
