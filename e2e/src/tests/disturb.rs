//! Parts of the mesh are replaced, or away, while traffic runs. Loud: each is alone on the cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use lab::AccessRecord;
use serde_json::json;

use crate::{
    load::Tally,
    mesh::{Part, SYSTEM},
    node::Node,
    place::Place,
    pod::{Pod, Running},
    run::Test,
    wait::eventually,
};

/// Traffic across nodes and on one node.
struct Traffic {
    shop: Place,
    phone: Pod,
    far: Running,
    near: Running,
    held: Running,
}

struct Seen {
    far: Tally,
    near: Tally,
    held: Result<()>,
}

impl Traffic {
    async fn start(test: &Test) -> Result<Self> {
        let shop = test.ambient("shop").await?;
        shop.server("far").on(test.node(0)).start().await?;
        shop.server("near").on(test.node(1)).start().await?;
        let phone = shop.client("phone").on(test.node(1)).start().await?;
        phone.reaches("http://far/").await?;
        phone.reaches("http://near/").await?;
        Ok(Self {
            far: phone.load("http://far/", &[]).await?,
            near: phone.load("http://near/", &[]).await?,
            held: phone.holds("far:9000").await?,
            shop,
            phone,
        })
    }

    /// Lets it run on for a while in the new state, and counts.
    async fn end(self, test: &Test) -> Result<Seen> {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let seen = Seen {
            far: self.far.tally().await?,
            near: self.near.tally().await?,
            held: self.held.still_held().await.map(drop),
        };
        test.note(format!("across nodes: {}", seen.far)).await;
        test.note(format!("on one node: {}", seen.near)).await;
        if let Err(error) = &seen.held {
            test.note(format!("the held connection: {error:#}")).await;
        }
        Ok(seen)
    }

    async fn nothing_is_lost(self, test: &Test) -> Result<()> {
        let seen = self.end(test).await?;
        ensure!(
            seen.far.failures() + seen.near.failures() == 0,
            "across nodes: {}; on one node: {}",
            seen.far,
            seen.near
        );
        seen.held
    }
}

/// The node agent has no part in what flows.
pub(super) async fn the_node_agent_is_replaced_and_nothing_is_lost(test: &Test) -> Result<()> {
    let traffic = Traffic::start(test).await?;
    test.mesh().restart(Part::Agent).await?;
    traffic.nothing_is_lost(test).await
}

/// The control plane has no part in what flows.
pub(super) async fn the_control_plane_is_replaced_and_nothing_is_lost(test: &Test) -> Result<()> {
    let traffic = Traffic::start(test).await?;
    test.mesh().restart(Part::Istiod).await?;
    traffic.nothing_is_lost(test).await
}

/// One ztunnel dies without a word: its node's pods recover with its successor.
pub(super) async fn ztunnel_is_killed_and_its_pods_recover(test: &Test) -> Result<()> {
    let traffic = Traffic::start(test).await?;
    let node = &traffic.phone.node;
    let old = test.mesh().pod_on(Part::Ztunnel, node).await?;
    // Process 1: the container's end.
    test.node(1)
        .own("pkill -KILL -x ztunnel-keeper")
        .await?
        .success()?;
    eventually("the container is started again", || async {
        let pod = test.mesh().pod_on(Part::Ztunnel, node).await?;
        ensure!(
            restarts(&pod) > restarts(&old) && crate::pod::is_ready(Some(&pod)),
            "not yet"
        );
        Ok(())
    })
    .await?;
    traffic.phone.reaches("http://far/").await?;
    traffic.phone.reaches("http://near/").await?;
    let seen = traffic.end(test).await?;
    test.note(format!(
        "failed while it was away: {}",
        seen.far.failures() + seen.near.failures()
    ))
    .await;
    Ok(())
}

/// A ztunnel's worker dies: what it carried is cut, the container stays, and what comes meanwhile waits for the next one.
pub(super) async fn a_ztunnels_worker_is_killed_and_no_new_connection_is_refused(
    test: &Test,
) -> Result<()> {
    let traffic = Traffic::start(test).await?;
    let node = &traffic.phone.node;
    let old = test.mesh().pod_on(Part::Ztunnel, node).await?;
    let name = old.metadata.name.clone().context("a pod without a name")?;
    let died = || async {
        let metrics = test.mesh().metrics(&name, Part::Ztunnel).await?;
        anyhow::Ok(metrics.sum("ambit_worker_restarts_total", &[]))
    };
    let before = died().await?;
    test.node(1)
        .own("pkill -KILL -x ztunnel")
        .await?
        .success()?;
    eventually("another worker serves", || async {
        let now = died().await?;
        ensure!(now == before + 1.0, "{now} workers have died");
        Ok(())
    })
    .await?;
    traffic.phone.reaches("http://far/").await?;
    traffic.phone.reaches("http://near/").await?;
    let pod = test.mesh().pod_on(Part::Ztunnel, node).await?;
    ensure!(
        pod.metadata.uid == old.metadata.uid && restarts(&pod) == restarts(&old),
        "the container was started again"
    );
    let seen = traffic.end(test).await?;
    for fresh in [&seen.far.fresh, &seen.near.fresh] {
        // In the worker's hands when it died; later ones had to wait, and no more.
        let cut = ["reset", "closed"].map(|how| fresh.failed.get(how).copied().unwrap_or(0));
        ensure!(
            fresh.failures() == cut.iter().sum::<u64>() && fresh.failures() <= IN_FLIGHT,
            "new connections: {fresh}"
        );
    }
    Ok(())
}

/// More than are on their way at a time, less than come in the time that another container would take.
const IN_FLIGHT: u64 = 15;

fn restarts(pod: &k8s_openapi::api::core::v1::Pod) -> i32 {
    pod.status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten())
        .map(|container| container.restart_count)
        .sum()
}

/// Two minutes without a control plane: what is known goes on, what is new waits, and then all is well without a restart.
pub(super) async fn without_a_control_plane_what_is_known_goes_on(test: &Test) -> Result<()> {
    let traffic = Traffic::start(test).await?;
    let shop = traffic.shop.clone();
    test.mesh().scale_istiod(0).await?;
    let again = shop
        .client("again")
        .account("phone")
        .on(test.node(1))
        .start()
        .await?;
    let answer = again.asks("http://far/").await;
    test.note(format!(
        "a new pod of a known account, meanwhile: {}",
        answer.map_or_else(
            |error| format!("{error:#}"),
            |answer| format!("answered by {}", answer.pod)
        )
    ))
    .await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    test.mesh().scale_istiod(2).await?;
    let late = shop.server("late").on(test.node(0)).start().await?;
    again.reaches("http://far/").await?;
    // A ztunnel that has not found the control plane again yet sends plain text to whom it does not know.
    let identity = shop.identity("late");
    eventually("a new account is known after the outage", || async {
        traffic.phone.asks("http://late/").await?;
        let records = test.mesh().access(&late.node, test.began).await?;
        let known =
            |record: &AccessRecord| record.inbound() && record.field("dst.identity") == identity;
        ensure!(
            records.iter().any(known),
            "{} other connections",
            records.len()
        );
        Ok(())
    })
    .await?;
    traffic.nothing_is_lost(test).await
}

/// While the agent is away no pod starts unmeshed: it waits, and starts when the agent is back.
pub(super) async fn a_new_pod_waits_while_the_agent_is_away_and_then_starts(
    test: &Test,
) -> Result<()> {
    let traffic = Traffic::start(test).await?;
    send_agents_away(test).await?;
    let outcome = waits_for_the_agent(test, &traffic.shop).await;
    call_agents_back(test).await?;
    outcome?;
    let late = Pod::ready(&test.cluster, &traffic.shop.name, "late").await?;
    late.enrolled().await?;
    traffic.phone.reaches("http://late/").await?;
    test.mesh().well().await?;
    traffic.nothing_is_lost(test).await
}

/// Takes the agents off all nodes without touching their DaemonSet's life: they are being replaced, not removed.
async fn send_agents_away(test: &Test) -> Result<()> {
    agents_live_on(test, Some("nowhere")).await?;
    eventually("the agents are gone", || async {
        let left = test.mesh().pods(Part::Agent).await?.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await
}

async fn call_agents_back(test: &Test) -> Result<()> {
    agents_live_on(test, None).await
}

async fn agents_live_on(test: &Test, place: Option<&str>) -> Result<()> {
    let agents: Api<DaemonSet> = Api::namespaced(test.cluster.client.clone(), SYSTEM);
    let patch = json!({ "spec": { "template": { "spec": { "nodeSelector": { "e2e": place } } } } });
    agents
        .patch(
            Part::Agent.name(),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await?;
    Ok(())
}

async fn waits_for_the_agent(test: &Test, shop: &Place) -> Result<()> {
    shop.server("late").on(test.node(0)).create().await?;
    eventually("kubelet says why the pod waits", || async {
        let events = test.cluster.events(&shop.name).await?;
        let refusals = events
            .iter()
            .filter(|event| event.starts_with("late FailedCreatePodSandBox"));
        refusals
            .into_iter()
            .find(|event| event.contains("agent"))
            .with_context(|| format!("{events:?}"))
            .map(drop)
    })
    .await?;
    let pods = test.cluster.pods(&shop.name, "app=late").await?;
    let phase = pods
        .first()
        .and_then(|pod| pod.status.as_ref())
        .and_then(|status| status.phase.clone());
    ensure!(
        phase.as_deref() == Some("Pending"),
        "it is {phase:?} while the agent is away"
    );
    Ok(())
}

/// The configuration of the network's plugins.
const CHAIN: &str = "/etc/cni/net.d/10-*.conflist";

/// A line of shell that writes the chain of plugins without the mesh's.
async fn rewritten_without_the_plugin(node: &Node) -> Result<String> {
    let mut chain: serde_json::Value = serde_json::from_str(&node.file(CHAIN).await?)?;
    let plugins = chain["plugins"].as_array_mut().context("no plugins")?;
    let count = plugins.len();
    plugins.retain(|plugin| plugin["type"] != "istio-cni");
    ensure!(
        plugins.len() + 1 == count,
        "the mesh's plugin is not in it: {plugins:?}"
    );
    Ok(format!(
        "file=$(echo {CHAIN}); cat >$file.new <<'EOF' && mv $file.new $file\n{chain}\nEOF"
    ))
}

/// The node's part of the installation is mended when somebody damages it.
pub(super) async fn the_agent_mends_what_it_installed(test: &Test) -> Result<()> {
    let node = test.node(0);
    let whole = format!(
        "test -x /opt/cni/bin/istio-cni && test -s /var/run/istio-cni/istio-cni-kubeconfig && grep -q '\"type\": *\"istio-cni\"' {CHAIN}"
    );
    // The last is what the cluster's own network does when it writes its configuration again.
    for damage in [
        "rm /opt/cni/bin/istio-cni".to_owned(),
        "rm /var/run/istio-cni/istio-cni-kubeconfig".to_owned(),
        rewritten_without_the_plugin(node).await?,
    ] {
        node.own(&damage).await?.success()?;
        eventually(&format!("mended after: {damage}"), || async {
            node.own(&whole).await?.success()
        })
        .await?;
    }
    let shop = test.ambient("shop").await?;
    shop.server("web").on(node).start().await?.enrolled().await
}

/// A pod that was started without the plugin (its node came before the agent) is brought in.
pub(super) async fn a_pod_that_started_without_the_plugin_is_brought_in(test: &Test) -> Result<()> {
    let node = test.node(0);
    let shop = test.ambient("shop").await?;
    send_agents_away(test).await?;
    // As on a node where no agent has ever been: no plugin in the chain.
    let outcome = async {
        let rewrite = rewritten_without_the_plugin(node).await?;
        node.own(&rewrite).await?.success()?;
        shop.server("early").on(node).start().await
    }
    .await;
    call_agents_back(test).await?;
    let early = outcome?;
    test.mesh().well().await?;
    eventually(
        "the pod is in the mesh, itself or its successor",
        || async {
            let pod = Pod::ready(&test.cluster, &shop.name, &early.name).await?;
            let annotations = pod.object().await?.metadata.annotations.unwrap_or_default();
            ensure!(
                annotations
                    .get(api::k8s::labels::REDIRECTION)
                    .is_some_and(|state| state == "enabled"),
                "{annotations:?}"
            );
            Ok(())
        },
    )
    .await
}
