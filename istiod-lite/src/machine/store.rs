//! Where the book of machines is kept: files beside the token key, one a machine and one a token that was used.
//!
//! Each is read when it is asked for, so whoever changes them (`istiod-lite vm remove`, another process on the same
//! state) is heeded at once. A token is claimed by making its file: of two that come at once, one makes it.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Machine;
use crate::disk;
use crate::token::now;

/// The book.
#[derive(Debug, Clone)]
pub struct Store {
    machines: PathBuf,
    tokens: PathBuf,
}

/// The first use of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Use {
    /// The key that has it now.
    pub key: String,
    /// `namespace/name`
    pub machine: String,
    /// Who came.
    pub from: IpAddr,
    /// When, in seconds since 1970.
    pub at: u64,
    /// The token's own end, in seconds since 1970.
    pub until: u64,
}

impl Store {
    /// Below this state directory.
    pub fn directory(state: &Path) -> Self {
        Self {
            machines: state.join("machines"),
            tokens: state.join("join-tokens"),
        }
    }

    /// Notes that a token is used; who used it before, if anybody has.
    ///
    /// # Errors
    /// When that cannot be read or written: then nobody has joined.
    pub async fn claim(&self, jti: &str, first: &Use) -> io::Result<Option<Use>> {
        let (folder, first) = (self.tokens.clone(), first.clone());
        let path = file(&folder, jti)?;
        aside(move || {
            sweep(&folder);
            if disk::create(&path, &json(&first)?, disk::SECRET)? {
                return Ok(None);
            }
            let earlier = read(&path)?;
            earlier
                .map(Some)
                .ok_or_else(|| io::Error::other("a used token was forgotten meanwhile"))
        })
        .await
    }

    /// The machine of that name, also one that was taken out.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub async fn machine(&self, namespace: &str, name: &str) -> io::Result<Option<Machine>> {
        let path = self.path(namespace, name)?;
        aside(move || read(&path)).await
    }

    /// Writes a machine into the book, over an earlier one of that name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn put(&self, machine: &Machine) -> io::Result<()> {
        let path = self.path(&machine.join.namespace, &machine.join.name)?;
        let text = json(machine)?;
        aside(move || disk::replace(&path, &text, disk::SECRET)).await
    }

    /// All machines that were not taken out, by name.
    ///
    /// # Errors
    /// When one cannot be read.
    pub async fn list(&self) -> io::Result<Vec<Machine>> {
        let folder = self.machines.clone();
        aside(move || {
            let mut machines: Vec<Machine> = Vec::new();
            for path in files(&folder) {
                machines.extend(read::<Machine>(&path)?);
            }
            machines.retain(|machine| machine.ended.is_none());
            machines.sort_by_key(Machine::reference);
            Ok(machines)
        })
        .await
    }

    fn path(&self, namespace: &str, name: &str) -> io::Result<PathBuf> {
        // A namespace has no dot: the first one ends it.
        if namespace.contains('.') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        file(&self.machines, &format!("{namespace}.{name}"))
    }
}

/// The file of that name; only of a name that leads nowhere else.
fn file(folder: &Path, name: &str) -> io::Result<PathBuf> {
    if !super::is_name(name) {
        let text = format!("{name:?} is no name");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(folder.join(format!("{name}.json")))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|it| it == "json"))
        .collect()
}

/// Tokens that have expired need no more be known as used.
fn sweep(folder: &Path) {
    for path in files(folder) {
        if let Ok(Some(old)) = read::<Use>(&path)
            && old.until.saturating_add(MARGIN) < now()
        {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(text) = disk::read_if_any(path)? else {
        return Ok(None);
    };
    let at = |error| io::Error::other(format!("{}: {error}", path.display()));
    serde_json::from_str(&text).map(Some).map_err(at)
}

fn json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(io::Error::other)
}

async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// Longer than any clock is set back by mistake.
const MARGIN: u64 = 7 * 24 * 3600;
