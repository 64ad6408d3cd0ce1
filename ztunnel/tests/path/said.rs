//! What the ends of a tunnel say of a connection: to each other in the request, and to people in their lines of the log.

use api::workload as wire;
use hbone::{Authority, Counters, Incoming, Limits, RequestHeaders, ResponseHeaders};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::log;
use crate::world::{At, CLIENT, PATIENCE, SERVER, World, WorldPod, echo, greeting, service};

const DOOR: &str = "10.77.0.50";

/// What one CONNECT asked for.
struct Asked {
    authority: Authority,
    headers: RequestHeaders,
    caller: String,
}

/// Ends one connection of tunnels at port 15008 of an app, as `account`, and leads what its first request brings to `to`.
fn ends_tunnels(
    world: &World,
    app: WorldPod,
    account: &str,
    to: &'static str,
) -> JoinHandle<Asked> {
    let identity = format!("spiffe://cluster.local/ns/default/sa/{account}");
    let identity = identity.parse().unwrap();
    let certificates = world.nodes[0].node.certificates.clone();
    let listener = app.listen(15008);
    tokio::spawn(async move {
        let certificate = certificates.of(&identity).await.unwrap();
        let (tcp, _) = listener.accept().await.unwrap();
        let mut connection = hbone::accept(tcp, certificate, &Limits::default())
            .await
            .unwrap();
        let Some(Ok(Incoming::Request(request))) = connection.next().await else {
            panic!("no request");
        };
        let asked = Asked {
            authority: request.authority.clone(),
            headers: request.headers.clone(),
            caller: connection.peer().to_string(),
        };
        tokio::spawn(async move {
            let own = app.connect(to.parse().unwrap()).await;
            let tunnel = request.accept(ResponseHeaders::default()).unwrap();
            hbone::both_ways(own, tunnel, &Counters::default()).await;
        });
        tokio::spawn(async move { while connection.next().await.is_some() {} });
        asked
    })
}

/// A workload that is told of and has no proxy of ours.
fn told(name: &str, ips: &[&WorldPod]) -> wire::Workload {
    wire::Workload {
        uid: name.into(),
        name: name.into(),
        namespace: "default".into(),
        service_account: name.into(),
        addresses: ips.iter().map(|pod| pod.address(0)).collect(),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        ..Default::default()
    }
}

fn member_of(host: &str) -> std::collections::HashMap<String, wire::PortList> {
    [(format!("default/{host}"), Default::default())].into()
}

fn at(network: &str, pod: &WorldPod) -> Option<wire::GatewayAddress> {
    let address = wire::NetworkAddress {
        network: network.into(),
        address: pod.address(0),
        length: None,
    };
    Some(wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Address(address)),
        hbone_mtls_port: 15008,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_says_who_calls_from_where_and_by_which_name_as_istio_says_it() {
    let mut world = World::new(&[]);
    let client = world.pod_with("caller-said", At::Node(0), &CLIENT, |pod| {
        pod.cluster_id = "c1".into();
        pod.workload_type = wire::WorkloadType::Job.into();
        pod.canonical_revision = "v2".into();
        pod.locality = Some(wire::Locality {
            region: "r1".into(),
            zone: "z1".into(),
            subzone: "s1".into(),
        });
    });
    let client = client.await;
    let app = world.pod("native-said", At::Nowhere, &SERVER).await;
    app.serve(8080);
    let native = wire::Workload {
        native_tunnel: true,
        services: member_of("said.svc"),
        ..told("native-said", &[&app])
    };
    world.tell(|update| {
        update.set_workload(native.clone());
        update.set_service(service("said.svc", &["10.78.0.1"], &[(80, 8080)]));
    });
    let asked = ends_tunnels(&world, app, "native-said", "10.77.0.2:8080");
    let mut tcp = client.connect("10.78.0.1:80".parse().unwrap()).await;
    let from = tcp.local_addr().unwrap();
    greeting(&mut tcp).await.unwrap();
    echo(tcp, b"x").await;

    let Asked {
        authority,
        headers,
        caller,
    } = asked.await.unwrap();
    assert_eq!(authority.to_string(), "10.77.0.2:8080");
    assert_eq!(caller, "spiffe://cluster.local/ns/default/sa/caller-said");
    assert_eq!(
        headers.forwarded.as_deref(),
        Some(&*format!("for=\"{from}\";host=said.svc"))
    );
    assert_eq!(
        headers.baggage.as_deref(),
        Some(
            "k8s.cluster.name=c1,k8s.namespace.name=default,k8s.job.name=caller-said,service.name=caller-said,service.version=v2,cloud.region=r1,cloud.availability_zone=z1"
        )
    );
    let parent = headers.traceparent.unwrap();
    assert!(parent.len() == 55 && parent.starts_with("00-"), "{parent}");
    assert_eq!(headers.x_forwarded_network, None);
    assert_eq!(headers.x_istio_source, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_a_call_comes_from_is_told_behind_its_gateway_and_not_to_it() {
    let mut world = World::new(&[]);
    let client = world
        .pod_with("caller-here", At::Node(0), &CLIENT, |pod| {
            pod.network = "here".into()
        })
        .await;
    let door = world.pod("door-there", At::Nowhere, &[DOOR]).await;
    let app = world.pod("app-there", At::Nowhere, &SERVER).await;
    app.serve(8080);
    let through = at("there", &door);
    let gateway = wire::Workload {
        network: "there".into(),
        ..told("door-there", &[&door])
    };
    let split = wire::Workload {
        network: "there".into(),
        network_gateway: through,
        services: member_of("there.svc"),
        ..told("split-there", &[])
    };
    world.tell(|update| {
        update.set_workload(gateway.clone());
        update.set_workload(split.clone());
        let mut far = service("there.svc", &["10.78.0.1"], &[(80, 8080)]);
        far.addresses[0].network = "here".into();
        far.subject_alt_names = vec!["spiffe://cluster.local/ns/default/sa/app-there".into()];
        update.set_service(far);
    });
    let outer = ends_tunnels(&world, door, "door-there", "10.77.0.2:15008");
    let inner = ends_tunnels(&world, app, "app-there", "10.77.0.2:8080");
    let mut tcp = client.connect("10.78.0.1:80".parse().unwrap()).await;
    greeting(&mut tcp).await.unwrap();
    echo(tcp, b"x").await;

    let (outer, inner) = (outer.await.unwrap(), inner.await.unwrap());
    for asked in [&outer, &inner] {
        let meant = Authority::Host("there.svc".into(), 80);
        assert_eq!(asked.authority, meant);
        let caller = "spiffe://cluster.local/ns/default/sa/caller-here";
        assert_eq!(asked.caller, caller);
        let said = asked.headers.baggage.as_deref().unwrap_or_default();
        assert!(said.contains("service.name=caller-here"), "{said}");
        let from = asked.headers.forwarded_for().unwrap();
        assert_eq!(from.ip().to_string(), CLIENT[0]);
    }
    assert_eq!(outer.headers.x_forwarded_network, None);
    let network = inner.headers.x_forwarded_network;
    assert_eq!(network.as_deref(), Some("here"));
}

/// To the caller it is as if there were no waypoint; to people both lines say which one there was.
#[tokio::test(flavor = "multi_thread")]
async fn the_waypoint_between_is_named_in_the_lines_of_both_ends() {
    let mut world = World::new(&[]);
    let client = world.pod("caller-way", At::Node(0), &CLIENT).await;
    let waypoint = world
        .pod_with("waypoint-way", At::Node(1), &["10.77.0.3"], |pod| {
            pod.services = member_of("waypoint.svc");
            pod.application_tunnel = Some(wire::ApplicationTunnel {
                protocol: 1,
                port: 15088,
            });
        })
        .await;
    let server = world
        .pod_with("server-way", At::Node(0), &SERVER, |pod| {
            pod.services = member_of("guarded.svc")
        })
        .await;
    server.serve(8080);
    world.tell(|update| {
        update.set_service(service("waypoint.svc", &["10.78.0.1"], &[]));
        let mut guarded = service("guarded.svc", &["10.78.0.2"], &[(80, 8080)]);
        let named = wire::NamespacedHostname {
            namespace: "default".into(),
            hostname: "waypoint.svc".into(),
        };
        guarded.waypoint = Some(wire::GatewayAddress {
            destination: Some(wire::gateway_address::Destination::Hostname(named)),
            hbone_mtls_port: 15008,
        });
        update.set_service(guarded);
    });
    let listener = waypoint.listen(15088);
    let mut tcp = client.connect("10.78.0.2:80".parse().unwrap()).await;
    tcp.write_all(b"x").await.unwrap();
    let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
    let (mut app, _) = accepted.expect("no connection arrives").unwrap();
    let heard = async {
        let mut head = [0; 16];
        app.read_exact(&mut head).await.unwrap();
        let mut rest = vec![0; u16::from_be_bytes([head[14], head[15]]).into()];
        app.read_exact(&mut rest).await.unwrap();
        app.read_u8().await.unwrap()
    };
    let heard = tokio::time::timeout(PATIENCE, heard).await;
    assert_eq!(heard.expect("it is told less"), b'x');
    let mut onward = waypoint.connect(server.at(0, 8080)).await;
    assert_eq!(greeting(&mut onward).await.unwrap(), "10.77.0.3");
    echo(onward, b"yz").await;
    drop((app, tcp));

    let named = "waypoint=default/waypoint.svc";
    for parts in [
        ["src.workload=\"caller-way\"", "outbound"],
        ["dst.workload=\"server-way\"", "inbound"],
    ] {
        let line = log::line(&parts).await;
        assert!(line.contains(named), "{line}");
        assert!(line.contains("dst.service=\"guarded.svc\""), "{line}");
    }
    // The waypoint's own two lines are of whom it talks to itself: there is no waypoint between.
    for parts in [
        ["dst.workload=\"waypoint-way\"", "inbound"],
        ["src.workload=\"waypoint-way\"", "outbound"],
    ] {
        let line = log::line(&parts).await;
        assert!(!line.contains("waypoint="), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_port_that_says_nothing_is_told_apart_from_one_that_refuses() {
    let mut world = World::new(&[]);
    let client = world.pod("caller-netpol", At::Node(0), &CLIENT).await;
    // Told to have proxies, which they have not: the one is cut off by a firewall, at the other nobody listens.
    let mute = world.pod("mute-net", At::Nowhere, &SERVER).await;
    let bare = world.pod("bare-net", At::Nowhere, &["10.77.0.4"]).await;
    world.drops_everything("mute-net");
    let workloads = [told("mute-net", &[&mute]), told("bare-net", &[&bare])];
    world.tell(|update| {
        for workload in &workloads {
            update.set_workload(workload.clone());
        }
    });
    for (to, flag, hint) in [
        (&mute, "NETWORK_POLICY", "NetworkPolicies and firewalls"),
        (&bare, "CONNECT", "ztunnel on the destination's node"),
    ] {
        client.is_reset(to.at(0, 8080)).await;
        let line = log::line(&[
            "caller-netpol",
            &format!("dst.hbone_addr={}", to.at(0, 8080)),
        ])
        .await;
        let flagged = format!("response_flags=\"{flag}\"");
        assert!(line.contains(&flagged) && line.contains(hint), "{line}");
        let parts = ["reporter=\"source\"", &*flagged];
        let counted = world.nodes[0].metric("istio_tcp_connections_failed_total", &parts);
        assert_eq!(counted, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_tunnel_without_a_protocol_only_leads_to_another_port() {
    for (suffix, port, reached) in [("other", 9090, 9090), ("same", 0, 8080)] {
        let mut world = World::new(&[]);
        let caller = format!("caller-{suffix}");
        let client = world.pod(&caller, At::Node(0), &CLIENT).await;
        let server = world
            .pod_with(&format!("server-{suffix}"), At::Node(1), &SERVER, |pod| {
                pod.application_tunnel = Some(wire::ApplicationTunnel { protocol: 0, port });
            })
            .await;
        server.serve(reached);
        let mut tcp = client.connect(server.at(0, 8080)).await;
        // Nothing stands before the app's bytes in either direction.
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
        echo(tcp, b"as it is").await;
    }
}
