//! What there is no room for is refused with a reason, and the rest is served.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::log;
use crate::world::{At, CLIENT, PATIENCE, SERVER, World, WorldPod, cut, echo, greeting};

const OVERLOAD: &str = "response_flags=\"OVERLOAD\"";

/// A connection that is served, kept open.
async fn served(client: &WorldPod, server: &WorldPod) -> TcpStream {
    let mut tcp = client.connect(server.at(0, 9000)).await;
    greeting(&mut tcp).await.unwrap();
    tcp
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_at_its_bound_hurts_no_other_and_is_served_again_when_one_of_its_connections_ends()
{
    let mut world = World::new(&["--max-connections-per-workload", "3"]);
    let client = world.pod("client-full1", At::Node(0), &CLIENT).await;
    let other = world.pod("other-full1", At::Node(0), &["10.77.0.3"]).await;
    let outside = world.pod("outside-full1", At::Nowhere, &SERVER).await;
    outside.serve(9000);
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(served(&client, &outside).await);
    }
    client.is_reset(outside.at(0, 9000)).await;
    let line = log::line(&["client-full1", "outbound", "connection failed"]).await;
    assert!(
        line.contains("3 connections of this pod are open, as many as one may have"),
        "{line}"
    );
    let failed = ["source_workload=\"client-full1\"", OVERLOAD];
    let count = world.nodes[0].metric("istio_tcp_connections_failed_total", &failed);
    assert_eq!(count, 1);

    echo(served(&other, &outside).await, b"others are served").await;
    echo(open.pop().unwrap(), b"and what was open goes on").await;
    let begun = Instant::now();
    loop {
        let mut again = client.connect(outside.at(0, 9000)).await;
        if greeting(&mut again).await.is_ok() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "nobody is served again");
        tokio::time::sleep(Duration::from_millis(20)).await; // the one that ended has not left yet
    }
}

/// Through a tunnel (its connection counts too), and on the server's own node.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_at_its_bound_says_so_and_its_neighbour_is_served() {
    for (node, name, room) in [(1, "full2", 3), (0, "full3", 4)] {
        let mut world = World::new(&["--max-connections-per-workload", "4"]);
        let client = format!("client-{name}");
        let client = world.pod(&client, At::Node(0), &CLIENT).await;
        let (server, neighbour) = (format!("server-{name}"), format!("neighbour-{name}"));
        let to = world.pod(&server, At::Node(node), &SERVER).await;
        let beside = world.pod(&neighbour, At::Node(node), &["10.77.0.4"]).await;
        to.serve(9000);
        beside.serve(9000);
        let second = format!("second-{name}");
        let second = world.pod(&second, At::Node(0), &["10.77.0.5"]).await;
        let mut open = Vec::new();
        for _ in 0..room {
            open.push(served(&client, &to).await);
        }
        second.is_reset(to.at(0, 9000)).await;
        let line = log::line(&[&server, "inbound", "4 connections of this pod are open"]).await;
        assert!(
            line.contains("AMBIT_MAX_CONNECTIONS_PER_WORKLOAD"),
            "{line}"
        );
        let server = format!("destination_workload=\"{server}\"");
        let failed = ["reporter=\"destination\"", server.as_str(), OVERLOAD];
        let node = &world.nodes[node];
        assert!(node.metric("istio_tcp_connections_failed_total", &failed) > 0);
        echo(served(&second, &beside).await, b"a neighbour").await;
        echo(open.pop().unwrap(), b"what was open goes on").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_nobody_ends_keep_no_other_pod_from_its_own() {
    let mut world = World::new(&["--max-handshakes", "4"]);
    let client = world.pod("client-full4", At::Node(0), &CLIENT).await;
    let flooded = world.pod("flooded-full4", At::Node(1), &SERVER).await;
    let server = world.pod("server-full4", At::Node(1), &["10.77.0.4"]).await;
    let outside = world
        .pod("outside-full4", At::Nowhere, &["10.77.0.6"])
        .await;
    server.serve(9000);
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(outside.connect(flooded.at(0, 15008)).await);
    }
    // One that was taken has not always begun yet.
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "all are taken");
        let Ok(mut newest) = outside.try_connect(flooded.at(0, 15008)).await else {
            break; // it was as fast as that
        };
        let heard = tokio::time::timeout(Duration::from_millis(300), cut(&mut newest)).await;
        if heard.is_ok() {
            break;
        }
        silent.push(newest);
    }
    let line = log::line(&["flooded-full4", "inbound", "handshakes with this pod"]).await;
    assert!(line.contains("2 handshakes"), "{line}");
    echo(served(&client, &server).await, b"as if nothing were").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_when_memory_is_short_is_refused_and_what_is_open_goes_on() {
    let mut world = World::new(&["--max-memory", "1"]);
    let client = world.pod("client-full5", At::Node(0), &CLIENT).await;
    let outside = world.pod("outside-full5", At::Nowhere, &SERVER).await;
    outside.serve(9000);
    // It is measured as soon as the node stands.
    let begun = Instant::now();
    while let Ok(mut tcp) = client.try_connect(outside.at(0, 9000)).await {
        if greeting(&mut tcp).await.is_err() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "all are served");
    }
    let line = log::line(&["client-full5", "outbound", "connection failed"]).await;
    assert!(
        line.contains("bytes of memory, more than it takes on"),
        "{line}"
    );
}
