//! A persistent set of workloads from which the n-th can be taken.
//!
//! A trie over a hash of the member, 4 wide, that knows how many are below each fork: insertion,
//! removal and "take the n-th" cost O(log n), a copy costs nothing, and an old copy stays as it
//! was. imbl has no set that can be indexed; its vector cannot forget in O(log n); and its hash
//! map takes 91 bytes to remember an 8 byte pointer (7.0.2, 100,000 entries) where this takes 20,
//! which decides where workloads are counted by the 100,000.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

use crate::workload::Workload;

/// The set. Members are told apart by uid, and found by the hash that `K` makes of them.
#[derive(Debug)]
pub(crate) struct Crowd<K = ByUid> {
    root: Option<Arc<Node>>,
    key: PhantomData<K>,
}

/// What the hash is made of.
pub(crate) trait Key {
    fn hash(member: &Workload) -> u64;
}

/// By uid.
#[derive(Debug)]
pub(crate) struct ByUid;

/// By pod: namespace and name. Several may have the same.
#[derive(Debug)]
pub(crate) struct ByPod;

impl Key for ByUid {
    fn hash(member: &Workload) -> u64 {
        hash(&*member.uid)
    }
}

impl Key for ByPod {
    fn hash(member: &Workload) -> u64 {
        hash((&*member.namespace, &*member.name))
    }
}

#[derive(Debug, Clone)]
enum Node {
    Leaf(Vec<Arc<Workload>>),
    Fork {
        count: usize,
        below: Box<[Option<Arc<Node>>; WIDTH]>,
    },
}

const WIDTH: usize = 4; // wider ones are nearly empty just after they forked
const BITS: u32 = 2;
const LEAF: usize = 32; // a copied leaf touches that many reference counts
const DEEPEST: u32 = 64 / BITS - 1; // below, equal hashes: the leaf grows

// Not derived: what the hash is made of need not be cloned.
impl<K> Clone for Crowd<K> {
    fn clone(&self) -> Self {
        Self {
            root: self.root.clone(),
            key: PhantomData,
        }
    }
}

impl<K> Default for Crowd<K> {
    fn default() -> Self {
        Self {
            root: None,
            key: PhantomData,
        }
    }
}

impl Crowd<ByUid> {
    /// The member of that uid.
    pub(crate) fn of_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.near(hash(uid)).find(|member| *member.uid == *uid)
    }
}

impl Crowd<ByPod> {
    /// The member of that namespace and name that is wanted.
    pub(crate) fn of_pod(
        &self,
        namespace: &str,
        name: &str,
        wanted: impl Fn(&Workload) -> bool,
    ) -> Option<&Arc<Workload>> {
        let this = |found: &Workload| *found.namespace == *namespace && *found.name == *name;
        self.near(hash((namespace, name)))
            .find(|found| this(found) && wanted(found))
    }
}

impl<K: Key> Crowd<K> {
    pub(crate) fn len(&self) -> usize {
        self.root.as_ref().map_or(0, |node| node.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Adds a member, in place of the one of the same uid and hash.
    pub(crate) fn insert(&mut self, member: Arc<Workload>) {
        let of = K::hash(&member);
        insert::<K>(&mut self.root, member, of, 0);
    }

    /// Forgets a member; returns whether it was one.
    pub(crate) fn remove(&mut self, member: &Workload) -> bool {
        remove(&mut self.root, &member.uid, K::hash(member), 0)
    }

    /// The n-th member, in an order that only a change can change.
    pub(crate) fn nth(&self, mut n: usize) -> Option<&Arc<Workload>> {
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Leaf(members) => return members.get(n),
                Node::Fork { below, .. } => {
                    node = below
                        .iter()
                        .flatten()
                        .find(|node| match n.checked_sub(node.len()) {
                            Some(rest) => {
                                n = rest;
                                false
                            }
                            None => true,
                        })?;
                }
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        (0..self.len()).filter_map(|n| self.nth(n))
    }

    /// The members of the leaf where one of that hash would be.
    fn near(&self, of: u64) -> impl Iterator<Item = &Arc<Workload>> {
        let mut node = self.root.as_deref();
        let mut depth = 0;
        while let Some(Node::Fork { below, .. }) = node {
            node = below[slot(of, depth)].as_deref();
            depth += 1;
        }
        match node {
            Some(Node::Leaf(members)) => members.iter(),
            _ => [].iter(),
        }
    }
}

impl Node {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(members) => members.len(),
            Self::Fork { count, .. } => *count,
        }
    }

    fn gather(&self, into: &mut Vec<Arc<Workload>>) {
        match self {
            Self::Leaf(members) => into.extend(members.iter().cloned()),
            Self::Fork { below, .. } => below.iter().flatten().for_each(|node| node.gather(into)),
        }
    }
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

fn slot(hash: u64, depth: u32) -> usize {
    (hash >> (depth * BITS)) as usize % WIDTH
}

/// Returns whether the node grew (false: a member was replaced).
fn insert<K: Key>(
    place: &mut Option<Arc<Node>>,
    member: Arc<Workload>,
    of: u64,
    depth: u32,
) -> bool {
    let Some(node) = place else {
        *place = Some(Arc::new(Node::Leaf(vec![member])));
        return true;
    };
    match Arc::make_mut(node) {
        Node::Fork { count, below } => {
            let grew = insert::<K>(&mut below[slot(of, depth)], member, of, depth + 1);
            *count += usize::from(grew);
            grew
        }
        Node::Leaf(members) => {
            if let Some(held) = members.iter_mut().find(|held| held.uid == member.uid) {
                *held = member;
                return false;
            }
            members.reserve_exact(1); // leaves are small, many, and rarely grow again
            members.push(member);
            if members.len() > LEAF && depth < DEEPEST {
                let fork = fork::<K>(std::mem::take(members), depth);
                *node = Arc::new(fork);
            }
            true
        }
    }
}

fn fork<K: Key>(members: Vec<Arc<Workload>>, depth: u32) -> Node {
    let count = members.len();
    let mut below = Box::new([const { None }; WIDTH]);
    for member in members {
        let of = K::hash(&member);
        insert::<K>(&mut below[slot(of, depth)], member, of, depth + 1);
    }
    Node::Fork { count, below }
}

fn remove(place: &mut Option<Arc<Node>>, uid: &str, of: u64, depth: u32) -> bool {
    let Some(node) = place else { return false };
    let node = Arc::make_mut(node);
    match node {
        Node::Leaf(members) => {
            let Some(at) = members.iter().position(|held| *held.uid == *uid) else {
                return false;
            };
            members.swap_remove(at);
        }
        Node::Fork { count, below } => {
            if !remove(&mut below[slot(of, depth)], uid, of, depth + 1) {
                return false;
            }
            *count -= 1;
            // Half a leaf's worth before forks fold up, so that one member coming and going does
            // not fold and fork every time.
            if *count <= LEAF / 2 {
                let mut members = Vec::with_capacity(*count);
                node.gather(&mut members);
                *node = Node::Leaf(members);
            }
        }
    }
    if node.len() == 0 {
        *place = None;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn member(uid: u16, version: u16) -> Arc<Workload> {
        let message = api::workload::Workload {
            uid: uid.to_string(),
            capacity: Some(version.into()),
            ..Default::default()
        };
        Arc::new(Workload::try_from(message).unwrap())
    }

    fn content(crowd: &Crowd) -> BTreeMap<u16, u32> {
        crowd
            .iter()
            .map(|member| (member.uid.parse().unwrap(), member.capacity))
            .collect()
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_would_hold(steps in prop::collection::vec((any::<bool>(), 0..200u16, 0..3u16), 0..600)) {
            let mut crowd = Crowd::<ByUid>::default();
            let mut plain = BTreeMap::new();
            let mut copies = Vec::new();
            for (at, (insert, uid, version)) in steps.into_iter().enumerate() {
                if insert || at % 3 == 0 {
                    crowd.insert(member(uid, version));
                    plain.insert(uid, u32::from(version));
                } else {
                    prop_assert_eq!(crowd.remove(&member(uid, 0)), plain.remove(&uid).is_some());
                }
                prop_assert_eq!(crowd.len(), plain.len());
                prop_assert_eq!(crowd.of_uid(&uid.to_string()).is_some(), plain.contains_key(&uid));
                prop_assert_eq!(crowd.is_empty(), plain.is_empty());
                if at % 100 == 0 {
                    copies.push((crowd.clone(), plain.clone()));
                }
            }
            copies.push((crowd, plain));
            for (crowd, plain) in copies {
                prop_assert_eq!(crowd.iter().count(), plain.len(), "each once");
                prop_assert_eq!(content(&crowd), plain);
            }
        }
    }

    #[test]
    fn the_last_to_leave_leaves_nothing() {
        let mut crowd = Crowd::<ByUid>::default();
        (0..1000).for_each(|uid| crowd.insert(member(uid, 0)));
        assert!(crowd.nth(999).is_some() && crowd.nth(1000).is_none());
        (0..1000).for_each(|uid| assert!(crowd.remove(&member(uid, 0))));
        assert!(crowd.root.is_none());
    }
}
