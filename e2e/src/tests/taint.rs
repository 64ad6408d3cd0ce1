//! Nodes that come with a taint until the mesh is there. Loud: agents are away.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::Node as NodeObject,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    mesh::{Part, SYSTEM},
    node::Node,
    place::Place,
    pod::Pod,
    program::{chart, kubectl},
    run::Test,
    wait::eventually,
};

const TAINT: &str = "cni.istio.io/not-ready";

/// With the chart's `istiod.untaintNodes`: of two nodes with the taint and without an agent, the one whose agent comes loses it; the other
/// keeps it, and takes no pod, until its own agent is there. Whoever is scheduled there then is in the mesh.
pub(super) async fn a_node_keeps_its_taint_until_its_agent_is_ready(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    chart(&["--set", "istiod.untaintNodes=true"]).await?;
    test.mesh()
        .rolled_out_in::<Deployment>(SYSTEM, Part::Istiod.name())
        .await?;
    let result = one_after_the_other(test, &shop).await;
    // Also after a failure. In this order: agents that are back take the taints away themselves.
    agents_live_on(test, None).await?;
    for number in 0..2 {
        let name = &test.node(number).name;
        kubectl(&["label", "node", name, "e2e-"], "").await?;
        kubectl(&["taint", "node", name, &format!("{TAINT}-")], "").await?;
    }
    chart(&[]).await?;
    result?;
    test.mesh().well().await
}

async fn one_after_the_other(test: &Test, shop: &Place) -> Result<()> {
    let (late, early) = (test.node(0), test.node(1));
    agents_live_on(test, Some("nowhere")).await?;
    eventually("the agents are gone", || async {
        let left = test.mesh().pods(Part::Agent).await?.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await?;
    for node in [late, early] {
        let taint = format!("{TAINT}=true:NoSchedule");
        kubectl(&["taint", "node", &node.name, &taint], "")
            .await?
            .with(0)?;
    }
    let mut web = shop.server("web");
    web.spec["nodeSelector"] = json!({ "kubernetes.io/hostname": late.name });
    web.create().await?;

    let label = ["label", "node", &early.name, "e2e=here"];
    kubectl(&label, "").await?.with(0)?;
    agents_live_on(test, Some("here")).await?;
    loses_it(test, early).await?;
    ensure!(
        is_tainted(test, late).await?,
        "{} lost its taint without an agent",
        late.name
    );
    eventually("the scheduler says why the pod waits", || async {
        let events = test.cluster.events(&shop.name).await?;
        let refused = events.iter().any(|event| {
            event.starts_with("web FailedScheduling") && event.contains("untolerated taint")
        });
        ensure!(refused, "{events:?}");
        Ok(())
    })
    .await?;
    let waiting = test.cluster.pods(&shop.name, "app=web").await?;
    let waiting = waiting.first().and_then(|pod| pod.spec.as_ref());
    let place = waiting.and_then(|spec| spec.node_name.as_deref());
    ensure!(place.is_none(), "it was put onto {place:?}");

    agents_live_on(test, None).await?;
    loses_it(test, late).await?;
    let web = Pod::ready(&test.cluster, &shop.name, "web").await?;
    web.enrolled().await
}

/// It does, and its agent is ready by then.
async fn loses_it(test: &Test, node: &Node) -> Result<()> {
    eventually(&format!("{} loses its taint", node.name), || async {
        ensure!(!is_tainted(test, node).await?, "it has it");
        Ok(())
    })
    .await?;
    let agent = test.mesh().pod_on(Part::Agent, &node.name).await?;
    ensure!(
        crate::pod::is_ready(Some(&agent)),
        "{} lost its taint before its agent was ready",
        node.name
    );
    Ok(())
}

async fn is_tainted(test: &Test, node: &Node) -> Result<bool> {
    let nodes: Api<NodeObject> = Api::all(test.cluster.client.clone());
    let spec = nodes.get(&node.name).await?.spec.context("no spec")?;
    Ok(spec.taints.iter().flatten().any(|taint| taint.key == TAINT))
}

/// On nodes with this label `e2e`, or on all.
async fn agents_live_on(test: &Test, place: Option<&str>) -> Result<()> {
    let agents: Api<DaemonSet> = Api::namespaced(test.cluster.client.clone(), SYSTEM);
    let patch: Value =
        json!({ "spec": { "template": { "spec": { "nodeSelector": { "e2e": place } } } } });
    agents
        .patch(
            Part::Agent.name(),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await?;
    Ok(())
}
