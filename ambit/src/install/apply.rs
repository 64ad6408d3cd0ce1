//! Server-side apply, object by object, and where each kind lives.

use std::collections::HashMap;

use anyhow::{Context as _, anyhow};
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource, Scope, oneshot};
use kube::{Api, Client};

use super::bundle::{Object, Stage};
use crate::output::say;
use crate::parts::FIELD_MANAGER;

/// Applies one stage; the first refusal ends it, naming the object.
pub(super) async fn stage(
    client: &Client,
    stage: Stage,
    objects: &[&Object],
) -> anyhow::Result<()> {
    say(&format!("* {} ({} objects)", stage.title(), objects.len()));
    let mut kinds = Kinds::new(client.clone());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    for object in objects {
        let api = kinds.api(object).await?;
        let applied = api
            .patch(object.name(), &params, &Patch::Apply(&object.0))
            .await;
        applied.map_err(|error| refusal(object, error))?;
    }
    Ok(())
}

fn refusal(object: &Object, error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(refused) if refused.code == 403 => {
            anyhow!(
                "no right to apply {}: {}; installing needs cluster-admin",
                object.title(),
                refused.message
            )
        }
        kube::Error::Api(refused) => anyhow!("{} was refused: {}", object.title(), refused.message),
        other => anyhow!(other).context(object.title()),
    }
}

/// Where the kinds live, asked of the API server once each.
pub(super) struct Kinds {
    client: Client,
    known: HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)>,
}

impl Kinds {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            known: HashMap::new(),
        }
    }

    /// The place of `object`.
    pub(super) async fn api(&mut self, object: &Object) -> anyhow::Result<Api<DynamicObject>> {
        let gvk = gvk(object.api_version(), object.kind());
        if !self.known.contains_key(&gvk) {
            let found = oneshot::pinned_kind(&self.client, &gvk).await;
            let found = found.with_context(|| {
                format!(
                    "the API server has no kind {} of {}",
                    object.kind(),
                    object.api_version()
                )
            })?;
            self.known.insert(gvk.clone(), found);
        }
        let (resource, capabilities) = &self.known[&gvk];
        Ok(match (&capabilities.scope, object.namespace()) {
            (Scope::Namespaced, Some(namespace)) => {
                Api::namespaced_with(self.client.clone(), namespace, resource)
            }
            (Scope::Namespaced, None) => {
                Api::default_namespaced_with(self.client.clone(), resource)
            }
            (Scope::Cluster, _) => Api::all_with(self.client.clone(), resource),
        })
    }
}

fn gvk(api_version: &str, kind: &str) -> GroupVersionKind {
    match api_version.split_once('/') {
        Some((group, version)) => GroupVersionKind::gvk(group, version, kind),
        None => GroupVersionKind::gvk("", api_version, kind),
    }
}
