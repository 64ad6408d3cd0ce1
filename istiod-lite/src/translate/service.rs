//! Kubernetes Services.

use std::net::IpAddr;
use std::sync::Arc;

use api::k8s::labels;
use api::k8s::objects;
use api::workload::{IpFamilies, NetworkAddress, Service as Resource};

use super::balance::{Distribution, Wish};
use super::only::Only;
use super::pod::octets;
use super::ports::{self, ServicePort};
use super::scope::{Candidate, Scopes};
use super::waypoint::Choice;
use super::{Cluster, Labels, value};

/// What matters of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its full name in DNS.
    pub hostname: String,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Which workloads serve it; none if EndpointSlices say.
    pub selector: Option<Labels>,
    /// An ExternalName: a name in DNS, nothing for a proxy.
    pub is_alias: bool,
    /// The waypoint it names; the service of a Gateway has none.
    pub waypoint: Choice,
    /// Whether it is reached only through its waypoint.
    pub only: Only,
    /// Whether gateways send through the waypoint too, if it says so.
    pub ingress: Option<bool>,
    /// Which rules may make it GLOBAL.
    pub candidate: Candidate,
    /// The Gateway it belongs to.
    pub gateway: Option<Arc<str>>,
    /// Its addresses.
    pub vips: Vec<IpAddr>,
    families: IpFamilies,
    wish: Wish,
}

impl Service {
    /// Keeps what matters.
    pub fn read(service: &objects::Service, cluster_domain: &str, scopes: &Scopes) -> Self {
        let metadata = &service.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        let name = metadata.name.as_deref().unwrap_or_default();
        let none = Labels::new();
        let spec = service.spec.clone().unwrap_or_default();
        let vips = vips(&spec);
        let annotations = metadata.annotations.as_ref().unwrap_or(&none);
        let own_labels = metadata.labels.as_ref().unwrap_or(&none);
        let annotated = value(annotations, labels::TRAFFIC_DISTRIBUTION);
        let gateway = value(own_labels, labels::GATEWAY_NAME);
        let managed = value(own_labels, labels::GATEWAY_MANAGED);
        let managed = managed
            .is_some_and(|by| [labels::MANAGED_WAYPOINT, labels::MANAGED_EAST_WEST].contains(&by));
        let is_alias = spec.type_.as_deref() == Some("ExternalName");
        // Nobody sends to an alias, and waypoints are not sent through waypoints.
        let behind_nothing = managed || gateway.is_some() || is_alias;
        Self {
            namespace: namespace.into(),
            name: name.into(),
            hostname: format!("{name}.{namespace}.svc.{cluster_domain}"),
            ports: ports::of_service(service),
            families: families(&spec, &vips),
            vips,
            is_alias,
            waypoint: if behind_nothing {
                Choice::Nothing
            } else {
                Choice::read(own_labels, annotations, namespace)
            },
            only: if behind_nothing {
                Only::No
            } else {
                Only::read(own_labels)
            },
            ingress: ingress(own_labels),
            candidate: scopes.candidate(own_labels),
            gateway: gateway.map(Arc::from),
            wish: Wish {
                local: spec.internal_traffic_policy.as_deref() == Some("Local"),
                unready_too: spec.publish_not_ready_addresses.unwrap_or(false),
                distribution: spec
                    .traffic_distribution
                    .as_deref()
                    .or(annotated)
                    .map(Distribution::named),
            },
            selector: spec.selector.filter(|selector| !selector.is_empty()),
        }
    }

    /// Its xDS name.
    pub fn resource_name(&self) -> String {
        format!("{}/{}", self.namespace, self.hostname)
    }

    /// The resource; none for an alias.
    pub fn resource(&self, cluster: &Cluster, namespace: Option<Distribution>) -> Option<Resource> {
        if self.is_alias {
            return None;
        }
        Some(Resource {
            name: self.name.to_string(),
            namespace: self.namespace.to_string(),
            hostname: self.hostname.clone(),
            addresses: self
                .vips
                .iter()
                .map(|vip| address(cluster, *vip, None))
                .collect(),
            ports: ports::listed(&self.ports),
            load_balancing: self.wish.balancing(namespace),
            ip_families: self.families.into(),
            canonical: true,
            ..Resource::default()
        })
    }
}

/// Whether gateways send through the waypoint too: of a service, or of a namespace for those in it.
pub fn ingress(labels: &Labels) -> Option<bool> {
    value(labels, labels::INGRESS_USE_WAYPOINT).map(|text| text.eq_ignore_ascii_case("true"))
}

/// An address, or with a length a range of them, on the cluster's network.
pub fn address(cluster: &Cluster, address: IpAddr, length: Option<u8>) -> NetworkAddress {
    NetworkAddress {
        network: cluster.network.clone(),
        address: octets(address),
        length: length.map(u32::from),
    }
}

fn vips(spec: &k8s_openapi::api::core::v1::ServiceSpec) -> Vec<IpAddr> {
    let several = spec.cluster_ips.iter().flatten();
    let vips: Vec<IpAddr> = several.filter_map(|ip| ip.parse().ok()).collect();
    // `None`, and not yet assigned, are no addresses.
    if vips.is_empty() {
        spec.cluster_ip
            .iter()
            .filter_map(|ip| ip.parse().ok())
            .collect()
    } else {
        vips
    }
}

/// What the Service says, else what its addresses are, else what a cluster of one family gives.
fn families(spec: &k8s_openapi::api::core::v1::ServiceSpec, vips: &[IpAddr]) -> IpFamilies {
    let stated = spec.ip_families.iter().flatten();
    let mut is_v6: Vec<bool> = stated.map(|family| family == "IPv6").collect();
    if is_v6.is_empty() {
        is_v6.extend(vips.iter().map(IpAddr::is_ipv6));
    }
    match (is_v6.contains(&false), is_v6.contains(&true)) {
        (true, true) => IpFamilies::Dual,
        (false, true) => IpFamilies::Ipv6Only,
        (_, false) => IpFamilies::Ipv4Only,
    }
}
