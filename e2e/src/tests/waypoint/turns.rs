//! Which of several waypoints takes a request: a canary's share, an object's own label before its namespace's, whom a waypoint is for.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::{GATEWAY, GatewayApi, reach::addresses_of};
use crate::{place::Place, pod::Pod, run::Test, wait::eventually};

/// Nothing is lost while shares change, nor when the canary takes the other's place, which goes then.
pub(in crate::tests) async fn a_canary_waypoint_takes_its_share_and_an_object_chooses_its_own(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let gateways = GatewayApi::define(test).await?;
    let result = shares(test, &shop).await;
    gateways.forget(test).await?;
    result
}

async fn shares(test: &Test, shop: &Place) -> Result<()> {
    shop.apply(WISHES).await?;
    for (name, what) in [("old", "service"), ("new", "service"), ("pods", "workload")] {
        shop.apply(&gateway(name, what)).await?;
    }
    for name in ["web", "free", "choosy", "misled"] {
        shop.server(name).create().await?;
    }
    let phone = shop.client("phone").start().await?;
    for name in ["old", "new", "pods"] {
        test.mesh()
            .rolled_out_in::<Deployment>(&shop.name, name)
            .await?;
    }
    let (old, new) = (
        addresses_of(test, shop, "old").await?,
        addresses_of(test, shop, "new").await?,
    );
    shop.label("istio.io/use-waypoint", Some("old")).await?;
    for (name, waypoint) in [("free", "none"), ("choosy", "new"), ("misled", "pods")] {
        let labels = json!({"istio.io/use-waypoint": waypoint});
        patch(test, shop, name, json!({"labels": labels})).await?;
    }
    seen(&phone, "http://web/", [(&old, 40..=40), (&new, 0..=0)]).await?;
    seen(&phone, "http://choosy/", [(&old, 0..=0), (&new, 40..=40)]).await?;
    seen(
        &phone,
        "http://free/",
        [(&phone.ips, 40..=40), (&old, 0..=0)],
    )
    .await?;
    // A waypoint that is for pods alone is not asked by a service's traffic.
    seen(
        &phone,
        "http://misled/",
        [(&phone.ips, 40..=40), (&old, 0..=0)],
    )
    .await?;

    let load = phone.load("http://web/", &[]).await?;
    for (weight, of_old, of_new) in [("50", 5..=35, 5..=35), ("100", 0..=0, 40..=40)] {
        let labels = json!({"istio.io/use-waypoint": "old", "istio.io/use-waypoint-canary": "new"});
        let annotations = json!({"istio.io/use-waypoint-canary-weight": weight});
        let metadata = json!({"labels": labels, "annotations": annotations});
        patch(test, shop, "web", metadata).await?;
        seen(&phone, "http://web/", [(&old, of_old), (&new, of_new)]).await?;
    }
    // Back, and to the other for good, past the time in which the earlier one serves what it has left.
    for (waypoint, of_old, of_new) in [("old", 40..=40, 0..=0), ("new", 0..=0, 40..=40)] {
        let labels =
            json!({"istio.io/use-waypoint": waypoint, "istio.io/use-waypoint-canary": null});
        patch(test, shop, "web", json!({"labels": labels})).await?;
        seen(&phone, "http://web/", [(&old, of_old), (&new, of_new)]).await?;
    }
    tokio::time::sleep(LEFT).await;
    let tally = load.tally().await?;
    test.note(tally.to_string()).await;
    ensure!(tally.failures() == 0, "{tally}");
    let gone = ["delete", "gateway", "old", "-n", &shop.name];
    crate::program::kubectl(&gone, "").await?.with(0)?;
    seen(&phone, "http://web/", [(&old, 0..=0), (&new, 40..=40)]).await
}

/// Waits until of forty requests, each on a connection of its own, so many come from each.
async fn seen(
    phone: &Pod,
    url: &str,
    wanted: [(&Vec<String>, std::ops::RangeInclusive<usize>); 2],
) -> Result<()> {
    let ask = json!([{"url": url, "times": 40}]).to_string();
    let words = ["/opt/e2e/app", "ask", "--namespace", &phone.namespace, &ask];
    eventually(&format!("{url} is asked from {wanted:?}"), || async {
        let told = phone.exec(words).await?.success()?;
        let heard: Vec<Vec<crate::feature::Heard>> = serde_json::from_str(&told)?;
        let heard = heard.first().context("no answer")?;
        ensure!(heard.iter().all(|one| one.status == 200), "{heard:?}");
        let from: Vec<&str> = heard
            .iter()
            .filter_map(|one| one.said["from"].as_str())
            .collect();
        for (addresses, range) in &wanted {
            let count = from
                .iter()
                .filter(|it| addresses.iter().any(|address| address == *it))
                .count();
            ensure!(range.contains(&count), "{count} from {addresses:?}");
        }
        Ok(())
    })
    .await
}

async fn patch(
    test: &Test,
    shop: &Place,
    service: &str,
    metadata: serde_json::Value,
) -> Result<()> {
    let services: Api<Service> = Api::namespaced(test.cluster.client.clone(), &shop.name);
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    services
        .patch(service, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

/// In which a waypoint has left what names another, and some more.
const LEFT: std::time::Duration = std::time::Duration::from_secs(12);

const WISHES: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: wishes}
data: {deployment: 'spec: {replicas: 1}', podDisruptionBudget: 'null'}
";

fn gateway(name: &str, what: &str) -> String {
    let (version, kind) = GATEWAY;
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, labels: {{istio.io/waypoint-for: {what}}}}}\nspec: {{gatewayClassName: istio-waypoint, infrastructure: {{parametersRef: {{group: '', kind: ConfigMap, name: wishes}}}}, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}"
    )
}
