//! The program under test.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::Channel;

use super::cluster::Cluster;
use crate::support::{PATIENCE, channel};

/// The program under test.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) grpc: SocketAddr,
}

impl Program {
    /// Runs once it says that it serves.
    pub(crate) async fn start(cluster: &Cluster) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_istiod-lite"))
            .args(["run", "--kubeconfig", &cluster.kubeconfig])
            .args([
                "--listen-grpc",
                "127.0.0.1:0",
                "--listen-monitoring",
                "127.0.0.1:0",
            ])
            .args(["--listen-webhook", "127.0.0.1:0", "--log-format", "plain"])
            .env_remove("RUST_LOG")
            .env("POD_NAME", "ambit-t-kubernetes")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let serves = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("it ended");
                println!("  | {line}");
                let address = line
                    .split("grpc=")
                    .nth(1)
                    .filter(|_| line.contains("serving"));
                if let Some(address) = address {
                    let address = address.split_whitespace().next().unwrap();
                    break address.parse::<SocketAddr>().unwrap();
                }
            }
        };
        let serves = tokio::time::timeout(2 * PATIENCE, serves).await;
        let grpc = serves.expect("it does not say that it serves");
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if !line.contains("\tinfo\t") {
                    println!("  | {line}");
                }
            }
        });
        Self { child, grpc }
    }

    /// `VmRSS` or `VmHWM` in MiB.
    pub(crate) fn memory(&self, which: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap()));
        let status = status.unwrap();
        let line = status.lines().find(|line| line.starts_with(which)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<f64>()
            .unwrap()
            / 1024.0
    }

    pub(crate) async fn channel(&self, roots: &[u8]) -> Channel {
        channel(self.grpc, roots, "istiod.istio-system.svc")
            .await
            .unwrap()
    }
}
