//! What the run closes with: what the parts weigh on this cluster.

use anyhow::Result;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    mesh::{Part, SYSTEM},
    run::{Ended, Outcome},
};

/// The last lines, the totals in the form of cargo's, and whether the run passed. What needed a second attempt is named with its
/// first error: it is a finding to be mended. So is what was left out.
pub fn verdict(ended: &Ended) -> (Vec<String>, bool) {
    let Ended { outcomes, left_out } = ended;
    let count = outcomes.len();
    let failed = outcomes.iter().filter(|it| it.failed()).count();
    let again = |it: &&Outcome| !it.failed() && it.first.is_some();
    let mut lines: Vec<String> = outcomes
        .iter()
        .filter(again)
        .map(|it| {
            let first = it.first.as_deref().unwrap_or_default();
            format!("passed at the second attempt: {}: {first}", it.name)
        })
        .collect();
    let (word, second) = (if failed == 0 { "ok" } else { "FAILED" }, lines.len());
    lines.extend(
        left_out
            .iter()
            .map(|name| format!("not run, for no time was left: {name}")),
    );
    lines.push(format!(
        "test result: {word}. {} passed; {failed} failed; {} ignored; {second} of those that passed at the second attempt",
        count - failed,
        left_out.len()
    ));
    (lines, failed == 0)
}

/// What a pod of the mesh weighs.
pub struct Weight {
    /// Its name.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// Its working set.
    pub bytes: u64,
}

impl Weight {
    /// In MiB.
    pub fn mebibytes(&self) -> f64 {
        mib(self.bytes)
    }
}

/// Memory of the mesh's pods, as kubelets know it (some ten seconds old), by name.
pub async fn memory(cluster: &Cluster) -> Result<Vec<Weight>> {
    let nodes: Api<NodeObject> = Api::all(cluster.client.clone());
    let mut weights = Vec::new();
    for node in nodes.list(&ListParams::default()).await?.items {
        let node = node.name_any();
        let request = http::Request::get(format!("/api/v1/nodes/{node}/proxy/stats/summary"))
            .body(Vec::new())?;
        let summary: Value = cluster.client.request(request).await?;
        for pod in summary["pods"].as_array().into_iter().flatten() {
            if pod["podRef"]["namespace"] == SYSTEM
                && let (Some(name), Some(bytes)) = (
                    pod["podRef"]["name"].as_str(),
                    pod["memory"]["workingSetBytes"].as_u64(),
                )
            {
                weights.push(Weight {
                    pod: name.to_owned(),
                    node: node.clone(),
                    bytes,
                });
            }
        }
    }
    weights.sort_by(|a, b| a.pod.cmp(&b.pod));
    Ok(weights)
}

/// Memory of each part's pods and sizes of its images, a line each.
pub async fn weights(cluster: &Cluster) -> Result<Vec<String>> {
    let mut lines: Vec<String> = memory(cluster)
        .await?
        .iter()
        .filter(|it| it.bytes > 0) // not measured yet
        .map(|it| {
            format!(
                "memory {:6.1} MiB  {} on {}",
                it.mebibytes(),
                it.pod,
                it.node
            )
        })
        .collect();
    let nodes: Api<NodeObject> = Api::all(cluster.client.clone());
    let nodes = nodes.list(&ListParams::default()).await?.items;
    let images = nodes.iter().flat_map(|node| {
        node.status
            .iter()
            .flat_map(|status| status.images.iter().flatten())
    });
    let mut sizes: Vec<String> = images
        .filter_map(|image| {
            let name = image
                .names
                .iter()
                .flatten()
                .find(|name| Part::ALL.iter().any(|part| name.contains(image_of(*part))))?;
            Some(format!(
                "image  {:6.1} MiB  {name}",
                mib(u64::try_from(image.size_bytes.unwrap_or(0)).unwrap_or(0))
            ))
        })
        .collect();
    sizes.sort();
    sizes.dedup();
    lines.extend(sizes);
    Ok(lines)
}

fn image_of(part: Part) -> &'static str {
    match part {
        Part::Istiod => "/istiod-lite",
        Part::Ztunnel => "/ztunnel",
        Part::Agent => "/cni",
    }
}

#[allow(clippy::cast_precision_loss)] // for people
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ended(first: Option<&str>, error: Option<&str>) -> Outcome {
        Outcome {
            name: "a::b",
            took: Duration::ZERO,
            notes: Vec::new(),
            error: error.map(str::to_owned),
            first: first.map(str::to_owned),
        }
    }

    fn run(outcomes: [Outcome; 2], left_out: &[&'static str]) -> (Vec<String>, bool) {
        verdict(&Ended {
            outcomes: outcomes.into(),
            left_out: left_out.to_vec(),
        })
    }

    #[test]
    fn what_no_time_was_left_for_is_named_and_counted() {
        let (lines, passed) = run([ended(None, None), ended(None, None)], &["c::d"]);
        assert!(passed);
        assert_eq!(
            lines,
            [
                "not run, for no time was left: c::d",
                "test result: ok. 2 passed; 0 failed; 1 ignored; 0 of those that passed at the second attempt"
            ]
        );
    }

    #[test]
    fn a_second_attempt_passes_the_run_and_is_named_with_its_first_error() {
        let (lines, passed) = run([ended(None, None), ended(Some("cut"), None)], &[]);
        assert!(passed);
        assert_eq!(
            lines,
            [
                "passed at the second attempt: a::b: cut",
                "test result: ok. 2 passed; 0 failed; 0 ignored; 1 of those that passed at the second attempt"
            ]
        );
    }

    #[test]
    fn what_fails_twice_fails_the_run() {
        let (lines, passed) = run([ended(None, None), ended(Some("cut"), Some("cut"))], &[]);
        assert!(!passed);
        assert_eq!(
            lines,
            [
                "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 of those that passed at the second attempt"
            ]
        );
    }
}
