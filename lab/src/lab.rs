//! A lab from its start to its removal.
//!
//! 1. claim an id, clean up after labs whose owners died, start a reaper for the case that we do
//! 2. switch, control plane, nodes                    ([`crate::fabric`])
//! 3. name server and istiod-lite                     ([`crate::control_plane`])
//! 4. node agents, then a ztunnel per node, as pods   ([`crate::node`])
//! 5. the user's namespaces, pods, services, policies
//! 6. stop: end every process, remove every namespace and file

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    access::AccessLog,
    capture::Capture,
    component::Component,
    control_plane::{self, PROPAGATION},
    fabric::Fabric,
    inventory::{self, Claim},
    metrics::Metrics,
    netns::Netns,
    node::{self, Node, Ztunnel},
    objects::{self, Objects},
    plan::{Host, Plan},
    pod::{Pod, PodBuilder, split},
    wait::{self, Probe},
};

/// What a lab will be.
#[derive(Debug, Clone)]
#[must_use = "a lab starts with `start`"]
pub struct Builder {
    nodes: usize,
    ipv6: bool,
    mesh: bool,
    bin: Option<PathBuf>,
    ztunnels: Vec<(usize, PathBuf)>,
    ztunnel_env: Vec<(String, String)>,
    agent_env: Vec<(String, String)>,
    istiod_env: Vec<(String, String)>,
}

impl Builder {
    /// How many nodes; 2 if not said.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// IPv6 beside IPv4; on if not said and the machine has it.
    pub fn ipv6(mut self, on: bool) -> Self {
        self.ipv6 = on;
        self
    }

    /// Without: nodes, pods and their network, but no binary of the mesh.
    pub fn mesh(mut self, on: bool) -> Self {
        self.mesh = on;
        self
    }

    /// Where the mesh's binaries are; beside our own executable if not said.
    pub fn bin_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.bin = Some(dir.into());
        self
    }

    /// Another ztunnel on one node, e.g. a peer's.
    pub fn ztunnel_binary(mut self, node: usize, binary: impl Into<PathBuf>) -> Self {
        self.ztunnels.push((node, binary.into()));
        self
    }

    /// An environment variable for all ztunnels.
    pub fn ztunnel_env(mut self, key: &str, value: &str) -> Self {
        self.ztunnel_env.push((key.into(), value.into()));
        self
    }

    /// An environment variable for all node agents.
    pub fn agent_env(mut self, key: &str, value: &str) -> Self {
        self.agent_env.push((key.into(), value.into()));
        self
    }

    /// An environment variable for istiod-lite.
    pub fn istiod_env(mut self, key: &str, value: &str) -> Self {
        self.istiod_env.push((key.into(), value.into()));
        self
    }

    /// Builds the lab and waits until all of it is ready. On failure the namespaces are removed and the logs kept.
    pub fn start(self) -> Result<Lab> {
        inventory::clean(false)?;
        let bin = match &self.bin {
            Some(bin) => bin.clone(),
            None => beside_us()?,
        };
        self.require_binaries(&bin)?;
        let site = Site::claim(&bin)?;
        let plan = Plan::new(&site.claim.id, self.nodes, self.ipv6)?;
        let dir = site.claim.dir.clone();
        let keep = Keep {
            dir: &dir,
            on_drop: true,
        };
        let lab = self
            .build(plan, &bin, site)
            .with_context(|| format!("the logs are in {}", dir.display()))?;
        keep.no_longer();
        Ok(lab)
    }

    fn build(&self, plan: Plan, bin: &Path, site: Site) -> Result<Lab> {
        let dir = site.claim.dir.clone();
        let objects = Objects::create(dir.join("config"))?;
        let fabric = Fabric::build(&plan)?;
        let control_site = control_plane::Site {
            netns: fabric.control_plane.clone(),
            addresses: plan.on_fabric(Host::ControlPlane),
            outside: plan.on_fabric(Host::Outside),
            bin: bin.to_owned(),
            config: objects.dir().to_owned(),
            dir: dir.join("control-plane"),
            env: self.istiod_env.clone(),
        };
        fs::create_dir_all(&control_site.dir)?;
        let node = |(index, netns): (usize, &Netns)| {
            Node::build(
                index,
                node::Site {
                    plan: &plan,
                    netns: netns.clone(),
                    dir: dir.clone(),
                    config: objects.dir().to_owned(),
                    bin: bin.to_owned(),
                    agent_env: self.agent_env.clone(),
                    mesh: self.mesh,
                },
            )
        };
        let nodes = fabric
            .nodes
            .iter()
            .enumerate()
            .map(node)
            .collect::<Result<Vec<_>>>()?;
        let shared = Shared {
            names: control_plane::names(&control_site),
            istiod: self.mesh.then(|| control_plane::istiod(&control_site)),
            control_site,
            plan,
            dir,
            objects,
            fabric,
            nodes,
            pods: Mutex::default(),
            ambient: Mutex::default(),
            known: Mutex::default(),
            pod_count: AtomicU32::new(0),
            service_count: AtomicU16::new(0),
            capture_count: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
            site,
        };
        let lab = Lab {
            shared: Arc::new(shared),
        };
        self.bring_up(&lab, bin)?;
        Ok(lab)
    }

    fn bring_up(&self, lab: &Lab, bin: &Path) -> Result<()> {
        let shared = &lab.shared;
        shared.names.start()?;
        for node in &shared.nodes {
            shared
                .objects
                .set(&objects::node(node.name(), node.addresses()))?;
        }
        lab.namespace("default").plain()?;
        lab.namespace("istio-system").plain()?;
        let Some(istiod) = &shared.istiod else {
            return Ok(());
        };
        istiod.start()?;
        for node in &shared.nodes {
            node.agent()?.start()?;
        }
        for node in &shared.nodes {
            let name = format!("istio-system/ztunnel-{}", node.name());
            let pod = lab
                .pod(&name)
                .node(node.index())
                .service_account("ztunnel")
                .label("app", "ztunnel")
                .without_waiting()
                .start()?;
            let other = self.ztunnels.iter().find(|(at, _)| *at == node.index());
            let ztunnel = Ztunnel {
                binary: other.map_or_else(|| bin.join("ztunnel"), |(_, binary)| binary.clone()),
                token: shared
                    .control_site
                    .token("istio-system", "ztunnel", pod.name())?,
                root_cert: &shared.control_site.root_cert(),
                env: &self.ztunnel_env,
            };
            node.run_ztunnel(pod, &ztunnel)?;
        }
        shared
            .nodes
            .iter()
            .try_for_each(|node| node.ztunnel()?.until_ready())
    }

    fn require_binaries(&self, bin: &Path) -> Result<()> {
        if !nix::unistd::Uid::effective().is_root() {
            bail!("a lab makes network namespaces: run it as root");
        }
        let wanted: &[&str] = if self.mesh {
            &["istiod-lite", "ztunnel", "ambit-cni", "ambit-cni-agent"]
        } else {
            &[]
        };
        let missing: Vec<&str> = wanted
            .iter()
            .filter(|name| !bin.join(name).exists())
            .copied()
            .collect();
        if !missing.is_empty() {
            bail!(
                "not in {}: {}; build them first (cargo build --workspace --bins)",
                bin.display(),
                missing.join(", ")
            );
        }
        Ok(())
    }
}

/// Marks a half-built lab's logs as worth keeping, unless told otherwise.
struct Keep<'a> {
    dir: &'a Path,
    on_drop: bool,
}

impl Keep<'_> {
    fn no_longer(mut self) {
        self.on_drop = false;
    }
}

impl Drop for Keep<'_> {
    fn drop(&mut self) {
        if self.on_drop {
            inventory::keep(self.dir);
        }
    }
}

/// `target/<profile>`, also for tests and examples, which live one folder deeper.
fn beside_us() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("our executable is in a directory")?;
    let deeper = dir
        .file_name()
        .is_some_and(|name| name == "deps" || name == "examples");
    Ok(if deeper {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    }
    .to_owned())
}

/// The place of a lab, given back on drop.
#[derive(Debug)]
struct Site {
    claim: Claim,
    reaper: Mutex<Option<Child>>,
}

impl Site {
    fn claim(bin: &Path) -> Result<Self> {
        let claim = inventory::claim()?;
        let reaper = reaper(bin, &claim.id)?;
        Ok(Self {
            claim,
            reaper: Mutex::new(reaper),
        })
    }

    fn give_back(&self) -> Result<()> {
        inventory::sweep(&self.claim.id)?;
        if !self.claim.dir.join("keep").exists() {
            inventory::remove(&self.claim.dir)?;
        }
        if let Some(mut reaper) = self
            .reaper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            use std::io::Write;
            if let Some(mut word) = reaper.stdin.take() {
                let _ = word.write_all(b"q");
            }
            let _ = reaper.wait();
        }
        Ok(())
    }
}

/// A failed start ends here; the directory stays when it was marked.
impl Drop for Site {
    fn drop(&mut self) {
        if self
            .reaper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
        {
            let _ = self.give_back();
        }
    }
}

/// `lab reap`, out of reach of our terminal's Ctrl-C. Without the binary the next lab cleans up.
fn reaper(bin: &Path, id: &str) -> Result<Option<Child>> {
    use std::os::unix::process::CommandExt;
    let lab = bin.join("lab");
    if !lab.exists() {
        return Ok(None);
    }
    let mut command = Command::new(lab);
    command
        .args(["reap", id])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    Ok(Some(command.spawn().context("starting the reaper")?))
}

/// A running lab. It is removed when this is dropped.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) plan: Plan,
    pub(crate) dir: PathBuf,
    pub(crate) objects: Objects,
    fabric: Fabric,
    control_site: control_plane::Site,
    names: Component,
    istiod: Option<Component>,
    nodes: Vec<Node>,
    pods: Mutex<Vec<Pod>>,
    ambient: Mutex<BTreeSet<String>>,
    known: Mutex<BTreeSet<(String, String)>>,
    pod_count: AtomicU32,
    service_count: AtomicU16,
    capture_count: AtomicU32,
    stopped: AtomicBool,
    site: Site,
}

impl Lab {
    /// Two nodes, both address families, the whole mesh, unless said otherwise.
    pub fn builder() -> Builder {
        Builder {
            nodes: 2,
            ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            mesh: true,
            bin: None,
            ztunnels: Vec::new(),
            ztunnel_env: Vec::new(),
            agent_env: Vec::new(),
            istiod_env: Vec::new(),
        }
    }

    /// The lab's id, part of the name of each of its namespaces.
    pub fn id(&self) -> &str {
        self.shared.plan.id()
    }

    /// Where it keeps everything: logs, configuration, captures, pods' files.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Where an object's namespace is set.
    pub fn namespace(&self, name: &str) -> Namespace<'_> {
        Namespace {
            lab: &self.shared,
            name: name.to_owned(),
        }
    }

    /// A pod to be, `namespace/name`.
    pub fn pod(&self, reference: &str) -> PodBuilder {
        PodBuilder::new(self.shared.clone(), reference)
    }

    /// A service whose address the mesh answers, `namespace/name`, for the pods with label `app: <name>`;
    /// ports are (service port, pod port).
    pub fn service(&self, reference: &str, ports: &[(u16, u16)]) -> Result<Service> {
        let (namespace, name) = split(reference)?;
        let addresses = self
            .shared
            .plan
            .service_addresses(self.shared.service_count.fetch_add(1, Ordering::Relaxed));
        self.shared.objects.set(&objects::service(
            namespace,
            name,
            &[("app", name)],
            ports,
            &addresses,
        ))?;
        let service = Service {
            addresses,
            host: format!("{name}.{namespace}.svc.cluster.local"),
        };
        self.until_all_dumps(&format!("service {}", service.host), |dump| {
            dump["services"]
                .as_array()
                .is_some_and(|all| all.iter().any(|s| s["hostname"] == service.host.as_str()))
        })?;
        Ok(service)
    }

    /// Puts YAML (one or more documents) into the directory under a name of its own; again with the same name replaces it.
    pub fn apply_yaml(&self, name: &str, text: &str) -> Result<()> {
        self.shared.objects.apply(name, text)
    }

    /// Takes away what [`Lab::apply_yaml`] put there.
    pub fn delete_yaml(&self, name: &str) -> Result<()> {
        self.shared.objects.unapply(name)
    }

    /// A node, from 0.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&self, index: usize) -> &Node {
        &self.shared.nodes[index]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.shared.nodes
    }

    /// istiod-lite.
    pub fn control_plane(&self) -> Result<&Component> {
        self.shared
            .istiod
            .as_ref()
            .context("this lab was built without a mesh")
    }

    /// istiod-lite's metrics.
    pub fn control_plane_metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.shared.control_site.metrics()?))
    }

    /// The outside world's name server (its log names every query that reached it).
    pub fn name_server(&self) -> &Component {
        &self.shared.names
    }

    /// The name server's address.
    pub fn name_server_address(&self) -> SocketAddr {
        SocketAddr::new(self.shared.name_server(), 53)
    }

    /// A token of istiod-lite's for a pod's service account.
    pub fn token(&self, pod: &Pod, account: &str) -> Result<String> {
        self.shared
            .control_site
            .token(pod.namespace(), account, pod.name())
    }

    /// A machine outside the mesh.
    pub fn outside(&self) -> &Netns {
        &self.shared.fabric.outside
    }

    /// Its addresses, IPv4 first; [`crate::OUTSIDE_NAMES`] point there.
    pub fn outside_addresses(&self) -> Vec<IpAddr> {
        self.shared.plan.on_fabric(Host::Outside)
    }

    /// ztunnel's metrics on a node.
    pub fn metrics(&self, node: usize) -> Result<Metrics> {
        self.node(node).metrics()
    }

    /// ztunnel's access log on a node, from its beginning.
    pub fn access_log(&self, node: usize) -> Result<AccessLog> {
        self.node(node).access_log()
    }

    /// Records all that passes a node's link to the fabric.
    pub fn capture(&self, node: usize) -> Result<Capture> {
        let number = self.shared.capture_count.fetch_add(1, Ordering::Relaxed);
        let file = self
            .shared
            .dir
            .join(format!("capture-{number}-node-{node}.pcap"));
        let beyond = SocketAddr::new(self.shared.control_site.addresses[0], 9);
        Capture::start(self.node(node).netns(), "eth0", beyond, file)
    }

    /// Pulls the plug of a node's link.
    pub fn unplug(&self, node: usize) -> Result<()> {
        self.shared.fabric.unplug(Host::Node(node))
    }

    /// Puts the plug back.
    pub fn replug(&self, node: usize) -> Result<()> {
        self.shared.fabric.replug(Host::Node(node))
    }

    /// Waits until what a node's ztunnel knows is as `fits` wants it.
    pub fn until_dump(
        &self,
        node: usize,
        what: &str,
        fits: impl FnMut(&Value) -> bool,
    ) -> Result<()> {
        self.shared.until_dump(self.node(node), what, fits)
    }

    /// [`Lab::until_dump`] on every node; without a mesh there is nothing to wait for.
    pub fn until_all_dumps(&self, what: &str, mut fits: impl FnMut(&Value) -> bool) -> Result<()> {
        self.shared
            .nodes
            .iter()
            .filter(|node| node.meshed())
            .try_for_each(|node| self.shared.until_dump(node, what, &mut fits))
    }

    /// Waits until every node knows an AuthorizationPolicy (`namespace/name`), or no longer knows it.
    pub fn until_policy(&self, key: &str, present: bool) -> Result<()> {
        let (namespace, name) = split(key)?;
        self.until_all_dumps(&format!("policy {key}, present: {present}"), |dump| {
            let policies = dump["policies"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            policies
                .iter()
                .any(|p| p["namespace"] == namespace && p["name"] == name)
                == present
        })
    }

    /// Keeps the logs when the lab is removed.
    pub fn keep_logs(&self) {
        inventory::keep(&self.shared.dir);
    }

    /// Ends every process, removes every namespace and file.
    pub fn stop(self) -> Result<()> {
        self.shared.stop()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            self.keep_logs();
        }
        let _ = self.shared.stop();
    }
}

impl Shared {
    pub(crate) fn node(&self, index: usize) -> Result<&Node> {
        self.nodes
            .get(index)
            .with_context(|| format!("there are {} nodes, no number {index}", self.nodes.len()))
    }

    pub(crate) fn next_pod(&self) -> u32 {
        self.pod_count.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn name_server(&self) -> IpAddr {
        self.control_site.addresses[0]
    }

    /// Writes a service account's object once.
    pub(crate) fn account(&self, namespace: &str, name: &str) -> Result<()> {
        if locked(&self.known).insert((namespace.into(), name.into())) {
            self.objects
                .set(&objects::service_account(namespace, name))?;
        }
        Ok(())
    }

    /// Waits until the pod is enrolled where it should be, and every ztunnel knows it as what it is.
    pub(crate) fn until_known(&self, pod: &Pod) -> Result<()> {
        locked(&self.pods).push(pod.clone());
        if !pod.home(self)?.meshed() {
            return Ok(());
        }
        let meshed = locked(&self.ambient).contains(pod.namespace());
        let wanted = if meshed { "HBONE" } else { "TCP" };
        for node in &self.nodes {
            self.until_dump(
                node,
                &format!("{}/{} as {wanted}", pod.namespace(), pod.name()),
                |dump| {
                    let workloads = dump["workloads"]
                        .as_array()
                        .map(Vec::as_slice)
                        .unwrap_or_default();
                    let address = pod.ip().to_string();
                    workloads.iter().any(|w| {
                        w["name"] == pod.name()
                            && w["namespace"] == pod.namespace()
                            && w["workloadIps"]
                                .as_array()
                                .is_some_and(|ips| ips.iter().any(|ip| *ip == address.as_str()))
                            && (w["protocol"] == "HBONE") == meshed
                    })
                },
            )?;
        }
        Ok(())
    }

    fn until_dump(
        &self,
        node: &Node,
        what: &str,
        mut fits: impl FnMut(&Value) -> bool,
    ) -> Result<()> {
        wait::until(
            &format!("ztunnel on {} to know {what}", node.name()),
            PROPAGATION,
            || {
                Ok(match node.config_dump() {
                    Ok(dump) if fits(&dump) => Probe::Ready(()),
                    Ok(dump) => Probe::NotYet(format!("it knows {}", brief(&dump))),
                    Err(error) => Probe::NotYet(format!("{error:#}")),
                })
            },
        )
    }

    fn stop(&self) -> Result<()> {
        if self.stopped.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let swept = self.site.give_back();
        // All are dead by now; this reaps them, so that a long-lived owner collects no zombies.
        let of_nodes = self
            .nodes
            .iter()
            .flat_map(|node| [node.agent().ok(), node.ztunnel().ok()]);
        for component in of_nodes.flatten().chain([&self.names]).chain(&self.istiod) {
            let _ = component.kill();
        }
        locked(&self.pods)
            .drain(..)
            .for_each(|pod| pod.end_programs());
        swept
    }
}

/// Workloads and policies by name, for the error of a wait.
fn brief(dump: &Value) -> String {
    let names = |list: &str, more: &str| -> Vec<String> {
        let all = dump[list].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter()
            .map(|o| format!("{}/{} {}", o["namespace"], o["name"], o[more]).replace('"', ""))
            .collect()
    };
    format!(
        "workloads {:?}, services {:?}, policies {:?}",
        names("workloads", "protocol"),
        names("services", "hostname"),
        names("policies", "action")
    )
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A Kubernetes namespace.
#[derive(Debug)]
pub struct Namespace<'a> {
    lab: &'a Shared,
    name: String,
}

impl Namespace<'_> {
    /// Exists, and its pods belong to the mesh.
    pub fn ambient(&self) -> Result<()> {
        locked(&self.lab.ambient).insert(self.name.clone());
        self.lab.objects.set(&objects::namespace(
            &self.name,
            &[("istio.io/dataplane-mode", "ambient")],
        ))
    }

    /// Exists, and its pods do not belong to the mesh.
    pub fn plain(&self) -> Result<()> {
        locked(&self.lab.ambient).remove(&self.name);
        self.lab.objects.set(&objects::namespace(&self.name, &[]))
    }
}

/// A service's addresses and name.
#[derive(Debug, Clone)]
pub struct Service {
    /// IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Fully qualified.
    pub host: String,
}

impl Service {
    /// Its IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses[0], port)
    }
}
