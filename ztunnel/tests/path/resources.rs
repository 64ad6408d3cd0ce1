//! What fields of services, workloads and policies mean for connections: each from the message of the control plane to what
//! the app at the other end sees.

use std::net::SocketAddr;

use api::workload::load_balancing::{HealthPolicy, Mode, Scope};
use api::{security, workload as wire};
use hbone::{Authority, Counters, Incoming, Limits, ResponseHeaders};

use crate::log;
use crate::world::{At, CLIENT, SERVER, World, WorldPod, echo, greeting, service, strict};

const OTHER: [&str; 2] = ["10.77.0.3", "fd77::3"];

/// A call that gets through.
async fn reaches(client: &WorldPod, to: &str) {
    let mut tcp = client.connect(to.parse().unwrap()).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0], "{to}");
    echo(tcp, b"x").await;
}

async fn is_reset(client: &WorldPod, to: &str) {
    client.is_reset(to.parse().unwrap()).await;
}

/// How many connections came to this pod by this service.
fn came(pod: &str, host: &str) -> usize {
    log::lines(&[
        &format!("dst.workload=\"{pod}\""),
        &format!("dst.service=\"{host}\""),
        "inbound",
        "bytes_recv=1 ",
    ])
    .len()
}

fn member(host: &str) -> impl Fn(&mut wire::Workload) {
    let key = format!("default/{host}");
    move |pod| pod.services = [(key.clone(), Default::default())].into()
}

fn balancing(mode: Mode, scopes: &[Scope], health: HealthPolicy) -> Option<wire::LoadBalancing> {
    Some(wire::LoadBalancing {
        routing_preference: scopes.iter().map(|scope| (*scope).into()).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_may_have_a_whole_range_of_addresses() {
    let mut world = World::new(&[]);
    let client = world.pod("rc-range", At::Node(0), &CLIENT).await;
    let server = world
        .pod_with("rs-range", At::Node(1), &SERVER, member("range.svc"))
        .await;
    server.serve(8080);
    world.tell(|update| {
        let mut ranged = service("range.svc", &["10.79.0.0"], &[(80, 8080)]);
        ranged.addresses[0].length = Some(16);
        update.set_service(ranged);
    });
    for to in ["10.79.0.1:80", "10.79.255.254:80"] {
        reaches(&client, to).await;
    }
    world.quiet().await;
    assert_eq!(came("rs-range", "range.svc"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_close_by_a_strict_preference_or_nobody_and_the_next_best_by_failover() {
    for (mode, host) in [
        (Mode::Strict, "strict.svc"),
        (Mode::Failover, "failover.svc"),
    ] {
        let mut world = World::new(&[]);
        let client = world.pod("rc-scope", At::Node(0), &CLIENT).await;
        let near = format!("rs-near-{host}");
        let far = format!("rs-far-{host}");
        let close = world
            .pod_with(&near, At::Node(0), &SERVER, member(host))
            .await;
        let away = world
            .pod_with(&far, At::Node(1), &OTHER, member(host))
            .await;
        away.serve(8080);
        world.tell(|update| {
            let mut scoped = service(host, &["10.78.0.1"], &[(80, 8080)]);
            scoped.load_balancing = balancing(mode, &[Scope::Node], HealthPolicy::OnlyHealthy);
            update.set_service(scoped);
        });
        // The near one does not listen yet: another is tried only where the service allows it.
        match mode {
            Mode::Strict => is_reset(&client, "10.78.0.1:80").await,
            _ => reaches(&client, "10.78.0.1:80").await,
        }
        close.serve(8080);
        world.change(&near, |_| {});
        // What failed a moment ago is avoided where there is another, and not where there is none.
        let avoided = std::time::Duration::from_secs(6);
        tokio::time::sleep(if mode == Mode::Strict {
            avoided / 600
        } else {
            avoided
        })
        .await;
        for _ in 0..8 {
            reaches(&client, "10.78.0.1:80").await;
        }
        world.quiet().await;
        let first = usize::from(mode != Mode::Strict);
        assert_eq!((came(&near, host), came(&far, host)), (8, first), "{host}");
        world.change(&near, |pod| {
            pod.status = wire::WorkloadStatus::Unhealthy.into()
        });
        match mode {
            Mode::Strict => {
                is_reset(&client, "10.78.0.1:80").await;
                log::line(&["rc-scope", "no endpoint is close enough"]).await;
            }
            _ => reaches(&client, "10.78.0.1:80").await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_endpoint_is_called_only_where_the_service_says_so() {
    let mut world = World::new(&[]);
    let client = world.pod("rc-health", At::Node(0), &CLIENT).await;
    let ill = |pod: &mut wire::Workload| {
        pod.status = wire::WorkloadStatus::Unhealthy.into();
        let hosts = ["careful.svc", "careless.svc"];
        pod.services = hosts
            .map(|host| (format!("default/{host}"), Default::default()))
            .into();
    };
    let server = world.pod_with("rs-health", At::Node(1), &SERVER, ill).await;
    server.serve(8080);
    world.tell(|update| {
        update.set_service(service("careful.svc", &["10.78.0.1"], &[(80, 8080)]));
        let mut careless = service("careless.svc", &["10.78.0.2"], &[(80, 8080)]);
        careless.load_balancing = balancing(Mode::UnspecifiedMode, &[], HealthPolicy::AllowAll);
        update.set_service(careless);
    });
    is_reset(&client, "10.78.0.1:80").await;
    log::line(&["rc-health", "no healthy upstream"]).await;
    reaches(&client, "10.78.0.2:80").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_may_vouch_for_an_endpoint_of_another_identity() {
    let mut world = World::new(&[]);
    let client = world.pod("rc-vouch", At::Node(0), &CLIENT).await;
    let server = world
        .pod_with("rs-vouch", At::Node(1), &SERVER, member("vouched.svc"))
        .await;
    server.serve(8080);
    // What the client's control plane says of the pod is older than the pod.
    let mut older = world.workload("rs-vouch");
    older.service_account = "older".into();
    world.tell_node(0, |update| update.set_workload(older.clone()));
    world.tell(|update| {
        let mut vouched = service("vouched.svc", &["10.78.0.1"], &[(80, 8080)]);
        vouched.subject_alt_names = vec!["spiffe://cluster.local/ns/default/sa/rs-vouch".into()];
        update.set_service(vouched);
    });
    reaches(&client, "10.78.0.1:80").await;
    is_reset(&client, "10.77.0.2:8080").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_for_its_namespace_alone_is_nothing_to_others() {
    let mut world = World::new(&[]);
    let client = world.pod("rc-visible", At::Node(0), &CLIENT).await;
    let server = world.pod_with("rs-visible", At::Node(1), &SERVER, |pod| {
        pod.services = [("other/private.svc".to_owned(), Default::default())].into();
    });
    let server = server.await;
    server.serve(8080);
    // At this address there is somebody outside of the mesh, too.
    let outside = world
        .pod("outside-visible", At::Nowhere, &["10.77.0.40"])
        .await;
    outside.serve(80);
    let private = |visibility: wire::service::Visibility| wire::Service {
        namespace: "other".into(),
        visibility: visibility.into(),
        ..service("private.svc", &["10.77.0.40"], &[(80, 8080)])
    };
    for (visibility, to) in [
        (
            wire::service::Visibility::Namespace,
            "dst.addr=10.77.0.40:80",
        ),
        (
            wire::service::Visibility::Public,
            "dst.service=\"private.svc\"",
        ),
    ] {
        world.tell(|update| update.set_service(private(visibility)));
        reaches(&client, "10.77.0.40:80").await;
        log::line(&["rc-visible", "outbound", to]).await;
    }
    world.quiet().await;
    assert_eq!(log::lines(&["rc-visible", "outbound"]).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_ends_tunnels_itself_is_asked_for_one_also_on_its_own_node() {
    let mut world = World::new(&[]);
    let client = world.pod("rc-native", At::Node(0), &CLIENT).await;
    let app = world.pod("rs-native", At::Nowhere, &SERVER).await;
    let address = app.address(0);
    world.tell(|update| {
        update.set_workload(wire::Workload {
            uid: "rs-native".into(),
            name: "rs-native".into(),
            namespace: "default".into(),
            service_account: "rs-native".into(),
            addresses: vec![address.clone()],
            tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
            native_tunnel: true,
            node: "node-1".into(),
            ..Default::default()
        });
    });
    let identity = "spiffe://cluster.local/ns/default/sa/rs-native"
        .parse()
        .unwrap();
    let certificate = world.nodes[0]
        .node
        .certificates
        .of(&identity)
        .await
        .unwrap();
    app.serve(8080);
    let listener = app.listen(15008);
    let asked = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut connection = hbone::accept(tcp, certificate, &Limits::default())
            .await
            .unwrap();
        let Some(Ok(Incoming::Request(request))) = connection.next().await else {
            panic!("no request");
        };
        let (authority, said) = (request.authority.clone(), request.headers.baggage.clone());
        let caller = connection.peer().to_string();
        tokio::spawn(async move {
            let own = app.connect("10.77.0.2:8080".parse().unwrap()).await;
            let tunnel = request.accept(ResponseHeaders::default()).unwrap();
            hbone::both_ways(own, tunnel, &Counters::default()).await;
        });
        tokio::spawn(async move { while connection.next().await.is_some() {} });
        (authority, said, caller)
    });
    let mut tcp = client.connect("10.77.0.2:8080".parse().unwrap()).await;
    greeting(&mut tcp).await.unwrap();
    echo(tcp, b"x").await;
    let (authority, said, caller) = asked.await.unwrap();
    let meant: SocketAddr = "10.77.0.2:8080".parse().unwrap();
    assert_eq!(authority, Authority::Ip(meant));
    assert!(said.unwrap().contains("k8s.namespace.name=default"));
    assert_eq!(caller, "spiffe://cluster.local/ns/default/sa/rc-native");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_denies_nobody_and_strict_may_be_for_one_port() {
    let mut world = World::new(&[]);
    let client = world.pod("rc-port", At::Node(0), &CLIENT).await;
    let outsider = world.pod("outsider-port", At::Nowhere, &OTHER).await;
    let server = world.pod_with("rs-port", At::Node(1), &SERVER, |pod| {
        pod.authorization_policies = vec!["default/converted_peer_authentication_web".into()];
    });
    let server = server.await;
    for port in [9000, 9001] {
        server.serve(port);
    }
    // What PeerAuthentication with portLevelMtls STRICT on 9000 becomes, and a denial of everything that is only tried out.
    world.tell(|update| {
        let mut by_port = security::Authorization {
            name: "converted_peer_authentication_web".into(),
            namespace: "default".into(),
            ..strict()
        };
        by_port.groups[0].rules[0].matches[0].destination_ports = vec![9000];
        update.set_policy(by_port);
        update.set_policy(security::Authorization {
            dry_run: true,
            ..crate::world::deny_port("rehearsed", 9001)
        });
    });
    let plain = |port| server.at(0, port);
    outsider.is_reset(plain(9000)).await;
    let mut tcp = outsider.connect(plain(9001)).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), OTHER[0]);
    for port in [9000, 9001] {
        reaches(&client, &format!("10.77.0.2:{port}")).await;
    }
}

/// A mesh that changes its name: some have proven the old one, and the control plane tells the new one of all.
#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_mesh_with_two_names_know_each_other_by_either_and_of_one_name_by_that_alone()
{
    let names: &[&str] = &["--trust-domains", "cluster.local,old.org"];
    for (suffix, flags) in [("one", &[][..]), ("two", names)] {
        let mut world = World::new(flags);
        let (caller, called) = (format!("rc-td-{suffix}"), format!("rs-td-{suffix}"));
        let old = |pod: &mut wire::Workload| pod.trust_domain = "old.org".into();
        let client = world.pod_with(&caller, At::Node(0), &CLIENT, old).await;
        let server = world.pod(&called, At::Node(1), &SERVER).await;
        for pod in [&client, &server] {
            pod.serve(8080);
        }
        if suffix == "one" {
            is_reset(&client, "10.77.0.2:8080").await;
            log::line(&[&called, "is of a trust domain that is not accepted"]).await;
            continue;
        }
        reaches(&client, "10.77.0.2:8080").await;
        let inbound = log::line(&[&called, "inbound", "bytes_recv=1 "]).await;
        let by = format!("src.identity=\"spiffe://old.org/ns/default/sa/{caller}\"");
        assert!(inbound.contains(&by), "{inbound}");
        // The server's node has heard the new name of a client that still proves the old one.
        let mut renamed = world.workload(&caller);
        renamed.trust_domain = String::new();
        world.tell_node(1, |update| update.set_workload(renamed.clone()));
        let mut tcp = server.connect("10.77.0.1:8080".parse().unwrap()).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), SERVER[0]);
        echo(tcp, b"x").await;
    }
}
