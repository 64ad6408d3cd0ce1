//! An endpoint that cannot be reached is not the client's affair while there is another one.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Instant;

use api::{security, workload as wire};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::log;
use crate::on_demand::eventually;
use crate::world::{At, CLIENT, PATIENCE, World, WorldPod, echo, greeting, serve_on, service};

const VIP: &str = "10.78.0.1:80";

/// A client on node 0, and a service of some endpoints, of which each serves if its app is there.
struct Shop {
    world: World,
    client: WorldPod,
    servers: Vec<WorldPod>,
    apps: Vec<(Arc<TcpListener>, JoinHandle<()>)>,
}

impl Shop {
    /// `more` says what is special about the endpoint of this number.
    async fn open(name: &str, places: &[At], more: impl Fn(usize, &mut wire::Workload)) -> Self {
        let mut world = World::new(&[]);
        let client = world
            .pod(&format!("caller-{name}"), At::Node(0), &CLIENT)
            .await;
        let host = format!("{name}.svc");
        let (mut servers, mut apps) = (Vec::new(), Vec::new());
        for (at, place) in places.iter().enumerate() {
            let ip = format!("10.77.0.{}", at + 2);
            let member = (format!("default/{host}"), wire::PortList::default());
            let server = world
                .pod_with(&server(name, at), *place, &[&ip], |pod| {
                    pod.services = [member.clone()].into();
                    more(at, pod);
                })
                .await;
            let listener = Arc::new(server.listen(8080));
            apps.push((listener.clone(), serve_on(listener)));
            servers.push(server);
        }
        world.tell(|update| update.set_service(service(&host, &["10.78.0.1"], &[(80, 8080)])));
        Self {
            world,
            client,
            servers,
            apps,
        }
    }

    /// The app of this endpoint is gone: its port is closed. At once, also where a process that another test starts
    /// holds a copy of the descriptor for a moment.
    fn stop(&self, at: usize) {
        let (listener, app) = &self.apps[at];
        app.abort();
        SockRef::from(&**listener).shutdown(Shutdown::Both).unwrap();
    }

    /// One call through, in which the client speaks first.
    async fn call(&self) {
        let mut tcp = self.client.connect(VIP.parse().unwrap()).await;
        tcp.write_all(b"hello").await.unwrap();
        let greeted = greeting(&mut tcp).await;
        let Ok(seen) = greeted else {
            let client = self.client.pod.as_ref().unwrap().name.clone();
            let line =
                log::line(&[&format!("src.workload=\"{client}\""), "outbound", "error="]).await;
            panic!("{greeted:?}: {line}");
        };
        assert_eq!(seen, CLIENT[0]);
        echo_rest(tcp, b"hello").await;
    }

    /// What became of connections whose first endpoint failed.
    fn retried(&self) -> BTreeMap<String, u64> {
        let metrics = self.world.nodes[0].metrics();
        let of = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("ambit_connection_retries_total{outcome=\""));
        of.map(|rest| {
            let (outcome, count) = rest.split_once("\"} ").unwrap();
            (outcome.to_owned(), count.parse().unwrap())
        })
        .collect()
    }
}

fn server(name: &str, at: usize) -> String {
    format!("replica-{name}{at}")
}

/// What was said before comes back first.
async fn echo_rest(mut tcp: tokio::net::TcpStream, said: &[u8]) {
    tcp.write_all(b" world").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut back = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut back)).await;
    ended.expect("no end of the answer").unwrap();
    assert_eq!(back, [said, b" world"].concat(), "each byte once, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_app_is_gone_costs_nobody_a_connection() {
    for (name, place) in [("gone-far", At::Node(1)), ("gone-near", At::Node(0))] {
        let shop = Shop::open(name, &[place, place, place], |_, _| {}).await;
        // All know each other: what the client says may go along with the request from now on.
        for _ in 0..12 {
            shop.call().await;
        }
        assert_eq!(shop.retried(), BTreeMap::new(), "nothing was wrong");
        shop.stop(0);
        let begun = Instant::now();
        for _ in 0..40 {
            shop.call().await;
        }
        let retried = shop.retried();
        let reached = retried.get("reached").copied().unwrap_or(0);
        // After the first it is avoided for some seconds; a slow machine needs several times as long.
        let most = 8 + begun.elapsed().as_secs() / 5;
        assert!(
            (1..most).contains(&reached) && retried.len() == 1,
            "{name}: {retried:?}"
        );
        let said = format!(
            "note=\"tried before: Kubernetes//Pod/default/{}: ",
            server(name, 0)
        );
        let line = log::line(&[
            &format!("src.workload=\"caller-{name}\""),
            "outbound",
            "tries=2",
            &said,
        ])
        .await;
        assert!(
            line.starts_with("info\taccess\tconnection complete") && !line.contains("error="),
            "{line}"
        );
        shop.world.quiet().await;
        let node = &shop.world.nodes[0];
        let sum = |metric: &str| -> u64 {
            let metrics = node.metrics();
            let of = metrics
                .lines()
                .filter(|line| line.starts_with(metric) && line.contains("reporter=\"source\""));
            of.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
                .sum()
        };
        assert_eq!(sum("istio_tcp_connections_opened_total"), 52 + reached);
        assert_eq!(sum("istio_tcp_connections_closed_total"), 52 + reached);
        assert_eq!(sum("istio_tcp_connections_failed_total"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_said_first_comes_along_wherever_it_is_carried_in_the_end() {
    for (name, other) in [
        ("said-far", At::Node(1)),
        ("said-near", At::Node(0)),
        ("said-plain", At::Nowhere),
    ] {
        let mut shop = Shop::open(name, &[At::Node(1), other], |_, _| {}).await;
        if let At::Nowhere = other {
            let address = shop.servers[1].address(0);
            let host = format!("default/{name}.svc");
            shop.world.tell(|update| {
                update.set_workload(wire::Workload {
                    uid: "plain".into(),
                    name: "plain".into(),
                    namespace: "default".into(),
                    addresses: vec![address.clone()],
                    services: [(host.clone(), Default::default())].into(),
                    ..Default::default()
                });
            });
        }
        for _ in 0..12 {
            shop.call().await;
        }
        shop.stop(0);
        let mut calls = 0;
        while calls < 12 || !shop.retried().contains_key("reached") {
            assert!(calls < 200, "{name}: chance never chose the dead one");
            shop.call().await;
            calls += 1;
        }
        let line = log::line(&[
            &format!("src.workload=\"caller-{name}\""),
            "outbound",
            "tries=2",
        ])
        .await;
        assert!(line.contains("bytes_sent=11 bytes_recv=21"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_says_nothing_is_left_after_some_seconds_and_then_avoided() {
    let shop = Shop::open("mute", &[At::Node(1), At::Node(1)], |_, _| {}).await;
    shop.world.drops_everything(&server("mute", 0));
    let (begun, mut calls) = (Instant::now(), 0);
    while calls < 12 || !shop.retried().contains_key("reached") {
        assert!(calls < 200, "chance never chose the mute one");
        shop.call().await;
        calls += 1;
    }
    let reached = shop.retried().get("reached").copied().unwrap_or(0);
    // Each takes some seconds, and those after it avoid the mute one for some more.
    let most = 4 + begun.elapsed().as_secs() / 9;
    assert!(
        (1..most).contains(&reached),
        "{reached} of {calls} were tried again"
    );
    // Less than the time of one attempt.
    log::line(&["src.workload=\"caller-mute\"", "tries=2", "no answer in 4s"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_is_the_last_word() {
    let policy = "default/not-from-here";
    let mut shop = Shop::open("denied", &[At::Node(1), At::Node(1)], |at, pod| {
        if at == 0 {
            pod.authorization_policies = vec![policy.into()];
        }
    })
    .await;
    let any = security::Match {
        destination_ports: vec![8080],
        ..Default::default()
    };
    shop.world.tell(|update| {
        update.set_policy(security::Authorization {
            name: "not-from-here".into(),
            namespace: "default".into(),
            scope: security::Scope::WorkloadSelector.into(),
            action: security::Action::Deny.into(),
            groups: vec![security::Group {
                rules: vec![security::Rules {
                    matches: vec![any.clone()],
                }],
            }],
            ..Default::default()
        });
    });
    let (mut served, mut denied) = (0, 0);
    for _ in 0..24 {
        let greeted = match shop.client.try_connect(VIP.parse().unwrap()).await {
            Ok(mut tcp) => greeting(&mut tcp).await,
            Err(why) => Err(why),
        };
        match greeted {
            Ok(_) => served += 1,
            Err(_) => denied += 1,
        }
    }
    assert!(
        served > 0 && denied > 0,
        "{served} served, {denied} denied: neither is avoided"
    );
    assert_eq!(shop.retried(), BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_endpoint_is_asked_again_however_freshly_it_failed() {
    let shop = Shop::open("only", &[At::Node(1)], |_, _| {}).await;
    shop.stop(0);
    shop.client.is_reset(VIP.parse().unwrap()).await;
    let line = log::line(&["src.workload=\"caller-only\"", "outbound", "error="]).await;
    assert!(!line.contains("tries="), "{line}");
    shop.servers[0].serve(8080);
    shop.call().await;
    assert_eq!(shop.retried(), BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_fail_three_are_tried_and_the_client_is_told() {
    let places = [
        At::Node(1),
        At::Node(1),
        At::Node(0),
        At::Node(0),
        At::Node(1),
    ];
    let shop = Shop::open("none", &places, |_, _| {}).await;
    for at in 0..places.len() {
        shop.stop(at);
    }
    shop.client.is_reset(VIP.parse().unwrap()).await;
    let line = log::line(&[
        "src.workload=\"caller-none\"",
        "outbound",
        "tries=3",
        "error=",
    ])
    .await;
    assert!(
        line.contains("tried before: Kubernetes//Pod/default/replica-none"),
        "{line}"
    );
    let failed = BTreeMap::from([("failed".to_owned(), 1)]);
    eventually("it is counted", || shop.retried() == failed).await;
    shop.world.quiet().await;
    let tried = log::lines(&["src.workload=\"caller-none\"", "inbound", "error="]);
    assert_eq!(tried.len(), 3, "{tried:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_to_go_keeps_what_it_has_and_gets_nothing_more() {
    for (name, place) in [("going-far", At::Node(1)), ("going-near", At::Node(0))] {
        let mut shop = Shop::open(name, &[place, place], |_, _| {}).await;
        // One that is certainly with the first.
        let own = shop.servers[0].at(0, 8080);
        let mut open = shop.client.connect(own).await;
        greeting(&mut open).await.unwrap();
        shop.world.change(&server(name, 0), |pod| {
            pod.status = wire::WorkloadStatus::Unhealthy.into();
        });
        for _ in 0..20 {
            shop.call().await;
        }
        echo(open, b"as before").await;
        shop.world.quiet().await;
        let served = |at| {
            let who = format!("dst.workload=\"{}\"", server(name, at));
            log::lines(&[
                &who,
                "inbound",
                &format!("dst.service=\"{name}.svc\""),
                "bytes_recv=11",
            ])
            .len()
        };
        assert_eq!((served(0), served(1)), (0, 20));
    }
}
