//! A workload: whoever has an identity and addresses in the mesh.
//!
//! A message enters, a [`Workload`] in which nothing invalid can be written leaves.

pub(crate) mod brief;

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use api::workload as wire;

use crate::egress::Egress;
use crate::names::{Interner, NamespacedHost, Network};
use crate::parse::{self, ParseError};
use crate::service::Port;
use brief::{Brief, Common};

/// A pod, a virtual machine, an endpoint outside the mesh, or a gateway of another network.
///
/// What the replicas of one owner have in common is stored once, in a [`Template`], and reads as
/// if it stood here: of 100,000 workloads each then takes 88 bytes here instead of 350.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Unique and opaque; the resource name.
    pub uid: Arc<str>,
    /// Node it runs on; empty when unknown.
    pub node: Arc<str>,
    /// Its IPs on `network`; may be empty.
    pub addresses: Addresses,
    /// Ready to take connections.
    pub healthy: bool,
    /// Its IPs are its node's: not unique, hence not indexed by IP.
    pub host_network: bool,
    /// Where it runs.
    pub locality: Arc<Locality>,
    /// Share of a service's connections relative to the other endpoints; 0 = none, default 1.
    pub capacity: u32,
    template: Arc<Template>,
    rare: Option<Box<Rare>>,
}

/// What few workloads have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rare {
    /// Where the uid does not end in it.
    name: Option<Arc<str>>,
    hostname: Option<Arc<str>>,
}

/// What the replicas of one owner have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account as sent; [`Workload::identity_parts`] applies the default.
    pub service_account: Arc<str>,
    /// Trust domain as sent; [`Workload::identity_parts`] applies the default.
    pub trust_domain: Arc<str>,
    /// Cluster it belongs to.
    pub cluster: Arc<str>,
    /// Network its addresses belong to.
    pub network: Network,
    /// Name for telemetry.
    pub canonical_name: Arc<str>,
    /// Revision for telemetry.
    pub canonical_revision: Arc<str>,
    /// Name of its owner (a Deployment, say).
    pub workload_name: Arc<str>,
    /// Kind of its owner.
    pub workload_type: WorkloadType,
    /// How it is reached.
    pub tunnel: Tunnel,
    /// The application itself terminates the tunnel.
    pub native_tunnel: bool,
    /// Waypoint for traffic that is addressed to this workload itself.
    pub waypoint: Option<Arc<GatewayAddress>>,
    /// East-west gateway through which its network is reached.
    pub network_gateway: Option<Arc<GatewayAddress>>,
    /// What the application expects behind the terminated tunnel.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Services it is an endpoint of.
    pub services: Box<[Membership]>,
    /// `namespace/name` of selector-scoped policies that apply to it.
    pub authorization_policies: Box<[Arc<str>]>,
    /// What becomes of its connections to who is unknown.
    pub egress: Egress,
    /// Its proxy carries UDP.
    pub udp: bool,
}

impl Deref for Workload {
    type Target = Template;

    fn deref(&self) -> &Template {
        &self.template
    }
}

/// Trust domain of a workload that names none.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Service account of a workload that names none.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";

impl Workload {
    /// Which template it has, for whoever looks for replicas side by side.
    pub(crate) fn template_at(&self) -> usize {
        Arc::as_ptr(&self.template).addr()
    }

    /// Pod name, or what comes closest.
    pub fn name(&self) -> &str {
        let own = self.rare.as_ref().and_then(|rare| rare.name.as_deref());
        own.unwrap_or_else(|| last_of(&self.uid))
    }

    /// To be resolved by DNS on demand, instead of addresses.
    pub fn hostname(&self) -> Option<&Arc<str>> {
        self.rare.as_ref()?.hostname.as_ref()
    }

    /// (trust domain, namespace, service account), defaults applied.
    pub fn identity_parts(&self) -> (&str, &str, &str) {
        (
            default(&self.trust_domain, DEFAULT_TRUST_DOMAIN),
            &self.namespace,
            default(&self.service_account, DEFAULT_SERVICE_ACCOUNT),
        )
    }

    /// Its own mapping of ports as an endpoint of that service; `None` when it is none.
    pub fn ports_in(&self, service: &NamespacedHost) -> Option<&[Port]> {
        self.services
            .iter()
            .find(|member| member.service == *service)
            .map(|member| &*member.ports)
    }

    /// Parses a message; texts and lists are shared through `names`. `uid` is the resource name
    /// and must be the message's uid: the one allocation then serves both.
    pub fn parse(
        uid: Arc<str>,
        message: &wire::Workload,
        names: &mut Interner,
    ) -> Result<Self, ParseError> {
        parse::required("uid", &message.uid)?;
        if *message.uid != *uid {
            return Err(ParseError::NameMismatch(message.uid.clone()));
        }
        Ok(Self::keep(uid, Brief::of(message)?, names))
    }

    /// The workload that was read in brief. `uid` is its uid.
    pub(crate) fn keep(uid: Arc<str>, brief: Brief<'_>, names: &mut Interner) -> Self {
        let rare = Rare {
            name: (brief.name != last_of(&uid)).then(|| names.text(brief.name)),
            hostname: (!brief.hostname.is_empty()).then(|| names.text(brief.hostname)),
        };
        let some = rare.name.is_some() || rare.hostname.is_some();
        Self {
            node: names.text(brief.node),
            addresses: brief.addresses.into(),
            healthy: brief.healthy,
            host_network: brief.host_network,
            locality: names.locality(brief.locality),
            capacity: brief.capacity,
            template: names.template(&brief.common),
            rare: some.then(|| Box::new(rare)),
            uid,
        }
    }
}

impl Template {
    pub(crate) fn keep(brief: &Common<'_>, names: &mut Interner) -> Self {
        let services = brief.services.iter().map(|member| Membership {
            service: NamespacedHost {
                namespace: names.text(member.namespace),
                host: names.text(member.host),
            },
            ports: names.ports(&member.ports),
        });
        Self {
            services: services.collect(),
            namespace: names.text(brief.namespace),
            service_account: names.text(brief.service_account),
            trust_domain: names.text(brief.trust_domain),
            cluster: names.text(brief.cluster),
            network: names.network(brief.network),
            canonical_name: names.text(brief.canonical_name),
            canonical_revision: names.text(brief.canonical_revision),
            workload_name: names.text(brief.workload_name),
            workload_type: brief.workload_type,
            tunnel: brief.tunnel,
            native_tunnel: brief.native_tunnel,
            waypoint: brief.waypoint.map(|found| names.gateway(&found)),
            network_gateway: brief.network_gateway.map(|found| names.gateway(&found)),
            application_tunnel: brief.application_tunnel,
            authorization_policies: brief
                .authorization_policies
                .iter()
                .map(|name| names.text(name))
                .collect(),
            egress: brief.egress.keep(names),
            udp: brief.udp,
        }
    }
}

impl TryFrom<wire::Workload> for Workload {
    type Error = ParseError;

    fn try_from(message: wire::Workload) -> Result<Self, ParseError> {
        Self::parse(Arc::from(&*message.uid), &message, &mut Interner::default())
    }
}

/// The uid of a pod ends in its name: `cluster//Pod/namespace/name`.
fn last_of(uid: &str) -> &str {
    uid.rsplit_once('/').map_or(uid, |(_, last)| last)
}

fn default<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// That a workload is an endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Membership {
    /// The service.
    pub service: NamespacedHost,
    /// The workload's own target ports; a port that is not here has the service's target port.
    pub ports: Arc<[Port]>,
}

/// How a workload is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Tunnel {
    /// Plain TCP.
    #[default]
    None,
    /// HBONE on port 15008.
    Hbone,
    /// Istio's sidecar mTLS, which this mesh does not speak.
    LegacyMtls,
}

impl From<wire::TunnelProtocol> for Tunnel {
    fn from(protocol: wire::TunnelProtocol) -> Self {
        match protocol {
            wire::TunnelProtocol::None => Self::None,
            wire::TunnelProtocol::Hbone => Self::Hbone,
            wire::TunnelProtocol::LegacyIstioMtls => Self::LegacyMtls,
        }
    }
}

/// Kind of a workload's owner, for telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WorkloadType {
    /// A Deployment.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

impl From<wire::WorkloadType> for WorkloadType {
    fn from(kind: wire::WorkloadType) -> Self {
        match kind {
            wire::WorkloadType::Deployment => Self::Deployment,
            wire::WorkloadType::Cronjob => Self::CronJob,
            wire::WorkloadType::Pod => Self::Pod,
            wire::WorkloadType::Job => Self::Job,
        }
    }
}

/// Where a workload runs; empty = unknown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Subzone.
    pub subzone: Arc<str>,
}

/// A waypoint or an east-west gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    /// Who it is.
    pub target: GatewayTarget,
    /// Its HBONE port.
    pub hbone_port: u16,
}

/// A gateway is named by service or by address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GatewayTarget {
    /// A service of the mesh.
    Host(NamespacedHost),
    /// A service VIP or the IP of a workload.
    Address(Network, IpAddr),
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            GatewayTarget::Host(host) => write!(f, "{host}:{}", self.hbone_port),
            GatewayTarget::Address(network, ip) => write!(f, "{network}/{ip}:{}", self.hbone_port),
        }
    }
}

/// What a captured application expects behind the terminated tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// Protocol in front of the bytes.
    pub protocol: ApplicationProtocol,
    /// Port to connect to; `None` = the original one.
    pub port: Option<u16>,
}

/// Protocol in front of the bytes of an application tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApplicationProtocol {
    /// The bytes as they are.
    None,
    /// A PROXY protocol version 2 header.
    Proxy,
}

impl ApplicationTunnel {
    fn parse(found: wire::ApplicationTunnel) -> Result<Self, ParseError> {
        use wire::application_tunnel::Protocol;
        let protocol = match parse::value("application_tunnel.protocol", found.protocol)? {
            Protocol::None => ApplicationProtocol::None,
            Protocol::Proxy => ApplicationProtocol::Proxy,
        };
        let port = parse::port("application_tunnel.port", found.port)?;
        Ok(Self {
            protocol,
            port: Some(port).filter(|port| *port != 0),
        })
    }
}

/// A workload's IPs: one without an allocation, several in a list. Reads as a slice.
#[derive(Clone, PartialEq, Eq)]
pub struct Addresses(Held);

#[derive(Clone, PartialEq, Eq)]
enum Held {
    One(IpAddr),
    List(Box<[IpAddr]>),
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(found: Vec<IpAddr>) -> Self {
        match *found {
            [one] => Self(Held::One(one)),
            _ => Self(Held::List(found.into())),
        }
    }
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match &self.0 {
            Held::One(one) => std::slice::from_ref(one),
            Held::List(list) => list,
        }
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&**self).finish()
    }
}
