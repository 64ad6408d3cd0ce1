//! Says on the pod's object how far it is in the mesh: annotation `ambient.istio.io/redirection`, in the
//! status mirror of the directory or by a merge patch of `pods/status`.
//!
//! The uid in the patch is a precondition, for a successor may have the pod's name.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use api::k8s::dir;
use api::k8s::labels;
use api::k8s::objects::{Kind, ObjectKey};
use k8s_openapi::api::core::v1 as core;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::cluster::{Wish, explain};
use super::pod::Pod;

/// Where it is written.
#[derive(Clone)]
pub(crate) enum Marker {
    Directory(PathBuf),
    Kubernetes(Client),
}

/// Why it could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MarkError {
    #[error("{0}")]
    File(#[from] io::Error),
    #[error("{0}")]
    Refused(String),
    #[error("the API server did not answer in time")]
    Late,
}

impl Marker {
    /// Writes the annotation, or takes it away. A pod that is gone or replaced is left alone.
    pub(crate) async fn set(&self, pod: &Pod, value: Option<&str>) -> Result<(), MarkError> {
        let patch = patch(pod, value);
        match self {
            Self::Directory(root) => {
                let (root, key) = (root.clone(), key(pod));
                Ok(blocking(move || dir::patch_status(&root, &key, &patch)).await?)
            }
            Self::Kubernetes(client) => {
                let pods = Api::<core::Pod>::namespaced(client.clone(), &pod.namespace);
                let author = PatchParams {
                    field_manager: Some(AUTHOR.to_owned()),
                    ..PatchParams::default()
                };
                let merge = Patch::Merge(&patch);
                let patched = pods.patch_status(&pod.name, &author, &merge);
                match tokio::time::timeout(PATIENCE, patched).await {
                    Err(_) => Err(MarkError::Late),
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(kube::Error::Api(status)))
                        if status.is_not_found() || status.is_conflict() =>
                    {
                        tracing::debug!(%pod, reason = status.message, "gone before it was annotated");
                        Ok(())
                    }
                    Ok(Err(error)) => {
                        let why = explain(&error, Wish("patch", "pods/status"));
                        Err(MarkError::Refused(why))
                    }
                }
            }
        }
    }

    /// Cleans up after a pod that no longer exists. An object in an API server took its annotations along.
    pub(crate) async fn forget(&self, pod: &Pod) -> Result<(), MarkError> {
        match self {
            Self::Directory(root) => {
                let (root, key) = (root.clone(), key(pod));
                Ok(blocking(move || dir::clear_status(&root, &key)).await?)
            }
            Self::Kubernetes(_) => Ok(()),
        }
    }
}

impl std::fmt::Debug for Marker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(root) => f.debug_tuple("Directory").field(root).finish(),
            Self::Kubernetes(_) => f.write_str("Kubernetes"),
        }
    }
}

fn patch(pod: &Pod, value: Option<&str>) -> Value {
    let mut patch = json!({ "metadata": { "annotations": { labels::REDIRECTION: value } } });
    if pod.has_own_uid {
        patch["metadata"]["uid"] = pod.uid.as_str().into();
    }
    patch
}

fn key(pod: &Pod) -> ObjectKey {
    ObjectKey::new(Kind::Pod, &pod.namespace, &pod.name)
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

const AUTHOR: &str = "ambit-cni-agent";
const PATIENCE: Duration = Duration::from_secs(5);
