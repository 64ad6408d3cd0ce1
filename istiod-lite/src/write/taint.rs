//! A node carries taint `cni.istio.io/not-ready` from its start, so that no pod is scheduled onto it
//! before the node agent can enrol it; here the taint is taken off when the agent is ready.
//!
//! 1. nodes, and the agents' pods in our namespace, are followed
//! 2. a node with the taint and a ready agent is queued
//! 3. its taints are patched, if nobody wrote the node since
//!
//! The taint is put on by whoever makes nodes; a node whose agent goes away later is not tainted
//! again: its pods are in the mesh and stay there.

use std::collections::{HashMap, HashSet};
use std::pin::pin;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;

use super::queue::{Queue, until};
use super::{Ground, said};
use crate::cluster::watch::{config, steady};

const TAINT: &str = "cni.istio.io/not-ready";
const AGENT: &str = "k8s-app=istio-cni-node";
const MANAGER: &str = "ambit-taint";

/// Runs while we lead.
pub(super) async fn write(ground: Ground) {
    let client = || ground.connection.watching.clone();
    let nodes = watcher::watcher(Api::<Node>::all(client()), config());
    let mut nodes = pin!(steady(nodes, &ground.health, "nodes"));
    let agents = Api::<Pod>::namespaced(client(), &ground.namespace);
    let agents = watcher::watcher(agents, config().labels(AGENT));
    let mut agents = pin!(steady(agents, &ground.health, "pods"));
    let mut known = Known::default();
    let mut queue: Queue<String> = Queue::default();
    loop {
        while let Some(name) = queue.take(Instant::now()) {
            let outcome = match known.is_due(&name) {
                true => untaint(&ground, &name).await,
                false => Ok(()),
            };
            match outcome {
                Ok(()) => queue.done(&name),
                Err(error) => {
                    ground.metrics.wrote("taint", false);
                    tracing::warn!(
                        node = name,
                        error = said(&error),
                        "taint not taken off; tried again"
                    );
                    queue.failed(&name, Instant::now());
                }
            }
        }
        let changed = tokio::select! {
            Some(event) = nodes.next() => known.node(event),
            Some(event) = agents.next() => known.agent(event),
            () = until(queue.due()) => None,
        };
        if let Some(name) = changed.filter(|name| known.is_due(name)) {
            queue.add(name, Instant::now());
        }
    }
}

/// Takes the taint off one node, if it is still on.
async fn untaint(ground: &Ground, name: &str) -> Result<(), kube::Error> {
    let nodes = Api::<Node>::all(ground.connection.client.clone());
    let Some(node) = nodes.get_opt(name).await? else {
        return Ok(());
    };
    let before = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let left: Vec<&Taint> = before.iter().filter(|taint| taint.key != TAINT).collect();
    if left.len() == before.len() {
        return Ok(());
    }
    let patch = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"taints": left},
    });
    let ours = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    nodes.patch(name, &ours, &Patch::Merge(&patch)).await?;
    ground.metrics.wrote("taint", true);
    tracing::info!(
        node = name,
        "the node agent is ready: taint {TAINT} taken off"
    );
    Ok(())
}

/// Which nodes wait, and where an agent is ready. Pure.
#[derive(Debug, Default)]
struct Known {
    tainted: HashSet<String>,
    /// Agent's pod → its node, if it is ready.
    ready: HashMap<String, String>,
}

impl Known {
    fn is_due(&self, node: &str) -> bool {
        self.tainted.contains(node) && self.ready.values().any(|at| at == node)
    }

    /// Says which node to look at.
    fn node(&mut self, event: Event<Node>) -> Option<String> {
        match event {
            Event::Apply(node) | Event::InitApply(node) => {
                let name = node.name_any();
                let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
                if taints.iter().any(|taint| taint.key == TAINT) {
                    self.tainted.insert(name.clone());
                } else {
                    self.tainted.remove(&name);
                }
                Some(name)
            }
            Event::Delete(node) => {
                self.tainted.remove(&node.name_any());
                None
            }
            Event::Init => {
                self.tainted.clear();
                None
            }
            Event::InitDone => None,
        }
    }

    fn agent(&mut self, event: Event<Pod>) -> Option<String> {
        match event {
            Event::Apply(pod) | Event::InitApply(pod) => {
                let node = node_if_ready(&pod);
                match &node {
                    Some(node) => drop(self.ready.insert(pod.name_any(), node.clone())),
                    None => drop(self.ready.remove(&pod.name_any())),
                }
                node
            }
            Event::Delete(pod) => {
                self.ready.remove(&pod.name_any());
                None
            }
            Event::Init => {
                self.ready.clear();
                None
            }
            Event::InitDone => None,
        }
    }
}

fn node_if_ready(pod: &Pod) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions
        .into_iter()
        .any(|it| it.type_ == "Ready" && it.status == "True");
    pod.spec.as_ref()?.node_name.clone().filter(|_| ready)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn node(taints: &Value) -> Event<Node> {
        let node = json!({"metadata": {"name": "n"}, "spec": {"taints": taints}});
        Event::Apply(serde_json::from_value(node).unwrap())
    }

    fn tainted() -> Event<Node> {
        node(&json!([{"key": TAINT, "effect": "NoSchedule"}, {"key": "x", "effect": "NoSchedule"}]))
    }

    fn agent(status: &str, at: &str, deleted: bool) -> Event<Pod> {
        let mut pod = json!({
            "metadata": {"name": "agent"},
            "spec": {"nodeName": at, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        });
        if deleted {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        Event::Apply(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_node_is_due_when_it_is_tainted_and_its_own_agent_is_ready_whichever_comes_first() {
        type Case = (&'static str, bool, Vec<fn(&mut Known) -> Option<String>>);
        let cases: [Case; 6] = [
            (
                "node first",
                true,
                vec![|it| it.node(tainted()), |it| {
                    it.agent(agent("True", "n", false))
                }],
            ),
            (
                "agent first",
                true,
                vec![|it| it.agent(agent("True", "n", false)), |it| {
                    it.node(tainted())
                }],
            ),
            (
                "not ready",
                false,
                vec![|it| it.node(tainted()), |it| {
                    it.agent(agent("False", "n", false))
                }],
            ),
            (
                "ready elsewhere",
                false,
                vec![|it| it.node(tainted()), |it| {
                    it.agent(agent("True", "m", false))
                }],
            ),
            (
                "on its way out",
                false,
                vec![|it| it.node(tainted()), |it| {
                    it.agent(agent("True", "n", true))
                }],
            ),
            (
                "not tainted",
                false,
                vec![|it| it.node(node(&json!([]))), |it| {
                    it.agent(agent("True", "n", false))
                }],
            ),
        ];
        for (what, due, events) in cases {
            let mut known = Known::default();
            let mut last = None;
            for event in events {
                last = event(&mut known);
            }
            assert_eq!(known.is_due("n"), due, "{what}");
            if due {
                assert_eq!(last.as_deref(), Some("n"), "{what}");
            }
        }
    }

    #[test]
    fn an_agent_that_goes_before_the_node_is_seen_does_not_count() {
        let mut known = Known::default();
        known.agent(agent("True", "n", false));
        known.agent(Event::Init);
        known.agent(Event::InitDone);
        known.node(tainted());
        assert!(!known.is_due("n"));
    }
}
