//! Everything the control plane knows, and what each proxy must be told because of it.
//!
//! Enters: batches of object changes. Leaves: the names of the resources whose content changed;
//! the resources themselves are read here. Pure: no clock of its own, no network, no disk.
//!
//! 1. keep of an object what matters; the rest of it is not a change  ([`crate::translate`])
//! 2. note who depends on it, by its old self and by its new          (`depend`)
//! 3. make those, and only those, anew                                (`build`)
//! 4. compare bytes: what came out the same did not change            ([`World::apply`])
//!
//! What is made depends on the objects alone, never on the order they came in. Two exceptions: automatic
//! addresses go to who came first, which is written down; and whoever leaves a waypoint stays known there
//! for some seconds ([`World::pass`]).

mod addresses;
mod build;
mod depend;
mod difference;
mod egress;
mod fronts;
mod hosts;
mod index;
mod layer7;
mod left;
mod naming;
mod obey;
mod objects;
mod only;
mod proxies;
mod references;
mod routes;
mod scope;
mod statuses;
mod udp;
mod waypoints;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use api::k8s::dir::Change;
use api::k8s::objects::{Kind, ObjectKey};

use crate::status::{Book, Desired};
pub use crate::translate::egress::Mode as EgressMode;
use crate::translate::layer7::provider::Provider;
use crate::translate::policy::Reading;
pub use crate::translate::resource::Resource;
use crate::translate::scope::Scopes;
use crate::translate::service_entry::Visibility;
use crate::translate::trust::TrustDomains;
pub use crate::translate::waypoint::Unready;
use crate::translate::{Cluster, Labels};
use addresses::Addresses;
use difference::Difference;
pub use left::LEAVING;
use left::Left;
use objects::Objects;

/// What is the same for the whole mesh.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Identity of this cluster, in uids and `cluster_id`. Default `Kubernetes`.
    pub cluster_id: String,
    /// SPIFFE trust domain. Default `cluster.local`.
    pub trust_domain: String,
    /// DNS domain of Kubernetes services. Default `cluster.local`.
    pub cluster_domain: String,
    /// The namespace whose policies are mesh-wide. Default `istio-system`.
    pub root_namespace: String,
    /// Whether AuthorizationPolicies with annotation `istio.io/dry-run: "true"` are sent, marked
    /// so. Default no.
    pub dry_run: bool,
    /// Who sees the ServiceEntries of which namespaces: the first rule whose labels the namespace
    /// has counts; without one everybody does. Default no rules.
    pub service_entry_visibility: Vec<(Labels, Visibility)>,
    /// What becomes of traffic to whom names a waypoint that is missing or not ready. Default:
    /// refused. Label `ambit.io/waypoint-unready` on a namespace overrides.
    pub waypoint_unready: Unready,
    /// Whether workloads that an ALLOW policy applies to also allow their waypoint
    /// (`PILOT_AUTO_ALLOW_WAYPOINT_POLICY`). Default no.
    pub auto_allow_waypoint: bool,
    /// What becomes of connections to destinations that the mesh does not know. Default: they pass. Label `ambit.io/egress`
    /// on a namespace or a workload overrides.
    pub egress: EgressMode,
    /// Trust domains that are ours as well: a policy that names an identity of one of them means
    /// that identity in all of them. Default none.
    pub trust_domain_aliases: Vec<String>,
    /// What makes services GLOBAL: other networks share them. Default: label `istio.io/global: "true"`.
    pub scopes: Scopes,
    /// Where the automatic addresses of ServiceEntry hosts come from. Default: given out here.
    pub automatic_addresses: Automatic,
    /// Who waypoints may ask, and report to. Default none.
    pub providers: Vec<Provider>,
    /// What is reported where no Telemetry object says anything. Default: every request has a line.
    pub reports: Reports,
}

/// What is reported where no Telemetry object says anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reports {
    /// Of lines in the proxies' own log; "": ours.
    pub format: String,
    /// Lines are JSON.
    pub json: bool,
    /// Providers that get spans. Default none.
    pub tracing: Vec<String>,
    /// Providers that get lines. Default the proxies' own log.
    pub logging: Vec<String>,
    /// Percent of new traces that are sampled.
    pub sampling: Option<f64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".into(),
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            dry_run: false,
            service_entry_visibility: Vec::new(),
            waypoint_unready: Unready::Refuse,
            auto_allow_waypoint: false,
            egress: EgressMode::Allow,
            trust_domain_aliases: Vec::new(),
            scopes: Scopes::default(),
            automatic_addresses: Automatic::Allocated,
            providers: Vec::new(),
            reports: Reports::default(),
        }
    }
}

/// Where automatic addresses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Automatic {
    /// Given out here, kept by whoever runs the world.
    Allocated,
    /// From `status.addresses` of the ServiceEntry, where the leading replica writes them.
    FromStatus,
}

/// Names of resources whose content changed, appeared or vanished. Sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Of type `istio.workload.Address`.
    pub addresses: Vec<Arc<str>>,
    /// Of type `istio.security.Authorization`.
    pub authorizations: Vec<Arc<str>>,
    /// Of type `ambit.waypoint.v1.Resource`: `<namespace>/<name>/` of a Gateway, then the key.
    pub resources: Vec<Arc<str>>,
    /// New remarks: what of an object has no effect, or another one than it seems, and why.
    pub remarks: Vec<(ObjectKey, String)>,
    /// Objects whose status should say something else than before ([`World::statuses`]).
    pub statuses: Vec<ObjectKey>,
}

/// A pod as node authorisation sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its uid.
    pub uid: Arc<str>,
    /// The account it runs as; `default` where the pod names none.
    pub service_account: Arc<str>,
    /// The node it is bound to; empty while it is bound to none.
    pub node: Arc<str>,
    /// The Gateway that it is a pod of.
    pub gateway: Option<Arc<str>>,
    /// `status.phase`: Pending, Running, Succeeded, Failed, Unknown; empty if not written.
    pub phase: Arc<str>,
}

/// The world.
#[derive(Debug)]
pub struct World {
    settings: Settings,
    cluster: Cluster,
    objects: Objects,
    automatic: Addresses,
    addresses: HashMap<Arc<str>, Resource>,
    authorizations: HashMap<Arc<str>, Resource>,
    resources: HashMap<Arc<str>, Resource>,
    /// What was made for whom.
    made: HashMap<Builder, Made>,
    statuses: Book,
    /// Objects that were refused, and why.
    refused: HashMap<ObjectKey, Vec<String>>,
    /// What proxies refuse of what was made of objects.
    refused_by_proxies: proxies::RefusedByProxies,
    /// Objects that came with conditions of ours, of an earlier life.
    inherited: HashSet<ObjectKey>,
    reading: Reading,
    /// Gateways of which something moved in this batch.
    moved: BTreeSet<ObjectKey>,
    left: Left,
    recomputed: u64,
}

/// For whom something is made: an object, or everybody.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Builder {
    Object(ObjectKey),
    /// A Gateway, as what is told what to do.
    Waypoint(ObjectKey),
    /// A Service or ServiceEntry, as what is called in a certain way.
    Towards(ObjectKey),
    /// The policy that serves every workload that is strict on all ports.
    Strict,
}

/// Names of what was made for a builder, and what there is to say about it.
#[derive(Debug, Default)]
struct Made {
    addresses: Vec<Arc<str>>,
    authorizations: Vec<Arc<str>>,
    resources: Vec<Arc<str>>,
    remarks: Vec<String>,
}

impl Made {
    fn is_empty(&self) -> bool {
        self.addresses.is_empty()
            && self.authorizations.is_empty()
            && self.resources.is_empty()
            && self.remarks.is_empty()
    }
}

/// What a builder makes.
#[derive(Debug, Default)]
struct Output {
    addresses: Vec<Resource>,
    authorizations: Vec<Resource>,
    /// For waypoints.
    resources: Vec<Resource>,
    remarks: Vec<String>,
    status: Option<Desired>,
}

impl World {
    /// An empty world.
    pub fn new(settings: Settings) -> Self {
        let domains = TrustDomains::new(&settings.trust_domain, &settings.trust_domain_aliases);
        let cluster = Cluster {
            id: settings.cluster_id.clone(),
            trust_domain: if settings.trust_domain == "cluster.local" {
                String::new()
            } else {
                settings.trust_domain.clone()
            },
            trust_domains: domains.clone(),
            domain: settings.cluster_domain.clone(),
            network: String::new(),
        };
        Self {
            objects: Objects::default(),
            automatic: Addresses::default(),
            addresses: HashMap::new(),
            authorizations: HashMap::new(),
            resources: HashMap::new(),
            made: HashMap::new(),
            statuses: Book::new(),
            refused: HashMap::new(),
            refused_by_proxies: proxies::RefusedByProxies::default(),
            inherited: HashSet::new(),
            reading: Reading {
                root_namespace: settings.root_namespace.clone(),
                dry_run_is_sent: settings.dry_run,
                trust_domains: domains,
            },
            moved: BTreeSet::new(),
            left: Left::default(),
            recomputed: 0,
            settings,
            cluster,
        }
    }

    /// Takes in a batch and makes anew what depends on it. `Change::Invalid` changes what is said of
    /// the object, until it is set again or gone; and a policy that was never good denies, or is STRICT, until then.
    pub fn apply(&mut self, changes: Vec<Change>) -> Changed {
        let mut dirty = BTreeSet::new();
        self.note_refused(&changes, &mut dirty);
        for change in changes {
            match change {
                Change::Set(object) => self.set(&object, &mut dirty),
                Change::Gone(key) => self.remove(&key, &mut dirty),
                Change::Invalid(fault) => self.close(&fault, &mut dirty),
            }
        }
        let moved = std::mem::take(&mut self.moved);
        self.stand(moved, &mut dirty);
        self.mark_referring(&mut dirty);
        self.mark_layer7(&mut dirty);
        self.note_left(&dirty);
        self.rebuild(dirty)
    }

    /// Makes the dirty anew. First everything is made, then everything is put in place: a name may
    /// move from one builder to another.
    fn rebuild(&mut self, dirty: BTreeSet<Builder>) -> Changed {
        let outputs: Vec<(Builder, Output)> = self
            .in_order(dirty)
            .into_iter()
            .map(|builder| (builder.clone(), self.build(&builder)))
            .collect();
        let mut remarks = Vec::new();
        let mut addresses = Difference::default();
        let mut authorizations = Difference::default();
        let mut resources = Difference::default();
        for (builder, _) in &outputs {
            let Some(made) = self.made.get(builder) else {
                continue;
            };
            addresses.take_out(&mut self.addresses, &made.addresses);
            authorizations.take_out(&mut self.authorizations, &made.authorizations);
            resources.take_out(&mut self.resources, &made.resources);
        }
        let mut statuses = Vec::new();
        for (builder, mut output) in outputs {
            if let Builder::Object(key) = &builder
                && self.keep_status(key, output.status.take())
            {
                statuses.push(key.clone());
            }
            let known = self.made.remove(&builder).unwrap_or_default().remarks;
            if let Builder::Object(key) = &builder {
                let new = output.remarks.iter().filter(|it| !known.contains(it));
                remarks.extend(new.map(|remark| (key.clone(), remark.clone())));
            }
            let made = Made {
                addresses: addresses.put_in(&mut self.addresses, output.addresses),
                authorizations: authorizations
                    .put_in(&mut self.authorizations, output.authorizations),
                resources: resources.put_in(&mut self.resources, output.resources),
                remarks: output.remarks,
            };
            if !made.is_empty() {
                self.made.insert(builder, made);
            }
        }
        Changed {
            addresses: addresses.changed(&self.addresses),
            authorizations: authorizations.changed(&self.authorizations),
            resources: resources.changed(&self.resources),
            remarks,
            statuses,
        }
    }

    /// ServiceEntries by age, since the older gets its automatic addresses first.
    fn in_order(&self, dirty: BTreeSet<Builder>) -> Vec<Builder> {
        let mut order: Vec<Builder> = dirty.into_iter().collect();
        order.sort_by_cached_key(|builder| match builder {
            Builder::Object(key) if key.kind == Kind::ServiceEntry => (
                1,
                self.objects
                    .service_entries
                    .get(key)
                    .and_then(|entry| entry.created),
            ),
            _ => (0, None),
        });
        order
    }

    /// The network that everything is on which names no other.
    pub fn network(&self) -> &str {
        &self.cluster.network
    }

    /// One `istio.workload.Address` by name.
    pub fn address(&self, name: &str) -> Option<&Resource> {
        self.addresses.get(name)
    }

    /// Every `istio.workload.Address`, in no order.
    pub fn addresses(&self) -> impl Iterator<Item = &Resource> {
        self.addresses.values()
    }

    /// One `istio.security.Authorization` by name.
    pub fn authorization(&self, name: &str) -> Option<&Resource> {
        self.authorizations.get(name)
    }

    /// Every `istio.security.Authorization`, in no order.
    pub fn authorizations(&self) -> impl Iterator<Item = &Resource> {
        self.authorizations.values()
    }

    /// One `ambit.waypoint.v1.Resource`, by its xDS name.
    pub fn waypoint_resource(&self, name: &str) -> Option<&Resource> {
        self.resources.get(name)
    }

    /// Every `ambit.waypoint.v1.Resource`, in no order.
    pub fn waypoint_resources(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values()
    }

    /// The remarks that stand.
    pub fn remarks(&self) -> impl Iterator<Item = (&ObjectKey, &str)> {
        self.made.iter().flat_map(|(builder, made)| {
            let key = match builder {
                Builder::Object(key) => Some(key),
                Builder::Waypoint(_) | Builder::Towards(_) | Builder::Strict => None,
            };
            key.into_iter().flat_map(|key| {
                made.remarks
                    .iter()
                    .map(move |remark| (key, remark.as_str()))
            })
        })
    }

    /// What the statuses of all objects should say. Cloning it costs nothing.
    pub fn statuses(&self) -> &Book {
        &self.statuses
    }

    /// What the status of one object should say; none if there is nothing to say about it.
    pub fn status(&self, object: &ObjectKey) -> Option<&Arc<Desired>> {
        self.statuses.get(object)
    }

    /// The pod with that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodIdentity> {
        let pod = self
            .objects
            .pods
            .get(&ObjectKey::new(Kind::Pod, namespace, name))?;
        Some(PodIdentity {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            service_account: pod.service_account.clone(),
            node: pod.node.clone(),
            gateway: pod.gateway.clone(),
            phase: pod.phase.clone(),
        })
    }

    /// How many times something was made for an object, since the beginning: the work that
    /// changes caused.
    pub fn recomputed(&self) -> u64 {
        self.recomputed
    }

    /// The automatic addresses given out so far, to be kept on disk: text, a host a line, sorted.
    /// It changed iff it differs from what was saved before.
    pub fn automatic_addresses(&self) -> String {
        self.automatic.save()
    }

    /// Moves whenever [`World::automatic_addresses`] are others.
    pub fn automatic_addresses_given(&self) -> u64 {
        self.automatic.given()
    }

    /// Brings back what [`World::automatic_addresses`] gave, before the first `apply`. Lines that
    /// make no sense are left out and returned.
    pub fn restore_automatic_addresses(&mut self, text: &str) -> Vec<String> {
        self.automatic.load(text)
    }
}
