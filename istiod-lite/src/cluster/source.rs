//! The owner of all watches: what they say becomes one stream of changes, as a directory's.
//!
//! 1. the definitions in the cluster say which kinds there are           ([`super::definitions`])
//! 2. each kind is followed by a task of its own                         ([`super::watch`])
//! 3. what they say is taken in, one after the other, by the book        ([`super::book`])
//! 4. the first batches, to the end of every list, are everything there is  ([`Cluster::is_read`])

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;

use api::k8s::dir::{Change, Fault};
use api::k8s::objects::{Kind, ObjectKey};
use futures_util::StreamExt as _;
use kube::Client;
use kube::core::ApiResource;
use kube::runtime::watcher;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Connection;
use super::book::{Book, Did, Event, Run};
use super::credentials::{Credentials, Found};
use super::definitions::{self, Definition, NATIVE};
use super::trouble::Health;
use super::watch::{self, Watch};
use crate::metrics::Metrics;

/// The kinds that are defined, and how to ask for them.
pub type Kinds = Arc<BTreeMap<Kind, ApiResource>>;

/// The objects of a cluster.
pub struct Cluster {
    client: Client,
    /// Where the watches run. Not where they are read: a large change takes a while to think over.
    runtime: Handle,
    health: Health,
    inbox: mpsc::Receiver<Heard>,
    outbox: mpsc::Sender<Heard>,
    book: Book,
    defined: BTreeMap<Kind, ApiResource>,
    told: tokio::sync::watch::Sender<Kinds>,
    definitions_known: bool,
    tasks: BTreeMap<Kind, AbortOnDropHandle<()>>,
    credentials: Credentials,
    _always: [AbortOnDropHandle<()>; 2],
    changes: Vec<Change>,
    read: bool,
    metrics: Arc<Metrics>,
}

/// What comes in.
#[derive(Debug)]
pub(super) enum Heard {
    /// From the watch of a kind.
    Event { kind: Kind, run: Run, event: Event },
    /// The kinds that are defined now.
    Defined(BTreeMap<Kind, ApiResource>),
    /// One that is named.
    Named { key: ObjectKey, found: Found },
}

impl Cluster {
    /// Begins to read. Call it in the runtime that the watches shall run in.
    pub fn open(connection: &Connection, health: Health, metrics: Arc<Metrics>) -> Self {
        let (outbox, inbox) = mpsc::channel(QUEUE);
        let client = connection.watching.clone();
        let definitions = follow_definitions(client.clone(), health.clone(), outbox.clone());
        let probe = health.clone().probe(connection.client.clone());
        let credentials = Credentials::new(connection.client.clone(), outbox.clone());
        let mut cluster = Self {
            client,
            runtime: Handle::current(),
            health,
            inbox,
            outbox,
            book: Book::default(),
            defined: BTreeMap::new(),
            told: tokio::sync::watch::Sender::default(),
            definitions_known: false,
            tasks: BTreeMap::new(),
            credentials,
            _always: [
                AbortOnDropHandle::new(tokio::spawn(definitions)),
                AbortOnDropHandle::new(tokio::spawn(probe)),
            ],
            changes: Vec::new(),
            read: false,
            metrics,
        };
        for kind in NATIVE {
            cluster.start(kind, None);
        }
        cluster
    }

    /// The next batch of changes; an empty one says that a fault is over, or that everything is read.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Vec<Change> {
        let mut heard = Vec::new();
        loop {
            if self.is_due() {
                return std::mem::take(&mut self.changes);
            }
            // We hold a sender: there is always a next.
            self.inbox.recv_many(&mut heard, QUEUE).await;
            for heard in heard.drain(..) {
                self.take(heard);
            }
        }
    }

    /// Whether everything that was there at the start has been handed out.
    pub fn is_read(&self) -> bool {
        self.read
    }

    fn is_due(&mut self) -> bool {
        if self.read {
            return self.book.take_faults_moved() || !self.changes.is_empty();
        }
        self.read = self.definitions_known && self.book.is_complete();
        if self.read {
            tracing::info!(objects = self.book.len(), "the cluster is read");
        }
        // Not all at once: ours are a fraction of what they are as Kubernetes' structs.
        self.read || self.changes.len() >= BATCH
    }

    /// Secrets and ConfigMaps that are to be read: those, and no others any more.
    pub fn want(&mut self, wanted: &BTreeSet<ObjectKey>) {
        self.changes.extend(self.credentials.want(wanted));
    }

    /// Whether of all of them it is known what there is.
    pub fn knows_wanted(&self) -> bool {
        self.credentials.are_answered() && self.changes.is_empty()
    }

    /// The kinds that are defined, now and whenever it changes.
    pub fn kinds(&self) -> tokio::sync::watch::Receiver<Kinds> {
        self.told.subscribe()
    }

    /// The faults that stand now, in the order of kinds and names.
    pub fn faults(&self) -> Vec<Fault> {
        self.book.faults()
    }

    fn take(&mut self, heard: Heard) {
        match heard {
            Heard::Defined(wanted) => self.define(wanted),
            Heard::Named { key, found } => {
                self.changes.extend(self.credentials.take(key, found));
            }
            Heard::Event { kind, run, event } => {
                let did = self.book.take(kind, run, event, &mut self.changes);
                if let Some(did) = did {
                    self.metrics.object_event(Some(kind), label(did));
                }
            }
        }
    }

    fn define(&mut self, wanted: BTreeMap<Kind, ApiResource>) {
        self.definitions_known = true;
        let (stop, start) = definitions::difference(&self.defined, &wanted);
        for kind in stop {
            self.tasks.remove(&kind);
            // Served in another version now: its objects are there, and policies among them in force, while they are read anew.
            if wanted.contains_key(&kind) {
                continue;
            }
            tracing::info!(%kind, "no longer defined in the cluster");
            let gone = self.book.stop(kind);
            self.changes.extend(gone);
        }
        for (kind, resource) in start {
            tracing::info!(%kind, version = resource.api_version, "defined in the cluster");
            self.start(kind, Some(resource));
        }
        self.told.send_replace(Arc::new(wanted.clone()));
        self.defined = wanted;
    }

    fn start(&mut self, kind: Kind, resource: Option<ApiResource>) {
        let watch = Watch {
            kind,
            run: self.book.start(kind),
            outbox: self.outbox.clone(),
            health: self.health.clone(),
        };
        let client = self.client.clone();
        let task = async move {
            match resource {
                Some(resource) => watch.defined(client, resource).await,
                None => watch.native(client).await,
            }
        };
        let task = AbortOnDropHandle::new(self.runtime.spawn(task));
        self.tasks.insert(kind, task);
    }
}

async fn follow_definitions(client: Client, health: Health, outbox: mpsc::Sender<Heard>) {
    let mut events = pin!(watch::definitions(client, &health));
    let mut known: BTreeMap<String, Definition> = BTreeMap::new();
    // While a list is read, what is in it so far.
    let mut listing = None;
    while let Some(event) = events.next().await {
        match event {
            watcher::Event::Init => listing = Some(BTreeMap::new()),
            watcher::Event::InitApply(it) => note(listing.get_or_insert_default(), it),
            watcher::Event::InitDone => known = listing.take().unwrap_or_default(),
            watcher::Event::Apply(it) => note(&mut known, it),
            watcher::Event::Delete(it) => {
                known.remove(it.metadata.name.as_deref().unwrap_or_default());
            }
        }
        if listing.is_none() {
            let defined = definitions::served(known.values());
            if outbox.send(Heard::Defined(defined)).await.is_err() {
                return;
            }
        }
    }
}

fn note(list: &mut BTreeMap<String, Definition>, definition: Definition) {
    if definitions::concerns_us(&definition) {
        let name = definition.metadata.name.clone().unwrap_or_default();
        list.insert(name, definition);
    }
}

/// Istio's words.
fn label(did: Did) -> &'static str {
    match did {
        Did::Added => "add",
        Did::Updated => "update",
        Did::Repeated => "updatesame",
        Did::Deleted => "delete",
        Did::Refused => "invalid",
    }
}

/// Events that wait: at most a page of each kind waits beside them in its watch.
const QUEUE: usize = 256;
/// Changes handed out at once while everything is read.
const BATCH: usize = 512;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ops::metrics::Registry;
    use serde_json::{Value, json};

    use super::*;
    use crate::write::fake::Fake;

    const DEFINITION: (&str, &str, &str) = (
        "customresourcedefinitions",
        "",
        "authorizationpolicies.security.istio.io",
    );

    fn definition(versions: &[&str]) -> Value {
        let served = |name: &&str| json!({"name": name, "served": true});
        let versions: Vec<Value> = versions.iter().map(served).collect();
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "spec": {
                "group": "security.istio.io", "versions": versions,
                "names": {"kind": "AuthorizationPolicy", "plural": "authorizationpolicies"},
            },
            "status": {"conditions": [{"type": "Established", "status": "True"}]},
        })
    }

    /// `+name` set, `-name` gone, `!name` refused.
    fn short(change: &Change) -> String {
        match change {
            Change::Set(object) => format!("+{}", object.key().name),
            Change::Gone(key) => format!("-{}", key.name),
            Change::Invalid(fault) => format!("!{}", fault.reason),
        }
    }

    async fn next(cluster: &mut Cluster) -> Vec<String> {
        let day = Duration::from_secs(24 * 3600);
        let changes = tokio::time::timeout(day, cluster.next()).await;
        changes.unwrap().iter().map(short).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_is_served_in_another_version_keeps_its_objects_until_they_are_read_anew() {
        let fake = Fake::new();
        let (plural, namespace, name) = DEFINITION;
        fake.put(plural, namespace, name, definition(&["v1beta1"]));
        let policy = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "spec": {
                "action": "DENY",
                "rules": [{"from": [{"source": {"namespaces": ["other"]}}]}],
            },
        });
        fake.put("authorizationpolicies", "shop", "deny", policy);
        let metrics = Metrics::register(&mut Registry::new("pilot", "test"));
        let mut cluster = Cluster::open(&fake.connection(), Health::default(), metrics);
        let mut known = Vec::new();
        while !cluster.is_read() {
            known.extend(next(&mut cluster).await);
        }
        assert_eq!(known, ["+deny"]);
        fake.put(plural, namespace, name, definition(&["v1", "v1beta1"]));
        assert_eq!(next(&mut cluster).await, ["+deny"], "it was never gone");
        fake.remove(plural, namespace, name);
        assert_eq!(next(&mut cluster).await, ["-deny"]);
    }
}
