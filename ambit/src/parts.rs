//! What the mesh consists of on a cluster, by the names that `manifests/` gives.

use std::fmt;

use serde::Serialize;

/// A part that runs in pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    /// The control plane.
    Istiod,
    /// The node agent, which enrols pods.
    #[serde(rename = "istio-cni-node")]
    Agent,
    /// The node proxy.
    Ztunnel,
}

impl Part {
    /// In the order in which they are installed and upgraded.
    pub(crate) const ALL: [Self; 3] = [Self::Istiod, Self::Agent, Self::Ztunnel];

    /// Name of its Deployment or DaemonSet.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Istiod => "istiod",
            Self::Agent => "istio-cni-node",
            Self::Ztunnel => "ztunnel",
        }
    }

    /// Its pods.
    pub(crate) fn selector(self) -> &'static str {
        match self {
            Self::Istiod => "app=istiod",
            Self::Agent => "k8s-app=istio-cni-node",
            Self::Ztunnel => "app=ztunnel",
        }
    }

    /// Whether every node runs one.
    pub(crate) fn on_every_node(self) -> bool {
        self != Self::Istiod
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Label that says who looks after an object: `Helm`, or [`OURS`].
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] on what this program applied.
pub(crate) const OURS: &str = "ambit";
/// Label that our chart writes, as `ambit-VERSION`.
pub(crate) const CHART: &str = "helm.sh/chart";
/// Annotation that Helm writes on what it installed.
pub(crate) const HELM_RELEASE: &str = "meta.helm.sh/release-name";
/// Field manager of what this program applies.
pub(crate) const FIELD_MANAGER: &str = "ambit";

/// Whether a control plane with these labels is ours, whoever installed it.
pub(crate) fn is_ours(labels: &std::collections::BTreeMap<String, String>) -> bool {
    let by_chart = labels
        .get(CHART)
        .is_some_and(|chart| chart.starts_with("ambit-"));
    by_chart || labels.get(MANAGED_BY).is_some_and(|by| by == OURS)
}
