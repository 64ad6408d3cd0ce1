//! From the directory to the catalog: the one owner of the world, on a thread of its own. Reading
//! files and recomputing a large mesh takes seconds, and no stream should wait for them.
//!
//! 1. a batch of changed objects                       [`Directory::next`]
//! 2. each fault is said once, with file and line
//! 3. the world recomputes what depends on them        [`World::apply`], and its remarks are said
//! 4. pods go into the roster, for the authority
//! 5. resources go into the catalog, which is published at once when it is quiet and in few
//!    rounds when it is not                            [`Debounce`]

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use api::k8s::dir::{Change, Directory, Fault};
use api::k8s::objects::{Kind, ObjectKey};
use arc_swap::ArcSwap;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Publisher, Reader};
use crate::disk;
use crate::metrics::{Metrics, ObjectEvent, Trigger};
use crate::push::Debounce;
use crate::roster::{Pod, Roster};
use crate::world::{Settings, World};

/// The owner.
pub struct Feed {
    directory: Directory,
    world: World,
    publisher: Publisher,
    debounce: Debounce,
    addresses: AutomaticAddresses,
    said: HashSet<Fault>,
    roster: Arc<ArcSwap<Roster>>,
    faults: Arc<ArcSwap<Vec<String>>>,
    metrics: Arc<Metrics>,
}

/// What others read.
#[derive(Clone)]
pub struct Views {
    /// Of the streams.
    pub catalog: Reader,
    /// Of the authority.
    pub roster: Arc<ArcSwap<Roster>>,
    /// The faults that stand, one line each.
    pub faults: Arc<ArcSwap<Vec<String>>>,
}

impl Feed {
    /// Opens the directory and takes in everything there is: when this returns, the views show
    /// all of it. Proxies must not connect earlier, they would be told that nothing exists. From
    /// then on the views are kept current until `stop`.
    ///
    /// # Errors
    /// When the directory cannot be read or watched, or the state not be kept.
    pub async fn start(
        directory: PathBuf,
        state: PathBuf,
        settings: Settings,
        debounce: Debounce,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> io::Result<Views> {
        let (opened, views) = oneshot::channel();
        let life = || {
            // Whoever does not wait for the outcome any more has cancelled `stop`.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(opened.send(Err(error))),
            };
            runtime.block_on(async move {
                match Self::open(&directory, &state, settings, debounce, metrics).await {
                    Ok((feed, views)) => {
                        let _ = opened.send(Ok(views));
                        feed.run(stop).await;
                    }
                    Err(error) => drop(opened.send(Err(error))),
                }
            });
        };
        std::thread::Builder::new()
            .name("feed".to_owned())
            .spawn(life)?;
        let ended = |_| Err(io::Error::other("the thread that reads it ended"));
        views.await.unwrap_or_else(ended)
    }

    async fn open(
        directory: &Path,
        state: &Path,
        settings: Settings,
        debounce: Debounce,
        metrics: Arc<Metrics>,
    ) -> io::Result<(Self, Views)> {
        let (publisher, catalog) = Publisher::new();
        let mut world = World::new(settings);
        let views = Views {
            catalog,
            roster: Arc::default(),
            faults: Arc::default(),
        };
        let mut feed = Self {
            directory: Directory::open(directory)?,
            addresses: AutomaticAddresses::restore(state.join("automatic-addresses"), &mut world)?,
            world,
            publisher,
            debounce,
            said: HashSet::new(),
            roster: views.roster.clone(),
            faults: views.faults.clone(),
            metrics,
        };
        let everything = feed.directory.next().await;
        feed.take(everything);
        feed.publish();
        Ok((feed, views))
    }

    async fn run(mut self, stop: CancellationToken) {
        loop {
            let due = self.debounce.due();
            tokio::select! {
                () = stop.cancelled() => return,
                changes = self.directory.next() => self.take(changes),
                () = sleep_until(due) => self.publish(),
            }
        }
    }

    fn take(&mut self, changes: Vec<Change>) {
        changes.iter().for_each(|change| self.count(change));
        self.say_faults();
        let pods: Vec<ObjectKey> = changes.iter().filter_map(pod).collect();
        let changed = self.world.apply(changes);
        // Taken, but not all of it counts: whoever wrote the object should hear of it once.
        for (object, remark) in &changed.remarks {
            tracing::warn!(%object, remark, "object taken with a remark");
        }
        self.note_pods(&pods);
        self.addresses.keep(&self.world);
        if changed.addresses.is_empty() && changed.authorizations.is_empty() {
            return;
        }
        tracing::debug!(
            addresses = changed.addresses.len(),
            authorizations = changed.authorizations.len(),
            "resources changed"
        );
        self.publisher.take(&self.world, &changed);
        self.debounce.changed(Instant::now());
    }

    fn publish(&mut self) {
        self.publisher.publish();
        let waited = self.debounce.published(Instant::now());
        self.metrics.debounce_seconds.observe(waited.as_secs_f64());
        self.metrics
            .push_triggers
            .get_or_create(&Trigger { r#type: "config" })
            .increment();
        let services = i64::try_from(self.publisher.services()).unwrap_or(i64::MAX);
        self.metrics.services.set(services);
    }

    /// At once, not with the next publication: a node's proxy asks for a pod's certificate when
    /// the pod starts.
    fn note_pods(&self, pods: &[ObjectKey]) {
        if pods.is_empty() {
            return;
        }
        let mut roster = Roster::clone(&self.roster.load());
        for key in pods {
            match self.world.pod(&key.namespace, &key.name) {
                None => roster.remove(&key.namespace, &key.name),
                Some(pod) => roster.set(Pod {
                    namespace: pod.namespace.to_string(),
                    name: pod.name.to_string(),
                    uid: pod.uid.to_string(),
                    service_account: pod.service_account.to_string(),
                    node: pod.node.to_string(),
                    failed: &*pod.phase == "Failed",
                }),
            }
        }
        self.roster.store(Arc::new(roster));
    }

    fn say_faults(&mut self) {
        let faults = self.directory.faults();
        for fault in faults.iter().filter(|fault| !self.said.contains(fault)) {
            tracing::warn!(
                file = %fault.file.display(),
                line = fault.line,
                object = fault.object.as_ref().map(tracing::field::display),
                reason = fault.reason,
                "document refused; an earlier good version stays"
            );
        }
        self.faults
            .store(Arc::new(faults.iter().map(line).collect()));
        self.said = faults.into_iter().collect();
    }

    fn count(&self, change: &Change) {
        let (kind, event) = match change {
            Change::Set(object) => (Some(object.kind()), "update"),
            Change::Gone(key) => (Some(key.kind), "delete"),
            Change::Invalid(fault) => (fault.object.as_ref().map(|key| key.kind), "invalid"),
        };
        let family = match kind {
            Some(
                Kind::Pod
                | Kind::Service
                | Kind::EndpointSlice
                | Kind::Node
                | Kind::Namespace
                | Kind::ServiceAccount,
            ) => &self.metrics.registry_events,
            _ => &self.metrics.config_events,
        };
        let event = ObjectEvent {
            r#type: kind.map_or("unknown", Kind::name),
            event,
        };
        family.get_or_create(&event).increment();
    }
}

/// `file:line: object: reason`
pub fn line(fault: &Fault) -> String {
    let (file, line, reason) = (fault.file.display(), fault.line, &fault.reason);
    match &fault.object {
        Some(object) => format!("{file}:{line}: {object}: {reason}"),
        None => format!("{file}:{line}: {reason}"),
    }
}

fn pod(change: &Change) -> Option<ObjectKey> {
    let key = match change {
        Change::Set(object) => object.key(),
        Change::Gone(key) => key.clone(),
        Change::Invalid(_) => return None,
    };
    (key.kind == Kind::Pod).then_some(key)
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// The addresses we gave to hosts without one: a host must keep its own over restarts.
struct AutomaticAddresses {
    file: PathBuf,
    kept: String,
}

impl AutomaticAddresses {
    fn restore(file: PathBuf, world: &mut World) -> io::Result<Self> {
        let kept = disk::read_if_any(&file)?.unwrap_or_default();
        for line in world.restore_automatic_addresses(&kept) {
            tracing::warn!(file = %file.display(), line, "not an automatic address, left out");
        }
        Ok(Self { file, kept })
    }

    /// Before they are published: an address that was told and then forgotten could go to another.
    fn keep(&mut self, world: &World) {
        let now = world.automatic_addresses();
        if now == self.kept {
            return;
        }
        match disk::replace(&self.file, now.as_bytes(), disk::PUBLIC) {
            Ok(()) => self.kept = now,
            Err(error) => {
                tracing::error!(file = %self.file.display(), %error, "automatic addresses cannot be kept")
            }
        }
    }
}
