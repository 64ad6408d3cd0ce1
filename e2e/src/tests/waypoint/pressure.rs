//! More than a waypoint has room for: who is one too many is told so at once, and everybody else is served.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

use super::{GATEWAY, GatewayApi};
use crate::{feature::Heard, place::Place, pod::Pod, run::Test, wait::eventually};

/// Four requests at a time, two of them for one client, as its parameters say.
pub(in crate::tests) async fn a_waypoint_that_is_full_says_so_and_serves_the_others(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let gateways = GatewayApi::define(test).await?;
    let result = Box::pin(full(test, &shop)).await;
    gateways.forget(test).await?;
    result
}

async fn full(test: &Test, shop: &Place) -> Result<()> {
    let (version, kind) = GATEWAY;
    shop.apply(WISHES).await?;
    shop.apply(&format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: waypoint}}\nspec: {{gatewayClassName: istio-waypoint, infrastructure: {{parametersRef: {{group: '', kind: ConfigMap, name: wishes}}}}, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}"
    ))
    .await?;
    shop.label("istio.io/use-waypoint", Some("waypoint"))
        .await?;
    shop.server("web").start().await?;
    let (phone, other) = (shop.client("phone"), shop.client("other"));
    let (phone, other) = tokio::try_join!(phone.start(), other.start())?;
    test.mesh()
        .rolled_out_in::<Deployment>(&shop.name, "waypoint")
        .await?;
    phone.reaches("http://web/").await?;
    other.reaches("http://web/").await?;
    eventually("one client has half of the room", || async {
        let (crowd, single) = tokio::try_join!(
            asks(
                &phone,
                json!({"headers": {"x-do": "wait=1500"}, "times": 8, "together": true})
            ),
            asks(&other, json!({"headers": {"x-do": "wait=300"}, "times": 3})),
        )?;
        let of = |heard: &[Heard], status| heard.iter().filter(|it| it.status == status).count();
        ensure!(of(&crowd, 200) == 2 && of(&crowd, 503) == 6, "{crowd:?}");
        ensure!(of(&single, 200) == 3, "{single:?}");
        Ok(())
    })
    .await?;
    // What was too much has left nothing behind.
    let after = asks(&phone, json!({"times": 20})).await?;
    ensure!(after.iter().all(|it| it.status == 200), "{after:?}");
    Ok(())
}

async fn asks(pod: &Pod, mut question: serde_json::Value) -> Result<Vec<Heard>> {
    question["url"] = "http://web/".into();
    let ask = json!([question]).to_string();
    let words = ["/opt/e2e/app", "ask", "--namespace", &pod.namespace, &ask];
    let told = pod.exec(words).await?.success()?;
    let heard: Vec<Vec<Heard>> = serde_json::from_str(&told)?;
    heard.into_iter().next().context("no answer")
}

const WISHES: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: wishes}
data:
  podDisruptionBudget: 'null'
  deployment: |
    spec: {replicas: 1, template: {spec: {containers: [{name: istio-proxy, env: [{name: AMBIT_MAX_REQUESTS, value: '4'}]}]}}}
";
