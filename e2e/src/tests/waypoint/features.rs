//! Every file of `features/`, on a real cluster: applied, asked, taken away, one after the other behind one waypoint.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use lab::AccessRecord;
use serde_json::Value;

use super::GatewayApi;
use crate::{
    feature::{
        CLIENTS, ELSEWHERE, Feature, Heard, PORTS, PROVIDERS, SERVERS, SERVICES, SHOP, all_counted,
    },
    place::Place,
    pod::Pod,
    run::Test,
    wait::eventually,
};

/// What must be so is so as soon as the proxies know; nothing of it holds before it is applied.
pub(in crate::tests) async fn every_feature_does_what_its_file_says(test: &Test) -> Result<()> {
    let gateways = GatewayApi::define(test).await?;
    let result = all(test, gateways.ours).await;
    gateways.forget(test).await?;
    result
}

/// `ours`: the definitions are the tests' own. The standard channel's lack some of what the files say; those are named.
async fn all(test: &Test, ours: bool) -> Result<()> {
    let town = Town::build(test).await?;
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("features");
    let word = std::env::var("FEATURES").unwrap_or_default();
    let (mut proven, mut failed, mut undefined) = (Vec::new(), Vec::new(), Vec::new());
    for feature in Feature::all(&files)? {
        if !feature.name.contains(&word) {
            continue;
        }
        match town.proves(test, &feature).await {
            Ok(()) => proven.push(feature),
            Err(error) if !ours && is_undefined(&error) => undefined.push(feature.name),
            Err(error) => failed.push(format!("{}: {error:#}", feature.name)),
        }
    }
    let count = proven.len();
    test.note(format!("{count} features did what their files say"))
        .await;
    if !undefined.is_empty() {
        let names = undefined.join(", ");
        test.note(format!(
            "the cluster's Gateway API is too small for {names}"
        ))
        .await;
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n     "));
    let page = page(test, "metrics").await?;
    all_counted(&proven, &lab::Metrics::parse(&page))
}

fn is_undefined(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    text.contains("field not declared in schema") || text.contains("the cluster has no kind")
}

/// One pod: what it counts and logs is all there is.
const GATEWAY: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: wishes}
data: {deployment: 'spec: {replicas: 1}', podDisruptionBudget: 'null'}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: wishes}}
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// What every feature finds there.
struct Town {
    clients: Vec<Pod>,
}

impl Town {
    async fn build(test: &Test) -> Result<Self> {
        let mut places = Vec::new();
        for name in [SHOP, ELSEWHERE, PROVIDERS] {
            places.push(test.exactly(name).await?);
        }
        let place = |name: &str| -> Result<&Place> {
            let mut places = places.iter();
            places.find(|place| place.name == name).context("a place")
        };
        let shop = place(SHOP)?;
        shop.apply(GATEWAY).await?;
        shop.label("istio.io/use-waypoint", Some("waypoint"))
            .await?;
        for (namespace, name, label) in SERVICES {
            place(namespace)?.service(name, label, &PORTS).await?;
        }
        let mut servers = Vec::new();
        for (number, [namespace, name, app, version]) in SERVERS.into_iter().enumerate() {
            let server = place(namespace)?.server(name).without_service();
            let server = server.account(app).label("app", app);
            let server = server.label("version", version);
            servers.push(server.on(test.node(number)).start());
        }
        let clients = CLIENTS.iter().map(|[namespace, name]| async move {
            let client = place(namespace)?.client(name);
            client.on(test.node(1)).start().await
        });
        let (_, clients) = tokio::try_join!(try_join_all(servers), try_join_all(clients))?;
        test.mesh()
            .rolled_out_in::<Deployment>(SHOP, "waypoint")
            .await?;
        Ok(Self { clients })
    }

    async fn proves(&self, test: &Test, feature: &Feature) -> Result<()> {
        if !feature.objects.is_empty() && self.holds(test, feature).await.is_ok() {
            bail!("it holds before anything is applied");
        }
        for object in &feature.objects {
            test.cluster.apply_object(SHOP, object.clone()).await?;
        }
        let held = eventually(&feature.name, || async {
            self.holds(test, feature).await?;
            said(test, feature).await
        });
        let held = held.await;
        for object in &feature.objects {
            test.cluster.delete(SHOP, &object.to_string()).await?;
        }
        held
    }

    async fn holds(&self, test: &Test, feature: &Feature) -> Result<()> {
        let mut heard: Vec<Vec<Heard>> = Vec::new();
        for (name, asks) in feature.clients() {
            let questions = serde_json::to_string(&asks)?;
            let client = self.clients.iter().find(|pod| pod.name == name);
            let words = ["/opt/e2e/app", "ask", "--namespace", SHOP, &questions];
            let client = client.context("no such client")?;
            let told = client.exec(words).await?.success()?;
            heard.extend(serde_json::from_str::<Vec<Vec<Heard>>>(&told)?);
        }
        let logs = feature.asks.iter().any(|ask| !ask.log.is_empty());
        let log = if logs {
            records(test).await?
        } else {
            Vec::new()
        };
        feature.judge(&heard, &log)?;
        if feature.counts() {
            let page = page(test, "metrics").await?;
            feature.counted(&lab::Metrics::parse(&page))?;
        }
        Ok(())
    }
}

async fn said(test: &Test, feature: &Feature) -> Result<()> {
    for object in &feature.objects {
        let text = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or("");
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let (version, kind) = (text("/apiVersion"), text("/kind"));
        let there = test.cluster.object(namespace, version, kind, name).await?;
        feature.accepted(object, &there.data["status"])?;
    }
    Ok(())
}

async fn waypoint(test: &Test) -> Result<String> {
    let label = "gateway.networking.k8s.io/gateway-name=waypoint";
    let pods = test.cluster.pods(SHOP, label).await?;
    Ok(pods.first().context("no pod of the waypoint")?.name_any())
}

async fn page(test: &Test, path: &str) -> Result<String> {
    let pod = waypoint(test).await?;
    let path = format!("/api/v1/namespaces/{SHOP}/pods/{pod}:15020/proxy/{path}");
    let request = http::Request::get(path).body(Vec::new())?;
    Ok(test.cluster.client.request_text(request).await?)
}

async fn records(test: &Test) -> Result<Vec<AccessRecord>> {
    let api: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(test.cluster.client.clone(), SHOP);
    let since = kube::api::LogParams {
        since_seconds: Some(180),
        ..Default::default()
    };
    let log = api.logs(&waypoint(test).await?, &since).await?;
    Ok(log.lines().filter_map(AccessRecord::parse).collect())
}
