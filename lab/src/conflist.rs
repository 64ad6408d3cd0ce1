//! The CNI configuration of a lab's node: the reference bridge first, the mesh's plugin last, if there is a mesh.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{cni::Chain, netns::Netns, plan::Plan};

/// What the oldest reference plugins in use (Debian 12's) still speak.
const VERSION: &str = "1.0.0";

/// Writes the node's conflist and the directory that holds the mesh's plugin under its installed name.
pub(crate) fn install(
    plan: &Plan,
    index: usize,
    node: &Netns,
    dir: &Path,
    mesh: Option<&MeshPlugin>,
) -> Result<Chain> {
    let conflist = conflist(plan, index, dir, mesh);
    let file = dir.join("net.d/10-lab.conflist");
    let bin = dir.join("cni-bin");
    for directory in [&dir.join("net.d"), &bin] {
        fs::create_dir_all(directory)?;
    }
    fs::write(&file, serde_json::to_vec_pretty(&conflist)?)
        .with_context(|| format!("writing {}", file.display()))?;
    if let Some(mesh) = mesh {
        std::os::unix::fs::symlink(&mesh.binary, bin.join("istio-cni"))
            .context("naming the plugin")?;
    }
    Chain::new(node, &bin, &conflist)
}

/// What the mesh's link of the chain needs.
#[derive(Debug)]
pub(crate) struct MeshPlugin {
    pub(crate) binary: PathBuf,
    /// Where the node agent's sockets are.
    pub(crate) agent_dir: PathBuf,
}

fn conflist(plan: &Plan, node: usize, dir: &Path, mesh: Option<&MeshPlugin>) -> Value {
    let ranges: Vec<Value> = plan
        .pod_subnets(node)
        .iter()
        .map(|subnet| json!([{ "subnet": subnet }]))
        .collect();
    let mut routes = vec![json!({ "dst": "0.0.0.0/0" })];
    if plan.ipv6() {
        routes.push(json!({ "dst": "::/0" }));
    }
    let mut plugins = vec![json!({
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "hairpinMode": true,
        "ipam": { "type": "host-local", "dataDir": dir.join("ipam"), "ranges": ranges, "routes": routes },
    })];
    if let Some(mesh) = mesh {
        plugins.push(json!({
            "type": "istio-cni",
            "name": "istio-cni",
            "plugin_log_level": "info",
            "cni_agent_run_dir": mesh.agent_dir,
            "ambient_enabled": true,
            "enablement_selectors": enablement_selectors(),
            "exclude_namespaces": ["kube-system"],
            "pod_namespace": "istio-system",
            "native_nftables": true,
            "ipam": {},
            "dns": {},
        }));
    }
    json!({ "cniVersion": VERSION, "name": "lab", "plugins": plugins })
}

/// Label `istio.io/dataplane-mode`: on the pod, or on its namespace unless the pod says none.
fn enablement_selectors() -> Value {
    let ambient = json!({ "matchLabels": { "istio.io/dataplane-mode": "ambient" } });
    let not_none = json!({ "matchExpressions": [{ "key": "istio.io/dataplane-mode", "operator": "NotIn", "values": ["none"] }] });
    json!([
        { "podSelector": ambient, "namespaceSelector": {} },
        { "podSelector": not_none, "namespaceSelector": ambient },
    ])
}

/// What an ADD gave the sandbox.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) result: Value,
}

impl Attached {
    pub(crate) fn parse(result: Value) -> Result<Self> {
        let mut addresses = Vec::new();
        for ip in result["ips"].as_array().into_iter().flatten() {
            let text = ip["address"].as_str().context("an address without text")?;
            let (address, _) = text
                .split_once('/')
                .context("an address without a prefix length")?;
            addresses.push(address.parse().with_context(|| format!("address {text}"))?);
        }
        if addresses.is_empty() {
            bail!("the CNI chain gave no address: {result}");
        }
        Ok(Self { addresses, result })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mesh_is_the_last_link_of_the_chain_and_absent_without_a_mesh() {
        let plan = Plan::new("l00000", 1, true, 0).unwrap();
        let mesh = MeshPlugin {
            binary: "/bin/x".into(),
            agent_dir: "/run/x".into(),
        };
        let types = |list: &Value| -> Vec<String> {
            list["plugins"]
                .as_array()
                .unwrap()
                .iter()
                .map(|p| p["type"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(
            types(&conflist(&plan, 0, Path::new("/d"), Some(&mesh))),
            ["bridge", "istio-cni"]
        );
        assert_eq!(
            types(&conflist(&plan, 0, Path::new("/d"), None)),
            ["bridge"]
        );
    }

    #[test]
    fn a_result_without_addresses_is_an_error() {
        assert!(Attached::parse(json!({ "ips": [] })).is_err());
        assert!(Attached::parse(json!({ "ips": [{ "address": "10.0.0.300/24" }] })).is_err());
        let both = json!({ "ips": [{ "address": "10.244.0.2/24" }, { "address": "fd10::2/64" }] });
        assert_eq!(Attached::parse(both).unwrap().addresses.len(), 2);
    }
}
