//! Statuses: what the world has to say about objects is written onto them.
//!
//! Enters: the [`Book`], object → what its status should say. Leaves: patches of the status
//! subresource, only where something differs, only of what is ours; conditions of other
//! controllers stay.
//!
//! 1. a new edition of the book: what differs from the one before is looked at
//! 2. the objects themselves are followed, and kept nowhere: one that does not say what the book
//!    says (somebody else wrote it, or we have only just become the leader) is looked at
//! 3. looking: read the object, lay ours over its status, patch it if that made a difference, and
//!    only if nobody wrote it since                                              ([`merge`], pure)

mod merge;
mod mirror;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s::objects::{Kind, ObjectKey};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::queue::{Quarrels, Queue, until};
use super::{Ground, said};
use crate::cluster::watch::{config, steady};
use crate::cluster::{Connection, Health, Kinds};
use crate::deploy::{Notes, laid};

pub use mirror::mirror;

/// What every object's status should say. Cloning costs nothing; two editions are compared in the
/// time of their difference.
pub type Book = imbl::OrdMap<ObjectKey, Arc<Desired>>;

/// What one object's status should say, as far as it is ours to say.
///
/// An object that has nothing (more) to be said about it, but may carry conditions of ours from
/// before, stands in the book with an empty `Desired`: they are taken out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// `metadata.generation` of the object this was worked out from.
    pub generation: Option<i64>,
    /// Of `.status.conditions`.
    pub conditions: Vec<Condition>,
    /// Of `.status.parents` of a route, or `.status.ancestors` of a policy.
    pub parents: Vec<Parent>,
    /// Fields of `.status` that are wholly ours: `addresses`, `listeners` of a Gateway. Conditions
    /// inside them are JSON without `lastTransitionTime`, which the writer keeps or sets.
    pub fields: Map<String, Value>,
}

/// One condition. The writer adds when it last changed, and `observedGeneration` where the kind
/// has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `ZtunnelAccepted`, `istio.io/WaypointBound` …
    pub r#type: &'static str,
    /// True or False.
    pub status: bool,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// Our entry for one parent of a route, or one ancestor of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Parent {
    /// As in `spec.parentRefs`; of a policy the Gateway that it is for.
    pub reference: Value,
    /// Whose entry it is: `istio.io/gateway-controller`, `istio.io/mesh-controller`.
    pub controller: &'static str,
    /// What there is to say.
    pub conditions: Vec<Condition>,
}

impl Desired {
    fn is_empty(&self) -> bool {
        self.conditions.is_empty() && self.parents.is_empty() && self.fields.is_empty()
    }
}

/// Whose statuses: Istio has one Lease for those of its own kinds, and one for Gateway API's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Mesh,
    Gateways,
}

impl Part {
    /// The kinds that have a status we write.
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Mesh => &[
                Kind::Service,
                Kind::ServiceEntry,
                Kind::WorkloadEntry,
                Kind::AuthorizationPolicy,
                Kind::PeerAuthentication,
                Kind::RequestAuthentication,
                Kind::DestinationRule,
                Kind::VirtualService,
                Kind::Telemetry,
                Kind::RateLimitPolicy,
                Kind::QuotaPolicy,
                Kind::ExternalProcessor,
            ],
            Self::Gateways => &[
                Kind::Gateway,
                Kind::GatewayClass,
                Kind::HttpRoute,
                Kind::GrpcRoute,
                Kind::TcpRoute,
                Kind::TlsRoute,
                Kind::BackendTlsPolicy,
                Kind::BackendTrafficPolicy,
            ],
        }
    }
}

/// Runs while we lead.
pub(super) async fn write(part: Part, ground: Ground) {
    let (outbox, mut inbox) = mpsc::channel(HEARD);
    let (mut statuses, mut kinds) = (ground.statuses.clone(), ground.kinds.clone());
    let mut notes = ground.notes.subscribe();
    let book = |statuses: &Book, notes: &Notes| match part {
        Part::Mesh => statuses.clone(),
        Part::Gateways => laid(statuses, notes),
    };
    let mut desk = Desk {
        part,
        book: book(&statuses.borrow_and_update(), &notes.borrow_and_update()),
        resources: BTreeMap::new(),
        watches: BTreeMap::new(),
        queue: Queue::default(),
        quarrels: Quarrels::default(),
        outbox,
    };
    let known = kinds.borrow_and_update().clone();
    desk.defined(&known, &ground);
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < AT_A_TIME
            && let Some(key) = desk.queue.take(Instant::now())
        {
            match (desk.book.get(&key), desk.resources.get(&key.kind)) {
                (Some(desired), Some(resource)) => {
                    let objects = objects(&ground.connection, resource, &key);
                    running.push(put_right(objects, key, desired.clone()));
                }
                _ => desk.queue.done(&key),
            }
        }
        tokio::select! {
            Some(heard) = inbox.recv() => desk.hear(heard),
            Some((key, outcome)) = running.next() => desk.done(&key, outcome, &ground),
            Ok(()) = statuses.changed() => {
                desk.say(book(&statuses.borrow_and_update(), &notes.borrow()));
            }
            Ok(()) = notes.changed() => {
                desk.say(book(&statuses.borrow(), &notes.borrow_and_update()));
            }
            Ok(()) = kinds.changed() => {
                let known = kinds.borrow_and_update().clone();
                desk.defined(&known, &ground);
            }
            () = until(desk.queue.due()) => {}
        }
    }
}

/// What the writer knows: no object, only what should be said and what is to be done.
struct Desk {
    part: Part,
    book: Book,
    resources: BTreeMap<Kind, ApiResource>,
    watches: BTreeMap<Kind, AbortOnDropHandle<()>>,
    queue: Queue<ObjectKey>,
    quarrels: Quarrels<ObjectKey>,
    outbox: mpsc::Sender<Heard>,
}

/// An object that was there, with its status; or that went.
enum Heard {
    Status(ObjectKey, Value),
    Gone(ObjectKey),
}

/// What became of one look.
enum Outcome {
    Right,
    Written,
    Gone,
    /// Somebody wrote it at the same time.
    Conflict,
    Failed(kube::Error),
}

impl Desk {
    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Gone(key) => {
                self.quarrels.forget(&key);
                self.queue.forget(&key);
            }
            Heard::Status(key, status) => {
                let Some(desired) = self.book.get(&key) else {
                    return;
                };
                if merge::changes(key.kind, &status, desired, "").is_some() {
                    self.queue.add(key, Instant::now());
                }
            }
        }
    }

    /// Another edition of the book.
    fn say(&mut self, fresh: Book) {
        use imbl::ordmap::DiffItem::{Add, Remove, Update};
        let now = Instant::now();
        for change in self.book.diff(&fresh) {
            match change {
                Add(key, _) | Update { new: (key, _), .. } => {
                    if self.part.kinds().contains(&key.kind) {
                        self.queue.add(key.clone(), now);
                    }
                }
                Remove(key, _) => self.queue.forget(key),
            }
        }
        self.book = fresh;
    }

    /// Kinds that came are followed, kinds that went no longer.
    fn defined(&mut self, known: &Kinds, ground: &Ground) {
        for kind in self.part.kinds() {
            let fresh = match kind {
                Kind::Service => Some(ApiResource::erase::<k8s_openapi::api::core::v1::Service>(
                    &(),
                )),
                _ => known.get(kind).cloned(),
            };
            if self.resources.get(kind) == fresh.as_ref() {
                continue;
            }
            self.watches.remove(kind);
            self.resources.remove(kind);
            if let Some(resource) = fresh {
                let (connection, health) = (ground.connection.clone(), ground.health.clone());
                let watch = follow(
                    *kind,
                    resource.clone(),
                    connection,
                    health,
                    self.outbox.clone(),
                );
                self.watches
                    .insert(*kind, AbortOnDropHandle::new(tokio::spawn(watch)));
                self.resources.insert(*kind, resource);
            }
        }
    }

    fn done(&mut self, key: &ObjectKey, outcome: Outcome, ground: &Ground) {
        let now = Instant::now();
        match outcome {
            Outcome::Right | Outcome::Gone => self.queue.done(key),
            Outcome::Conflict => self.queue.failed(key, now),
            Outcome::Written => {
                ground.metrics.wrote("status", true);
                tracing::debug!(object = %key, "status written");
                if self.quarrels.wrote(key, now) {
                    self.queue.failed(key, now);
                } else {
                    self.queue.done(key);
                }
            }
            Outcome::Failed(error) => {
                ground.metrics.wrote("status", false);
                tracing::warn!(object = %key, error = said(&error), "status not written; tried again");
                self.queue.failed(key, now);
            }
        }
    }
}

/// Tells what the statuses of one kind are.
async fn follow(
    kind: Kind,
    resource: ApiResource,
    connection: Connection,
    health: Health,
    outbox: mpsc::Sender<Heard>,
) {
    let name = format!("{}.{}", resource.plural, resource.group);
    let all: Api<DynamicObject> = Api::all_with(connection.watching, &resource);
    let mut events = std::pin::pin!(steady(watcher::watcher(all, config()), &health, &name));
    while let Some(event) = events.next().await {
        let heard = match event {
            Event::Apply(object) | Event::InitApply(object) => {
                let key = key(kind, &object);
                let mut data = object.data;
                let status = data.get_mut("status").map(Value::take);
                Heard::Status(key, status.unwrap_or_default())
            }
            Event::Delete(object) => Heard::Gone(key(kind, &object)),
            Event::Init | Event::InitDone => continue,
        };
        if outbox.send(heard).await.is_err() {
            return;
        }
    }
}

fn key(kind: Kind, object: &DynamicObject) -> ObjectKey {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    ObjectKey::new(kind, namespace, name)
}

fn objects(connection: &Connection, resource: &ApiResource, key: &ObjectKey) -> Api<DynamicObject> {
    let client = connection.client.clone();
    if key.kind.namespaced() {
        Api::namespaced_with(client, &key.namespace, resource)
    } else {
        Api::all_with(client, resource)
    }
}

/// Reads one object and patches its status if it says something else.
async fn put_right(
    objects: Api<DynamicObject>,
    key: ObjectKey,
    desired: Arc<Desired>,
) -> (ObjectKey, Outcome) {
    let outcome = match objects.get_opt(&key.name).await {
        Ok(None) => Outcome::Gone,
        Ok(Some(object)) => patch(&objects, &key, &object, &desired).await,
        Err(error) => Outcome::Failed(error),
    };
    (key, outcome)
}

async fn patch(
    objects: &Api<DynamicObject>,
    key: &ObjectKey,
    object: &DynamicObject,
    desired: &Desired,
) -> Outcome {
    let now = Timestamp::now().strftime(TIME).to_string();
    let status = object.data.get("status").unwrap_or(&Value::Null);
    let Some(changes) = merge::changes(key.kind, status, desired, &now) else {
        return Outcome::Right;
    };
    // Lists are replaced whole by a merge patch: never over what somebody wrote since.
    let patch = json!({
        "metadata": {"resourceVersion": object.metadata.resource_version},
        "status": changes,
    });
    let ours = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match objects
        .patch_status(&key.name, &ours, &Patch::Merge(&patch))
        .await
    {
        Ok(_) => Outcome::Written,
        Err(kube::Error::Api(status)) if status.code == 409 => Outcome::Conflict,
        Err(kube::Error::Api(status)) if status.code == 404 => Outcome::Gone,
        Err(error) => Outcome::Failed(error),
    }
}

const MANAGER: &str = "ambit-status";
/// As Kubernetes writes times.
const TIME: &str = "%Y-%m-%dT%H:%M:%SZ";
/// So many at a time.
const AT_A_TIME: usize = 8;
/// What was heard and not looked at yet; then watches wait.
const HEARD: usize = 256;
