//! Kubelet's probes, and who else may speak to a pod from its node.

use anyhow::{Result, ensure};
use serde_json::json;

use super::policy::STRICT;
use crate::run::Test;

/// Each kind of probe makes its pod ready although plain text is refused.
pub(super) async fn every_kind_of_probe_works_under_strict(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.apply(STRICT).await?;
    let outside = test
        .plain("outside")
        .await?
        .client("stranger")
        .start()
        .await?;
    let probes = [
        (
            "http",
            json!({ "httpGet": { "port": 8080, "path": "/ready" }, "periodSeconds": 1 }),
        ),
        (
            "tcp",
            json!({ "tcpSocket": { "port": 9000 }, "periodSeconds": 1 }),
        ),
        (
            "grpc",
            json!({ "grpc": { "port": 8080 }, "periodSeconds": 1 }),
        ),
        (
            "exec",
            json!({ "exec": { "command": ["true"] }, "periodSeconds": 1 }),
        ),
    ];
    for (index, (name, probe)) in probes.into_iter().enumerate() {
        let web = shop
            .server(name)
            .readiness(probe)
            .on(test.node(index))
            .start()
            .await?;
        outside
            .is_refused(&format!("http://{}/", web.at(8080)))
            .await?;
        ensure!(
            crate::pod::is_ready(Some(&web.object().await?)),
            "{name}: not ready any more"
        );
    }
    Ok(())
}

/// A probe that must fail does: readiness is the application's, not the proxy's.
pub(super) async fn a_pod_whose_application_is_down_is_not_ready(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let mut web = shop.server("web");
    web.container["readinessProbe"] =
        json!({ "tcpSocket": { "port": 7777 }, "periodSeconds": 1, "failureThreshold": 1 });
    web.create().await?;
    crate::wait::eventually("kubelet reports failed probes", || async {
        let events = test.cluster.events(&shop.name).await?;
        ensure!(
            events
                .iter()
                .any(|event| event.contains("Unhealthy") && event.contains("7777")),
            "events: {events:?}"
        );
        Ok(())
    })
    .await?;
    let pods = test.cluster.pods(&shop.name, "app=web").await?;
    ensure!(
        !crate::pod::is_ready(pods.first()),
        "ready without anything that listens"
    );
    Ok(())
}

/// A process of the node that is not kubelet is a stranger: STRICT refuses it, in PERMISSIVE a policy judges it.
pub(super) async fn other_processes_of_the_node_do_not_pass_as_kubelet(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let web = shop.server("web").on(test.node(0)).start().await?;
    let url = format!("http://{}/", web.at(8080));
    let ask = format!(
        "setpriv --reuid=65534 --regid=65534 --clear-groups curl --silent --show-error --fail --max-time 5 {url}"
    );
    let node = test.node(0);
    crate::wait::eventually("the node may ask while plain text is allowed", || async {
        node.sh(&ask).await?.success()
    })
    .await?;
    shop.apply(STRICT).await?;
    crate::wait::eventually("the node is refused", || async {
        let said = node.sh(&ask).await?;
        ensure!(!said.success, "answered {}", said.out);
        Ok(())
    })
    .await?;
    ensure!(
        crate::pod::is_ready(Some(&web.object().await?)),
        "the pod is not ready any more"
    );
    Ok(())
}
