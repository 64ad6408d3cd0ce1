//! Pure: (snapshot, this pod's workload, local address, authority) → the app's port, or why the request is misdirected.
//!
//! A tunnel may only lead into the pod that it reached: the connection always goes to the local address, only the
//! port comes from the authority. Accepted authorities (docs/wire.md "Inbound decision"):
//!
//! * the local address itself;
//! * anything, when the app behind takes tunnelled bytes and decides for itself (`application_tunnel`);
//! * a host name of a service that this workload is an endpoint of;
//! * a service or workload whose waypoint is this very pod.

use std::net::SocketAddr;
use std::sync::Arc;

use hbone::{Authority, Status};
use mesh::workload::ApplicationProtocol;
use mesh::{GatewayAddress, GatewayTarget, Service, Snapshot, Workload};

use crate::hint::Hint;
use crate::report::Failure;
use crate::route::OWN_PORTS;
use crate::traffic::Flag;

/// Where a request goes inside the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) port: u16,
    /// The service that was called, as far as the request tells.
    pub(crate) service: Option<Arc<Service>>,
}

/// Why a request cannot be for this pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misdirected {
    #[error("ip mismatch: {local} != {asked}")]
    IpMismatch {
        local: std::net::IpAddr,
        asked: std::net::IpAddr,
    },
    /// Both ends are on this node, and the control plane's address is none of the pod that is here now: the pod
    /// was made anew under its name, and news of its address is still on the way.
    #[error("ip mismatch: {asked} is no address of pod {pod}")]
    Moved {
        asked: std::net::IpAddr,
        pod: Arc<str>,
    },
    #[error("no service or workload for hostname: {0}")]
    UnknownHost(String),
    #[error("service {0} has no port {1} on this workload")]
    UnknownPort(String, u16),
    #[error("attempted recursive call to ourselves")]
    SelfCall,
    /// Plain text to an app that believes what stands before the bytes.
    #[error(
        "port {0} takes connections of the mesh only: its app believes what we write before their bytes, of who the client is"
    )]
    Framed(u16),
}

impl Misdirected {
    /// The status that says so to the peer.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::IpMismatch { .. } | Self::Moved { .. } => Status::BadRequest,
            Self::UnknownHost(_) | Self::UnknownPort(..) => Status::Unavailable,
            Self::SelfCall | Self::Framed(_) => Status::Unavailable,
        }
    }
}

impl Failure for Misdirected {
    fn flag(&self) -> Flag {
        Flag::Connect
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::of_misdirection(self))
    }
}

/// Where the request for `authority`, arrived at `local`, goes.
pub(crate) fn arrival(
    snapshot: &Snapshot,
    workload: &Workload,
    local: SocketAddr,
    authority: &Authority,
) -> Result<Arrival, Misdirected> {
    let arrival = match authority {
        Authority::Ip(asked) => to_address(snapshot, workload, local, *asked)?,
        Authority::Host(host, port) => to_host(snapshot, workload, host, *port)?,
    };
    let tunnelled = workload.application_tunnel.and_then(|tunnel| tunnel.port);
    let port = tunnelled.unwrap_or(arrival.port);
    if OWN_PORTS.contains(&port) {
        return Err(Misdirected::SelfCall);
    }
    Ok(Arrival { port, ..arrival })
}

/// Whether plain text to `port` must not get to the app: it believes who its client is by a header before the bytes
/// ([`crate::preamble`]), so nobody else may write what it reads first.
pub(crate) fn takes_tunnels_only(workload: &Workload, port: u16) -> bool {
    let tunnel = workload.application_tunnel;
    let framed = tunnel.filter(|tunnel| tunnel.protocol == ApplicationProtocol::Proxy);
    framed.is_some_and(|tunnel| tunnel.port.is_none_or(|its| its == port))
}

/// The service that `port` of this workload belongs to: the one the peer meant if it said so, else the first that has
/// that target port. For reports only.
pub(crate) fn service_of(
    snapshot: &Snapshot,
    workload: &Workload,
    port: u16,
    meant: Option<&str>,
) -> Option<Arc<Service>> {
    let mut found = None;
    for member in &workload.services {
        let Some(service) = snapshot.service(&member.service.namespace, &member.service.host)
        else {
            continue;
        };
        if meant == Some(&*member.service.host) {
            return Some(service.clone());
        }
        let leads_here = member.ports.iter().any(|mapped| mapped.target_port == port)
            || service.ports.iter().any(|offered| {
                let own = member
                    .ports
                    .iter()
                    .any(|mapped| mapped.service_port == offered.service_port);
                !own && offered.target_port == port
            });
        if found.is_none() && leads_here {
            found = Some(service.clone());
        }
    }
    found
}

fn to_address(
    snapshot: &Snapshot,
    workload: &Workload,
    local: SocketAddr,
    asked: SocketAddr,
) -> Result<Arrival, Misdirected> {
    let called = snapshot.service_at(&workload.network, asked.ip(), &workload.namespace);
    let here = asked.ip() == local.ip()
        || workload.application_tunnel.is_some()
        || called.is_some_and(|service| {
            let weighted = service
                .weighted_waypoints
                .iter()
                .map(|(waypoint, _)| waypoint);
            service
                .waypoint
                .iter()
                .chain(weighted)
                .any(|waypoint| leads_to(snapshot, workload, waypoint))
        })
        || snapshot
            .workload_at(&workload.network, asked.ip())
            .and_then(|asked| asked.waypoint.as_ref())
            .is_some_and(|waypoint| leads_to(snapshot, workload, waypoint));
    if !here {
        return Err(Misdirected::IpMismatch {
            local: local.ip(),
            asked: asked.ip(),
        });
    }
    Ok(Arrival {
        port: asked.port(),
        service: called.cloned(),
    })
}

fn to_host(
    snapshot: &Snapshot,
    workload: &Workload,
    host: &str,
    port: u16,
) -> Result<Arrival, Misdirected> {
    let Some(service) = snapshot.service_for_host(host, &workload.namespace) else {
        return Err(Misdirected::UnknownHost(host.to_owned()));
    };
    if workload.application_tunnel.is_some() {
        return Ok(Arrival {
            port,
            service: Some(service.clone()),
        });
    }
    let unknown_port = || Misdirected::UnknownPort(host.to_owned(), port);
    let own = workload
        .ports_in(&service.key())
        .ok_or_else(|| Misdirected::UnknownHost(host.to_owned()))?;
    let own = own
        .iter()
        .find(|mapped| mapped.service_port == port)
        .map(|mapped| mapped.target_port);
    let target = own
        .or_else(|| service.port(port).map(|offered| offered.target_port))
        .ok_or_else(unknown_port)?;
    // 0 means that each endpoint says for itself, and this one did not.
    if target == 0 {
        return Err(unknown_port());
    }
    Ok(Arrival {
        port: target,
        service: Some(service.clone()),
    })
}

/// Whether this waypoint address stands for this workload.
pub(crate) fn leads_to(
    snapshot: &Snapshot,
    workload: &Workload,
    waypoint: &GatewayAddress,
) -> bool {
    match &waypoint.target {
        GatewayTarget::Host(host) => workload.ports_in(host).is_some(),
        GatewayTarget::Address(network, ip) => {
            *network == workload.network && workload.addresses.contains(ip)
                || snapshot
                    .service_at(network, *ip, &workload.namespace)
                    .is_some_and(|service| workload.ports_in(&service.key()).is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use api::workload as wire;

    use super::*;
    use crate::testing::{endpoint, pod, service, snapshot, waypoint_host, waypoint_ip};

    fn mesh() -> Arc<Snapshot> {
        snapshot(|mesh| {
            mesh.set_workload(endpoint(
                "web",
                &["10.0.0.2", "fd00::2"],
                "web.svc",
                &[(80, 8080)],
            ));
            mesh.set_workload(pod("bare", &["10.0.0.3"]));
            let mut web = service("web.svc", &["10.1.0.1"], &[(80, 0), (81, 8081), (82, 0)]);
            web.waypoint = waypoint_host("way.svc");
            mesh.set_service(web);
            mesh.set_service(service("other.svc", &["10.1.0.2"], &[(80, 80)]));
            mesh.set_workload(endpoint("way", &["10.0.0.9"], "way.svc", &[(15008, 15008)]));
            mesh.set_service(service("way.svc", &["10.1.0.9"], &[(15008, 15008)]));
            let mut behind = pod("behind", &["10.0.0.4"]);
            behind.waypoint = waypoint_ip("10.0.0.9");
            mesh.set_workload(behind);
            let mut sandwich = pod("sandwich", &["10.0.0.8"]);
            sandwich.application_tunnel = Some(wire::ApplicationTunnel {
                protocol: 1,
                port: 15088,
            });
            mesh.set_workload(sandwich);
            let mut looped = pod("looped", &["10.0.0.7"]);
            looped.application_tunnel = Some(wire::ApplicationTunnel {
                protocol: 1,
                port: 15008,
            });
            mesh.set_workload(looped);
            let mut kept = pod("kept", &["10.0.0.6"]);
            kept.application_tunnel = Some(wire::ApplicationTunnel::default());
            mesh.set_workload(kept);
            // The waypoint by the address of its service, by weight, for a range; and one of that address elsewhere.
            let mut behind = pod("behind-vip", &["10.0.0.5"]);
            behind.waypoint = waypoint_ip("10.1.0.9");
            mesh.set_workload(behind);
            let mut canary = service("canary.svc", &["10.1.0.3"], &[(80, 80)]);
            canary.waypoint = waypoint_host("nowhere.svc");
            canary.weighted_waypoints = vec![wire::WeightedWaypoint {
                destination: waypoint_host("way.svc"),
                weight: 1,
            }];
            mesh.set_service(canary);
            let mut range = service("range.svc", &["10.9.0.0/16"], &[(80, 80)]);
            range.waypoint = waypoint_host("way.svc");
            mesh.set_service(range);
            let mut theirs = service("theirs.svc", &["10.1.0.4"], &[(80, 80)]);
            let elsewhere = crate::testing::address("elsewhere", "10.0.0.9");
            theirs.waypoint = Some(wire::GatewayAddress {
                destination: Some(wire::gateway_address::Destination::Address(elsewhere)),
                hbone_mtls_port: 15008,
            });
            mesh.set_service(theirs);
            // A service of another namespace with a name that is ours as well, and which would be found first.
            let mut namesake = service("web.svc", &[], &[(80, 9999)]);
            namesake.namespace = "another".into();
            mesh.set_service(namesake);
        })
    }

    #[test]
    fn plain_text_does_not_lead_to_where_an_app_is_told_who_calls() {
        for (protocol, its, asked, only) in [
            (1, 15088, 15088, true),
            (1, 15088, 8080, false),
            (1, 0, 8080, true),
            (0, 15088, 15088, false),
        ] {
            let mesh = snapshot(|mesh| {
                let mut framed = pod("framed", &["10.0.0.8"]);
                let port = its;
                framed.application_tunnel = Some(wire::ApplicationTunnel { protocol, port });
                mesh.set_workload(framed);
            });
            let framed = mesh.workload("framed").unwrap();
            assert_eq!(
                takes_tunnels_only(framed, asked),
                only,
                "{protocol} {its} {asked}"
            );
        }
        let mesh = mesh();
        assert!(!takes_tunnels_only(mesh.workload("web").unwrap(), 8080));
    }

    #[test]
    fn requests_lead_into_the_pod_they_reached_or_nowhere() {
        let mesh = mesh();
        for (uid, authority, expected) in [
            ("web", "10.0.0.2:9000", "9000"),
            ("web", "10.0.0.2:15009", "15009"),
            (
                "web",
                "10.0.0.99:9000",
                "400 ip mismatch: 10.0.0.2 != 10.0.0.99",
            ),
            (
                "web",
                "10.0.0.3:9000",
                "400 ip mismatch: 10.0.0.2 != 10.0.0.3",
            ),
            (
                "web",
                "10.1.0.1:80",
                "400 ip mismatch: 10.0.0.2 != 10.1.0.1",
            ),
            (
                "web",
                "10.0.0.2:15008",
                "503 attempted recursive call to ourselves",
            ),
            (
                "web",
                "10.0.0.2:15006",
                "503 attempted recursive call to ourselves",
            ),
            (
                "web",
                "10.0.0.2:15001",
                "503 attempted recursive call to ourselves",
            ),
            ("web", "web.svc:80", "8080 web.svc"),
            ("web", "web.svc:81", "8081 web.svc"),
            (
                "web",
                "web.svc:82",
                "503 service web.svc has no port 82 on this workload",
            ),
            (
                "web",
                "web.svc:83",
                "503 service web.svc has no port 83 on this workload",
            ),
            (
                "web",
                "other.svc:80",
                "503 no service or workload for hostname: other.svc",
            ),
            (
                "web",
                "nowhere.svc:80",
                "503 no service or workload for hostname: nowhere.svc",
            ),
            ("way", "10.1.0.1:80", "80 web.svc"),
            ("way", "10.0.0.4:80", "80"),
            (
                "way",
                "10.1.0.2:80",
                "400 ip mismatch: 10.0.0.9 != 10.1.0.2",
            ),
            ("way", "10.0.0.5:80", "80"),
            ("way", "10.1.0.3:80", "80 canary.svc"),
            ("way", "10.9.200.1:80", "80 range.svc"),
            (
                "way",
                "10.1.0.4:80",
                "400 ip mismatch: 10.0.0.9 != 10.1.0.4",
            ),
            (
                "web",
                "[fd00::2]:9000",
                "400 ip mismatch: 10.0.0.2 != fd00::2",
            ),
            ("kept", "192.0.2.1:443", "443"),
            (
                "kept",
                "nowhere.svc:80",
                "503 no service or workload for hostname: nowhere.svc",
            ),
            ("sandwich", "192.0.2.1:443", "15088"),
            ("sandwich", "web.svc:80", "15088 web.svc"),
            (
                "looped",
                "10.0.0.7:80",
                "503 attempted recursive call to ourselves",
            ),
        ] {
            let workload = mesh.workload(uid).unwrap();
            let local = SocketAddr::new(workload.addresses[0], 15008);
            let said = match arrival(&mesh, workload, local, &authority.parse().unwrap()) {
                Ok(Arrival {
                    port,
                    service: None,
                }) => port.to_string(),
                Ok(Arrival {
                    port,
                    service: Some(service),
                }) => format!("{port} {}", service.hostname),
                Err(why) => format!("{} {why}", why.status().code()),
            };
            assert_eq!(said, expected, "{authority} at {uid}");
        }
    }

    #[test]
    fn the_service_behind_a_port_is_the_one_meant_else_the_one_that_has_it() {
        let mesh = snapshot(|mesh| {
            let mut web = endpoint("web", &["10.0.0.2"], "a.svc", &[(80, 8080)]);
            web.services
                .insert("default/b.svc".into(), wire::PortList::default());
            mesh.set_workload(web);
            mesh.set_service(service("a.svc", &["10.1.0.1"], &[(80, 0)]));
            mesh.set_service(service("b.svc", &["10.1.0.2"], &[(80, 8080), (443, 8443)]));
        });
        let workload = mesh.workload("web").unwrap();
        for (port, meant, expected) in [
            (8080, None, Some("a.svc")),
            (8443, None, Some("b.svc")),
            (8080, Some("b.svc"), Some("b.svc")),
            (8080, Some("c.svc"), Some("a.svc")),
            (22, None, None),
        ] {
            let found = service_of(&mesh, workload, port, meant);
            assert_eq!(
                found.as_ref().map(|service| &*service.hostname),
                expected,
                "{port} {meant:?}"
            );
        }
    }
}
