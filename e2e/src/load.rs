//! What a load generator counted: written by the program in the pod (`app/load.rs`), read by the tests.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// Requests of one kind, counted one by one.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Answered with 200.
    pub answered: u64,
    /// By which pod.
    pub by: BTreeMap<String, u64>,
    /// Everything else, by what happened: `refused`, `reset`, `closed`, `timeout`, `status 503` …
    pub failed: BTreeMap<String, u64>,
    /// The slowest answer, milliseconds.
    pub slowest_ms: u64,
    /// The longest time without an answer, milliseconds.
    pub gap_ms: u64,
}

/// What a run of load saw.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// A connection for every request.
    pub fresh: Counts,
    /// Requests on connections that were opened once and kept. A kept connection that ends is a failure, and is opened again.
    pub kept: Counts,
}

impl Counts {
    /// How many failed.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

impl Tally {
    /// How many were answered, of both kinds.
    pub fn answers(&self) -> u64 {
        self.fresh.answered + self.kept.answered
    }

    /// How many failed, of both kinds.
    pub fn failures(&self) -> u64 {
        self.fresh.failures() + self.kept.failures()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered, {} failed", self.answered, self.failures())?;
        if !self.failed.is_empty() {
            write!(f, " {:?}", self.failed)?;
        }
        write!(
            f,
            ", slowest {} ms, longest gap {} ms",
            self.slowest_ms, self.gap_ms
        )
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "new connections: {}; kept connections: {}",
            self.fresh, self.kept
        )
    }
}
