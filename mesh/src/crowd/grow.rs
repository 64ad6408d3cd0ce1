//! Many members at once: the tree is made from its root down, in the order in which it holds them.

use std::marker::PhantomData;
use std::sync::Arc;

use super::{ByUid, Crowd, DEEPEST, Key, LEAF, Leaf, Node, WIDTH, slot, tag};
use crate::workload::Workload;

impl Crowd<ByUid> {
    /// All of them, and the list of those that it holds: of several with one uid the last.
    pub(crate) fn of_all(mut all: Vec<Arc<Workload>>) -> (Self, Vec<Arc<Workload>>) {
        let mut hashed = Hashed::of::<ByUid>(&all);
        let mut before: Vec<u32> = Vec::new();
        hashed.sort_unstable_by_key(|of| (of.hash, of.at));
        for alike in hashed.chunk_by(|a, b| a.hash == b.hash) {
            for (at, one) in alike.iter().enumerate() {
                let same = |of: &Hashed| all[of.at as usize].uid == all[one.at as usize].uid;
                if alike[at + 1..].iter().any(same) {
                    before.push(one.at);
                }
            }
        }
        if !before.is_empty() {
            before.sort_unstable();
            let mut at = 0..;
            all.retain(|_| {
                let at = at.next().unwrap_or_default();
                before.binary_search(&at).is_err()
            });
            return (Self::of_each(&all), all);
        }
        (Self::grown(&all, &mut hashed), all)
    }
}

impl<K: Key> Crowd<K> {
    /// All of them, no two of one uid.
    pub(crate) fn of_each(all: &[Arc<Workload>]) -> Self {
        Self::grown(all, &mut Hashed::of::<K>(all))
    }

    fn grown(all: &[Arc<Workload>], hashed: &mut [Hashed]) -> Self {
        Self {
            root: (!all.is_empty()).then(|| Arc::new(grow(all, hashed, 0))),
            key: PhantomData,
        }
    }
}

/// A member to be placed: its hash, and where it stands in the list.
#[derive(Debug, Clone, Copy)]
struct Hashed {
    hash: u64,
    at: u32,
}

impl Hashed {
    fn of<K: Key>(all: &[Arc<Workload>]) -> Vec<Self> {
        let members = all.iter().zip(0..);
        members
            .map(|(member, at)| Self {
                hash: K::hash(member),
                at,
            })
            .collect()
    }
}

/// The node that insertion of one after the other would have made, with each leaf as large as it must be.
fn grow(all: &[Arc<Workload>], members: &mut [Hashed], depth: u32) -> Node {
    if members.len() <= LEAF || depth >= DEEPEST {
        let mut tags = [0; LEAF];
        for (tag_here, member) in tags.iter_mut().zip(&*members) {
            *tag_here = tag(member.hash);
        }
        let members = members.iter().map(|of| all[of.at as usize].clone());
        return Node::Leaf(Leaf {
            members: members.collect(),
            tags,
        });
    }
    members.sort_unstable_by_key(|of| slot(of.hash, depth));
    let mut below = Box::new([const { None }; WIDTH]);
    for group in members.chunk_by_mut(|a, b| slot(a.hash, depth) == slot(b.hash, depth)) {
        let place = slot(group[0].hash, depth);
        below[place] = Some(Arc::new(grow(all, group, depth + 1)));
    }
    let count = members.len();
    Node::Fork { count, below }
}
