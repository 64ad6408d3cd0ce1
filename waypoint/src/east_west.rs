//! An east-west gateway: connections from other networks are led on to workloads of this one.
//!
//! 1. the outer tunnel has arrived, and who asks has proven who it is              (`arrive`)
//! 2. the CONNECT names a service and its port, and that is GLOBAL                 ([`lead`], pure)
//! 3. that leads to its waypoint, else to an endpoint of it in our network         ([`lead`], pure)
//! 4. a connection to that one's tunnel port; another one where it fails           ([`carry`])
//! 5. 200, and bytes both ways until both have ended
//!
//! Inside those bytes is a second tunnel, from the client's proxy to that of whoever is chosen here. It stays closed to
//! us: the two prove to each other who they are, the policies at its end see the client, and a gateway that lies about
//! whom it leads to is found out by the client. So there is nothing to be judged here: who may ask may as well be let
//! in, and whatever it says is taken or refused by whom it reaches. It reaches tunnel ports, and nothing else
//! (docs/wire.md "Data-path rules").
//!
//! A service is led to only where the control plane says that it is GLOBAL (docs/wire.md "Scope"): what nobody said it of
//! stays in its network.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hbone::{Authority, Counters, Request, ResponseHeaders, Status};
use mesh::service::Mode;
use mesh::{GatewayAddress, GatewayTarget, Network, NoEndpoint, Service, Snapshot, Workload};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::call::random;
use crate::client::Client;
use crate::proxy::Proxy;
use crate::report::{Flag, TcpReport};

/// What is asked of [`lead`].
pub struct Question<'a> {
    /// The mesh as of now.
    pub snapshot: &'a Snapshot,
    /// Where the gateway is: endpoints that are near are its to prefer.
    pub gateway: mesh::Client<'a>,
    /// What the CONNECT asks for.
    pub authority: &'a Authority,
    /// The caller's namespace: services that only it sees are its to ask for.
    pub namespace: &'a str,
    /// Who could not be reached just now.
    pub tried: &'a [Arc<str>],
    /// A random number: balancing draws from it.
    pub draw: u64,
}

/// Where a connection is led.
#[derive(Debug, Clone)]
pub struct Hop {
    /// The service that was asked for.
    pub service: Arc<Service>,
    /// One of its endpoints, or a pod of its waypoint.
    pub next: Arc<Workload>,
    /// Its tunnel port.
    pub address: SocketAddr,
}

/// Why a connection is led nowhere.
#[derive(Debug, thiserror::Error)]
pub enum NoPassage {
    /// An address means something in its own network only.
    #[error("{0} is an address; an east-west gateway is asked for services, by their names")]
    Address(Authority),
    /// Nobody there is known.
    #[error("{0} is no service that this gateway has been told of")]
    Unknown(Authority),
    /// Its owner did not offer it to other networks.
    #[error(
        "service {namespace}/{name} is LOCAL: label it {}=true to let other networks call it",
        GLOBAL
    )]
    Local {
        /// Of the Service, or ServiceEntry.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
    /// The waypoint is named but not known. Going around it would go around its policies.
    #[error("waypoint {waypoint} of {service} not found")]
    WaypointNotFound {
        /// `namespace/hostname`
        service: String,
        /// As the service names it.
        waypoint: String,
    },
    /// The service, or its waypoint, has nobody to send it to.
    #[error("no healthy upstream: {service}: {why}")]
    NoEndpoint {
        /// `namespace/hostname`
        service: String,
        /// What each endpoint lacked.
        why: NoEndpoint,
    },
    /// Its endpoints are on other networks yet, or do not speak HBONE.
    #[error("no endpoint of {service} in network {network:?} can take a tunnel")]
    NotHere {
        /// `namespace/hostname`
        service: String,
        /// Ours.
        network: Network,
    },
    /// Nobody of those that were chosen answered.
    #[error("{who} at {at}: {why}")]
    Unreachable {
        /// The last one.
        who: Arc<str>,
        /// Its tunnel port.
        at: SocketAddr,
        /// What came of it.
        why: io::Error,
    },
}

impl NoPassage {
    /// The status that says so to the peer.
    fn status(&self) -> Status {
        match self {
            Self::Address(_) => Status::BadRequest,
            _ => Status::Unavailable,
        }
    }

    fn flag(&self) -> Flag {
        match self {
            Self::Address(_) | Self::Unknown(_) | Self::Local { .. } => Flag::NoRoute,
            Self::Unreachable { .. } => Flag::UpstreamConnectFailure,
            _ => Flag::NoHealthyUpstream,
        }
    }
}

/// Where a connection from another network goes.
///
/// # Errors
/// When it must not be carried.
pub fn lead(question: &Question<'_>) -> Result<Hop, NoPassage> {
    let Question {
        snapshot,
        authority,
        ..
    } = *question;
    let Authority::Host(host, port) = authority else {
        return Err(NoPassage::Address(authority.clone()));
    };
    let service = snapshot.service_for_host(host, question.namespace);
    let service = service.ok_or_else(|| NoPassage::Unknown(authority.clone()))?;
    offered(service)?;
    // The high half draws the waypoint, the whole the endpoint, so that the two draws do not follow each other.
    match service.draw_waypoint(question.draw >> 32) {
        Some(waypoint) => to_waypoint(question, service, waypoint),
        None => to_endpoint(question, service, *port),
    }
}

/// Whether other networks may call a service at all.
///
/// # Errors
/// It is LOCAL.
fn offered(service: &Service) -> Result<(), NoPassage> {
    match service.global {
        true => Ok(()),
        false => Err(NoPassage::Local {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
        }),
    }
}

fn to_endpoint(
    question: &Question<'_>,
    service: &Arc<Service>,
    port: u16,
) -> Result<Hop, NoPassage> {
    let fits = |workload: &Workload| {
        workload.network == *question.gateway.network && workload.tunnel == mesh::Tunnel::Hbone
    };
    let picked = mesh::pick_but(
        question.snapshot,
        service,
        port,
        &question.gateway,
        question.draw,
        &|found| !fits(&found.workload) || question.tried.contains(&found.workload.uid),
    );
    let endpoint = picked.map_err(|why| NoPassage::NoEndpoint {
        service: name(service),
        why,
    })?;
    let ours = endpoint.address.filter(|_| fits(&endpoint.workload));
    let ours = ours.map(|ip| (endpoint.workload, ip));
    match ours.or_else(|| searched(question, service, &fits)) {
        Some((next, ip)) => Ok(Hop {
            service: service.clone(),
            next,
            address: SocketAddr::new(ip, HBONE_PORT),
        }),
        // Whom other networks have is theirs to lead to: two gateways that sent each other connections would never end.
        None => Err(NoPassage::NotHere {
            service: name(service),
            network: question.gateway.network.clone(),
        }),
    }
}

/// One of ours, where draws found none: they are few among many of other networks.
fn searched(
    question: &Question<'_>,
    service: &Service,
    fits: &dyn Fn(&Workload) -> bool,
) -> Option<(Arc<Workload>, IpAddr)> {
    if service.load_balancing.mode == Mode::Strict {
        return None;
    }
    let address = |workload: &Workload| {
        let mut all = workload.addresses.iter().copied();
        all.find(|ip| service.ip_families.accept(*ip))
    };
    let usable = |workload: &&Arc<Workload>| {
        fits(workload) && workload.capacity > 0 && !question.tried.contains(&workload.uid)
    };
    let found = question.snapshot.endpoints(service).filter(usable);
    let found: Vec<_> = found.filter_map(|it| Some((it, address(it)?))).collect();
    let count = u64::try_from(found.len()).ok().filter(|count| *count > 0)?;
    let drawn = usize::try_from(question.draw % count).ok()?;
    let (workload, ip) = found.get(drawn)?;
    Some((Arc::clone(workload), *ip))
}

fn to_waypoint(
    question: &Question<'_>,
    service: &Arc<Service>,
    waypoint: &GatewayAddress,
) -> Result<Hop, NoPassage> {
    let not_found = || NoPassage::WaypointNotFound {
        service: name(service),
        waypoint: waypoint.to_string(),
    };
    let (snapshot, gateway) = (question.snapshot, &question.gateway);
    let abroad = |workload: &Workload| workload.network != *gateway.network;
    let hop = |next: &Arc<Workload>, ip: IpAddr| Hop {
        service: service.clone(),
        next: next.clone(),
        address: SocketAddr::new(ip, waypoint.hbone_port),
    };
    let of = match &waypoint.target {
        GatewayTarget::Host(host) => snapshot.service(&host.namespace, &host.host),
        GatewayTarget::Address(network, ip) => {
            match snapshot.service_at(network, *ip, gateway.namespace) {
                Some(of) => Some(of),
                None => {
                    let next = snapshot.workload_at(network, *ip).ok_or_else(not_found)?;
                    // Here its address is somebody else's.
                    return match abroad(next) {
                        true => Err(NoPassage::NotHere {
                            service: name(service),
                            network: gateway.network.clone(),
                        }),
                        false => Ok(hop(next, *ip)),
                    };
                }
            }
        }
    };
    let of = of.ok_or_else(not_found)?;
    let endpoint = mesh::pick_waypoint_but(
        snapshot,
        of,
        waypoint.hbone_port,
        gateway,
        question.draw,
        &|found| abroad(&found.workload) || question.tried.contains(&found.workload.uid),
    );
    let endpoint = endpoint.map_err(|why| NoPassage::NoEndpoint {
        service: name(of),
        why,
    })?;
    match endpoint.address.filter(|_| !abroad(&endpoint.workload)) {
        Some(ip) => Ok(hop(&endpoint.workload, ip)),
        None => Err(NoPassage::NotHere {
            service: name(of),
            network: gateway.network.clone(),
        }),
    }
}

fn name(service: &Service) -> String {
    format!("{}/{}", service.namespace, service.hostname)
}

/// What `/explain` says of a connection that somebody of `namespace` might ask for.
pub(crate) fn explain(proxy: &Proxy, host: &str, port: u16, namespace: &str) -> Value {
    let authority = match host.parse::<IpAddr>() {
        Ok(ip) => Authority::Ip((ip, port).into()),
        Err(_) => Authority::Host(host.to_owned(), port),
    };
    explained(&choose(proxy, &authority, namespace, &[]))
}

/// The same in JSON, of what [`lead`] has found.
pub fn explained(found: &Result<Hop, NoPassage>) -> Value {
    match found {
        Ok(hop) => json!({
            "answer": "led on",
            "because": "the service is GLOBAL, and this is one whom it may be led to",
            "service": name(&hop.service),
            "workload": &*hop.next.uid,
            "address": hop.address.to_string(),
        }),
        Err(why) => json!({ "answer": "none", "because": why.to_string() }),
    }
}

/// One CONNECT, to its end.
pub async fn carry(proxy: &Proxy, mut request: Request, client: Arc<Client>) {
    let caller = proxy.reports.caller(client.clone());
    let mut report = proxy.reports.connection(&caller, Instant::now());
    let authority = request.authority.clone();
    let reached = tokio::select! {
        reached = reach(proxy, &authority, &client, &mut report) => reached,
        () = request.abandoned() => return report.flag(Flag::DownstreamClosed),
    };
    let tcp = match reached {
        Ok(tcp) => tcp,
        Err(why) => {
            report.flag(why.flag());
            report.detail(why.to_string());
            return request.refuse(why.status());
        }
    };
    let Ok(tunnel) = request.accept(ResponseHeaders::default()) else {
        return report.flag(Flag::DownstreamClosed);
    };
    report.opened();
    let counters = Arc::new(Counters::default());
    let mut counting = Counting {
        counters: counters.clone(),
        report,
    };
    let ended = hbone::both_ways(tcp, tunnel, counters).await;
    if let Some(end) = ended.error() {
        counting
            .report
            .detail(format!("the connection broke: {end}"));
    }
}

/// What was moved is told also where the process is asked to stop in the middle.
struct Counting {
    counters: Arc<Counters>,
    report: TcpReport,
}

impl Drop for Counting {
    fn drop(&mut self) {
        let (sent, received) = self.counters.moved();
        self.report.moved(sent, received);
    }
}

/// Connects to one that it may lead to, or to another one: nothing has been said yet that anybody could miss.
async fn reach(
    proxy: &Proxy,
    authority: &Authority,
    client: &Client,
    report: &mut TcpReport,
) -> Result<TcpStream, NoPassage> {
    let namespace = client.namespace().unwrap_or_default();
    let mut tried: Vec<Arc<str>> = Vec::new();
    let mut failed = None;
    loop {
        let hop = match (choose(proxy, authority, namespace, &tried), failed.take()) {
            (Ok(hop), Some(before)) if tried.contains(&hop.next.uid) => return Err(before),
            (Ok(hop), _) => hop,
            (Err(_), Some(before)) => return Err(before),
            (Err(why), None) => return Err(why),
        };
        report.service(&hop.service, authority.port());
        // Who it proves to be is between it and the client.
        report.tried(&hop.next, hop.address, None);
        let connected = tokio::time::timeout(CONNECT, proxy.upstreams.dial(hop.address)).await;
        let why = match connected {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(why)) => why,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "no answer to a connection"),
        };
        let why = NoPassage::Unreachable {
            who: hop.next.uid.clone(),
            at: hop.address,
            why,
        };
        tried.push(hop.next.uid.clone());
        if tried.len() == TRIES {
            return Err(why);
        }
        failed = Some(why);
    }
}

fn choose(
    proxy: &Proxy,
    authority: &Authority,
    namespace: &str,
    tried: &[Arc<str>],
) -> Result<Hop, NoPassage> {
    let snapshot = proxy.mesh.load();
    let (network, own) = (&proxy.network, proxy.config.own_ip());
    let nowhere = mesh::Locality::default();
    let gateway = match snapshot.workload_at(network, own) {
        Some(own_workload) => mesh::Client::of(own_workload, own.is_ipv6()),
        None => mesh::Client {
            network,
            locality: &nowhere,
            node: &proxy.config.node_name,
            cluster: &proxy.config.cluster_id,
            namespace: &proxy.config.pod_namespace,
            ipv6: own.is_ipv6(),
        },
    };
    lead(&Question {
        snapshot: &snapshot,
        gateway,
        authority,
        namespace,
        tried,
        draw: random(),
    })
}

/// The label that offers a service to other networks, unless the mesh's settings say otherwise.
const GLOBAL: &str = "istio.io/global";
/// Port of the tunnel listener in every pod of the mesh.
const HBONE_PORT: u16 = 15008;
/// Endpoints that are asked for one connection.
const TRIES: usize = 3;
/// For each. All together they take less than the client's proxy waits for us.
const CONNECT: Duration = Duration::from_secs(2);
