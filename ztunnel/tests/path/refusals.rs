//! What is refused, how both ends say so, and that nothing of it reaches the app.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api::{security, workload as wire};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::log;
use crate::world::{
    At, CLIENT, PATIENCE, SERVER, World, WorldPod, deny_port, echo, greeting, service, strict,
};

/// Listens and counts the connections that get through.
fn count(server: &WorldPod, port: u16) -> Arc<AtomicUsize> {
    let (listener, count) = (server.listen(port), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_connection_is_reset_and_both_ends_say_why() {
    for (suffix, at, node) in [("ka", At::Node(1), 1), ("kb", At::Node(0), 0)] {
        let (client_name, server_name) = (format!("client-{suffix}"), format!("server-{suffix}"));
        let mut world = World::new(&[]);
        let client = world.pod(&client_name, At::Node(0), &CLIENT).await;
        let server = world.pod(&server_name, at, &SERVER).await;
        world.deny_port("deny-9999", 9999);
        let reached = count(&server, 9999);
        for family in [0, 1] {
            client.is_reset(server.at(family, 9999)).await;
        }
        let named =
            "connection closed due to policy rejection: explicitly denied by: default/deny-9999";
        let inbound = log::line(&[&client_name, "inbound", "dst.hbone_addr=10.77.0.2:9999"]).await;
        assert!(
            inbound.starts_with("error\taccess\tconnection complete") && inbound.contains(named),
            "{inbound}"
        );
        for field in [
            "policy=\"default/deny-9999\"",
            "response_flags=\"DENY\"",
            "hint=\"the AuthorizationPolicy that the error names",
        ] {
            assert!(inbound.contains(field), "{field}: {inbound}");
        }
        let outbound =
            log::line(&[&client_name, "outbound", "dst.hbone_addr=10.77.0.2:9999"]).await;
        assert!(
            outbound.starts_with("error\t") && outbound.contains("error="),
            "{outbound}"
        );
        assert!(outbound.contains("bytes_sent=0 bytes_recv=0"), "{outbound}");
        assert!(outbound.contains("response_flags=\"DENY\""), "{outbound}");
        assert!(
            outbound.contains("ambit explain SRC DST:PORT"),
            "{outbound}"
        );
        world.quiet().await;
        assert_eq!(reached.load(Ordering::Relaxed), 0);
        let parts = ["reporter=\"destination\"", "response_flags=\"DENY\""];
        let failed = "istio_tcp_connections_failed_total";
        world.nodes[node].counts(failed, &parts, 2).await;
        let parts = ["reporter=\"source\"", "response_flags=\"DENY\""];
        world.nodes[0].counts(failed, &parts, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_revoked_is_refused_by_the_other_end_which_says_so() {
    for (revoked, judge) in [("server", 0), ("client", 1)] {
        let names = ["client", "server"].map(|name| format!("{name}-rv{judge}"));
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("ca-crl.pem");
        let mut world = World::new(&["--crl-path", list.to_str().unwrap()]);
        let client = world.pod(&names[0], At::Node(0), &CLIENT).await;
        let server = world.pod(&names[1], At::Node(1), &SERVER).await;
        server.serve(8080);
        let to = server.at(0, 8080);
        greeting(&mut client.connect(to).await).await.unwrap();
        let mut open = client.connect(to).await;
        greeting(&mut open).await.unwrap();

        let held = &world.nodes[1 - judge].node.certificates;
        let mut held = held.states().into_iter();
        let theirs = held.find(|it| it.identity.service_account().starts_with(revoked));
        let theirs = theirs.and_then(|it| it.certificate).unwrap();
        let leaf = CertificateDer::from_pem_slice(theirs.chain()[0].pem.as_bytes()).unwrap();
        let fresh = dir.path().join("fresh");
        std::fs::write(&fresh, world.ca.revoking(&leaf)).unwrap();
        std::fs::rename(&fresh, &list).unwrap();

        let flag = "response_flags=\"CERT_REVOKED\"";
        let since = Instant::now();
        while !world.nodes[judge].metrics().contains(flag) {
            assert!(since.elapsed() < PATIENCE, "the list has no effect");
            // What is under way when the list comes passes.
            if let Ok(mut tcp) = client.try_connect(to).await {
                let _ = greeting(&mut tcp).await;
            }
        }
        client.is_reset(to).await;
        let line = log::line(&[&names[1], "the peer's certificate was revoked"]).await;
        assert!(line.contains("error="), "{line}");
        // The client hears from the server that it is its own.
        if judge == 1 {
            let said = "the peer refused our handshake: certificate revoked";
            let told = [names[0].as_str(), "outbound", said];
            let since = Instant::now();
            // The end of the connection may overtake the word.
            while log::lines(&told).is_empty() {
                assert!(since.elapsed() < PATIENCE, "it does not hear why");
                client.is_reset(to).await;
            }
            let line = log::line(&told).await;
            for part in ["CERT_REVOKED", "this end's own workload"] {
                assert!(line.contains(part), "{part}: {line}");
            }
        }
        // So was what was open, by whoever has the list.
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, open.read_to_end(&mut rest));
        assert!(ended.await.is_ok(), "it goes on");
        let line = log::line(&[&names[1], "that carried the tunnel was cut"]).await;
        let direction = ["outbound", "inbound"][judge];
        for part in [direction, "CERT_REVOKED", "hint="] {
            assert!(line.contains(part), "{part}: {line}");
        }
        // Who does not believe the other one counts it; who hears that it is not believed does not.
        let rejections = |at: usize| {
            let reporter = ["reporter=\"source\"", "reporter=\"destination\""][at];
            world.nodes[at].metric("istio_crl_policy_rejections_total", &[reporter])
        };
        assert!(rejections(judge) > 0);
        assert_eq!(rejections(1 - judge), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_lets_a_connection_in_is_named_at_its_destination() {
    for (suffix, at) in [("let-a", At::Node(1)), ("let-b", At::Node(0))] {
        let (client_name, server_name) = (format!("client-{suffix}"), format!("server-{suffix}"));
        let mut world = World::new(&[]);
        let client = world.pod(&client_name, At::Node(0), &CLIENT).await;
        let server = world.pod(&server_name, at, &SERVER).await;
        server.serve(9000);
        world.tell(|update| {
            let allow = security::Action::Allow.into();
            update.set_policy(security::Authorization {
                action: allow,
                ..deny_port("let-9000", 9000)
            });
        });
        let mut tcp = client.connect(server.at(0, 9000)).await;
        greeting(&mut tcp).await.unwrap();
        echo(tcp, b"hello").await;
        let inbound = log::line(&[&client_name, "inbound"]).await;
        assert!(inbound.contains("policy=\"default/let-9000\""), "{inbound}");
        let outbound = log::line(&[&client_name, "outbound"]).await;
        assert!(!outbound.contains("policy="), "{outbound}");
        for line in [inbound, outbound] {
            assert!(
                !line.contains("hint=") && !line.contains("response_flags="),
                "{line}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_refuses_plaintext_and_nothing_else() {
    let mut world = World::new(&[]);
    let client = world.pod("client-l", At::Node(0), &CLIENT).await;
    let outsider = world
        .pod("outsider-l", At::Nowhere, &["10.77.0.3", "fd77::3"])
        .await;
    let policy = "istio-system/istio_converted_static_strict";
    world.tell(|update| update.set_policy(strict()));
    let server = world
        .pod_with("server-l", At::Node(1), &SERVER, |pod| {
            pod.authorization_policies = vec![policy.into()]
        })
        .await;
    server.serve(9000);
    for family in [0, 1] {
        outsider.is_reset(server.at(family, 9000)).await;
        let mut tcp = client.connect(server.at(family, 9000)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[family]);
        echo(tcp, b"x").await;
    }
    let line = log::line(&["server-l", "src.addr=10.77.0.3", "inbound"]).await;
    assert!(
        line.contains(&format!("explicitly denied by: {policy}")),
        "{line}"
    );
}

/// It believes the header that we write before a tunnel's bytes: whoever could write one in plain text could be anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_captured_waypoint_is_told_who_calls_by_nobody_else() {
    const OUTSIDE: [&str; 2] = ["10.77.0.3", "fd77::3"];
    let mut world = World::new(&[]);
    let outsider = world.pod("outsider-hd", At::Nowhere, &OUTSIDE).await;
    let waypoint = world
        .pod_with("waypoint-hd", At::Node(1), &SERVER, |pod| {
            pod.application_tunnel = Some(wire::ApplicationTunnel {
                protocol: 1,
                port: 15088,
            });
        })
        .await;
    let reached = count(&waypoint, 15088);
    waypoint.serve(9000);
    for (family, from) in OUTSIDE.iter().enumerate() {
        outsider.is_reset(waypoint.at(family, 15088)).await;
        // Its other ports are as any.
        let mut tcp = outsider.connect(waypoint.at(family, 9000)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), *from);
        echo(tcp, b"x").await;
    }
    let line = log::line(&[
        "waypoint-hd",
        "src.addr=10.77.0.3",
        "dst.addr=10.77.0.2:15088",
    ])
    .await;
    assert!(
        line.contains("port 15088 takes connections of the mesh only"),
        "{line}"
    );
    world.quiet().await;
    assert_eq!(reached.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_comes_late_is_waited_for_and_one_that_never_comes_denies() {
    for (suffix, at) in [("ma", At::Node(1)), ("mb", At::Node(0))] {
        let mut world = World::new(&[]);
        let client = world
            .pod(&format!("client-{suffix}"), At::Node(0), &CLIENT)
            .await;
        let late = vec!["default/late".to_owned()];
        let server_name = format!("server-{suffix}");
        let server = world
            .pod_with(&server_name, at, &SERVER, |pod| {
                pod.authorization_policies = late.clone()
            })
            .await;
        server.serve(9000);
        let mut tcp = client.connect(server.at(0, 9000)).await;
        let held = tokio::time::timeout(Duration::from_millis(300), greeting(&mut tcp)).await;
        assert!(held.is_err(), "held, neither served nor refused");
        world.deny_port("late", 9999);
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);

        world.change(&server_name, |pod| {
            pod.authorization_policies = vec!["default/never".into()]
        });
        client.is_reset(server.at(0, 9000)).await;
        let line = log::line(&[&format!("client-{suffix}"), "inbound", "default/never"]).await;
        assert!(line.starts_with("error\t"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impostor_is_refused_before_any_byte() {
    let mut world = World::new(&[]);
    let client = world.pod("client-n", At::Node(0), &CLIENT).await;
    let server = world.pod("server-n", At::Node(1), &SERVER).await;
    // The source's control plane says that somebody else lives at that address.
    let mut elsewhere = world.workload("server-n");
    elsewhere.service_account = "somebody-else".into();
    world.tell_node(0, |update| update.set_workload(elsewhere.clone()));
    let reached = count(&server, 9000);
    client.is_reset(server.at(0, 9000)).await;
    let line = log::line(&["\"client-n\"", "outbound"]).await;
    assert!(
        line.contains("sa/somebody-else") && line.contains("sa/server-n"),
        "names both: {line}"
    );
    world.quiet().await;
    assert_eq!(reached.load(Ordering::Relaxed), 0);
    let parts = ["reporter=\"source\"", "response_flags=\"IDENTITY_ERROR\""];
    let failed = "istio_tcp_connections_failed_total";
    world.nodes[0].counts(failed, &parts, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_made_anew_is_not_entered_for_the_address_of_its_predecessor() {
    let mut world = World::new(&[]);
    let client = world.pod("client-mv", At::Node(0), &CLIENT).await;
    let server = world.pod("server-mv", At::Node(0), &SERVER).await;
    // Somebody else has the old addresses, and the control plane still gives them for the pod.
    let heir = world
        .pod("heir-mv", At::Nowhere, &["10.77.0.99", "fd77::99"])
        .await;
    let reached = [count(&server, 9000), count(&heir, 9000)];
    let (old, own) = (
        [heir.address(0), heir.address(1)],
        [server.address(0), server.address(1)],
    );
    world.change("server-mv", |pod| pod.addresses = old.to_vec());
    for family in [0, 1] {
        client.is_reset(heir.at(family, 9000)).await;
    }
    let refused = "ip mismatch: 10.77.0.99 is no address of pod server-mv";
    for direction in ["inbound", "outbound"] {
        log::line(&["client-mv", direction, refused]).await;
    }
    world.quiet().await;
    assert!(reached.iter().all(|n| n.load(Ordering::Relaxed) == 0));
    // The news arrives.
    world.change("server-mv", |pod| pod.addresses = own.to_vec());
    server.serve(9001);
    for family in [0, 1] {
        let mut tcp = client.connect(server.at(family, 9001)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[family]);
        echo(tcp, b"x").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_a_connection_waits_and_then_hears_why() {
    let mut world = World::new(&[]);
    let server = world.pod("server-o", At::Node(1), &SERVER).await;
    server.serve(9000);
    let known = world.pod("known-o", At::Node(0), &["10.77.0.3"]).await;
    let mut tcp = known.connect(server.at(0, 9000)).await;
    greeting(&mut tcp).await.unwrap();
    echo(tcp, b"x").await;

    world.ca.set_down(true);
    let new = world.pod("new-o", At::Node(0), &CLIENT).await;
    new.is_reset(server.at(0, 9000)).await;
    let line = log::line(&["new-o", "outbound"]).await;
    assert!(
        line.contains("no certificate for spiffe://cluster.local/ns/default/sa/new-o"),
        "{line}"
    );
    // Identities that have one do not notice.
    let mut tcp = known.connect(server.at(0, 9000)).await;
    greeting(&mut tcp).await.unwrap();
    echo(tcp, b"x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_resets_the_client_and_is_named_at_both_ends() {
    for (suffix, at) in [("pa", At::Node(1)), ("pb", At::Node(0))] {
        let mut world = World::new(&[]);
        let client_name = format!("client-{suffix}");
        let client = world.pod(&client_name, At::Node(0), &CLIENT).await;
        let server = world.pod(&format!("server-{suffix}"), at, &SERVER).await;
        client.is_reset(server.at(0, 4444)).await;
        let inbound = log::line(&[&client_name, "inbound"]).await;
        assert!(
            inbound.contains("error=\"connection failed: Connection refused (os error 111)\""),
            "{inbound}"
        );
        assert!(
            log::line(&[&client_name, "outbound"])
                .await
                .contains("error=")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_ports_are_never_carried_to() {
    let mut world = World::new(&[]);
    let client = world.pod("client-q", At::Node(0), &CLIENT).await;
    let near = world.pod("near-q", At::Node(0), &["10.77.0.3"]).await;
    let far = world.pod("far-q", At::Node(1), &SERVER).await;
    for server in [&near, &far] {
        for port in [15001, 15006, 15008] {
            client.is_reset(server.at(0, port)).await;
        }
    }
    client.is_reset(client.at(0, 15001)).await;
    client.is_reset("127.0.0.1:15001".parse().unwrap()).await;
    client.is_reset("[::1]:15001".parse().unwrap()).await;
    // Of the pod, but not of its workload: the control plane does not know of every address.
    world.change("client-q", |pod| pod.addresses.clear());
    client.is_reset(client.at(1, 15001)).await;
    client.is_reset(client.at(0, 15006)).await;
    log::line(&[
        "src.addr=10.77.0.1",
        "dst.addr=10.77.0.1:15001",
        "attempted recursive call to ourselves",
    ])
    .await;
}

/// Let through, it would be ours again as soon as it was sent, until the pod is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_datagram_to_our_own_door_is_not_sent_there_again() {
    let mut world = World::new(&[]);
    let pod = world
        .pod_with("round-u", At::Node(0), &CLIENT, |pod| {
            let name = api::UDP_EXTENSION.to_owned();
            pod.extensions = vec![wire::Extension { name, config: None }];
        })
        .await;
    for (own, door) in [
        ("127.0.0.1:0", "127.0.0.1:15006"),
        ("[::1]:0", "[::1]:15006"),
        ("127.0.0.1:0", "127.0.0.1:15001"),
    ] {
        let app = pod.udp(own.parse().unwrap());
        // So that somebody else can have its address beside it.
        SockRef::from(&app).set_reuse_address(true).unwrap();
        let (from, to) = (
            format!("src.addr={}", app.local_addr().unwrap()),
            format!("dst.addr={door}"),
        );
        let refused = [&*from, &*to, "attempted recursive call to ourselves"];
        let since = Instant::now();
        let told = loop {
            // The door opens a moment after the pod is told of; before that nobody listens there.
            let _ = app.send_to(b"round and round", door).await;
            let told = tokio::time::timeout(Duration::from_millis(100), log::line(&refused));
            match told.await {
                Ok(line) => break line,
                Err(_) => assert!(since.elapsed() < PATIENCE, "{door}: it is not refused"),
            }
        };
        assert!(told.contains("response_flags=\"CONNECT\""), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_endpoints_and_a_lost_waypoint_refuse() {
    let mut world = World::new(&[]);
    let client = world.pod("client-r", At::Node(0), &CLIENT).await;
    world.tell(|update| {
        update.set_service(service("empty-r.svc", &["10.78.0.1"], &[(80, 80)]));
        let mut guarded = service("guarded-r.svc", &["10.78.0.2"], &[(80, 80)]);
        let named = wire::NamespacedHostname {
            namespace: "default".into(),
            hostname: "lost-r.svc".into(),
        };
        guarded.waypoint = Some(wire::GatewayAddress {
            destination: Some(wire::gateway_address::Destination::Hostname(named)),
            hbone_mtls_port: 15008,
        });
        update.set_service(guarded);
    });
    for (vip, reason, hint) in [
        (
            "10.78.0.1:80",
            "no healthy upstream",
            "the Service's selector",
        ),
        (
            "10.78.0.2:80",
            "waypoint default/lost-r.svc",
            "label istio.io/use-waypoint",
        ),
    ] {
        client.is_reset(vip.parse().unwrap()).await;
        let line = log::line(&[&format!("dst.addr={vip}"), reason]).await;
        assert!(
            line.starts_with("warn\taccess\tconnection failed"),
            "{line}"
        );
        assert!(line.contains(&format!("hint=\"{hint}")), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_certificate_gets_nothing_at_the_tunnel_port_and_disturbs_nobody() {
    let mut world = World::new(&[]);
    let client = world.pod("client-y", At::Node(0), &CLIENT).await;
    let outsider = world.pod("outsider-y", At::Nowhere, &["10.77.0.203"]).await;
    let server = world.pod("server-y", At::Node(1), &SERVER).await;
    server.serve(9000);
    let mut open = client.connect(server.at(0, 9000)).await;
    greeting(&mut open).await.unwrap();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut tcp = outsider.connect(server.at(0, 15008)).await;
        tcp.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer))
            .await
            .unwrap();
        assert!(answer.len() < 16, "a TLS alert at most: {answer:?}");
    }
    let line = log::line(&["src.addr=10.77.0.203", "dst.addr=10.77.0.2:15008"]).await;
    assert!(
        line.starts_with("warn\taccess\tconnection failed") && line.contains("error="),
        "{line}"
    );
    let node = &world.nodes[1];
    let tls = ["reason=\"tls\""];
    node.counts("ambit_tunnel_refusals_total", &tls, 2).await;
    let parts = [
        "response_flags=\"TLS_FAILURE\"",
        "destination_workload=\"server-y\"",
    ];
    node.counts("istio_tcp_connections_failed_total", &parts, 2)
        .await;
    echo(open, b"undisturbed").await;
}
