//! From Kubernetes objects to what proxies are told. Pure: no clock, no network, no tokio.
//!
//! Every kind has a file. Its first half keeps of an object what matters here (`read`), its second
//! half makes the resource out of that and of what it depends on. Who depends on whom is
//! [`crate::world`]'s business.
//!
//! | file | from | to |
//! |---|---|---|
//! | [`pod`] | Pod, Node, memberships, policies | Workload |
//! | [`workload_entry`] | WorkloadEntry, memberships, policies | Workload |
//! | [`endpoint_slice`] | EndpointSlice, its Service | Workloads |
//! | [`service`] | Service | Service |
//! | [`service_entry`] | ServiceEntry | Services and Workloads |
//! | [`gateway`], [`listener`] | Gateway, GatewayClass | Workload of another network's gateway |
//! | [`waypoint`] | labels, Gateways | where traffic must pass |
//! | [`only`] | labels, waypoints | Authorization: nobody passes them by |
//! | [`egress`] | labels, the mesh's settings | in a Workload: whom it may call that nobody knows |
//! | [`udp`] | labels | in a Workload: whether its UDP is carried |
//! | [`scope`] | labels, the mesh's settings | in a Service: whether other networks may call it |
//! | [`route`] | HTTPRoute, GRPCRoute, TCPRoute, TLSRoute | Routes and TcpRoutes of a waypoint |
//! | [`policy`] | AuthorizationPolicy | Authorization |
//! | [`layer7`] | policies that need HTTP to be read | what waypoints are told of them |
//! | [`peer_authentication`] | PeerAuthentication | Authorization, and who must obey which |
//! | [`balance`], [`ports`], [`locality`], [`names`], [`selector`], [`trust`] | parts of the above | |

pub mod balance;
pub mod credential;
pub mod egress;
pub mod endpoint_slice;
pub mod gateway;
pub mod layer7;
pub mod listener;
pub mod locality;
pub mod names;
pub mod only;
pub mod peer_authentication;
pub mod pod;
pub mod policy;
pub mod ports;
pub mod resource;
pub mod route;
pub mod scope;
pub mod selector;
pub mod service;
pub mod service_entry;
pub mod trust;
pub mod udp;
pub mod waypoint;
pub mod workload_entry;

use std::collections::BTreeMap;

use api::workload::PortList;

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// What every resource of this cluster shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// In uids and `cluster_id`.
    pub id: String,
    /// Trust domain as the wire has it: empty stands for `cluster.local`.
    pub trust_domain: String,
    /// Trust domain under all its names.
    pub trust_domains: trust::TrustDomains,
    /// DNS domain of Kubernetes services.
    pub domain: String,
    /// The network its workloads are on; empty is the default network.
    pub network: String,
}

/// That a workload serves a service: the service's resource name, and its ports there.
pub type Membership = (String, PortList);

/// The value of `label`, unless it is empty.
pub(crate) fn value<'a>(labels: &'a Labels, label: &str) -> Option<&'a str> {
    labels
        .get(label)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}
