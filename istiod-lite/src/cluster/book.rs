//! Pure: what of the cluster is known, and what an event says anew.
//!
//! ```text
//!  kind starts ── began ─▶ listing ── seen* ── ended ─▶ following ── seen, deleted ─▶ …
//!                             ▲                             │
//!                             └──── began (410 Gone) ◀──────┘
//!  kind starts in another version: as 410 Gone      kind stops: all of it is gone
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
    /// A kind is watched from now on. One that was watched before, in another version, stays known until its first list is at its end; what
    /// is in that list counts as new, for the same object may read differently.
    pub(super) fn start(&mut self, kind: Kind) -> Run {
        self.started += 1;
        let run = Run(self.started);
        let shelf = self.kinds.entry(kind).or_default();
        shelf.run = run;
        shelf.listing = None;
        for version in shelf.known.values_mut() {
            *version = Box::default();
        }
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
                let aimed = |fault| Fault {
                    aim: seen.aim.clone(),
                    ..fault
                };
                let faults = faults(&seen.key, &reasons).map(aimed);
                changes.extend(faults.map(Change::Invalid));
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
        aim: None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::k8s::objects::{Namespace, Object, ObjectMeta};
    use proptest::prelude::*;

    use super::*;

    const KIND: Kind = Kind::Namespace;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(KIND, "", name)
    }

    fn seen(name: &str, version: u64) -> Seen {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            ..ObjectMeta::default()
        };
        let namespace = Namespace {
            metadata,
            ..Namespace::default()
        };
        Seen {
            key: key(name),
            version: version.to_string(),
            object: Ok(Object::Namespace(Arc::new(namespace))),
            aim: None,
        }
    }

    fn refused(name: &str, version: u64) -> Seen {
        Seen {
            object: Err(vec!["spec.x: is wrong".into(), "spec.y: too".into()]),
            ..seen(name, version)
        }
    }

    /// A book with its one watch.
    struct Reader {
        book: Book,
        run: Run,
    }

    impl Reader {
        fn new() -> Self {
            let mut book = Book::default();
            let run = book.start(KIND);
            Self { book, run }
        }

        /// `+name` set, `-name` gone, `!name` refused.
        fn hear(&mut self, events: Vec<Event>) -> Vec<String> {
            let mut changes = Vec::new();
            for event in events {
                self.book.take(KIND, self.run, event, &mut changes);
            }
            changes.iter().map(short).collect()
        }

        fn list(&mut self, objects: Vec<Seen>) -> Vec<String> {
            let mut events = vec![Event::Began];
            events.extend(objects.into_iter().map(Event::Seen));
            events.push(Event::Ended);
            self.hear(events)
        }
    }

    fn short(change: &Change) -> String {
        match change {
            Change::Set(object) => format!("+{}", object.key().name),
            Change::Gone(key) => format!("-{}", key.name),
            Change::Invalid(fault) => format!("!{}", fault.object.as_ref().unwrap().name),
        }
    }

    #[test]
    fn the_book_is_complete_when_every_list_came_to_its_end() {
        let mut book = Book::default();
        let (namespaces, nodes) = (book.start(KIND), book.start(Kind::Node));
        let mut none = Vec::new();
        for (kind, run, event, complete) in [
            (KIND, namespaces, Event::Began, false),
            (KIND, namespaces, Event::Seen(seen("a", 1)), false),
            (KIND, namespaces, Event::Ended, false),
            (Kind::Node, nodes, Event::Began, false),
            (Kind::Node, nodes, Event::Ended, true),
            // From now on what is known is served, also while a list is read anew.
            (KIND, namespaces, Event::Began, true),
        ] {
            book.take(kind, run, event, &mut none);
            assert_eq!(book.is_complete(), complete);
        }
    }

    #[test]
    fn what_a_new_list_lacks_is_gone_and_what_it_repeats_is_no_change() {
        let mut reader = Reader::new();
        let first = reader.list(vec![seen("a", 1), seen("b", 2), seen("c", 3)]);
        assert_eq!(first, ["+a", "+b", "+c"]);
        let again = reader.list(vec![seen("a", 1), seen("c", 4), seen("d", 5)]);
        assert_eq!(again, ["+c", "+d", "-b"]);
    }

    #[test]
    fn a_list_that_breaks_off_takes_nothing_away() {
        let mut reader = Reader::new();
        reader.list(vec![seen("a", 1), seen("b", 2)]);
        assert!(
            reader
                .hear(vec![Event::Began, Event::Seen(seen("b", 2))])
                .is_empty()
        );
        assert_eq!(reader.list(vec![seen("a", 1), seen("c", 3)]), ["+c", "-b"]);
    }

    #[test]
    fn a_refused_object_keeps_its_last_good_version_until_a_better_one_comes_or_none() {
        let mut reader = Reader::new();
        reader.list(vec![seen("a", 1), seen("b", 1)]);
        assert!(!reader.book.take_faults_moved());
        assert_eq!(
            reader.hear(vec![Event::Seen(refused("a", 2))]),
            ["!a", "!a"]
        );
        assert_eq!(
            reader.hear(vec![Event::Seen(refused("b", 2))]),
            ["!b", "!b"]
        );
        assert!(reader.book.take_faults_moved());
        assert_eq!(reader.book.faults().len(), 4);
        // The same again is not said again.
        assert!(
            reader
                .list(vec![refused("a", 2), refused("b", 2)])
                .is_empty()
        );
        assert!(!reader.book.take_faults_moved());
        assert_eq!(reader.hear(vec![Event::Seen(seen("a", 3))]), ["+a"]);
        assert_eq!(reader.hear(vec![Event::Deleted(key("b"))]), ["-b"]);
        assert!(reader.book.take_faults_moved());
        assert!(reader.book.faults().is_empty());
    }

    #[test]
    fn a_kind_that_vanishes_takes_its_objects_and_faults_along_and_late_events_are_nothing() {
        let mut reader = Reader::new();
        reader.list(vec![seen("a", 1), refused("b", 1)]);
        let gone: Vec<_> = reader.book.stop(KIND).iter().map(short).collect();
        assert_eq!(gone.len(), 2);
        assert!(reader.book.faults().is_empty() && reader.book.len() == 0);
        assert!(reader.hear(vec![Event::Seen(seen("a", 2))]).is_empty());
        let second = reader.book.start(KIND);
        assert!(
            reader.hear(vec![Event::Seen(seen("a", 2))]).is_empty(),
            "of the first life"
        );
        reader.run = second;
        assert_eq!(reader.list(vec![seen("a", 1)]), ["+a"]);
    }

    #[test]
    fn a_kind_that_is_watched_anew_keeps_its_objects_until_they_are_listed_and_reads_all_of_them() {
        let mut reader = Reader::new();
        reader.list(vec![seen("a", 1), seen("b", 1), refused("c", 1)]);
        // The first life ends in the middle of a list.
        reader.hear(vec![Event::Began, Event::Seen(seen("a", 1))]);
        let first = reader.run;
        reader.run = reader.book.start(KIND);
        let mut late = Vec::new();
        reader.book.take(KIND, first, Event::Ended, &mut late);
        assert!(late.is_empty(), "of the first life");
        assert_eq!((reader.book.len(), reader.book.faults().len()), (3, 2));
        assert!(reader.book.is_complete());
        let again = reader.list(vec![seen("a", 1), seen("c", 1)]);
        assert_eq!(again, ["+a", "+c", "-b"]);
        assert!(reader.book.faults().is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        List(Vec<(u8, u64)>),
        Break(Vec<(u8, u64)>),
        See(u8, u64),
        Delete(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let object = || (0_u8..6, 1_u64..4);
        let list = || {
            prop::collection::btree_map(0_u8..6, 1_u64..4, 0..6)
                .prop_map(|list| list.into_iter().collect::<Vec<_>>())
        };
        prop_oneof![
            list().prop_map(Step::List),
            list().prop_map(Step::Break),
            object().prop_map(|(name, version)| Step::See(name, version)),
            (0_u8..6).prop_map(Step::Delete),
        ]
    }

    proptest! {
        /// Whoever applies the changes has, after every whole list, exactly what was in it.
        #[test]
        fn applying_the_changes_gives_the_cluster(steps in prop::collection::vec(step(), 0..30)) {
            let name = |number: &u8| format!("n{number}");
            let objects = |list: &[(u8, u64)]| -> Vec<Seen> {
                list.iter().map(|(number, version)| seen(&name(number), *version)).collect()
            };
            let mut reader = Reader::new();
            let mut have: std::collections::BTreeSet<String> = Default::default();
            for step in steps {
                let (events, exact) = match &step {
                    Step::List(list) => {
                        let mut events = vec![Event::Began];
                        events.extend(objects(list).into_iter().map(Event::Seen));
                        events.push(Event::Ended);
                        (events, Some(list.iter().map(|(number, _)| name(number)).collect()))
                    }
                    Step::Break(list) => {
                        let mut events = vec![Event::Began];
                        events.extend(objects(list).into_iter().map(Event::Seen));
                        (events, None)
                    }
                    Step::See(number, version) => (vec![Event::Seen(seen(&name(number), *version))], None),
                    Step::Delete(number) => (vec![Event::Deleted(key(&name(number)))], None),
                };
                for change in reader.hear(events) {
                    match change.split_at(1) {
                        ("+", name) => { have.insert(name.into()); }
                        (_, name) => prop_assert!(have.remove(name), "{} was not there", name),
                    }
                }
                if let Some(exact) = exact {
                    prop_assert_eq!(&have, &exact);
                }
                prop_assert_eq!(have.len(), reader.book.len());
            }
        }
    }
}
