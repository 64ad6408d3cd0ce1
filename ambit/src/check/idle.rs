//! Objects of Istio's that would have no effect: what a cluster brings along from a mesh with sidecars.

use anyhow::Context as _;
use api::k8s::idle::{IDLE, Idle};
use kube::api::{DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::{Api, Client, ResourceExt as _};

/// The objects of one such kind, `namespace/name`; at least one.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) kind: Idle,
    pub(super) objects: Vec<String>,
}

/// Looks for all of them. A kind that the cluster does not define has none.
pub(super) async fn collect(client: &Client) -> anyhow::Result<Vec<Found>> {
    let mut all = Vec::new();
    for kind in IDLE {
        let resource = ApiResource {
            group: kind.group.into(),
            version: kind.version.into(),
            api_version: format!("{}/{}", kind.group, kind.version),
            kind: kind.kind.into(),
            plural: kind.plural.into(),
        };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let listed = match api.list_metadata(&ListParams::default()).await {
            Ok(listed) => listed,
            Err(kube::Error::Api(answer)) if answer.code == 404 => continue,
            Err(error) => {
                let what = format!("cannot list {}.{}", kind.plural, kind.group);
                return Err(error).context(what);
            }
        };
        let name = |namespace: Option<String>, name: String| match namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name,
        };
        let objects: Vec<String> = listed
            .iter()
            .map(|object| name(object.namespace(), object.name_any()))
            .collect();
        if !objects.is_empty() {
            all.push(Found { kind, objects });
        }
    }
    Ok(all)
}
