//! A real Prometheus is led to every part by its annotations, and finds the names that Istio's dashboards ask for.
//!
//! Debian's Prometheus has no discovery of Kubernetes built in: the test reads the annotations in its place.

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{
    mesh::{Part, SYSTEM},
    place::Place,
    pod::Pod,
    run::Test,
    wait::eventually,
};

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
    let targets = targets(test).await?;
    let prometheus = start(&yard, &targets).await?;
    let phone = shop.client("phone").start().await?;
    for _ in 0..CALLS {
        phone.asks("http://web/").await?;
    }
    eventually(
        &format!("{} pods of {SYSTEM} answer Prometheus", targets.len()),
        || async {
            let up = ask(&prometheus, "up").await?;
            let answering = up.iter().filter(|series| series["value"][1] == "1").count();
            ensure!(
                answering == targets.len() && up.len() == targets.len(),
                "{up:?}"
            );
            Ok(())
        },
    )
    .await?;
    for reporter in ["source", "destination"] {
        counted(&prometheus, &shop, reporter).await?;
    }
    Ok(())
}

/// Every pod of the mesh as its annotations tell where it is to be asked.
async fn targets(test: &Test) -> Result<Vec<Value>> {
    let mut targets = Vec::new();
    for part in Part::ALL {
        for pod in test.mesh().pods(part).await? {
            let name = pod.name_any();
            let say = |key: &str| {
                let key = format!("prometheus.io/{key}");
                let value = pod.annotations().get(&key).cloned();
                value.with_context(|| format!("{name} has no annotation {key}"))
            };
            ensure!(say("scrape")? == "true", "{name} is not to be scraped");
            let address = format!("{}:{}", Pod::of(&test.cluster, &pod)?.ip, say("port")?);
            targets.push(json!({
                "targets": [address], "labels": { "pod": name, "__metrics_path__": say("path")? },
            }));
        }
    }
    Ok(targets)
}

async fn start(yard: &Place, targets: &[Value]) -> Result<Pod> {
    let configuration = json!({
        "global": { "scrape_interval": "1s" },
        "scrape_configs": [{ "job_name": "pods", "static_configs": targets }],
    });
    let line = format!(
        "cat >/tmp/prometheus.yml <<'END'\n{configuration}\nEND\n\
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
                found[0]["value"][1] == *CALLS.to_string(),
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
