//! A node: its namespace, its CNI chain, the real node agent, and the real ztunnel in a pod of its own.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    access::AccessLog,
    cni::{Chain, MeshPlugin},
    component::{Component, bare},
    control_plane,
    enter::Entry,
    http,
    metrics::Metrics,
    netns::Netns,
    plan::{Host, Plan},
    pod::Pod,
    wait::Probe,
};

const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;
const AGENT_METRICS: u16 = 15014;
/// What the node agent takes for the host's file system: no process of a lab has a cgroup of its own, so the
/// sandboxes' processes are told there.
const HOST: &str = "host";

/// One node of a lab.
#[derive(Debug)]
pub struct Node {
    index: usize,
    name: String,
    addresses: Vec<IpAddr>,
    netns: Netns,
    dir: PathBuf,
    pub(crate) chain: Chain,
    mesh: Option<Mesh>,
}

/// What makes a node part of the mesh.
#[derive(Debug)]
struct Mesh {
    agent: Component,
    /// Set once: the agent must run before a pod can be set up, this one too.
    ztunnel: std::sync::OnceLock<(Component, Pod)>,
}

/// What a node's programs are made from.
pub(crate) struct Site<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) netns: Netns,
    /// The lab's directory.
    pub(crate) dir: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) bin: PathBuf,
    pub(crate) agent_env: Vec<(String, String)>,
    pub(crate) mesh: bool,
}

impl Node {
    pub(crate) fn build(index: usize, site: Site<'_>) -> Result<Self> {
        let name = site.plan.node_name(index);
        let dir = site.dir.join(&name);
        fs::create_dir_all(dir.join("ztunnel"))?;
        for directory in ["proc", "var/run"] {
            fs::create_dir_all(dir.join(HOST).join(directory))?;
        }
        symlink("/var/run/netns", dir.join(HOST).join("var/run/netns"))?;
        let plugin = MeshPlugin {
            binary: site.bin.join("ambit-cni"),
            agent_dir: dir.join("istio-cni"),
        };
        let chain = Chain::install(
            site.plan,
            index,
            &site.netns,
            &dir,
            site.mesh.then_some(&plugin),
        )?;
        let addresses = site.plan.on_fabric(Host::Node(index));
        let mesh = site.mesh.then(|| Mesh {
            agent: agent(&site, &name, &dir, addresses[0]),
            ztunnel: std::sync::OnceLock::new(),
        });
        Ok(Self {
            index,
            name,
            addresses,
            netns: site.netns,
            dir,
            chain,
            mesh,
        })
    }

    /// Its number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its Kubernetes name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses on the fabric, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The namespace that plays the node's host network.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The node agent.
    pub fn agent(&self) -> Result<&Component> {
        Ok(&self.mesh()?.agent)
    }

    /// ztunnel.
    pub fn ztunnel(&self) -> Result<&Component> {
        Ok(&self.ztunnel_and_pod()?.0)
    }

    /// The pod ztunnel runs in.
    pub fn ztunnel_pod(&self) -> Result<&Pod> {
        Ok(&self.ztunnel_and_pod()?.1)
    }

    /// ztunnel's metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.ask("GET", METRICS, "/metrics")?.ok()?))
    }

    /// The node agent's metrics.
    pub fn agent_metrics(&self) -> Result<Metrics> {
        let at = SocketAddr::new(self.addresses[0], AGENT_METRICS);
        Ok(Metrics::parse(
            &http::request(&self.netns, "GET", at, "/metrics")?.ok()?,
        ))
    }

    /// What ztunnel knows, as its admin page tells it.
    pub fn config_dump(&self) -> Result<Value> {
        let body = self.ask("GET", ADMIN, "/config_dump")?.ok()?;
        serde_json::from_str(&body).context("the config dump")
    }

    /// POSTs to ztunnel's admin port.
    pub fn admin_post(&self, path: &str) -> Result<String> {
        self.ask("POST", ADMIN, path)?.ok()
    }

    /// ztunnel's access log, from its beginning.
    pub fn access_log(&self) -> Result<AccessLog> {
        Ok(AccessLog::new(self.ztunnel()?.log_path().to_owned()))
    }

    pub(crate) fn meshed(&self) -> bool {
        self.mesh.is_some()
    }

    /// Puts ztunnel into `pod` (which has its network already) and starts it.
    pub(crate) fn run_ztunnel(&self, pod: Pod, ztunnel: &Ztunnel<'_>) -> Result<()> {
        let component = self.ztunnel_component(&pod, ztunnel)?;
        let set = self.mesh()?.ztunnel.set((component, pod));
        set.ok().context("ztunnel is already there")?;
        self.ztunnel()?.launch()
    }

    fn ztunnel_component(&self, pod: &Pod, ztunnel: &Ztunnel<'_>) -> Result<Component> {
        let home = self.dir.join("ztunnel");
        let token = home.join("var/run/secrets/tokens/istio-token");
        let root = home.join("var/run/secrets/istio/root-cert.pem");
        for file in [&token, &root] {
            fs::create_dir_all(file.parent().context("a file in a directory")?)?;
        }
        fs::write(&token, ztunnel.token.trim())?;
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600))?;
        fs::copy(ztunnel.root_cert, &root).context("the control plane's root certificate")?;

        let mut env: Vec<(String, String)> = [
            ("XDS_ADDRESS", control_plane::url()),
            ("CA_ADDRESS", control_plane::url()),
            ("XDS_ROOT_CA", root.display().to_string()),
            ("CA_ROOT_CA", root.display().to_string()),
            ("AUTH_TOKEN", token.display().to_string()),
            ("CLUSTER_ID", "Kubernetes".into()),
            ("NODE_NAME", self.name.clone()),
            ("POD_NAME", pod.name().into()),
            ("POD_NAMESPACE", pod.namespace().into()),
            ("INSTANCE_IP", pod.ip().to_string()),
            ("SERVICE_ACCOUNT", "ztunnel".into()),
            ("NETWORK", String::new()),
            (
                "INPOD_UDS",
                self.dir.join("ztunnel.sock").display().to_string(),
            ),
            ("RUST_LOG", "info".into()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        env.extend(ztunnel.env.iter().cloned());

        let (binary, inside) = (ztunnel.binary.clone(), pod.clone());
        let recipe = move || {
            let mut command = bare(&binary);
            command
                .args(["proxy", "ztunnel"])
                .current_dir(&home)
                .envs(env.iter().map(|(k, v)| (k, v)));
            inside.entry()?.prepare(&mut command);
            Ok(command)
        };
        let (netns, at) = (pod.netns().clone(), SocketAddr::new(pod.ip(), READINESS));
        let ready = move || {
            Ok(match http::request(&netns, "GET", at, "/healthz/ready") {
                Ok(answer) if answer.status == 200 => Probe::Ready(()),
                Ok(answer) => {
                    Probe::NotYet(format!("readiness says {}: {}", answer.status, answer.body))
                }
                Err(error) => Probe::NotYet(format!("{error:#}")),
            })
        };
        let log = self.dir.join("ztunnel.log");
        Ok(Component::new(
            &format!("ztunnel on {}", self.name),
            log,
            Box::new(recipe),
            Box::new(ready),
        ))
    }

    /// Shows the node agent a sandbox's first process, as it would find it in the node's `/proc`: the pod's uid in
    /// its cgroup's name, and its network namespace.
    pub(crate) fn show_sandbox(&self, number: u32, uid: &str, netns: &Netns) -> Result<()> {
        let process = self.sandbox_process(number);
        fs::create_dir_all(process.join("ns"))?;
        fs::write(
            process.join("cgroup"),
            format!("0::/kubepods.slice/pod{uid}/sandbox\n"),
        )?;
        fs::write(
            process.join("stat"),
            format!("{number} (pause) S{}\n", " 0".repeat(49)),
        )?;
        symlink(netns.path(), process.join("ns/net")).context("the sandbox's namespace")
    }

    /// The sandbox is gone.
    pub(crate) fn hide_sandbox(&self, number: u32) -> Result<()> {
        fs::remove_dir_all(self.sandbox_process(number)).context("the sandbox's process")
    }

    fn sandbox_process(&self, number: u32) -> PathBuf {
        // Process ids begin with 1.
        self.dir
            .join(HOST)
            .join("proc")
            .join((number + 1).to_string())
    }

    fn ask(&self, method: &str, port: u16, path: &str) -> Result<http::Answer> {
        let pod = self.ztunnel_pod()?;
        // The admin port is for the pod's own loopback only.
        let address = if port == ADMIN {
            IpAddr::from([127, 0, 0, 1])
        } else {
            pod.ip()
        };
        http::request(pod.netns(), method, SocketAddr::new(address, port), path)
    }

    fn mesh(&self) -> Result<&Mesh> {
        self.mesh
            .as_ref()
            .context("this lab was built without a mesh")
    }

    fn ztunnel_and_pod(&self) -> Result<&(Component, Pod)> {
        self.mesh()?
            .ztunnel
            .get()
            .with_context(|| format!("{} has no ztunnel yet", self.name))
    }
}

/// What a ztunnel needs besides its pod.
pub(crate) struct Ztunnel<'a> {
    pub(crate) binary: PathBuf,
    pub(crate) token: String,
    pub(crate) root_cert: &'a std::path::Path,
    pub(crate) env: &'a [(String, String)],
}

fn agent(site: &Site<'_>, name: &str, dir: &std::path::Path, address: IpAddr) -> Component {
    let metrics = SocketAddr::new(address, AGENT_METRICS);
    let recipe = {
        let (binary, config, netns) = (
            site.bin.join("ambit-cni-agent"),
            site.config.clone(),
            site.netns.clone(),
        );
        let (name, dir, env) = (name.to_owned(), dir.to_owned(), site.agent_env.clone());
        move || {
            let mut command = bare(&binary);
            command
                .arg("--config-dir")
                .arg(&config)
                .args(["--node-name", &name]);
            command.arg("--cni-run-dir").arg(dir.join("istio-cni"));
            command
                .arg("--ztunnel-socket")
                .arg(dir.join("ztunnel.sock"));
            command.args(["--metrics-address", &metrics.to_string()]);
            command.arg("--host-root").arg(dir.join(HOST));
            command
                .env("RUST_LOG", "info")
                // As in most clusters: whatever root does on the node itself may be a probe.
                .env("KUBELET_UID", "0")
                .envs(env.iter().map(|(k, v)| (k, v)));
            Entry::default().netns(netns.open()?).prepare(&mut command);
            Ok(command)
        }
    };
    let (netns, socket) = (site.netns.clone(), dir.join("istio-cni/pluginevent.sock"));
    let ready = move || {
        Ok(match http::request(&netns, "GET", metrics, "/metrics") {
            Ok(answer) if answer.status == 200 && socket.exists() => Probe::Ready(()),
            Ok(answer) => Probe::NotYet(format!(
                "metrics say {}, socket there: {}",
                answer.status,
                socket.exists()
            )),
            Err(error) => Probe::NotYet(format!("{error:#}")),
        })
    };
    Component::new(
        &format!("node agent on {name}"),
        dir.join("agent.log"),
        Box::new(recipe),
        Box::new(ready),
    )
}
