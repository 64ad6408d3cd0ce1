//! Destinations on other networks.

use super::*;

/// Network `elsewhere`, its gateway at an address, by a service of ours, or nowhere; and what stands there.
fn mesh_with_networks() -> Arc<Snapshot> {
    let gateway = |address| wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Address(address)),
        hbone_mtls_port: 15009,
    };
    snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1"]));
        let mut door = pod("door", &["192.0.2.9"]);
        door.network = "elsewhere".into();
        mesh.set_workload(door);
        mesh.set_workload(endpoint("near-door", &["10.0.0.8"], "door.svc", &[]));
        mesh.set_service(service("door.svc", &[], &[(15008, 15008)]));
        let by_address = Some(gateway(crate::testing::address("elsewhere", "192.0.2.9")));
        for (name, vip, through) in [
            ("far", "10.1.0.1", by_address.clone()),
            ("named", "10.1.0.2", waypoint_host("door.svc")),
            (
                "lost",
                "10.1.0.3",
                Some(gateway(crate::testing::address("elsewhere", "192.0.2.8"))),
            ),
            ("trusted-by-nobody", "10.1.0.4", by_address.clone()),
        ] {
            let host = format!("{name}.svc");
            let mut far = endpoint(name, &[], &host, &[]);
            (far.network, far.network_gateway) = ("elsewhere".into(), through);
            mesh.set_workload(far);
            let mut service = service(&host, &[vip], &[(80, 8080)]);
            if name != "trusted-by-nobody" {
                service.subject_alt_names =
                    vec!["spiffe://cluster.local/ns/default/sa/beyond".into()];
            }
            mesh.set_service(service);
        }
        // The waypoint of a service of ours may be there too, and a pod may have an address that is ours as well.
        let mut waypoint = endpoint("far-waypoint", &[], "waypoint.svc", &[]);
        (waypoint.network, waypoint.network_gateway) = ("elsewhere".into(), by_address.clone());
        mesh.set_workload(waypoint);
        let mut front = service("waypoint.svc", &[], &[(15008, 15008)]);
        front.subject_alt_names = vec!["spiffe://cluster.local/ns/default/sa/waypoint".into()];
        mesh.set_service(front);
        let mut guarded = service("guarded.svc", &["10.1.0.5"], &[(80, 80)]);
        guarded.waypoint = waypoint_host("waypoint.svc");
        mesh.set_service(guarded);
        let mut same = endpoint("same-address", &["10.0.0.1"], "same.svc", &[]);
        (same.network, same.network_gateway) = ("elsewhere".into(), by_address);
        mesh.set_workload(same);
        let mut vouched = service("same.svc", &["10.1.0.6"], &[(80, 80)]);
        vouched.subject_alt_names = vec!["spiffe://cluster.local/ns/default/sa/beyond".into()];
        mesh.set_service(vouched);
    })
}

#[test]
fn another_network_is_reached_through_its_gateway_by_a_tunnel_inside_a_tunnel() {
    let mesh = mesh_with_networks();
    for (to, expected) in [
        (
            "10.1.0.1:80",
            "tunnel 192.0.2.9:15009 to far.svc:80 by door of far.svc, inside to beyond for far",
        ),
        (
            "10.1.0.2:80",
            "tunnel 10.0.0.8:15008 to named.svc:80 by near-door of named.svc, inside to beyond for named",
        ),
        (
            "10.1.0.5:80",
            "tunnel 192.0.2.9:15009 to guarded.svc:80 by door of guarded.svc, inside to waypoint for far-waypoint",
        ),
        (
            "10.1.0.6:80",
            "tunnel 192.0.2.9:15009 to same.svc:80 by door of same.svc, inside to beyond for same-address",
        ),
        (
            "10.1.0.3:80",
            "refused: gateway elsewhere/192.0.2.8:15009 of network elsewhere not found; lost can be reached in no other way",
        ),
        (
            "10.1.0.4:80",
            "refused: service default/trusted-by-nobody.svc names nobody (subject_alt_names) who could answer for it on network elsewhere",
        ),
    ] {
        assert_eq!(say(ask(&mesh, to, &["same-address"])), expected, "{to}");
    }
}
