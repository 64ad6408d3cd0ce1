//! What the run closes with: what the parts weigh on this cluster.

use anyhow::Result;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    mesh::{Part, SYSTEM},
};

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
