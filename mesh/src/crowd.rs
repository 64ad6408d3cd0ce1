//! A persistent set of workloads from which the n-th can be taken.
//!
//! A trie over a hash of the member, 4 wide, that knows how many are below each fork: insertion,
//! removal and "take the n-th" cost O(log n), a copy costs nothing, and an old copy stays as it
//! was. imbl has no set that can be indexed; its vector cannot forget in O(log n); and its hash
//! map takes 91 bytes to remember an 8 byte pointer (7.0.2, 100,000 entries) where this takes 20,
//! which decides where workloads are counted by the 100,000.

mod grow;

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
        hash((&*member.namespace, member.name()))
    }
}

#[derive(Debug, Clone)]
enum Node {
    Leaf(Leaf),
    Fork {
        count: usize,
        below: Box<[Option<Arc<Node>>; WIDTH]>,
    },
}

/// Members side by side, each with a piece of its hash: whoever looks for one touches no other.
#[derive(Debug, Clone)]
struct Leaf {
    members: Vec<Arc<Workload>>,
    /// Of the first members; of more there are only where hashes are equal.
    tags: [u8; LEAF],
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
        self.near(hash(uid), |member| *member.uid == *uid)
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
        let this = |found: &Workload| *found.namespace == *namespace && found.name() == name;
        self.near(hash((namespace, name)), |found| {
            this(found) && wanted(found)
        })
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
        remove::<K>(&mut self.root, &member.uid, K::hash(member), 0)
    }

    /// The n-th member, in an order that only a change can change.
    pub(crate) fn nth(&self, mut n: usize) -> Option<&Arc<Workload>> {
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf.members.get(n),
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

    /// The member of that hash that is wanted.
    fn near(&self, of: u64, wanted: impl Fn(&Workload) -> bool) -> Option<&Arc<Workload>> {
        let mut node = self.root.as_deref();
        let mut depth = 0;
        while let Some(Node::Fork { below, .. }) = node {
            node = below[slot(of, depth)].as_deref();
            depth += 1;
        }
        match node {
            Some(Node::Leaf(leaf)) => Some(&leaf.members[leaf.position(of, wanted)?]),
            _ => None,
        }
    }
}

impl Leaf {
    fn of(member: Arc<Workload>, hash: u64) -> Self {
        let mut tags = [0; LEAF];
        tags[0] = tag(hash);
        Self {
            members: vec![member],
            tags,
        }
    }

    fn position(&self, of: u64, wanted: impl Fn(&Workload) -> bool) -> Option<usize> {
        let tagged = |at: usize| self.tags.get(at).is_none_or(|held| *held == tag(of));
        let mut members = self.members.iter().enumerate();
        members.find_map(|(at, held)| (tagged(at) && wanted(held)).then_some(at))
    }

    fn push(&mut self, member: Arc<Workload>, of: u64) {
        let at = self.members.len();
        if at == self.members.capacity() {
            self.members.reserve_exact(1 + at / 4); // leaves are small, many, and rarely grow again
        }
        self.members.push(member);
        if let Some(tag_here) = self.tags.get_mut(at) {
            *tag_here = tag(of);
        }
    }

    /// `of` tells the hash of the member that takes the place of the one that goes, if it must be known.
    fn remove(&mut self, at: usize, of: impl Fn(&Workload) -> u64) {
        let last = self.members.len() - 1;
        if at < LEAF {
            self.tags[at] = match self.tags.get(last) {
                Some(tag) => *tag,
                None => tag(of(&self.members[last])),
            };
        }
        self.members.swap_remove(at);
    }
}

impl Node {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.members.len(),
            Self::Fork { count, .. } => *count,
        }
    }

    /// Of at most a leaf's worth of members.
    fn leaf<K: Key>(members: Vec<Arc<Workload>>) -> Self {
        let mut tags = [0; LEAF];
        for (tag_here, member) in tags.iter_mut().zip(&members) {
            *tag_here = tag(K::hash(member));
        }
        Self::Leaf(Leaf { members, tags })
    }

    fn gather(&self, into: &mut Vec<Arc<Workload>>) {
        match self {
            Self::Leaf(leaf) => into.extend(leaf.members.iter().cloned()),
            Self::Fork { below, .. } => below.iter().flatten().for_each(|node| node.gather(into)),
        }
    }
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The end of the hash that slots hardly ever come to.
fn tag(hash: u64) -> u8 {
    (hash >> 56) as u8
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
        *place = Some(Arc::new(Node::Leaf(Leaf::of(member, of))));
        return true;
    };
    match Arc::make_mut(node) {
        Node::Fork { count, below } => {
            let grew = insert::<K>(&mut below[slot(of, depth)], member, of, depth + 1);
            *count += usize::from(grew);
            grew
        }
        Node::Leaf(leaf) => {
            if let Some(at) = leaf.position(of, |held| held.uid == member.uid) {
                leaf.members[at] = member;
                return false;
            }
            leaf.push(member, of);
            if leaf.members.len() > LEAF && depth < DEEPEST {
                let fork = fork::<K>(std::mem::take(&mut leaf.members), depth);
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

fn remove<K: Key>(place: &mut Option<Arc<Node>>, uid: &str, of: u64, depth: u32) -> bool {
    let Some(node) = place else { return false };
    let node = Arc::make_mut(node);
    match node {
        Node::Leaf(leaf) => {
            let Some(at) = leaf.position(of, |held| *held.uid == *uid) else {
                return false;
            };
            leaf.remove(at, K::hash);
        }
        Node::Fork { count, below } => {
            if !remove::<K>(&mut below[slot(of, depth)], uid, of, depth + 1) {
                return false;
            }
            *count -= 1;
            // Half a leaf's worth before forks fold up, so that one member coming and going does
            // not fold and fork every time.
            if *count <= LEAF / 2 {
                let mut members = Vec::with_capacity(*count);
                node.gather(&mut members);
                *node = Node::leaf::<K>(members);
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

    /// Everyone's hash is the same.
    #[derive(Debug)]
    struct Alike;

    impl Key for Alike {
        fn hash(_: &Workload) -> u64 {
            0xabcd_0000_0000_0000
        }
    }

    #[test]
    fn equal_hashes_are_told_apart_by_uid() {
        const MEMBERS: u16 = LEAF as u16 * 3;
        let mut crowd = Crowd::<Alike>::default();
        (0..MEMBERS).for_each(|uid| crowd.insert(member(uid, 0)));
        (0..MEMBERS).for_each(|uid| crowd.insert(member(uid, 1)));
        assert_eq!(crowd.len(), usize::from(MEMBERS));
        assert!(crowd.iter().all(|member| member.capacity == 1));
        for uid in (0..MEMBERS).map(|at| at * 7 % MEMBERS) {
            assert!(crowd.remove(&member(uid, 0)), "{uid}");
            assert!(!crowd.remove(&member(uid, 0)), "{uid}");
        }
        assert!(crowd.is_empty());
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
