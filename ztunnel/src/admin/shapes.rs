//! Pure: workloads and services in the JSON shape of Istio's `/config_dump`, which istioctl and Kiali
//! parse. Each shape borrows its object and exists only while it is written.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh::service::{IpFamilies, Port};
use mesh::workload::{ApplicationProtocol, WorkloadType};
use mesh::{
    Egress, EgressMode, GatewayAddress, GatewayTarget, HealthPolicy, Locality, Mode, Scope,
    Service, Snapshot, Tunnel, VipAddress, Visibility, Workload,
};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkloadShape<'a> {
    uid: &'a str,
    workload_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayShape<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<GatewayShape<'a>>,
    protocol: &'static str,
    network_mode: &'static str,
    trust_domain: &'a str,
    name: &'a str,
    namespace: &'a str,
    service_account: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    workload_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    workload_type: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_revision: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    authorization_policies: &'a [std::sync::Arc<str>],
    status: &'static str,
    cluster_id: &'a str,
    #[serde(skip_serializing_if = "LocalityShape::is_empty")]
    locality: LocalityShape<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<ApplicationTunnelShape>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    native_tunnel: bool,
    capacity: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<EgressShape<'a>>,
    /// Ours, as the one before it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    udp: bool,
}

impl<'a> WorkloadShape<'a> {
    pub(super) fn of(workload: &'a Workload) -> Self {
        let (trust_domain, namespace, service_account) = workload.identity_parts();
        // A workload that names no owner is a static one; Istio shows no type for it either.
        let owned = !workload.workload_name.is_empty();
        Self {
            uid: &workload.uid,
            workload_ips: &workload.addresses,
            waypoint: workload.waypoint.as_deref().map(GatewayShape::of),
            network_gateway: workload.network_gateway.as_deref().map(GatewayShape::of),
            protocol: match workload.tunnel {
                Tunnel::None => "TCP",
                Tunnel::Hbone => "HBONE",
                Tunnel::LegacyMtls => "LegacyIstioMtls",
            },
            network_mode: if workload.host_network {
                "HostNetwork"
            } else {
                "Standard"
            },
            trust_domain,
            name: workload.name(),
            namespace,
            service_account,
            workload_name: &workload.workload_name,
            workload_type: if owned {
                workload_type(workload.workload_type)
            } else {
                ""
            },
            canonical_name: &workload.canonical_name,
            canonical_revision: &workload.canonical_revision,
            node: &workload.node,
            network: workload.network.as_str(),
            authorization_policies: &workload.authorization_policies,
            status: status(workload),
            cluster_id: &workload.cluster,
            locality: LocalityShape::of(&workload.locality),
            hostname: workload.hostname().map_or("", |host| host),
            application_tunnel: workload
                .application_tunnel
                .map(|tunnel| ApplicationTunnelShape {
                    protocol: match tunnel.protocol {
                        ApplicationProtocol::None => "NONE",
                        ApplicationProtocol::Proxy => "PROXY",
                    },
                    port: tunnel.port,
                }),
            native_tunnel: workload.native_tunnel,
            capacity: workload.capacity,
            egress: EgressShape::of(&workload.egress),
            udp: workload.udp,
        }
    }
}

/// Ours; not there where everybody may be called, so that the dump is Istio's.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EgressShape<'a> {
    mode: &'static str,
    set_by: &'a str,
}

impl<'a> EgressShape<'a> {
    fn of(egress: &'a Egress) -> Option<Self> {
        let mode = match egress.mode {
            EgressMode::Allow => return None,
            EgressMode::Log => "Log",
            EgressMode::Refuse => "Refuse",
        };
        let set_by = &egress.set_by;
        Some(Self { mode, set_by })
    }
}

fn status(workload: &Workload) -> &'static str {
    if workload.healthy {
        "Healthy"
    } else {
        "Unhealthy"
    }
}

fn workload_type(kind: WorkloadType) -> &'static str {
    match kind {
        WorkloadType::Deployment => "deployment",
        WorkloadType::CronJob => "cronjob",
        WorkloadType::Pod => "pod",
        WorkloadType::Job => "job",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayShape<'a> {
    #[serde(serialize_with = "target")]
    destination: &'a GatewayTarget,
    hbone_mtls_port: u16,
}

impl<'a> GatewayShape<'a> {
    fn of(gateway: &'a GatewayAddress) -> Self {
        Self {
            destination: &gateway.target,
            hbone_mtls_port: gateway.hbone_port,
        }
    }
}

fn target<S: Serializer>(target: &&GatewayTarget, out: S) -> Result<S::Ok, S::Error> {
    match target {
        GatewayTarget::Host(host) => out.collect_str(host),
        GatewayTarget::Address(network, ip) => {
            out.collect_str(&format_args!("{}/{ip}", network.as_str()))
        }
    }
}

#[derive(Serialize)]
struct LocalityShape<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    region: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    zone: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subzone: &'a str,
}

impl<'a> LocalityShape<'a> {
    fn of(locality: &'a Locality) -> Self {
        Self {
            region: &locality.region,
            zone: &locality.zone,
            subzone: &locality.subzone,
        }
    }

    fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }
}

#[derive(Serialize)]
struct ApplicationTunnelShape {
    protocol: &'static str,
    port: Option<u16>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceShape<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    vips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<String>,
    ports: BTreeMap<u16, u16>,
    endpoints: Endpoints<'a>,
    subject_alt_names: &'a [std::sync::Arc<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayShape<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<LoadBalancerShape>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    canonical: bool,
    visibility: &'static str,
}

impl<'a> ServiceShape<'a> {
    pub(super) fn of(service: &'a Service, snapshot: &'a Snapshot) -> Self {
        let vips = |ranges: bool| {
            let chosen = service
                .vips
                .iter()
                .filter(move |vip| matches!(vip.address, VipAddress::Cidr(_)) == ranges);
            chosen.map(|vip| match vip.address {
                VipAddress::Ip(ip) => format!("{}/{ip}", vip.network.as_str()),
                VipAddress::Cidr(net) => format!("{}/{net}", vip.network.as_str()),
            })
        };
        Self {
            name: &service.name,
            namespace: &service.namespace,
            hostname: &service.hostname,
            vips: vips(false).collect(),
            cidr_vips: vips(true).collect(),
            ports: ports(&service.ports),
            endpoints: Endpoints { service, snapshot },
            subject_alt_names: &service.subject_alt_names,
            waypoint: service.waypoint.as_deref().map(GatewayShape::of),
            load_balancer: LoadBalancerShape::of(service),
            ip_families: match service.ip_families {
                IpFamilies::Automatic => None,
                IpFamilies::Ipv4 => Some("IPv4"),
                IpFamilies::Ipv6 => Some("IPv6"),
                IpFamilies::Dual => Some("Dual"),
            },
            canonical: service.canonical,
            visibility: match service.visibility {
                Visibility::Public => "Public",
                Visibility::Namespace => "Namespace",
            },
        }
    }
}

fn ports(ports: &[Port]) -> BTreeMap<u16, u16> {
    ports
        .iter()
        .map(|port| (port.service_port, port.target_port))
        .collect()
}

/// A service may have ten thousand endpoints: written one by one.
struct Endpoints<'a> {
    service: &'a Service,
    snapshot: &'a Snapshot,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointShape<'a> {
    workload_uid: &'a str,
    service: String,
    address: String,
    port: BTreeMap<u16, u16>,
    status: &'static str,
}

impl Serialize for Endpoints<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let key = self.service.key();
        let mut map = out.serialize_map(None)?;
        for workload in self.snapshot.endpoints(self.service) {
            let address = workload.addresses.first();
            map.serialize_entry(
                &*workload.uid,
                &EndpointShape {
                    workload_uid: &workload.uid,
                    service: key.to_string(),
                    address: address
                        .map(|ip| format!("{}/{ip}", workload.network.as_str()))
                        .unwrap_or_default(),
                    port: workload.ports_in(&key).map(ports).unwrap_or_default(),
                    status: status(workload),
                },
            )?;
        }
        map.end()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancerShape {
    mode: &'static str,
    routing_preferences: Vec<&'static str>,
    health_policy: &'static str,
}

impl LoadBalancerShape {
    fn of(service: &Service) -> Option<Self> {
        let balancing = &service.load_balancing;
        (*balancing != mesh::LoadBalancing::default()).then(|| Self {
            mode: match balancing.mode {
                Mode::Random => "Standard",
                Mode::Strict => "Strict",
                Mode::Failover => "Failover",
                Mode::Passthrough => "Passthrough",
            },
            routing_preferences: balancing
                .routing_preference
                .iter()
                .map(|scope| scope_name(*scope))
                .collect(),
            health_policy: match balancing.health_policy {
                HealthPolicy::OnlyHealthy => "OnlyHealthy",
                HealthPolicy::AllowAll => "AllowAll",
            },
        })
    }
}

fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Region => "Region",
        Scope::Zone => "Zone",
        Scope::Subzone => "Subzone",
        Scope::Node => "Node",
        Scope::Cluster => "Cluster",
        Scope::Network => "Network",
    }
}
