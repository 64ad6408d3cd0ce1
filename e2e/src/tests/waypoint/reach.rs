//! Whose traffic a waypoint takes, and what becomes of it while none runs.

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;

use super::{GATEWAY, GatewayApi};
use crate::{place::Place, pod::Pod, run::Test, wait::eventually};

/// One that lets other namespaces in takes the traffic of the service that names it, and of no other; bytes that are no
/// HTTP pass it too, and so does a pod's own address where the waypoint is for workloads.
pub(in crate::tests) async fn a_waypoint_of_another_namespace_takes_what_names_it_and_nothing_else(
    test: &Test,
) -> Result<()> {
    let (doors, shop) = (test.plain("doors").await?, test.ambient("shop").await?);
    let gateways = GatewayApi::define(test).await?;
    let result = elsewhere(test, &doors, &shop).await;
    gateways.forget(test).await?;
    result
}

async fn elsewhere(test: &Test, doors: &Place, shop: &Place) -> Result<()> {
    doors
        .apply(&gateway("", ", allowedRoutes: {namespaces: {from: All}}"))
        .await?;
    let named = shop.server("named").create();
    let other = shop.server("other").start();
    tokio::try_join!(named, other)?;
    let single = shop.server("single").without_service();
    let single = single
        .label("istio.io/use-waypoint", "waypoint")
        .label("istio.io/use-waypoint-namespace", &doors.name)
        .start()
        .await?;
    let phone = shop.client("phone").start().await?;
    let services: kube::Api<k8s_openapi::api::core::v1::Service> =
        kube::Api::namespaced(test.cluster.client.clone(), &shop.name);
    let patch = serde_json::json!({"metadata": {"labels": {
        "istio.io/use-waypoint": "waypoint", "istio.io/use-waypoint-namespace": doors.name,
    }}});
    let patch = kube::api::Patch::Merge(patch);
    services
        .patch("named", &kube::api::PatchParams::default(), &patch)
        .await?;
    test.mesh()
        .rolled_out_in::<Deployment>(&doors.name, "waypoint")
        .await?;
    let waypoints = addresses(test, doors).await?;
    comes_from(&phone, "http://named/", &waypoints).await?;
    comes_from(&phone, "http://other/", &phone.ips).await?;
    comes_from(&phone, &format!("http://{}/", single.at(8080)), &waypoints).await?;
    let held = phone.holds("named:9000").await?;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    held.still_held().await.map(drop)
}

/// Its policies cannot be applied then, so nobody passes without them.
pub(in crate::tests) async fn while_no_pod_of_a_waypoint_runs_its_traffic_is_refused(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let gateways = GatewayApi::define(test).await?;
    let result = refused(test, &shop).await;
    gateways.forget(test).await?;
    result
}

async fn refused(test: &Test, shop: &Place) -> Result<()> {
    let wished = |replicas: u32| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: wishes}}\ndata: {{deployment: 'spec: {{replicas: {replicas}}}'}}"
        )
    };
    shop.apply(&wished(1)).await?;
    let parameters =
        "infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: wishes}}, ";
    shop.apply(&gateway(parameters, "")).await?;
    shop.label("istio.io/use-waypoint", Some("waypoint"))
        .await?;
    shop.server("web").start().await?;
    let phone = shop.client("phone").start().await?;
    phone.reaches("http://web/").await?;
    shop.apply(&wished(0)).await?;
    phone.is_refused("http://web/").await?;
    shop.apply(&wished(1)).await?;
    phone.reaches("http://web/").await?;
    let waypoints = addresses(test, shop).await?;
    comes_from(&phone, "http://web/", &waypoints).await
}

/// A Gateway named waypoint, for everything.
fn gateway(spec: &str, listener: &str) -> String {
    let (version, kind) = GATEWAY;
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: waypoint, labels: {{istio.io/waypoint-for: all}}}}\nspec: {{{spec}gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE{listener}}}]}}"
    )
}

async fn addresses(test: &Test, place: &Place) -> Result<Vec<String>> {
    addresses_of(test, place, "waypoint").await
}

/// Of the pods of a Gateway that stay.
pub(super) async fn addresses_of(test: &Test, place: &Place, name: &str) -> Result<Vec<String>> {
    let label = format!("gateway.networking.k8s.io/gateway-name={name}");
    let pods = test.cluster.pods(&place.name, &label).await?;
    let pods = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let ips = pods.flat_map(|pod| {
        let status = pod.status.clone().unwrap_or_default();
        status.pod_ips.unwrap_or_default()
    });
    Ok(ips.map(|it| it.ip).collect())
}

/// Waits until requests arrive from one of these addresses, three times in a row.
async fn comes_from(pod: &Pod, url: &str, from: &[String]) -> Result<()> {
    eventually(&format!("{url} is asked from {from:?}"), || async {
        for _ in 0..3 {
            let answer = pod.asks(url).await?;
            let seen = answer.from.trim_start_matches("::ffff:");
            ensure!(from.iter().any(|it| it == seen), "asked from {seen}");
        }
        Ok(())
    })
    .await
}
