//! A real Prometheus follows the annotations and finds the names that Istio's dashboards ask for.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    mesh::{Part, SYSTEM},
    place::Place,
    pod::Pod,
    run::Test,
    wait::eventually,
};

/// As people have it who follow `prometheus.io/…` annotations.
const CONFIGURATION: &str = r#"
global: {scrape_interval: 1s}
scrape_configs:
  - job_name: pods
    kubernetes_sd_configs: [{role: pod, namespaces: {names: [istio-system]}}]
    relabel_configs:
      - {action: keep, source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_scrape], regex: "true"}
      - {source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_path], regex: (.+), target_label: __metrics_path__}
      - {source_labels: [__meta_kubernetes_pod_ip, __meta_kubernetes_pod_annotation_prometheus_io_port], regex: (.+);(\d+), replacement: "$1:$2", target_label: __address__}
      - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
"#;

/// How many requests are made; each on a connection of its own.
const CALLS: usize = 5;

/// Traffic is counted at both ends, exactly, under the names of both workloads; every part is found and answers.
pub(super) async fn prometheus_finds_every_part_and_traffic_under_istios_labels(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.deployment("web", 1).await?;
    let first = shop.client("first").start().await?;
    first.reaches("http://web/").await?;
    let yard = test.plain("yard").await?;
    let rights = rights(&yard);
    yard.apply(&rights).await?;
    let result = async {
        let prometheus = start(&yard).await?;
        let phone = shop.client("phone").start().await?;
        for _ in 0..CALLS {
            phone.asks("http://web/").await?;
        }
        everybody_answers(test, &prometheus).await?;
        for reporter in ["source", "destination"] {
            counted(&prometheus, &shop, reporter).await?;
        }
        Ok(())
    };
    let result = result.await;
    yard.remove(&rights).await?;
    result
}

/// May list pods.
fn rights(yard: &Place) -> String {
    let name = &yard.name;
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: e2e-{name}}}\n\
         rules: [{{apiGroups: [''], resources: [pods], verbs: [get, list, watch]}}]\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: e2e-{name}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: e2e-{name}}}\n\
         subjects: [{{kind: ServiceAccount, name: prometheus, namespace: {name}}}]"
    )
}

async fn start(yard: &Place) -> Result<Pod> {
    let line = format!(
        "cat >/tmp/prometheus.yml <<'END'\n{CONFIGURATION}\nEND\n\
         exec prometheus --config.file=/tmp/prometheus.yml --storage.tsdb.path=/tmp/prometheus --web.listen-address=127.0.0.1:9090"
    );
    yard.pod("prometheus", &["sh", "-c", &line]).start().await
}

/// The series that a query finds.
async fn ask(prometheus: &Pod, query: &str) -> Result<Vec<Value>> {
    let query = format!("query={query}");
    let said = prometheus
        .exec([
            "curl",
            "--silent",
            "--show-error",
            "--data-urlencode",
            &query,
            "http://127.0.0.1:9090/api/v1/query",
        ])
        .await?
        .success()?;
    let said: Value = serde_json::from_str(&said).context(said.clone())?;
    said["data"]["result"]
        .as_array()
        .cloned()
        .with_context(|| said.to_string())
}

async fn everybody_answers(test: &Test, prometheus: &Pod) -> Result<()> {
    let mut pods = 0;
    for part in Part::ALL {
        pods += test.mesh().pods(part).await?.len();
    }
    eventually(
        &format!("{pods} pods of {SYSTEM} answer Prometheus"),
        || async {
            let up = ask(prometheus, "up").await?;
            let answering = up.iter().filter(|series| series["value"][1] == "1").count();
            ensure!(answering == pods && up.len() == pods, "{up:?}");
            Ok(())
        },
    )
    .await
}

async fn counted(prometheus: &Pod, shop: &Place, reporter: &str) -> Result<()> {
    let name = &shop.name;
    let query = format!(
        "istio_tcp_connections_opened_total{{reporter=\"{reporter}\",source_workload=\"phone\",source_workload_namespace=\"{name}\"}}"
    );
    let series = eventually(
        &format!("{CALLS} connections are counted at the {reporter}"),
        || async {
            let found = ask(prometheus, &query).await?;
            ensure!(found.len() == 1, "{found:?}");
            ensure!(
                found[0]["value"][1] == CALLS.to_string(),
                "{}",
                found[0]["value"]
            );
            Ok(found[0]["metric"].clone())
        },
    )
    .await?;
    for (label, value) in [
        ("source_principal", shop.identity("phone")),
        ("source_app", "phone".into()),
        ("source_canonical_service", "phone".into()),
        ("source_cluster", "Kubernetes".into()),
        ("destination_principal", shop.identity("web")),
        ("destination_workload", "web".into()),
        ("destination_workload_namespace", name.clone()),
        ("destination_app", "web".into()),
        ("destination_canonical_service", "web".into()),
        ("destination_cluster", "Kubernetes".into()),
        (
            "destination_service",
            format!("web.{name}.svc.cluster.local"),
        ),
        ("destination_service_name", "web".into()),
        ("destination_service_namespace", name.clone()),
        ("request_protocol", "tcp".into()),
        ("response_flags", "-".into()),
        ("connection_security_policy", "mutual_tls".into()),
    ] {
        ensure!(series[label] == value, "{label} is not {value} in {series}");
    }
    Ok(())
}
