//! Pure: which objects a watch has told of, so that those missing from a new listing are known to be
//! gone.
//!
//! A watch that falls behind is not told what was deleted meanwhile: it lists everything again, and
//! what the list leaves out no longer exists.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// What a watch says; [`kube::runtime::watcher::Event`] without the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told<K, V> {
    /// A listing begins.
    Listing,
    /// It ends.
    Complete,
    /// Listed, new or changed.
    Is(K, V),
    Gone(K),
}

/// What is known of by key, with what must be remembered of each.
#[derive(Debug)]
pub(super) struct Seen<K, V> {
    known: HashMap<K, V>,
    listing: Option<HashSet<K>>,
    complete: bool,
}

impl<K: Clone + Eq + Hash, V> Seen<K, V> {
    pub(super) fn new() -> Self {
        Self {
            known: HashMap::new(),
            listing: None,
            complete: false,
        }
    }

    /// Whether a whole listing has come to its end.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn knows(&self, key: &K) -> bool {
        self.known.contains_key(key)
    }

    /// Takes note, and returns what is gone.
    pub(super) fn note(&mut self, told: Told<K, V>) -> Vec<(K, V)> {
        match told {
            Told::Listing => {
                self.listing = Some(HashSet::new());
                Vec::new()
            }
            Told::Is(key, value) => {
                // Also what comes in beside the listing: it may be newer than the list.
                if let Some(listing) = &mut self.listing {
                    listing.insert(key.clone());
                }
                self.known.insert(key, value);
                Vec::new()
            }
            Told::Gone(key) => self.known.remove_entry(&key).into_iter().collect(),
            Told::Complete => {
                self.complete = true;
                let Some(listing) = self.listing.take() else {
                    return Vec::new();
                };
                self.known
                    .extract_if(|key, _| !listing.contains(key))
                    .collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::Told::*;
    use super::*;

    fn gone(seen: &mut Seen<u8, ()>, told: &[Told<u8, ()>]) -> BTreeSet<u8> {
        let gone = told.iter().flat_map(|told| seen.note(*told));
        gone.map(|(key, ())| key).collect()
    }

    #[test]
    fn what_a_new_listing_leaves_out_is_gone() {
        let mut seen = Seen::new();
        assert!(!seen.is_complete());
        assert!(gone(&mut seen, &[Listing, Is(1, ()), Is(2, ()), Complete]).is_empty());
        assert!(seen.is_complete() && seen.knows(&1));
        assert!(gone(&mut seen, &[Is(3, ()), Gone(2)]).contains(&2));
        let again = [Listing, Is(3, ()), Complete];
        assert_eq!(gone(&mut seen, &again), [1].into());
        assert!(seen.is_complete() && seen.knows(&3) && !seen.knows(&1));
    }

    #[test]
    fn a_listing_that_broke_off_takes_nothing_away() {
        let mut seen = Seen::new();
        gone(&mut seen, &[Listing, Is(1, ()), Is(2, ()), Complete]);
        let again = [Listing, Is(1, ()), Listing, Is(2, ()), Complete];
        assert_eq!(gone(&mut seen, &again), [1].into());
    }

    #[test]
    fn what_was_looked_up_during_a_listing_is_not_taken_for_gone() {
        let mut seen = Seen::new();
        let told = [Listing, Is(9, ()), Is(1, ()), Complete];
        assert!(gone(&mut seen, &told).is_empty());
    }

    proptest! {
        #[test]
        fn after_a_listing_exactly_its_objects_are_known(before: BTreeSet<u8>, listed: BTreeSet<u8>) {
            let mut seen = Seen::new();
            for key in &before {
                seen.note(Is(*key, ()));
            }
            let mut told = vec![Listing];
            told.extend(listed.iter().map(|key| Is(*key, ())));
            told.push(Complete);
            let gone = gone(&mut seen, &told);
            prop_assert_eq!(gone, &before - &listed);
            for key in 0..=255 {
                prop_assert_eq!(seen.knows(&key), listed.contains(&key));
            }
        }
    }
}
