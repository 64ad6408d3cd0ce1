//! A node as root sees it: a privileged pod on it that enters the node's own namespaces.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::ResourceExt;
use serde_json::json;

use crate::{
    cluster::Cluster,
    place::{container, volumes},
    pod::{Pod, Said},
};

/// Where the shells on the nodes live.
pub const NAMESPACE: &str = "ambit-e2e-nodes";

/// A worker.
#[derive(Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<String>,
    shell: Pod,
}

impl Node {
    /// Puts a shell on a node, or finds the one that is there.
    pub async fn enter(cluster: &Cluster, node: &NodeObject) -> Result<Self> {
        let name = node.name_any();
        let mut shell = container(&cluster.apps, &["sleep", "infinity"]);
        shell["securityContext"] = json!({ "privileged": true });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": {
                "nodeName": name, "hostNetwork": true, "hostPID": true, "terminationGracePeriodSeconds": 0,
                "tolerations": [{ "operator": "Exists" }], "containers": [shell], "volumes": volumes(),
            },
        });
        if cluster
            .pods(NAMESPACE, "")
            .await?
            .iter()
            .all(|pod| pod.name_any() != name)
        {
            cluster.apply_object(NAMESPACE, pod).await?;
        }
        let shell = Pod::ready(cluster, NAMESPACE, &name).await?;
        let addresses = node
            .status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten());
        let addresses = addresses
            .filter(|address| address.type_ == "InternalIP")
            .map(|address| address.address.clone())
            .collect();
        Ok(Self {
            name,
            addresses,
            shell,
        })
    }

    /// Runs a line of shell in the node's network, with the test image's programs.
    pub async fn sh(&self, line: &str) -> Result<Said> {
        self.shell.sh(line).await
    }

    /// Runs a line of shell in the node itself: its files, its programs.
    pub async fn own(&self, line: &str) -> Result<Said> {
        self.shell
            .exec(["nsenter", "--target", "1", "--all", "sh", "-c", line])
            .await
    }

    /// Its address.
    pub fn address(&self) -> &str {
        self.addresses.first().map_or("", String::as_str)
    }

    /// Reads a file of the node.
    pub async fn file(&self, path: &str) -> Result<String> {
        self.own(&format!("cat {path}"))
            .await?
            .success()
            .with_context(|| format!("{path} on {}", self.name))
    }
}
