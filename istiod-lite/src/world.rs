//! Everything the control plane knows, and what each proxy must be told because of it.
//!
//! Enters: batches of object changes. Leaves: the names of the resources whose content changed;
//! the resources themselves are read here. Pure: no clock, no network, no disk.

use std::sync::Arc;

use api::k8s::dir::Change;
use bytes::Bytes;

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
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".into(),
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            dry_run: false,
        }
    }
}

/// A resource as it goes to proxies, encoded once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its xDS name.
    pub name: Arc<str>,
    /// The encoded `istio.workload.Address` or `istio.security.Authorization`. Map entries are in
    /// the order of their keys, so equal content is equal bytes.
    pub encoded: Bytes,
    /// Other names by which proxies ask for it: `network/ip`.
    pub aliases: Arc<[String]>,
}

/// Names of resources whose content changed, appeared or vanished. Sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Of type `istio.workload.Address`.
    pub addresses: Vec<Arc<str>>,
    /// Of type `istio.security.Authorization`.
    pub authorizations: Vec<Arc<str>>,
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
    /// `status.phase`: Pending, Running, Succeeded, Failed, Unknown; empty if not written.
    pub phase: Arc<str>,
}

/// The world.
#[derive(Debug, Default)]
pub struct World {}

impl World {
    /// An empty world.
    pub fn new(_settings: Settings) -> Self {
        Self::default()
    }

    /// Takes in a batch and recomputes what depends on it. `Change::Invalid` changes nothing:
    /// reporting it is the caller's.
    pub fn apply(&mut self, _changes: Vec<Change>) -> Changed {
        Changed::default()
    }

    /// One `istio.workload.Address` by name.
    pub fn address(&self, _name: &str) -> Option<&Resource> {
        None
    }

    /// Every `istio.workload.Address`, in no order.
    pub fn addresses(&self) -> impl Iterator<Item = &Resource> {
        std::iter::empty()
    }

    /// One `istio.security.Authorization` by name.
    pub fn authorization(&self, _name: &str) -> Option<&Resource> {
        None
    }

    /// Every `istio.security.Authorization`, in no order.
    pub fn authorizations(&self) -> impl Iterator<Item = &Resource> {
        std::iter::empty()
    }

    /// The pods bound to a node, whatever their phase.
    pub fn pods_on_node(&self, _node: &str) -> impl Iterator<Item = PodIdentity> {
        std::iter::empty()
    }

    /// The pod with that name.
    pub fn pod(&self, _namespace: &str, _name: &str) -> Option<PodIdentity> {
        None
    }

    /// The pod with that uid.
    pub fn pod_by_uid(&self, _uid: &str) -> Option<PodIdentity> {
        None
    }

    /// The automatic addresses given out so far, to be kept on disk: opaque text, sorted, one
    /// host per line. It changed iff it differs from what was saved before.
    pub fn automatic_addresses(&self) -> String {
        String::new()
    }

    /// Brings back what [`World::automatic_addresses`] gave, before the first `apply`. Lines that
    /// make no sense are left out and returned.
    pub fn restore_automatic_addresses(&mut self, _text: &str) -> Vec<String> {
        Vec::new()
    }
}
