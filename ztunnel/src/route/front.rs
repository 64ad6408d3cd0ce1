//! Who stands before the destination: its waypoint, or the gateway of its network.
//!
//! A waypoint is asked for what the app asked for. A gateway is asked for the service by its name, and leads to some
//! workload of it; inside that tunnel stands a second one, to that workload's own proxy, so that the gateway sees nothing
//! but who calls and which service (docs/wire.md "Data-path rules").

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{Authority, Identity};
use mesh::{GatewayAddress, GatewayTarget, NoEndpoint, Service, Workload};

use super::{
    Beyond, Decision, NOT_YET, Question, Refused, Tunnel, client, expected, name, sorted,
    vouched_for,
};

/// Through a waypoint, which is asked for what the app asked for.
pub(super) fn through_waypoint(
    question: &Question<'_>,
    waypoint: &GatewayAddress,
    called: Option<&Arc<Service>>,
) -> Result<Decision, Refused> {
    let not_found = || Refused::WaypointNotFound(waypoint.to_string());
    let not_ready = |waypoint, why| Refused::WaypointNotReady { waypoint, why };
    let Front { next, ip, of } = front(question, waypoint, &not_found, &not_ready)?;
    let elsewhere = next.network != question.source.network;
    if let Some(gateway) = next
        .network_gateway
        .as_ref()
        .filter(|_| elsewhere || ip.is_none() && next.hostname().is_none())
    {
        let Some(called) = called else {
            return Err(Refused::OtherNetwork(
                next.uid.clone(),
                next.network.clone(),
            ));
        };
        // The waypoint may be the one to answer there, and its own service is who vouches for it.
        let vouched: Vec<_> = of.as_deref().into_iter().flat_map(vouched_for).collect();
        return through_gateway(question, gateway, &next, called, &vouched);
    }
    let ip = whereabouts(ip, &next)?;
    Ok(Decision::Tunnel(Tunnel {
        address: SocketAddr::new(ip, waypoint.hbone_port),
        authority: Authority::Ip(question.destination),
        expected: expected(&next, of.as_deref())?,
        next,
        beyond: None,
        asked: waypoint.hbone_port,
        service: called.cloned(),
    }))
}

/// Through the gateway of another network to `workload`, or whoever answers there for the service.
pub(super) fn through_gateway(
    question: &Question<'_>,
    gateway: &GatewayAddress,
    workload: &Arc<Workload>,
    service: &Arc<Service>,
    vouched: &[Identity],
) -> Result<Decision, Refused> {
    let not_found = || Refused::GatewayNotFound {
        gateway: Box::new(gateway.clone()),
        network: workload.network.clone(),
        workload: workload.uid.clone(),
    };
    let not_ready = |gateway, why| Refused::GatewayNotReady { gateway, why };
    let Front { next, ip, of } = front(question, gateway, &not_found, &not_ready)?;
    let ip = whereabouts(ip, &next)?;
    let beyond = Beyond {
        expected: sorted(
            vouched_for(service)
                .chain(vouched.iter().cloned())
                .collect(),
        ),
        workload: workload.clone(),
    };
    if beyond.expected.is_empty() {
        return Err(Refused::NobodyVouched(
            name(service),
            workload.network.clone(),
        ));
    }
    let port = question.destination.port();
    Ok(Decision::Tunnel(Tunnel {
        address: SocketAddr::new(ip, gateway.hbone_port),
        authority: Authority::Host(service.hostname.to_string(), port),
        expected: expected(&next, of.as_deref())?,
        next,
        beyond: Some(beyond),
        asked: gateway.hbone_port,
        service: Some(service.clone()),
    }))
}

/// Its address; one that is to be looked up has none yet.
fn whereabouts(ip: Option<IpAddr>, next: &Workload) -> Result<IpAddr, Refused> {
    let looked_up = || next.hostname().map(|_| NOT_YET);
    ip.or_else(looked_up)
        .ok_or_else(|| Refused::NoAddress(next.uid.clone()))
}

/// One pod of a waypoint or gateway.
struct Front {
    next: Arc<Workload>,
    ip: Option<IpAddr>,
    /// The service through which it was found.
    of: Option<Arc<Service>>,
}

fn front(
    question: &Question<'_>,
    named: &GatewayAddress,
    not_found: &dyn Fn() -> Refused,
    not_ready: &dyn Fn(String, NoEndpoint) -> Refused,
) -> Result<Front, Refused> {
    let snapshot = question.snapshot;
    let service = match &named.target {
        GatewayTarget::Host(host) => match snapshot.service(&host.namespace, &host.host) {
            Some(service) => Some(service),
            // Its load balancer has a name of its own.
            None => {
                let named = snapshot.workload_named(&host.namespace, &host.host);
                return Ok(Front {
                    next: named.ok_or_else(not_found)?.clone(),
                    ip: None,
                    of: None,
                });
            }
        },
        GatewayTarget::Address(network, ip) => {
            match snapshot.service_at(network, *ip, &question.source.namespace) {
                Some(service) => Some(service),
                None => {
                    let workload = snapshot.workload_at(network, *ip);
                    let next = workload.ok_or_else(not_found)?.clone();
                    return Ok(Front {
                        next,
                        ip: Some(*ip),
                        of: None,
                    });
                }
            }
        }
    };
    let service = service.ok_or_else(not_found)?;
    let endpoint = mesh::pick_waypoint_but(
        snapshot,
        service,
        named.hbone_port,
        &client(question),
        question.draw,
        &|endpoint| (question.avoid)(&endpoint.workload, named.hbone_port),
    )
    .map_err(|why| not_ready(name(service), why))?;
    Ok(Front {
        next: endpoint.workload,
        ip: endpoint.address,
        of: Some(service.clone()),
    })
}
