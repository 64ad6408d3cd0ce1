//! From the objects to the catalog: the one owner of the world, on a thread of its own. Reading
//! files and recomputing a large mesh takes seconds, and no stream should wait for them.
//!
//! 1. a batch of changed objects, from a directory or from a cluster   (`Source`)
//! 2. each fault is said once, with file and line
//! 3. the world recomputes what depends on them        [`World::apply`], and its remarks are said
//! 4. pods go into the roster, for the authority
//! 5. resources go into the catalog, which is published at once when it is quiet and in few
//!    rounds when it is not                            [`Debounce`]
//! 6. what proxies refuse comes back, for the statuses [`Refusals`]
//! 7. whoever has left a waypoint is told there for a while yet, and then no more [`World::pass`]

mod addresses;
mod words;

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::k8s::dir::{Change, Directory, Fault};
use api::k8s::objects::{Kind, Object, ObjectKey, WorkloadEntry, WorkloadGroup};
use arc_swap::ArcSwap;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::catalog::{Publisher, Reader};
use crate::cluster::Cluster;
use crate::metrics::{Metrics, Trigger};
use crate::push::{Debounce, Refusals};
use crate::roster::{Pod, Roster};
use crate::world::{Changed, Settings, World};
use crate::write::status;
use addresses::AutomaticAddresses;
pub use words::line;
use words::say;

/// Where the objects come from.
pub enum Origin {
    /// A directory of YAML.
    Directory {
        /// The directory.
        config: PathBuf,
        /// Where we keep what must outlive us.
        state: PathBuf,
    },
    /// A cluster, which keeps what must outlive us.
    Cluster(Box<Cluster>),
}

/// The owner.
pub struct Feed {
    source: Source,
    world: World,
    publisher: Publisher,
    statuses: watch::Sender<status::Book>,
    debounce: Debounce,
    addresses: Option<AutomaticAddresses>,
    said: HashSet<Fault>,
    /// From when the world's time counts.
    begun: Instant,
    /// Everything was read.
    is_running: bool,
    views: Views,
    metrics: Arc<Metrics>,
}

enum Source {
    Directory {
        directory: Box<Directory>,
        is_read: bool,
    },
    Cluster(Box<Cluster>),
}

impl Source {
    async fn next(&mut self) -> Vec<Change> {
        match self {
            Self::Directory { directory, is_read } => {
                let changes = directory.next().await;
                *is_read = true;
                changes
            }
            Self::Cluster(cluster) => cluster.next().await,
        }
    }

    /// Whether everything that was there at the start has been handed out.
    fn is_read(&self) -> bool {
        match self {
            Self::Directory { is_read, .. } => *is_read,
            Self::Cluster(cluster) => cluster.is_read(),
        }
    }

    /// Secrets and ConfigMaps that policies name. In a directory all are read.
    fn want(&mut self, wanted: &BTreeSet<ObjectKey>) {
        if let Self::Cluster(cluster) = self {
            cluster.want(wanted);
        }
    }

    /// Whether it is known what of them there is.
    fn knows_wanted(&self) -> bool {
        match self {
            Self::Directory { .. } => true,
            Self::Cluster(cluster) => cluster.knows_wanted(),
        }
    }

    fn faults(&self) -> Vec<Fault> {
        match self {
            Self::Directory { directory, .. } => directory.faults(),
            Self::Cluster(cluster) => cluster.faults(),
        }
    }
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
    /// The objects of the kinds [`NAMED`] there are.
    pub names: Arc<ArcSwap<imbl::HashSet<ObjectKey>>>,
    /// What the statuses of objects should say.
    pub statuses: watch::Receiver<status::Book>,
    /// What proxies refuse, which the streams say.
    pub refusals: Arc<Refusals>,
    /// WorkloadGroups, by namespace and name.
    pub groups: watch::Sender<Groups>,
    /// The WorkloadEntries there are, as they are written.
    pub entries: Arc<ArcSwap<Entries>>,
    /// The cluster's own network.
    pub network: Arc<ArcSwap<String>>,
}

/// WorkloadGroups.
pub type Groups = imbl::HashMap<ObjectKey, Arc<WorkloadGroup>>;
/// WorkloadEntries.
pub type Entries = imbl::HashMap<ObjectKey, Arc<WorkloadEntry>>;

/// What it takes to fill the views.
pub struct Fill {
    views: Views,
    publisher: Publisher,
    statuses: watch::Sender<status::Book>,
}

/// Kinds whose objects policies name.
pub const NAMED: [Kind; 4] = [
    Kind::Service,
    Kind::ServiceEntry,
    Kind::Gateway,
    Kind::GatewayClass,
];

/// Views that show nothing yet, and what it takes to fill them.
pub fn views() -> (Fill, Views) {
    let (publisher, catalog) = Publisher::new();
    let (statuses, said) = watch::channel(status::Book::new());
    let views = Views {
        catalog,
        roster: Arc::default(),
        faults: Arc::default(),
        names: Arc::default(),
        statuses: said,
        refusals: Arc::default(),
        groups: watch::Sender::default(),
        entries: Arc::default(),
        network: Arc::default(),
    };
    let fill = Fill {
        views: views.clone(),
        publisher,
        statuses,
    };
    (fill, views)
}

impl Feed {
    /// Opens the source and takes in everything there is: when this returns, the views show
    /// all of it. Proxies must not connect earlier, they would be told that nothing exists. From
    /// then on the views are kept current until `stop`.
    ///
    /// # Errors
    /// When a directory cannot be read or watched, or the state not be kept. A cluster that cannot
    /// be reached is waited for.
    pub async fn start(
        origin: Origin,
        settings: Settings,
        fill: Fill,
        debounce: Debounce,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let (opened, ready) = oneshot::channel();
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
                let mut feed = match Self::open(origin, settings, fill, debounce, metrics) {
                    Ok(feed) => feed,
                    Err(error) => return drop(opened.send(Err(error))),
                };
                if stop.run_until_cancelled(feed.read()).await.is_none() {
                    return;
                }
                let _ = opened.send(Ok(()));
                feed.run(stop).await;
            });
        };
        std::thread::Builder::new()
            .name("feed".to_owned())
            .spawn(life)?;
        let ended = |_| Err(io::Error::other("the thread that reads it ended"));
        ready.await.unwrap_or_else(ended)
    }

    fn open(
        origin: Origin,
        settings: Settings,
        fill: Fill,
        debounce: Debounce,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let mut world = World::new(settings);
        let mut addresses = None;
        let source = match origin {
            Origin::Cluster(cluster) => Source::Cluster(cluster),
            Origin::Directory { config, state } => {
                let file = state.join("automatic-addresses");
                addresses = Some(AutomaticAddresses::restore(file, &mut world)?);
                Source::Directory {
                    directory: Box::new(Directory::open(config)?),
                    is_read: false,
                }
            }
        };
        Ok(Self {
            source,
            addresses,
            world,
            publisher: fill.publisher,
            statuses: fill.statuses,
            debounce,
            said: HashSet::new(),
            begun: Instant::now(),
            is_running: false,
            views: fill.views,
            metrics,
        })
    }

    /// Takes in everything there is. What is said of a part of it would be wrong a moment later.
    async fn read(&mut self) {
        while !self.source.is_read() {
            let changes = self.source.next().await;
            self.take(changes);
        }
        self.want_credentials();
        let asked = async {
            while !self.source.knows_wanted() {
                let changes = self.source.next().await;
                self.take(changes);
            }
        };
        // A proxy keeps a key only if we do not say that there is none.
        if tokio::time::timeout(ANSWERS, asked).await.is_err() {
            tracing::warn!(
                "Secrets that policies name were not answered for; TLS that needs them is refused until they are"
            );
        }
        self.is_running = true;
        self.pass_time();
        let mut remarks: Vec<_> = self.world.remarks().collect();
        remarks.sort_unstable();
        remarks
            .iter()
            .for_each(|(object, remark)| say(object, remark));
        self.statuses.send_replace(self.world.statuses().clone());
        self.publish();
    }

    async fn run(mut self, stop: CancellationToken) {
        let mut refused = self.views.refusals.changed();
        refused.mark_changed(); // streams may have been before us
        loop {
            let due = self.debounce.due();
            let left = self.world.due().map(|due| self.begun + due);
            tokio::select! {
                () = stop.cancelled() => return,
                // The sender is among our own views.
                Ok(()) = refused.changed() => self.note_refusals(),
                changes = self.source.next() => self.take(changes),
                () = sleep_until(due) => self.publish(),
                () = sleep_until(left) => self.pass_time(),
            }
        }
    }

    fn want_credentials(&mut self) {
        if matches!(&self.source, Source::Cluster(cluster) if cluster.is_read()) {
            let wanted = self.world.wanted_credentials();
            self.source.want(&wanted);
        }
    }

    fn take(&mut self, changes: Vec<Change>) {
        // A cluster counts by itself: it can tell what is new.
        if matches!(self.source, Source::Directory { .. }) {
            changes.iter().for_each(|change| self.count(change));
        }
        self.say_faults();
        self.note_names(&changes);
        self.note_machines(&changes);
        let pods: Vec<ObjectKey> = changes.iter().filter_map(pod).collect();
        if self.is_running {
            self.pass_time();
        }
        let begun = Instant::now();
        let changed = self.world.apply(changes);
        let seconds = begun.elapsed().as_secs_f64();
        self.metrics.recompute_seconds.observe(seconds);
        self.note_pods(&pods);
        self.note_network();
        self.take_over(changed);
        self.want_credentials();
    }

    /// It is later than it was.
    fn pass_time(&mut self) {
        let changed = self.world.pass(self.begun.elapsed());
        self.take_over(changed);
    }

    /// What proxies refuse is another: the statuses say so.
    fn note_refusals(&mut self) {
        let refused = self.views.refusals.list();
        let changed = self.world.note_refused_by_proxies(refused);
        self.take_over(changed);
    }

    fn take_over(&mut self, changed: Changed) {
        if self.is_running {
            let remarks = changed.remarks.iter();
            remarks.for_each(|(object, remark)| say(object, remark));
        }
        if let Some(addresses) = &mut self.addresses {
            addresses.keep(&self.world);
        }
        if self.is_running && !changed.statuses.is_empty() {
            self.statuses.send_replace(self.world.statuses().clone());
        }
        if changed.addresses.is_empty()
            && changed.authorizations.is_empty()
            && changed.resources.is_empty()
        {
            return;
        }
        tracing::debug!(
            addresses = changed.addresses.len(),
            authorizations = changed.authorizations.len(),
            resources = changed.resources.len(),
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
        let mut roster = Roster::clone(&self.views.roster.load());
        for key in pods {
            match self.world.pod(&key.namespace, &key.name) {
                None => roster.remove(&key.namespace, &key.name),
                Some(pod) => roster.set(Pod {
                    namespace: pod.namespace.to_string(),
                    name: pod.name.to_string(),
                    uid: pod.uid.to_string(),
                    service_account: pod.service_account.to_string(),
                    node: pod.node.to_string(),
                    gateway: pod.gateway.as_deref().map(str::to_owned),
                    failed: &*pod.phase == "Failed",
                }),
            }
        }
        self.views.roster.store(Arc::new(roster));
    }

    fn note_network(&self) {
        let network = self.world.network();
        if self.views.network.load().as_str() != network {
            self.views.network.store(Arc::new(network.to_owned()));
        }
    }

    fn note_names(&self, changes: &[Change]) {
        let mut names = imbl::HashSet::clone(&self.views.names.load());
        let before = names.clone();
        for change in changes {
            match change {
                Change::Set(object) if NAMED.contains(&object.kind()) => {
                    names.insert(object.key());
                }
                Change::Gone(key) if NAMED.contains(&key.kind) => {
                    names.remove(key);
                }
                _ => {}
            }
        }
        if !names.ptr_eq(&before) {
            self.views.names.store(Arc::new(names));
        }
    }

    fn note_machines(&self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Set(object @ Object::WorkloadGroup(group)) => {
                    let (key, group) = (object.key(), group.clone());
                    self.views
                        .groups
                        .send_modify(|groups| drop(groups.insert(key, group)));
                }
                Change::Gone(key) if key.kind == Kind::WorkloadGroup => {
                    self.views
                        .groups
                        .send_modify(|groups| drop(groups.remove(key)));
                }
                Change::Set(object @ Object::WorkloadEntry(entry)) => {
                    let entries = self
                        .views
                        .entries
                        .load()
                        .update(object.key(), entry.clone());
                    self.views.entries.store(Arc::new(entries));
                }
                Change::Gone(key) if key.kind == Kind::WorkloadEntry => {
                    let entries = self.views.entries.load().without(key);
                    self.views.entries.store(Arc::new(entries));
                }
                _ => {}
            }
        }
    }

    fn say_faults(&mut self) {
        let faults = self.source.faults();
        for fault in faults.iter().filter(|fault| !self.said.contains(fault)) {
            let in_a_file = fault.line > 0;
            tracing::warn!(
                file = in_a_file.then(|| tracing::field::display(fault.file.display())),
                line = in_a_file.then_some(fault.line),
                object = fault.object.as_ref().map(tracing::field::display),
                reason = fault.reason,
                "object refused; an earlier good version stays"
            );
        }
        let lines = faults.iter().map(line).collect();
        self.views.faults.store(Arc::new(lines));
        self.said = faults.into_iter().collect();
    }

    fn count(&self, change: &Change) {
        let (kind, event) = match change {
            Change::Set(object) => (Some(object.kind()), "update"),
            Change::Gone(key) => (Some(key.kind), "delete"),
            Change::Invalid(fault) => (fault.object.as_ref().map(|key| key.kind), "invalid"),
        };
        self.metrics.object_event(kind, event);
    }
}

/// How long the first answers of all that is named may take together.
const ANSWERS: Duration = Duration::from_secs(15);

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
