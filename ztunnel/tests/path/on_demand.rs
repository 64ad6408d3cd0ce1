//! Nodes that follow nothing beforehand, and ask for whom their pods' connections need (`XDS_ON_DEMAND`).

use std::io;
use std::time::{Duration, Instant};

use api::egress::{Egress, egress::Mode};
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, workload as wire};
use prost::Message as _;
use tokio::net::TcpStream;

use crate::control::{Asked, Control};
use crate::log;
use crate::world::{At, CLIENT, PATIENCE, SERVER, World, WorldPod, echo, greeting, service};

/// A service in front of a pod of the second node.
const VIP: &str = "10.78.0.1";
const HOST: &str = "web.default.svc.cluster.local";

fn endpoint(host: &str) -> impl Fn(&mut wire::Workload) {
    let service = format!("default/{host}");
    move |pod: &mut wire::Workload| {
        pod.services
            .insert(service.clone(), wire::PortList::default());
    }
}

/// A client on the first node, and a service in front of a server on the second.
async fn client_and_service(world: &mut World, suffix: &str) -> (WorldPod, WorldPod) {
    let client = world
        .pod(&format!("client-{suffix}"), At::Node(0), &CLIENT)
        .await;
    let name = format!("server-{suffix}");
    let server = world
        .pod_with(&name, At::Node(1), &SERVER, endpoint(HOST))
        .await;
    world.tell(|update| update.set_service(service(HOST, &[VIP], &[(80, 8080)])));
    server.serve(8080);
    (client, server)
}

fn at(ip: &str, port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::new(ip.parse().unwrap(), port)
}

/// What a node knows.
pub(crate) fn known(world: &World, node: usize) -> Vec<String> {
    let snapshot = world.nodes[node].node.mesh.load();
    let services = snapshot
        .services()
        .map(|service| service.hostname.to_string());
    let workloads = snapshot
        .workloads()
        .map(|workload| workload.name().to_owned());
    let mut known: Vec<_> = services.chain(workloads).collect();
    known.sort();
    known
}

pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// A connection that is served, sooner or later.
async fn reached(client: &WorldPod, to: std::net::SocketAddr) -> TcpStream {
    let begun = Instant::now();
    loop {
        if let Ok(mut tcp) = client.try_connect(to).await
            && greeting(&mut tcp).await.is_ok()
        {
            return tcp;
        }
        let why = log::lines(&[&format!("{to}"), "error="]);
        assert!(begun.elapsed() < PATIENCE, "never reached: {why:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn names(of: &[&str]) -> Vec<String> {
    of.iter().map(|name| (*name).to_owned()).collect()
}

pub(crate) fn times(control: &Control, node: &str, name: &str) -> usize {
    let asked = control.names_asked_by(node).into_iter();
    asked.filter(|asked| asked == name).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_asks_for_whom_it_needs_and_for_nobody_else() {
    let (mut world, control) = World::asking(&[]).await;
    let (client, _server) = client_and_service(&mut world, "od1").await;
    world.pod("other-od1", At::Node(1), &["10.77.0.3"]).await;
    world.tell(|update| update.set_service(service("other.svc", &["10.78.0.9"], &[(80, 80)])));
    assert_eq!(
        known(&world, 0),
        ["client-od1"],
        "this node's own come unasked, and nobody else"
    );

    for _ in 0..2 {
        let mut tcp = client.connect(at(VIP, 80)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
        echo(tcp, b"carried").await;
    }
    assert_eq!(known(&world, 0), ["client-od1", "server-od1", HOST]);
    // Who came was asked for, too: a connection's report waits for that only a moment, the next one's has it.
    let told = ["server-od1", "inbound", "src.workload=\"client-od1\""];
    let begun = Instant::now();
    while log::lines(&told).is_empty() {
        let without = log::lines(&told[..2]);
        assert!(begun.elapsed() < PATIENCE, "nobody came: {without:#?}");
        echo(reached(&client, at(VIP, 80)).await, b"once more").await;
    }

    let addresses = control.asked_by("node-1", ADDRESS_TYPE);
    let first = Asked {
        node: "node-1".into(),
        type_url: ADDRESS_TYPE.into(),
        subscribe: names(&["*"]),
        unsubscribe: names(&["*"]),
    };
    assert_eq!(addresses[0], first);
    assert_eq!(times(&control, "node-1", "/10.78.0.1"), 1, "{addresses:?}");
    let policies = control.asked_by("node-1", AUTHORIZATION_TYPE);
    assert_eq!(
        policies[0].subscribe.len(),
        0,
        "policies are followed whole"
    );
}

/// Who comes from outside is asked about for the record alone, and may be anybody.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_push_out_nobody_whom_a_pod_calls() {
    let (mut world, control) = World::asking(&["--on-demand-most", "4"]).await;
    let (client, _server) = client_and_service(&mut world, "od12").await;
    let called = world.pod("called-od12", At::Node(0), &["10.77.0.40"]).await;
    called.serve(9000);
    let mut tcp = client.connect(at(VIP, 80)).await;
    greeting(&mut tcp).await.unwrap();
    echo(tcp, b"first").await;
    for number in 41..49 {
        let (name, ip) = (format!("o{number}-od12"), format!("10.77.0.{number}"));
        let outside = world.pod(&name, At::Nowhere, &[&ip]).await;
        let mut tcp = outside.connect(called.at(0, 9000)).await;
        greeting(&mut tcp).await.unwrap();
        echo(tcp, b"comes").await;
        let asked = format!("/{ip}");
        eventually("it is asked who comes", || {
            times(&control, "node-1", &asked) == 1
        })
        .await;
    }
    let mut tcp = client.connect(at(VIP, 80)).await;
    greeting(&mut tcp).await.unwrap();
    echo(tcp, b"still known").await;
    assert_eq!(times(&control, "node-1", "/10.78.0.1"), 1, "not asked anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_the_range_of_a_service_is_the_services() {
    let (mut world, _control) = World::asking(&[]).await;
    let (client, server) = client_and_service(&mut world, "od2").await;
    world.tell(|update| {
        let mut ranged = service("ranged.svc", &["10.78.7.0"], &[(80, 8080)]);
        ranged.addresses[0].length = Some(24);
        update.set_service(ranged);
    });
    world.change("server-od2", endpoint("ranged.svc"));
    let mut tcp = client.connect(at("10.78.7.9", 80)).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
    drop((tcp, server));
    let line = log::line(&["client-od2", "outbound"]).await;
    assert!(line.contains("dst.service=\"ranged.svc\""), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_told_of_in_time_is_refused_and_not_gone_around() {
    let (mut world, control) = World::asking(&["--on-demand-wait", "300ms"]).await;
    let client = world.pod("client-od3", At::Node(0), &CLIENT).await;
    let outside = world.pod("outside-od3", At::Nowhere, &SERVER).await;
    let listener = outside.listen(9000);
    control.talks(false);
    client.is_reset(outside.at(0, 9000)).await;
    let line = log::line(&["client-od3", "outbound", "10.77.0.2:9000"]).await;
    assert!(
        line.contains("has not said within 300ms who /10.77.0.2 is"),
        "{line}"
    );
    let accepted = listener.into_std().unwrap().accept();
    assert_eq!(
        accepted.unwrap_err().kind(),
        io::ErrorKind::WouldBlock,
        "somebody came to the outside"
    );

    // It was asked and goes on being asked: when the answer comes the next one passes.
    control.talks(true);
    outside.serve(9001);
    eventually("the answer is there", || {
        times(&control, "node-1", "/10.77.0.2") == 1
    })
    .await;
    let tcp = reached(&client, outside.at(0, 9001)).await;
    echo(tcp, b"passes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn that_there_is_nobody_is_an_answer_and_whoever_comes_there_is_known() {
    let (mut world, control) = World::asking(&[]).await;
    let refuse = Egress {
        mode: Mode::Refuse.into(),
        set_by: "a test".into(),
    };
    let extension = wire::Extension {
        name: api::EGRESS_EXTENSION.into(),
        config: Some(prost_types::Any {
            type_url: api::EGRESS_TYPE.into(),
            value: refuse.encode_to_vec(),
        }),
    };
    let client = world.pod("client-od4", At::Node(0), &CLIENT).await;
    let shut = |pod: &mut wire::Workload| pod.extensions = vec![extension.clone()];
    let shut = world
        .pod_with("shut-od4", At::Node(0), &["10.77.0.5"], shut)
        .await;
    let outside = world.pod("outside-od4", At::Nowhere, &SERVER).await;
    outside.serve(9000);
    for _ in 0..3 {
        let mut tcp = client.connect(outside.at(0, 9000)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
    }
    shut.is_reset(outside.at(0, 9000)).await;
    log::line(&["shut-od4", "outbound", "egress refused by a test"]).await;
    assert_eq!(
        times(&control, "node-1", "/10.77.0.2"),
        1,
        "asked once, for both pods"
    );

    let comes = wire::Workload {
        uid: "comes".into(),
        name: "comes-od4".into(),
        namespace: "default".into(),
        workload_name: "comes-od4".into(),
        addresses: vec![outside.address(0)],
        ..Default::default()
    };
    world.tell(|update| update.set_workload(comes.clone()));
    eventually("it is told of who came", || {
        known(&world, 0).contains(&"comes-od4".to_owned())
    })
    .await;
    let mut tcp = shut.connect(outside.at(0, 9000)).await;
    assert_eq!(
        greeting(&mut tcp).await.unwrap(),
        "10.77.0.5",
        "it is nobody no more"
    );

    // And when he goes, that is asked anew: who comes in his place may be somebody else's.
    world.tell(|update| update.addresses.removed.push("comes".into()));
    eventually("it is told that he went", || {
        !known(&world, 0).contains(&"comes-od4".to_owned())
    })
    .await;
    shut.is_reset(outside.at(0, 9000)).await;
    assert_eq!(times(&control, "node-1", "/10.77.0.2"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_control_plane_is_away_what_is_known_goes_on_and_nobody_new_is_reached() {
    let (mut world, control) = World::asking(&["--on-demand-wait", "3s"]).await;
    let (client, server) = client_and_service(&mut world, "od5").await;
    let mut tcp = client.connect(at(VIP, 80)).await;
    greeting(&mut tcp).await.unwrap();
    control.goes_away();
    eventually("its streams have ended", || control.is_alone()).await;
    let mut again = client.connect(at(VIP, 80)).await;
    assert_eq!(greeting(&mut again).await.unwrap(), CLIENT[0]);
    echo(tcp, b"goes on").await;
    client.is_reset(server.at(0, 8080)).await;
    log::line(&[
        "client-od5",
        "outbound",
        "has not said within 3s who /10.77.0.2 is",
    ])
    .await;

    control.comes_back();
    // Told what it holds and what it follows, the new stream brings the rest.
    eventually("it is asked again", || {
        times(&control, "node-1", "/10.77.0.2") > 0
    })
    .await;
    let tcp = reached(&client, server.at(0, 8080)).await;
    echo(tcp, b"reached").await;
}

/// Whom it is about is held already, as an endpoint: by itself the next stream says nothing of him.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_its_stream_took_along_is_answered_on_the_next() {
    let (mut world, control) = World::asking(&["--on-demand-wait", "1s"]).await;
    let (client, server) = client_and_service(&mut world, "od9").await;
    drop(reached(&client, at(VIP, 80)).await);
    control.talks(false);
    client.is_reset(server.at(0, 8080)).await;
    control.goes_away();
    eventually("its streams have ended", || control.is_alone()).await;
    control.talks(true);
    control.comes_back();
    let tcp = reached(&client, server.at(0, 8080)).await;
    echo(tcp, b"reached").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_needs_is_given_up_and_asked_for_again_when_somebody_does() {
    let flags = ["--on-demand-wait", "5s", "--on-demand-unused", "2s"];
    let (mut world, control) = World::asking(&flags).await;
    let (client, _server) = client_and_service(&mut world, "od6").await;
    let open = {
        world
            .pod_with(
                "long-od6",
                At::Node(1),
                &["10.77.0.6"],
                endpoint("long.svc"),
            )
            .await
            .serve(8080);
        world.tell(|update| update.set_service(service("long.svc", &["10.78.0.6"], &[(80, 8080)])));
        let mut tcp = client.connect(at("10.78.0.6", 80)).await;
        greeting(&mut tcp).await.unwrap();
        tcp
    };
    let mut tcp = client.connect(at(VIP, 80)).await;
    greeting(&mut tcp).await.unwrap();
    echo(tcp, b"over").await;
    eventually("what is not needed any more is gone", || {
        !known(&world, 0).contains(&HOST.to_owned())
    })
    .await;
    assert_eq!(
        known(&world, 0),
        ["client-od6", "long-od6", "long.svc"],
        "a connection that is open needs whom it goes to"
    );
    let given_up = || {
        let asked = control.asked_by("node-1", ADDRESS_TYPE).into_iter();
        asked
            .flat_map(|asked| asked.unsubscribe)
            .collect::<Vec<_>>()
    };
    eventually("the control plane is told", || {
        given_up().contains(&format!("/{VIP}"))
    })
    .await;
    for name in [
        format!("default/{HOST}"),
        "Kubernetes//Pod/default/server-od6".into(),
    ] {
        assert!(given_up().contains(&name), "{:?}", given_up());
    }
    // What changes meanwhile is not told, and known when it is asked for again.
    world.tell(|update| update.set_service(service(HOST, &[VIP], &[(81, 8080)])));
    let mut tcp = client.connect(at(VIP, 81)).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
    echo(open, b"still open").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_understood_is_not_taken_for_nobody() {
    let (mut world, control) = World::asking(&[]).await;
    let client = world.pod("client-od7", At::Node(0), &CLIENT).await;
    let outside = world.pod("outside-od7", At::Nowhere, &SERVER).await;
    outside.serve(9000);
    control.garbles("garbled", "/10.77.0.2");
    client.is_reset(outside.at(0, 9000)).await;
    log::line(&[
        "client-od7",
        "what the control plane says of /10.77.0.2 cannot be understood",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_its_bound_whoever_was_not_needed_for_longest_makes_room() {
    let (mut world, control) = World::asking(&["--on-demand-most", "2"]).await;
    let client = world.pod("client-od8", At::Node(0), &["10.77.0.1"]).await;
    let outside = world
        .pod(
            "outside-od8",
            At::Nowhere,
            &["10.77.0.2", "10.77.0.3", "10.77.0.4"],
        )
        .await;
    outside.serve(9000);
    for index in [0, 1, 2, 0] {
        let mut tcp = client.connect(outside.at(index, 9000)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), "10.77.0.1");
    }
    assert_eq!(
        times(&control, "node-1", "/10.77.0.2"),
        2,
        "it had to be asked for again"
    );
}

/// A load balancer's: discovery has no service of that name, but the place.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_a_place_with_a_name_is_asked_for_as_such() {
    let (mut world, control) = World::asking(&[]).await;
    let client = world.pod("caller-door", At::Node(0), &CLIENT).await;
    let named = wire::NamespacedHostname {
        namespace: "default".into(),
        hostname: "localhost".into(),
    };
    let gateway = wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Hostname(named)),
        hbone_mtls_port: 15008,
    };
    let place = wire::Workload {
        uid: "NetworkGateway/there/localhost/15008".into(),
        namespace: "default".into(),
        service_account: "door-named".into(),
        hostname: "localhost".into(),
        network: "there".into(),
        ..Default::default()
    };
    let far = wire::Workload {
        uid: "far-named".into(),
        name: "far-named".into(),
        namespace: "default".into(),
        network: "there".into(),
        network_gateway: Some(gateway),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        services: [(format!("default/{HOST}"), Default::default())].into(),
        ..Default::default()
    };
    world.tell(|update| {
        update.set_workload(place.clone());
        update.set_workload(far.clone());
        let mut service = service(HOST, &[VIP], &[(80, 8080)]);
        service.subject_alt_names = vec!["spiffe://cluster.local/ns/default/sa/far".into()];
        update.set_service(service);
    });
    // Where that name leads, another than the gateway answers: the pod's own proxy.
    client.is_reset(at(VIP, 80)).await;
    let line = log::line(&["src.workload=\"caller-door\"", "outbound"]).await;
    let asked_of = format!("dst.addr=127.0.0.1:15008 dst.hbone_addr={HOST}:80");
    assert!(line.contains(&asked_of), "{line}");
    assert!(
        line.contains("sa/door-named") && line.contains("sa/caller-door"),
        "{line}"
    );
    let names = control.names_asked_by("node-1");
    for name in ["default/localhost", "NetworkGateway/there/localhost/15008"] {
        assert!(names.iter().any(|asked| asked == name), "{names:?}");
    }
}
