//! What the source's end would do: where the connection goes, whom it could go to, and why not to the others.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{Authority, Identity};
use mesh::{
    Candidate, Client, EgressMode, GatewayAddress, GatewayTarget, Service, Standing, Tunnel,
    Workload,
};
use serde::Serialize;

use super::arriving::Arriving;
use super::meant::{Caller, Meant};
use super::{Person, Spoken, View};
use crate::arrival::leads_to;
use crate::hint::Hint;
use crate::report::{Failure, Name};
use crate::route::{self, Decision, Place, Question};
use crate::udp::{self, Passage};

/// What becomes of a connection where it begins.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Source {
    /// The caller is one of this ztunnel's pods: what is said is what it does.
    here: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<Person>,
    /// Whether what it sends passes a ztunnel.
    captured: bool,
    /// Where it calls.
    destination: SocketAddr,
    /// What that is taken for, in words.
    meaning: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    /// Endpoints of the service, those first that connections go to.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<Endpoints>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Waypoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Egress>,
    decision: Decided,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoints {
    shown: Vec<Choice>,
    /// How many there are, shown or not.
    all: usize,
    eligible: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Choice {
    uid: Arc<str>,
    node: Arc<str>,
    zone: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    eligible: bool,
    why: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Waypoint {
    name: String,
    endpoints: Endpoints,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Egress {
    mode: &'static str,
    set_by: Arc<str>,
}

/// Where it goes.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Decided {
    /// `tunnel`, `local`, `plain`, `refused`, or `untouched`: no ztunnel sees it leave.
    goes: &'static str,
    /// The next hop, if it has an address or a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    /// What the CONNECT asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    asks_for: Option<String>,
    /// Who answers there.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<Person>,
    /// Who may answer there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    expected: Vec<String>,
    /// The waypoint that it goes through.
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<String>,
    /// Whom the gateway of another network leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    beyond: Option<Arc<str>>,
    because: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    flag: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
    /// What would have to change for it to pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to_change: Vec<String>,
}

/// What the source's end does, and what then arrives, where that is known from here.
pub(super) fn leaving(
    view: &View<'_>,
    caller: &Caller,
    meant: &Meant,
    spoken: Spoken,
) -> (Source, Option<Arriving>) {
    let workload = caller.workload.as_ref();
    let passed_by = passed_by(workload, meant, spoken);
    let captured = passed_by.is_none();
    let (decision, arriving) = match (workload, passed_by) {
        (Some(source), None) => decided(view, source, meant, spoken),
        (_, because) => untouched(view, caller, meant, spoken, because.unwrap_or_default()),
    };
    let called = called(view, caller, meant.destination);
    let whole = |service: &Arc<Service>| endpoints(view, caller, service, meant.destination);
    let source = Source {
        here: workload.is_some_and(|it| (view.is_here)(it)),
        workload: workload.map(Person::of),
        captured,
        destination: meant.destination,
        meaning: meant.meaning.clone(),
        endpoints: called.map(whole),
        waypoint: called
            .and_then(|service| service.draw_waypoint(0))
            .and_then(|named| waypoint(view, caller, named)),
        service: called.map(|service| service.key().to_string()),
        egress: workload.and_then(egress),
        decision,
    };
    (source, arriving)
}

/// Why no ztunnel sees it leave, if none does.
fn passed_by(
    workload: Option<&Arc<Workload>>,
    meant: &Meant,
    spoken: Spoken,
) -> Option<&'static str> {
    let Some(workload) = workload else {
        return Some("nobody is known as the caller: no ztunnel sees it leave");
    };
    if workload.tunnel != Tunnel::Hbone || workload.native_tunnel {
        return Some("the caller is not in the mesh: no ztunnel sees it leave");
    }
    if !spoken.is_carried(workload) {
        return Some(
            "the caller has not opted in (label ambit.io/udp): no ztunnel sees its datagrams leave",
        );
    }
    let asks_names = spoken == Spoken::Udp && meant.destination.port() == DNS;
    asks_names.then_some("what is sent to port 53 is for resolvers, which have rules of their own")
}

/// It is never carried as datagrams are.
const DNS: u16 = 53;

fn called<'a>(view: &View<'a>, caller: &Caller, to: SocketAddr) -> Option<&'a Arc<Service>> {
    let network = caller.network(view);
    view.snapshot
        .service_at(network, to.ip(), caller.namespace())
}

/// As `outbound` decides it.
fn decided(
    view: &View<'_>,
    source: &Arc<Workload>,
    meant: &Meant,
    spoken: Spoken,
) -> (Decided, Option<Arriving>) {
    let destination = meant.destination;
    let joins = spoken == Spoken::Tcp && !view.force_tunnel;
    let joinable = |it: &Workload| joins && (view.is_here)(it) && (view.is_here)(source);
    let avoid = |it: &Workload, port| (view.is_avoided)(it, port, destination);
    let decision = route::decide(&Question {
        snapshot: view.snapshot,
        source,
        destination,
        joinable: &joinable,
        avoid: &avoid,
        resolvers: view.resolvers,
        // Of equal ones the first: the same answer to the same question.
        draw: 0,
    });
    let decision = match decision {
        Ok(Decision::Tunnel(found)) if spoken == Spoken::Udp => match Passage::of(&found) {
            Passage::Tunnel(_) => Ok(Decision::Tunnel(found)),
            Passage::Plain(found) => Ok(Decision::Plain(found)),
            Passage::Front => return (refused(&udp::Failed::Front(destination)), None),
        },
        decision => decision,
    };
    let arrives = |workload: &Arc<Workload>, at: SocketAddr, identity: Option<Identity>| {
        let family = |ip: &&IpAddr| ip.is_ipv4() == at.is_ipv4();
        let from = source
            .addresses
            .iter()
            .find(family)
            .or(source.addresses.first());
        Some(Arriving {
            workload: workload.clone(),
            at,
            identity,
            from: from.copied().unwrap_or(at.ip()),
            spoken,
        })
    };
    let proven = || route::identity(source).ok();
    match decision {
        Ok(Decision::Tunnel(found)) => {
            let waypoint = through(view, source, &found, destination);
            let arriving = match (&found.authority, &waypoint, &found.beyond) {
                // One whose address is still to be looked up is not asked from here.
                (Authority::Ip(at), None, None) if found.name().is_none() => {
                    arrives(&found.next, *at, proven())
                }
                _ => None,
            };
            let because = match (&waypoint, &found.beyond) {
                (Some(name), _) => format!("its traffic passes waypoint {name}"),
                (None, Some(_)) => {
                    "it is on another network, reached through its gateway".to_owned()
                }
                (None, None) => "the destination is in the mesh".to_owned(),
            };
            let decided = Decided {
                goes: "tunnel",
                to: Some(found.hop()),
                asks_for: Some(found.authority.to_string()),
                workload: Some(Person::of(&found.next)),
                expected: found.expected.iter().map(ToString::to_string).collect(),
                waypoint,
                beyond: found.beyond.map(|beyond| beyond.workload.uid.clone()),
                because,
                ..Decided::default()
            };
            (decided, arriving)
        }
        Ok(Decision::Local(found)) => {
            let decided = Decided {
                goes: "local",
                to: Some(found.address.to_string()),
                workload: Some(Person::of(&found.workload)),
                because: "both are pods of this node".to_owned(),
                ..Decided::default()
            };
            let arriving = arrives(&found.workload, found.address, proven());
            (decided, arriving)
        }
        Ok(Decision::Plain(found)) => {
            let because = match (&found.logged_by, &found.workload) {
                (Some(by), _) => format!("the mesh knows nobody there; told of, as {by} wants"),
                (None, Some(it)) if it.tunnel == Tunnel::Hbone && !spoken.is_carried(it) => {
                    "the destination has not opted in (label ambit.io/udp)".to_owned()
                }
                (None, Some(_)) => "the destination is not in the mesh".to_owned(),
                (None, None) => "the mesh knows nobody there, and lets it pass".to_owned(),
            };
            let (to, at) = match found.to {
                Place::Address(at) => (at.to_string(), Some(at)),
                Place::Name(name, port) => (format!("{name}:{port}"), None),
            };
            let arriving = found.workload.as_ref().zip(at);
            let arriving = arriving.and_then(|(workload, at)| arrives(workload, at, None));
            let decided = Decided {
                goes: "plain",
                to: Some(to),
                workload: found.workload.as_ref().map(Person::of),
                because,
                ..Decided::default()
            };
            (decided, arriving)
        }
        Err(why) => (refused(&why), None),
    }
}

fn refused(why: &impl Failure) -> Decided {
    let hint = why.hint().map(Hint::text);
    Decided {
        goes: "refused",
        because: why.to_string(),
        flag: Some(why.flag().label()),
        hint,
        to_change: hint.map(str::to_owned).into_iter().collect(),
        ..Decided::default()
    }
}

/// Nothing of the mesh sees it leave: it arrives as it is, at the address itself or at an endpoint that the node's own
/// balancing chooses.
fn untouched(
    view: &View<'_>,
    caller: &Caller,
    meant: &Meant,
    spoken: Spoken,
    because: &str,
) -> (Decided, Option<Arriving>) {
    let to = meant.destination;
    let network = caller.network(view);
    let found = match called(view, caller, to) {
        Some(service) => {
            let client = client(view, caller, to);
            let all = mesh::candidates(view.snapshot, service, to.port(), &client);
            let of_use = |it: &Candidate| it.standing <= Standing::TooFar;
            let first = all.unwrap_or_default().into_iter().find(of_use);
            first.and_then(|it| Some((SocketAddr::new(it.address?, it.target_port?), it.workload)))
        }
        None => {
            let workload = view.snapshot.workload_at(network, to.ip());
            workload.map(|workload| (to, workload.clone()))
        }
    };
    let decided = Decided {
        goes: "untouched",
        to: found.as_ref().map(|(at, _)| at.to_string()),
        workload: found.as_ref().map(|(_, workload)| Person::of(workload)),
        because: because.to_owned(),
        ..Decided::default()
    };
    let arriving = found.map(|(at, workload)| Arriving {
        workload,
        at,
        identity: None,
        from: caller.address(at),
        spoken,
    });
    (decided, arriving)
}

/// The waypoint that answers, if it is one.
fn through(
    view: &View<'_>,
    source: &Workload,
    found: &route::Tunnel,
    destination: SocketAddr,
) -> Option<String> {
    let stands = |named: &&Arc<GatewayAddress>| leads_to(view.snapshot, &found.next, named);
    let of_service = found.service.as_ref().and_then(|service| {
        let weighted = service.weighted_waypoints.iter().map(|(named, _)| named);
        service.waypoint.iter().chain(weighted).find(stands)
    });
    let called = view.snapshot.workload_at(&source.network, destination.ip());
    let of_workload = called
        .and_then(|called| called.waypoint.as_ref())
        .filter(stands);
    let named = of_service.or(of_workload.filter(|_| found.service.is_none()))?;
    Some(Name(named).to_string())
}

fn client<'a>(view: &View<'a>, caller: &'a Caller, to: SocketAddr) -> Client<'a> {
    match &caller.workload {
        Some(workload) => Client::of(workload, to.is_ipv6()),
        None => Client {
            network: view.network,
            locality: view.nowhere,
            node: "",
            cluster: "",
            namespace: "",
            ipv6: to.is_ipv6(),
        },
    }
}

fn endpoints(view: &View<'_>, caller: &Caller, service: &Service, to: SocketAddr) -> Endpoints {
    let client = client(view, caller, to);
    let found = mesh::candidates(view.snapshot, service, to.port(), &client);
    shown(view, found.unwrap_or_default(), to, |it| {
        it.target_port.unwrap_or_default()
    })
}

fn waypoint(view: &View<'_>, caller: &Caller, named: &GatewayAddress) -> Option<Waypoint> {
    let service = match &named.target {
        GatewayTarget::Host(host) => view.snapshot.service(&host.namespace, &host.host),
        GatewayTarget::Address(network, ip) => {
            view.snapshot.service_at(network, *ip, caller.namespace())
        }
    };
    let to = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), named.hbone_port);
    let found = service.map(|service| {
        let client = client(view, caller, to);
        mesh::waypoint_candidates(view.snapshot, service, named.hbone_port, &client)
    });
    Some(Waypoint {
        name: Name(named).to_string(),
        endpoints: shown(view, found.unwrap_or_default(), to, |_| named.hbone_port),
    })
}

fn shown(
    view: &View<'_>,
    found: Vec<Candidate>,
    to: SocketAddr,
    asked: impl Fn(&Candidate) -> u16,
) -> Endpoints {
    let is_eligible = |it: &&Candidate| it.standing == Standing::Eligible;
    let (all, eligible) = (found.len(), found.iter().filter(is_eligible).count());
    let choice = |it: Candidate| {
        let avoided = (view.is_avoided)(&it.workload, asked(&it), to);
        Choice {
            why: match it.standing {
                Standing::Eligible if avoided => {
                    "failed just now: avoided for some seconds where there is another"
                }
                Standing::Eligible => "can be chosen",
                Standing::TooFar => "others are nearer, or the service wants nearer ones only",
                Standing::Unhealthy => "is not ready",
                Standing::NoTargetPort => "has no port for this one of the service",
                Standing::Unreachable => "has no address of a family that the service speaks",
                Standing::NoCapacity => "has no share (weight 0)",
            },
            eligible: it.standing == Standing::Eligible,
            uid: it.workload.uid.clone(),
            node: it.workload.node.clone(),
            zone: it.workload.locality.zone.clone(),
            address: it.address,
            port: it.target_port,
        }
    };
    Endpoints {
        shown: found.into_iter().take(MOST_SHOWN).map(choice).collect(),
        all,
        eligible,
    }
}

/// A service may have ten thousand.
const MOST_SHOWN: usize = 32;

fn egress(workload: &Arc<Workload>) -> Option<Egress> {
    let mode = match workload.egress.mode {
        EgressMode::Allow => return None,
        EgressMode::Log => "log",
        EgressMode::Refuse => "refuse",
    };
    let set_by = workload.egress.set_by.clone();
    Some(Egress { mode, set_by })
}
