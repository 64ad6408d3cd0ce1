//! Connections that stay: policies that turn against them, pods that go, bytes counted while they live.

use std::time::Duration;

use ops::drain::Drained;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::log;
use crate::on_demand::eventually;
use crate::world::{At, CLIENT, PATIENCE, SERVER, World, cut, greeting};

/// Talks once, so that the connection is certainly carried, and stays open.
async fn talk(tcp: &mut TcpStream) {
    tcp.write_all(b"ping\n").await.unwrap();
    assert_eq!(greeting(tcp).await.unwrap(), "ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_deny_cuts_tunnels_plaintext_and_joined_connections_and_no_others() {
    let mut world = World::new(&[]);
    let far = world.pod("far-s", At::Node(0), &CLIENT).await;
    let near = world.pod("near-s", At::Node(1), &["10.77.0.3"]).await;
    let outsider = world.pod("outsider-s", At::Nowhere, &["10.77.0.4"]).await;
    let server = world.pod("server-s", At::Node(1), &SERVER).await;
    server.serve(9000);
    server.serve(9001);
    let (mut doomed, mut kept) = (Vec::new(), Vec::new());
    for client in [&far, &near, &outsider] {
        for (port, group) in [(9000, &mut doomed), (9001, &mut kept)] {
            let mut tcp = client.connect(server.at(0, port)).await;
            greeting(&mut tcp).await.unwrap();
            talk(&mut tcp).await;
            group.push(tcp);
        }
    }
    world.deny_port("later-s", 9000);
    for tcp in &mut doomed {
        assert!(
            cut(tcp).await,
            "a cut-off connection must not look complete"
        );
    }
    for tcp in &mut kept {
        talk(tcp).await;
    }
    for source in ["10.77.0.1", "10.77.0.3", "10.77.0.4"] {
        let line = log::line(&[&format!("src.addr={source}:"), "inbound", "default/later-s"]).await;
        assert!(
            line.contains("server-s") && line.contains("bytes_recv=5"),
            "{line}"
        );
    }
    // Taken back, it lets new ones in again.
    world.forget_policy("later-s");
    let mut tcp = far.connect(server.at(0, 9000)).await;
    greeting(&mut tcp).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_to_a_policy_that_is_here_already_counts_as_a_change() {
    let mut world = World::new(&[]);
    let client = world.pod("client-t", At::Node(0), &CLIENT).await;
    let server = world.pod("server-t", At::Node(1), &SERVER).await;
    server.serve(9000);
    let mut policy = crate::world::deny_port("selected-t", 9000);
    policy.scope = api::security::Scope::WorkloadSelector.into();
    world.tell(|update| update.set_policy(policy.clone()));
    let mut tcp = client.connect(server.at(0, 9000)).await;
    greeting(&mut tcp).await.unwrap();
    world.change("server-t", |pod| {
        pod.authorization_policies = vec!["default/selected-t".into()]
    });
    assert!(cut(&mut tcp).await);
}

/// A control plane that restarts, or one of its replicas that is behind, may take a workload back and tell of it anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_comes_while_a_workload_is_not_told_of_cuts_when_it_is_told_of_again() {
    let mut world = World::new(&[]);
    let client = world.pod("client-gb", At::Node(0), &CLIENT).await;
    let server = world.pod("server-gb", At::Node(1), &SERVER).await;
    server.serve(9000);
    let mut tcp = client.connect(server.at(0, 9000)).await;
    greeting(&mut tcp).await.unwrap();
    let uid = world.workload("server-gb").uid;
    world.tell(|update| update.addresses.removed.push(uid.as_str().into()));
    world.deny_port("meanwhile-gb", 9000);
    // Nobody can judge it now.
    talk(&mut tcp).await;
    world.tell_pod("server-gb");
    assert!(cut(&mut tcp).await, "it is denied by now");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_connection_outlives_a_policy_that_is_late_but_not_one_that_never_comes() {
    let mut world = World::new(&[]);
    let client = world.pod("client-u", At::Node(0), &CLIENT).await;
    let server = world.pod("server-u", At::Node(1), &SERVER).await;
    server.serve(9000);
    let mut tcp = client.connect(server.at(0, 9000)).await;
    greeting(&mut tcp).await.unwrap();
    world.change("server-u", |pod| {
        pod.authorization_policies = vec!["default/never-u".into()]
    });
    talk(&mut tcp).await;
    assert!(cut(&mut tcp).await);
    log::line(&["client-u", "inbound", "default/never-u"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_removed_in_the_middle_takes_its_connections_along_and_they_are_reported() {
    for (suffix, at) in [("va", At::Node(1)), ("vb", At::Node(0))] {
        for removed in ["client", "server"] {
            let mut world = World::new(&[]);
            let client_name = format!("client-{suffix}-{removed}");
            let client = world.pod(&client_name, At::Node(0), &CLIENT).await;
            let server = world
                .pod(&format!("server-{suffix}-{removed}"), at, &SERVER)
                .await;
            server.serve(9000);
            let mut tcp = client.connect(server.at(0, 9000)).await;
            greeting(&mut tcp).await.unwrap();
            talk(&mut tcp).await;
            let (pod, node) = match removed {
                "client" => (client.pod.clone(), 0),
                _ => (server.pod.clone(), if suffix == "va" { 1 } else { 0 }),
            };
            let pod = pod.unwrap();
            let drained = pod.stop(&world.nodes[node].node, Duration::ZERO).await;
            assert!(matches!(drained, Drained::Cut(_)), "{drained:?}");
            cut(&mut tcp).await;
            world.quiet().await;
            for direction in ["outbound", "inbound"] {
                let line = log::line(&[&client_name, direction]).await;
                let (sent, received) = if direction == "outbound" {
                    (5, 15)
                } else {
                    (15, 5)
                };
                assert!(
                    line.contains(&format!("bytes_sent={sent} bytes_recv={received}")),
                    "{line}"
                );
            }
            assert!(
                world.nodes[node]
                    .node
                    .pods
                    .of_workload(&pod.workload_uid())
                    .is_none()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_a_living_connection_are_in_the_metrics_and_it_is_listed() {
    for (suffix, at) in [("wa", At::Node(1)), ("wb", At::Node(0))] {
        let mut world = World::new(&[]);
        let client = world
            .pod(&format!("client-{suffix}"), At::Node(0), &CLIENT)
            .await;
        let server = world.pod(&format!("server-{suffix}"), at, &SERVER).await;
        server.serve(9000);
        let mut tcp = client.connect(server.at(0, 9000)).await;
        greeting(&mut tcp).await.unwrap();
        for round in 1..=3 {
            talk(&mut tcp).await;
            // An echo may be back before what was sent is counted.
            eventually("what was sent is counted", || {
                let node = &world.nodes[0];
                node.node.connections.settle();
                node.metric("istio_tcp_sent_bytes_total", &["reporter=\"source\""]) == 5 * round
            })
            .await;
        }
        let listed = world.nodes[0]
            .node
            .connections
            .of_pod(&format!("uid-client-{suffix}"));
        let [shown] = &listed.outbound[..] else {
            panic!("{listed:?}")
        };
        assert_eq!(shown.original_dst, server.at(0, 9000));
        assert!(listed.inbound.is_empty());
        drop(tcp);
        tokio::time::timeout(PATIENCE, world.quiet()).await.unwrap();
        let sent = world.nodes[0].metric("istio_tcp_sent_bytes_total", &["reporter=\"source\""]);
        assert_eq!(sent, 15);
    }
}
