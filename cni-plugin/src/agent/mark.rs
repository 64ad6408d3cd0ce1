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
use kube::core::Status;
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
                    Ok(Err(kube::Error::Api(status))) if is_gone(&status) => {
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

/// No pod of that name, or another: a uid cannot be changed, so a patch for the wrong one is invalid.
fn is_gone(status: &Status) -> bool {
    status.is_not_found() || (status.code == 422 && status.message.contains("metadata.uid"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_another_pod_of_that_name_is_told_from_others() {
        let status = |code, message: &str| Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        };
        // As an API server 1.34 says it.
        let other = r#"Pod "web" is invalid: metadata.uid: Invalid value: "x": field is immutable"#;
        assert!(is_gone(&status(422, other)));
        assert!(is_gone(&Status {
            reason: "NotFound".to_owned(),
            ..status(404, "")
        }));
        assert!(!is_gone(&status(
            422,
            "Pod \"web\" is invalid: metadata.annotations"
        )));
        assert!(!is_gone(&status(409, "the object has been modified")));
        assert!(!is_gone(&status(403, "metadata.uid")));
    }
}
