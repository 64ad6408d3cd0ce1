//! A directory of YAML that stands in for an API server.
//!
//! Enters: `*.yaml`, `*.yml` and `*.json` below a directory, and the status mirror in its folder
//! `.status`. Leaves: batches of [`Change`].
//!
//! 1. read everything once                      ([`Directory::open`], the first [`Directory::next`])
//! 2. wait for the kernel to name what changed  (`watch`)
//! 3. read just those files again               (`files`)
//! 4. lay the status mirror over the objects    (`status`)
//! 5. hand out what differs from before

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::aim::Aim;
use super::files::Files;
use super::objects::{Object, ObjectKey};
use super::status;
use super::watch::{self, Watch};

/// What happened to an object or a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The object is new or differs from before.
    Set(Object),
    /// The object is no longer there.
    Gone(ObjectKey),
    /// A document is refused. If an earlier version of its object is known, that one stays. Once it
    /// is mended, the object is set again, even to what it was, or gone.
    Invalid(Fault),
}

/// Why a document was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// The line of the failing field, or of the document if that is all there is to know; from 1.
    pub line: usize,
    /// The object, if the document said so much.
    pub object: Option<ObjectKey>,
    /// What is wrong.
    pub reason: String,
    /// If it is an AuthorizationPolicy: whom it is about nevertheless.
    pub aim: Option<Aim>,
}

/// A watched directory.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    files: Files,
    watch: Watch,
    /// Paths below the root that must be looked at.
    pending: BTreeSet<PathBuf>,
    first: bool,
}

impl Directory {
    /// Reads `root`, which must exist, and watches it. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the directory cannot be read or watched.
    pub fn open(root: impl AsRef<Path>) -> io::Result<Self> {
        let root = root.as_ref().to_owned();
        let mut watch = Watch::new(&root)?;
        let mut files = Files::new(&root);
        let mut found = BTreeSet::new();
        watch.enter(Path::new(""), &mut found)?;
        found.iter().for_each(|file| files.look(file));
        Ok(Self {
            root,
            files,
            watch,
            pending: BTreeSet::new(),
            first: true,
        })
    }

    /// The next batch of changes. The first call returns at once with everything there is, even
    /// if that is nothing; later calls wait until something changed. An empty batch then says that
    /// a fault is over ([`Directory::faults`]). Dropping the future loses nothing.
    ///
    /// If the directory itself is taken away, what was known stays, as it would while an API
    /// server is down, until the directory is back.
    pub async fn next(&mut self) -> Vec<Change> {
        if std::mem::take(&mut self.first) {
            let everything = self.files.drain();
            self.files.take_faults_moved();
            return everything;
        }
        loop {
            if let Err(error) = self.wait().await {
                tracing::warn!(directory = %self.root.display(), %error, "watching failed; looking at everything again");
                self.watch.forget(Path::new(""));
                tokio::time::sleep(ABSENT).await;
            }
            self.settle();
            let changes = self.files.drain();
            if self.files.take_faults_moved() || !changes.is_empty() {
                return changes;
            }
        }
    }

    /// The faults that stand now, in the order of files and lines.
    pub fn faults(&self) -> Vec<Fault> {
        self.files.faults()
    }

    /// Waits until something is pending and the writers have paused.
    async fn wait(&mut self) -> io::Result<()> {
        if !self.watch.is_rooted() {
            tokio::time::sleep(ABSENT).await;
            self.pending.insert(PathBuf::new());
            return Ok(());
        }
        while self.pending.is_empty() {
            self.watch.wait(&mut self.pending).await?;
        }
        let end = Instant::now() + LONGEST;
        while let Ok(more) = tokio::time::timeout(
            QUIET.min(end - Instant::now()),
            self.watch.wait(&mut self.pending),
        )
        .await
        {
            more?;
        }
        Ok(())
    }

    /// Looks at what is pending. First what left, then what came: a folder that was moved within
    /// the tree is the same to the kernel, and forgetting its old place must not undo the new.
    fn settle(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let mut files = BTreeSet::new();
        let (folders, rest): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|path| self.is_folder(path));
        for path in rest {
            if path.as_os_str().is_empty() {
                self.watch.forget(&path);
                tracing::warn!(directory = %self.root.display(), "the directory is gone; what was known stays");
                continue;
            }
            self.watch.forget(&path);
            files.extend(self.files.known_below(&path));
            files.insert(path);
        }
        for folder in folders {
            files.extend(self.files.known_below(&folder));
            if let Err(error) = self.watch.enter(&folder, &mut files) {
                tracing::warn!(folder = %self.root.join(&folder).display(), %error, "cannot be watched");
            }
        }
        files.iter().for_each(|file| self.files.look(file));
    }

    fn is_folder(&self, path: &Path) -> bool {
        std::fs::symlink_metadata(self.root.join(path))
            .is_ok_and(|metadata| metadata.is_dir() || path.as_os_str().is_empty())
    }
}

/// Writers of many files pause less than this between two.
const QUIET: Duration = Duration::from_millis(20);
/// A writer that never pauses is not waited for longer.
const LONGEST: Duration = Duration::from_millis(200);
/// How often a directory that is gone is looked for.
const ABSENT: Duration = Duration::from_millis(500);

/// Reads `root` once, without watching it: the objects, then the faults.
///
/// # Errors
/// When the directory cannot be read.
pub fn read(root: &Path) -> io::Result<(Vec<Object>, Vec<Fault>)> {
    let mut found = BTreeSet::new();
    watch::files_below(root, Path::new(""), &mut found)?;
    let mut files = Files::new(root);
    found.iter().for_each(|file| files.look(file));
    let objects = files.drain().into_iter().filter_map(|change| match change {
        Change::Set(object) => Some(object),
        Change::Gone(_) | Change::Invalid(_) => None,
    });
    Ok((objects.collect(), files.faults()))
}

/// Lays `patch` (RFC 7386) over the object `key` of the directory `root`, on top of what was laid
/// over it before. A `metadata.uid` in it is a precondition: an object with another uid (a
/// successor of the same name) is left alone. Blocking, atomic, safe beside other writers.
///
/// # Errors
/// When the file cannot be written, or the patch is not a map.
pub fn patch_status(root: &Path, key: &ObjectKey, patch: &serde_json::Value) -> io::Result<()> {
    status::patch(root, key, patch)
}

/// What [`patch_status`] laid over the object `key` so far, if anything.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn status(root: &Path, key: &ObjectKey) -> io::Result<Option<serde_json::Value>> {
    status::read(root, key)
}

/// Takes away whatever [`patch_status`] laid over the object `key`. Nothing there is fine.
///
/// # Errors
/// When the file cannot be removed.
pub fn clear_status(root: &Path, key: &ObjectKey) -> io::Result<()> {
    status::clear(root, key)
}

#[cfg(test)]
mod tests;
