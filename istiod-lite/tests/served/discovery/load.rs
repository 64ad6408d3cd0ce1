//! Many streams, slow ones, and a mesh of ten thousand pods.

use std::fmt::Write as _;
use std::time::Duration;

use super::workload;
use crate::support::{ADDRESS, Proxy, Server, pod, uid};

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
            // The end may be in the first answer, before that of the other type.
            while !(proxy.is_ready() && proxy.has(ADDRESS, &ended)) {
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
