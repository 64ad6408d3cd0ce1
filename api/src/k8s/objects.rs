//! Every kind we read, as one enum.
//!
//! Enters: typed objects (see [`super::yaml`] for how text becomes one). Leaves: [`Object`], which
//! is cheap to clone, and its [`ObjectKey`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
pub use k8s_openapi::api::discovery::v1::EndpointSlice;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

pub use gateway_api::gatewayclasses::GatewayClass;
pub use gateway_api::gateways::{self, Gateway};

pub use super::istio::{AuthorizationPolicy, PeerAuthentication, ServiceEntry, WorkloadEntry};

/// The kinds we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // each is the Kubernetes kind of that name
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    ServiceAccount,
    ServiceEntry,
    WorkloadEntry,
    AuthorizationPolicy,
    PeerAuthentication,
    Gateway,
    GatewayClass,
}

impl Kind {
    /// All of them, in the order of the enum.
    pub const ALL: [Kind; 12] = [
        Kind::Namespace,
        Kind::Node,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::ServiceAccount,
        Kind::ServiceEntry,
        Kind::WorkloadEntry,
        Kind::AuthorizationPolicy,
        Kind::PeerAuthentication,
        Kind::Gateway,
        Kind::GatewayClass,
    ];

    /// As in the `kind` field.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
            Kind::Pod => "Pod",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::ServiceAccount => "ServiceAccount",
            Kind::ServiceEntry => "ServiceEntry",
            Kind::WorkloadEntry => "WorkloadEntry",
            Kind::AuthorizationPolicy => "AuthorizationPolicy",
            Kind::PeerAuthentication => "PeerAuthentication",
            Kind::Gateway => "Gateway",
            Kind::GatewayClass => "GatewayClass",
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(self, Kind::Namespace | Kind::Node | Kind::GatewayClass)
    }

    /// The API groups and versions under which this kind is accepted.
    pub fn api_versions(self) -> &'static [&'static str] {
        match self {
            Kind::Namespace | Kind::Node | Kind::Pod | Kind::Service | Kind::ServiceAccount => {
                &["v1"]
            }
            Kind::EndpointSlice => &["discovery.k8s.io/v1"],
            Kind::ServiceEntry | Kind::WorkloadEntry => &[
                "networking.istio.io/v1",
                "networking.istio.io/v1beta1",
                "networking.istio.io/v1alpha3",
            ],
            Kind::AuthorizationPolicy | Kind::PeerAuthentication => {
                &["security.istio.io/v1", "security.istio.io/v1beta1"]
            }
            // Version v1beta1 has the same fields.
            Kind::Gateway | Kind::GatewayClass => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1beta1",
            ],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or(())
    }
}

/// What names an object. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds that have none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of an object. For a kind without namespaces, `namespace` is ignored.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.namespaced() { namespace } else { "" };
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// One object of a kind we read.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // each holds the kind of that name
pub enum Object {
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    ServiceAccount(Arc<ServiceAccount>),
    ServiceEntry(Arc<ServiceEntry>),
    WorkloadEntry(Arc<WorkloadEntry>),
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    PeerAuthentication(Arc<PeerAuthentication>),
    Gateway(Arc<Gateway>),
    GatewayClass(Arc<GatewayClass>),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Object::Namespace(_) => Kind::Namespace,
            Object::Node(_) => Kind::Node,
            Object::Pod(_) => Kind::Pod,
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::ServiceAccount(_) => Kind::ServiceAccount,
            Object::ServiceEntry(_) => Kind::ServiceEntry,
            Object::WorkloadEntry(_) => Kind::WorkloadEntry,
            Object::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Object::PeerAuthentication(_) => Kind::PeerAuthentication,
            Object::Gateway(_) => Kind::Gateway,
            Object::GatewayClass(_) => Kind::GatewayClass,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Object::Namespace(it) => &it.metadata,
            Object::Node(it) => &it.metadata,
            Object::Pod(it) => &it.metadata,
            Object::Service(it) => &it.metadata,
            Object::EndpointSlice(it) => &it.metadata,
            Object::ServiceAccount(it) => &it.metadata,
            Object::ServiceEntry(it) => &it.metadata,
            Object::WorkloadEntry(it) => &it.metadata,
            Object::AuthorizationPolicy(it) => &it.metadata,
            Object::PeerAuthentication(it) => &it.metadata,
            Object::Gateway(it) => &it.metadata,
            Object::GatewayClass(it) => &it.metadata,
        }
    }

    /// Its metadata, to change; copies the object if it is shared.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Object::Namespace(it) => &mut Arc::make_mut(it).metadata,
            Object::Node(it) => &mut Arc::make_mut(it).metadata,
            Object::Pod(it) => &mut Arc::make_mut(it).metadata,
            Object::Service(it) => &mut Arc::make_mut(it).metadata,
            Object::EndpointSlice(it) => &mut Arc::make_mut(it).metadata,
            Object::ServiceAccount(it) => &mut Arc::make_mut(it).metadata,
            Object::ServiceEntry(it) => &mut Arc::make_mut(it).metadata,
            Object::WorkloadEntry(it) => &mut Arc::make_mut(it).metadata,
            Object::AuthorizationPolicy(it) => &mut Arc::make_mut(it).metadata,
            Object::PeerAuthentication(it) => &mut Arc::make_mut(it).metadata,
            Object::Gateway(it) => &mut Arc::make_mut(it).metadata,
            Object::GatewayClass(it) => &mut Arc::make_mut(it).metadata,
        }
    }

    /// What names it. An object without a namespace, of a kind that has one, is in `default`.
    pub fn key(&self) -> ObjectKey {
        let metadata = self.metadata();
        ObjectKey::new(
            self.kind(),
            metadata.namespace.as_deref().unwrap_or("default"),
            metadata.name.as_deref().unwrap_or_default(),
        )
    }
}
