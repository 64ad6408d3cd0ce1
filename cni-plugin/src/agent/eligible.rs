//! Pure: does this pod belong into the mesh?

use std::collections::BTreeSet;

use api::k8s::labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde::{Deserialize, Serialize};

use super::pod::{Phase, Pod, Words};

/// Which pods are in the mesh.
#[derive(Clone, Debug)]
pub(crate) struct Eligibility {
    /// A pod is in if one of these matches it.
    pub(crate) selectors: Vec<Selector>,
    /// Namespaces whose pods never are.
    pub(crate) excluded: BTreeSet<String>,
    /// The mesh leaves the node: no pod is in it any more.
    pub(crate) over: bool,
}

/// Matches a pod together with its namespace, as in Istio's `enablement_selectors`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Selector {
    /// Of the pod's labels.
    pub pod_selector: LabelSelector,
    /// Of its namespace's labels.
    pub namespace_selector: LabelSelector,
}

/// Why a pod is not in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Excluded {
    #[error("it uses the node's network")]
    HostNetwork,
    #[error("it has a sidecar")]
    Sidecar,
    #[error("its namespace is excluded")]
    Namespace,
    #[error("it has ended")]
    Ended,
    #[error("no label asks for it")]
    NotSelected,
    #[error("the mesh is being uninstalled")]
    Uninstalled,
}

impl Eligibility {
    /// `namespace` is the labels of the pod's namespace.
    pub(crate) fn of(&self, pod: &Pod, namespace: &Words) -> Result<(), Excluded> {
        if self.over {
            Err(Excluded::Uninstalled)
        } else if pod.phase == Phase::Ended {
            Err(Excluded::Ended)
        } else if pod.host_network {
            Err(Excluded::HostNetwork)
        } else if self.excluded.contains(&*pod.namespace) {
            Err(Excluded::Namespace)
        } else if pod.annotations.contains_key(labels::SIDECAR_STATUS) {
            Err(Excluded::Sidecar)
        } else if self
            .selectors
            .iter()
            .any(|selector| selector.matches(&pod.labels, namespace))
        {
            Ok(())
        } else {
            Err(Excluded::NotSelected)
        }
    }
}

impl Selector {
    /// Istio's default: the pod is labelled, or its namespace is and the pod does not object.
    pub fn defaults() -> Vec<Self> {
        let ambient = || LabelSelector {
            match_labels: Some(
                [(
                    labels::DATAPLANE_MODE.to_owned(),
                    labels::AMBIENT.to_owned(),
                )]
                .into(),
            ),
            ..LabelSelector::default()
        };
        let unless_none = LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: labels::DATAPLANE_MODE.to_owned(),
                operator: "NotIn".to_owned(),
                values: Some(vec![labels::NONE.to_owned()]),
            }]),
            ..LabelSelector::default()
        };
        vec![
            Self {
                pod_selector: ambient(),
                namespace_selector: LabelSelector::default(),
            },
            Self {
                pod_selector: unless_none,
                namespace_selector: ambient(),
            },
        ]
    }

    fn matches(&self, pod: &Words, namespace: &Words) -> bool {
        matches(&self.pod_selector, pod) && matches(&self.namespace_selector, namespace)
    }
}

/// Kubernetes' rules: everything must hold, an empty selector matches everything. An operator
/// we do not know matches nothing: better a pod left out that asks for attention than a guess.
fn matches(selector: &LabelSelector, words: &Words) -> bool {
    let labels = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    labels
        .into_iter()
        .all(|(key, value)| words.get(key) == Some(value))
        && expressions.into_iter().all(|expression| {
            let value = words.get(&expression.key);
            let listed = || {
                value.is_some_and(|value| expression.values.iter().flatten().any(|v| v == value))
            };
            match expression.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::pod::tests::pod;
    use super::*;

    fn eligibility() -> Eligibility {
        Eligibility {
            selectors: Selector::defaults(),
            over: false,
            excluded: ["kube-system".to_owned()].into(),
        }
    }

    fn mode(value: Option<&str>) -> Words {
        value
            .map(|value| (labels::DATAPLANE_MODE.to_owned(), value.to_owned()))
            .into_iter()
            .collect()
    }

    #[test]
    fn labels_decide() {
        let cases = [
            (None, None, false),
            (Some("ambient"), None, true),
            (Some("none"), None, false),
            (Some("other"), None, false),
            (None, Some("ambient"), true),
            (Some("ambient"), Some("ambient"), true),
            (Some("other"), Some("ambient"), true),
            (Some("none"), Some("ambient"), false),
            (Some("ambient"), Some("none"), true),
            (None, Some("none"), false),
        ];
        for (on_pod, on_namespace, expected) in cases {
            let pod = pod(json!({ "labels": mode(on_pod) }), json!({}));
            let verdict = eligibility().of(&pod, &mode(on_namespace));
            assert_eq!(
                verdict.is_ok(),
                expected,
                "{on_pod:?} in {on_namespace:?}: {verdict:?}"
            );
        }
    }

    #[test]
    fn some_pods_are_never_in_the_mesh() {
        let ambient = json!({ "istio.io/dataplane-mode": "ambient" });
        let cases = [
            (
                json!({}),
                json!({ "spec": { "hostNetwork": true } }),
                Excluded::HostNetwork,
            ),
            (
                json!({ "annotations": { "sidecar.istio.io/status": "{}" } }),
                json!({}),
                Excluded::Sidecar,
            ),
            (
                json!({ "namespace": "kube-system" }),
                json!({}),
                Excluded::Namespace,
            ),
            (
                json!({}),
                json!({ "status": { "phase": "Succeeded" } }),
                Excluded::Ended,
            ),
            (
                json!({}),
                json!({ "status": { "phase": "Failed" } }),
                Excluded::Ended,
            ),
        ];
        for (mut metadata, rest, why) in cases {
            metadata["labels"] = ambient.clone();
            assert_eq!(
                eligibility().of(&pod(metadata, rest), &mode(Some("ambient"))),
                Err(why)
            );
        }
    }

    #[test]
    fn the_default_selectors_are_those_istio_writes_into_conflists() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../testdata/conflist-after.json")).unwrap();
        let written = &golden["plugins"][2]["enablement_selectors"];
        assert_eq!(
            &serde_json::to_value(Selector::defaults()).unwrap(),
            written
        );
    }

    #[test]
    fn every_operator_of_kubernetes_is_known() {
        let has = |operator: &str, values: &[&str], label: Option<&str>| {
            let selector: LabelSelector = serde_json::from_value(json!({
                "matchExpressions": [{ "key": "k", "operator": operator, "values": values }],
            }))
            .unwrap();
            matches(
                &selector,
                &label
                    .map(|l| ("k".to_owned(), l.to_owned()))
                    .into_iter()
                    .collect(),
            )
        };
        assert!(
            has("In", &["a", "b"], Some("b"))
                && !has("In", &["a"], Some("b"))
                && !has("In", &["a"], None)
        );
        assert!(
            has("NotIn", &["a"], Some("b"))
                && !has("NotIn", &["a"], Some("a"))
                && has("NotIn", &["a"], None)
        );
        assert!(has("Exists", &[], Some("")) && !has("Exists", &[], None));
        assert!(has("DoesNotExist", &[], None) && !has("DoesNotExist", &[], Some("")));
        assert!(!has("Gt", &["1"], Some("2")));
    }
}
