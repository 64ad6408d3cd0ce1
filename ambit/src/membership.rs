//! Which pods belong into the mesh, by the settings of its node agents (`cni.enablementSelectors` and
//! `cni.excludeNamespaces` of the chart; wire.md 1.5.3).

use anyhow::Context as _;
use api::k8s::labels;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt as _};
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize;

/// Who belongs into the mesh. By default whom label `istio.io/dataplane-mode` puts there.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    /// Of a pod and of its namespace; one of them is enough. None: the label says.
    selectors: Vec<(Selector, Selector)>,
    /// Namespaces whose pods never do.
    excluded: Vec<String>,
}

/// One of the selectors, as it is written.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Said {
    pod_selector: LabelSelector,
    namespace_selector: LabelSelector,
}

/// As the agents are told. A mesh without such settings has the default.
///
/// # Errors
/// When they cannot be had, or cannot be read.
pub(crate) async fn find(client: &Client, system: &str) -> anyhow::Result<Membership> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), system);
    let found = maps.get_opt(SETTINGS).await;
    let found = found.with_context(|| format!("cannot read ConfigMap {SETTINGS}"))?;
    let data = found.and_then(|map| map.data).unwrap_or_default();
    let said = |name: &str| data.get(name).map(String::as_str).unwrap_or_default();
    let read = read(
        said("AMBIENT_ENABLEMENT_SELECTOR"),
        said("EXCLUDE_NAMESPACES"),
    );
    read.with_context(|| format!("ConfigMap {SETTINGS}"))
}

/// A list in YAML or JSON, and names with commas between them.
fn read(selectors: &str, excluded: &str) -> anyhow::Result<Membership> {
    let said: Vec<Said> = match selectors.trim() {
        "" => Vec::new(),
        text => serde_saphyr::from_str(text).context("AMBIENT_ENABLEMENT_SELECTOR")?,
    };
    let mut selectors = Vec::new();
    for it in said {
        let of_pod = Selector::try_from(it.pod_selector)?;
        selectors.push((of_pod, Selector::try_from(it.namespace_selector)?));
    }
    let excluded = excluded.split(',').filter(|name| !name.is_empty());
    Ok(Membership {
        selectors,
        excluded: excluded.map(str::to_owned).collect(),
    })
}

impl Membership {
    /// Whether pods of a namespace belong to it that say nothing themselves.
    pub(crate) fn enrols(&self, namespace: &Namespace) -> bool {
        self.by_labels(namespace, &Default::default())
    }

    /// Whether a pod of this namespace does.
    pub(crate) fn wants(&self, namespace: &Namespace, pod: &Pod) -> bool {
        let spec = pod.spec.as_ref();
        let of_the_node = spec.and_then(|spec| spec.host_network) == Some(true);
        let has_a_proxy = pod.annotations().contains_key(labels::SIDECAR_STATUS);
        !of_the_node && !has_a_proxy && self.by_labels(namespace, pod.labels())
    }

    fn by_labels(&self, namespace: &Namespace, of_pod: &Labels) -> bool {
        if self.excluded.contains(&namespace.name_any()) {
            return false;
        }
        let of_namespace = namespace.labels();
        if self.selectors.is_empty() {
            let mode = |words: &Labels, mode: &str| {
                words
                    .get(labels::DATAPLANE_MODE)
                    .is_some_and(|it| it == mode)
            };
            return mode(of_pod, labels::AMBIENT)
                || (mode(of_namespace, labels::AMBIENT) && !mode(of_pod, labels::NONE));
        }
        let mut selectors = self.selectors.iter();
        selectors.any(|(pod, namespace)| pod.matches(of_pod) && namespace.matches(of_namespace))
    }
}

type Labels = std::collections::BTreeMap<String, String>;

/// Where the chart writes the agents' settings.
const SETTINGS: &str = "istio-cni-config";

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn namespace(name: &str, labels: Value) -> Namespace {
        let metadata = json!({ "name": name, "labels": labels });
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    fn pod(labels: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p", "labels": labels } })).unwrap()
    }

    #[test]
    fn by_default_the_label_of_the_pod_goes_before_that_of_its_namespace() {
        let mode = |value: &str| json!({ "istio.io/dataplane-mode": value });
        let membership = read("", "kube-system").unwrap();
        let (inside, outside) = (namespace("a", mode("ambient")), namespace("b", json!({})));
        for (labels, by_inside, by_outside) in [
            (json!({}), true, false),
            (mode("ambient"), true, true),
            (mode("none"), false, false),
            (mode("dedicated"), true, false),
        ] {
            let pod = pod(labels.clone());
            assert_eq!(membership.wants(&inside, &pod), by_inside, "{labels}");
            assert_eq!(membership.wants(&outside, &pod), by_outside, "{labels}");
        }
        assert!(membership.enrols(&inside) && !membership.enrols(&outside));
        let excluded = namespace("kube-system", mode("ambient"));
        assert!(!membership.enrols(&excluded));
        assert!(!membership.wants(&excluded, &pod(mode("ambient"))));
    }

    #[test]
    fn where_agents_have_selectors_these_say_and_not_the_label() {
        let said = r#"[{"podSelector":{"matchLabels":{"mesh":"yes"}}},
            {"namespaceSelector":{"matchExpressions":[{"key":"team","operator":"Exists"}]}}]"#;
        let membership = read(said, "").unwrap();
        let ambient = namespace("a", json!({ "istio.io/dataplane-mode": "ambient" }));
        let team = namespace("b", json!({ "team": "shop" }));
        let (plain, chosen) = (pod(json!({})), pod(json!({ "mesh": "yes" })));
        assert!(!membership.wants(&ambient, &plain) && membership.wants(&ambient, &chosen));
        assert!(membership.wants(&team, &plain));
        assert!(!membership.enrols(&ambient) && membership.enrols(&team));
        let unknown = r#"[{"podSelector":{"matchExpressions":[{"key":"a","operator":"Gt"}]}}]"#;
        assert!(read(unknown, "").is_err());
    }
}
