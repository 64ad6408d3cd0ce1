//! What is not let in, and that it changes nothing.

use api::{security, workload as wire};
use mesh::{Mesh, ParseError, Payload, Policy, Service, Update, Workload};

fn workload() -> wire::Workload {
    wire::Workload {
        uid: "uid".to_owned(),
        ..Default::default()
    }
}

fn service() -> wire::Service {
    wire::Service {
        namespace: "ns".to_owned(),
        hostname: "web".to_owned(),
        ..Default::default()
    }
}

fn address(bytes: &[u8], length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: String::new(),
        address: bytes.to_vec().into(),
        length,
    }
}

#[test]
fn workloads_that_mean_nothing_are_refused() {
    let gateway = |destination| wire::GatewayAddress {
        destination,
        hbone_mtls_port: 15008,
    };
    let to = |bytes: &[u8]| {
        gateway(Some(wire::gateway_address::Destination::Address(address(
            bytes, None,
        ))))
    };
    let ports = |ports| [("ns/web".to_owned(), wire::PortList { ports })].into();
    let port = |service_port, target_port, app_protocol| wire::Port {
        service_port,
        target_port,
        app_protocol,
    };
    let cases = [
        (
            wire::Workload {
                uid: String::new(),
                ..workload()
            },
            "field uid is missing",
        ),
        (
            wire::Workload {
                addresses: vec![vec![1, 2, 3].into()],
                ..workload()
            },
            "field addresses: an address of 3 bytes",
        ),
        (
            wire::Workload {
                addresses: vec![vec![].into()],
                ..workload()
            },
            "field addresses: an address of 0 bytes",
        ),
        (
            wire::Workload {
                tunnel_protocol: 9,
                ..workload()
            },
            "field tunnel_protocol: unknown value 9",
        ),
        (
            wire::Workload {
                status: -1,
                ..workload()
            },
            "field status: unknown value -1",
        ),
        (
            wire::Workload {
                network_mode: 2,
                ..workload()
            },
            "field network_mode: unknown value 2",
        ),
        (
            wire::Workload {
                workload_type: 4,
                ..workload()
            },
            "field workload_type: unknown value 4",
        ),
        (
            wire::Workload {
                waypoint: Some(gateway(None)),
                ..workload()
            },
            "field waypoint is missing",
        ),
        (
            wire::Workload {
                network_gateway: Some(to(&[1])),
                ..workload()
            },
            "field network_gateway: an address of 1 bytes",
        ),
        (
            wire::Workload {
                services: ports(vec![port(65536, 1, 0)]),
                ..workload()
            },
            "field service_port: 65536 is not a port",
        ),
        (
            wire::Workload {
                services: ports(vec![port(1, 70000, 0)]),
                ..workload()
            },
            "field target_port: 70000 is not a port",
        ),
        (
            wire::Workload {
                services: ports(vec![port(1, 1, 6)]),
                ..workload()
            },
            "field app_protocol: unknown value 6",
        ),
        (
            wire::Workload {
                services: [("web".to_owned(), Default::default())].into(),
                ..workload()
            },
            "field services: namespace/host is missing",
        ),
    ];
    for (message, reason) in cases {
        assert_eq!(Workload::try_from(message).unwrap_err().to_string(), reason);
    }
    assert!(Workload::try_from(workload()).is_ok());
}

#[test]
fn services_that_mean_nothing_are_refused() {
    let balanced = |routing_preference, mode, health_policy| wire::Service {
        load_balancing: Some(wire::LoadBalancing {
            routing_preference,
            mode,
            health_policy,
        }),
        ..service()
    };
    let vip = |bytes: &[u8], length| wire::Service {
        addresses: vec![address(bytes, length)],
        ..service()
    };
    let cases = [
        (
            wire::Service {
                namespace: String::new(),
                ..service()
            },
            "field namespace is missing",
        ),
        (
            wire::Service {
                hostname: String::new(),
                ..service()
            },
            "field hostname is missing",
        ),
        (vip(&[1; 5], None), "field addresses: an address of 5 bytes"),
        (
            vip(&[1; 4], Some(33)),
            "field addresses: prefix length 33 is too long",
        ),
        (
            vip(&[1; 16], Some(129)),
            "field addresses: prefix length 129 is too long",
        ),
        (
            vip(&[1; 4], Some(256)),
            "field addresses: prefix length 256 is too long",
        ),
        (
            balanced(vec![0], 0, 0),
            "field load_balancing.routing_preference: unknown value 0",
        ),
        (
            balanced(vec![7], 0, 0),
            "field load_balancing.routing_preference: unknown value 7",
        ),
        (
            balanced(vec![], 4, 0),
            "field load_balancing.mode: unknown value 4",
        ),
        (
            balanced(vec![], 0, 2),
            "field load_balancing.health_policy: unknown value 2",
        ),
        (
            wire::Service {
                ip_families: 4,
                ..service()
            },
            "field ip_families: unknown value 4",
        ),
        (
            wire::Service {
                visibility: 2,
                ..service()
            },
            "field visibility: unknown value 2",
        ),
    ];
    for (message, reason) in cases {
        assert_eq!(Service::try_from(message).unwrap_err().to_string(), reason);
    }
    assert!(Service::try_from(vip(&[10, 1, 2, 3], Some(8))).is_ok());
    // What a service says to others only.
    let extended = wire::Service {
        extensions: vec![Default::default()],
        ingress_use_waypoint: true,
        ..service()
    };
    assert!(Service::try_from(extended).is_ok());
}

#[test]
fn a_service_is_global_only_where_that_is_said() {
    for (name, expected) in [
        ("ambit.io/global", true),
        ("ambit.io/udp", false),
        ("", false),
    ] {
        let extension = wire::Extension {
            name: name.to_owned(),
            config: None,
        };
        let told = wire::Service {
            extensions: vec![extension],
            ..service()
        };
        assert_eq!(Service::try_from(told).unwrap().global, expected, "{name}");
    }
    assert!(!Service::try_from(service()).unwrap().global);
}

#[test]
fn policies_that_mean_nothing_are_refused() {
    let policy = || security::Authorization {
        name: "p".to_owned(),
        namespace: "ns".to_owned(),
        ..Default::default()
    };
    let matching = |found| security::Authorization {
        groups: vec![security::Group {
            rules: vec![security::Rules {
                matches: vec![found],
            }],
        }],
        ..policy()
    };
    let net = |bytes: &[u8], length| {
        vec![security::Address {
            address: bytes.to_vec().into(),
            length,
        }]
    };
    let empty = || vec![security::StringMatch { match_type: None }];
    let cases = [
        (
            security::Authorization {
                name: String::new(),
                ..policy()
            },
            "field name is missing",
        ),
        (
            security::Authorization {
                scope: 3,
                ..policy()
            },
            "field scope: unknown value 3",
        ),
        (
            security::Authorization {
                action: 2,
                ..policy()
            },
            "field action: unknown value 2",
        ),
        (
            matching(security::Match {
                principals: empty(),
                ..Default::default()
            }),
            "field principals: a match of no kind",
        ),
        (
            matching(security::Match {
                source_ips: net(&[1; 3], 1),
                ..Default::default()
            }),
            "field source_ips: an address of 3 bytes",
        ),
        (
            matching(security::Match {
                not_source_ips: net(&[1; 4], 40),
                ..Default::default()
            }),
            "field not_source_ips: prefix length 40 is too long",
        ),
        (
            matching(security::Match {
                destination_ports: vec![1 << 16],
                ..Default::default()
            }),
            "field destination_ports: 65536 is not a port",
        ),
    ];
    for (message, reason) in cases {
        assert_eq!(Policy::try_from(message).unwrap_err().to_string(), reason);
    }
    assert!(Policy::try_from(policy()).is_ok());
}

#[test]
fn what_is_refused_leaves_the_last_good_one_and_does_not_stop_the_others() {
    let (mesh, mut writer) = Mesh::new();
    let mut update = Update::default();
    update.set_workload(wire::Workload {
        node: "good".to_owned(),
        ..workload()
    });
    assert_eq!(writer.apply(update), []);

    let mut update = Update::default();
    update.set_workload(wire::Workload {
        node: "bad".to_owned(),
        status: 7,
        ..workload()
    });
    update.set_service(service());
    update
        .addresses
        .set
        .push(("nothing".into(), Payload::Message(wire::Address::default())));
    update
        .addresses
        .set
        .push(("garbage".into(), Payload::Bytes(vec![0xff; 3].into())));
    update.addresses.set.push(("misnamed".into(), {
        Payload::Message(wire::Address {
            r#type: Some(wire::address::Type::Service(service())),
        })
    }));
    update
        .authorizations
        .set
        .push(("ns/p".into(), Payload::Message(Default::default())));
    let rejected = writer.apply(update);
    let names: Vec<_> = rejected.iter().map(|rejected| &*rejected.name).collect();
    assert_eq!(names, ["ns/p", "uid", "nothing", "garbage", "misnamed"]);
    assert_eq!(
        rejected[4].reason,
        ParseError::NameMismatch("ns/web".to_owned())
    );
    assert!(matches!(rejected[3].reason, ParseError::Undecodable(_)));
    let snapshot = mesh.load();
    assert_eq!(&*snapshot.workload("uid").unwrap().node, "good");
    assert!(snapshot.service("ns", "web").is_some());
}

#[test]
fn defaults_of_an_identity_are_applied_when_it_is_read() {
    let bare = Workload::try_from(wire::Workload {
        namespace: "ns".to_owned(),
        ..workload()
    })
    .unwrap();
    assert_eq!(bare.identity_parts(), ("cluster.local", "ns", "default"));
    let full = wire::Workload {
        trust_domain: "td".to_owned(),
        service_account: "sa".to_owned(),
        ..workload()
    };
    assert_eq!(
        Workload::try_from(full).unwrap().identity_parts(),
        ("td", "", "sa")
    );
}

#[test]
fn a_waypoint_is_drawn_by_weight_and_falls_back() {
    let waypoint = |host: &str| wire::GatewayAddress {
        hbone_mtls_port: 15008,
        destination: Some(wire::gateway_address::Destination::Hostname(
            wire::NamespacedHostname {
                namespace: "ns".to_owned(),
                hostname: host.to_owned(),
            },
        )),
    };
    let drawn = |weights: [u32; 2]| {
        let weighted = |(host, weight)| wire::WeightedWaypoint {
            destination: Some(waypoint(host)),
            weight,
        };
        let service = Service::try_from(wire::Service {
            waypoint: Some(waypoint("primary")),
            weighted_waypoints: ["one", "two"]
                .into_iter()
                .zip(weights)
                .map(weighted)
                .collect(),
            ..service()
        });
        let service = service.unwrap();
        (0..8)
            .map(|draw| service.draw_waypoint(draw).unwrap().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        drawn([1, 3])[..4],
        [
            "ns/one:15008",
            "ns/two:15008",
            "ns/two:15008",
            "ns/two:15008"
        ]
    );
    assert!(
        drawn([0, 5])
            .iter()
            .all(|waypoint| waypoint == "ns/two:15008")
    );
    assert!(
        drawn([0, 0])
            .iter()
            .all(|waypoint| waypoint == "ns/primary:15008")
    );
}
