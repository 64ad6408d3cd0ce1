//! From a file in the directory to a proxy's memory, over real TLS.
#![allow(clippy::unwrap_used, clippy::panic)] // a test may

mod support;

use std::fmt::Write as _;
use std::time::Duration;

use api::discovery::DeltaDiscoveryRequest;
use api::workload::{Address, address};
use prost::Message as _;
use support::{ADDRESS, AUTHORIZATION, Proxy, Server, pod, uid};

fn workload(proxy: &Proxy, name: &str) -> api::workload::Workload {
    let held = &proxy.held[ADDRESS][name];
    match Address::decode(&*held.value).unwrap().r#type {
        Some(address::Type::Workload(workload)) => workload,
        other => panic!("{name} is {other:?}"),
    }
}

#[tokio::test]
async fn each_type_is_answered_and_what_was_taken_is_shown() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe_to_all().await;
    let addresses = proxy.next().await;
    let policies = proxy.next().await;
    assert_eq!(
        (&*addresses.type_url, &*policies.type_url),
        (ADDRESS, AUTHORIZATION)
    );
    assert!(
        policies.resources.is_empty(),
        "no policy, and still an answer"
    );
    assert!(proxy.has(ADDRESS, &uid("alpha", "client")));
    assert_ne!(addresses.nonce, policies.nonce);

    server
        .until("/debug/syncz", |text| text.matches("SYNCED").count() == 2)
        .await;
    let shown = server.json("/debug/syncz").await;
    assert_eq!(shown[0]["proxy"], "ztunnel-node1.istio-system");
    assert_eq!(
        shown[0]["identity"],
        "spiffe://cluster.local/ns/istio-system/sa/ztunnel"
    );
    assert_eq!(shown[0]["types"][ADDRESS]["nonce_acked"], addresses.nonce);
    let (_, metrics) = server.get("/metrics").await;
    assert!(
        metrics.contains("pilot_xds{version=\"unknown\"} 1"),
        "{metrics}"
    );
    drop(proxy);
    server.until("/debug/syncz", |text| text == "[]").await;
}

#[tokio::test]
async fn edits_of_files_reach_the_proxy_one_by_one() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe_to_all().await;
    let name = uid("alpha", "web");

    server.write(
        "web.yaml",
        &pod("alpha", "web", "web", "node-1", "10.10.0.1"),
    );
    proxy.until(|proxy| proxy.has(ADDRESS, &name)).await;
    assert_eq!(workload(&proxy, &name).addresses, [vec![10, 10, 0, 1]]);

    server.write(
        "web.yaml",
        &pod("alpha", "web", "web", "node-1", "10.10.0.2"),
    );
    let changed = proxy.next().await;
    assert_eq!(changed.resources.len(), 1, "only what changed");
    assert_eq!(workload(&proxy, &name).addresses, [vec![10, 10, 0, 2]]);

    server.remove("web.yaml");
    let gone = proxy.next().await;
    assert_eq!(
        (gone.resources.len(), gone.removed_resources),
        (0, vec![name])
    );
}

#[tokio::test]
async fn a_broken_file_leaves_what_was_good_and_says_where_it_is_broken() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe_to_all().await;
    let name = uid("alpha", "web");
    let good = pod("alpha", "web", "web", "node-1", "10.10.0.1");
    server.write("web.yaml", &good);
    proxy.until(|proxy| proxy.has(ADDRESS, &name)).await;

    server.write(
        "web.yaml",
        &good.replace("podIP: 10.10.0.1", "podIP: { no: address }"),
    );
    let faults = server.until("/debug/faultz", |text| text != "[]").await;
    assert!(
        faults.contains("web.yaml:") && faults.contains("web"),
        "{faults}"
    );
    // A proof that nothing was taken away: a later change is the next thing the proxy hears.
    server.write(
        "other.yaml",
        &pod("alpha", "other", "web", "node-1", "10.10.0.3"),
    );
    let next = proxy.next().await;
    assert_eq!(next.removed_resources, Vec::<String>::new());
    assert_eq!(next.resources[0].name, uid("alpha", "other"));
    assert!(proxy.has(ADDRESS, &name));

    server.write("web.yaml", &good.replace("10.10.0.1", "10.10.0.9"));
    proxy.next().await;
    assert_eq!(workload(&proxy, &name).addresses, [vec![10, 10, 0, 9]]);
    server.until("/debug/faultz", |text| text == "[]").await;
}

#[tokio::test]
async fn a_policy_comes_before_the_workload_that_names_it_and_goes_after() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe_to_all().await;
    proxy.next().await;
    proxy.next().await;
    let name = uid("alpha", "web");

    server.write(
        "web.yaml",
        &(pod("alpha", "web", "web", "node-1", "10.10.0.1") + support::POLICY),
    );
    let (first, second) = (proxy.next().await, proxy.next().await);
    assert_eq!(
        (&*first.type_url, &*second.type_url),
        (AUTHORIZATION, ADDRESS)
    );
    assert_eq!(
        workload(&proxy, &name).authorization_policies,
        ["alpha/allow"]
    );
    assert!(proxy.has(AUTHORIZATION, "alpha/allow"));

    server.write(
        "web.yaml",
        &pod("alpha", "web", "web", "node-1", "10.10.0.1"),
    );
    let (first, second) = (proxy.next().await, proxy.next().await);
    assert_eq!(
        (&*first.type_url, &*second.type_url),
        (ADDRESS, AUTHORIZATION)
    );
    assert_eq!(second.removed_resources, ["alpha/allow"]);
    assert!(workload(&proxy, &name).authorization_policies.is_empty());
}

#[tokio::test]
async fn a_refusal_is_counted_and_shown_and_nothing_is_sent_again() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe(ADDRESS).await;
    let response = proxy.receive().await.unwrap().unwrap();
    proxy.nack(&response, "alpha/client: no such thing").await;
    let shown = server
        .until("/debug/syncz", |text| text.contains("REJECTED"))
        .await;
    assert!(shown.contains("alpha/client: no such thing"), "{shown}");
    server
        .until("/metrics", |text| {
            text.contains("pilot_total_xds_rejects{type=\"wds\"} 1")
        })
        .await;

    server.write(
        "web.yaml",
        &pod("alpha", "web", "web", "node-1", "10.10.0.1"),
    );
    assert_eq!(proxy.next().await.resources.len(), 1);
}

#[tokio::test]
async fn an_answer_to_an_old_response_is_counted_and_harmless() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe(ADDRESS).await;
    let first = proxy.receive().await.unwrap().unwrap();
    server.write(
        "web.yaml",
        &pod("alpha", "web", "web", "node-1", "10.10.0.1"),
    );
    let second = proxy.receive().await.unwrap().unwrap();
    proxy.ack(&first).await;
    server
        .until("/metrics", |text| {
            text.contains("pilot_xds_expired_nonce{type=\"wds\"} 1")
        })
        .await;
    proxy.ack(&second).await;
    server
        .until("/debug/syncz", |text| text.contains("SYNCED"))
        .await;
}

#[tokio::test]
async fn who_comes_back_is_told_the_difference() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        let ip = format!("10.10.0.{}", name.as_bytes()[0]);
        server.write(
            &format!("{name}.yaml"),
            &pod("alpha", name, "web", "node-1", &ip),
        );
    }
    server.write("policy.yaml", support::POLICY);
    let mut proxy = server.proxy().await;
    proxy.subscribe_to_all().await;
    proxy
        .until(|proxy| {
            proxy.has(ADDRESS, &uid("alpha", "c")) && proxy.has(AUTHORIZATION, "alpha/allow")
        })
        .await;
    proxy
        .until(|proxy| {
            !workload(proxy, &uid("alpha", "c"))
                .authorization_policies
                .is_empty()
        })
        .await;
    let held = proxy.held.clone();
    drop(proxy);

    let mut unchanged = server.proxy().await;
    unchanged.held = held.clone();
    unchanged.subscribe_to_all().await;
    for _ in 0..2 {
        let response = unchanged.next().await;
        assert_eq!(
            (response.resources.len(), response.removed_resources.len()),
            (0, 0)
        );
    }

    server.remove("a.yaml");
    server.write("b.yaml", &pod("alpha", "b", "web", "node-2", "10.10.0.98"));
    server.write("d.yaml", &pod("alpha", "d", "web", "node-1", "10.10.0.100"));
    unchanged
        .until(|proxy| {
            !proxy.has(ADDRESS, &uid("alpha", "a")) && proxy.has(ADDRESS, &uid("alpha", "d"))
        })
        .await;
    unchanged
        .until(|proxy| workload(proxy, &uid("alpha", "b")).node == "node-2")
        .await;

    let mut behind = server.proxy().await;
    behind.held = held;
    // Something that never was.
    let phantom = behind.held[ADDRESS][&uid("alpha", "c")].clone();
    behind
        .held
        .get_mut(ADDRESS)
        .unwrap()
        .insert("never-was".into(), phantom);
    behind.subscribe(ADDRESS).await;
    let response = behind.next().await;
    let mut names: Vec<_> = response
        .resources
        .iter()
        .map(|resource| &*resource.name)
        .collect();
    names.sort_unstable();
    assert_eq!(names, [uid("alpha", "b"), uid("alpha", "d")]);
    assert_eq!(
        response.removed_resources,
        [uid("alpha", "a"), "never-was".into()]
    );
    assert_eq!(behind.held[ADDRESS], unchanged.held[ADDRESS]);
}

#[tokio::test]
async fn on_demand_a_proxy_gets_its_node_and_what_it_asks_for() {
    let server = Server::prepared(&[], |config| {
        let text = pod("alpha", "web-0", "web", "node-2", "10.10.1.1") + SERVICE;
        std::fs::write(config.join("web.yaml"), text).unwrap();
    })
    .await;
    let mut proxy = server.proxy().await;
    proxy
        .send(DeltaDiscoveryRequest {
            node: Some(support::ztunnel_node()),
            type_url: ADDRESS.into(),
            resource_names_subscribe: vec!["*".into()],
            resource_names_unsubscribe: vec!["*".into()],
            ..Default::default()
        })
        .await;
    proxy.next().await;
    assert_eq!(
        proxy.names(ADDRESS),
        [uid("alpha", "client"), uid("istio-system", "ztunnel-node1")]
    );

    let ask = |name: &str| DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        resource_names_subscribe: vec![name.into()],
        ..Default::default()
    };
    proxy.send(ask("/10.96.0.1")).await;
    let answer = proxy.next().await;
    assert!(
        answer
            .resources
            .iter()
            .any(|resource| resource.aliases.contains(&"/10.96.0.1".into())),
        "{answer:?}"
    );
    assert!(proxy.has(ADDRESS, "alpha/web.alpha.svc.cluster.local"));
    assert!(proxy.has(ADDRESS, &uid("alpha", "web-0")));

    // An endpoint that joins later is told (Istio forgets it).
    server.write(
        "web-1.yaml",
        &pod("alpha", "web-1", "web", "node-2", "10.10.1.2"),
    );
    proxy
        .until(|proxy| proxy.has(ADDRESS, &uid("alpha", "web-1")))
        .await;

    proxy.send(ask("/10.99.99.99")).await;
    assert_eq!(proxy.next().await.removed_resources, ["/10.99.99.99"]);
    assert!(!proxy.has(ADDRESS, &uid("alpha", "far")));
}

const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: alpha }
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  selector: { app: web }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_end_identical_after_a_storm() {
    const STREAMS: usize = 200;
    let server = Server::start().await;
    let bearer = format!(
        "Bearer {}",
        server.token("istio-system", "ztunnel", Some("ztunnel-node1"))
    );
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..STREAMS {
        let (channel, bearer) = (server.channel().await, bearer.clone());
        let mut proxy = Proxy::open(channel.clone(), Some(&bearer)).await.unwrap();
        tasks.spawn(async move {
            proxy.subscribe_to_all().await;
            let ended = uid("alpha", "end");
            let mut responses = 0;
            while !proxy.has(ADDRESS, &ended) {
                let response = proxy.receive().await.unwrap().unwrap();
                responses += 1;
                match number % 4 {
                    0 => proxy.ack(&response).await,
                    1 => proxy.nack(&response, "no").await,
                    // Comes back in the middle of it with what it holds.
                    2 if responses == 4 => {
                        let held = std::mem::take(&mut proxy.held);
                        proxy = Proxy::open(channel.clone(), Some(&bearer)).await.unwrap();
                        proxy.held = held;
                        proxy.subscribe_to_all().await;
                    }
                    _ => {}
                }
            }
            proxy.held
        });
    }
    for round in 0..40_u32 {
        for place in 0..5_u32 {
            let name = format!("pod-{place}.yaml");
            if (round + place) % 4 == 3 && server.path(&name).exists() {
                server.remove(&name);
            } else {
                let ip = format!("10.11.{round}.{place}");
                server.write(
                    &name,
                    &pod("alpha", &format!("pod-{place}"), "web", "node-1", &ip),
                );
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await; // spreads the storm, waits for nothing
    }
    // Everything before this one was read before it, or with it.
    server.write(
        "zz-end.yaml",
        &pod("alpha", "end", "web", "node-1", "10.12.0.1"),
    );
    let mut results = tasks.join_all().await;
    let mut reference = server.proxy().await;
    reference.subscribe_to_all().await;
    reference.until(Proxy::is_ready).await;
    assert_eq!(results.len(), STREAMS);
    let expected = reference.held;
    results.retain(|held| *held != expected);
    assert!(
        results.is_empty(),
        "{} differ from {:?}",
        results.len(),
        expected[ADDRESS].keys()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_nobody_up_and_gets_the_sum_later() {
    let server = Server::prepared(&[], |config| {
        let mut text = String::new();
        for number in 0..3000 {
            text += &pod(
                "alpha",
                &format!("many-{number}"),
                "web",
                "node-2",
                &format!("10.13.{}.{}", number / 250, number % 250),
            );
        }
        std::fs::write(config.join("many.yaml"), text).unwrap();
    })
    .await;
    let (mut slow, mut quick) = (server.proxy().await, server.proxy().await);
    slow.subscribe_to_all().await;
    quick.subscribe_to_all().await;
    quick.until(Proxy::is_ready).await;
    // Rounds of half a megabyte that the slow one does not look at: far more than windows hold.
    for round in 0..12 {
        let mut text = String::new();
        for number in 0..3000 {
            let octets = (number / 250, number % 250);
            text += &pod(
                "alpha",
                &format!("many-{number}"),
                "web",
                "node-2",
                &format!("10.{}.{}.{}", 14 + round, octets.0, octets.1),
            );
        }
        server.write("many.yaml", &text);
        let ip = vec![10, 14 + round, 0, 0];
        quick
            .until(|proxy| workload(proxy, &uid("alpha", "many-0")).addresses == [ip.clone()])
            .await;
    }
    let mut rounds = 0;
    while slow.held != quick.held {
        slow.next().await;
        rounds += 1;
    }
    assert!(rounds < 8, "it was told every one of {rounds} rounds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_pods_are_read_served_and_changed() {
    let server = Server::prepared(&[], |config| {
        for file in 0..10 {
            let mut text = String::new();
            for number in 0..1000 {
                let (high, low) = (number / 250, number % 250);
                text += &pod(
                    "alpha",
                    &format!("p-{file}-{number}"),
                    "web",
                    &format!("node-{}", number % 50),
                    &format!("10.{}.{high}.{low}", 20 + file),
                );
            }
            std::fs::write(config.join(format!("pods-{file}.yaml")), text).unwrap();
        }
    })
    .await;
    let mut proxies = Vec::new();
    for _ in 0..20 {
        let mut proxy = server.proxy().await;
        proxy.subscribe_to_all().await;
        proxies.push(proxy);
    }
    for proxy in &mut proxies {
        proxy.until(Proxy::is_ready).await;
        assert_eq!(proxy.held[ADDRESS].len(), 10_003);
    }
    server.write(
        "one.yaml",
        &pod("alpha", "one", "web", "node-1", "10.40.0.1"),
    );
    for proxy in &mut proxies {
        let response = proxy.next().await;
        assert_eq!(response.resources.len(), 1, "one pod is one resource");
    }
    let mut text = String::new();
    let (_, metrics) = server.get("/metrics").await;
    for line in metrics
        .lines()
        .filter(|line| line.starts_with("pilot_xds_pushes"))
    {
        let _ = writeln!(text, "{line}");
    }
    assert!(text.contains("pilot_xds_pushes{type=\"wds\"} 40"), "{text}");
}

#[tokio::test]
async fn the_monitoring_port_tells_readiness_version_and_counts() {
    let server = Server::start().await;
    assert_eq!(server.get("/ready").await, (200, "ready\n".into()));
    assert!(server.json("/version").await["version"].is_string());
    let (_, metrics) = server.get("/metrics").await;
    for name in [
        "pilot_services ",
        "citadel_server_root_cert_expiry_timestamp ",
        "istio_build{component=\"pilot\"",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    let catalog = server.json("/debug/catalogz").await;
    assert!(catalog[ADDRESS][uid("alpha", "client")].is_string());
}

#[tokio::test]
async fn the_debug_pages_can_be_switched_off() {
    let server = Server::with(&["--debug", "false"]).await;
    assert_eq!(server.get("/debug/syncz").await.0, 404);
    assert_eq!(server.get("/ready").await.0, 200);
}
