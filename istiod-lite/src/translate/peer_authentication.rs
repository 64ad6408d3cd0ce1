//! PeerAuthentications: who may still be spoken to in plain text.
//!
//! They become DENY policies against connections without an identity. One such policy serves
//! everybody who is strict on every port; a workload with exceptions by port gets its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s::aim::Aim;
use api::k8s::istio::{self, Mode};
use api::k8s::objects::ObjectKey;
use api::security::{
    Action, Authorization, Group, Match, Rules, Scope, StringMatch, string_match::MatchType,
};
use k8s_openapi::jiff::Timestamp;

use super::Labels;

/// What matters of a PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// When it was made; of several for the same workloads the oldest counts.
    pub created: Option<Timestamp>,
    /// Which workloads of its namespace it is for; none means all, and in the root namespace the
    /// whole mesh.
    pub selector: Option<Labels>,
    /// Strict or not; none inherits.
    pub strict: Option<bool>,
    ports: BTreeMap<u32, bool>,
    /// It stands in the place of one that cannot be read; says what that means.
    pub closed: Option<String>,
}

/// What a PeerAuthentication with a selector asks of its workloads.
#[derive(Clone, Debug, PartialEq)]
pub enum Demand {
    /// Nothing.
    Nothing,
    /// An identity, on every port.
    Everywhere,
    /// An identity, depending on the port: its own policy, with these groups.
    ByPort(Vec<Group>),
}

impl PeerAuthentication {
    /// Keeps what matters.
    pub fn read(policy: &istio::PeerAuthentication) -> Self {
        let metadata = &policy.metadata;
        let ports = policy.spec.port_level_mtls.iter();
        Self {
            namespace: metadata.namespace.as_deref().unwrap_or("default").into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            selector: policy
                .spec
                .selector
                .as_ref()
                .map(|selector| selector.match_labels.clone())
                .filter(|labels| !labels.is_empty()),
            strict: policy.spec.mtls.and_then(|mtls| strict(mtls.mode)),
            ports: ports
                .filter_map(|(number, mtls)| Some((number.parse().ok()?, strict(mtls.mode)?)))
                .collect(),
            closed: None,
        }
    }

    /// What stands in the place of one that cannot be read: those it is about are strict on every
    /// port. It comes before others for the same workloads, whatever their age. None if it is about
    /// nobody.
    pub fn closed(key: &ObjectKey, aim: &Aim, root_namespace: &str) -> Option<Self> {
        let selector = match aim {
            Aim::Selected(labels) if !labels.is_empty() => Some(labels.clone()),
            Aim::Selected(_) | Aim::All => None,
            Aim::Attached(_) | Aim::Somewhere | Aim::Nobody => return None,
        };
        let about = match &selector {
            Some(labels) => {
                let labels = labels.iter().map(|(key, value)| format!("{key}={value}"));
                let labels = labels.collect::<Vec<_>>().join(",");
                format!("workloads of namespace {} with {labels}", key.namespace)
            }
            None if *key.namespace == *root_namespace => "all workloads of the mesh".to_owned(),
            None => format!("all workloads of namespace {}", key.namespace),
        };
        Some(Self {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            created: None,
            selector,
            strict: Some(true),
            ports: BTreeMap::new(),
            closed: Some(format!(
                "until it is mended it means STRICT for {about}: plain text is refused"
            )),
        })
    }

    /// What it asks, where `inherited` is what its namespace or the mesh asks.
    pub fn demand(&self, inherited: bool) -> Demand {
        let strict = self.strict.unwrap_or(inherited);
        let exceptions: Vec<u32> = self
            .ports
            .iter()
            .filter(|(_, port)| **port != strict)
            .map(|(number, _)| *number)
            .collect();
        match (strict, exceptions.is_empty()) {
            (true, true) => Demand::Everywhere,
            (false, true) => Demand::Nothing,
            (true, false) => {
                // Denied is who comes to none of the open ports, and has no identity.
                let open = exceptions.into_iter().map(|port| Match {
                    not_destination_ports: vec![port],
                    ..Match::default()
                });
                Demand::ByPort(vec![Group {
                    rules: open.chain([nobody()]).map(only).collect(),
                }])
            }
            (false, false) => {
                let closed = Match {
                    destination_ports: exceptions,
                    ..nobody()
                };
                Demand::ByPort(vec![Group {
                    rules: vec![only(closed)],
                }])
            }
        }
    }

    /// The xDS name of its own policy, where it has one.
    pub fn resource_name(&self) -> String {
        format!("{}/{}", self.namespace, self.policy_name())
    }

    /// Its own policy.
    pub fn authorization(&self, groups: Vec<Group>) -> Authorization {
        denial(&self.namespace, self.policy_name(), groups)
    }

    fn policy_name(&self) -> String {
        format!("converted_peer_authentication_{}", self.name)
    }
}

/// The xDS name of the policy that serves everybody who is strict everywhere.
pub fn strict_name(root_namespace: &str) -> String {
    format!("{root_namespace}/{STRICT}")
}

/// That policy.
pub fn strict_authorization(root_namespace: &str) -> Authorization {
    denial(
        root_namespace,
        STRICT.into(),
        vec![Group {
            rules: vec![only(nobody())],
        }],
    )
}

const STRICT: &str = "istio_converted_static_strict";

fn denial(namespace: &str, name: String, groups: Vec<Group>) -> Authorization {
    Authorization {
        name,
        namespace: namespace.to_owned(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        groups,
        ..Authorization::default()
    }
}

/// Matches a connection without an identity.
fn nobody() -> Match {
    Match {
        not_principals: vec![StringMatch {
            match_type: Some(MatchType::Presence(())),
        }],
        ..Match::default()
    }
}

fn only(it: Match) -> Rules {
    Rules { matches: vec![it] }
}

/// DISABLE never switches HBONE off: it is as good as PERMISSIVE.
fn strict(mode: Mode) -> Option<bool> {
    match mode {
        Mode::Unset => None,
        Mode::Disable | Mode::Permissive => Some(false),
        Mode::Strict => Some(true),
    }
}

#[cfg(test)]
mod tests {
    use api::k8s::istio;

    use super::{Demand, PeerAuthentication};

    fn demand(spec: &str, inherited: bool) -> Demand {
        let spec = serde_json::from_str(spec).expect("a spec");
        PeerAuthentication::read(&istio::PeerAuthentication {
            spec,
            ..Default::default()
        })
        .demand(inherited)
    }

    #[test]
    fn a_mode_that_is_unset_is_inherited() {
        for (spec, inherited, expected) in [
            ("{}", false, Demand::Nothing),
            ("{}", true, Demand::Everywhere),
            (r#"{"mtls": {"mode": "UNSET"}}"#, true, Demand::Everywhere),
            (r#"{"mtls": {"mode": "STRICT"}}"#, false, Demand::Everywhere),
            (r#"{"mtls": {"mode": "DISABLE"}}"#, true, Demand::Nothing),
            (
                r#"{"portLevelMtls": {"80": {"mode": "UNSET"}}}"#,
                true,
                Demand::Everywhere,
            ),
            (
                r#"{"portLevelMtls": {"80": {"mode": "STRICT"}}}"#,
                true,
                Demand::Everywhere,
            ),
            (
                r#"{"portLevelMtls": {"80": {"mode": "DISABLE"}}}"#,
                false,
                Demand::Nothing,
            ),
        ] {
            assert_eq!(
                demand(spec, inherited),
                expected,
                "{spec} under {inherited}"
            );
        }
    }

    #[test]
    fn every_open_port_is_a_condition_of_its_own_and_closed_ports_share_one() {
        let ports = r#""portLevelMtls": {"80": {"mode": "PERMISSIVE"}, "81": {"mode": "STRICT"}, "82": {"mode": "DISABLE"}, "83": {"mode": "STRICT"}}"#;
        let Demand::ByPort(groups) = demand(&format!("{{{ports}}}"), true) else {
            panic!("exceptions")
        };
        let nots: Vec<_> = groups[0]
            .rules
            .iter()
            .map(|rule| rule.matches[0].not_destination_ports.clone())
            .collect();
        assert_eq!(nots, [vec![80], vec![82], vec![]]);
        let Demand::ByPort(groups) = demand(&format!("{{{ports}}}"), false) else {
            panic!("exceptions")
        };
        assert_eq!(groups[0].rules[0].matches[0].destination_ports, [81, 83]);
    }
}
