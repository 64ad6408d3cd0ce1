//! The pods of this node: which are served, which wait, which are leaving.
//!
//! Written by the agent's loop alone, read by the admin door.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::pod::Pod;

/// The pods of this node. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<Pods>>);

#[derive(Debug, Default)]
struct Pods {
    up: BTreeMap<Arc<str>, Arc<Pod>>,
    pending: BTreeMap<Arc<str>, Description>,
    draining: Vec<Arc<Pod>>,
}

/// What the node agent said of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// A pod as the admin door shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Kubernetes' pod UID.
    pub uid: Arc<str>,
    /// `Up`, `Pending` or `Draining`, as Istio has it.
    pub state: &'static str,
    /// Who it is.
    pub pod: Description,
}

impl Roster {
    /// The pod that is served under this uid.
    pub fn up(&self, uid: &str) -> Option<Arc<Pod>> {
        self.lock().up.get(uid).cloned()
    }

    /// Everything, for a dump.
    pub fn list(&self) -> Vec<Listed> {
        let pods = self.lock();
        let served = |pod: &Arc<Pod>, state| Listed {
            uid: pod.uid.clone(),
            state,
            pod: Description::of(pod),
        };
        let up = pods.up.values().map(|pod| served(pod, "Up"));
        let pending = pods.pending.iter().map(|(uid, pod)| Listed {
            uid: uid.clone(),
            state: "Pending",
            pod: pod.clone(),
        });
        let draining = pods.draining.iter().map(|pod| served(pod, "Draining"));
        up.chain(pending).chain(draining).collect()
    }

    pub(crate) fn set_up(&self, pod: Arc<Pod>) {
        let mut pods = self.lock();
        pods.pending.remove(&pod.uid);
        pods.up.insert(pod.uid.clone(), pod);
    }

    pub(crate) fn set_pending(&self, uid: Arc<str>, pod: Description) {
        self.lock().pending.insert(uid, pod);
    }

    pub(crate) fn forget_pending(&self, uid: &str) {
        self.lock().pending.remove(uid);
    }

    /// Takes a pod out of service; it is listed as draining until [`Roster::gone`].
    pub(crate) fn set_draining(&self, uid: &str) -> Option<Arc<Pod>> {
        let mut pods = self.lock();
        let pod = pods.up.remove(uid)?;
        pods.draining.push(pod.clone());
        Some(pod)
    }

    pub(crate) fn gone(&self, pod: &Arc<Pod>) {
        self.lock()
            .draining
            .retain(|other| !Arc::ptr_eq(other, pod));
    }

    /// Uids served now that are not in `kept`.
    pub(crate) fn not_in(&self, kept: &BTreeSet<Arc<str>>) -> Vec<Arc<str>> {
        self.lock()
            .up
            .keys()
            .filter(|uid| !kept.contains(*uid))
            .cloned()
            .collect()
    }

    /// How many are served, how many wait.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let pods = self.lock();
        (pods.up.len(), pods.pending.len())
    }

    fn lock(&self) -> MutexGuard<'_, Pods> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Description {
    fn of(pod: &Pod) -> Self {
        Self {
            name: pod.name.to_string(),
            namespace: pod.namespace.to_string(),
            service_account: pod.service_account.to_string(),
        }
    }
}
