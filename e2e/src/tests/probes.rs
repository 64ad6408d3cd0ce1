//! Kubelet's probes, and who else may speak to a pod from its node.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use lab::Metrics;
use serde_json::{Value, json};

use super::policy::STRICT;
use crate::{node::Node, pod::Pod, run::Test, wait::eventually};

/// Liveness and readiness of each kind go on succeeding while plain text is refused: the kubelet counts five more of each, no failure, and
/// starts nothing anew.
pub(super) async fn every_kind_of_probe_works_under_strict(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.apply(STRICT).await?;
    let outside = test.plain("outside").await?;
    let stranger = outside.client("stranger").start().await?;
    let kinds = [
        (
            "http",
            json!({ "httpGet": { "port": 8080, "path": "/ready" } }),
        ),
        ("tcp", json!({ "tcpSocket": { "port": 9000 } })),
        ("grpc", json!({ "grpc": { "port": 8080 } })),
        ("exec", json!({ "exec": { "command": ["true"] } })),
    ];
    let pods = try_join_all(kinds.into_iter().enumerate().map(|(index, (name, probe))| {
        let every_second = |failures: u32| {
            let mut probe = probe.clone();
            probe["periodSeconds"] = json!(1);
            // Of a busy node a program that only ends may take more than the second that is usual.
            probe["timeoutSeconds"] = json!(10);
            probe["failureThreshold"] = json!(failures);
            probe
        };
        let mut server = shop.server(name).readiness(every_second(1));
        server.container["livenessProbe"] = every_second(3);
        server.on(test.node(index)).start()
    }))
    .await?;
    for pod in &pods {
        stranger
            .is_refused(&format!("http://{}/", pod.at(8080)))
            .await?;
    }
    for pod in &pods {
        let before = Probes::counted(test, pod).await?;
        eventually(&format!("the kubelet's probes of {}", pod.name), || async {
            let now = Probes::counted(test, pod).await?;
            ensure!(now.failed == before.failed, "{before:?}, then {now:?}");
            for kind in ["Liveness", "Readiness"] {
                ensure!(
                    now.succeeded(kind) >= before.succeeded(kind) + 5,
                    "{before:?}, then {now:?}"
                );
            }
            Ok(())
        })
        .await?;
        let object = pod.object().await?;
        let restarts: i32 = (object.status.iter())
            .flat_map(|status| status.container_statuses.iter().flatten())
            .map(|container| container.restart_count)
            .sum();
        ensure!(
            restarts == 0 && crate::pod::is_ready(Some(&object)),
            "{}: {restarts} restarts, or not ready any more",
            pod.name
        );
    }
    Ok(())
}

/// What the kubelet has counted of a pod's probes.
#[derive(Debug)]
struct Probes {
    /// By kind of probe.
    succeeded: BTreeMap<String, u64>,
    failed: u64,
}

impl Probes {
    async fn counted(test: &Test, pod: &Pod) -> Result<Self> {
        let path = format!("/api/v1/nodes/{}/proxy/metrics/probes", pod.node);
        let request = http::Request::get(path).body(Vec::new())?;
        let metrics = Metrics::parse(&test.cluster.client.request_text(request).await?);
        let labels = [
            ("namespace", pod.namespace.as_str()),
            ("pod", pod.name.as_str()),
        ];
        let mut found = Self {
            succeeded: BTreeMap::new(),
            failed: 0,
        };
        for sample in metrics.select("prober_probe_total", &labels) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a counter
            let count = sample.value as u64;
            if sample.labels["result"] == "successful" {
                *found
                    .succeeded
                    .entry(sample.labels["probe_type"].clone())
                    .or_default() += count;
            } else {
                found.failed += count;
            }
        }
        Ok(found)
    }

    fn succeeded(&self, kind: &str) -> u64 {
        self.succeeded.get(kind).copied().unwrap_or_default()
    }
}

/// A probe that must fail does, of every kind: readiness is the application's, not the proxy's.
pub(super) async fn a_pod_whose_application_is_down_is_not_ready(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let kinds: [(&str, Value); 3] = [
        ("http", json!({ "httpGet": { "port": 7777 } })),
        ("tcp", json!({ "tcpSocket": { "port": 7777 } })),
        ("grpc", json!({ "grpc": { "port": 7777 } })),
    ];
    for (name, mut probe) in kinds {
        probe["periodSeconds"] = json!(1);
        shop.server(name).readiness(probe).create().await?;
    }
    eventually("the kubelet reports failed probes", || async {
        let events = test.cluster.events(&shop.name).await?;
        for name in ["http", "tcp", "grpc"] {
            ensure!(
                events.iter().any(|event| event.starts_with(name)
                    && event.contains("Unhealthy")
                    && event.contains("7777")),
                "{name}: {events:#?}"
            );
        }
        Ok(())
    })
    .await?;
    for pod in test.cluster.pods(&shop.name, "").await? {
        ensure!(
            !crate::pod::is_ready(Some(&pod)),
            "{:?} is ready without anything that listens",
            pod.metadata.name
        );
    }
    Ok(())
}

/// Processes of the node that are not the kubelet are strangers, be they root's or not, on the pod's node or another, and over both families:
/// STRICT refuses them, while the kubelet's probes pass.
pub(super) async fn other_processes_of_the_node_do_not_pass_as_kubelet(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let web = shop.server("web").on(test.node(0)).start().await?;
    let probes = Probes::counted(test, &web).await?;
    let asked: Vec<(&Node, String)> = [test.node(0), test.node(1)]
        .into_iter()
        .flat_map(|node| {
            web.ips.iter().flat_map(move |ip| {
                let at = if ip.contains(':') {
                    format!("[{ip}]")
                } else {
                    ip.clone()
                };
                let ask =
                    format!("curl --silent --show-error --fail --max-time 5 http://{at}:8080/");
                let as_nobody = format!("setpriv --reuid=65534 --regid=65534 --clear-groups {ask}");
                [(node, ask), (node, as_nobody)]
            })
        })
        .collect();
    for (node, ask) in &asked {
        eventually("the node may ask while plain text is allowed", || async {
            node.sh(ask).await?.success()
        })
        .await?;
    }
    shop.apply(STRICT).await?;
    for (node, ask) in &asked {
        eventually(&format!("{ask} is refused on {}", node.name), || async {
            let said = node.sh(ask).await?;
            ensure!(!said.success, "answered {}", said.out);
            ensure!(!said.err.contains("timed out"), "timed out instead");
            Ok(())
        })
        .await?;
    }
    eventually("the kubelet's probes of web", || async {
        let now = Probes::counted(test, &web).await?;
        ensure!(
            now.failed == probes.failed
                && now.succeeded("Readiness") > probes.succeeded("Readiness") + 3,
            "{probes:?}, then {now:?}"
        );
        Ok(())
    })
    .await
}
