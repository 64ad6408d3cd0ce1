//! Which labs exist, whose they are, and how one is removed whatever happened to its owner.
//!
//! ```text
//! /run/ambit-lab/.lock         held while labs are made or looked through
//! /run/ambit-lab/<id>/         everything a lab writes; <id> is in the name of each of its namespaces
//! /run/ambit-lab/<id>/owner    locked by the owner as long as it lives: a lock that can be had means the owner is gone
//! /run/ambit-lab/<id>/keep     the lab failed: its namespaces are gone, its logs stay until `lab clean`
//! ```
//! Three roads lead to [`sweep`]: the owner stops its lab; the owner dies and its reaper (a child with the
//! other end of a pipe) sees the pipe close; neither was possible and the next lab, or `lab clean`, finds the lock free.

use std::{
    collections::BTreeSet,
    fmt, fs,
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{netns::Netns, plan::PREFIX, wait};

/// On a tmpfs that only root may write; short, because unix socket paths end at 107 bytes.
const ROOT: &str = "/run/ambit-lab";

/// The place of one lab, and the claim to it; given back on drop.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    reaper: Mutex<Option<Child>>,
    given_back: AtomicBool,
    /// Never read: the lock on it says that we live.
    _owner: File,
}

impl Claim {
    /// Claims a new id, makes its directory, and starts its reaper, the binary `lab`, where it is given and there.
    pub(crate) fn take(lab: Option<&Path>) -> Result<Self> {
        let _all = lock_all()?;
        let (id, dir) = unused();
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let owner = File::create(dir.join("owner"))?;
        owner.lock()?;
        let reaper = match lab {
            Some(lab) => Mutex::new(reaper(lab, &id)?),
            None => Mutex::default(),
        };
        live().push((id.clone(), dir.clone()));
        Ok(Self {
            id,
            dir,
            reaper,
            given_back: AtomicBool::new(false),
            _owner: owner,
        })
    }

    /// Keeps the logs, now or when the lab is given back.
    pub(crate) fn keep_logs(&self, keep: bool) {
        let mark = self.dir.join("keep");
        let _ = if keep {
            File::create(mark).map(drop)
        } else {
            fs::remove_file(mark)
        };
    }

    /// Removes the lab: at most once.
    pub(crate) fn give_back(&self) -> Result<()> {
        if self.given_back.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        live().retain(|(id, _)| *id != self.id);
        sweep(&self.id)?;
        if !self.dir.join("keep").exists() {
            remove(&self.dir)?;
        }
        let reaper = self
            .reaper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut reaper) = reaper {
            if let Some(mut word) = reaper.stdin.take() {
                let _ = word.write_all(b"q");
            }
            reaper.wait()?;
        }
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = self.give_back();
    }
}

/// Removes every lab of this process, from any thread, for a process that ends right after: what other threads
/// still make in the meantime is left to the reaper, which is not sent away.
pub fn remove_all() -> Result<()> {
    for (id, dir) in live().clone() {
        // Another thread may be making a pod, or removing the lab as we do: whoever meets the other's half-done work
        // begins again.
        wait::until(
            &format!("the removal of lab {id}"),
            Duration::from_secs(60),
            || match sweep(&id).and_then(|_| remove(&dir)) {
                Ok(()) => Ok(wait::Probe::Ready(())),
                Err(error) => Ok(wait::Probe::NotYet(format!("{error:#}"))),
            },
        )?;
    }
    Ok(())
}

/// The labs of this process.
fn live() -> MutexGuard<'static, Vec<(String, PathBuf)>> {
    static LIVE: Mutex<Vec<(String, PathBuf)>> = Mutex::new(Vec::new());
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `lab reap`, out of reach of our terminal's Ctrl-C. Without the binary the next lab cleans up.
fn reaper(lab: &Path, id: &str) -> Result<Option<Child>> {
    if !lab.exists() {
        return Ok(None);
    }
    let mut command = Command::new(lab);
    command
        .args(["reap", id])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    Ok(Some(command.spawn().context("starting the reaper")?))
}

/// An id that nothing bears.
fn unused() -> (String, PathBuf) {
    let mut seed = seed();
    loop {
        let id = spell_id(seed);
        let dir = Path::new(ROOT).join(&id);
        if !dir.exists() && Netns::named(&format!("{PREFIX}{id}-")).is_empty() {
            return (id, dir);
        }
        seed = seed.wrapping_add(1);
    }
}

/// What [`clean`] did.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// Labs whose owners are gone: removed.
    pub removed: Vec<Removed>,
    /// Labs whose owners live: left alone.
    pub alive: Vec<String>,
}

/// A lab that is no more.
#[derive(Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its id.
    pub id: String,
    /// How many namespaces it had left.
    pub namespaces: usize,
    /// How many processes still ran in them.
    pub processes: usize,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            namespaces,
            processes,
        } = self;
        write!(
            f,
            "lab {id}: network namespaces {namespaces}, processes {processes}, and its files"
        )
    }
}

/// Removes every lab whose owner is gone; also their kept logs when `logs`.
pub fn clean(logs: bool) -> Result<Cleaned> {
    let _all = lock_all()?;
    let mut cleaned = Cleaned::default();
    for id in ids()? {
        let dir = Path::new(ROOT).join(&id);
        let _owner = match claimed(&dir)? {
            Some(owner) => owner,
            None => {
                cleaned.alive.push(id);
                continue;
            }
        };
        let removed = sweep(&id)?;
        if logs || !dir.join("keep").exists() {
            remove(&dir)?;
            cleaned.removed.push(removed);
        }
    }
    Ok(cleaned)
}

/// Ends every process that lives in a namespace of lab `id`, then removes the namespaces.
///
/// Processes are found by where they are, not by who started them: a database's workers outlive their killed
/// parent, but they cannot leave the namespace, and only what a lab started can be inside of one.
fn sweep(id: &str) -> Result<Removed> {
    let prefix = format!("{PREFIX}{id}-");
    let mut ended = BTreeSet::new();
    wait::until(
        &format!("the end of what runs in lab {id}"),
        Duration::from_secs(60),
        || {
            let alive: Vec<i32> = Netns::named(&prefix)
                .iter()
                .flat_map(Netns::processes)
                .filter(|pid| runs(*pid))
                .collect();
            for pid in &alive {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                ended.insert(*pid);
            }
            Ok(if alive.is_empty() {
                wait::Probe::Ready(())
            } else {
                wait::Probe::NotYet(format!("processes {alive:?}"))
            })
        },
    )?;
    let namespaces = Netns::named(&prefix);
    namespaces.iter().try_for_each(Netns::delete)?;
    Ok(Removed {
        id: id.to_owned(),
        namespaces: namespaces.len(),
        processes: ended.len(),
    })
}

/// Removes what a lab wrote.
fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The reaper's whole life: wait for the owner's word or end, and in the latter case clean up after it.
pub(crate) fn reap(id: &str) -> Result<()> {
    let mut word = [0u8; 1];
    if std::io::stdin().read(&mut word)? == 1 {
        return Ok(());
    }
    // The owner's programs die with it (PR_SET_PDEATHSIG), its lock with its last file descriptor.
    let _all = lock_all()?;
    let dir = Path::new(ROOT).join(id);
    if !dir.exists() {
        return Ok(());
    }
    sweep(id)?;
    remove(&dir)
}

/// The owner's lock if its owner is gone; `None` when it lives.
fn claimed(dir: &Path) -> Result<Option<File>> {
    let file = match OpenOptions::new()
        .read(true)
        .write(true)
        .open(dir.join("owner"))
    {
        Ok(file) => file,
        // Made and locked under the lock we hold: a directory without one, or no directory, has no owner.
        Err(_) => return Ok(Some(File::open("/dev/null")?)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).context("locking"),
    }
}

fn lock_all() -> Result<File> {
    fs::create_dir_all(ROOT).with_context(|| format!("making {ROOT}; a lab needs root"))?;
    let lock = File::create(Path::new(ROOT).join(".lock"))?;
    lock.lock()?;
    Ok(lock)
}

/// Ids of all labs that left a directory or a namespace.
fn ids() -> Result<Vec<String>> {
    let directories = fs::read_dir(ROOT)?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let namespaces = Netns::named(PREFIX).into_iter().filter_map(|netns| {
        let (id, _) = netns.name().strip_prefix(PREFIX)?.split_once('-')?;
        Some(id.to_owned())
    });
    let mut ids: Vec<String> = directories
        .chain(namespaces)
        .filter(|id| is_id(id))
        .collect();
    ids.sort();
    ids.dedup();
    Ok(ids)
}

/// An id is told from anything else that may follow `ambit-` in the name of a namespace.
fn is_id(text: &str) -> bool {
    text.len() == 6
        && text.starts_with('l')
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
}

fn spell_id(seed: u64) -> String {
    let mut rest = seed;
    let digits = (0..5).map(|_| {
        let digit = char::from_digit((rest % 36) as u32, 36).unwrap_or('0');
        rest /= 36;
        digit
    });
    std::iter::once('l').chain(digits).collect()
}

fn seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64);
    (now ^ (u64::from(process::id()) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}

/// Whether `pid` is more than a zombie that only its parent can remove.
fn runs(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_recognised_and_other_peoples_namespaces_are_not() {
        assert!(is_id(&spell_id(seed())));
        assert!(is_id(&spell_id(u64::MAX)));
        for foreign in ["t", "test", "l", "l1234", "l123456", "L12345", "l12-45"] {
            assert!(!is_id(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_zombie_does_not_run() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        wait::until_true("a zombie", Duration::from_secs(20), || !runs(pid)).unwrap();
        child.wait().unwrap();
        assert!(runs(i32::try_from(process::id()).unwrap()));
    }
}
