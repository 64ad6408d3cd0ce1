//! NetworkPolicies that would break a mesh: those that let a pod's old ports in and not the tunnel's.
//! Pure.
//!
//! Once a pod is in the mesh, its traffic arrives on port 15008 whatever port the application
//! listens on. A policy that admits port 80 alone then admits nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

/// Port of the tunnel.
const TUNNEL: i32 = 15008;

/// A policy in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InTheWay {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) direction: Direction,
}

/// Of which traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the pods it selects.
    Ingress,
    /// From the pods it selects.
    Egress,
}

/// The policies that admit some port in a direction and the tunnel's in none of their rules. Those
/// that admit nothing at all are meant so, and another policy that admits the tunnel for the same
/// pods makes up for one that does not.
pub(crate) fn in_the_way(policies: &[NetworkPolicy]) -> Vec<InTheWay> {
    let mut found = Vec::new();
    for policy in policies {
        for direction in [Direction::Ingress, Direction::Egress] {
            if closes(policy, direction)
                && !policies
                    .iter()
                    .any(|other| makes_up(other, policy, direction))
            {
                found.push(InTheWay {
                    namespace: policy.namespace().unwrap_or_default(),
                    name: policy.name_any(),
                    direction,
                });
            }
        }
    }
    found
}

impl InTheWay {
    /// In words.
    pub(crate) fn reason(&self) -> String {
        let (way, whose) = match self.direction {
            Direction::Ingress => ("into", "destination"),
            Direction::Egress => ("out of", "source"),
        };
        format!(
            "NetworkPolicy {}/{} lets some ports {way} its pods, but not 15008, which carries all of them once the {whose} is in the mesh",
            self.namespace, self.name
        )
    }
}

fn closes(policy: &NetworkPolicy, direction: Direction) -> bool {
    let ports = port_lists(policy, direction);
    // No rule: nothing is admitted, on purpose. A rule without ports admits every port.
    !ports.is_empty() && !ports.iter().any(|list| admits_tunnel(list))
}

fn makes_up(other: &NetworkPolicy, policy: &NetworkPolicy, direction: Direction) -> bool {
    other.namespace() == policy.namespace()
        && port_lists(other, direction)
            .iter()
            .any(|list| admits_tunnel(list))
        && covers(selector(other), selector(policy))
}

fn port_lists(policy: &NetworkPolicy, direction: Direction) -> Vec<Vec<NetworkPolicyPort>> {
    let Some(spec) = &policy.spec else {
        return Vec::new();
    };
    match direction {
        Direction::Ingress => {
            let rules = spec.ingress.iter().flatten();
            rules
                .map(|rule| rule.ports.clone().unwrap_or_default())
                .collect()
        }
        Direction::Egress => {
            let rules = spec.egress.iter().flatten();
            rules
                .map(|rule| rule.ports.clone().unwrap_or_default())
                .collect()
        }
    }
}

fn admits_tunnel(ports: &[NetworkPolicyPort]) -> bool {
    ports.is_empty() || ports.iter().any(|port| is_tcp(port) && spans_tunnel(port))
}

fn is_tcp(port: &NetworkPolicyPort) -> bool {
    port.protocol.as_deref().unwrap_or("TCP") == "TCP"
}

fn spans_tunnel(port: &NetworkPolicyPort) -> bool {
    match (&port.port, port.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&TUNNEL),
        (Some(IntOrString::Int(port)), None) => *port == TUNNEL,
        // A name stands for a port of the pod; no pod names the tunnel's.
        (Some(IntOrString::String(_)), _) => false,
    }
}

fn selector(policy: &NetworkPolicy) -> LabelSelector {
    policy
        .spec
        .as_ref()
        .and_then(|spec| spec.pod_selector.clone())
        .unwrap_or_default()
}

/// Whether every pod that `narrow` selects is surely selected by `wide`: only what can be seen
/// without the pods, so a doubt counts as no.
fn covers(wide: LabelSelector, narrow: LabelSelector) -> bool {
    if wide
        .match_expressions
        .is_some_and(|expressions| !expressions.is_empty())
    {
        return false;
    }
    let (wide, narrow): (BTreeMap<_, _>, BTreeMap<_, _>) = (
        wide.match_labels.unwrap_or_default(),
        narrow.match_labels.unwrap_or_default(),
    );
    wide.iter()
        .all(|(key, value)| narrow.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(name: &str, spec: Value) -> NetworkPolicy {
        serde_json::from_value(
            json!({ "metadata": { "name": name, "namespace": "a" }, "spec": spec }),
        )
        .unwrap()
    }

    fn names(policies: &[NetworkPolicy]) -> Vec<String> {
        in_the_way(policies)
            .into_iter()
            .map(|p| format!("{} {:?}", p.name, p.direction))
            .collect()
    }

    #[test]
    fn only_a_policy_that_admits_other_ports_and_not_the_tunnel_is_in_the_way() {
        let cases = [
            (json!({ "ingress": [{ "ports": [{ "port": 80 }] }] }), true),
            (
                json!({ "ingress": [{ "ports": [{ "port": "http" }] }] }),
                true,
            ),
            (
                json!({ "ingress": [{ "ports": [{ "port": 15008, "protocol": "UDP" }] }] }),
                true,
            ),
            (
                json!({ "ingress": [{ "ports": [{ "port": 15000, "endPort": 15010 }] }] }),
                false,
            ),
            (
                json!({ "ingress": [{ "ports": [{ "port": 80 }, { "port": 15008 }] }] }),
                false,
            ),
            (
                json!({ "ingress": [{ "ports": [{ "port": 80 }] }, { "from": [] }] }),
                false,
            ),
            (json!({ "ingress": [] }), false),
            (json!({ "policyTypes": ["Ingress"] }), false),
        ];
        for (spec, expected) in cases {
            let mut spec = spec;
            spec["podSelector"] = json!({});
            assert_eq!(
                !names(&[policy("p", spec.clone())]).is_empty(),
                expected,
                "{spec}"
            );
        }
    }

    #[test]
    fn egress_counts_as_ingress_does() {
        let spec = json!({ "podSelector": {}, "egress": [{ "ports": [{ "port": 5432 }] }] });
        assert_eq!(names(&[policy("p", spec)]), ["p Egress"]);
    }

    #[test]
    fn another_policy_for_the_same_pods_makes_up_for_it() {
        let narrow = json!({ "podSelector": { "matchLabels": { "app": "db" } }, "ingress": [{ "ports": [{ "port": 80 }] }] });
        let tunnel = |selector: Value| json!({ "podSelector": selector, "ingress": [{ "ports": [{ "port": 15008 }] }] });
        let all = policy("all", tunnel(json!({})));
        let others = policy("others", tunnel(json!({ "matchLabels": { "app": "web" } })));
        assert!(names(&[policy("p", narrow.clone()), all]).is_empty());
        assert_eq!(names(&[policy("p", narrow), others]), ["p Ingress"]);
    }
}
