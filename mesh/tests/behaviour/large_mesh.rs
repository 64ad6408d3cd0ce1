//! A client that holds more than a server takes in one request, over a real socket.

use std::time::Duration;

use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use mesh::Mesh;
use prost::Message as _;
use tonic::Status;

use crate::harness::{Harness, Stream, pod, policy};
use crate::shelf::Shelf;

const FOUR_MIB: usize = 4 << 20;

/// As long as the uids of a real mesh are.
fn uid(number: usize) -> String {
    format!(
        "Kubernetes//Pod/namespace-{}/deployment-7f9c6b5d48-{number:05}-of-a-mesh",
        number % 100
    )
}

/// A client that holds all that a server has, and the stream between them.
async fn settled(
    pods: usize,
    change: impl FnOnce(&mut mesh::ClientConfig),
) -> (Harness, Shelf, Stream) {
    let mut shelf = Shelf::default();
    shelf.set(AUTHORIZATION_TYPE, policy("stays"));
    for number in 0..pods {
        shelf.set(ADDRESS_TYPE, pod(&uid(number), "1"));
    }
    let mut harness = Harness::with(change).await;
    let mut stream = harness.streams.recv().await.unwrap();
    stream.serve(&shelf).await;
    stream.serve(&shelf).await;
    harness.hears("connected").await;
    harness.hears("Authorization +1 -0 []").await;
    harness.hears(&format!("Address +{pods} -0 []")).await;
    assert_eq!(count(&harness.mesh), pods);
    (harness, shelf, stream)
}

fn count(mesh: &Mesh) -> usize {
    mesh.load().workloads().count()
}

/// What is gone, new and changed while there is no stream.
async fn lose(harness: &mut Harness, shelf: &mut Shelf, stream: Stream) -> Stream {
    shelf.remove(ADDRESS_TYPE, &uid(1));
    shelf.set(ADDRESS_TYPE, pod(&uid(2), "2"));
    let new = count(&harness.mesh);
    shelf.set(ADDRESS_TYPE, pod(&uid(new), "1"));
    let lost = Err(Status::unavailable("lost"));
    stream.responses.send(lost).await.unwrap();
    drop(stream);
    harness
        .hears(r#"disconnected Some("Unavailable: lost")"#)
        .await;
    harness.streams.recv().await.unwrap()
}

fn opens_without_versions(request: &DeltaDiscoveryRequest) -> bool {
    assert_eq!(request.type_url, ADDRESS_TYPE);
    assert!(request.encoded_len() < FOUR_MIB);
    request.node.is_some() && request.initial_resource_versions.is_empty()
}

#[tokio::test]
async fn it_comes_back_to_a_server_that_takes_4_mib() {
    const PODS: usize = 60_000;
    let short = |config: &mut mesh::ClientConfig| config.quiet = Duration::from_millis(1);
    let (mut harness, mut shelf, stream) = settled(PODS, short).await;
    let mut stream = lose(&mut harness, &mut shelf, stream).await;
    let policies = stream.serve(&shelf).await;
    let told = policies.initial_resource_versions.len();
    assert_eq!(told, 1, "each type is weighed alone");
    assert!(opens_without_versions(&stream.serve(&shelf).await));
    harness.hears("connected").await;
    harness.hears("Authorization +0 -0 []").await;
    harness.hears("Address +60000 -0 []").await;
    let mut changed = harness.mesh.changed();
    while harness.mesh.load().workload(&uid(1)).is_some() {
        changed.changed().await.unwrap();
    }
    let snapshot = harness.mesh.load_full();
    assert_eq!(snapshot.workloads().count(), PODS);
    assert_eq!(&*snapshot.workload(&uid(2)).unwrap().workload_name, "2");
    assert!(snapshot.workload(&uid(PODS)).is_some());
    let policies = snapshot.policies().count();
    assert_eq!(policies, 1, "what was told is not in doubt");
}

#[tokio::test]
async fn an_answer_in_parts_takes_nothing_away_between_them() {
    let small = |config: &mut mesh::ClientConfig| {
        config.largest_request = 0;
        config.quiet = Duration::from_secs(3600);
    };
    let (mut harness, mut shelf, stream) = settled(10, small).await;
    let mut stream = lose(&mut harness, &mut shelf, stream).await;
    stream.serve(&shelf).await;
    let request = stream.next().await;
    assert!(opens_without_versions(&request));
    let reply = stream.session.on_request(&shelf, request).reply.unwrap();
    let mut last = reply.into_response();
    let rest = last.resources.split_off(5);
    let first = DeltaDiscoveryResponse {
        resources: std::mem::replace(&mut last.resources, rest),
        ..last.clone()
    };
    harness.hears("connected").await;
    harness.hears("Authorization +1 -0 []").await;
    for part in [first, last] {
        stream.responses.send(Ok(part)).await.unwrap();
        harness.hears("Address +5 -0 []").await;
        let held = (0..10).filter(|number| harness.mesh.load().workload(&uid(*number)).is_some());
        assert_eq!(
            held.count(),
            10,
            "also the one that is gone, for as long as nobody can know"
        );
    }
}

/// Policies are answered, and the addresses never are.
#[tokio::test]
async fn a_request_that_is_refused_each_time_is_not_sent_in_a_storm() {
    let (shortest, longest) = (Duration::from_millis(10), Duration::from_millis(80));
    let waits = |config: &mut mesh::ClientConfig| config.longest_wait = longest;
    let (mut harness, shelf, stream) = settled(10, waits).await;
    drop(stream);
    harness.hears("disconnected None").await;
    let after_success = harness.retries.recv().await.unwrap();
    assert!(after_success <= shortest, "{after_success:?}");
    let mut least = shortest;
    for _ in 0..3 {
        let mut stream = harness.streams.recv().await.unwrap();
        stream.serve(&shelf).await;
        let refused = Err(Status::out_of_range("too long"));
        stream.responses.send(refused).await.unwrap();
        harness.hears("connected").await;
        harness.hears("Authorization +0 -0 []").await;
        harness
            .hears(r#"disconnected Some("OutOfRange: too long")"#)
            .await;
        // Half of each wait is random; the other half doubles.
        let waits = harness.retries.recv().await.unwrap();
        assert!(waits >= least, "{waits:?} after {least:?}");
        least *= 2;
    }
    assert_eq!(count(&harness.mesh), 10, "stale, and there");
    let mut stream = harness.streams.recv().await.unwrap();
    stream.serve(&shelf).await;
    stream.serve(&shelf).await;
    for told in ["connected", "Authorization +0 -0 []", "Address +0 -0 []"] {
        harness.hears(told).await;
    }
    drop(stream);
    let after_success = harness.retries.recv().await.unwrap();
    assert!(after_success <= shortest, "{after_success:?}");
}
