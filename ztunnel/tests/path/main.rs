//! The whole path with real sockets: two nodes in one process, pods in network namespaces, capture by real packet
//! rules. Needs root.

mod ca;
mod fabric;
mod lab;
mod log;

use std::sync::atomic::Ordering;
use std::time::Duration;

use lab::{At, Lab, cut, deny_port, echo, greeting, service, strict};
use tokio::io::AsyncWriteExt;

const CLIENT: [&str; 2] = ["10.77.0.1", "fd77::1"];
const SERVER: [&str; 2] = ["10.77.0.2", "fd77::2"];

#[tokio::test(flavor = "multi_thread")]
async fn bytes_cross_nodes_in_a_tunnel_and_the_app_sees_its_client() {
    let mut lab = Lab::new(&[]);
    let client = lab.pod("client-a", At::Node(0), &CLIENT).await;
    let server = lab.pod("server-a", At::Node(1), &SERVER).await;
    server.serve(9000);
    for family in [0, 1] {
        let mut tcp = client.connect(server.at(family, 9000)).await;
        assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[family]);
        echo(tcp, &vec![7; 300_000]).await;
    }
    lab.quiet().await;
    let pooled = lab.nodes[0].pool.stats();
    assert_eq!((pooled.connections, pooled.streams), (2, 0), "one tunnel connection per family, now idle");
}
