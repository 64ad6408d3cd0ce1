//! The chain of CNI plugins, called as a container runtime calls it.
//!
//! ADD runs the plugins in order, each fed the result of the one before; DEL runs them in reverse with the last
//! result. The plugins run in the node's namespace, where a runtime runs.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    enter::Entry,
    netns::Netns,
    plan::Plan,
    run::{self, PATIENCE},
};

/// What the oldest reference plugins in use (Debian 12's) still speak.
const VERSION: &str = "1.0.0";
/// Where distributions and installers put plugins.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The CNI configuration of one node.
#[derive(Debug)]
pub(crate) struct Chain {
    node: Netns,
    conflist: Value,
    path: String,
}

/// A pod's side of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sandbox<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) uid: &'a str,
}

impl Chain {
    /// Writes the node's conflist and the directory that holds the mesh's plugin under its installed name.
    pub(crate) fn install(
        plan: &Plan,
        index: usize,
        node: &Netns,
        dir: &Path,
        mesh: Option<&MeshPlugin>,
    ) -> Result<Self> {
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
        let path = std::iter::once(bin.as_path())
            .chain(PLUGINS.map(Path::new))
            .map(|p| p.display().to_string());
        Ok(Self {
            node: node.clone(),
            conflist,
            path: path.collect::<Vec<_>>().join(":"),
        })
    }

    /// Sets the sandbox's network up. When a plugin fails, those before it are undone, as a runtime would.
    pub(crate) fn add(&self, sandbox: Sandbox<'_>) -> Result<Attached> {
        let mut result = None;
        for (done, plugin) in self.plugins().enumerate() {
            match self.call("ADD", plugin, sandbox, result.as_ref()) {
                Ok(output) => {
                    result = Some(serde_json::from_str(&output).context("the plugin's result")?)
                }
                Err(error) => {
                    for undo in self
                        .plugins()
                        .take(done + 1)
                        .collect::<Vec<_>>()
                        .into_iter()
                        .rev()
                    {
                        let _ = self.call("DEL", undo, sandbox, result.as_ref());
                    }
                    return Err(error);
                }
            }
        }
        Attached::parse(result.context("an empty plugin chain")?)
    }

    /// Takes the sandbox's network down again.
    pub(crate) fn del(&self, sandbox: Sandbox<'_>, attached: &Attached) -> Result<()> {
        for plugin in self.plugins().collect::<Vec<_>>().into_iter().rev() {
            self.call("DEL", plugin, sandbox, Some(&attached.result))?;
        }
        Ok(())
    }

    fn plugins(&self) -> impl Iterator<Item = &Value> {
        self.conflist["plugins"].as_array().into_iter().flatten()
    }

    fn call(
        &self,
        verb: &str,
        plugin: &Value,
        sandbox: Sandbox<'_>,
        previous: Option<&Value>,
    ) -> Result<String> {
        let mut config = plugin.clone();
        config["cniVersion"] = VERSION.into();
        config["name"] = self.conflist["name"].clone();
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let kind = plugin["type"].as_str().unwrap_or_default();
        let mut command = Command::new(self.find(kind)?);
        let Sandbox {
            netns,
            namespace,
            name,
            uid,
        } = sandbox;
        command
            .env_clear()
            .env("PATH", run::SEARCH_PATH)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", uid)
            .env("CNI_NETNS", netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.path)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={uid};K8S_POD_UID={uid}"
                ),
            );
        Entry::default()
            .netns(self.node.open()?)
            .prepare(&mut command);
        let ran = run::run_entered(command, &serde_json::to_vec(&config)?, PATIENCE)?;
        if ran.succeeded() {
            return Ok(ran.stdout);
        }
        bail!(
            "CNI plugin {kind}, {verb} for {namespace}/{name}: {}{}",
            reason(&ran.stdout),
            ran.stderr
        )
    }

    fn find(&self, kind: &str) -> Result<PathBuf> {
        let places = self
            .path
            .split(':')
            .map(|place| Path::new(place).join(kind));
        places
            .into_iter()
            .find(|path| path.exists())
            .with_context(|| {
                format!(
                    "no CNI plugin {kind} in {} (Debian, Ubuntu: containernetworking-plugins)",
                    self.path
                )
            })
    }
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
    result: Value,
}

impl Attached {
    fn parse(result: Value) -> Result<Self> {
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

/// A plugin's error as JSON in the specification's form, or whatever else it printed.
fn reason(stdout: &str) -> String {
    match serde_json::from_str::<Value>(stdout) {
        Ok(error) => {
            let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
            format!(
                "{} {} (code {}) ",
                text("msg"),
                text("details"),
                error["code"]
            )
        }
        Err(_) => stdout.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mesh_is_the_last_link_of_the_chain_and_absent_without_a_mesh() {
        let plan = Plan::new("l00000", 1, true).unwrap();
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

    #[test]
    fn a_plugins_error_is_told_in_one_line() {
        assert_eq!(
            reason(r#"{"code":11,"msg":"busy","details":"try later"}"#),
            "busy try later (code 11) "
        );
        assert_eq!(reason("not json"), "not json");
    }
}
