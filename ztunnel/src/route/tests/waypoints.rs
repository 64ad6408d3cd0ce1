//! Destinations that are behind a waypoint.

use super::*;

fn mesh_with_waypoints() -> Arc<Snapshot> {
    snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1"]));
        let mut waypoint = endpoint(
            "waypoint",
            &["10.0.0.9", "fd00::9"],
            "waypoint.svc",
            &[(15008, 15008)],
        );
        waypoint.native_tunnel = true;
        mesh.set_workload(waypoint);
        let mut front = service("waypoint.svc", &["10.1.0.9"], &[(15008, 15008)]);
        front.subject_alt_names = vec![
            "spiffe://cluster.local/ns/default/sa/older".into(),
            "not an identity".into(),
        ];
        mesh.set_service(front);
        mesh.set_service(service("asleep.svc", &["10.1.0.8"], &[(15008, 15008)]));
        for (host, vip, waypoint) in [
            ("named.svc", "10.2.0.1", waypoint_host("waypoint.svc")),
            ("by-vip.svc", "10.2.0.2", waypoint_ip("10.1.0.9")),
            ("by-pod.svc", "10.2.0.3", waypoint_ip("10.0.0.9")),
            ("lost.svc", "10.2.0.4", waypoint_host("nowhere.svc")),
            ("lost-ip.svc", "10.2.0.5", waypoint_ip("10.7.7.7")),
            ("asleep-behind.svc", "10.2.0.6", waypoint_host("asleep.svc")),
        ] {
            let mut service = service(host, &[vip], &[(80, 80)]);
            service.waypoint = waypoint;
            mesh.set_service(service);
        }
        let mut web = endpoint("web", &["10.0.0.2"], "named.svc", &[]);
        web.waypoint = waypoint_host("waypoint.svc");
        mesh.set_workload(web);
        let mut canary = service("canary.svc", &["10.2.0.7"], &[(80, 80)]);
        canary.waypoint = waypoint_host("nowhere.svc");
        canary.weighted_waypoints = vec![
            wire::WeightedWaypoint {
                destination: waypoint_host("waypoint.svc"),
                weight: 100,
            },
            wire::WeightedWaypoint {
                destination: waypoint_host("nowhere.svc"),
                weight: 0,
            },
        ];
        mesh.set_service(canary);
    })
}

#[test]
fn a_waypoint_is_asked_for_what_the_app_asked_for() {
    let mesh = mesh_with_waypoints();
    for (to, expected) in [
        (
            "10.2.0.1:80",
            "tunnel 10.0.0.9:15008 to 10.2.0.1:80 by older+waypoint of named.svc",
        ),
        (
            "10.2.0.1:81",
            "tunnel 10.0.0.9:15008 to 10.2.0.1:81 by older+waypoint of named.svc",
        ),
        (
            "10.2.0.2:80",
            "tunnel 10.0.0.9:15008 to 10.2.0.2:80 by older+waypoint of by-vip.svc",
        ),
        (
            "10.2.0.3:80",
            "tunnel 10.0.0.9:15008 to 10.2.0.3:80 by waypoint of by-pod.svc",
        ),
        (
            "10.2.0.7:80",
            "tunnel 10.0.0.9:15008 to 10.2.0.7:80 by older+waypoint of canary.svc",
        ),
        (
            "10.0.0.2:80",
            "tunnel 10.0.0.9:15008 to 10.0.0.2:80 by older+waypoint",
        ),
    ] {
        assert_eq!(say(ask(&mesh, to, &["web"])), expected, "{to}");
    }
}

#[test]
fn a_waypoint_that_cannot_be_found_is_never_gone_around() {
    let mesh = mesh_with_waypoints();
    assert!(matches!(
        ask(&mesh, "10.2.0.4:80", &[]),
        Err(Refused::WaypointNotFound(_))
    ));
    assert!(matches!(
        ask(&mesh, "10.2.0.5:80", &[]),
        Err(Refused::WaypointNotFound(_))
    ));
    assert!(matches!(
        ask(&mesh, "10.2.0.6:80", &[]),
        Err(Refused::WaypointNotReady { .. })
    ));
}

#[test]
fn what_a_captured_waypoint_sends_on_does_not_come_back_to_it() {
    let mesh = snapshot(|mesh| {
        let mut waypoint = endpoint("client", &["10.0.0.1"], "waypoint.svc", &[(15008, 15008)]);
        waypoint.application_tunnel = Some(wire::ApplicationTunnel {
            protocol: 1,
            port: 15088,
        });
        mesh.set_workload(waypoint);
        mesh.set_service(service("waypoint.svc", &["10.1.0.9"], &[]));
        for (name, ip, waypoint) in [
            ("web", "10.0.0.2", waypoint_host("waypoint.svc")),
            ("other", "10.0.0.3", waypoint_ip("10.0.0.1")),
            ("third", "10.0.0.4", waypoint_ip("10.1.0.9")),
        ] {
            let mut pod = pod(name, &[ip]);
            pod.waypoint = waypoint;
            mesh.set_workload(pod);
        }
    });
    assert_eq!(
        say(ask(&mesh, "10.0.0.2:80", &[])),
        "tunnel 10.0.0.2:15008 to 10.0.0.2:80 by web"
    );
    assert_eq!(
        say(ask(&mesh, "10.0.0.3:80", &[])),
        "tunnel 10.0.0.3:15008 to 10.0.0.3:80 by other"
    );
    assert_eq!(
        say(ask(&mesh, "10.0.0.4:80", &[])),
        "tunnel 10.0.0.4:15008 to 10.0.0.4:80 by third"
    );
}

/// A service's waypoint is asked whoever calls: which of its pods that will be is drawn.
#[test]
fn a_captured_waypoint_that_calls_a_service_asks_its_waypoint_like_anybody() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(endpoint("client", &["10.0.0.1"], "waypoint.svc", &[]));
        let front = service("waypoint.svc", &["10.1.0.9"], &[(15008, 15008)]);
        mesh.set_service(front);
        let mut guarded = service("guarded.svc", &["10.2.0.1"], &[(80, 80)]);
        guarded.waypoint = waypoint_host("waypoint.svc");
        mesh.set_service(guarded);
    });
    assert_eq!(
        say(ask(&mesh, "10.2.0.1:80", &[])),
        "tunnel 10.0.0.1:15008 to 10.2.0.1:80 by client of guarded.svc"
    );
}

fn at_port(port: u32, named: Option<wire::GatewayAddress>) -> Option<wire::GatewayAddress> {
    let hbone_mtls_port = port;
    named.map(|named| wire::GatewayAddress {
        hbone_mtls_port,
        ..named
    })
}

/// The service of a waypoint whose bytes come by an application tunnel need not have the port. Who is named by the address
/// of a pod has no other one.
#[test]
fn a_waypoint_is_reached_at_the_port_that_is_told_and_in_the_callers_family_if_it_can_be() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1", "fd00::1"]));
        let mut framed = endpoint("framed", &["10.0.0.9", "fd00::9"], "framed.svc", &[]);
        framed.application_tunnel = Some(wire::ApplicationTunnel {
            protocol: 1,
            port: 15088,
        });
        mesh.set_workload(framed);
        mesh.set_service(service("framed.svc", &["10.1.0.9"], &[]));
        mesh.set_workload(endpoint("own", &["10.0.0.8", "fd00::8"], "own.svc", &[]));
        let own = service("own.svc", &["10.1.0.8", "fd01::8"], &[(15010, 15010)]);
        mesh.set_service(own);
        for (host, vips, waypoint) in [
            (
                "a.svc",
                ["10.2.0.1", "fd02::1"],
                at_port(15010, waypoint_host("framed.svc")),
            ),
            (
                "b.svc",
                ["10.2.0.2", "fd02::2"],
                at_port(15010, waypoint_host("own.svc")),
            ),
            (
                "c.svc",
                ["10.2.0.3", "fd02::3"],
                at_port(15010, waypoint_ip("10.1.0.8")),
            ),
            (
                "d.svc",
                ["10.2.0.4", "fd02::4"],
                at_port(15010, waypoint_ip("10.0.0.8")),
            ),
            (
                "e.svc",
                ["10.2.0.5", "fd02::5"],
                at_port(15011, waypoint_host("own.svc")),
            ),
        ] {
            let mut service = service(host, &vips, &[(80, 80)]);
            service.waypoint = waypoint;
            mesh.set_service(service);
        }
    });
    for (to, expected) in [
        (
            "10.2.0.1:80",
            "tunnel 10.0.0.9:15010 to 10.2.0.1:80 by framed of a.svc",
        ),
        (
            "[fd02::1]:80",
            "tunnel [fd00::9]:15010 to [fd02::1]:80 by framed of a.svc",
        ),
        (
            "10.2.0.2:80",
            "tunnel 10.0.0.8:15010 to 10.2.0.2:80 by own of b.svc",
        ),
        (
            "[fd02::2]:80",
            "tunnel [fd00::8]:15010 to [fd02::2]:80 by own of b.svc",
        ),
        (
            "10.2.0.3:80",
            "tunnel 10.0.0.8:15010 to 10.2.0.3:80 by own of c.svc",
        ),
        (
            "[fd02::3]:80",
            "tunnel [fd00::8]:15010 to [fd02::3]:80 by own of c.svc",
        ),
        (
            "[fd02::4]:80",
            "tunnel 10.0.0.8:15010 to [fd02::4]:80 by own of d.svc",
        ),
        (
            "10.2.0.5:80",
            "refused: waypoint default/own.svc has no healthy pod: no endpoint of the service can be reached on port 15011",
        ),
    ] {
        assert_eq!(say(ask(&mesh, to, &[])), expected, "{to}");
    }
}

#[test]
fn of_several_waypoints_one_is_drawn_for_each_connection_by_weight() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1"]));
        let waypoints = [
            ("one", "10.0.0.2"),
            ("two", "10.0.0.3"),
            ("three", "10.0.0.4"),
        ];
        for (name, ip) in waypoints {
            let host = format!("{name}.svc");
            mesh.set_workload(endpoint(name, &[ip], &host, &[]));
            mesh.set_service(service(&host, &[], &[(15008, 15008)]));
        }
        let mut canary = service("canary.svc", &["10.2.0.1"], &[(80, 80)]);
        canary.waypoint = waypoint_host("three.svc");
        let weighted = [("one.svc", 1), ("two.svc", 3), ("three.svc", 0)];
        let weighted = weighted.map(|(host, weight)| wire::WeightedWaypoint {
            destination: waypoint_host(host),
            weight,
        });
        canary.weighted_waypoints = weighted.into();
        mesh.set_service(canary);
    });
    let mut drawn = std::collections::BTreeMap::new();
    for draw in 0..400 {
        let said = say(ask_drawing(&mesh, "10.2.0.1:80", &[], draw << 32));
        *drawn.entry(said).or_insert(0) += 1;
    }
    let to =
        |ip: &str, name: &str| format!("tunnel {ip}:15008 to 10.2.0.1:80 by {name} of canary.svc");
    assert_eq!(
        drawn.into_iter().collect::<Vec<_>>(),
        [(to("10.0.0.2", "one"), 100), (to("10.0.0.3", "two"), 300)]
    );
}
