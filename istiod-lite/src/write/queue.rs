//! Pure: what is still to be done, each thing once.
//!
//! A key that is added twice is done once; one that is added while it is being done is done again;
//! one that failed comes back after a pause that doubles. So a queue is never longer than the
//! number of objects it is about, however often they change.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Things to do.
#[derive(Debug)]
pub(super) struct Queue<K> {
    /// By the time they are due.
    waiting: BTreeSet<(Instant, K)>,
    entries: HashMap<K, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// In `waiting` under this time.
    due: Option<Instant>,
    /// Being done.
    busy: bool,
    /// How often it failed in a row.
    failures: u32,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            waiting: BTreeSet::new(),
            entries: HashMap::new(),
        }
    }
}

impl<K: Ord + Hash + Clone> Queue<K> {
    /// To be done at once, unless it failed before and its pause is not over.
    pub(super) fn add(&mut self, key: K, now: Instant) {
        let entry = self.entries.entry(key.clone()).or_insert(Entry {
            due: None,
            busy: false,
            failures: 0,
        });
        if entry.due.is_none() {
            entry.due = Some(now);
            if !entry.busy {
                self.waiting.insert((now, key));
            }
        }
    }

    /// The next one that is due; it is being done from now on.
    pub(super) fn take(&mut self, now: Instant) -> Option<K> {
        let (due, _) = self.waiting.first()?;
        if *due > now {
            return None;
        }
        let (_, key) = self.waiting.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.due = None;
            entry.busy = true;
        }
        Some(key)
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// It was done.
    pub(super) fn done(&mut self, key: &K) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.busy = false;
        entry.failures = 0;
        match entry.due {
            Some(due) => drop(self.waiting.insert((due, key.clone()))),
            None => drop(self.entries.remove(key)),
        }
    }

    /// It failed; it comes back.
    pub(super) fn failed(&mut self, key: &K, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let pause = SHORTEST
            .saturating_mul(1 << entry.failures.min(16))
            .min(LONGEST);
        let due = now + pause;
        *entry = Entry {
            due: Some(due),
            busy: false,
            failures: entry.failures.saturating_add(1),
        };
        self.waiting.insert((due, key.clone()));
    }

    /// Not to be done any more, unless it is being done.
    pub(super) fn forget(&mut self, key: &K) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if let Some(due) = entry.due.take() {
            self.waiting.remove(&(due, key.clone()));
        }
        if !entry.busy {
            self.entries.remove(key);
        }
    }
}

/// Until `due`, if ever.
pub(super) async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Who keeps changing back what we write is answered more and more slowly: this says when.
#[derive(Debug)]
pub(super) struct Quarrels<K> {
    /// When each was written last, and how often in a row with little time between.
    written: HashMap<K, (Instant, u32)>,
}

impl<K> Default for Quarrels<K> {
    fn default() -> Self {
        Self {
            written: HashMap::new(),
        }
    }
}

impl<K: Hash + Eq + Clone + Debug> Quarrels<K> {
    /// It was written; `true` if somebody else seems to want it otherwise.
    pub(super) fn wrote(&mut self, key: &K, now: Instant) -> bool {
        let (last, times) = self.written.entry(key.clone()).or_insert((now, 0));
        let soon = now.saturating_duration_since(*last) < QUARREL;
        *times = if soon { times.saturating_add(1) } else { 1 };
        *last = now;
        if *times == PATIENCE + 1 {
            tracing::warn!(?key, "somebody else keeps changing it back");
        }
        *times > PATIENCE
    }

    /// It is gone.
    pub(super) fn forget(&mut self, key: &K) {
        self.written.remove(key);
    }
}

/// Writes with less than this between them are one quarrel.
const QUARREL: Duration = Duration::from_secs(90);
/// So many writes of a quarrel are done at once.
const PATIENCE: u32 = 5;

const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_added_while_it_is_done_is_done_again_and_only_then() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add("a", now);
        queue.add("a", now);
        assert_eq!(queue.take(now), Some("a"));
        assert_eq!(queue.take(now), None);
        queue.add("a", now);
        assert_eq!(queue.take(now), None);
        queue.done(&"a");
        assert_eq!(queue.take(now), Some("a"));
        queue.done(&"a");
        assert_eq!((queue.take(now), queue.due()), (None, None));
    }

    #[test]
    fn what_fails_comes_back_later_and_later_and_one_success_forgives() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        let mut pauses = Vec::new();
        queue.add("a", now);
        for _ in 0..12 {
            assert_eq!(queue.take(now), Some("a"));
            queue.failed(&"a", now);
            // More news of it is no reason to hurry.
            queue.add("a", now);
            let due = queue.due().unwrap();
            pauses.push((due - now).as_millis());
            assert_eq!(queue.take(now), None);
            now = due;
        }
        assert_eq!(pauses[..4], [250, 500, 1000, 2000]);
        assert_eq!(pauses[11], 60_000);
        assert_eq!(queue.take(now), Some("a"));
        queue.done(&"a");
        queue.add("a", now);
        assert_eq!(queue.take(now), Some("a"));
    }

    #[test]
    fn one_that_fails_does_not_hold_up_the_others() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add("a", now);
        assert_eq!(queue.take(now), Some("a"));
        queue.failed(&"a", now);
        queue.add("b", now);
        assert_eq!(queue.take(now), Some("b"));
    }

    #[test]
    fn a_few_writes_in_a_row_are_no_quarrel_and_peace_is_made_by_time() {
        let (mut quarrels, mut now) = (Quarrels::default(), Instant::now());
        let mut wrote = |pause: u64| {
            now += Duration::from_secs(pause);
            quarrels.wrote(&"a", now)
        };
        assert_eq!([1, 1, 1, 1, 1].map(&mut wrote), [false; 5]);
        assert_eq!([1, 60, 60].map(&mut wrote), [true; 3]);
        assert!(!wrote(90));
    }

    #[derive(Debug, Clone)]
    enum Act {
        Add(u8),
        Take,
        Done,
        Failed,
        Forget(u8),
        Pass(u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0_u8..5).prop_map(Act::Add),
            Just(Act::Take),
            Just(Act::Done),
            Just(Act::Failed),
            (0_u8..5).prop_map(Act::Forget),
            (0_u64..5000).prop_map(Act::Pass),
        ]
    }

    proptest! {
        /// Nothing is done by two at a time, nothing is lost, nothing is kept.
        #[test]
        fn a_key_is_done_by_one_at_a_time_until_nothing_is_left(acts in proptest::collection::vec(act(), 0..80)) {
            let (mut queue, mut now) = (Queue::default(), Instant::now());
            let (mut busy, mut wanted) = (Vec::new(), HashSet::new());
            for act in acts {
                match act {
                    Act::Add(key) => {
                        queue.add(key, now);
                        wanted.insert(key);
                    }
                    Act::Take => if let Some(key) = queue.take(now) {
                        prop_assert!(!busy.contains(&key));
                        prop_assert!(wanted.remove(&key));
                        busy.push(key);
                    },
                    Act::Done => if let Some(key) = busy.pop() {
                        queue.done(&key);
                    },
                    Act::Failed => if let Some(key) = busy.pop() {
                        queue.failed(&key, now);
                        wanted.insert(key);
                    },
                    Act::Forget(key) => {
                        queue.forget(&key);
                        wanted.remove(&key);
                    }
                    Act::Pass(millis) => now += Duration::from_millis(millis),
                }
                prop_assert!(queue.waiting.len() <= 5);
            }
            for key in busy {
                queue.done(&key);
            }
            while let Some(due) = queue.due() {
                now = now.max(due);
                let key = queue.take(now).unwrap();
                prop_assert!(wanted.remove(&key));
                queue.done(&key);
            }
            prop_assert!(wanted.is_empty() && queue.entries.is_empty());
        }
    }
}
