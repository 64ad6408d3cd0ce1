//! Pure: how datagrams go where a connection would go into a tunnel, and for how long what was decided stays so.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::Authority;
use mesh::{Service, Snapshot, Workload};

use crate::route::{Place, Plain, Tunnel};

/// How datagrams go.
#[derive(Debug)]
pub(crate) enum Passage {
    /// In a tunnel, that asks for the way to this address.
    Tunnel(SocketAddr),
    /// As they are: whoever is there has not opted in.
    Plain(Plain),
    /// Not at all: neither a waypoint nor a gateway carries them, and around them they must not go.
    Front,
}

impl Passage {
    pub(crate) fn of(found: &Tunnel) -> Self {
        match &found.authority {
            Authority::Ip(asked) if asked.ip() == found.address.ip() && found.beyond.is_none() => {
                match found.next.udp {
                    true => Self::Tunnel(*asked),
                    false => Self::Plain(as_it_is(found, *asked)),
                }
            }
            _ => Self::Front,
        }
    }
}

/// To a pod whose proxy does not take it.
pub(super) fn as_it_is(found: &Tunnel, asked: SocketAddr) -> Plain {
    Plain {
        to: Place::Address(asked),
        workload: Some(found.next.clone()),
        service: found.service.clone(),
        logged_by: None,
    }
}

/// To whom a flow goes.
#[derive(Debug)]
pub(super) enum Endpoint {
    /// To somebody.
    Known {
        workload: Arc<Workload>,
        /// The service that it was chosen for.
        service: Option<Arc<Service>>,
    },
    /// To an address at which nobody was known to this workload.
    Nobody { source: Arc<Workload>, ip: IpAddr },
}

impl Endpoint {
    pub(super) fn new(workload: &Arc<Workload>, service: Option<&Arc<Service>>) -> Self {
        Self::Known {
            workload: workload.clone(),
            service: service.cloned(),
        }
    }

    /// None of a service without endpoints, which only names a place outside.
    pub(super) fn of_plain(found: &Plain, source: &Arc<Workload>, to: SocketAddr) -> Option<Self> {
        match (&found.workload, &found.service) {
            (Some(workload), service) => Some(Self::new(workload, service.as_ref())),
            (None, None) => Some(Self::Nobody {
                source: source.clone(),
                ip: to.ip(),
            }),
            (None, Some(_)) => None,
        }
    }

    /// Whether it would still be right to send there. One that only is not ready any more keeps the flows that it has, as it
    /// keeps its connections. Where nobody was known somebody may be now: an app that keeps sending would otherwise send in
    /// the clear, for ever, to who may take that from nobody.
    pub(super) fn stands(&self, snapshot: &Snapshot) -> bool {
        match self {
            Self::Known { workload, service } => still_there(workload, service.as_ref(), snapshot),
            Self::Nobody { source, ip } => {
                let (network, namespace) = (&source.network, &source.namespace);
                snapshot.service_at(network, *ip, namespace).is_none()
                    && snapshot.workload_at(network, *ip).is_none()
            }
        }
    }
}

fn still_there(
    workload: &Arc<Workload>,
    service: Option<&Arc<Service>>,
    snapshot: &Snapshot,
) -> bool {
    let Some(now) = snapshot.workload(&workload.uid) else {
        return false;
    };
    let same = Arc::ptr_eq(now, workload)
        || (now.udp, &now.addresses) == (workload.udp, &workload.addresses);
    let of = |service: &Arc<Service>| {
        let key = service.key();
        now.services.iter().any(|member| member.service == key)
    };
    same && service.is_none_or(of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Beyond;
    use crate::testing::{endpoint, pod, service, snapshot};

    const HOST: &str = "web.default.svc.cluster.local";

    fn carried() -> api::workload::Extension {
        api::workload::Extension {
            name: api::UDP_EXTENSION.to_owned(),
            config: None,
        }
    }

    /// A mesh in which pod `web` is an endpoint of a service.
    fn mesh(change: impl FnOnce(&mut api::workload::Workload)) -> Arc<Snapshot> {
        snapshot(|mesh| {
            let mut web = endpoint("web", &["10.0.0.2"], HOST, &[]);
            web.extensions = vec![carried()];
            change(&mut web);
            mesh.set_workload(web);
            mesh.set_workload(pod("other", &["10.0.0.3"]));
            mesh.set_service(service(HOST, &["10.1.0.1"], &[(53, 53)]));
        })
    }

    fn tunnel(mesh: &Snapshot, authority: &str) -> Tunnel {
        Tunnel {
            address: "10.0.0.2:15008".parse().unwrap(),
            authority: authority.parse().unwrap(),
            expected: Vec::new(),
            next: mesh.workload("web").unwrap().clone(),
            beyond: None,
            asked: 53,
            service: mesh.service("default", HOST).cloned(),
        }
    }

    #[test]
    fn datagrams_go_in_a_tunnel_to_who_opted_in_as_they_are_to_others_and_not_around_who_stands_between()
     {
        let (on, off) = (mesh(|_| {}), mesh(|web| web.extensions.clear()));
        let to = "10.0.0.2:53".parse().unwrap();
        let straight = Passage::of(&tunnel(&on, "10.0.0.2:53"));
        assert!(matches!(straight, Passage::Tunnel(asked) if asked == to));
        let Passage::Plain(plain) = Passage::of(&tunnel(&off, "10.0.0.2:53")) else {
            panic!("it has not opted in");
        };
        assert!(matches!(plain.to, Place::Address(at) if at == to));
        assert_eq!(plain.workload.unwrap().name(), "web");
        for mesh in [&on, &off] {
            let waypoint = tunnel(mesh, "10.0.0.9:53");
            let by_name = tunnel(mesh, "web.default.svc.cluster.local:53");
            let mut gateway = tunnel(mesh, "10.0.0.2:53");
            gateway.beyond = Some(Beyond {
                expected: Vec::new(),
                workload: mesh.workload("other").unwrap().clone(),
            });
            for found in [waypoint, by_name, gateway] {
                assert!(matches!(Passage::of(&found), Passage::Front), "{found:?}");
            }
        }
    }

    #[test]
    fn a_flow_stays_with_an_endpoint_that_is_not_ready_and_not_with_one_that_is_another_or_gone() {
        let before = mesh(|_| {});
        let web = before.workload("web").unwrap();
        let service = before.service("default", HOST);
        let chosen = Endpoint::new(web, service);
        assert!(chosen.stands(&before) && chosen.stands(&mesh(|_| {})));
        let unhealthy = api::workload::WorkloadStatus::Unhealthy;
        assert!(chosen.stands(&mesh(|web| web.status = unhealthy.into())));
        let left = mesh(|web| web.services.clear());
        assert!(!chosen.stands(&left) && Endpoint::new(web, None).stands(&left));
        for changed in [
            mesh(|web| web.extensions.clear()),
            mesh(|web| web.addresses = pod("x", &["10.0.0.4"]).addresses),
            mesh(|web| web.uid = "another".into()),
        ] {
            assert!(!chosen.stands(&changed) && !Endpoint::new(web, None).stands(&changed));
        }
    }

    #[test]
    fn a_flow_to_where_nobody_was_known_ends_once_somebody_is() {
        let before = mesh(|_| {});
        let source = before.workload("other").unwrap();
        let plain = |to: SocketAddr| Plain {
            to: Place::Address(to),
            workload: None,
            service: None,
            logged_by: None,
        };
        let of = |to: &str| {
            let to = to.parse().unwrap();
            Endpoint::of_plain(&plain(to), source, to).unwrap()
        };
        let (to_pod, to_service) = (of("10.0.0.9:53"), of("10.1.0.9:53"));
        assert!(to_pod.stands(&before) && to_service.stands(&before));
        let after = snapshot(|mesh| {
            mesh.set_workload(pod("other", &["10.0.0.3"]));
            mesh.set_workload(pod("late", &["10.0.0.9"]));
            mesh.set_service(service(HOST, &["10.1.0.9"], &[(53, 53)]));
        });
        assert!(!to_pod.stands(&after) && !to_service.stands(&after));
        // Somebody else has come.
        assert!(of("192.0.2.1:53").stands(&after));
        // A service that only names a place outside: what is known of it is known already.
        let to = "10.1.0.1:53".parse().unwrap();
        let outside = Plain {
            service: before.service("default", HOST).cloned(),
            ..plain(to)
        };
        assert!(Endpoint::of_plain(&outside, source, to).is_none());
    }
}
