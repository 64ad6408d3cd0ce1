//! A service: a name and virtual addresses behind which endpoints stand.

use std::net::IpAddr;
use std::sync::Arc;

use api::GLOBAL_EXTENSION;
use api::workload as wire;
use ipnet::IpNet;

use crate::names::{Interner, NamespacedHost, Network};
use crate::parse::{self, BriefGateway, ParseError};
use crate::workload::GatewayAddress;

/// A Kubernetes Service or one host of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Name of the object.
    pub name: Arc<str>,
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Fully qualified host name.
    pub hostname: Arc<str>,
    /// Virtual addresses.
    pub vips: Box<[Vip]>,
    /// Ports it offers.
    pub ports: Arc<[Port]>,
    /// SPIFFE ids accepted of its endpoints beside their own.
    pub subject_alt_names: Box<[Arc<str>]>,
    /// Waypoint for traffic addressed to it.
    pub waypoint: Option<Arc<GatewayAddress>>,
    /// Canary waypoints: one is drawn per connection, by weight; `waypoint` when no weight is usable.
    pub weighted_waypoints: Box<[(Arc<GatewayAddress>, u32)]>,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// Address families it speaks.
    pub ip_families: IpFamilies,
    /// Wins when several services share a host name or an address.
    pub canonical: bool,
    /// Who may see it.
    pub visibility: Visibility,
    /// Gateways send through the waypoint as well.
    pub ingress_use_waypoint: bool,
    /// Other networks may call it. What nobody says that of is LOCAL.
    pub global: bool,
}

impl Service {
    /// Its key; two reference counts, no copy.
    pub fn key(&self) -> NamespacedHost {
        NamespacedHost {
            namespace: self.namespace.clone(),
            host: self.hostname.clone(),
        }
    }

    /// The port it offers under that number.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.service_port == number)
    }

    /// Whether a caller of that namespace may use it.
    pub fn visible_from(&self, namespace: &str) -> bool {
        self.visibility == Visibility::Public || *self.namespace == *namespace
    }

    /// The waypoint of one connection: drawn by weight where weights are set. `draw` is a random number.
    pub fn draw_waypoint(&self, draw: u64) -> Option<&Arc<GatewayAddress>> {
        let total: u64 = self
            .weighted_waypoints
            .iter()
            .map(|(_, weight)| u64::from(*weight))
            .sum();
        if total == 0 {
            return self.waypoint.as_ref();
        }
        let mut left = draw % total;
        for (waypoint, weight) in &self.weighted_waypoints {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return Some(waypoint),
            }
        }
        self.waypoint.as_ref()
    }

    /// Parses a message; texts and lists are shared through `names`.
    pub fn parse(message: wire::Service, names: &mut Interner) -> Result<Self, ParseError> {
        parse::required("namespace", &message.namespace)?;
        parse::required("hostname", &message.hostname)?;
        let ports = message
            .ports
            .into_iter()
            .map(Port::parse)
            .collect::<Result<Vec<_>, _>>()?;
        let vips = message
            .addresses
            .into_iter()
            .map(|address| Vip::parse(address, names));
        let vips = vips.collect::<Result<_, _>>()?;
        let mut weighted = Vec::with_capacity(message.weighted_waypoints.len());
        for canary in message.weighted_waypoints {
            let target = canary
                .destination
                .ok_or(ParseError::Missing("weighted_waypoints"))?;
            let target = BriefGateway::of("weighted_waypoints", &target)?;
            weighted.push((names.gateway(&target), canary.weight));
        }
        Ok(Self {
            vips,
            ports: names.ports(&ports),
            waypoint: match &message.waypoint {
                Some(found) => Some(names.gateway(&BriefGateway::of("waypoint", found)?)),
                None => None,
            },
            weighted_waypoints: weighted.into(),
            load_balancing: message
                .load_balancing
                .map(LoadBalancing::parse)
                .transpose()?
                .unwrap_or_default(),
            ip_families: IpFamilies::from(parse::value::<wire::IpFamilies>(
                "ip_families",
                message.ip_families,
            )?),
            visibility: Visibility::from(parse::value::<wire::service::Visibility>(
                "visibility",
                message.visibility,
            )?),
            subject_alt_names: message
                .subject_alt_names
                .iter()
                .map(|name| names.text(name))
                .collect(),
            canonical: message.canonical,
            ingress_use_waypoint: message.ingress_use_waypoint,
            global: message
                .extensions
                .iter()
                .any(|it| it.name == GLOBAL_EXTENSION),
            name: names.text(&message.name),
            namespace: names.text(&message.namespace),
            hostname: names.text(&message.hostname),
        })
    }
}

impl TryFrom<wire::Service> for Service {
    type Error = ParseError;

    fn try_from(message: wire::Service) -> Result<Self, ParseError> {
        Self::parse(message, &mut Interner::default())
    }
}

/// A virtual address of a service on one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// The network.
    pub network: Network,
    /// One address, or all of a range.
    pub address: VipAddress,
}

/// One address, or all of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VipAddress {
    /// One address.
    Ip(IpAddr),
    /// Every address of a range; sent with a prefix length.
    Cidr(IpNet),
}

impl VipAddress {
    /// The same as a range.
    pub fn net(&self) -> IpNet {
        match *self {
            Self::Ip(ip) => IpNet::from(ip),
            Self::Cidr(net) => net,
        }
    }
}

impl Vip {
    fn parse(found: wire::NetworkAddress, names: &mut Interner) -> Result<Self, ParseError> {
        let address = match found.length {
            None => VipAddress::Ip(parse::ip("addresses", &found.address)?),
            Some(length) => VipAddress::Cidr(parse::net("addresses", &found.address, length)?),
        };
        Ok(Self {
            network: names.network(&found.network),
            address,
        })
    }
}

/// A port of a service, or a workload's own mapping of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port {
    /// Number under which the service offers it.
    pub service_port: u16,
    /// Number on the endpoint; 0 = each endpoint says for itself.
    pub target_port: u16,
    /// What is spoken there.
    pub protocol: AppProtocol,
}

impl Port {
    pub(crate) fn parse(found: wire::Port) -> Result<Self, ParseError> {
        Ok(Self {
            service_port: parse::port("service_port", found.service_port)?,
            target_port: parse::port("target_port", found.target_port)?,
            protocol: AppProtocol::from(parse::value::<wire::AppProtocol>(
                "app_protocol",
                found.app_protocol,
            )?),
        })
    }
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Not declared.
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// TCP.
    Tcp,
    /// TLS.
    Tls,
}

impl From<wire::AppProtocol> for AppProtocol {
    fn from(found: wire::AppProtocol) -> Self {
        match found {
            wire::AppProtocol::Unknown => Self::Unknown,
            wire::AppProtocol::Http11 => Self::Http11,
            wire::AppProtocol::Http2 => Self::Http2,
            wire::AppProtocol::Grpc => Self::Grpc,
            wire::AppProtocol::Tcp => Self::Tcp,
            wire::AppProtocol::Tls => Self::Tls,
        }
    }
}

/// Address families a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpFamilies {
    /// Whatever its endpoints have.
    Automatic,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both.
    Dual,
}

impl IpFamilies {
    /// Whether an endpoint may be reached at that address.
    pub fn accept(self, ip: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::Ipv4 => ip.is_ipv4(),
            Self::Ipv6 => ip.is_ipv6(),
        }
    }
}

impl From<wire::IpFamilies> for IpFamilies {
    fn from(found: wire::IpFamilies) -> Self {
        match found {
            wire::IpFamilies::Automatic => Self::Automatic,
            wire::IpFamilies::Ipv4Only => Self::Ipv4,
            wire::IpFamilies::Ipv6Only => Self::Ipv6,
            wire::IpFamilies::Dual => Self::Dual,
        }
    }
}

/// Who may see a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// The whole mesh.
    Public,
    /// Its own namespace only.
    Namespace,
}

impl From<wire::service::Visibility> for Visibility {
    fn from(found: wire::service::Visibility) -> Self {
        match found {
            wire::service::Visibility::Public => Self::Public,
            wire::service::Visibility::Namespace => Self::Namespace,
        }
    }
}

/// How an endpoint of a service is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadBalancing {
    /// What to have in common with the caller, most important first.
    pub routing_preference: Box<[Scope]>,
    /// How binding that is.
    pub mode: Mode,
    /// Which endpoints count.
    pub health_policy: HealthPolicy,
}

impl LoadBalancing {
    fn parse(found: wire::LoadBalancing) -> Result<Self, ParseError> {
        use wire::load_balancing::{HealthPolicy as WireHealth, Mode as WireMode};
        let scopes = found.routing_preference.into_iter().map(Scope::parse);
        Ok(Self {
            routing_preference: scopes.collect::<Result<_, _>>()?,
            mode: match parse::value("load_balancing.mode", found.mode)? {
                WireMode::UnspecifiedMode => Mode::Random,
                WireMode::Strict => Mode::Strict,
                WireMode::Failover => Mode::Failover,
                WireMode::Passthrough => Mode::Passthrough,
            },
            health_policy: match parse::value("load_balancing.health_policy", found.health_policy)?
            {
                WireHealth::OnlyHealthy => HealthPolicy::OnlyHealthy,
                WireHealth::AllowAll => HealthPolicy::AllowAll,
            },
        })
    }

    /// The scopes by which endpoints are grouped: none where the mode pays no attention to them.
    pub fn scopes(&self) -> &[Scope] {
        match self.mode {
            Mode::Strict | Mode::Failover => &self.routing_preference,
            Mode::Random | Mode::Passthrough => &[],
        }
    }
}

/// Something an endpoint and a caller may have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Region.
    Region,
    /// Zone.
    Zone,
    /// Subzone.
    Subzone,
    /// Node.
    Node,
    /// Cluster.
    Cluster,
    /// Network.
    Network,
}

impl Scope {
    fn parse(found: i32) -> Result<Self, ParseError> {
        use wire::load_balancing::Scope as Wire;
        const FIELD: &str = "load_balancing.routing_preference";
        Ok(match parse::value(FIELD, found)? {
            Wire::Region => Self::Region,
            Wire::Zone => Self::Zone,
            Wire::Subzone => Self::Subzone,
            Wire::Node => Self::Node,
            Wire::Cluster => Self::Cluster,
            Wire::Network => Self::Network,
            Wire::UnspecifiedScope => {
                return Err(ParseError::UnknownValue {
                    field: FIELD,
                    value: found,
                });
            }
        })
    }
}

/// How binding the routing preference is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Not at all: any endpoint.
    #[default]
    Random,
    /// Only endpoints that match every scope.
    Strict,
    /// The endpoints that match best.
    Failover,
    /// The original destination, where there is no endpoint.
    Passthrough,
}

/// Which endpoints count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HealthPolicy {
    /// Healthy ones.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}
