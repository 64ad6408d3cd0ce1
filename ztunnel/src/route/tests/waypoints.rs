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
}
