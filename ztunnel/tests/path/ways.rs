//! The ways through a node, and what is reported of each.

use api::workload as wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::log;
use crate::on_demand::eventually;
use crate::world::{At, CLIENT, PATIENCE, SERVER, World, echo, greeting, service};

#[tokio::test(flavor = "multi_thread")]
async fn bytes_cross_nodes_in_a_tunnel_and_the_app_sees_its_client() {
    let mut world = World::new(&[]);
    let client = world.pod("client-a", At::Node(0), &CLIENT).await;
    let server = world.pod("server-a", At::Node(1), &SERVER).await;
    server.serve(9000);
    for family in [0, 1] {
        let mut tcp = client.connect(server.at(family, 9000)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[family]);
        echo(tcp, &vec![7; 300_000]).await;
    }
    world.quiet().await;
    let pooled = world.nodes[0].pool.stats();
    assert_eq!(
        (pooled.connections, pooled.streams),
        (2, 0),
        "one tunnel connection per family, now idle"
    );
}

/// As of a virtual machine in a pod (`istio.io/reroute-virtual-interfaces`): its address means nothing outside of the pod, and
/// cannot be what a connection of the pod's proxy comes from.
#[tokio::test(flavor = "multi_thread")]
async fn who_lives_behind_an_interface_of_a_pod_calls_as_that_pod() {
    let mut world = World::new(&[]);
    let host = world.pod("host-vm", At::Node(0), &CLIENT).await;
    let guest = world.behind("guest-vm", "host-vm");
    let near = ["10.77.0.3", "fd77::3"];
    let near = world.pod("near-vm", At::Node(0), &near).await;
    let far = world.pod("far-vm", At::Node(1), &SERVER).await;
    let outside = ["10.77.0.4", "fd77::4"];
    let outside = world.pod("outside-vm", At::Nowhere, &outside).await;
    for server in [&near, &far, &outside] {
        server.serve(9000);
        let mut tcp = guest.connect(server.at(0, 9000)).await;
        let seen = greeting(&mut tcp).await.unwrap();
        assert_eq!(seen, host.ips[0].to_string(), "{}", server.ips[0]);
        echo(tcp, b"x").await;
    }
    let from = format!("src.addr={}:", guest.ips[0]);
    let line = log::line(&[&from, "outbound", "far-vm"]).await;
    assert!(line.contains("ns/default/sa/host-vm"), "{line}");
}

/// As of a StatefulSet: what is told first is of the pod that had its name before, with another address.
#[tokio::test(flavor = "multi_thread")]
async fn tunnels_of_a_pod_go_with_it_whatever_address_was_told_first() {
    let mut world = World::new(&[]);
    let client = world
        .pod_with("client-was", At::Node(0), &CLIENT, |pod| {
            pod.addresses = vec![vec![10_u8, 77, 0, 99].into()];
        })
        .await;
    let server = world.pod("server-was", At::Node(1), &SERVER).await;
    server.serve(9000);
    world.change("client-was", |pod| {
        pod.addresses = vec![client.address(0), client.address(1)];
    });
    let mut tcp = client.connect(server.at(0, 9000)).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
    echo(tcp, b"x").await;
    world.quiet().await;
    let pool = world.nodes[0].pool.clone();
    assert_eq!(pool.stats().connections, 1);
    let pod = client.pod.as_ref().unwrap();
    pod.stop(&world.nodes[0].node, PATIENCE).await;
    assert_eq!(pool.stats().connections, 0, "nobody can use it any more");
}

/// The fields and their order are those that Istio's ztunnel wrote in the same situation.
#[tokio::test(flavor = "multi_thread")]
async fn both_ends_report_as_istio_does() {
    let mut world = World::new(&[]);
    let client = world.pod("client-b", At::Node(0), &CLIENT).await;
    let server = world.pod("server-b", At::Node(1), &SERVER).await;
    server.serve(9000);
    let mut tcp = client.connect(server.at(0, 9000)).await;
    let hello = greeting(&mut tcp).await.unwrap().len() as u64 + 1;
    echo(tcp, b"hello").await;

    let outbound = log::line(&["client-b", "outbound"]).await;
    let inbound = log::line(&["client-b", "inbound"]).await;
    let golden = include_str!("../../testdata/admin/access-log-client-node.txt")
        .lines()
        .next()
        .unwrap();
    for line in [&outbound, &inbound] {
        assert_eq!(keys(line), keys(golden), "{line}");
        assert!(
            line.starts_with("info\taccess\tconnection complete\t"),
            "{line}"
        );
        assert!(
            line.contains(
                "dst.addr=10.77.0.2:15008 dst.hbone_addr=10.77.0.2:9000 dst.workload=\"server-b\""
            ),
            "{line}"
        );
        assert!(
            line.contains("src.identity=\"spiffe://cluster.local/ns/default/sa/client-b\""),
            "{line}"
        );
    }
    // Each end counts as its own workload: what the client received the server sent.
    assert!(
        outbound.contains(&format!("bytes_sent=5 bytes_recv={}", 5 + hello)),
        "{outbound}"
    );
    assert!(
        inbound.contains(&format!("bytes_sent={} bytes_recv=5", 5 + hello)),
        "{inbound}"
    );

    world.quiet().await;
    for (node, reporter) in [(0, "source"), (1, "destination")] {
        let parts = [
            &*format!("reporter=\"{reporter}\""),
            "destination_workload=\"server-b\"",
            "mutual_tls",
            "response_flags=\"-\"",
        ];
        let moved = if node == 0 {
            (5, 5 + hello)
        } else {
            (5 + hello, 5)
        };
        let node = &world.nodes[node];
        assert_eq!(node.metric("istio_tcp_connections_opened_total", &parts), 1);
        assert_eq!(node.metric("istio_tcp_connections_closed_total", &parts), 1);
        assert_eq!(node.metric("istio_tcp_sent_bytes_total", &parts), moved.0);
        assert_eq!(
            node.metric("istio_tcp_received_bytes_total", &parts),
            moved.1
        );
        assert_eq!(
            node.metric(
                "istio_tcp_sockets_open",
                &[&format!("reporter=\"{reporter}\"")]
            ),
            0
        );
    }
}

/// The names of the fields, in order, without those that only say how it ended.
fn keys(line: &str) -> Vec<&str> {
    line.split(['\t', ' '])
        .filter_map(|word| Some(word.split_once('=')?.0))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_reached_at_its_vip_and_its_endpoints_share_the_work() {
    let mut world = World::new(&[]);
    let client = world.pod("client-c", At::Node(0), &CLIENT).await;
    for (name, ip) in [("server-c1", "10.77.0.2"), ("server-c2", "10.77.0.3")] {
        let member = ("default/web.svc".to_owned(), Default::default());
        let server = world
            .pod_with(name, At::Node(1), &[ip], |pod| {
                pod.services = [member.clone()].into()
            })
            .await;
        server.serve(8080);
    }
    world.tell(|update| update.set_service(service("web.svc", &["10.78.0.1"], &[(80, 8080)])));
    for _ in 0..20 {
        let mut tcp = client.connect("10.78.0.1:80".parse().unwrap()).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
        echo(tcp, b"x").await;
    }
    world.quiet().await;
    for name in ["server-c1", "server-c2"] {
        let lines = log::lines(&[
            name,
            "dst.service=\"web.svc\"",
            "inbound",
            "connection complete",
        ]);
        assert!(!lines.is_empty(), "{name} got nothing of 20");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_known_by_name_alone_is_resolved_for_each_connection_and_counted() {
    let mut world = World::new(&[]);
    let client = world.pod("client-dns", At::Node(0), &CLIENT).await;
    client.serve(8080);
    world.tell(|update| {
        update.set_service(service("db.example.com", &["10.78.0.5"], &[(80, 8080)]));
        update.set_workload(wire::Workload {
            uid: "db".into(),
            name: "db".into(),
            namespace: "default".into(),
            // Whoever resolves it, it is the pod itself.
            hostname: "localhost".into(),
            services: [("default/db.example.com".to_owned(), Default::default())].into(),
            ..Default::default()
        });
    });
    for _ in 0..3 {
        let mut tcp = client.connect("10.78.0.5:80".parse().unwrap()).await;
        greeting(&mut tcp).await.unwrap();
        echo(tcp, b"x").await;
    }
    let asked = [
        "hostname=\"localhost\"",
        "source_workload=\"client-dns\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/client-dns\"",
    ];
    assert_eq!(
        world.nodes[0].metric("istio_on_demand_dns_total", &asked),
        3
    );
}

/// Its name is looked up where ztunnel runs; the tunnel goes where that leads, to whom it must be.
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_known_by_name_that_speaks_tunnels_is_not_called_in_plain_text() {
    let mut world = World::new(&[]);
    let own = world.pod("own-name", At::Node(0), &CLIENT).await;
    own.serve(8080);
    world.tell(|update| {
        update.set_service(service("vm.example.com", &["10.78.0.5"], &[(80, 8080)]));
        update.set_workload(wire::Workload {
            uid: "vm-name".into(),
            name: "vm-name".into(),
            namespace: "default".into(),
            service_account: "vm-name".into(),
            hostname: "localhost".into(),
            tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
            services: [("default/vm.example.com".to_owned(), Default::default())].into(),
            ..Default::default()
        });
    });
    // There the pod's own proxy answers, which is somebody else.
    own.is_reset("10.78.0.5:80".parse().unwrap()).await;
    let line = log::line(&["src.workload=\"own-name\"", "outbound"]).await;
    assert!(line.contains("dst.hbone_addr=127.0.0.1:8080"), "{line}");
    assert!(
        line.contains("sa/vm-name") && line.contains("sa/own-name"),
        "{line}"
    );
    assert!(line.contains("bytes_sent=0 bytes_recv=0"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_one_node_are_joined_in_process_with_both_reports() {
    let mut world = World::new(&[]);
    let client = world.pod("client-d", At::Node(0), &CLIENT).await;
    let server = world.pod("server-d", At::Node(0), &SERVER).await;
    server.serve(9000);
    for family in [0, 1] {
        let mut tcp = client.connect(server.at(family, 9000)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[family]);
        echo(tcp, &vec![7; 300_000]).await;
    }
    world.quiet().await;
    assert_eq!(
        world.nodes[0].pool.stats().connections,
        0,
        "no tunnel was needed"
    );
    let outbound = log::line(&["client-d", "outbound", "10.77.0.2:15008"]).await;
    let inbound = log::line(&["client-d", "inbound", "10.77.0.2:15008"]).await;
    for line in [&outbound, &inbound] {
        assert!(line.contains("path=\"in-process\""), "{line}");
        assert!(
            line.contains("dst.identity=\"spiffe://cluster.local/ns/default/sa/server-d\""),
            "{line}"
        );
    }
    assert!(
        outbound.contains("bytes_sent=300000 bytes_recv=300010"),
        "{outbound}"
    );
    assert!(
        inbound.contains("bytes_sent=300010 bytes_recv=300000"),
        "{inbound}"
    );
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        let node = &world.nodes[0];
        assert_eq!(
            node.metric(
                "istio_tcp_connections_closed_total",
                &[reporter, "mutual_tls", "server-d"]
            ),
            2
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tunnel_can_be_forced_between_pods_of_one_node() {
    let mut world = World::new(&["--force-tunnel", "true"]);
    let client = world.pod("client-e", At::Node(0), &CLIENT).await;
    let server = world.pod("server-e", At::Node(0), &SERVER).await;
    server.serve(9000);
    let mut tcp = client.connect(server.at(0, 9000)).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
    echo(tcp, b"x").await;
    world.quiet().await;
    assert_eq!(world.nodes[0].pool.stats().connections, 1);
    assert!(!log::line(&["client-e", "inbound"]).await.contains("path="));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_calls_its_own_service_reaches_itself() {
    let mut world = World::new(&[]);
    let member = ("default/own.svc".to_owned(), Default::default());
    let own = world
        .pod_with("own-f", At::Node(0), &CLIENT, |pod| {
            pod.services = [member.clone()].into()
        })
        .await;
    own.serve(8080);
    world.tell(|update| update.set_service(service("own.svc", &["10.78.0.1"], &[(80, 8080)])));
    let mut tcp = own.connect("10.78.0.1:80".parse().unwrap()).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
    echo(tcp, b"x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_comes_in_where_no_policy_forbids_it() {
    let mut world = World::new(&[]);
    let outsider = world.pod("outsider-g", At::Nowhere, &CLIENT).await;
    let server = world.pod("server-g", At::Node(1), &SERVER).await;
    server.serve(9000);
    for family in [0, 1] {
        let mut tcp = outsider.connect(server.at(family, 9000)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[family]);
        echo(tcp, b"plain").await;
    }
    let line = log::line(&["server-g", "inbound", "dst.addr=10.77.0.2:9000"]).await;
    assert!(
        !line.contains("hbone_addr") && !line.contains("identity"),
        "{line}"
    );
    world.quiet().await;
    let parts = ["connection_security_policy=\"unknown\"", "server-g"];
    assert_eq!(
        world.nodes[1].metric("istio_tcp_connections_closed_total", &parts),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_mesh_does_not_know_is_passed_through() {
    let mut world = World::new(&[]);
    let client = world.pod("client-h", At::Node(0), &CLIENT).await;
    let outside = world.pod("outside-h", At::Nowhere, &SERVER).await;
    outside.serve(9000);
    for family in [0, 1] {
        let mut tcp = client.connect(outside.at(family, 9000)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[family]);
        echo(tcp, &vec![7; 300_000]).await;
    }
    let line = log::line(&["client-h", "outbound", "dst.addr=10.77.0.2:9000"]).await;
    assert!(
        line.contains("bytes_sent=300000 bytes_recv=300010"),
        "{line}"
    );
    assert!(!line.contains("dst.workload"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_leave_nothing_behind() {
    let mut world = World::new(&[]);
    let client = world.pod("client-i", At::Node(0), &CLIENT).await;
    let near = world.pod("near-i", At::Node(0), &["10.77.0.3"]).await;
    let far = world.pod("far-i", At::Node(1), &SERVER).await;
    near.serve(9000);
    far.serve(9000);
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut after_warm_up = 0;
    for round in 0..10 {
        for _ in 0..50 {
            for to in [near.at(0, 9000), far.at(0, 9000)] {
                let mut tcp = client.connect(to).await;
                greeting(&mut tcp).await.unwrap();
                echo(tcp, b"x").await;
            }
        }
        world.quiet().await;
        if round == 0 {
            after_warm_up = fds();
        }
    }
    for node in &world.nodes {
        assert_eq!(node.node.connections.open(), 0);
        assert_eq!(node.pool.stats().streams, 0);
    }
    // Other tests run beside this one and hold many for a moment; a leak would hold thousands for ever.
    let few = async {
        while fds() >= after_warm_up + 300 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let left = tokio::time::timeout(PATIENCE, few).await;
    assert!(
        left.is_ok(),
        "{after_warm_up} descriptors before, {} after",
        fds()
    );
    let parts = ["reporter=\"source\"", "far-i", "response_flags=\"-\""];
    assert_eq!(
        world.nodes[0].metric("istio_tcp_connections_closed_total", &parts),
        500
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_connections_at_once_are_all_served() {
    let mut world = World::new(&[]);
    let client = world.pod("client-z", At::Node(0), &CLIENT).await;
    let server = world.pod("server-z", At::Node(1), &SERVER).await;
    server.serve(9000);
    let opened = (0..500).map(|_| async {
        let mut tcp = client.connect(server.at(0, 9000)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
        tcp
    });
    let opened = futures_util::future::join_all(opened).await;
    let pooled = world.nodes[0].pool.stats();
    assert_eq!(pooled.streams, 500);
    assert!(
        pooled.connections >= 5,
        "100 on one at most, {} in use",
        pooled.connections
    );
    drop(opened);
    world.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn early_connections_wait_for_the_control_plane_to_tell_who_they_are() {
    let mut world = World::new(&[]);
    let server = world.pod("server-j", At::Node(1), &SERVER).await;
    server.serve(9000);
    let client = world.untold_pod("client-j", 0, &CLIENT);
    let mut tcp = client.connect(server.at(0, 9000)).await;
    world.tell_pod("client-j");
    assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
    echo(tcp, b"x").await;
    // Its connections may hear of it a moment before it is among the node's.
    eventually("it can be joined in process", || {
        let pods = &world.nodes[0].node.pods;
        pods.of_workload("Kubernetes//Pod/default/client-j")
            .is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_captured_waypoint_is_told_who_calls_and_for_what() {
    let mut world = World::new(&[]);
    let client = world.pod("client-x", At::Node(0), &CLIENT).await;
    let member = ("default/waypoint-x.svc".to_owned(), Default::default());
    let waypoint = world
        .pod_with("waypoint-x", At::Node(1), &SERVER, |pod| {
            pod.services = [member.clone()].into();
            pod.application_tunnel = Some(wire::ApplicationTunnel {
                protocol: 1,
                port: 15088,
            });
        })
        .await;
    world.tell(|update| {
        update.set_service(service("waypoint-x.svc", &["10.78.0.1"], &[]));
        let mut guarded = service("guarded-x.svc", &["10.78.0.2"], &[(80, 80)]);
        let named = wire::NamespacedHostname {
            namespace: "default".into(),
            hostname: "waypoint-x.svc".into(),
        };
        guarded.waypoint = Some(wire::GatewayAddress {
            destination: Some(wire::gateway_address::Destination::Hostname(named)),
            hbone_mtls_port: 15008,
        });
        update.set_service(guarded);
    });
    let listener = waypoint.listen(15088);
    let mut tcp = client.connect("10.78.0.2:80".parse().unwrap()).await;
    tcp.write_all(b"request").await.unwrap();
    let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
    let (mut app, _) = accepted.expect("no connection arrives").unwrap();
    let identity = b"spiffe://cluster.local/ns/default/sa/client-x";
    let host = b"guarded-x.svc";
    let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    expected.extend(
        u16::try_from(12 + 3 + identity.len() + 3 + host.len())
            .unwrap()
            .to_be_bytes(),
    );
    expected.extend([10, 77, 0, 1, 10, 78, 0, 2, 0, 0, 0, 80, 0xd0, 0, 45]);
    expected.extend(identity);
    expected.extend([0xd1, 0, 13]);
    expected.extend(host);
    expected.extend(b"request");
    let mut got = vec![0; expected.len()];
    let told = tokio::time::timeout(PATIENCE, app.read_exact(&mut got)).await;
    told.expect("it is told less").unwrap();
    got[24..26].fill(0); // the client's port
    assert_eq!(got, expected);
}
