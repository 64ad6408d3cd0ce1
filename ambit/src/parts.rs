//! What the mesh consists of on a cluster, by the names that `manifests/` gives.

use std::fmt;

use k8s_openapi::api::core::v1::PodTemplateSpec;
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
/// Annotation that Helm writes on what it installed.
pub(crate) const HELM_RELEASE: &str = "meta.helm.sh/release-name";
/// Field manager of what this program applies.
pub(crate) const FIELD_MANAGER: &str = "ambit";

/// Whether a control plane of this template is ours, whoever installed it: Helm, kubectl or this
/// program. Its program is what makes it ours; labels are Istio's, so that Istio's tools find it.
pub(crate) fn is_ours(template: &PodTemplateSpec) -> bool {
    let containers = template.spec.iter().flat_map(|spec| &spec.containers);
    let mut images = containers.filter_map(|container| container.image.as_deref());
    images.any(|image| {
        let name = image.split('@').next().unwrap_or(image);
        let name = name.rsplit('/').next().unwrap_or(name);
        name.split(':').next() == Some("istiod-lite")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_control_plane_is_ours_by_the_program_it_runs() {
        let cases = [
            ("registry.test:5000/mesh/istiod-lite@sha256:0", true),
            ("localhost/ambit/istiod-lite:0.1.0", true),
            ("istiod-lite", true),
            ("registry.test/istio/pilot:1.30", false),
            ("registry.test/istiod-lite/pilot:1", false),
        ];
        for (image, expected) in cases {
            let template =
                json!({ "spec": { "containers": [{ "name": "discovery", "image": image }] } });
            let template = serde_json::from_value(template).unwrap();
            assert_eq!(is_ours(&template), expected, "{image}");
        }
    }
}
