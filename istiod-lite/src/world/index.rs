//! Who has these labels, and who selects them: both answered without looking at everybody.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use api::k8s::objects::ObjectKey;

use crate::translate::Labels;

/// Workloads by namespace and label.
#[derive(Debug, Default)]
pub(super) struct Labelled {
    namespaces: HashMap<Arc<str>, Namespace>,
}

#[derive(Debug, Default)]
struct Namespace {
    all: HashMap<ObjectKey, Labels>,
    by_label: HashMap<(String, String), BTreeSet<ObjectKey>>,
}

impl Labelled {
    pub(super) fn insert(&mut self, key: &ObjectKey, labels: &Labels) {
        let namespace = self.namespaces.entry(key.namespace.clone()).or_default();
        for (label, value) in labels {
            namespace
                .by_label
                .entry((label.clone(), value.clone()))
                .or_default()
                .insert(key.clone());
        }
        namespace.all.insert(key.clone(), labels.clone());
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) {
        let Some(namespace) = self.namespaces.get_mut(&key.namespace) else {
            return;
        };
        for pair in namespace.all.remove(key).into_iter().flatten() {
            if let Some(keys) = namespace.by_label.get_mut(&pair) {
                keys.remove(key);
                if keys.is_empty() {
                    namespace.by_label.remove(&pair);
                }
            }
        }
        if namespace.all.is_empty() {
            self.namespaces.remove(&key.namespace);
        }
    }

    /// Those of a namespace that have all labels of `selector`; an empty selector means everybody.
    pub(super) fn selected(
        &self,
        namespace: &str,
        selector: &Labels,
        into: &mut BTreeSet<ObjectKey>,
    ) {
        if let Some(namespace) = self.namespaces.get(namespace) {
            namespace.selected(selector, into);
        }
    }

    /// Everybody of a namespace.
    pub(super) fn all(&self, namespace: &str) -> impl Iterator<Item = &ObjectKey> {
        let namespace = self.namespaces.get(namespace);
        namespace.into_iter().flat_map(|it| it.all.keys())
    }

    /// The same in every namespace.
    pub(super) fn selected_anywhere(&self, selector: &Labels, into: &mut BTreeSet<ObjectKey>) {
        self.namespaces
            .values()
            .for_each(|namespace| namespace.selected(selector, into));
    }
}

impl Namespace {
    fn selected(&self, selector: &Labels, into: &mut BTreeSet<ObjectKey>) {
        // The rarest label leaves the fewest to look at.
        let sets = selector
            .iter()
            .map(|(label, value)| self.by_label.get(&(label.clone(), value.clone())));
        match sets.min_by_key(|set| set.map_or(0, BTreeSet::len)) {
            None => into.extend(self.all.keys().cloned()),
            Some(None) => {}
            Some(Some(rarest)) => {
                let has_all = |key: &&ObjectKey| {
                    self.all
                        .get(*key)
                        .is_some_and(|labels| matches(selector, labels))
                };
                into.extend(rarest.iter().filter(has_all).cloned());
            }
        }
    }
}

/// Selectors by namespace, and by one of their labels.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    namespaces: HashMap<Arc<str>, Selecting>,
}

#[derive(Debug, Default)]
struct Selecting {
    selectors: HashMap<ObjectKey, Labels>,
    /// Each selector once, under its first label; those without labels under none.
    by_label: HashMap<Option<(String, String)>, BTreeSet<ObjectKey>>,
}

impl Selectors {
    pub(super) fn insert(&mut self, key: &ObjectKey, selector: &Labels) {
        let namespace = self.namespaces.entry(key.namespace.clone()).or_default();
        namespace
            .by_label
            .entry(first(selector))
            .or_default()
            .insert(key.clone());
        namespace.selectors.insert(key.clone(), selector.clone());
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) {
        let Some(namespace) = self.namespaces.get_mut(&key.namespace) else {
            return;
        };
        let Some(selector) = namespace.selectors.remove(key) else {
            return;
        };
        let label = first(&selector);
        if let Some(keys) = namespace.by_label.get_mut(&label) {
            keys.remove(key);
            if keys.is_empty() {
                namespace.by_label.remove(&label);
            }
        }
        if namespace.selectors.is_empty() {
            self.namespaces.remove(&key.namespace);
        }
    }

    /// Those of a namespace that select somebody with `labels`, in the order of their keys.
    pub(super) fn selecting(&self, namespace: &str, labels: &Labels) -> BTreeSet<&ObjectKey> {
        let Some(namespace) = self.namespaces.get(namespace) else {
            return BTreeSet::new();
        };
        let pairs = labels
            .iter()
            .map(|(label, value)| Some((label.clone(), value.clone())));
        pairs
            .chain([None])
            .filter_map(|pair| namespace.by_label.get(&pair))
            .flatten()
            .filter(|key| {
                namespace
                    .selectors
                    .get(*key)
                    .is_some_and(|selector| matches(selector, labels))
            })
            .collect()
    }

    /// All of a namespace.
    pub(super) fn of(&self, namespace: &str) -> impl Iterator<Item = &ObjectKey> {
        self.namespaces
            .get(namespace)
            .into_iter()
            .flat_map(|namespace| namespace.selectors.keys())
    }

    /// All.
    pub(super) fn all(&self) -> impl Iterator<Item = &ObjectKey> {
        self.namespaces
            .values()
            .flat_map(|namespace| namespace.selectors.keys())
    }
}

fn first(selector: &Labels) -> Option<(String, String)> {
    selector
        .iter()
        .next()
        .map(|(label, value)| (label.clone(), value.clone()))
}

fn matches(selector: &Labels, labels: &Labels) -> bool {
    selector
        .iter()
        .all(|(label, value)| labels.get(label) == Some(value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use api::k8s::objects::{Kind, ObjectKey};
    use proptest::prelude::*;

    use super::{Labelled, Selectors, matches};
    use crate::translate::Labels;

    fn labels() -> impl Strategy<Value = Labels> {
        proptest::collection::btree_map("[ab]", "[xy]", 0..3)
    }

    proptest! {
        #[test]
        fn indexes_agree_with_looking_at_everybody(
            workloads in proptest::collection::vec((any::<bool>(), labels()), 0..12),
            selectors in proptest::collection::vec((any::<bool>(), labels()), 0..12),
            gone in proptest::collection::vec(any::<bool>(), 12),
        ) {
            let key = |kind, index: usize, second: bool| ObjectKey::new(kind, if second { "two" } else { "one" }, &index.to_string());
            let (mut labelled, mut selecting) = (Labelled::default(), Selectors::default());
            let mut there: Vec<(ObjectKey, Labels)> = Vec::new();
            let mut asking: Vec<(ObjectKey, Labels)> = Vec::new();
            for (index, (second, labels)) in workloads.into_iter().enumerate() {
                let key = key(Kind::Pod, index, second);
                labelled.insert(&key, &labels);
                if gone[index] { labelled.remove(&key) } else { there.push((key, labels)) }
            }
            for (index, (second, selector)) in selectors.into_iter().enumerate() {
                let key = key(Kind::Service, index, second);
                selecting.insert(&key, &selector);
                if gone[11 - index] { selecting.remove(&key) } else { asking.push((key, selector)) }
            }
            for (asker, selector) in &asking {
                let mut found = BTreeSet::new();
                labelled.selected(&asker.namespace, selector, &mut found);
                let expected: BTreeSet<_> = there.iter().filter(|(key, labels)| key.namespace == asker.namespace && matches(selector, labels)).map(|(key, _)| key.clone()).collect();
                prop_assert_eq!(found, expected);
            }
            for (workload, labels) in &there {
                let expected: BTreeSet<_> = asking.iter().filter(|(key, selector)| key.namespace == workload.namespace && matches(selector, labels)).map(|(key, _)| key).collect();
                prop_assert_eq!(selecting.selecting(&workload.namespace, labels), expected);
            }
        }
    }
}
