//! ServiceEntries: services that Kubernetes does not know.
//!
//! One entry may name several hosts; each is a service of its own. Which hosts an entry has is not
//! its decision alone ([`crate::world`]'s `hosts`): another entry, or a Kubernetes Service, may
//! have been there first.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use api::k8s::istio::{self, Resolution};
use api::k8s::labels;
use api::workload::{LoadBalancing, NetworkAddress, Service as Resource, Workload};
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

use super::balance::{self, Distribution, Wish};
use super::only::Only;
use super::ports::{self, ServicePort};
use super::service::{self, address};
use super::waypoint::Choice;
use super::workload_entry::{Endpoint, Reach};
use super::{Cluster, Labels, Membership, names, value};

/// Who may reach a ServiceEntry by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// The whole mesh.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
    /// Nobody: as if it were not there.
    None,
}

/// What is said of an entry that is to be seen by some namespaces only.
pub const SEEN_BY_ALL: &str =
    "exportTo has no effect in ambient mode: every namespace sees this ServiceEntry";

/// What matters of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// When it was made; of two with one host the older has it.
    pub created: Option<Timestamp>,
    /// The hosts it asks for, in lower case, each once: proxies know a host however it is spelled, so whoever has it must.
    pub hosts: Vec<String>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Which workloads of its namespace serve it.
    pub selector: Option<Labels>,
    /// The waypoint it names.
    pub waypoint: Choice,
    /// Whether the workloads that serve it are reached only through its waypoint.
    pub only: Only,
    /// Whether gateways send through the waypoint too, if it says so.
    pub ingress: Option<bool>,
    /// Whether it asks to be seen by some namespaces only, which ambient mode does not know.
    pub is_for_some: bool,
    /// Addresses that it was once given automatically, by host.
    pub given: Vec<(String, IpAddr)>,
    labels: Labels,
    vips: Vec<Vip>,
    resolution: Resolution,
    endpoints: Vec<Endpoint>,
    subject_alt_names: Vec<String>,
    declines_addresses: bool,
    wish: Wish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vip {
    address: IpAddr,
    length: Option<u8>,
}

/// What decides about one host of an entry beyond the entry itself.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The host.
    pub name: String,
    /// Whether it stands for this name in the whole mesh.
    pub canonical: bool,
    /// Its automatic addresses, if it wants some ([`ServiceEntry::wants_addresses`]).
    pub automatic: Vec<IpAddr>,
}

impl ServiceEntry {
    /// Keeps what matters.
    pub fn read(entry: &istio::ServiceEntry) -> Self {
        let metadata = &entry.metadata;
        let spec = &entry.spec;
        let labels = metadata.labels.clone().unwrap_or_default();
        let none = Labels::new();
        let annotations = metadata.annotations.as_ref().unwrap_or(&none);
        let annotated = value(annotations, labels::TRAFFIC_DISTRIBUTION);
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        let given = entry.status.iter().flat_map(|status| &status.addresses);
        let given = given.filter_map(|given| {
            let address = given.value.parse::<IpAddr>().ok()?;
            Some((given.host.to_ascii_lowercase(), address))
        });
        Self {
            namespace: namespace.into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            hosts: in_lower_case(&spec.hosts),
            ports: ports::of_entry(&spec.ports),
            selector: spec
                .workload_selector
                .as_ref()
                .map(|selector| selector.labels.clone())
                .filter(|labels| !labels.is_empty()),
            waypoint: Choice::read(&labels, annotations, namespace),
            only: Only::read(&labels),
            ingress: service::ingress(&labels),
            is_for_some: spec.export_to.iter().any(|it| it != "*"),
            given: given.filter(|(_, it)| is_of_ours(it)).collect(),
            vips: spec
                .addresses
                .iter()
                .filter_map(|address| Vip::read(address))
                .collect(),
            resolution: spec.resolution,
            endpoints: spec.endpoints.iter().map(Endpoint::read).collect(),
            subject_alt_names: spec.subject_alt_names.clone(),
            declines_addresses: value(&labels, labels::ENABLE_AUTOALLOCATE_IP) == Some("false"),
            wish: Wish {
                distribution: annotated.map(Distribution::named),
                ..Wish::default()
            },
            labels,
        }
    }

    /// The xDS name of one of its hosts.
    pub fn resource_name(&self, host: &str) -> String {
        format!("{}/{host}", self.namespace)
    }

    /// The automatic addresses that its status has for a host, if that wants some.
    pub fn given_to(&self, host: &str) -> Vec<IpAddr> {
        let given = self.given.iter().filter(|(name, _)| name == host);
        let wanted = given.filter(|_| self.wants_addresses(host));
        wanted.map(|(_, address)| *address).collect()
    }

    /// Whether a host gets automatic addresses: it has none of its own, something behind it to be
    /// reached at another address, and, being a wildcard, a waypoint to tell the names apart.
    pub fn wants_addresses(&self, host: &str) -> bool {
        let wildcard = host.starts_with('*') && self.resolution != Resolution::DynamicDns;
        self.vips.is_empty()
            && self.resolution != Resolution::None
            && !wildcard
            && !self.declines_addresses
    }

    /// Its labels.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Its inline endpoints.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The addresses that it claims one by one.
    pub fn single_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let whole = |vip: &Vip| match vip.address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        let single = move |vip: &&Vip| vip.length.is_none_or(|length| length == whole(vip));
        self.vips.iter().filter(single).map(|vip| vip.address)
    }

    /// The networks its endpoints say they are on.
    pub fn networks(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().filter_map(|it| it.network.as_deref())
    }

    /// The services, one for each host that is really its.
    pub fn services(
        &self,
        cluster: &Cluster,
        hosts: &[Host],
        visibility: Visibility,
        namespace: Option<Distribution>,
    ) -> Vec<Resource> {
        hosts
            .iter()
            .map(|host| self.service(cluster, host, visibility, namespace))
            .collect()
    }

    fn service(
        &self,
        cluster: &Cluster,
        host: &Host,
        visibility: Visibility,
        namespace: Option<Distribution>,
    ) -> Resource {
        use api::workload::service::Visibility as Wire;
        let own = self
            .vips
            .iter()
            .map(|vip| address(cluster, vip.address, vip.length));
        let automatic = host
            .automatic
            .iter()
            .map(|vip| address(cluster, *vip, None));
        let addresses: Vec<NetworkAddress> = own.chain(automatic).collect();
        Resource {
            name: self.name.to_string(),
            namespace: self.namespace.to_string(),
            hostname: host.name.clone(),
            addresses,
            ports: ports::listed(&self.ports),
            subject_alt_names: cluster.trust_domains.names(&self.subject_alt_names),
            load_balancing: self.balancing(namespace),
            canonical: host.canonical,
            visibility: if visibility == Visibility::Namespace {
                Wire::Namespace
            } else {
                Wire::Public
            }
            .into(),
            ..Resource::default()
        }
    }

    fn balancing(&self, namespace: Option<Distribution>) -> Option<LoadBalancing> {
        if self.resolution == Resolution::None {
            Some(balance::passthrough())
        } else {
            self.wish.balancing(namespace)
        }
    }

    /// The workloads it brings along: its inline endpoints, or for a host that DNS resolves the
    /// host itself. The second value tells what was left out.
    pub fn workloads(&self, cluster: &Cluster, hosts: &[Host]) -> (Vec<Workload>, Vec<String>) {
        let all: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        if all.is_empty() || self.resolution == Resolution::None {
            return Default::default();
        }
        if self.endpoints.is_empty()
            && self.selector.is_none()
            && self.resolution != Resolution::Static
        {
            let itself = |host: &&str| {
                let istio = istio::WorkloadEntrySpec {
                    address: (*host).to_owned(),
                    ..Default::default()
                };
                self.workload(cluster, &Endpoint::read(&istio), &[host], host)
            };
            return (all.iter().map(itself).collect(), Vec::new());
        }
        let (mut seen, mut remarks, mut workloads) = (BTreeSet::new(), Vec::new(), Vec::new());
        for endpoint in &self.endpoints {
            let address = match &endpoint.address {
                Reach::Ip(ip) => ip.to_string(),
                Reach::Host(host) => host.clone(),
                Reach::Gateway => {
                    remarks.push("an inline endpoint without an address is left out: describe it by a WorkloadEntry".to_owned());
                    continue;
                }
            };
            if seen.insert(address.clone()) {
                workloads.push(self.workload(cluster, endpoint, &all, &address));
            } else {
                remarks.push(format!(
                    "endpoint {address} is there more than once: the first counts"
                ));
            }
        }
        (workloads, remarks)
    }

    /// Names of its inline endpoints whose labels fit.
    pub fn endpoints_with(&self, cluster: &Cluster, fit: impl Fn(&Labels) -> bool) -> Vec<String> {
        let endpoints = self.endpoints.iter().filter(|it| fit(&it.labels));
        let named = endpoints.filter_map(|endpoint| match &endpoint.address {
            Reach::Ip(ip) => Some(self.endpoint_name(cluster, &ip.to_string())),
            Reach::Host(host) => Some(self.endpoint_name(cluster, host)),
            Reach::Gateway => None,
        });
        named.collect()
    }

    fn endpoint_name(&self, cluster: &Cluster, address: &str) -> String {
        format!(
            "{}/networking.istio.io/ServiceEntry/{}/{}/{address}",
            cluster.id, self.namespace, self.name
        )
    }

    fn workload(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        hosts: &[&str],
        address: &str,
    ) -> Workload {
        let ports = ports::on_endpoint(&self.ports, &endpoint.ports);
        let memberships: Vec<Membership> = hosts
            .iter()
            .map(|host| (self.resource_name(host), ports.clone()))
            .collect();
        Workload {
            uid: self.endpoint_name(cluster, address),
            name: self.name.to_string(),
            namespace: self.namespace.to_string(),
            canonical_name: names::canonical(&self.labels, &self.name),
            canonical_revision: names::revision(&self.labels),
            workload_name: self.name.to_string(),
            ..endpoint.workload(cluster, memberships)
        }
    }
}

fn in_lower_case(hosts: &[String]) -> Vec<String> {
    let mut all = Vec::with_capacity(hosts.len());
    for host in hosts {
        let host = host.to_ascii_lowercase();
        if !all.contains(&host) {
            all.push(host);
        }
    }
    all
}

/// Whether it is of the ranges that automatic addresses are from. Others than the control plane may write a status, too: what it lists
/// says nothing of addresses that somebody else has.
fn is_of_ours(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => matches!(v4.octets(), [240, 240, ..]),
        IpAddr::V6(v6) => matches!(v6.segments(), [0x2001, 2, 0, ..]),
    }
}

impl Vip {
    /// An address, or a CIDR with its host part taken off.
    fn read(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self {
                address,
                length: None,
            });
        }
        let net = text.parse::<IpNet>().ok()?.trunc();
        Some(Self {
            address: net.addr(),
            length: Some(net.prefix_len()),
        })
    }
}
