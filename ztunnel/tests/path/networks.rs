//! Who is on another network: through its gateway, by a tunnel inside a tunnel.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use api::workload as wire;
use hbone::{Authority, Counters, Incoming, Limits, ResponseHeaders};

use crate::log;
use crate::world::{At, CLIENT, SERVER, World, WorldPod, echo, greeting, service};

const DOOR: &str = "10.77.0.50";

/// A gateway: ends tunnels, and leads each that is for one of these hosts to the proxy of the pod at an address.
fn open_door(world: &World, door: WorldPod, to: &'static str) -> Arc<AtomicUsize> {
    let identity = "spiffe://cluster.local/ns/default/sa/door".parse().unwrap();
    let certificates = world.nodes[0].node.certificates.clone();
    let (listener, passed) = (door.listen(15008), Arc::new(AtomicUsize::new(0)));
    let (door, counted) = (Arc::new(door), passed.clone());
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let certificate = certificates.of(&identity).await.unwrap();
            let (door, passed) = (door.clone(), counted.clone());
            tokio::spawn(async move {
                let mut connection = hbone::accept(tcp, certificate, &Limits::default())
                    .await
                    .unwrap();
                while let Some(Ok(Incoming::Request(request))) = connection.next().await {
                    assert!(
                        matches!(&request.authority, Authority::Host(host, 80) if host.ends_with(".svc"))
                    );
                    assert_eq!(connection.peer().service_account(), "caller-nets");
                    let (door, passed) = (door.clone(), passed.clone());
                    tokio::spawn(async move {
                        let inner = door.connect(to.parse().unwrap()).await;
                        let outer = request.accept(ResponseHeaders::default()).unwrap();
                        passed.fetch_add(1, SeqCst);
                        hbone::both_ways(inner, outer, &Counters::default()).await;
                    });
                }
            });
        }
    });
    passed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_another_network_is_reached_and_whom_it_does_not_vouch_for_is_not() {
    let mut world = World::new(&[]);
    let client = world.pod("caller-nets", At::Node(0), &CLIENT).await;
    let hosts = ["far.svc", "wrong.svc"];
    let server = world
        .pod_with("replica-nets", At::Node(1), &SERVER, |pod| {
            pod.services = hosts
                .map(|host| (format!("default/{host}"), Default::default()))
                .into();
        })
        .await;
    server.serve(8080);
    let door = world.pod("door", At::Nowhere, &[DOOR]).await;
    let address = door.address(0);
    // The client's control plane knows the gateway and what is behind it, but not the pod.
    let elsewhere = |uid: &str| wire::Workload {
        uid: uid.into(),
        name: uid.into(),
        namespace: "default".into(),
        service_account: uid.into(),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        network: "elsewhere".into(),
        ..Default::default()
    };
    let gateway = wire::NetworkAddress {
        network: "elsewhere".into(),
        address: address.clone(),
        length: None,
    };
    let gateway = wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Address(gateway)),
        hbone_mtls_port: 15008,
    };
    let uid = world.workload("replica-nets").uid;
    world.tell_node(0, |update| {
        update.addresses.removed.push(uid.clone().into());
        update.set_workload(wire::Workload {
            addresses: vec![address.clone()],
            ..elsewhere("door")
        });
        for host in hosts {
            update.set_workload(wire::Workload {
                network_gateway: Some(gateway.clone()),
                services: [(format!("default/{host}"), Default::default())].into(),
                ..elsewhere(&format!("split-{host}"))
            });
        }
    });
    world.tell(|update| {
        for (host, vip, account) in [
            ("far.svc", "10.78.0.1", "replica-nets"),
            ("wrong.svc", "10.78.0.2", "somebody"),
        ] {
            let mut service = service(host, &[vip], &[(80, 8080)]);
            service.subject_alt_names =
                vec![format!("spiffe://cluster.local/ns/default/sa/{account}")];
            update.set_service(service);
        }
    });
    let passed = open_door(&world, door, "10.77.0.2:15008");
    for size in [5, 300_000] {
        let mut tcp = client.connect("10.78.0.1:80".parse().unwrap()).await;
        assert_eq!(
            greeting(&mut tcp).await.unwrap(),
            DOOR,
            "the gateway stands between"
        );
        echo(tcp, &vec![7; size]).await;
    }
    assert_eq!(passed.load(SeqCst), 2);
    let outbound = log::line(&["caller-nets", "outbound", "bytes_sent=5 bytes_recv=16"]).await;
    for part in [
        "dst.addr=10.77.0.50:15008 dst.hbone_addr=far.svc:80 dst.service=\"far.svc\" dst.workload=\"split-far.svc\"",
        "src.identity=\"spiffe://cluster.local/ns/default/sa/caller-nets\"",
    ] {
        assert!(outbound.contains(part), "{outbound}");
    }
    let inbound = log::line(&["replica-nets", "inbound", "bytes_sent=16 bytes_recv=5"]).await;
    assert!(
        inbound.contains("src.identity=\"spiffe://cluster.local/ns/default/sa/caller-nets\""),
        "{inbound}"
    );

    // The gateway leads to somebody for whom the service does not vouch: not a byte is told to it.
    client.is_reset("10.78.0.2:80".parse().unwrap()).await;
    let refused = log::line(&["caller-nets", "outbound", "dst.hbone_addr=wrong.svc:80"]).await;
    assert!(
        refused.contains("sa/somebody") && refused.contains("sa/replica-nets"),
        "names both: {refused}"
    );
    world.quiet().await;
    let parts = ["reporter=\"source\"", "response_flags=\"IDENTITY_ERROR\""];
    let failed = "istio_tcp_connections_failed_total";
    world.nodes[0].counts(failed, &parts, 1).await;
}
