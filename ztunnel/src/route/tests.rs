//! Destinations in, decisions out, over small meshes.

use api::workload as wire;

use super::*;
use crate::testing::{egress, endpoint, pod, service, snapshot, waypoint_host, waypoint_ip};

/// The source is pod `client` at 10.0.0.1 and fd00::1 on node-1; `local` are the pods of its node.
fn ask(snapshot: &Snapshot, to: &str, local: &[&str]) -> Result<Decision, Refused> {
    ask_drawing(snapshot, to, local, 0)
}

fn ask_drawing(
    snapshot: &Snapshot,
    to: &str,
    local: &[&str],
    draw: u64,
) -> Result<Decision, Refused> {
    ask_avoiding(snapshot, to, local, draw, &[])
}

fn ask_avoiding(
    snapshot: &Snapshot,
    to: &str,
    local: &[&str],
    draw: u64,
    avoided: &[(&str, u16)],
) -> Result<Decision, Refused> {
    let source = snapshot.workload("client").unwrap();
    let joinable = |workload: &Workload| local.contains(&&*workload.uid);
    let destination = to.parse().unwrap();
    decide(&Question {
        snapshot,
        source,
        destination,
        joinable: &joinable,
        avoid: &|workload, port| avoided.contains(&(&*workload.uid, port)),
        resolvers: &["192.0.2.53:53".parse().unwrap()],
        draw,
    })
}

/// One line that says all that matters.
fn say(decision: Result<Decision, Refused>) -> String {
    let service = |service: &Option<Arc<Service>>| match service {
        Some(service) => format!(" of {}", service.hostname),
        None => String::new(),
    };
    match decision {
        Ok(Decision::Tunnel(t)) => {
            let expected: Vec<_> = t.expected.iter().map(Identity::service_account).collect();
            let beyond = t.beyond.map(|beyond| {
                let expected: Vec<_> = beyond
                    .expected
                    .iter()
                    .map(Identity::service_account)
                    .collect();
                format!(
                    ", inside to {} for {}",
                    expected.join("+"),
                    beyond.workload.uid
                )
            });
            format!(
                "tunnel {} to {} by {}{}{}",
                t.address,
                t.authority,
                expected.join("+"),
                service(&t.service),
                beyond.unwrap_or_default()
            )
        }
        Ok(Decision::Local(d)) => format!(
            "local {} at {}{}",
            d.workload.uid,
            d.address,
            service(&d.service)
        ),
        Ok(Decision::Plain(p)) => {
            let logged = p.logged_by.map(|by| format!(" logged by {by}"));
            let (service, logged) = (service(&p.service), logged.unwrap_or_default());
            format!("plain {:?}{service}{logged}", p.to)
        }
        Err(why) => format!("refused: {why}"),
    }
}

fn small_mesh() -> Arc<Snapshot> {
    snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1", "fd00::1"]));
        mesh.set_workload(endpoint(
            "web",
            &["10.0.0.2", "fd00::2"],
            "web.svc",
            &[(80, 8080)],
        ));
        let mut plain = endpoint("plain", &["10.0.0.3"], "plain.svc", &[]);
        plain.tunnel_protocol = 0;
        mesh.set_workload(plain);
        let mut native = pod("native", &["10.0.0.4"]);
        native.native_tunnel = true;
        mesh.set_workload(native);
        mesh.set_service(service(
            "web.svc",
            &["10.1.0.1", "fd01::1"],
            &[(80, 0), (443, 8443)],
        ));
        mesh.set_service(service("plain.svc", &["10.1.0.2"], &[(80, 80)]));
        mesh.set_service(service("empty.svc", &["10.1.0.3"], &[(80, 80)]));
        mesh.set_service(service("range.svc", &["10.9.0.0/16"], &[(80, 80)]));
        mesh.set_workload(endpoint("ranged", &["10.0.0.5"], "range.svc", &[]));
        let mut outside = service("outside.svc", &["10.1.0.4"], &[(80, 80)]);
        outside.load_balancing = Some(wire::LoadBalancing {
            mode: wire::load_balancing::Mode::Passthrough.into(),
            ..Default::default()
        });
        mesh.set_service(outside);
        let mut named = endpoint("named", &[], "named.svc", &[]);
        (named.tunnel_protocol, named.hostname) = (0, "example.com".into());
        mesh.set_workload(named);
        mesh.set_service(service("named.svc", &["10.1.0.5"], &[(80, 8000)]));
    })
}

#[test]
fn destinations_are_reached_as_the_wire_says() {
    let mesh = small_mesh();
    for (to, expected) in [
        (
            "10.1.0.1:80",
            "tunnel 10.0.0.2:15008 to 10.0.0.2:8080 by web of web.svc",
        ),
        (
            "10.1.0.1:443",
            "tunnel 10.0.0.2:15008 to 10.0.0.2:8443 by web of web.svc",
        ),
        (
            "[fd01::1]:80",
            "tunnel [fd00::2]:15008 to [fd00::2]:8080 by web of web.svc",
        ),
        (
            "10.0.0.2:1234",
            "tunnel 10.0.0.2:15008 to 10.0.0.2:1234 by web",
        ),
        (
            "[fd00::2]:1234",
            "tunnel [fd00::2]:15008 to [fd00::2]:1234 by web",
        ),
        (
            "10.0.0.4:80",
            "tunnel 10.0.0.4:15008 to 10.0.0.4:80 by native",
        ),
        ("10.1.0.2:80", "plain Address(10.0.0.3:80) of plain.svc"),
        ("10.0.0.3:22", "plain Address(10.0.0.3:22)"),
        (
            "10.9.200.3:80",
            "tunnel 10.0.0.5:15008 to 10.0.0.5:80 by ranged of range.svc",
        ),
        ("192.0.2.1:443", "plain Address(192.0.2.1:443)"),
        ("10.1.0.4:80", "plain Address(10.1.0.4:80) of outside.svc"),
        (
            "10.1.0.5:80",
            "plain Name(\"example.com\", 8000) of named.svc",
        ),
        (
            "10.1.0.3:80",
            "refused: no healthy upstream: default/empty.svc: the service has no endpoint",
        ),
        (
            "10.1.0.1:81",
            "refused: no healthy upstream: default/web.svc: the service has no port 81",
        ),
    ] {
        assert_eq!(say(ask(&mesh, to, &[])), expected, "{to}");
    }
}

#[test]
fn pods_of_this_node_are_joined_unless_they_terminate_tunnels_themselves() {
    let mesh = small_mesh();
    let local = ["web", "plain", "native"];
    for (to, expected) in [
        ("10.1.0.1:80", "local web at 10.0.0.2:8080 of web.svc"),
        ("[fd00::2]:80", "local web at [fd00::2]:80"),
        (
            "10.0.0.4:80",
            "tunnel 10.0.0.4:15008 to 10.0.0.4:80 by native",
        ),
        ("10.0.0.3:80", "plain Address(10.0.0.3:80)"),
    ] {
        assert_eq!(say(ask(&mesh, to, &local)), expected, "{to}");
    }
}

#[test]
fn our_own_ports_are_a_loop_only_on_our_own_addresses() {
    let mesh = small_mesh();
    for port in OWN_PORTS {
        for ip in ["10.0.0.1", "[fd00::1]", "127.0.0.1", "[::1]"] {
            let asked = ask(&mesh, &format!("{ip}:{port}"), &[]);
            assert!(matches!(asked, Err(Refused::SelfCall)), "{ip}:{port}");
        }
        assert!(ask(&mesh, &format!("192.0.2.1:{port}"), &[]).is_ok());
    }
    assert!(ask(&mesh, "10.0.0.1:80", &[]).is_ok());
}

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

#[test]
fn a_service_vouches_for_its_endpoints() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1"]));
        mesh.set_workload(endpoint("web", &["10.0.0.2"], "web.svc", &[]));
        let mut web = service("web.svc", &["10.1.0.1"], &[(80, 80)]);
        web.subject_alt_names = vec![
            "spiffe://cluster.local/ns/default/sa/web".into(),
            "spiffe://cluster.local/ns/default/sa/blue".into(),
            "https://example.com".into(),
        ];
        mesh.set_service(web);
    });
    assert_eq!(
        say(ask(&mesh, "10.1.0.1:80", &[])),
        "tunnel 10.0.0.2:15008 to 10.0.0.2:80 by blue+web of web.svc"
    );
    assert_eq!(
        say(ask(&mesh, "10.0.0.2:80", &[])),
        "tunnel 10.0.0.2:15008 to 10.0.0.2:80 by web"
    );
}

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
fn endpoints_share_the_connections() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1"]));
        for (name, ip) in [("a", "10.0.0.2"), ("b", "10.0.0.3")] {
            mesh.set_workload(endpoint(name, &[ip], "web.svc", &[]));
        }
        mesh.set_service(service("web.svc", &["10.1.0.1"], &[(80, 80)]));
    });
    let chosen: std::collections::BTreeSet<_> = (0..64)
        .map(|draw| say(ask_drawing(&mesh, "10.1.0.1:80", &[], draw)))
        .collect();
    assert_eq!(chosen.len(), 2, "{chosen:?}");
}

#[test]
fn who_is_in_trouble_on_the_port_in_question_is_chosen_only_where_there_is_nobody_else() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1"]));
        for (name, ip) in [("a", "10.0.0.2"), ("b", "10.0.0.3")] {
            mesh.set_workload(endpoint(name, &[ip], "web.svc", &[(80, 8080), (81, 8081)]));
            let mut waypoint = endpoint(
                &format!("waypoint-{name}"),
                &[&ip.replace("10.0.0", "10.0.9")],
                "waypoint.svc",
                &[],
            );
            waypoint.native_tunnel = true;
            mesh.set_workload(waypoint);
        }
        mesh.set_service(service("web.svc", &["10.1.0.1"], &[(80, 0), (81, 0)]));
        mesh.set_service(service("waypoint.svc", &["10.1.0.9"], &[(15008, 15008)]));
        let mut guarded = service("guarded.svc", &["10.1.0.2"], &[(80, 80)]);
        guarded.waypoint = waypoint_host("waypoint.svc");
        mesh.set_service(guarded);
    });
    let chosen = |to, avoided: &[(&str, u16)]| {
        let all = (0..64).map(|draw| {
            let decision = ask_avoiding(&mesh, to, &["b"], draw, avoided).unwrap();
            decision.target().unwrap()
        });
        let all: std::collections::BTreeSet<_> = all.collect();
        let all = all.iter().map(|(uid, port)| format!("{uid}:{port}"));
        all.collect::<Vec<_>>().join(" ")
    };
    for (to, avoided, expected) in [
        ("10.1.0.1:80", &[][..], "a:8080 b:8080"),
        ("10.1.0.1:80", &[("a", 8080)], "b:8080"),
        ("10.1.0.1:80", &[("b", 8080)], "a:8080"),
        ("10.1.0.1:81", &[("a", 8080)], "a:8081 b:8081"),
        ("10.1.0.1:80", &[("a", 8080), ("b", 8080)], "a:8080 b:8080"),
        ("10.1.0.2:80", &[], "waypoint-a:15008 waypoint-b:15008"),
        ("10.1.0.2:80", &[("waypoint-b", 15008)], "waypoint-a:15008"),
        // Named by its own address, it is nobody else.
        ("10.0.0.2:8080", &[("a", 8080)], "a:8080"),
    ] {
        assert_eq!(chosen(to, avoided), expected, "{to} without {avoided:?}");
    }
    let outside = ask(&mesh, "192.0.2.1:443", &[]).unwrap();
    assert_eq!(outside.target(), None);
}

#[test]
fn an_identity_proves_the_workload_whose_names_it_has_with_defaults_for_what_is_unsaid() {
    let mesh = snapshot(|mesh| {
        let mut bare = pod("bare", &["10.0.0.1"]);
        (bare.trust_domain, bare.service_account) = (String::new(), String::new());
        mesh.set_workload(bare);
        let mut full = pod("full", &["10.0.0.2"]);
        full.trust_domain = "example.org".into();
        full.service_account = "web".into();
        mesh.set_workload(full);
        let mut odd = pod("odd", &["10.0.0.3"]);
        odd.service_account = "no/name".into();
        mesh.set_workload(odd);
    });
    for (uid, text) in [
        ("bare", "spiffe://cluster.local/ns/default/sa/default"),
        ("full", "spiffe://example.org/ns/default/sa/web"),
    ] {
        let workload = mesh.workload(uid).unwrap();
        assert_eq!(identity(workload).unwrap().to_string(), text);
        for other in ["bare", "full", "odd"] {
            let proven = proves(&text.parse().unwrap(), mesh.workload(other).unwrap());
            assert_eq!(proven, uid == other, "{text} as {other}");
        }
    }
    assert!(matches!(
        identity(mesh.workload("odd").unwrap()),
        Err(Refused::NoIdentity(..))
    ));
}

/// What a client with this setting gets at places outside of the mesh, and inside of it.
#[test]
fn who_is_unknown_is_reached_logged_or_refused_as_the_callers_setting_says_and_who_is_known_always()
{
    use api::egress::egress::Mode;
    let asked_with = |mode: Option<Mode>, to: &str| {
        let mesh = snapshot(|mesh| {
            let mut client = pod("client", &["10.0.0.1", "fd00::1"]);
            client.extensions = mode
                .into_iter()
                .map(|mode| egress(mode, "the mesh"))
                .collect();
            mesh.set_workload(client);
            mesh.set_workload(pod("web", &["10.0.0.2"]));
            let mut on_node = pod("proxy", &["192.0.2.1"]);
            on_node.network_mode = wire::NetworkMode::HostNetwork.into();
            mesh.set_workload(on_node);
            let mut named = service(
                "named.example",
                &["10.1.0.4", "198.51.100.0/24"],
                &[(443, 443)],
            );
            named.load_balancing = Some(wire::LoadBalancing {
                mode: wire::load_balancing::Mode::Passthrough.into(),
                ..Default::default()
            });
            mesh.set_service(named);
        });
        say(ask(&mesh, to, &[]))
    };
    let outside = [
        "203.0.113.9:443",
        "[2001:db8::9]:443",
        "169.254.169.254:80",
        "192.0.2.2:443",
    ];
    for to in outside {
        for allowing in [None, Some(Mode::Allow)] {
            assert_eq!(asked_with(allowing, to), format!("plain Address({to})"));
        }
        let logged = format!("plain Address({to}) logged by the mesh");
        assert_eq!(asked_with(Some(Mode::Log), to), logged);
        let refused = asked_with(Some(Mode::Refuse), to);
        let expected =
            format!("refused: egress refused by the mesh: the mesh knows nobody at {to} (");
        assert!(refused.starts_with(&expected), "{refused}");
    }
    let inside = [
        ("10.0.0.2:80", "tunnel 10.0.0.2:15008 to 10.0.0.2:80 by web"),
        (
            "10.1.0.4:443",
            "plain Address(10.1.0.4:443) of named.example",
        ),
        (
            "198.51.100.7:443",
            "plain Address(198.51.100.7:443) of named.example",
        ),
        // A node, for itself and for whoever has no address but its own; the pod itself; who answers its questions.
        ("192.0.2.1:10250", "plain Address(192.0.2.1:10250)"),
        ("127.0.0.2:80", "plain Address(127.0.0.2:80)"),
        ("192.0.2.53:53", "plain Address(192.0.2.53:53)"),
    ];
    for mode in [Mode::Allow, Mode::Log, Mode::Refuse] {
        for (to, expected) in inside {
            assert_eq!(asked_with(Some(mode), to), expected, "{mode:?}");
        }
    }
    // What is on the list is so with its ports, and a resolver is asked for names only.
    for to in ["198.51.100.7:22", "192.0.2.53:443"] {
        let refused = asked_with(Some(Mode::Refuse), to);
        assert!(refused.starts_with("refused: "), "{to}: {refused}");
    }
    let why = Refused::Egress {
        destination: "203.0.113.9:443".parse().unwrap(),
        by: "".into(),
    };
    assert_eq!(crate::report::Failure::flag(&why), Flag::Egress);
}
