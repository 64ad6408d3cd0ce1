//! Where an east-west gateway leads connections from other networks.

use std::net::IpAddr;
use std::sync::Arc;

use api::workload as wire;
use mesh::{Locality, Mesh, Network, Snapshot, Update};
use waypoint::east_west::{Hop, NoPassage, Question, explained, lead};

fn octets(ip: &str) -> wire::NetworkAddress {
    let ip: IpAddr = ip.parse().unwrap();
    let IpAddr::V4(ip) = ip else { panic!("IPv4") };
    wire::NetworkAddress {
        network: "here".to_owned(),
        address: ip.octets().to_vec().into(),
        length: None,
    }
}

/// A workload of ours that serves `default/<host>` on 8080.
fn workload(name: &str, ip: &str, host: &str) -> wire::Workload {
    wire::Workload {
        uid: name.to_owned(),
        name: name.to_owned(),
        namespace: "default".to_owned(),
        network: "here".to_owned(),
        addresses: vec![octets(ip).address],
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        services: [(format!("default/{host}"), wire::PortList::default())].into(),
        ..Default::default()
    }
}

/// A GLOBAL one.
fn service(host: &str) -> wire::Service {
    wire::Service {
        name: host.trim_end_matches(".svc").to_owned(),
        namespace: "default".to_owned(),
        hostname: host.to_owned(),
        extensions: vec![wire::Extension {
            name: api::GLOBAL_EXTENSION.to_owned(),
            config: None,
        }],
        ports: vec![wire::Port {
            service_port: 80,
            target_port: 8080,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn local(host: &str) -> wire::Service {
    wire::Service {
        extensions: Vec::new(),
        ..service(host)
    }
}

fn gateway(destination: wire::gateway_address::Destination) -> Option<wire::GatewayAddress> {
    Some(wire::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: 15009,
    })
}

fn named(host: &str) -> Option<wire::GatewayAddress> {
    gateway(wire::gateway_address::Destination::Hostname(
        wire::NamespacedHostname {
            namespace: "default".to_owned(),
            hostname: host.to_owned(),
        },
    ))
}

fn placed(ip: &str) -> Option<wire::GatewayAddress> {
    gateway(wire::gateway_address::Destination::Address(octets(ip)))
}

fn mesh() -> Arc<Snapshot> {
    let (mesh, mut writer) = Mesh::new();
    let mut update = Update::default();
    let mut set = |mut service: wire::Service, waypoint, of: Vec<wire::Workload>| {
        service.waypoint = waypoint;
        update.set_service(service);
        of.into_iter().for_each(|it| update.set_workload(it));
    };
    let abroad = wire::Workload {
        network: "there".to_owned(),
        addresses: Vec::new(),
        network_gateway: placed("192.0.2.1"),
        ..workload("abroad", "10.0.0.9", "both.svc")
    };
    let both = vec![abroad.clone(), workload("near", "10.0.0.1", "both.svc")];
    set(service("both.svc"), None, both);
    let gone = wire::Workload {
        uid: "abroad-alone".to_owned(),
        services: [("default/abroad.svc".to_owned(), wire::PortList::default())].into(),
        ..abroad
    };
    set(service("abroad.svc"), None, vec![gone]);
    let plain = wire::Workload {
        tunnel_protocol: wire::TunnelProtocol::None.into(),
        ..workload("plain", "10.0.0.2", "plain.svc")
    };
    set(service("plain.svc"), None, vec![plain]);
    set(service("empty.svc"), None, Vec::new());
    let way = vec![workload("way-0", "10.0.0.3", "way.svc")];
    let port = wire::Port {
        service_port: 15009,
        target_port: 15009,
        ..Default::default()
    };
    let ports = vec![port];
    // It is for whom it stands before that it is asked, not for itself.
    set(
        wire::Service {
            ports,
            ..local("way.svc")
        },
        None,
        way,
    );
    let own = vec![workload("own", "10.0.0.9", "local.svc")];
    set(local("local.svc"), None, own);
    let guarded = vec![workload("guarded", "10.0.0.10", "guarded.svc")];
    set(local("guarded.svc"), named("way.svc"), guarded);
    let behind = |name: &str, ip: &str, host: &str| vec![workload(name, ip, host)];
    set(
        service("behind.svc"),
        named("way.svc"),
        behind("a", "10.0.0.4", "behind.svc"),
    );
    set(
        service("beside.svc"),
        placed("10.0.0.3"),
        behind("b", "10.0.0.5", "beside.svc"),
    );
    set(
        service("astray.svc"),
        named("nowhere.svc"),
        behind("c", "10.0.0.6", "astray.svc"),
    );
    // A waypoint of another network, whose address is that of somebody else here.
    let far = wire::Workload {
        network: "there".to_owned(),
        ..workload("way-far", "10.0.0.3", "nobody.svc")
    };
    let there = wire::NetworkAddress {
        network: "there".to_owned(),
        ..octets("10.0.0.3")
    };
    let at_far = gateway(wire::gateway_address::Destination::Address(there));
    set(service("far.svc"), at_far, vec![far]);
    let pair = ["first", "second"]
        .into_iter()
        .zip(["10.0.0.7", "10.0.0.8"]);
    let pair = pair.map(|(name, ip)| workload(name, ip, "pair.svc"));
    set(service("pair.svc"), None, pair.collect());
    assert_eq!(writer.apply(update), []);
    mesh.load_full()
}

fn led(mesh: &Snapshot, asked: &str, tried: &[Arc<str>], draw: u64) -> String {
    match found(mesh, asked, tried, draw) {
        Ok(hop) => format!("{} {}", hop.next.uid, hop.address),
        Err(why) => why.to_string(),
    }
}

fn found(mesh: &Snapshot, asked: &str, tried: &[Arc<str>], draw: u64) -> Result<Hop, NoPassage> {
    let (network, locality) = (Network::new("here"), Locality::default());
    let question = Question {
        snapshot: mesh,
        gateway: mesh::Client {
            network: &network,
            locality: &locality,
            node: "",
            cluster: "",
            namespace: "doors",
            ipv6: false,
        },
        authority: &asked.parse().unwrap(),
        namespace: "default",
        tried,
        draw,
    };
    lead(&question)
}

#[test]
fn a_service_leads_to_its_waypoint_or_to_an_endpoint_of_this_network_and_nothing_else_does() {
    let mesh = mesh();
    for (asked, expected) in [
        ("both.svc:80", "near 10.0.0.1:15008"),
        (
            "abroad.svc:80",
            "no endpoint of default/abroad.svc in network \"here\" can take a tunnel",
        ),
        (
            "plain.svc:80",
            "no endpoint of default/plain.svc in network \"here\" can take a tunnel",
        ),
        (
            "empty.svc:80",
            "no healthy upstream: default/empty.svc: the service has no endpoint",
        ),
        (
            "both.svc:81",
            "no healthy upstream: default/both.svc: the service has no port 81",
        ),
        ("behind.svc:80", "way-0 10.0.0.3:15009"),
        ("beside.svc:80", "way-0 10.0.0.3:15009"),
        (
            "far.svc:80",
            "no endpoint of default/far.svc in network \"here\" can take a tunnel",
        ),
        (
            "astray.svc:80",
            "waypoint default/nowhere.svc:15009 of default/astray.svc not found",
        ),
        (
            "unknown.svc:80",
            "unknown.svc:80 is no service that this gateway has been told of",
        ),
        (
            "10.0.0.1:80",
            "10.0.0.1:80 is an address; an east-west gateway is asked for services, by their names",
        ),
    ] {
        for draw in [0, 1, 2, u64::MAX] {
            assert_eq!(led(&mesh, asked, &[], draw), expected, "{asked}");
        }
    }
}

#[test]
fn a_service_that_is_local_is_led_to_by_no_way_and_why_is_said() {
    let mesh = mesh();
    for (asked, name) in [
        ("local.svc:80", "local"),
        ("guarded.svc:80", "guarded"),
        ("way.svc:15009", "way"),
    ] {
        let expected = format!(
            "service default/{name} is LOCAL: label it istio.io/global=true to let other networks call it"
        );
        for draw in [0, 1, u64::MAX] {
            assert_eq!(led(&mesh, asked, &[], draw), expected, "{asked}");
        }
    }
}

/// No waypoint's rules are known at a gateway: by those it would serve nothing.
#[test]
fn what_explain_says_of_a_service_is_what_becomes_of_a_connection() {
    let mesh = mesh();
    for (asked, answer, because) in [
        ("both.svc:80", "led on", "GLOBAL"),
        ("behind.svc:80", "led on", "GLOBAL"),
        ("local.svc:80", "none", "service default/local is LOCAL"),
        ("plain.svc:80", "none", "no endpoint of default/plain.svc"),
        ("unknown.svc:80", "none", "unknown.svc:80 is no service"),
    ] {
        let shown = explained(&found(&mesh, asked, &[], 0));
        assert_eq!(shown["answer"], answer, "{shown}");
        let said = shown["because"].as_str().unwrap();
        assert!(said.contains(because), "{shown}");
    }
    let shown = explained(&found(&mesh, "behind.svc:80", &[], 0));
    assert_eq!(shown["service"], "default/behind.svc");
    assert_eq!(shown["workload"], "way-0");
    assert_eq!(shown["address"], "10.0.0.3:15009");
}

#[test]
fn who_could_not_be_reached_is_left_for_another_while_there_is_one() {
    let mesh = mesh();
    let tried = |names: &[&str]| -> Vec<Arc<str>> { names.iter().map(|&it| it.into()).collect() };
    for draw in 0..20 {
        let other = led(&mesh, "pair.svc:80", &tried(&["first"]), draw);
        assert_eq!(other, "second 10.0.0.8:15008");
        let all = led(&mesh, "pair.svc:80", &tried(&["first", "second"]), draw);
        assert!(all.ends_with(":15008"), "{all}");
        let alone = led(&mesh, "both.svc:80", &tried(&["near"]), draw);
        assert!(
            alone == "near 10.0.0.1:15008" || alone.contains("no endpoint"),
            "{alone}"
        );
    }
}
