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

#[test]
fn behind_a_gateway_there_are_services_and_no_single_pods() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1"]));
        let mut waypoint = endpoint("far-waypoint", &["192.0.2.3"], "waypoint.svc", &[]);
        waypoint.network = "elsewhere".into();
        waypoint.network_gateway = waypoint_ip("192.0.2.9");
        mesh.set_workload(waypoint);
        mesh.set_service(service("waypoint.svc", &[], &[(15008, 15008)]));
        let mut guarded = pod("guarded", &["10.0.0.5"]);
        guarded.waypoint = waypoint_host("waypoint.svc");
        mesh.set_workload(guarded);
    });
    assert_eq!(
        say(ask(&mesh, "10.0.0.5:80", &["guarded"])),
        "refused: far-waypoint is on network elsewhere, where gateways lead to services only; call a service of it"
    );
}

/// Networks whose addresses are routed to one another need no gateway; an address means nothing beyond its own network.
#[test]
fn without_a_gateway_between_an_endpoint_of_another_network_is_reached_at_its_address() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1"]));
        let mut flat = endpoint("flat", &["192.0.2.3"], "flat.svc", &[]);
        flat.network = "elsewhere".into();
        mesh.set_workload(flat);
        mesh.set_service(service("flat.svc", &["10.1.0.1"], &[(80, 8080)]));
        // The gateway of one's own network is for others.
        let mut near = endpoint("near", &["10.0.0.2"], "near.svc", &[]);
        near.network_gateway = waypoint_ip("10.0.0.9");
        mesh.set_workload(near);
        mesh.set_service(service("near.svc", &["10.1.0.2"], &[(80, 8080)]));
        let mut theirs = service("theirs.svc", &[], &[(80, 8080)]);
        theirs.addresses = vec![crate::testing::address("elsewhere", "10.1.0.3")];
        mesh.set_service(theirs);
    });
    for (to, expected) in [
        (
            "10.1.0.1:80",
            "tunnel 192.0.2.3:15008 to 192.0.2.3:8080 by flat of flat.svc",
        ),
        ("192.0.2.3:80", "plain Address(192.0.2.3:80)"),
        (
            "10.1.0.2:80",
            "tunnel 10.0.0.2:15008 to 10.0.0.2:8080 by near of near.svc",
        ),
        (
            "10.0.0.2:80",
            "tunnel 10.0.0.2:15008 to 10.0.0.2:80 by near",
        ),
        ("10.1.0.3:80", "plain Address(10.1.0.3:80)"),
    ] {
        assert_eq!(say(ask(&mesh, to, &[])), expected, "{to}");
    }
}

/// Load balancers of clouds have names, and addresses that come and go.
#[test]
fn a_gateway_may_be_known_by_a_name_that_is_looked_up() {
    let named = |host: &str| {
        let mut named = waypoint_host(host);
        named.as_mut().unwrap().hbone_mtls_port = 15010;
        named
    };
    let mesh = snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1"]));
        let mut door = pod("door", &[]);
        door.hostname = "door.example.com".into();
        door.network = "elsewhere".into();
        mesh.set_workload(door);
        for (name, vip, gateway) in [
            ("far", "10.1.0.1", named("Door.example.com")),
            ("lost", "10.1.0.2", named("other.example.com")),
        ] {
            let host = format!("{name}.svc");
            let mut far = endpoint(name, &[], &host, &[]);
            (far.network, far.network_gateway) = ("elsewhere".into(), gateway);
            mesh.set_workload(far);
            let mut service = service(&host, &[vip], &[(80, 8080)]);
            service.subject_alt_names = vec!["spiffe://cluster.local/ns/default/sa/beyond".into()];
            mesh.set_service(service);
        }
    });
    let Ok(Decision::Tunnel(found)) = ask(&mesh, "10.1.0.1:80", &[]) else {
        panic!("no tunnel")
    };
    assert_eq!(found.hop(), "door.example.com:15010");
    let found = found.found_at("192.0.2.7".parse().unwrap());
    assert_eq!(
        say(Ok(Decision::Tunnel(found))),
        "tunnel 192.0.2.7:15010 to far.svc:80 by door of far.svc, inside to beyond for far"
    );
    assert_eq!(
        say(ask(&mesh, "10.1.0.2:80", &[])),
        "refused: gateway default/other.example.com:15010 of network elsewhere not found; lost can be reached in no other way"
    );
}
