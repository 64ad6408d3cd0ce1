//! The plugin at the end of real chains: the reference plugins bridge, ptp and host-local make the
//! network, called as a container runtime calls them; ours is last and speaks with the real agent.
#![allow(clippy::unwrap_used, clippy::panic)] // tests

mod support;

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use support::agent::{Agent, uid};
use support::net::Netns;

/// Where Debian and others put the reference plugins.
const PLUGINS: &str = "/usr/lib/cni:/opt/cni/bin";

struct Chain<'a> {
    node: &'a Netns,
    plugins: Vec<Value>,
    version: &'a str,
}

struct Sandbox<'a> {
    name: &'a str,
    netns: &'a Netns,
}

impl Chain<'_> {
    fn add(&self, sandbox: &Sandbox<'_>) -> Result<Value, Value> {
        self.plugins
            .iter()
            .try_fold(Value::Null, |previous, plugin| {
                let printed = self.call("ADD", plugin, Some(sandbox), &previous)?;
                Ok(printed.expect("ADD prints a result"))
            })
    }

    fn check(&self, sandbox: &Sandbox<'_>, result: &Value) {
        for plugin in &self.plugins {
            assert_eq!(self.call("CHECK", plugin, Some(sandbox), result), Ok(None));
        }
    }

    fn del(&self, sandbox: &Sandbox<'_>, result: &Value) {
        for plugin in self.plugins.iter().rev() {
            assert_eq!(self.call("DEL", plugin, Some(sandbox), result), Ok(None));
        }
    }

    fn call(
        &self,
        verb: &str,
        plugin: &Value,
        sandbox: Option<&Sandbox<'_>>,
        previous: &Value,
    ) -> Result<Option<Value>, Value> {
        let mut config = plugin.clone();
        config["cniVersion"] = self.version.into();
        config["name"] = "podnet".into();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let kind = plugin["type"].as_str().unwrap();
        let own = env!("CARGO_BIN_EXE_ambit-cni").to_owned();
        let found = PLUGINS
            .split(':')
            .map(|place| format!("{place}/{kind}"))
            .find(|path| Path::new(path).exists());
        let program = if kind == "istio-cni" {
            own
        } else {
            found.expect("package containernetworking-plugins is installed")
        };
        let mut command = self.node.command(program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", PLUGINS);
        if let Some(sandbox) = sandbox {
            command
                .env("CNI_CONTAINERID", sandbox.name)
                .env("CNI_NETNS", sandbox.netns.path())
                .env("CNI_IFNAME", "eth0")
                .env(
                    "CNI_ARGS",
                    format!(
                        "IgnoreUnknown=1;K8S_POD_NAMESPACE=app;K8S_POD_NAME={}",
                        sandbox.name
                    ),
                );
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(config.to_string().as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let printed =
            (!output.stdout.is_empty()).then(|| serde_json::from_slice(&output.stdout).unwrap());
        if output.status.success() {
            Ok(printed)
        } else {
            Err(printed.expect("an error is printed"))
        }
    }
}

fn ipam(dir: &Path) -> Value {
    json!({
        "type": "host-local", "dataDir": dir.join("ipam"),
        "ranges": [[{ "subnet": "10.31.0.0/24" }], [{ "subnet": "fd00:31::/64" }]],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
    })
}

fn ours(agent: &Agent) -> Value {
    json!({
        "type": "istio-cni", "cni_agent_run_dir": agent.run_dir(), "ambient_enabled": true,
        "exclude_namespaces": ["kube-system"], "pod_namespace": "istio-system", "plugin_log_level": "debug",
    })
}

#[test]
fn pods_of_real_plugins_are_enrolled_checked_and_deleted_in_every_version() {
    let node = Netns::new("node");
    let agent = Agent::start_in(&node, &[]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    let networks = [
        json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam(agent.dir.path()) }),
        json!({ "type": "ptp", "ipam": ipam(agent.dir.path()) }),
    ];
    for network in networks {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let kind = network["type"].as_str().unwrap();
            let name = format!("{kind}-{}", version.replace('.', "-"));
            let netns = Netns::new("pod");
            let chain = Chain {
                node: &node,
                plugins: vec![network.clone(), ours(&agent)],
                version,
            };
            let sandbox = Sandbox {
                name: &name,
                netns: &netns,
            };
            agent.plain_pod(&name);

            let result = chain
                .add(&sandbox)
                .unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", agent.log()));
            assert_eq!(result["cniVersion"], version);
            let addresses: Vec<&str> = result["ips"]
                .as_array()
                .unwrap()
                .iter()
                .map(|ip| ip["address"].as_str().unwrap())
                .collect();
            assert_eq!(addresses.len(), 2, "{result}");
            assert_eq!(agent.redirection(&name).as_deref(), Some("enabled"));
            let rules = netns.ruleset();
            assert!(
                rules.contains("ip daddr != 127.0.0.1") && rules.contains("ip6 daddr != ::1"),
                "{rules}"
            );
            assert_eq!(ztunnel.next().namespaces, [netns.inode()]);
            assert!(
                !node.ruleset().contains("istio"),
                "without a kubelet uid the node is left alone"
            );

            if version != "0.3.1" {
                chain.check(&sandbox, &result); // CHECK came with 0.4.0
            }
            chain.del(&sandbox, &result);
            agent.delete_pod(&name);
            assert_eq!(ztunnel.next().say(), format!("del {}", uid(&name)));
        }
    }
    assert!(
        agent.log().contains("the agent took pod app/bridge-1-0-0"),
        "the plugin's lines are in the agent's log"
    );
}

#[test]
fn a_pod_outside_of_the_mesh_gets_the_networks_result_and_nothing_else() {
    let node = Netns::new("node");
    let agent = Agent::start_in(&node, &[]);
    agent.pod(
        "out",
        json!({ "labels": { "istio.io/dataplane-mode": "none" } }),
        json!({}),
    );
    let netns = Netns::new("pod");
    let network = json!({ "type": "ptp", "ipam": ipam(agent.dir.path()) });
    let sandbox = Sandbox {
        name: "out",
        netns: &netns,
    };
    let with = Chain {
        node: &node,
        plugins: vec![network.clone(), ours(&agent)],
        version: "1.0.0",
    };
    let result = with.add(&sandbox).unwrap();
    assert_eq!(netns.ruleset(), "");
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 2);
    with.del(&sandbox, &result);
}

#[test]
fn without_a_ztunnel_the_sandbox_fails_with_the_specifications_error() {
    let node = Netns::new("node");
    let agent = Agent::start_in(&node, &[]);
    agent.plain_pod("early");
    let netns = Netns::new("pod");
    let network = json!({ "type": "ptp", "ipam": ipam(agent.dir.path()) });
    let chain = Chain {
        node: &node,
        plugins: vec![network, ours(&agent)],
        version: "1.0.0",
    };
    let sandbox = Sandbox {
        name: "early",
        netns: &netns,
    };
    let error = chain.add(&sandbox).unwrap_err();
    assert_eq!(
        (&error["cniVersion"], &error["code"]),
        (&json!("1.0.0"), &json!(100))
    );
    assert!(
        error["msg"]
            .as_str()
            .unwrap()
            .ends_with("no ztunnel connection"),
        "{error}"
    );
    assert_eq!(netns.ruleset(), "");

    // As a runtime would: undo, and try again when there is one.
    chain.del(&sandbox, &Value::Null);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    let result = chain.add(&sandbox).unwrap();
    assert!(netns.ruleset().contains("redirect to :15006"));
    chain.del(&sandbox, &result);
}

#[test]
fn the_verbs_of_version_1_1_are_answered() {
    let node = Netns::new("node");
    let agent = Agent::start_in(&node, &[]);
    let chain = Chain {
        node: &node,
        plugins: vec![ours(&agent)],
        version: "1.1.0",
    };
    let ours = &chain.plugins[0];
    assert_eq!(chain.call("STATUS", ours, None, &Value::Null), Ok(None));
    assert_eq!(chain.call("GC", ours, None, &Value::Null), Ok(None));
    let version = chain
        .call("VERSION", ours, None, &Value::Null)
        .unwrap()
        .unwrap();
    assert_eq!(version["cniVersion"], "1.1.0");
    assert_eq!(version["supportedVersions"].as_array().unwrap().len(), 7);
    let error = chain.call("ADD", ours, None, &Value::Null).unwrap_err();
    assert_eq!(error["code"], 4);
}
