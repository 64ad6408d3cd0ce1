//! Objects of ours that this version no longer has.

use std::collections::HashSet;

use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, Scope, oneshot};
use kube::{Api, Client, ResourceExt as _};

use super::bundle::Object;
use crate::parts::{MANAGED_BY, OURS};

/// Kinds that any version of the manifest may hold, in the order in which they may be removed. CRDs
/// are not among them: with a CRD go all objects of users.
pub(super) const KINDS: [(&str, &str, &str); 18] = [
    // First: who is to ask a control plane that is gone gets no answer, and makes no pod.
    (
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicyBinding",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicy",
    ),
    ("apps", "v1", "DaemonSet"),
    ("apps", "v1", "Deployment"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    ("policy", "v1", "PodDisruptionBudget"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
    ("", "v1", "Service"),
    ("", "v1", "ConfigMap"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "v1", "Role"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
    ("", "v1", "ServiceAccount"),
    ("scheduling.k8s.io", "v1", "PriorityClass"),
    ("", "v1", "ResourceQuota"),
];

/// Removes them; answers their names.
pub(super) async fn leftovers(client: &Client, objects: &[Object]) -> anyhow::Result<Vec<String>> {
    let wanted: HashSet<(String, String, String)> = objects
        .iter()
        .map(|o| {
            (
                o.kind().to_owned(),
                o.namespace().unwrap_or_default().to_owned(),
                o.name().to_owned(),
            )
        })
        .collect();
    ours(client, |kind, namespace, name| {
        !wanted.contains(&(kind.into(), namespace.into(), name.into()))
    })
    .await
}

/// Removes every object of ours for which `goes` holds; answers their names.
pub(super) async fn ours(
    client: &Client,
    goes: impl Fn(&str, &str, &str) -> bool,
) -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    let marked = ListParams::default().labels(&format!("{MANAGED_BY}={OURS}"));
    for (group, version, kind) in KINDS {
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let (resource, capabilities) = oneshot::pinned_kind(client, &gvk).await?;
        let everywhere: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        for object in everywhere.list(&marked).await? {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            if goes(kind, &namespace, &name) {
                let api = place(client, &resource, &capabilities.scope, &namespace);
                api.delete(&name, &DeleteParams::default()).await?;
                removed.push(format!("{kind}/{name}"));
            }
        }
    }
    Ok(removed)
}

fn place(
    client: &Client,
    resource: &ApiResource,
    scope: &Scope,
    namespace: &str,
) -> Api<DynamicObject> {
    match scope {
        Scope::Cluster => Api::all_with(client.clone(), resource),
        Scope::Namespaced => Api::namespaced_with(client.clone(), namespace, resource),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::bundle;

    #[test]
    fn whatever_is_installed_can_be_removed() {
        // These two go with --purge alone.
        let with_purge = ["Namespace", "CustomResourceDefinition"];
        for object in bundle::read(bundle::BUILT_IN).unwrap() {
            let kind = object.kind();
            assert!(
                with_purge.contains(&kind) || KINDS.iter().any(|(_, _, known)| *known == kind),
                "{kind} would stay"
            );
        }
    }
}
