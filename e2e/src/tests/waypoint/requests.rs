//! Requests through a waypoint that the control plane deployed.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;

use super::GatewayApi;
use crate::{place::Place, pod::Pod, program::ambit, run::Test, wait::eventually};

/// Routes and policies of layer 7 hold for everything that goes to the namespace, and the waypoint counts it.
pub(in crate::tests) async fn requests_pass_a_waypoint_by_route_and_policy(
    test: &Test,
) -> Result<()> {
    with_waypoint(test, |test, shop| Box::pin(by_route_and_policy(test, shop))).await
}

/// New connections and kept ones, while both pods of the waypoint are replaced.
pub(in crate::tests) async fn a_waypoint_is_replaced_under_load_and_no_request_is_lost(
    test: &Test,
) -> Result<()> {
    with_waypoint(test, |test, shop| Box::pin(replaced(test, shop))).await
}

pub(super) type Body =
    for<'a> fn(
        &'a Test,
        &'a Place,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// A namespace whose traffic passes its own waypoint.
pub(super) async fn with_waypoint(test: &Test, body: Body) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let gateways = GatewayApi::define(test).await?;
    let result = async {
        let apply = ["waypoint", "apply", "--enroll-namespace", "-n", &shop.name];
        ambit(&apply).await?.with(0)?.says("passes waypoint")?;
        test.mesh()
            .rolled_out_in::<Deployment>(&shop.name, "waypoint")
            .await?;
        body(test, &shop).await
    };
    let result = result.await;
    if result.is_err() {
        logs(test, &shop).await?;
    }
    gateways.forget(test).await?;
    result
}

async fn by_route_and_policy(test: &Test, shop: &Place) -> Result<()> {
    shop.server("web").start().await?;
    shop.server("next").start().await?;
    let phone = shop.client("phone").start().await?;
    let thief = shop.client("thief").start().await?;
    phone.reaches("http://web/").await?;

    shop.apply(ROUTE).await?;
    eventually("the route leads to the other service", || async {
        let answer = phone.asks("http://web/next/page").await?;
        ensure!(answer.pod == "next", "{answer:?}");
        let answer = phone.asks("http://web/").await?;
        ensure!(answer.pod == "web", "{answer:?}");
        Ok(())
    })
    .await?;
    eventually("the waypoint adds what the route says", || async {
        let line = "curl --silent --max-time 5 --output /dev/null --dump-header - http://web/";
        let head = phone.sh(line).await?.success()?;
        ensure!(head.contains("by: waypoint"), "{head}");
        Ok(())
    })
    .await?;

    shop.apply(&POLICY.replace("NAMESPACE", &shop.name)).await?;
    answers(&thief, "http://web/", &[], "403").await?;
    answers(&phone, "http://web/admin", &[], "403").await?;
    answers(&phone, "http://web/", &[], "200").await?;
    eventually("the policy's status says so", || async {
        let policy = ("security.istio.io/v1", "AuthorizationPolicy");
        let said = test
            .cluster
            .condition(&shop.name, policy, "web", "WaypointAccepted")
            .await?;
        ensure!(said["status"] == "True", "{said}");
        Ok(())
    })
    .await?;
    counted(test, shop).await
}

/// Its own metrics, under Istio's names.
async fn counted(test: &Test, shop: &Place) -> Result<()> {
    eventually("the waypoint has counted them", || async {
        let mut all = String::new();
        for pod in test.cluster.pods(&shop.name, OF_WAYPOINT).await? {
            let path = format!(
                "/api/v1/namespaces/{}/pods/{}:15020/proxy/metrics",
                shop.name,
                pod.name_any()
            );
            let request = http::Request::get(path).body(Vec::new())?;
            all += &test.cluster.client.request_text(request).await?;
        }
        let host = format!(
            "destination_service=\"web.{}.svc.cluster.local\"",
            shop.name
        );
        for code in ["200", "403"] {
            let code = format!("response_code=\"{code}\"");
            let mut lines = all.lines();
            let found = lines.find(|line| {
                line.starts_with("istio_requests_total")
                    && line.contains("reporter=\"waypoint\"")
                    && line.contains(&code)
                    && line.contains(&host)
            });
            found.with_context(|| format!("no line with {code} and {host}"))?;
        }
        Ok(())
    })
    .await
}

async fn replaced(test: &Test, shop: &Place) -> Result<()> {
    shop.deployment("web", 2).await?;
    let phone = shop.client("phone").start().await?;
    phone.reaches("http://web/").await?;
    let load = phone.load("http://web/", &[]).await?;
    let mesh = test.mesh();
    for _ in 0..2 {
        mesh.restart_in::<Deployment>(&shop.name, "waypoint")
            .await?;
        eventually("the old pods are gone", || async {
            let pods = test.cluster.pods(&shop.name, OF_WAYPOINT).await?;
            ensure!(pods.len() == 2, "{} pods", pods.len());
            Ok(())
        })
        .await?;
    }
    let tally = load.tally().await?;
    test.note(tally.to_string()).await;
    ensure!(tally.failures() == 0, "{tally}");
    ensure!(tally.answers() > 100, "{tally}");
    Ok(())
}

/// Waits until a request with these headers is answered with `code`.
pub(super) async fn answers(pod: &Pod, url: &str, headers: &[&str], code: &str) -> Result<()> {
    let mut line = vec![
        "curl",
        "--silent",
        "--max-time",
        "5",
        "--output",
        "/dev/null",
    ];
    line.extend(headers.iter().flat_map(|header| ["--header", header]));
    line.extend(["--write-out", "%{http_code}", url]);
    eventually(&format!("{} gets {code} from {url}", pod.name), || async {
        let said = pod.exec(line.iter().copied()).await?;
        ensure!(said.out == code, "{}{}", said.out, said.err);
        Ok(())
    })
    .await
}

/// Beside what a failure leaves of the other parts.
async fn logs(test: &Test, shop: &Place) -> Result<()> {
    let folder = std::path::Path::new("target/e2e/waypoints");
    std::fs::create_dir_all(folder)?;
    for pod in test.cluster.pods(&shop.name, OF_WAYPOINT).await? {
        let api: kube::Api<k8s_openapi::api::core::v1::Pod> =
            kube::Api::namespaced(test.cluster.client.clone(), &shop.name);
        let name = pod.name_any();
        let log = api.logs(&name, &kube::api::LogParams::default()).await;
        let text = log.unwrap_or_else(|error| error.to_string());
        std::fs::write(folder.join(format!("{}-{name}.log", shop.name)), text)?;
    }
    Ok(())
}

const OF_WAYPOINT: &str = "gateway.networking.k8s.io/gateway-name=waypoint";

const ROUTE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /next}}]
    backendRefs: [{name: next, port: 80}]
  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: by, value: waypoint}]}}]
    backendRefs: [{name: web, port: 80}]
"#;

/// The phone alone, and not everything.
const POLICY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/NAMESPACE/sa/phone]}}]
    to: [{operation: {methods: [GET], notPaths: [/admin]}}]
"#;
