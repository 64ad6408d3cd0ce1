//! A node: its namespace, its CNI chain, the real node agent, and the real ztunnel in a pod of its own.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    access::AccessLog,
    cni::Chain,
    component::{Component, bare},
    conflist::{self, MeshPlugin},
    http,
    metrics::Metrics,
    netns::Netns,
    plan::{Host, Plan},
    pod::Pod,
    wait::Probe,
    ztunnel::{Credentials, Recipe, Ztunnel},
};

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
    recipe: Mutex<Recipe>,
    /// Empty at first: the agent must run before a pod can be set up, ztunnel's too.
    ztunnel: Mutex<Option<Arc<Ztunnel>>>,
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
    /// `None`: not part of a mesh.
    pub(crate) ztunnel: Option<Recipe>,
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
        let chain = conflist::install(
            site.plan,
            index,
            &site.netns,
            &dir,
            site.ztunnel.as_ref().map(|_| &plugin),
        )?;
        let addresses = site.plan.on_fabric(Host::Node(index));
        let agent = agent(&site, &name, &dir, addresses[0]);
        let mesh = site.ztunnel.map(|recipe| Mesh {
            agent,
            recipe: Mutex::new(recipe),
            ztunnel: Mutex::default(),
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
    pub fn ztunnel(&self) -> Result<Arc<Component>> {
        Ok(self.current()?.component().clone())
    }

    /// The process that carries traffic: ztunnel, or its keeper's worker. `None` while the keeper has none.
    pub fn worker(&self) -> Result<Option<i32>> {
        let process = self.ztunnel()?.process()?;
        if !self.recipe(self.mesh()?).kept {
            return Ok(Some(process.pid()));
        }
        Ok(process.children()?.first().copied())
    }

    /// The pod ztunnel runs in.
    pub fn ztunnel_pod(&self) -> Result<Pod> {
        Ok(self.current()?.pod().clone())
    }

    /// ztunnel's metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        self.current()?.metrics()
    }

    /// What ztunnel knows, as its admin page tells it.
    pub fn config_dump(&self) -> Result<Value> {
        self.current()?.config_dump()
    }

    /// POSTs to ztunnel's admin port.
    pub fn admin_post(&self, path: &str) -> Result<String> {
        self.current()?.admin_post(path)
    }

    /// ztunnel's access log, from its beginning.
    pub fn access_log(&self) -> Result<AccessLog> {
        Ok(AccessLog::new(self.ztunnel()?.log_path().to_owned()))
    }

    /// An environment variable for the ztunnels that come after the one that runs.
    pub fn set_ztunnel_env(&self, key: &str, value: &str) -> Result<()> {
        let mut recipe = self.recipe(self.mesh()?);
        recipe.env.push((key.into(), value.into()));
        Ok(())
    }

    /// Brings ztunnel the control plane's roots as they are now, as the kubelet would.
    pub(crate) fn project_roots(&self, root_cert: &Path) -> Result<()> {
        self.current()?.project_roots(root_cert)
    }

    pub(crate) fn meshed(&self) -> bool {
        self.mesh.is_some()
    }

    /// Starts a ztunnel in `pod` (which has its network already), without waiting. It is the node's from now on; the
    /// one before, if any, is returned and goes on.
    pub(crate) fn run_ztunnel(
        &self,
        pod: Pod,
        credentials: &Credentials<'_>,
    ) -> Result<Option<Arc<Ztunnel>>> {
        let mesh = self.mesh()?;
        let ztunnel = self
            .recipe(mesh)
            .ztunnel(&self.name, &self.dir, pod, credentials)?;
        let ztunnel = Arc::new(ztunnel);
        ztunnel.component().launch()?;
        Ok(self.slot(mesh).replace(ztunnel))
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

    fn mesh(&self) -> Result<&Mesh> {
        self.mesh
            .as_ref()
            .context("this lab was built without a mesh")
    }

    fn current(&self) -> Result<Arc<Ztunnel>> {
        let ztunnel = self.slot(self.mesh()?).clone();
        ztunnel.with_context(|| format!("{} has no ztunnel yet", self.name))
    }

    fn recipe<'a>(&self, mesh: &'a Mesh) -> MutexGuard<'a, Recipe> {
        mesh.recipe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot<'a>(&self, mesh: &'a Mesh) -> MutexGuard<'a, Option<Arc<Ztunnel>>> {
        mesh.ztunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn agent(site: &Site<'_>, name: &str, dir: &Path, address: IpAddr) -> Component {
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
                .arg(dir.join("ztunnel/ztunnel.sock"));
            command.args(["--metrics-address", &metrics.to_string()]);
            command.arg("--host-root").arg(dir.join(HOST));
            command
                .env("RUST_LOG", "info")
                // As in most clusters: whatever root does on the node itself may be a probe.
                .env("KUBELET_UID", "0")
                .envs(env.iter().map(|(k, v)| (k, v)));
            netns.entry()?.prepare(&mut command);
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
