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

use std::io;
use std::path::{Path, PathBuf};

use super::objects::{Object, ObjectKey};

/// What happened to an object or a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The object is new or differs from before.
    Set(Object),
    /// The object is no longer there.
    Gone(ObjectKey),
    /// A document is refused. If an earlier version of its object is known, that one stays.
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
}

/// A watched directory.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Starts to watch `root`, which must exist. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the directory cannot be read or watched.
    pub fn open(root: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self {
            root: root.as_ref().to_owned(),
        })
    }

    /// The next batch of changes. The first call returns at once with everything there is, even
    /// if that is nothing; later calls wait until something changed. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Vec<Change> {
        let _ = &self.root;
        std::future::pending().await
    }

    /// The faults that stand now, in the order of files and lines.
    pub fn faults(&self) -> Vec<Fault> {
        Vec::new()
    }
}

/// Reads `root` once, without watching it: the objects, then the faults.
///
/// # Errors
/// When the directory cannot be read.
pub fn read(_root: &Path) -> io::Result<(Vec<Object>, Vec<Fault>)> {
    Ok((Vec::new(), Vec::new()))
}

/// Lays `patch` (RFC 7386) over the object `key` of the directory `root`, on top of what was laid
/// over it before. A `metadata.uid` in it is a precondition: an object with another uid (a
/// successor of the same name) is left alone. Blocking, atomic.
///
/// # Errors
/// When the file cannot be written.
pub fn patch_status(_root: &Path, _key: &ObjectKey, _patch: &serde_json::Value) -> io::Result<()> {
    Ok(())
}

/// Takes away whatever [`patch_status`] laid over the object `key`. Nothing there is fine.
///
/// # Errors
/// When the file cannot be removed.
pub fn clear_status(_root: &Path, _key: &ObjectKey) -> io::Result<()> {
    Ok(())
}
