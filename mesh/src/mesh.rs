//! Who holds the current snapshot, and who is told when it changes.
//!
//! One [`Writer`] makes snapshots; any number of readers load the current one without waiting.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::change::{Effect, Gathered, Step, Update};
use crate::names::Interner;
use crate::parse::Rejected;
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// The holder of the current snapshot.
#[derive(Debug)]
pub struct Mesh {
    current: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
    policies_changed: watch::Sender<u64>,
}

/// Makes the next snapshot; there is one per mesh.
#[derive(Debug)]
pub struct Writer {
    mesh: Arc<Mesh>,
    next: Snapshot,
    /// What the parts that nobody sees yet did to `next`.
    unseen: Effect,
    /// The workloads that they brought, if `next` has none.
    gathered: Option<Gathered>,
    names: Interner,
}

impl Mesh {
    /// An empty mesh and its writer.
    #[allow(clippy::new_ret_no_self)] // the two come into being together
    pub fn new() -> (Arc<Self>, Writer) {
        let mesh = Arc::new(Self {
            current: ArcSwap::default(),
            changed: watch::Sender::new(0),
            policies_changed: watch::Sender::new(0),
        });
        let writer = Writer {
            mesh: mesh.clone(),
            next: Snapshot::default(),
            unseen: Effect::default(),
            gathered: None,
            names: Interner::default(),
        };
        (mesh, writer)
    }

    /// The current snapshot: one atomic load. Load once per connection, at the top. The guard is
    /// for the moment; what is kept across an await is [`Mesh::load_full`].
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The same, to be kept across an await.
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Counts snapshots.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Counts snapshots in which the policies of some workload may be others than before: what
    /// open connections must be judged again for.
    pub fn policies_changed(&self) -> watch::Receiver<u64> {
        self.policies_changed.subscribe()
    }

    /// Waits until the workload of a pod is known. May be dropped at any time.
    pub async fn wait_for_pod(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
        node: &str,
    ) -> Arc<Workload> {
        let mut changed = self.changed();
        loop {
            changed.mark_unchanged(); // before the look, so that a change after it is not missed
            if let Some(found) = self
                .load()
                .workload_of_pod(namespace, name, service_account, node)
            {
                return found.clone();
            }
            // The sender lives in self, so it cannot be gone while we wait.
            let _ = changed.changed().await;
        }
    }
}

impl Writer {
    /// The mesh that is written.
    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }

    /// Applies an update as one step: readers see all of it or nothing, also when it comes in
    /// parts. Returns what was refused; of those names the last good version stays.
    pub fn apply(&mut self, update: Update) -> Vec<Rejected> {
        let step = update.step;
        if step == Step::Withdrawn {
            self.next = Snapshot::clone(&self.mesh.load());
            (self.unseen, self.gathered) = Default::default();
            return Vec::new();
        }
        if self.next.has_no_workload() {
            self.gathered.get_or_insert_default();
        }
        let effect = self.next.apply(update, &mut self.names, &mut self.gathered);
        self.unseen.changed |= effect.changed;
        self.unseen.policies_changed |= effect.policies_changed;
        if step == Step::Complete {
            self.publish();
        }
        effect.rejected
    }

    fn publish(&mut self) {
        let seen = std::mem::take(&mut self.unseen);
        if seen.changed {
            self.mesh.current.store(Arc::new(self.next.clone()));
            self.mesh.changed.send_modify(|count| *count += 1);
        }
        if seen.policies_changed {
            self.mesh.policies_changed.send_modify(|count| *count += 1);
        }
    }
}
