//! The plugin at the end of real chains: the reference plugins bridge, ptp and host-local make the
//! network, called as a container runtime calls them; ours is last and speaks with the real agent.

use std::os::unix::fs::symlink;
use std::path::Path;

use lab::{Chain, Netns, Refusal, Sandbox};
use serde_json::{Value, json};

use crate::support::agent::{Agent, uid};
use crate::support::net::{Asked, place};

/// The chain of `plugins`, with our plugin under its installed name.
fn chain(node: &Netns, agent: &Agent, plugins: &[Value], version: &str) -> Chain {
    let bin = agent.dir.path().join("cni-bin");
    if !bin.exists() {
        std::fs::create_dir(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_ambit-cni"), bin.join("istio-cni")).unwrap();
    }
    let conflist = json!({ "cniVersion": version, "name": "podnet", "plugins": plugins });
    Chain::new(node, &bin, &conflist).unwrap()
}

/// The error object that a plugin printed.
fn refusal(error: &anyhow::Error) -> Value {
    error
        .downcast_ref::<Refusal>()
        .unwrap()
        .said
        .clone()
        .unwrap()
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
    let node = place("node");
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
            let netns = place("pod");
            let chain = chain(&node, &agent, &[network.clone(), ours(&agent)], version);
            let sandbox = Sandbox {
                netns: &netns,
                namespace: "app",
                name: &name,
                uid: &uid(&name),
            };
            agent.plain_pod(&name);

            let result = chain
                .add(sandbox)
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
            assert_eq!(ztunnel.next().namespaces, [netns.inode().unwrap()]);
            assert!(
                !node.ruleset().contains("istio"),
                "without a kubelet uid the node is left alone"
            );

            if version != "0.3.1" {
                chain.check(sandbox, &result).unwrap(); // CHECK came with 0.4.0
            }
            chain.del(sandbox, Some(&result)).unwrap();
            agent.delete_pod(&name);
            assert_eq!(ztunnel.next().say(), format!("del {}", uid(&name)));
        }
    }
    // The plugin's lines are in the agent's log.
    agent.await_log("the agent took pod app/bridge-1-0-0");
}

#[test]
fn a_pod_outside_of_the_mesh_gets_the_networks_result_and_nothing_else() {
    let node = place("node");
    let agent = Agent::start_in(&node, &[]);
    agent.pod(
        "out",
        json!({ "labels": { "istio.io/dataplane-mode": "none" } }),
        json!({}),
    );
    let netns = place("pod");
    let network = json!({ "type": "ptp", "ipam": ipam(agent.dir.path()) });
    let sandbox = Sandbox {
        netns: &netns,
        namespace: "app",
        name: "out",
        uid: &uid("out"),
    };
    let with = chain(&node, &agent, &[network.clone(), ours(&agent)], "1.0.0");
    let result = with.add(sandbox).unwrap();
    assert_eq!(netns.ruleset(), "");
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 2);
    with.del(sandbox, Some(&result)).unwrap();
}

#[test]
fn without_a_ztunnel_the_sandbox_fails_with_the_specifications_error() {
    let node = place("node");
    let agent = Agent::start_in(&node, &[]);
    agent.plain_pod("early");
    let netns = place("pod");
    let network = json!({ "type": "ptp", "ipam": ipam(agent.dir.path()) });
    let chain = chain(&node, &agent, &[network, ours(&agent)], "1.0.0");
    let sandbox = Sandbox {
        netns: &netns,
        namespace: "app",
        name: "early",
        uid: &uid("early"),
    };
    let error = refusal(&chain.add(sandbox).unwrap_err());
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
    chain.del(sandbox, None).unwrap();
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    let result = chain.add(sandbox).unwrap();
    assert!(netns.ruleset().contains("redirect to :15006"));
    chain.del(sandbox, Some(&result)).unwrap();
}

#[test]
fn the_verbs_of_version_1_1_are_answered() {
    let node = place("node");
    let agent = Agent::start_in(&node, &[]);
    let chain = chain(&node, &agent, &[ours(&agent)], "1.1.0");
    assert_eq!(chain.ask("STATUS").unwrap(), None);
    assert_eq!(chain.ask("GC").unwrap(), None);
    let version = chain.ask("VERSION").unwrap().unwrap();
    assert_eq!(version["cniVersion"], "1.1.0");
    assert_eq!(version["supportedVersions"].as_array().unwrap().len(), 7);
    let error = refusal(&chain.ask("ADD").unwrap_err());
    assert_eq!(error["code"], 4);
}
