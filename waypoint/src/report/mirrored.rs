//! What became of copies of requests, for each service that gets some.
//!
//! Names come from the mesh's objects; beyond [`MOST`] of them new ones fall together in one. Where a copy was given up
//! for what it would have kept waiting here, somebody is told, now and then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What became of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// It was answered.
    Answered,
    /// It could not be sent, or broke off.
    Failed,
    /// It was not answered in time.
    Late,
    /// Its endpoint took its body so slowly that it was given up.
    Behind,
    /// There were as many on their way as there may be.
    Crowded,
}

/// As [`Copied`] has them.
pub(super) const OUTCOMES: [&str; 5] = ["answered", "failed", "late", "behind", "crowded"];

/// All of them. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Mirrored(Arc<Mutex<BTreeMap<Box<str>, Copies>>>);

#[derive(Debug, Default)]
struct Copies {
    outcomes: [u64; OUTCOMES.len()],
    complained: Option<Instant>,
}

impl Mirrored {
    pub(super) fn count(&self, service: &str, copied: Copied) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = match all.len() >= MOST && !all.contains_key(service) {
            true => "unknown",
            false => service,
        };
        if !all.contains_key(name) {
            all.insert(name.into(), Copies::default());
        }
        let Some(copies) = all.get_mut(name) else {
            return;
        };
        copies.outcomes[copied as usize] += 1;
        let quiet = |last: Instant| last.elapsed() < COMPLAIN;
        let tells = matches!(copied, Copied::Behind | Copied::Crowded);
        if !tells || copies.complained.is_some_and(quiet) {
            return;
        }
        copies.complained = Some(Instant::now());
        let [.., behind, crowded] = copies.outcomes;
        drop(all);
        tracing::warn!(service, behind, crowded, "mirror: copies are given up");
    }

    /// Each service with the outcomes of its copies.
    pub(super) fn all(&self) -> Vec<(String, [u64; OUTCOMES.len()])> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let each = all
            .iter()
            .map(|(name, copies)| (name.to_string(), copies.outcomes));
        each.collect()
    }
}

/// Services.
const MOST: usize = 1_000;
/// Between two complaints about one of them.
const COMPLAIN: Duration = Duration::from_secs(30);
