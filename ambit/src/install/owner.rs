//! Is there a mesh already, and who put it there.

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use super::Mode;
use crate::cluster::is_missing;
use crate::parts::{HELM_RELEASE, MANAGED_BY, OURS, Part, is_ours};
use crate::status::version_of;

/// Who looks after the mesh that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// There is none.
    Nobody,
    /// This program installed it.
    Ours { version: String },
    /// It is ours, applied by kubectl.
    Applied { version: String },
    /// A Helm release of this name.
    Helm { release: String },
    /// Another mesh, or ours by another hand, with the object that shows it.
    Other { seen: String },
}

impl Owner {
    /// Why `mode` should not go on.
    pub(super) fn refusal(&self, mode: Mode) -> Option<String> {
        match (self, mode) {
            (Self::Nobody, Mode::Upgrade) => {
                Some("there is no mesh to upgrade; ambit install makes one".into())
            }
            (Self::Nobody, Mode::Install) | (Self::Ours { .. } | Self::Applied { .. }, _) => None,
            (Self::Helm { release }, _) => Some(format!(
                "Helm installed this mesh as release {release}: helm upgrade keeps one owner, two would undo each other's changes"
            )),
            (Self::Other { seen }, _) => Some(format!(
                "{seen} is there and not of this program's making; another mesh must go first (or --force takes it over)"
            )),
        }
    }

    /// The version of ours that is there.
    pub(super) fn version(&self) -> Option<&str> {
        match self {
            Self::Ours { version } | Self::Applied { version } => Some(version),
            _ => None,
        }
    }
}

/// Looks for the control plane here, and for one in any other namespace.
pub(super) async fn find(client: &Client, system: &str) -> anyhow::Result<Owner> {
    let deployments: Api<Deployment> = Api::all(client.clone());
    let pilots = ListParams::default().labels(Part::Istiod.selector());
    let found = deployments
        .list(&pilots)
        .await
        .context("cannot list Deployments")?;
    if let Some(deployment) = found.items.into_iter().next() {
        let seen = format!(
            "Deployment {}/{}",
            deployment.namespace().unwrap_or_default(),
            deployment.name_any()
        );
        let here = deployment.namespace().as_deref() == Some(system);
        let template = deployment.spec.as_ref().map(|spec| &spec.template);
        return Ok(owner_of(seen, here, &deployment, template));
    }
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), system);
    for part in [Part::Agent, Part::Ztunnel] {
        match sets.get(part.name()).await {
            Ok(set) => {
                let template = set.spec.as_ref().map(|spec| &spec.template);
                return Ok(owner_of(
                    format!("DaemonSet {system}/{part}"),
                    true,
                    &set,
                    template,
                ));
            }
            Err(error) if is_missing(&error) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read DaemonSet {part}"));
            }
        }
    }
    Ok(Owner::Nobody)
}

fn owner_of(
    seen: String,
    here: bool,
    object: &impl kube::ResourceExt,
    template: Option<&PodTemplateSpec>,
) -> Owner {
    let version = template.and_then(version_of);
    let version = version.unwrap_or_else(|| "of unknown version".into());
    if let Some(release) = object.annotations().get(HELM_RELEASE) {
        return Owner::Helm {
            release: release.clone(),
        };
    }
    if here && object.labels().get(MANAGED_BY).is_some_and(|by| by == OURS) {
        return Owner::Ours { version };
    }
    if here && template.is_some_and(is_ours) {
        return Owner::Applied { version };
    }
    Owner::Other { seen }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::ObjectMeta;

    fn deployment(label: Option<&str>, release: Option<&str>) -> Deployment {
        let labels = label.map(|by| [(MANAGED_BY.to_owned(), by.to_owned())].into());
        let annotations = release.map(|name| [(HELM_RELEASE.to_owned(), name.to_owned())].into());
        Deployment {
            metadata: ObjectMeta {
                labels,
                annotations,
                ..ObjectMeta::default()
            },
            ..Deployment::default()
        }
    }

    #[test]
    fn nobody_elses_mesh_is_taken_over_unasked() {
        let seen = || "Deployment istio-system/istiod".to_owned();
        let ours = owner_of(seen(), true, &deployment(Some(OURS), None), None);
        let template = serde_json::json!({ "spec": { "containers": [
            { "name": "discovery", "image": "localhost/ambit/istiod-lite:1" },
        ] } });
        let template = serde_json::from_value(template).unwrap();
        let applied = owner_of(seen(), true, &deployment(None, None), Some(&template));
        let elsewhere = owner_of(seen(), false, &deployment(Some(OURS), None), None);
        let helm = owner_of(seen(), true, &deployment(Some("Helm"), Some("mesh")), None);
        let istio = owner_of(seen(), true, &deployment(None, None), None);
        assert_eq!(ours.refusal(Mode::Install), None);
        assert_eq!(ours.refusal(Mode::Upgrade), None);
        assert_eq!(applied.refusal(Mode::Upgrade), None);
        assert_eq!(applied.version(), Some("1"));
        assert!(elsewhere.refusal(Mode::Install).is_some());
        assert!(
            helm.refusal(Mode::Upgrade)
                .unwrap()
                .contains("release mesh")
        );
        assert!(
            istio
                .refusal(Mode::Install)
                .unwrap()
                .contains("istio-system/istiod")
        );
    }

    #[test]
    fn an_upgrade_needs_something_to_upgrade() {
        assert!(Owner::Nobody.refusal(Mode::Upgrade).is_some());
        assert_eq!(Owner::Nobody.refusal(Mode::Install), None);
    }
}
