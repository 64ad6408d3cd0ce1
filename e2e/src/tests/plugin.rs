//! The CNI plugin as any container runtime may call it.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{node::Node, run::Test};

/// Every version of the specification with lists of plugins that pass each other's results.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The node's own chain of plugins, ours at its end, adds, checks and deletes a pod's network in every version of the specification; what
/// the plugins before ours said is passed on, and the pod is in the mesh.
pub(super) async fn cnitool_adds_checks_and_deletes_in_every_version(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let node = test.node(0);
    let bench = Bench::set_up(node, &shop.name).await?;
    let mut outcome = Ok(());
    for version in VERSIONS {
        let name = format!("never-{}", version.replace('.', "-"));
        shop.apply(&unstartable(&name, node)).await?;
        let object = test.cluster.object(&shop.name, "v1", "Pod", &name).await?;
        let uid = object.metadata.uid.context("a pod without uid")?;
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={name};K8S_POD_UID={uid}",
            shop.name
        );
        outcome = bench
            .try_out(version, &args)
            .await
            .with_context(|| format!("version {version}"));
        if outcome.is_err() {
            break;
        }
    }
    bench.clear_away().await?;
    outcome
}

/// A pod that the kubelet never gets to start, since what it mounts is not there: its network is the test's to make.
fn unstartable(name: &str, node: &Node) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {}\n  terminationGracePeriodSeconds: 0\n  \
         containers: [{{name: app, image: never, imagePullPolicy: Never, volumeMounts: [{{name: never, mountPath: /never}}]}}]\n  \
         volumes: [{{name: never, configMap: {{name: never}}}}]\n",
        node.name
    )
}

/// A network namespace on a node, and the node's chain of plugins under another name with addresses of its own.
struct Bench<'a> {
    node: &'a Node,
    name: String,
    folder: String,
    chain: Value,
}

impl<'a> Bench<'a> {
    async fn set_up(node: &'a Node, name: &str) -> Result<Self> {
        let text = node
            .own("cat $(grep -l istio-cni /etc/cni/net.d/*.conflist | head -n 1)")
            .await?
            .success()?;
        let mut chain: Value =
            serde_json::from_str(&text).context("the node's CNI configuration")?;
        let folder = format!("/opt/e2e/{name}");
        chain["name"] = json!(name);
        chain["plugins"][0]["ipam"]["dataDir"] = json!(format!("{folder}/addresses"));
        chain["plugins"][0]["ipam"]["ranges"] =
            json!([[{ "subnet": "198.51.100.0/28" }], [{ "subnet": "2001:db8:7::/120" }]]);
        let bench = Self {
            node,
            name: name.to_owned(),
            folder,
            chain,
        };
        node.own(&format!("mkdir -p {0}/older", bench.folder))
            .await?
            .success()?;
        bench.older_plugins().await?;
        Ok(bench)
    }

    /// Plugins of a distribution may not know the newest version yet: for those it is translated, theirs being alike but for the number.
    async fn older_plugins(&self) -> Result<()> {
        let folder = &self.folder;
        let script = "#!/bin/sh\nsed 's/\"cniVersion\": *\"1.1.0\"/\"cniVersion\":\"1.0.0\"/g' | /opt/cni/bin/${0##*/} | sed 's/\"cniVersion\": *\"1.0.0\"/\"cniVersion\":\"1.1.0\"/g'\n";
        let others: Vec<&str> = (self.chain["plugins"].as_array().into_iter().flatten())
            .filter_map(|plugin| plugin["type"].as_str())
            .filter(|kind| *kind != "istio-cni")
            .collect();
        ensure!(!others.is_empty(), "our plugin is alone in {}", self.chain);
        for kind in others {
            let file = format!("{folder}/older/{kind}");
            self.write(&file, script).await?;
            self.node
                .own(&format!("chmod +x {file}"))
                .await?
                .success()?;
        }
        Ok(())
    }

    async fn try_out(&self, version: &str, args: &str) -> Result<()> {
        let mut chain = self.chain.clone();
        chain["cniVersion"] = json!(version);
        self.write(&format!("{}/net.conflist", self.folder), &chain.to_string())
            .await?;
        let own = |line: &str| {
            let line = line.replace("NS", &self.name);
            async move { self.node.own(&line).await?.success() }
        };
        // The loopback link is up before any chain is run: the runtime's own doing, which cnitool leaves to others.
        own("ip netns add NS && ip -netns NS link set lo up").await?;
        let said = self.cnitool("add", version, args).await?;
        let result: Value =
            serde_json::from_str(&said).with_context(|| format!("add said {said}"))?;
        let addresses: Vec<&str> = (result["ips"].as_array().into_iter().flatten())
            .filter_map(|ip| ip["address"].as_str())
            .collect();
        ensure!(
            result["cniVersion"] == version && addresses.len() == 2,
            "add said {result}"
        );
        for address in addresses {
            let inside = own("ip netns exec NS ip -brief address show eth0").await?;
            ensure!(inside.contains(address), "{address} is not in {inside}");
        }
        let listeners = own("ip netns exec NS ss -Hltn").await?;
        for port in [":15001", ":15006", ":15008"] {
            ensure!(listeners.contains(port), "nothing on {port}: {listeners}");
        }
        // Versions before 0.4.0 have no CHECK.
        if !version.starts_with("0.3") {
            self.cnitool("check", version, args).await?;
        }
        // 1.1.0 has two more.
        if version == "1.1.0" {
            self.cnitool("status", version, args).await?;
        }
        self.cnitool("del", version, args).await?;
        self.cnitool("del", version, args)
            .await
            .context("a second time, which is no mistake")?;
        own("ip netns del NS").await?;
        Ok(())
    }

    async fn cnitool(&self, verb: &str, version: &str, args: &str) -> Result<String> {
        let (folder, name) = (&self.folder, &self.name);
        let older = if version == "1.1.0" {
            format!("{folder}/older:")
        } else {
            String::new()
        };
        let line = format!(
            "PATH=$PATH:/opt/e2e CNI_PATH={older}/opt/cni/bin NETCONFPATH={folder} CNI_ARGS='{args}' cnitool {verb} {name} /var/run/netns/{name}"
        );
        self.node
            .own(&line)
            .await?
            .success()
            .with_context(|| format!("cnitool {verb}"))
    }

    async fn write(&self, file: &str, text: &str) -> Result<()> {
        let line = format!("cat >{file} <<'END'\n{text}\nEND");
        self.node.own(&line).await?.success().map(drop)
    }

    async fn clear_away(&self) -> Result<()> {
        let (folder, name) = (&self.folder, &self.name);
        let line = format!(
            "ip netns del {name} 2>/dev/null; rm -rf {folder} /var/lib/cni/results/{name}-*"
        );
        self.node.own(&line).await?.success().map(drop)
    }
}
