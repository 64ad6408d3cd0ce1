//! Destinations in, decisions out, over small meshes.

mod egress;
mod networks;
mod waypoints;

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
        let mut legacy = pod("legacy", &["10.0.0.6"]);
        legacy.tunnel_protocol = wire::TunnelProtocol::LegacyIstioMtls.into();
        mesh.set_workload(legacy);
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
        ("10.0.0.6:80", "plain Address(10.0.0.6:80)"),
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

#[test]
fn a_mesh_of_several_names_expects_its_members_under_each_and_nobody_elses() {
    let identities = |texts: &[&str]| -> Vec<Identity> {
        let ids = texts.iter().map(|text| format!("spiffe://{text}"));
        ids.map(|id| id.parse().unwrap()).collect()
    };
    let names = ["new.org".to_owned(), "old.org".to_owned()];
    for (expected, names, all) in [
        (
            &["old.org/ns/a/sa/b"][..],
            &[][..],
            &["old.org/ns/a/sa/b"][..],
        ),
        (
            &["old.org/ns/a/sa/b"],
            &names,
            &["new.org/ns/a/sa/b", "old.org/ns/a/sa/b"],
        ),
        (
            &["new.org/ns/a/sa/b", "old.org/ns/a/sa/b"],
            &names,
            &["new.org/ns/a/sa/b", "old.org/ns/a/sa/b"],
        ),
        (&["else.org/ns/a/sa/b"], &names, &["else.org/ns/a/sa/b"]),
    ] {
        assert_eq!(by_all_names(identities(expected), names), identities(all));
    }
}

/// What is to be encrypted is so wherever its name leads.
#[test]
fn whoever_is_known_by_name_and_speaks_tunnels_gets_one_at_the_address_that_is_found() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1"]));
        let mut machine = endpoint("machine", &[], "machine.svc", &[]);
        machine.hostname = "vm.example.com".into();
        mesh.set_workload(machine);
        mesh.set_service(service("machine.svc", &["10.1.0.1"], &[(80, 8080)]));
    });
    let Ok(Decision::Tunnel(found)) = ask(&mesh, "10.1.0.1:80", &["machine"]) else {
        panic!("no tunnel")
    };
    assert_eq!(found.hop(), "vm.example.com:15008");
    for (ip, expected) in [
        (
            "192.0.2.7",
            "tunnel 192.0.2.7:15008 to 192.0.2.7:8080 by machine of machine.svc",
        ),
        (
            "2001:db8::7",
            "tunnel [2001:db8::7]:15008 to [2001:db8::7]:8080 by machine of machine.svc",
        ),
    ] {
        let found = found.clone().found_at(ip.parse().unwrap());
        assert_eq!(found.hop(), found.address.to_string());
        assert_eq!(say(Ok(Decision::Tunnel(found))), expected);
    }
}
