//! Whether the process may be sent work: all of its named gates are open.
//!
//! Each part that must be up before the process counts as ready holds a [`Gate`] and opens or
//! closes it; the readiness door prints the names of those still closed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The gates of one process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, bool>>>);

/// One part's say in whether the process is ready. Starts closed.
#[derive(Clone, Debug)]
pub struct Gate {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// No gates yet: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a closed gate. `name` is what the operator reads while it is closed.
    pub fn gate(&self, name: &'static str) -> Gate {
        let gate = Gate {
            name,
            readiness: self.clone(),
        };
        gate.close();
        gate
    }

    /// The gates that are still closed, in alphabetical order. Empty: ready.
    pub fn missing(&self) -> Vec<&'static str> {
        let gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates
            .iter()
            .filter(|(_, open)| !**open)
            .map(|(name, _)| *name)
            .collect()
    }
}

impl Gate {
    /// This part is up.
    pub fn open(&self) {
        self.set(true);
    }

    /// This part is down (again).
    pub fn close(&self) {
        self.set(false);
    }

    fn set(&self, open: bool) {
        let was = self
            .readiness
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.name, open);
        if was.is_some_and(|was| was != open) {
            tracing::info!(gate = self.name, open, missing = ?self.readiness.missing(), "readiness changed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_while_every_gate_is_open() {
        let readiness = Readiness::new();
        assert!(readiness.missing().is_empty());
        let (zds, xds) = (readiness.gate("zds"), readiness.gate("xds"));
        assert_eq!(readiness.missing(), ["xds", "zds"]);
        zds.open();
        assert_eq!(readiness.missing(), ["xds"]);
        xds.open();
        assert!(readiness.missing().is_empty());
        zds.close();
        assert_eq!(readiness.missing(), ["zds"]);
    }
}
