//! `ambit status`: what the mesh is doing, node by node, and what is wrong with it.
//!
//! 1. ask the API server and every replica of the control plane       [`collect`]
//! 2. judge what was found, without asking anything                   [`judge`]
//! 3. show it                                                         [`show`]

mod collect;
mod judge;
mod show;

pub(crate) use collect::{NamespaceFacts, namespace_facts};

use clap::Args;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::ResourceExt as _;

use crate::Outcome;
use crate::cluster::Access;
use crate::output::{self, Format};

/// Flags of `status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Status {
    pub(crate) async fn run(&self, access: &Access) -> anyhow::Result<Outcome> {
        let client = access.connect().await?;
        let facts = collect::facts(&client, &access.system).await?;
        let report = judge::report(&facts);
        output::print(self.output, &report, show::table)?;
        Ok(
            if report
                .findings
                .iter()
                .any(|finding| finding.severity == judge::Severity::Error)
            {
                Outcome::Wrong
            } else {
                Outcome::Well
            },
        )
    }
}

/// The version that a pod template runs: the label every object of ours carries, else the tag of
/// its first image.
pub(crate) fn version_of(template: &PodTemplateSpec) -> Option<String> {
    let labels = template
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.labels.as_ref());
    if let Some(version) = labels.and_then(|labels| labels.get("app.kubernetes.io/version")) {
        return Some(version.clone());
    }
    let image = template
        .spec
        .as_ref()?
        .containers
        .first()?
        .image
        .as_deref()?;
    tag(image)
}

/// `v1` of `registry:5000/path/name:v1@sha256:…`
fn tag(image: &str) -> Option<String> {
    let place = image.split('@').next()?;
    let (_, tag) = place.rsplit('/').next()?.split_once(':')?;
    Some(tag.to_owned())
}

/// Whether the node agent has captured a pod.
pub(crate) fn is_captured(annotations: &std::collections::BTreeMap<String, String>) -> bool {
    annotations
        .get(api::k8s::labels::REDIRECTION)
        .is_some_and(|mark| mark == api::k8s::labels::REDIRECTION_ENABLED)
}

/// What a pod says holds it up: the first container that waits or ended, or why it has no node.
pub(crate) fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let lists = [&status.init_container_statuses, &status.container_statuses];
    for container in lists.into_iter().flatten().flatten() {
        let state = container.state.as_ref();
        if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
            let reason = waiting.reason.as_deref().unwrap_or("waiting");
            if matches!(reason, "ContainerCreating" | "PodInitializing")
                && waiting.message.is_none()
            {
                continue;
            }
            let last = container
                .last_state
                .as_ref()
                .and_then(|state| state.terminated.as_ref());
            let code = last
                .map(|last| format!(", exit code {}", last.exit_code))
                .unwrap_or_default();
            let message = waiting
                .message
                .as_deref()
                .map(|text| format!(": {text}"))
                .unwrap_or_default();
            return Some(format!("{} {reason}{code}{message}", pod.name_any()));
        }
        if let Some(ended) = state
            .and_then(|state| state.terminated.as_ref())
            .filter(|ended| ended.exit_code != 0)
        {
            let reason = ended.reason.as_deref().unwrap_or("ended");
            return Some(format!(
                "{} {reason}, exit code {}",
                pod.name_any(),
                ended.exit_code
            ));
        }
    }
    let unready = status.conditions.iter().flatten().find(|condition| {
        condition.status == "False" && matches!(condition.type_.as_str(), "PodScheduled" | "Ready")
    })?;
    let why = unready.message.as_deref().or(unready.reason.as_deref())?;
    Some(format!(
        "{} is not {}: {why}",
        pod.name_any(),
        unready.type_.trim_start_matches("Pod").to_lowercase()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_tag_is_what_stands_behind_the_name_not_behind_the_port() {
        let cases = [
            ("registry:5000/a/ztunnel:v1", Some("v1")),
            ("registry:5000/a/ztunnel", None),
            ("ztunnel:v1@sha256:00", Some("v1")),
            ("a/ztunnel@sha256:00", None),
        ];
        for (image, expected) in cases {
            assert_eq!(tag(image).as_deref(), expected, "{image}");
        }
    }

    #[test]
    fn a_pod_in_trouble_says_which_container_state_it_is() {
        let pod = |status: serde_json::Value| -> Pod {
            serde_json::from_value(json!({ "metadata": { "name": "p" }, "status": status }))
                .unwrap()
        };
        let crashed = pod(json!({ "containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": { "waiting": { "reason": "CrashLoopBackOff" } },
            "lastState": { "terminated": { "exitCode": 2 } },
        }] }));
        assert_eq!(
            trouble(&crashed).unwrap(),
            "p CrashLoopBackOff, exit code 2"
        );
        let nowhere = pod(json!({ "conditions": [
            { "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available" },
        ] }));
        assert_eq!(
            trouble(&nowhere).unwrap(),
            "p is not scheduled: 0/3 nodes are available"
        );
        assert_eq!(
            trouble(&pod(
                json!({ "conditions": [{ "type": "Ready", "status": "True" }] })
            )),
            None
        );
    }
}
