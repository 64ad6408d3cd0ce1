//! Every kind we read, as one enum.
//!
//! Enters: typed objects (see [`super::yaml`] for how text becomes one). Leaves: [`Object`], which
//! is cheap to clone, and its [`ObjectKey`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
pub use k8s_openapi::api::discovery::v1::EndpointSlice;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

pub use gateway_api::gatewayclasses::GatewayClass;
pub use gateway_api::gateways::{self, Gateway};

pub use super::backends::{BackendTlsPolicy, BackendTrafficPolicy};
pub use super::istio::destination_rule::DestinationRule;
pub use super::istio::request_authentication::RequestAuthentication;
pub use super::istio::telemetry::Telemetry;
pub use super::istio::virtual_service::VirtualService;
pub use super::istio::workload_group::WorkloadGroup;
pub use super::istio::{AuthorizationPolicy, PeerAuthentication, ServiceEntry, WorkloadEntry};
pub use super::limits::{QuotaPolicy, RateLimitPolicy};
pub use super::processors::ExternalProcessor;
pub use super::routes::{GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute};
use super::yaml::Source;

/// A table of kinds becomes the enums [`Kind`] and [`Object`] and what each kind answers for itself.
macro_rules! kinds {
    ($($kind:ident $name:literal $scope:ident $versions:expr;)+) => {
        /// The kinds we read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs)] // each is the Kubernetes kind of that name
        pub enum Kind {
            $($kind,)+
        }

        impl Kind {
            /// All of them, in the order of the enum.
            pub const ALL: [Kind; [$($name),+].len()] = [$(Kind::$kind),+];

            /// As in the `kind` field.
            pub fn name(self) -> &'static str {
                match self {
                    $(Kind::$kind => $name,)+
                }
            }

            /// Whether objects of this kind live in a namespace.
            pub fn namespaced(self) -> bool {
                match self {
                    $(Kind::$kind => Scope::$scope == Scope::Namespaced,)+
                }
            }

            /// The API groups and versions under which this kind is accepted.
            pub fn api_versions(self) -> &'static [&'static str] {
                match self {
                    $(Kind::$kind => $versions,)+
                }
            }
        }

        /// One object of a kind we read.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)] // each holds the kind of that name
        pub enum Object {
            $($kind(Arc<$kind>),)+
        }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Object::$kind(_) => Kind::$kind,)+
                }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self {
                    $(Object::$kind(it) => &it.metadata,)+
                }
            }

            /// Its metadata, to change; copies the object if it is shared.
            pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self {
                    $(Object::$kind(it) => &mut Arc::make_mut(it).metadata,)+
                }
            }

            /// As JSON.
            pub(super) fn value(&self) -> serde_json::Result<serde_json::Value> {
                match self {
                    $(Object::$kind(it) => serde_json::to_value(&**it),)+
                }
            }

            /// One of `kind`, as a source has it.
            pub(super) fn of<S: Source>(kind: Kind, source: &S) -> Result<Self, S::Error> {
                Ok(match kind {
                    $(Kind::$kind => Object::$kind(Arc::new(source.read()?)),)+
                })
            }
        }
    };
}

#[derive(PartialEq)]
enum Scope {
    Namespaced,
    Cluster,
}

kinds! {
    Namespace "Namespace" Cluster &["v1"];
    Node "Node" Cluster &["v1"];
    Pod "Pod" Namespaced &["v1"];
    Service "Service" Namespaced &["v1"];
    EndpointSlice "EndpointSlice" Namespaced &["discovery.k8s.io/v1"];
    ServiceAccount "ServiceAccount" Namespaced &["v1"];
    ServiceEntry "ServiceEntry" Namespaced NETWORKING;
    WorkloadEntry "WorkloadEntry" Namespaced NETWORKING;
    WorkloadGroup "WorkloadGroup" Namespaced NETWORKING;
    AuthorizationPolicy "AuthorizationPolicy" Namespaced SECURITY;
    PeerAuthentication "PeerAuthentication" Namespaced SECURITY;
    Gateway "Gateway" Namespaced GATEWAY;
    GatewayClass "GatewayClass" Cluster GATEWAY;
    HttpRoute "HTTPRoute" Namespaced GATEWAY;
    GrpcRoute "GRPCRoute" Namespaced &["gateway.networking.k8s.io/v1"];
    TcpRoute "TCPRoute" Namespaced LATE_ROUTES;
    TlsRoute "TLSRoute" Namespaced LATE_ROUTES;
    ReferenceGrant "ReferenceGrant" Namespaced GATEWAY;
    RequestAuthentication "RequestAuthentication" Namespaced SECURITY;
    DestinationRule "DestinationRule" Namespaced NETWORKING;
    VirtualService "VirtualService" Namespaced NETWORKING;
    Telemetry "Telemetry" Namespaced &["telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1"];
    RateLimitPolicy "RateLimitPolicy" Namespaced &["ambit.io/v1alpha1"];
    QuotaPolicy "QuotaPolicy" Namespaced &["ambit.io/v1alpha1"];
    ExternalProcessor "ExternalProcessor" Namespaced &["ambit.io/v1alpha1"];
    BackendTlsPolicy "BackendTLSPolicy" Namespaced LATE_ROUTES;
    BackendTrafficPolicy "XBackendTrafficPolicy" Namespaced &["gateway.networking.x-k8s.io/v1alpha1"];
    Secret "Secret" Namespaced &["v1"];
    ConfigMap "ConfigMap" Namespaced &["v1"];
}

const NETWORKING: &[&str] = &[
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
];
const SECURITY: &[&str] = &["security.istio.io/v1", "security.istio.io/v1beta1"];
/// Version v1beta1 has the same fields.
const GATEWAY: &[&str] = &[
    "gateway.networking.k8s.io/v1",
    "gateway.networking.k8s.io/v1beta1",
];
/// Those that were alpha for long, with the same fields.
const LATE_ROUTES: &[&str] = &[
    "gateway.networking.k8s.io/v1",
    "gateway.networking.k8s.io/v1alpha3",
    "gateway.networking.k8s.io/v1alpha2",
];

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

impl Object {
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
