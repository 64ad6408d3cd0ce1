//! What the files say, and what that changes.
//!
//! Enters: the names of files to look at again. Leaves: [`Change`]s. The steps:
//!
//! 1. read the file; a fault keeps what the file said before about that object (`load`)
//! 2. mark the objects it said something about, before or now                  (`dirty`)
//! 3. compute each marked object anew: first file that has it, plus its status (`compute`)
//! 4. hand out what differs                                                    ([`Files::drain`])

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::dir::{Change, Fault};
use super::objects::{Object, ObjectKey, Time};
use super::yaml::{self, Parsed, Source};
use super::{idle, merge, status};

/// Everything read so far.
#[derive(Debug, Default)]
pub(super) struct Files {
    root: PathBuf,
    /// By path below the root.
    files: BTreeMap<PathBuf, File>,
    /// Which documents say something about an object; the first one counts.
    sources: HashMap<ObjectKey, BTreeSet<(PathBuf, usize)>>,
    patches: HashMap<ObjectKey, Value>,
    /// What was handed out.
    current: HashMap<ObjectKey, Object>,
    dirty: BTreeSet<ObjectKey>,
    /// By the file, or by the object, that they are about.
    faults: BTreeMap<About, Vec<Fault>>,
    /// New ones of documents that do not say which object they are.
    fresh_faults: Vec<Fault>,
    /// Objects of which a fault came or went.
    judged: BTreeSet<ObjectKey>,
    /// Objects that were handed out as invalid.
    refused: HashSet<ObjectKey>,
    /// Whether a fault came or went since it was last asked.
    faults_moved: bool,
    ignored: HashSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    File(PathBuf),
    Object(ObjectKey),
}

#[derive(Debug, Default)]
struct File {
    documents: Vec<Said>,
}

/// One document of a file.
#[derive(Clone, Debug)]
struct Said {
    key: ObjectKey,
    object: Object,
    line: usize,
    /// Whether the document itself says when the object was made; else its file and place do.
    dated: bool,
}

impl Files {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            ..Self::default()
        }
    }

    /// Files below a folder (or the file itself) that were read before.
    pub(super) fn known_below(&self, path: &Path) -> Vec<PathBuf> {
        // There may be thousands, and this is asked for every file that is written: only a folder has some of them below it.
        let mirror = Path::new(status::FOLDER);
        let is_folder = status::key(path).is_none();
        let patched = is_folder && (path.starts_with(mirror) || mirror.starts_with(path));
        let patches = patched.then(|| self.patches.keys()).into_iter().flatten();
        let patches = patches
            .map(status::path)
            .filter(|file| file.starts_with(path));
        self.files
            .range(path.to_owned()..)
            .map(|(file, _)| file.clone())
            .take_while(|file| file.starts_with(path))
            .chain(patches)
            .collect()
    }

    /// Looks at a file again: it may be new, changed, or gone.
    pub(super) fn look(&mut self, path: &Path) {
        let text = std::fs::read_to_string(self.root.join(path));
        if path.starts_with(status::FOLDER) {
            return self.look_at_status(path, text);
        }
        match text {
            Ok(text) => self.load(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.put(path, Vec::new(), Vec::new())
            }
            Err(error) => {
                let kept = self.files.remove(path).unwrap_or_default().documents;
                let fault = self.fault(path, 1, None, format!("cannot be read: {error}"));
                self.put(path, kept, vec![fault]);
            }
        }
    }

    fn load(&mut self, path: &Path, text: &str) {
        let modified = modified(&self.root.join(path));
        let before = self
            .files
            .get(path)
            .map(|file| file.documents.clone())
            .unwrap_or_default();
        let (mut documents, mut faults) = (Vec::<Said>::new(), Vec::new());
        for (position, parsed) in yaml::parse(text).into_iter().enumerate() {
            match parsed {
                Parsed::Object { mut object, line } => {
                    let dated = object.metadata().creation_timestamp.is_some();
                    if !dated {
                        let since = modified + Duration::from_nanos(position as u64);
                        object.metadata_mut().creation_timestamp = Some(Time(since));
                    }
                    documents.push(Said {
                        key: object.key(),
                        object,
                        line,
                        dated,
                    });
                }
                Parsed::Ignored { kind } => self.ignore(path, kind),
                Parsed::Fault {
                    line,
                    object,
                    reason,
                    aim,
                } => faults.push(Fault {
                    aim,
                    ..self.fault(path, line, object, reason)
                }),
            }
        }
        // What a faulty document said before still holds. A document too broken to name its object
        // may have been any of those that the file no longer has.
        let anything_may_be_meant = faults.iter().any(|fault| fault.object.is_none());
        for said in before {
            let repeated = documents.iter().any(|document| document.key == said.key);
            let faulty = faults
                .iter()
                .any(|fault| fault.object.as_ref() == Some(&said.key));
            if !repeated && (faulty || anything_may_be_meant) {
                documents.push(said);
            }
        }
        self.put(path, documents, faults);
    }

    /// Replaces what a file says.
    fn put(&mut self, path: &Path, documents: Vec<Said>, faults: Vec<Fault>) {
        for (position, said) in self
            .files
            .remove(path)
            .unwrap_or_default()
            .documents
            .into_iter()
            .enumerate()
        {
            if let Some(sources) = self.sources.get_mut(&said.key) {
                sources.remove(&(path.to_owned(), position));
            }
            self.dirty.insert(said.key);
        }
        for (position, said) in documents.iter().enumerate() {
            self.sources
                .entry(said.key.clone())
                .or_default()
                .insert((path.to_owned(), position));
            self.dirty.insert(said.key.clone());
        }
        if !documents.is_empty() {
            self.files.insert(path.to_owned(), File { documents });
        }
        self.set_faults(About::File(path.to_owned()), faults);
    }

    fn look_at_status(&mut self, path: &Path, text: io::Result<String>) {
        let Some(key) = status::key(path) else { return };
        let mut faults = Vec::new();
        let changed = match text {
            Ok(text) => match yaml::from_str::<Value>(&text) {
                Ok(patch) if patch.is_object() => {
                    self.patches.insert(key.clone(), patch.clone()) != Some(patch)
                }
                Ok(_) => {
                    faults.push(self.fault(
                        path,
                        1,
                        Some(key.clone()),
                        "a status patch is a map".into(),
                    ));
                    false
                }
                Err(error) => {
                    let line = error
                        .location()
                        .and_then(|at| usize::try_from(at.line()).ok())
                        .unwrap_or(1);
                    faults.push(self.fault(path, line, Some(key.clone()), "not YAML".into()));
                    false
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.patches.remove(&key).is_some()
            }
            Err(error) => {
                faults.push(self.fault(
                    path,
                    1,
                    Some(key.clone()),
                    format!("cannot be read: {error}"),
                ));
                false
            }
        };
        if changed {
            self.dirty.insert(key);
        }
        self.set_faults(About::File(path.to_owned()), faults);
    }

    /// What changed since the last call: objects in the order of kinds and names, then faults. Of an
    /// object with a new fault, all that stand; an object that has none left is handed out again,
    /// changed or not.
    pub(super) fn drain(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            match self.compute(&key) {
                Some(object) if self.current.get(&key) == Some(&object) => {}
                Some(object) => {
                    self.current.insert(key, object.clone());
                    changes.push(Change::Set(object));
                }
                None => {
                    self.sources.remove(&key);
                    if self.current.remove(&key).is_some() {
                        changes.push(Change::Gone(key));
                    }
                }
            }
        }
        let mut faults = std::mem::take(&mut self.fresh_faults);
        let given: BTreeSet<ObjectKey> = changes.iter().filter_map(key).collect();
        let again = given.iter().filter(|key| self.refused.contains(key));
        self.judged.extend(again.cloned());
        for key in std::mem::take(&mut self.judged) {
            let all = self.faults.values().flatten();
            let standing = all.filter(|fault| fault.object.as_ref() == Some(&key));
            let before = faults.len();
            faults.extend(standing.cloned());
            if faults.len() > before {
                self.refused.insert(key);
            } else if self.refused.remove(&key) && !given.contains(&key) {
                let good = self.current.get(&key).cloned();
                changes.push(good.map_or_else(|| Change::Gone(key), Change::Set));
            }
        }
        faults.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        changes.extend(faults.into_iter().map(Change::Invalid));
        changes
    }

    /// Whether a fault came or went since the last call.
    pub(super) fn take_faults_moved(&mut self) -> bool {
        std::mem::take(&mut self.faults_moved)
    }

    /// The faults that stand, in the order of files and lines.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults: Vec<Fault> = self.faults.values().flatten().cloned().collect();
        faults.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        faults
    }

    fn compute(&mut self, key: &ObjectKey) -> Option<Object> {
        let sources: Vec<(PathBuf, Said)> = self
            .sources
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|source| Some((source.0.clone(), self.said(source)?)))
            .collect();
        let mut faults = Vec::new();
        let mut object = None;
        if let Some(((file, said), others)) = sources.split_first() {
            for (other, again) in others {
                let reason = format!(
                    "defined already in {} on line {}, which counts",
                    self.root.join(file).display(),
                    said.line
                );
                faults.push(self.fault(other, again.line, Some(key.clone()), reason));
            }
            let (patched, fault) = self.patched(said);
            faults.extend(fault);
            object = Some(self.aged(patched, said));
        }
        self.set_faults(About::Object(key.clone()), faults);
        object
    }

    fn said(&self, (path, position): &(PathBuf, usize)) -> Option<Said> {
        self.files.get(path)?.documents.get(*position).cloned()
    }

    /// The object with its status laid over it.
    fn patched(&self, said: &Said) -> (Object, Option<Fault>) {
        let uid = said.object.metadata().uid.as_deref();
        let Some(patch) = self
            .patches
            .get(&said.key)
            .filter(|patch| status::is_for(patch, uid))
        else {
            return (said.object.clone(), None);
        };
        let merged = said.object.value().and_then(|mut whole| {
            merge::apply(&mut whole, patch);
            yaml::typed(said.key.kind, &Json(whole))
        });
        match merged {
            Ok(object) if object.key() == said.key => (object, None),
            Ok(_) => (
                said.object.clone(),
                Some(self.status_fault(said, "a status patch cannot rename its object".into())),
            ),
            Err(error) => (
                said.object.clone(),
                Some(self.status_fault(said, format!("does not fit its object: {error}"))),
            ),
        }
    }

    /// An object keeps the age it had when it was first seen, as it would in an API server, unless
    /// its document says how old it is.
    fn aged(&self, mut object: Object, said: &Said) -> Object {
        let own = said.object.metadata().creation_timestamp.clone();
        let before = self
            .current
            .get(&said.key)
            .and_then(|object| object.metadata().creation_timestamp.clone());
        let age = if said.dated { own } else { before.or(own) };
        // Only where it differs: changing an object that is shared copies it.
        if object.metadata().creation_timestamp != age {
            object.metadata_mut().creation_timestamp = age;
        }
        object
    }

    fn status_fault(&self, said: &Said, reason: String) -> Fault {
        self.fault(&status::path(&said.key), 1, Some(said.key.clone()), reason)
    }

    fn fault(&self, path: &Path, line: usize, object: Option<ObjectKey>, reason: String) -> Fault {
        Fault {
            file: self.root.join(path),
            line,
            object,
            reason,
            aim: None,
        }
    }

    fn set_faults(&mut self, about: About, faults: Vec<Fault>) {
        let before = self.faults.remove(&about).unwrap_or_default();
        if before != faults {
            self.faults_moved = true;
            let about = before.iter().chain(&faults);
            self.judged
                .extend(about.filter_map(|fault| fault.object.clone()));
            let nameless = faults.iter().filter(|fault| fault.object.is_none());
            self.fresh_faults
                .extend(nameless.filter(|fault| !before.contains(fault)).cloned());
        }
        if !faults.is_empty() {
            self.faults.insert(about, faults);
        }
    }

    fn ignore(&mut self, path: &Path, kind: String) {
        let file = self.root.join(path);
        let idle = kind.rsplit_once('/');
        if let Some(idle) = idle.and_then(|(version, kind)| idle::of(version, kind)) {
            // Each time: somebody wrote it, and believes that it holds.
            tracing::warn!(file = %file.display(), kind = idle.kind, "without effect: {}", idle.instead);
        } else if !self.ignored.contains(&kind) {
            tracing::info!(file = %file.display(), "ignored: kind {kind}");
            self.ignored.insert(kind);
        }
    }
}

fn key(change: &Change) -> Option<ObjectKey> {
    match change {
        Change::Set(object) => Some(object.key()),
        Change::Gone(key) => Some(key.clone()),
        Change::Invalid(_) => None,
    }
}

struct Json(Value);

impl Source for Json {
    type Error = serde_json::Error;

    fn read<T: DeserializeOwned>(&self) -> Result<T, Self::Error> {
        serde_json::from_value(self.0.clone())
    }
}

/// When a file was last written; the epoch if the file system does not say.
fn modified(path: &Path) -> Timestamp {
    let time = std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanosecond(i128::try_from(since.as_nanos()).unwrap_or_default())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}
