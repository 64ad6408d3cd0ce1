//! An east-west gateway: asked for like a waypoint, and the door of its network to all others.

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;

use super::{GATEWAY, GatewayApi, reach::addresses_of};
use crate::{place::Place, run::Test, wait::eventually};

/// `networking.istio.io/service-type`: no balancer answers here.
const DOOR: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: door, annotations: {networking.istio.io/service-type: ClusterIP}}
spec:
  gatewayClassName: istio-east-west
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// One cluster has one network. It is told that a pod of `far` is on another one, which is reached through the door, and
/// the door leads whoever comes there to the pods of its own.
pub(in crate::tests) async fn an_east_west_gateway_runs_and_leads_who_comes_from_elsewhere_to_a_service(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let gateways = GatewayApi::define(test).await?;
    let result = led(test, &shop).await;
    gateways.forget(test).await?;
    result
}

async fn led(test: &Test, shop: &Place) -> Result<()> {
    shop.apply(DOOR).await?;
    test.mesh()
        .rolled_out_in::<Deployment>(&shop.name, "door")
        .await?;
    eventually("the gateway is programmed", || async {
        let said = test
            .cluster
            .condition(&shop.name, GATEWAY, "door", "Programmed");
        let said = said.await?;
        ensure!(said["status"] == "True", "{said}");
        Ok(())
    })
    .await?;
    let service = test
        .cluster
        .object(&shop.name, "v1", "Service", "door")
        .await?;
    ensure!(
        service.data["spec"]["type"] == "ClusterIP",
        "{}",
        service.data["spec"]
    );

    shop.apply(&far("")).await?;
    let server = shop.server("far").without_service();
    server.on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    phone.reaches("http://far/").await?;
    let doors = addresses_of(test, shop, "door").await?;
    let address = doors.first().map_or("", String::as_str);
    shop.apply(&elsewhere(&shop.name, address)).await?;
    let by_the_door = || async {
        eventually("requests that came through the door", || async {
            let answer = phone.asks("http://far/").await?;
            let seen = answer.from.trim_start_matches("::ffff:");
            ensure!(doors.iter().any(|it| it == seen), "asked from {seen}");
            Ok(())
        })
        .await
    };
    let by_no_door = || async {
        eventually("nobody goes by the door", || async {
            for _ in 0..5 {
                let answer = phone.asks("http://far/").await?;
                let seen = answer.from.trim_start_matches("::ffff:");
                ensure!(doors.iter().all(|it| it != seen), "asked from {seen}");
            }
            Ok(())
        })
        .await
    };
    // It is LOCAL yet.
    by_no_door().await?;
    shop.apply(&far("istio.io/global: 'true'")).await?;
    by_the_door().await?;
    shop.apply(&far("")).await?;
    by_no_door().await?;
    shop.apply(&far("istio.io/global: 'true'")).await?;
    by_the_door().await?;
    // Without it the pod itself is left, and is all there is.
    shop.remove(&elsewhere(&shop.name, address)).await?;
    by_no_door().await
}

/// The Service, with labels of its own.
fn far(labels: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: far, labels: {{{labels}}}}}
spec: {{selector: {{app: far}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
"
    )
}

/// What a cluster is told of another one: where its door is, and that somebody there serves `far`.
fn elsewhere(namespace: &str, address: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: other
  namespace: {namespace}
  labels: {{topology.istio.io/network: other}}
  annotations: {{gateway.istio.io/service-account: door}}
spec:
  gatewayClassName: istio-remote
  addresses: [{{type: IPAddress, value: '{address}'}}]
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: far-elsewhere, namespace: {namespace}}}
spec:
  network: other
  serviceAccount: far
  labels: {{app: far, networking.istio.io/tunnel: http}}
"
    )
}
