//! What came of asking others about requests: authorizers, rate limit services, processors.
//!
//! One series for each who is asked, whose names come from the mesh's objects; beyond [`MOST`] of them new ones fall
//! together in one of each kind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::series::Histogram;

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// Whether a request may pass.
    Authorizer,
    /// How many like it there were.
    Counter,
    /// Shown it, piece by piece; each answer counts.
    Processor,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The request goes on.
    Passes,
    /// It ends with the answer: no, too many, or one in the app's place.
    Refuses,
    /// There was no answer in time.
    Late,
    /// It could not be asked, or said what nobody understands.
    Fails,
}

/// The numbers of one who is asked.
#[derive(Debug, Default)]
pub struct Answers {
    outcomes: [AtomicU64; OUTCOMES.len()],
    pub(super) took: Histogram,
}

/// Kind and name of one that is asked, as a metric has them.
pub(super) type Labels = [(&'static str, String); 2];

impl Answers {
    /// It was asked once, and it took so long until it was known what came of it.
    pub fn count(&self, outcome: Outcome, took: Duration) {
        self.outcomes[outcome as usize].fetch_add(1, Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.took.observe(micros, 1_000);
    }

    /// By their labels.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.outcomes.iter().map(|count| count.load(Relaxed));
        OUTCOMES.into_iter().zip(counts)
    }
}

/// All of them. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked(Arc<Mutex<BTreeMap<Key, Arc<Answers>>>>);

type Key = (Who, Arc<str>);

impl Asked {
    pub(super) fn of(&self, who: Who, name: &str) -> Arc<Answers> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (who, Arc::from(name));
        if all.len() >= MOST && !all.contains_key(&key) {
            key = (who, Arc::from("unknown"));
        }
        all.entry(key).or_default().clone()
    }

    /// Each with its labels: kind and name.
    pub(super) fn all(&self) -> Vec<(Labels, Arc<Answers>)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let labelled = all.iter().map(|((who, name), answers)| {
            let labels = [
                ("kind", who.label().to_owned()),
                ("provider", name.to_string()),
            ];
            (labels, answers.clone())
        });
        labelled.collect()
    }
}

impl Who {
    fn label(self) -> &'static str {
        match self {
            Self::Authorizer => "ext_authz",
            Self::Counter => "ratelimit",
            Self::Processor => "ext_proc",
        }
    }
}

/// As [`Outcome`] has them.
const OUTCOMES: [&str; 4] = ["ok", "refused", "timeout", "error"];
/// Of all kinds together.
const MOST: usize = 1_000;
