//! `ambit status` against a real cluster: nothing, and then each thing that is wrong.

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::waypoint::GatewayApi;
use crate::{mesh::Part, program::ambit, run::Test, wait::eventually};

/// A policy that ztunnel cannot enforce, one for a service that is not there, a Gateway of nobody's class.
const MISTAKES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: audit}
spec: {action: AUDIT, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: lost}
spec: {targetRefs: [{group: '', kind: Service, name: no-such-service}], rules: [{}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: odd}
spec: {gatewayClassName: no-such-class, listeners: [{name: http, port: 80, protocol: HTTP}]}
";

/// Alone on the cluster, for it must first be well.
pub(super) async fn status_finds_nothing_and_then_each_thing_that_is_wrong(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let web = shop.server("web").start().await?;
    let phone = shop.client("phone").start().await?;
    web.enrolled().await?;
    phone.enrolled().await?;
    let gateways = GatewayApi::define(test).await?;
    let result = async {
        eventually("ambit status finds nothing wrong", || async {
            ambit(&["status"]).await?.with(0)?.says("nothing is wrong")
        })
        .await?;
        let row = json!({ "name": shop.name, "enrolled": true, "captured": 2, "waiting": 0, "outside": 0 });
        // What another test has replaced may be on its way out yet.
        eventually("ambit status lists every part and namespace", || async {
            let report: Value = ambit(&["status", "-o", "json"]).await?.with(0)?.json()?;
            every_part_on_every_node(test, &report).await?;
            let rows = report["namespaces"].as_array().context("no namespaces")?;
            ensure!(rows.contains(&row), "{row} is not in {rows:?}");
            Ok(())
        })
        .await?;

        let load = phone.load("http://web/", &[]).await?;
        shop.apply(MISTAKES).await?;
        for (subject, severity, words) in [
            ("AuthorizationPolicy {}/audit", "error", "AUDIT"),
            ("AuthorizationPolicy {}/lost", "error", "no-such-service"),
            ("Gateway {}/odd", "warning", "no-such-class"),
        ] {
            let subject = subject.replace("{}", &shop.name);
            finds(&subject, severity, words).await?;
        }
        ambit(&["status"])
            .await?
            .with(1)?
            .says("ERROR: AuthorizationPolicy")?;
        shop.remove(MISTAKES).await?;
        eventually("ambit status finds nothing wrong again", || async {
            ambit(&["status"]).await?.with(0)
        })
        .await?;
        let tally = load.tally().await?;
        ensure!(
            tally.failures() == 0,
            "the mistakes of others were felt: {tally}"
        );
        Ok(())
    };
    let result = result.await;
    gateways.forget(test).await?;
    result
}

/// Each part is ready, each node has its two, each ztunnel has all its configuration.
async fn every_part_on_every_node(test: &Test, report: &Value) -> Result<()> {
    let parts = report["parts"].as_array().context("no parts")?;
    ensure!(
        parts.len() == 3 && parts.iter().all(|part| part["ready"] == part["wanted"]),
        "{parts:?}"
    );
    let pods = report["pods"].as_array().context("no pods")?;
    for part in Part::ALL {
        for pod in test.mesh().pods(part).await? {
            let row = pods.iter().find(|row| row["name"] == *pod.name_any());
            let row = row.with_context(|| format!("{} is not in {pods:?}", pod.name_any()))?;
            let sync = if part == Part::Ztunnel { "synced" } else { "" };
            ensure!(row["ready"] == true && row["sync"] == sync, "{row}");
        }
    }
    Ok(())
}

/// Waits until `ambit status` finds that; it must know a remedy.
pub(super) async fn finds(subject: &str, severity: &str, words: &str) -> Result<Value> {
    eventually(&format!("ambit status names {subject}"), || async {
        let report: Value = ambit(&["status", "-o", "json"]).await?.json()?;
        let findings = report["findings"].as_array().context("no findings")?;
        let found = findings.iter().find(|finding| {
            finding["subject"] == subject
                && finding["severity"] == severity
                && finding["wrong"]
                    .as_str()
                    .is_some_and(|text| text.contains(words))
                && finding["remedy"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty())
        });
        found.cloned().with_context(|| format!("{findings:?}"))
    })
    .await
}
