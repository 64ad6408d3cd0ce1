//! Findings about the mesh itself: its parts, their pods and nodes, what its proxies have.

use super::super::collect::{Facts, NodeFacts, PodFacts};
use super::{Finding, error, warning};
use crate::parts::Part;

/// Parts that are not there.
pub(super) fn missing_parts(facts: &Facts, findings: &mut Vec<Finding>) {
    if facts.parts.is_empty() {
        findings.push(error(
            "mesh",
            "no part of it is on this cluster",
            "ambit install",
        ));
        return;
    }
    for part in Part::ALL {
        if !facts.parts.contains_key(&part) {
            findings.push(error(
                part.name(),
                "is not installed",
                "ambit install puts it back",
            ));
        }
    }
}

/// Pods that are not ready, or die again and again.
pub(super) fn pods(facts: &Facts, findings: &mut Vec<Finding>) {
    for pod in &facts.pods {
        if !pod.ready {
            let wrong = pod.trouble.clone().unwrap_or_else(|| "is not ready".into());
            findings.push(error(
                &pod.name,
                wrong,
                format!("kubectl logs of {}, and its events", pod.name),
            ));
        } else if pod.restarts >= MANY_RESTARTS {
            let wrong = format!("restarted {} times", pod.restarts);
            findings.push(warning(
                &pod.name,
                wrong,
                format!("kubectl logs --previous of {}", pod.name),
            ));
        }
    }
}

/// Nodes that lack a part, or that nothing may start on.
pub(super) fn nodes(facts: &Facts, findings: &mut Vec<Finding>) {
    for node in &facts.nodes {
        for part in Part::ALL
            .into_iter()
            .filter(|part| part.on_every_node() && is_for(facts, *part, node))
        {
            if node.ready
                && !facts
                    .pods
                    .iter()
                    .any(|pod| pod.part == part && pod.node == node.name)
            {
                let wrong = format!("runs no {part}");
                let remedy = match part {
                    Part::Agent => {
                        "its new pods cannot join the mesh: look for taints the DaemonSet does not tolerate"
                    }
                    _ => {
                        "its enrolled pods have no network: look for taints the DaemonSet does not tolerate"
                    }
                };
                findings.push(error(format!("node {}", node.name), wrong, remedy));
            }
        }
        if node.tainted && node.ready {
            let wrong = "keeps the taint cni.istio.io/not-ready";
            findings.push(warning(
                format!("node {}", node.name),
                wrong,
                "its node agent has not become ready, or the control plane may not change nodes",
            ));
        }
    }
}

/// Whether a part that is there is to run on this node: those of another system, and those that somebody has left out, have none.
fn is_for(facts: &Facts, part: Part, node: &NodeFacts) -> bool {
    facts.parts.get(&part).is_some_and(|it| {
        let mut asked = it.nodes.iter();
        asked.all(|(key, value)| node.labels.get(key) == Some(value))
    })
}

/// What the control plane says of the proxies it serves.
pub(super) fn replicas(facts: &Facts, findings: &mut Vec<Finding>) {
    for (name, answer) in &facts.replicas {
        match answer {
            Err(why) => findings.push(warning(
                name,
                format!("does not tell which proxies it serves: {why}"),
                "sync states below may be missing; may the API server reach pods on port 15014?",
            )),
            Ok(proxies) => {
                for proxy in proxies {
                    for (kind, state) in &proxy.types {
                        if let Some(rejected) = &state.rejected {
                            let kind = kind.rsplit('.').next().unwrap_or(kind);
                            findings.push(error(
                                &proxy.proxy,
                                format!("refused {kind} configuration: {rejected}"),
                                "the last good one stays in force; mend the object it names",
                            ));
                        }
                    }
                }
            }
        }
    }
    let answered = facts.replicas.values().any(Result::is_ok);
    for pod in facts
        .pods
        .iter()
        .filter(|pod| pod.part == Part::Ztunnel && pod.ready)
    {
        if answered && sync(facts, pod) == "not connected" {
            findings.push(error(
                &pod.name,
                "is connected to no replica of the control plane",
                "it serves what it knows and learns nothing new: its log says why it cannot connect",
            ));
        }
    }
}

/// Whether `pod` has all of its configuration.
pub(super) fn sync(facts: &Facts, pod: &PodFacts) -> &'static str {
    if pod.part != Part::Ztunnel || !facts.replicas.values().any(Result::is_ok) {
        return "";
    }
    let mine = |proxy: &str| proxy.split('.').next() == Some(pod.name.as_str());
    let lists = facts.replicas.values().flatten();
    let Some(proxy) = lists.flatten().find(|proxy| mine(&proxy.proxy)) else {
        return "not connected";
    };
    let states: Vec<&str> = proxy
        .types
        .values()
        .map(|state| state.state.as_str())
        .collect();
    match states.as_slice() {
        [] => "pending",
        _ if states.contains(&"REJECTED") => "rejected",
        _ if states.iter().all(|state| *state == "SYNCED") => "synced",
        _ => "pending",
    }
}

/// Programs of different versions.
pub(super) fn versions(facts: &Facts, findings: &mut Vec<Finding>) {
    let ours = env!("CARGO_PKG_VERSION");
    for (part, found) in &facts.parts {
        let Some(version) = &found.version else {
            continue;
        };
        let old = facts
            .pods
            .iter()
            .filter(|pod| pod.part == *part && pod.version.as_ref() != Some(version))
            .count();
        if old > 0 {
            let wrong = format!("{old} of its pods run another version than {version}");
            findings.push(warning(
                part.name(),
                wrong,
                "a roll-out is under way or stuck: kubectl rollout status",
            ));
        }
        if version != ours {
            let wrong = format!("is version {version}, this program is {ours}");
            findings.push(warning(
                part.name(),
                wrong,
                "ambit upgrade, or the ambit of that version",
            ));
        }
    }
}

/// More than a start with a late control plane explains.
const MANY_RESTARTS: i32 = 5;
