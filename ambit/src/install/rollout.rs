//! Waiting for a part to be ready, and saying meanwhile how far it is and what holds it up.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Api, Client};

use super::bundle::{Object, Stage};
use crate::output::say;
use crate::parts::Part;
use crate::status::trouble;

/// How far a Deployment or DaemonSet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Pods of the newest template that are ready.
    pub(crate) ready: i32,
    /// Pods there should be.
    pub(crate) wanted: i32,
    /// Whether the controller has seen the newest template and nothing of an older one is left.
    pub(crate) settled: bool,
}

impl Progress {
    /// Whether nothing is left to wait for.
    pub(crate) fn is_done(self) -> bool {
        self.settled && self.ready >= self.wanted
    }

    /// Of a Deployment.
    pub(crate) fn of_deployment(deployment: &Deployment) -> Self {
        let wanted = deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1);
        let status = deployment.status.clone().unwrap_or_default();
        let updated = status.updated_replicas.unwrap_or(0);
        let seen =
            status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0);
        Self {
            // Available pods may be old ones; of the new no more can be available than there are.
            ready: status.available_replicas.unwrap_or(0).min(updated),
            wanted,
            settled: seen && updated == wanted && status.replicas.unwrap_or(0) == wanted,
        }
    }

    /// Of a DaemonSet.
    pub(crate) fn of_daemon_set(set: &DaemonSet) -> Self {
        let status = set.status.clone().unwrap_or_default();
        let updated = status.updated_number_scheduled.unwrap_or(0);
        let seen = status.observed_generation.unwrap_or(0) >= set.metadata.generation.unwrap_or(0);
        let wanted = status.desired_number_scheduled;
        Self {
            ready: status.number_available.unwrap_or(0).min(updated),
            wanted,
            settled: seen && updated == wanted,
        }
    }
}

/// Waits until the objects of `stage` do their work.
pub(super) async fn wait(
    client: &Client,
    system: &str,
    stage: Stage,
    objects: &[&Object],
    timeout: Duration,
) -> anyhow::Result<()> {
    match stage {
        Stage::Ground => established(client, objects, timeout).await,
        Stage::ControlPlane => ready(client, system, Part::Istiod, timeout).await,
        Stage::Agent => ready(client, system, Part::Agent, timeout).await,
        Stage::Proxy => ready(client, system, Part::Ztunnel, timeout).await,
        Stage::Rights | Stage::Admission => Ok(()),
    }
}

/// How far `part` is now.
pub(crate) async fn progress(
    client: &Client,
    system: &str,
    part: Part,
) -> Result<Progress, kube::Error> {
    if part.on_every_node() {
        let sets: Api<DaemonSet> = Api::namespaced(client.clone(), system);
        return Ok(Progress::of_daemon_set(&sets.get(part.name()).await?));
    }
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), system);
    Ok(Progress::of_deployment(
        &deployments.get(part.name()).await?,
    ))
}

/// Waits for `part`; says each change, and at the end of the patience what is wrong.
pub(crate) async fn ready(
    client: &Client,
    system: &str,
    part: Part,
    timeout: Duration,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut said = None;
    loop {
        let now = progress(client, system, part)
            .await
            .with_context(|| format!("cannot read {part}"))?;
        if now.is_done() {
            say(&format!(
                "  {part}: {} ready after {} s",
                now.ready,
                begun.elapsed().as_secs()
            ));
            return Ok(());
        }
        let line = format!("  {part}: {} of {} ready", now.ready, now.wanted);
        if said.as_ref() != Some(&line) {
            say(&line);
            said = Some(line);
        }
        if begun.elapsed() > timeout {
            let reasons = troubles(client, system, part).await?;
            let reasons = if reasons.is_empty() {
                "its pods report nothing; see kubectl describe".to_owned()
            } else {
                reasons.join("; ")
            };
            bail!(
                "{part} is not ready after {} s: {reasons}",
                timeout.as_secs()
            );
        }
        tokio::time::sleep(PACE).await;
    }
}

/// What the pods of `part` say is wrong with them.
async fn troubles(client: &Client, system: &str, part: Part) -> anyhow::Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), system);
    let pods = pods
        .list(&ListParams::default().labels(part.selector()))
        .await?;
    let mut reasons: Vec<String> = pods.iter().filter_map(trouble).collect();
    reasons.dedup();
    Ok(reasons)
}

async fn established(
    client: &Client,
    objects: &[&Object],
    timeout: Duration,
) -> anyhow::Result<()> {
    let gvk = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: Api<DynamicObject> =
        Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk));
    let begun = Instant::now();
    for object in objects.iter().filter(|object| object.kind() == gvk.kind) {
        while !is_established(&definitions.get(object.name()).await?) {
            if begun.elapsed() > timeout {
                bail!(
                    "the API server does not serve {} after {} s",
                    object.name(),
                    timeout.as_secs()
                );
            }
            tokio::time::sleep(PACE).await;
        }
    }
    Ok(())
}

fn is_established(definition: &DynamicObject) -> bool {
    let conditions = definition
        .data
        .pointer("/status/conditions")
        .and_then(|list| list.as_array());
    conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Established" && c["status"] == "True")
}

/// Between two looks.
const PACE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(generation: i64, status: serde_json::Value) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": { "generation": generation },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_daemon_set_is_done_when_every_node_runs_the_newest_template_ready() {
        let full = json!({
            "currentNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 3, "desiredNumberScheduled": 3,
            "updatedNumberScheduled": 3, "numberAvailable": 3, "observedGeneration": 2,
        });
        assert!(Progress::of_daemon_set(&set(2, full.clone())).is_done());
        assert!(
            !Progress::of_daemon_set(&set(3, full.clone())).is_done(),
            "an older template"
        );
        let mut half = full.clone();
        half["updatedNumberScheduled"] = 1.into();
        assert!(
            !Progress::of_daemon_set(&set(2, half)).is_done(),
            "two nodes run the old one"
        );
        let mut starting = full;
        starting["numberAvailable"] = 2.into();
        let progress = Progress::of_daemon_set(&set(2, starting));
        assert_eq!(
            (progress.ready, progress.wanted, progress.is_done()),
            (2, 3, false)
        );
    }

    #[test]
    fn a_deployment_with_an_old_pod_left_is_not_done() {
        let deployment = |replicas: i32| -> Deployment {
            serde_json::from_value(json!({
                "metadata": { "generation": 1 },
                "spec": { "replicas": 1, "selector": {}, "template": {} },
                "status": { "observedGeneration": 1, "replicas": replicas, "updatedReplicas": 1, "availableReplicas": 1 },
            }))
            .unwrap()
        };
        assert!(Progress::of_deployment(&deployment(1)).is_done());
        assert!(!Progress::of_deployment(&deployment(2)).is_done());
    }
}
