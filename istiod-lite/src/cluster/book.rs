//! Pure: what of the cluster is known, and what an event says anew.
//!
//! ```text
//!  kind starts ── began ─▶ listing ── seen* ── ended ─▶ following ── seen, deleted ─▶ …
//!                             ▲                             │
//!                             └──── began (410 Gone) ◀──────┘
//!  kind stops: all of it is gone
//! ```
//! A list that is read anew does not name what vanished meanwhile: what was known before and is not
//! in it is gone. What comes again in the version it had is no change. An object that is refused
//! keeps its last good version and is listed as a fault until a better one comes, or none.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use api::k8s::dir::{Change, Fault};
use api::k8s::objects::{Kind, ObjectKey};

use super::door::Seen;

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Book {
    kinds: BTreeMap<Kind, Shelf>,
    faults: BTreeMap<ObjectKey, Vec<String>>,
    started: u64,
    faults_moved: bool,
}

/// The objects of one kind.
#[derive(Debug, Default)]
struct Shelf {
    run: Run,
    /// The version of each.
    known: HashMap<ObjectKey, Box<str>>,
    /// While a list is read: what is in it so far.
    listing: Option<HashSet<ObjectKey>>,
    /// One list was read to its end.
    complete: bool,
}

/// One life of a kind's watch. Events of an earlier life are of another definition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Run(u64);

/// What a watch says.
#[derive(Debug)]
pub(super) enum Event {
    /// A list begins.
    Began,
    /// One object of the list, or one that is new or changed since.
    Seen(Seen),
    /// The list ends.
    Ended,
    /// It was deleted.
    Deleted(ObjectKey),
}

/// What an event did to an object, for those who count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Did {
    Added,
    Updated,
    /// It came again as it was.
    Repeated,
    Deleted,
    Refused,
}

impl Book {
    /// A kind is watched from now on.
    pub(super) fn start(&mut self, kind: Kind) -> Run {
        self.started += 1;
        let run = Run(self.started);
        self.kinds.entry(kind).or_default().run = run;
        run
    }

    /// A kind's definition is gone, and its objects with it.
    pub(super) fn stop(&mut self, kind: Kind) -> Vec<Change> {
        let shelf = self.kinds.remove(&kind).unwrap_or_default();
        let before = self.faults.len();
        self.faults.retain(|key, _| key.kind != kind);
        self.faults_moved |= before != self.faults.len();
        shelf.known.into_keys().map(Change::Gone).collect()
    }

    /// Whether each of the kinds was read to its end once.
    pub(super) fn is_complete(&self) -> bool {
        self.kinds.values().all(|shelf| shelf.complete)
    }

    /// How many objects are known.
    pub(super) fn len(&self) -> usize {
        self.kinds.values().map(|shelf| shelf.known.len()).sum()
    }

    /// Takes in what a watch said; the changes are appended. Tells what was done to which object.
    pub(super) fn take(
        &mut self,
        kind: Kind,
        run: Run,
        event: Event,
        changes: &mut Vec<Change>,
    ) -> Option<Did> {
        let shelf = self.kinds.get_mut(&kind).filter(|shelf| shelf.run == run)?;
        match event {
            Event::Began => {
                shelf.listing = Some(HashSet::new());
                None
            }
            Event::Ended => {
                for key in shelf.missing() {
                    self.forget(&key, changes);
                }
                None
            }
            Event::Seen(seen) => Some(self.see(seen, changes)),
            Event::Deleted(key) => self.forget(&key, changes),
        }
    }

    fn see(&mut self, seen: Seen, changes: &mut Vec<Change>) -> Did {
        let shelf = self.kinds.entry(seen.key.kind).or_default();
        if let Some(listing) = &mut shelf.listing {
            listing.insert(seen.key.clone());
        }
        let before = shelf.known.insert(seen.key.clone(), seen.version.into());
        let now = shelf.known.get(&seen.key);
        if before.as_ref() == now && now.is_some_and(|version| !version.is_empty()) {
            return Did::Repeated;
        }
        match seen.object {
            Ok(object) => {
                self.faults_moved |= self.faults.remove(&seen.key).is_some();
                changes.push(Change::Set(object));
                match before {
                    None => Did::Added,
                    Some(_) => Did::Updated,
                }
            }
            Err(reasons) => {
                changes.extend(faults(&seen.key, &reasons).map(Change::Invalid));
                self.faults.insert(seen.key, reasons);
                self.faults_moved = true;
                Did::Refused
            }
        }
    }

    fn forget(&mut self, key: &ObjectKey, changes: &mut Vec<Change>) -> Option<Did> {
        self.faults_moved |= self.faults.remove(key).is_some();
        let shelf = self.kinds.get_mut(&key.kind)?;
        shelf.known.remove(key)?;
        changes.push(Change::Gone(key.clone()));
        Some(Did::Deleted)
    }

    /// The faults that stand, in the order of kinds and names.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let all = self.faults.iter();
        all.flat_map(|(key, reasons)| faults(key, reasons))
            .collect()
    }

    /// Whether [`Book::faults`] changed since the last time this was asked.
    pub(super) fn take_faults_moved(&mut self) -> bool {
        std::mem::take(&mut self.faults_moved)
    }
}

impl Shelf {
    /// The list is at its end: what was known and is not in it.
    fn missing(&mut self) -> Vec<ObjectKey> {
        self.complete = true;
        let Some(listed) = self.listing.take() else {
            return Vec::new();
        };
        let missing = self.known.keys().filter(|key| !listed.contains(key));
        missing.cloned().collect()
    }
}

/// No file and no line: it is in the API server.
fn faults(key: &ObjectKey, reasons: &[String]) -> impl Iterator<Item = Fault> {
    reasons.iter().map(|reason| Fault {
        file: PathBuf::new(),
        line: 0,
        object: Some(key.clone()),
        reason: reason.clone(),
    })
}
