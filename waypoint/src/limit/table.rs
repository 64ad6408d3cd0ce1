//! Many buckets in bounded memory: who asks decides how many kinds there are, but not how many are remembered.
//!
//! Two generations: who has asked lately is in the young one. When that is full, the old one is forgotten and the
//! young one becomes the old: whoever goes on asking is always remembered, and a flood of new kinds costs a bounded
//! table and makes only those start anew who were silent meanwhile.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::bucket::{Answer, Bucket, Measure};

/// The buckets of one limit.
#[derive(Debug)]
pub(super) struct Table {
    shards: [Mutex<Shard>; SHARDS],
    /// Secret: nobody can aim at another's bucket.
    hasher: RandomState,
    start: Instant,
}

#[derive(Debug, Default)]
struct Shard {
    young: HashMap<u64, Bucket>,
    old: HashMap<u64, Bucket>,
}

/// Which bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(u64);

impl Table {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            start,
        }
    }

    pub(super) fn kind(&self, of: impl Hash) -> Kind {
        Kind(self.hasher.hash_one(of))
    }

    /// One more of that kind.
    pub(super) fn take(&self, measure: &Measure, kind: Kind, now: Instant) -> Answer {
        let now = now.saturating_duration_since(self.start).as_nanos() as u64;
        self.with(kind, |bucket| measure.take(bucket, now))
    }

    /// It did not happen after all.
    pub(super) fn give_back(&self, measure: &Measure, kind: Kind) {
        self.with(kind, |bucket| measure.give_back(bucket));
    }

    fn with<T>(&self, kind: Kind, act: impl FnOnce(&mut Bucket) -> T) -> T {
        let shard = &self.shards[kind.0 as usize % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = shard.young.get_mut(&kind.0) {
            return act(bucket);
        }
        let mut bucket = shard.old.remove(&kind.0).unwrap_or_default();
        let result = act(&mut bucket);
        if shard.young.len() >= IN_SHARD {
            shard.old = std::mem::take(&mut shard.young);
        }
        shard.young.insert(kind.0, bucket);
        result
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        let shards = self.shards.iter();
        shards
            .map(|shard| {
                let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                shard.young.len() + shard.old.len()
            })
            .sum()
    }
}

const SHARDS: usize = 16;
/// 2 × 16 × 2,048 buckets: about two megabytes a limit, if somebody tries.
const IN_SHARD: usize = 2_048;
