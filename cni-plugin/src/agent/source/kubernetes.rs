//! The Kubernetes API as a source: watches of this node's pods and of all namespaces.
//!
//! 1. two watches that repair themselves, as one stream         ([`Told`])
//! 2. an object becomes what the agent needs of it, at once     ([`Kubernetes::watch`])
//! 3. a new listing tells what is gone by leaving it out        (`seen`)
//! 4. a runtime that is ahead of the watches: the API is asked  ([`Kubernetes::look_up`])
//! 5. after a failure the API is tried until it answers: meanwhile the agent is not ready
//!    ([`Kubernetes::try_again`]); what was known stays

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered, select};
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1 as core;
use kube::api::{ListParams, WatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use ops::ready::Gate;
use tokio::sync::mpsc;

use super::News;
use super::seen::{Seen, Told as Note};
use crate::agent::cluster::{Patience, UNREACHABLE, Wish, explain, explain_watch, trouble};
use crate::agent::pod::{Pod, PodName, Uid, Words};

type Namespace = PartialObjectMeta<core::Namespace>;
type Labelled = (Arc<str>, Words);

/// What one of the watches says, without what is not needed. No pod: one of another node.
enum Told {
    Pod(Event<Option<Pod>>),
    Namespace(Event<Labelled>),
    Failed(&'static str, watcher::Error),
}

/// What was found of a pod that a runtime named.
struct Found {
    name: PodName,
    pod: Result<Option<core::Pod>, String>,
    namespace: Option<Namespace>,
}

/// The watches and what is asked beside them.
pub(crate) struct Kubernetes {
    client: Client,
    node: String,
    told: BoxStream<'static, Told>,
    pods: Seen<Uid, PodName>,
    namespaces: Seen<Arc<str>, ()>,
    asked: (mpsc::Sender<PodName>, mpsc::Receiver<PodName>),
    lookups: FuturesUnordered<BoxFuture<'static, Found>>,
    trial: Option<BoxFuture<'static, Result<(), String>>>,
    /// Complaints since it last went well, so that none is repeated every few seconds.
    said: BTreeSet<String>,
    /// Open while the API server answers.
    reach: Gate,
}

impl Kubernetes {
    pub(crate) fn watch(client: Client, node: &str, reach: Gate) -> Self {
        let here = node.to_owned();
        let pods = watcher::watcher(Api::<core::Pod>::all(client.clone()), on_node(node))
            .backoff(Patience::default())
            .map(move |event| match event {
                Ok(event) => Told::Pod(map(event, |object| Pod::on_node(&object, &here))),
                Err(error) => Told::Failed(PODS, error),
            });
        let namespaces = watcher::watcher(
            Api::<Namespace>::all(client.clone()),
            watcher::Config::default(),
        )
        .backoff(Patience::default())
        .map(|event| match event {
            Ok(event) => Told::Namespace(map(event, labelled)),
            Err(error) => Told::Failed(NAMESPACES, error),
        });
        Self {
            client,
            node: node.to_owned(),
            told: select(pods.boxed(), namespaces.boxed()).boxed(),
            pods: Seen::new(),
            namespaces: Seen::new(),
            asked: mpsc::channel(LOOKUPS),
            lookups: FuturesUnordered::new(),
            trial: None,
            said: BTreeSet::new(),
            reach,
        }
    }

    pub(super) fn questions(&self) -> mpsc::Sender<PodName> {
        self.asked.0.clone()
    }

    /// Everything there is; waits for both listings.
    pub(super) async fn first(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        while !self.is_complete() {
            self.step(&mut news).await;
        }
        news
    }

    fn is_complete(&self) -> bool {
        self.pods.is_complete() && self.namespaces.is_complete()
    }

    /// What happened since. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        while news.is_empty() {
            self.step(&mut news).await;
        }
        news
    }

    /// Waits for one thing to happen, which need not be news. It is cancelled only while it waits, with
    /// `news` as it was.
    async fn step(&mut self, news: &mut Vec<News>) {
        tokio::select! {
            told = self.told.next() => match told {
                Some(told) => self.take(told, news),
                None => std::future::pending().await, // a watch never ends
            },
            Some(name) = self.asked.1.recv(), if self.lookups.len() < LOOKUPS => {
                self.lookups.push(self.look_up(name));
            }
            Some(found) = self.lookups.next(), if !self.lookups.is_empty() => {
                self.found(found, news);
            }
            tried = async { match &mut self.trial {
                Some(trial) => trial.await,
                None => std::future::pending().await,
            } } => self.tried(tried),
        }
        // What is there already is handed over together: a namespace's label concerns many pods.
        while news.len() < BATCH
            && let Some(Some(told)) = self.told.next().now_or_never()
        {
            self.take(told, news);
        }
    }

    fn take(&mut self, told: Told, news: &mut Vec<News>) {
        match told {
            Told::Pod(event) => self.take_pod(event, news),
            Told::Namespace(event) => self.take_namespace(event, news),
            Told::Failed(resource, error) => {
                // None: it only fell behind.
                if let Some(why) = explain_watch(&error, resource) {
                    self.complain(why);
                    if self.trial.is_none() {
                        self.trial = Some(self.try_again(Duration::ZERO));
                    }
                }
            }
        }
        if self.trial.is_none() && self.is_complete() {
            self.reach.open();
        }
    }

    fn take_pod(&mut self, event: Event<Option<Pod>>, news: &mut Vec<News>) {
        let key = |pod: &Pod| (pod.uid.clone(), pod.pod_name());
        let note = match event {
            Event::Init => Note::Listing,
            Event::InitDone => Note::Complete,
            Event::InitApply(Some(pod)) | Event::Apply(Some(pod)) => {
                let (uid, name) = key(&pod);
                news.push(News::Pod(pod));
                Note::Is(uid, name)
            }
            Event::Delete(Some(pod)) => Note::Gone(pod.uid),
            Event::InitApply(None) | Event::Apply(None) | Event::Delete(None) => return,
        };
        let gone = self.pods.note(note).into_iter();
        news.extend(gone.map(|(uid, name)| News::PodGone(name, Some(uid))));
    }

    fn take_namespace(&mut self, event: Event<Labelled>, news: &mut Vec<News>) {
        let note = match event {
            Event::Init => Note::Listing,
            Event::InitDone => Note::Complete,
            Event::InitApply((name, labels)) | Event::Apply((name, labels)) => {
                news.push(News::Namespace(name.clone(), labels));
                Note::Is(name, ())
            }
            Event::Delete((name, _)) => Note::Gone(name),
        };
        let gone = self.namespaces.note(note).into_iter();
        news.extend(gone.map(|(name, ())| News::NamespaceGone(name)));
    }

    // ---- what a runtime asks about

    fn look_up(&self, name: PodName) -> BoxFuture<'static, Found> {
        let pods = Api::<core::Pod>::namespaced(self.client.clone(), &name.namespace);
        let namespaces = Api::<Namespace>::all(self.client.clone());
        async move {
            let both = async {
                let namespace = namespaces.get_opt(&name.namespace).await;
                let namespace =
                    namespace.map_err(|error| explain(&error, Wish("get", NAMESPACES)))?;
                let pod = pods.get_opt(&name.name).await;
                Ok((
                    pod.map_err(|error| explain(&error, Wish("get", PODS)))?,
                    namespace,
                ))
            };
            let (pod, namespace) = match tokio::time::timeout(LOOK_UP, both).await {
                Ok(Ok((pod, namespace))) => (Ok(pod), namespace),
                Ok(Err(why)) => (Err(why), None),
                Err(_) => (Err("the API server does not answer".to_owned()), None),
            };
            Found {
                name,
                pod,
                namespace,
            }
        }
        .boxed()
    }

    /// Only what the watches do not know: they may be ahead by now.
    fn found(&mut self, found: Found, news: &mut Vec<News>) {
        if let Some((name, labels)) = found.namespace.map(labelled)
            && !self.namespaces.knows(&name)
        {
            self.take_namespace(Event::Apply((name, labels)), news);
        }
        let outcome = match found.pod {
            Err(why) => Err(why),
            Ok(None) => Err("there is no such pod".to_owned()),
            Ok(Some(object)) => match Pod::on_node(&object, &self.node) {
                None => Err(format!("it is not a pod of node {}", self.node)),
                Some(pod) => {
                    if !self.pods.knows(&pod.uid) {
                        self.take_pod(Event::Apply(Some(pod)), news);
                    }
                    Ok(())
                }
            },
        };
        news.push(News::Looked(found.name, outcome));
    }

    // ---- when the API server fails

    /// One attempt at everything the watches need, after a pause.
    fn try_again(&self, pause: Duration) -> BoxFuture<'static, Result<(), String>> {
        let (client, node) = (self.client.clone(), self.node.clone());
        async move {
            tokio::time::sleep(pause).await;
            let attempt = async {
                let pods = Api::<PartialObjectMeta<core::Pod>>::all(client.clone());
                let fields = format!("spec.nodeName={node}");
                attempt(&pods, PODS, &fields).await?;
                attempt(&Api::<Namespace>::all(client), NAMESPACES, "").await
            };
            match tokio::time::timeout(TRIAL, attempt).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("{UNREACHABLE}: no answer in time")),
            }
        }
        .boxed()
    }

    fn tried(&mut self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                if !self.said.is_empty() {
                    tracing::info!("the API server answers again");
                    self.said.clear();
                }
                self.trial = None;
                if self.is_complete() {
                    self.reach.open();
                }
            }
            Err(why) => {
                self.reach.close();
                self.complain(why);
                self.trial = Some(self.try_again(PAUSE));
            }
        }
    }

    fn complain(&mut self, why: String) {
        if self.said.len() < COMPLAINTS && self.said.insert(trouble(&why).to_owned()) {
            tracing::warn!("trying again: {why}");
        }
    }
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes")
            .field("node", &self.node)
            .field("said", &self.said)
            .finish_non_exhaustive()
    }
}

/// Lists one object and begins a watch, which is dropped: both are rights of their own.
async fn attempt<K>(api: &Api<K>, resource: &'static str, fields: &str) -> Result<(), String>
where
    K: Clone + fmt::Debug + serde::de::DeserializeOwned,
{
    let failed = |error: kube::Error, verb| explain(&error, Wish(verb, resource));
    let one = ListParams::default().fields(fields).limit(1);
    let list = api.list(&one).await;
    let version = list
        .map_err(|error| failed(error, "list"))?
        .metadata
        .resource_version
        .unwrap_or_default();
    let some = WatchParams::default().fields(fields).timeout(1);
    let watch = api.watch(&some, &version).await;
    watch.map(drop).map_err(|error| failed(error, "watch"))
}

fn on_node(node: &str) -> watcher::Config {
    watcher::Config::default().fields(&format!("spec.nodeName={node}"))
}

fn labelled(object: Namespace) -> Labelled {
    let metadata = object.metadata;
    (
        metadata.name.unwrap_or_default().into(),
        metadata.labels.unwrap_or_default(),
    )
}

fn map<A, B>(event: Event<A>, convert: impl FnOnce(A) -> B) -> Event<B> {
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(convert(object)),
        Event::Apply(object) => Event::Apply(convert(object)),
        Event::Delete(object) => Event::Delete(convert(object)),
    }
}

const PODS: &str = "pods";
const NAMESPACES: &str = "namespaces";
/// A node starts a handful of pods at a time.
const LOOKUPS: usize = 32;
/// Within a runtime's patience of 5 s, with time left to enrol the pod.
const LOOK_UP: Duration = Duration::from_secs(2);
/// Texts may differ each time, by a port or a time in them.
const COMPLAINTS: usize = 16;
const TRIAL: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(2);
/// So that the owner gets to other work while a large cluster is listed.
const BATCH: usize = 512;
