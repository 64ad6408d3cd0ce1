//! How fast news travels in a mesh of many pods: a report, no assertion.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use serde_json::json;
use tokio::sync::mpsc;

use super::cluster::{Cluster, SYSTEM};
use super::mesh;
use super::program::Program;
use crate::support::Proxy;

/// Namespace of the report's pods.
const MANY: &str = "ambit-t-many";

/// What a proxy saw, when.
struct Arrival {
    name: String,
    version: String,
    at: Instant,
}

/// A proxy that says of every resource when it came.
async fn watcher(program: &Program, roots: &[u8], token: &str) -> mpsc::Receiver<Arrival> {
    let (sender, receiver) = mpsc::channel(100_000);
    let bearer = format!("Bearer {token}");
    let mut proxy = Proxy::open(program.channel(roots).await, Some(&bearer))
        .await
        .unwrap();
    proxy.subscribe_to_all().await;
    proxy.until(Proxy::is_ready).await;
    tokio::spawn(async move {
        while let Ok(Some(response)) = proxy.receive().await {
            let at = Instant::now();
            proxy.ack(&response).await;
            for resource in response.resources {
                let (name, version) = (resource.name, resource.version);
                if sender.send(Arrival { name, version, at }).await.is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn say(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share| percentile(&times, share).as_secs_f64() * 1000.0;
    let (p50, p90, p99, most) = (at(0.5), at(0.9), at(0.99), at(1.0));
    let count = times.len();
    println!(
        "{what}: p50 {p50:.0} ms, p90 {p90:.0} ms, p99 {p99:.0} ms, longest {most:.0} ms ({count} arrivals)"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a report; needs an API server: AMBIT_TEST_KUBECONFIG"]
async fn report_of_many_pods() {
    const PROXIES: usize = 4;
    let many = std::env::var("AMBIT_TEST_PODS").map_or(5000, |text| text.parse().unwrap());
    let cluster = Cluster::open().await;
    let uids = mesh(&cluster, PROXIES).await;
    cluster
        .ensure::<Namespace>(None, json!({"metadata": {"name": MANY}}))
        .await;
    cluster.account(MANY, "web").await;
    let program = Program::start(&cluster).await;
    println!("{many} pods; before: {:.1} MiB", program.memory("VmRSS"));
    let ip = |number: usize| {
        format!(
            "10.{}.{}.{}",
            100 + number / 62_500,
            number / 250 % 250,
            number % 250 + 1
        )
    };
    let begun = Instant::now();
    let make = futures_util::stream::iter(0..many).for_each_concurrent(32, async |number| {
        let (name, node) = (
            format!("p-{number}"),
            format!("node-{}", number % PROXIES + 1),
        );
        cluster.pod(MANY, &name, "web", &node, &ip(number)).await;
    });
    make.await;
    println!(
        "made in {:.0} s; while they were made: {:.1} MiB",
        begun.elapsed().as_secs_f64(),
        program.memory("VmRSS")
    );
    drop(program);

    let begun = Instant::now();
    let program = Program::start(&cluster).await;
    println!(
        "read at the start in {:.2} s: {:.1} MiB, at most {:.1} MiB",
        begun.elapsed().as_secs_f64(),
        program.memory("VmRSS"),
        program.memory("VmHWM")
    );
    let roots = cluster.roots().await;
    let mut proxies = Vec::new();
    for (number, uid) in uids.iter().enumerate() {
        let pod = format!("ztunnel-node{}", number + 1);
        let token = cluster
            .token(SYSTEM, "ztunnel", Some((&pod, uid)), "istio-ca")
            .await;
        proxies.push(watcher(&program, &roots, &token).await);
    }
    println!("with {PROXIES} proxies: {:.1} MiB", program.memory("VmRSS"));

    // One change after another, at a pace at which nothing waits for others.
    let mut times = Vec::new();
    for change in 0..200 {
        let number = change * 17 % many;
        let uid = crate::support::uid(MANY, &format!("p-{number}"));
        let begun = Instant::now();
        cluster
            .status(MANY, &format!("p-{number}"), &ip(number), false)
            .await;
        for proxy in &mut proxies {
            times.push(arrived(proxy, &uid).await.duration_since(begun));
        }
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    say("a change alone", times);

    // A steady hundred changes a second: a rollout.
    let mut sent = HashMap::new();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    for change in 0..1000 {
        pace.tick().await;
        let number = (change * 17 + 5) % many;
        sent.insert(
            crate::support::uid(MANY, &format!("p-{number}")),
            Instant::now(),
        );
        let ready = change % 2 == 0;
        let (client, kubeconfig) = (cluster.client.clone(), String::new());
        let address = ip(number);
        tokio::spawn(async move {
            let cluster = Cluster { client, kubeconfig };
            cluster
                .status(MANY, &format!("p-{number}"), &address, !ready)
                .await;
        });
    }
    let mut times = Vec::new();
    for proxy in &mut proxies {
        let quiet = Duration::from_secs(3);
        while let Ok(Some(arrival)) = tokio::time::timeout(quiet, proxy.recv()).await {
            if let Some(begun) = sent.get(&arrival.name) {
                times.push(arrival.at.saturating_duration_since(*begun));
            }
        }
    }
    say("a hundred changes a second", times);
    println!(
        "after: {:.1} MiB, at most {:.1} MiB",
        program.memory("VmRSS"),
        program.memory("VmHWM")
    );
}

/// When the resource of that name came.
async fn arrived(proxy: &mut mpsc::Receiver<Arrival>, name: &str) -> Instant {
    loop {
        let next = tokio::time::timeout(crate::support::PATIENCE, proxy.recv()).await;
        let arrival = next.expect("it did not arrive").unwrap();
        if arrival.name == name && !arrival.version.is_empty() {
            return arrival.at;
        }
    }
}
