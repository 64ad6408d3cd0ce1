//! Pure: (snapshot, source workload, original destination) → where the connection goes, or why it must not.
//!
//! The rules are those of docs/wire.md "Data-path rules", in this order:
//!
//! 1. a call to one of our own ports on the pod itself is a loop: refuse;
//! 2. the destination is a service: its waypoint if it has one, else one of its endpoints;
//! 3. the destination is a workload: its waypoint if it has one, else itself;
//! 4. unknown: pass through as it is, or be refused, whichever its workload's egress setting says.
//!
//! Who is on another network is reached through its gateway, by a tunnel inside a tunnel (`front`).
//!
//! What is named but cannot be resolved (a waypoint, a gateway, an endpoint) is refused here, before a byte moves: traffic that
//! should meet a waypoint must never find a way around it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hbone::{Authority, Identity};
use mesh::{
    Client, EgressMode, Endpoint, GatewayAddress, GatewayTarget, NoEndpoint, Service, Snapshot,
    Workload,
};

use crate::retry::Target;

mod front;
mod identity;
mod refused;
#[cfg(test)]
mod tests;

pub(crate) use identity::{by_all_names, identity, proves};
use identity::{expected, sorted, vouched_for};
pub use refused::Refused;

/// Port of the inbound tunnel listener in every captured pod.
pub const HBONE_PORT: u16 = 15008;

/// Our listeners inside a pod: an app's traffic to them would come back to us for ever.
pub const OWN_PORTS: [u16; 3] = [HBONE_PORT, 15006, 15001];

/// What is asked of [`decide`].
pub struct Question<'a> {
    /// The mesh as of now, one snapshot for the whole decision.
    pub snapshot: &'a Snapshot,
    /// Whose connection it is.
    pub source: &'a Workload,
    /// Where the app meant to go.
    pub destination: SocketAddr,
    /// Whether this workload's pod is on this node and may be joined in process.
    pub joinable: &'a dyn Fn(&Workload) -> bool,
    /// Whether an endpoint is in trouble, asked for this port: another one is preferred where there is one.
    pub avoid: &'a dyn Fn(&Workload, u16) -> bool,
    /// Whom this node asks for names: never outside, wherever they are.
    pub resolvers: &'a [SocketAddr],
    /// A random number: balancing draws from it.
    pub draw: u64,
}

/// Where a connection goes.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Through a tunnel.
    Tunnel(Tunnel),
    /// To a pod on this very node, joined in process.
    Local(Direct),
    /// As it is, without a tunnel.
    Plain(Plain),
}

impl Decision {
    /// The endpoint or waypoint that is chosen, as [`Question::avoid`] is asked of it; none where there was no choice.
    pub(crate) fn target(&self) -> Option<Target> {
        let (workload, port) = match self {
            Self::Tunnel(found) => (&found.next, found.asked),
            Self::Local(found) => (&found.workload, found.address.port()),
            Self::Plain(found) => (found.workload.as_ref()?, found.to.port()),
        };
        Some((workload.uid.clone(), port))
    }

    /// Whoever answers does so for somebody behind it: that it cannot reach that one says nothing of itself.
    pub(crate) fn leads_on(&self) -> bool {
        match self {
            Self::Tunnel(found) => match &found.authority {
                Authority::Ip(asked) => asked.ip() != found.address.ip(),
                Authority::Host(..) => true,
            },
            Self::Local(_) | Self::Plain(_) => false,
        }
    }
}

/// A tunnel to open.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// The next hop's tunnel port; without an address (0.0.0.0) where only its name is known.
    pub address: SocketAddr,
    /// What the CONNECT asks for.
    pub authority: Authority,
    /// Who may answer, sorted.
    pub expected: Vec<Identity>,
    /// Who answers: an endpoint, a waypoint, or the gateway of another network.
    pub next: Arc<Workload>,
    /// Whom the gateway leads to.
    pub beyond: Option<Beyond>,
    /// The port for which it was chosen: the app's, or the tunnel port of a waypoint or gateway.
    pub asked: u16,
    /// The service that was called, if one was.
    pub service: Option<Arc<Service>>,
}

impl Tunnel {
    /// The name to look up for the next hop's address, where discovery told none.
    pub(crate) fn name(&self) -> Option<&Arc<str>> {
        let unknown = self.address.ip().is_unspecified();
        self.next.hostname().filter(|_| unknown)
    }

    /// The next hop in words.
    pub(crate) fn hop(&self) -> String {
        match self.name() {
            Some(name) => format!("{name}:{}", self.address.port()),
            None => self.address.to_string(),
        }
    }

    /// The same to the address that was found under that name.
    pub(crate) fn found_at(mut self, ip: IpAddr) -> Self {
        self.address.set_ip(ip);
        if let Authority::Ip(asked) = &mut self.authority
            && asked.ip().is_unspecified()
        {
            asked.set_ip(ip);
        }
        self
    }
}

/// What is at the end of a tunnel inside a tunnel.
#[derive(Debug, Clone)]
pub struct Beyond {
    /// Who may answer there, sorted: whom the service vouches for. The gateway may lead to any of them.
    pub expected: Vec<Identity>,
    /// What stands for them in discovery.
    pub workload: Arc<Workload>,
}

/// A workload reached at its own address.
#[derive(Debug, Clone)]
pub struct Direct {
    /// Its address and the port its app listens on.
    pub address: SocketAddr,
    /// The destination.
    pub workload: Arc<Workload>,
    /// The service that was called, if one was.
    pub service: Option<Arc<Service>>,
}

/// A plain TCP connection to open.
#[derive(Debug, Clone)]
pub struct Plain {
    /// Where to.
    pub to: Place,
    /// Whose address that is, if it is known.
    pub workload: Option<Arc<Workload>>,
    /// The service that was called, if one was.
    pub service: Option<Arc<Service>>,
    /// Nobody is known there, and this setting wants it to be told.
    pub logged_by: Option<Arc<str>>,
}

/// The address of a plain connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Known.
    Address(SocketAddr),
    /// A name to look up first (an endpoint of a `resolution: DNS` ServiceEntry), the port, and the family the app uses.
    Name(Arc<str>, u16),
}

impl Place {
    fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Name(_, port) => *port,
        }
    }
}

/// Where a new connection goes.
///
/// # Errors
/// When it must not be carried.
pub fn decide(question: &Question<'_>) -> Result<Decision, Refused> {
    let Question {
        snapshot,
        source,
        destination,
        ..
    } = *question;
    let own = destination.ip().is_loopback() || source.addresses.contains(&destination.ip());
    if own && OWN_PORTS.contains(&destination.port()) {
        return Err(Refused::SelfCall);
    }
    if let Some(service) = snapshot.service_at(&source.network, destination.ip(), &source.namespace)
    {
        return to_service(question, service);
    }
    if let Some(workload) = snapshot.workload_at(&source.network, destination.ip()) {
        return to_workload(question, workload);
    }
    to_the_unknown(question, own)
}

/// Nobody is known there: out of the mesh, if the caller's setting lets it.
fn to_the_unknown(question: &Question<'_>, own: bool) -> Result<Decision, Refused> {
    let Question {
        snapshot,
        source,
        destination,
        resolvers,
        ..
    } = *question;
    let mode = match own || is_of_the_mesh(snapshot, source, destination, resolvers) {
        true => EgressMode::Allow,
        false => source.egress.mode,
    };
    let by = || source.egress.set_by.clone();
    let logged_by = match mode {
        EgressMode::Refuse => {
            let by = by();
            return Err(Refused::Egress { destination, by });
        }
        EgressMode::Log => Some(by()),
        EgressMode::Allow => None,
    };
    Ok(Decision::Plain(Plain {
        to: Place::Address(destination),
        workload: None,
        service: None,
        logged_by,
    }))
}

/// Nodes have many workloads and so none that could be named; they are of the mesh all the same.
fn is_of_the_mesh(
    snapshot: &Snapshot,
    source: &Workload,
    destination: SocketAddr,
    resolvers: &[SocketAddr],
) -> bool {
    snapshot.is_node(&source.network, destination.ip()) || resolvers.contains(&destination)
}

/// The setting that is now against a connection to where nobody was known when it was opened, if one is.
pub(crate) fn shut_by<'a>(
    snapshot: &Snapshot,
    source: &'a Workload,
    destination: SocketAddr,
    resolvers: &[SocketAddr],
) -> Option<&'a Arc<str>> {
    let (network, ip) = (&source.network, destination.ip());
    let refused = source.egress.mode == EgressMode::Refuse
        && snapshot
            .service_at(network, ip, &source.namespace)
            .is_none()
        && snapshot.workload_at(network, ip).is_none()
        && !is_of_the_mesh(snapshot, source, destination, resolvers);
    refused.then_some(&source.egress.set_by)
}

fn to_service(question: &Question<'_>, service: &Arc<Service>) -> Result<Decision, Refused> {
    // The high half draws the waypoint, the whole the endpoint, so that the two draws do not follow each other.
    if let Some(waypoint) = service.draw_waypoint(question.draw >> 32) {
        return front::through_waypoint(question, waypoint, Some(service));
    }
    let picked = mesh::pick_but(
        question.snapshot,
        service,
        question.destination.port(),
        &client(question),
        question.draw,
        &|endpoint| (question.avoid)(&endpoint.workload, endpoint.target_port),
    );
    match picked {
        Ok(endpoint) => to_endpoint(question, service, endpoint),
        // Nobody listed: the service only names a place outside the mesh.
        Err(NoEndpoint::Passthrough) => Ok(Decision::Plain(Plain {
            to: Place::Address(question.destination),
            workload: None,
            service: Some(service.clone()),
            logged_by: None,
        })),
        Err(why) => Err(Refused::NoUpstream {
            service: name(service),
            why,
        }),
    }
}

fn to_workload(question: &Question<'_>, workload: &Arc<Workload>) -> Result<Decision, Refused> {
    if let Some(waypoint) = &workload.waypoint
        && !is_waypoint(question, waypoint)
    {
        return front::through_waypoint(question, waypoint, None);
    }
    // The app named this very address, so it is kept, in the family that the app chose.
    reach(question, workload, question.destination, None)
}

fn to_endpoint(
    question: &Question<'_>,
    service: &Arc<Service>,
    endpoint: Endpoint,
) -> Result<Decision, Refused> {
    let Endpoint {
        workload,
        target_port,
        address,
    } = endpoint;
    let between = workload.network != question.source.network;
    let between = workload.network_gateway.as_ref().filter(|_| between);
    match (address, workload.hostname().filter(|_| between.is_none())) {
        (Some(ip), _) => reach(
            question,
            &workload,
            SocketAddr::new(ip, target_port),
            Some(service),
        ),
        (None, Some(_)) if workload.tunnel == mesh::Tunnel::Hbone => {
            let address = SocketAddr::new(NOT_YET, target_port);
            tunnel_to(&workload, address, Some(service.clone()))
        }
        (None, Some(name)) => Ok(Decision::Plain(Plain {
            to: Place::Name(name.clone(), target_port),
            workload: Some(workload.clone()),
            service: Some(service.clone()),
            logged_by: None,
        })),
        (None, None) => match &workload.network_gateway {
            Some(gateway) => front::through_gateway(question, gateway, &workload, service, &[]),
            None => Err(Refused::NoAddress(workload.uid.clone())),
        },
    }
}

/// The last step: to a workload itself, at `address`.
fn reach(
    question: &Question<'_>,
    workload: &Arc<Workload>,
    address: SocketAddr,
    service: Option<&Arc<Service>>,
) -> Result<Decision, Refused> {
    if workload.network != question.source.network
        && let Some(gateway) = &workload.network_gateway
    {
        let Some(service) = service else {
            let (who, network) = (workload.uid.clone(), workload.network.clone());
            return Err(Refused::OtherNetwork(who, network));
        };
        return front::through_gateway(question, gateway, workload, service, &[]);
    }
    let service = service.cloned();
    if workload.tunnel != mesh::Tunnel::Hbone {
        let (to, workload) = (Place::Address(address), Some(workload.clone()));
        return Ok(Decision::Plain(Plain {
            to,
            workload,
            service,
            logged_by: None,
        }));
    }
    // An app that terminates tunnels itself, or wants its bytes framed, is spoken to as over the wire.
    if !workload.native_tunnel
        && workload.application_tunnel.is_none()
        && (question.joinable)(workload)
    {
        return Ok(Decision::Local(Direct {
            address,
            workload: workload.clone(),
            service,
        }));
    }
    tunnel_to(workload, address, service)
}

/// The address of whom a name must be looked up for first.
const NOT_YET: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Through a tunnel to the proxy of a workload.
fn tunnel_to(
    workload: &Arc<Workload>,
    address: SocketAddr,
    service: Option<Arc<Service>>,
) -> Result<Decision, Refused> {
    Ok(Decision::Tunnel(Tunnel {
        address: SocketAddr::new(address.ip(), HBONE_PORT),
        authority: Authority::Ip(address),
        expected: expected(workload, service.as_deref())?,
        next: workload.clone(),
        beyond: None,
        asked: address.port(),
        service,
    }))
}

/// Whether the caller is a pod of this waypoint, captured like any other: what it sends on must not come back to it.
fn is_waypoint(question: &Question<'_>, waypoint: &GatewayAddress) -> bool {
    let source = question.source;
    match &waypoint.target {
        GatewayTarget::Host(host) => source.services.iter().any(|member| member.service == *host),
        GatewayTarget::Address(network, ip) => {
            source.network == *network && source.addresses.contains(ip)
                || question
                    .snapshot
                    .service_at(network, *ip, &source.namespace)
                    .is_some_and(|service| source.ports_in(&service.key()).is_some())
        }
    }
}

fn client<'a>(question: &Question<'a>) -> Client<'a> {
    Client::of(question.source, question.destination.is_ipv6())
}

fn name(service: &Service) -> String {
    format!("{}/{}", service.namespace, service.hostname)
}
