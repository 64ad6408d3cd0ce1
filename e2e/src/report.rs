//! What the run closes with: what the parts weigh on this cluster.

use anyhow::Result;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    mesh::{Part, SYSTEM},
};

/// Memory of each part's pods and sizes of its images, a line each.
pub async fn weights(cluster: &Cluster) -> Result<Vec<String>> {
    let nodes: Api<NodeObject> = Api::all(cluster.client.clone());
    let nodes = nodes.list(&ListParams::default()).await?.items;
    let mut lines = Vec::new();
    for node in &nodes {
        let request = http::Request::get(format!(
            "/api/v1/nodes/{}/proxy/stats/summary",
            node.name_any()
        ))
        .body(Vec::new())?;
        let summary: Value = cluster.client.request(request).await?;
        for pod in summary["pods"].as_array().into_iter().flatten() {
            if pod["podRef"]["namespace"] == SYSTEM
                && let (Some(name), Some(bytes)) = (
                    pod["podRef"]["name"].as_str(),
                    pod["memory"]["workingSetBytes"].as_u64(),
                )
            {
                lines.push(format!(
                    "memory {:6.1} MiB  {name} on {}",
                    mib(bytes),
                    node.name_any()
                ));
            }
        }
    }
    lines.sort();
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
