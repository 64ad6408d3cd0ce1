//! What a lab will be, and building it: the order in which its parts come up.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    control_plane,
    fabric::Fabric,
    inventory::{self, Claim},
    lab::{Lab, Parts},
    netns::Netns,
    node::{self, Node},
    objects::{self, Objects},
    plan::{Host, Plan},
    ztunnel::Recipe,
};

/// (L) which network a cluster is on, or a gateway leads to.
const NETWORK: &str = "topology.istio.io/network";

/// What a lab will be.
#[derive(Debug, Clone)]
#[must_use = "a lab starts with `start`"]
pub struct Builder {
    nodes: usize,
    ipv6: bool,
    mesh: bool,
    bin: Option<PathBuf>,
    ztunnels: Vec<(usize, PathBuf)>,
    kept: bool,
    /// For one node, or for all.
    ztunnel_env: Vec<(Option<usize>, String, String)>,
    agent_env: Vec<(String, String)>,
    istiod_env: Vec<(String, String)>,
    waypoint_env: Vec<(String, String)>,
    places: Vec<String>,
    /// Number and name.
    network: (u8, String),
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            nodes: 2,
            ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            mesh: true,
            bin: None,
            ztunnels: Vec::new(),
            kept: false,
            ztunnel_env: Vec::new(),
            agent_env: Vec::new(),
            istiod_env: Vec::new(),
            waypoint_env: Vec::new(),
            places: Vec::new(),
            network: (0, String::new()),
        }
    }

    /// All of it is on a network of that name. Labs that are to be joined have networks of different numbers, from 0.
    pub fn network(mut self, number: u8, name: &str) -> Self {
        self.network = (number, name.into());
        self.ztunnel_env("NETWORK", name)
            .waypoint_env("NETWORK", name)
    }

    /// Where the nodes stand, from the first: `region/zone`.
    pub fn places(mut self, places: &[&str]) -> Self {
        self.places = places.iter().map(|&place| place.into()).collect();
        self
    }

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

    /// Each ztunnel of ours is the worker of a keeper, as in its image: the keeper is the component, and
    /// [`Node::worker`](crate::Node::worker) the program that carries traffic.
    pub fn keeper(mut self, on: bool) -> Self {
        self.kept = on;
        self
    }

    /// An environment variable for all ztunnels.
    pub fn ztunnel_env(mut self, key: &str, value: &str) -> Self {
        self.ztunnel_env.push((None, key.into(), value.into()));
        self
    }

    /// An environment variable for the ztunnel of one node. Of two of one name the later counts.
    pub fn ztunnel_env_on(mut self, node: usize, key: &str, value: &str) -> Self {
        self.ztunnel_env
            .push((Some(node), key.into(), value.into()));
        self
    }

    /// An environment variable for all node agents.
    pub fn agent_env(mut self, key: &str, value: &str) -> Self {
        self.agent_env.push((key.into(), value.into()));
        self
    }

    /// The directory of a signer for istiod-lite (`ca-key.pem`, `ca-cert.pem`, `cert-chain.pem`, `root-cert.pem`) instead
    /// of one that it makes.
    pub fn signer(self, dir: &Path) -> Self {
        self.istiod_env(control_plane::SIGNER, &dir.display().to_string())
    }

    /// An environment variable for istiod-lite.
    pub fn istiod_env(mut self, key: &str, value: &str) -> Self {
        self.istiod_env.push((key.into(), value.into()));
        self
    }

    /// An environment variable for all waypoints.
    pub fn waypoint_env(mut self, key: &str, value: &str) -> Self {
        self.waypoint_env.push((key.into(), value.into()));
        self
    }

    /// Builds the lab and waits until all of it is ready. On failure the namespaces are removed and the logs kept.
    pub fn start(self) -> Result<Lab> {
        let bin = match &self.bin {
            Some(bin) => bin.clone(),
            None => beside_us()?,
        };
        self.require(&bin)?;
        inventory::clean(false)?;
        let claim = Claim::take(Some(&bin.join("lab")))?;
        let dir = claim.dir.clone();
        claim.keep_logs(true);
        let lab = self
            .build(&bin, claim)
            .with_context(|| format!("the logs are in {}", dir.display()))?;
        lab.shared().claim.keep_logs(false);
        Ok(lab)
    }

    fn build(&self, bin: &Path, claim: Claim) -> Result<Lab> {
        let dir = claim.dir.clone();
        let plan = Plan::new(&claim.id, self.nodes, self.ipv6, self.network.0)?;
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
            let site = node::Site {
                plan: &plan,
                netns: netns.clone(),
                dir: dir.clone(),
                config: objects.dir().to_owned(),
                bin: bin.to_owned(),
                agent_env: self.agent_env.clone(),
                ztunnel: self.mesh.then(|| self.ztunnel(index, bin)),
            };
            Node::build(index, site)
        };
        let nodes = fabric
            .nodes
            .iter()
            .enumerate()
            .map(node)
            .collect::<Result<Vec<_>>>()?;
        let names = control_plane::names(&control_site);
        let istiod = self.mesh.then(|| control_plane::istiod(&control_site));
        let lab = Lab::of(Parts {
            plan,
            objects,
            fabric,
            control_site,
            names,
            istiod,
            nodes,
            claim,
            waypoint_env: self.waypoint_env.clone(),
        });
        self.bring_up(&lab)?;
        Ok(lab)
    }

    fn ztunnel(&self, node: usize, bin: &Path) -> Recipe {
        let other = self.ztunnels.iter().find(|(at, _)| *at == node);
        let binary = other.map_or_else(|| bin.join("ztunnel"), |(_, binary)| binary.clone());
        let env = self.ztunnel_env.iter();
        let here = env.filter(|(at, ..)| at.is_none_or(|at| at == node));
        Recipe {
            binary,
            kept: self.kept && other.is_none(),
            env: here.map(|(_, k, v)| (k.clone(), v.clone())).collect(),
        }
    }

    fn bring_up(&self, lab: &Lab) -> Result<()> {
        let shared = lab.shared();
        lab.name_server().start()?;
        for node in lab.nodes() {
            let place = self.places.get(node.index()).map(String::as_str);
            let object = objects::node(node.name(), node.addresses(), place);
            shared.objects.set(&object)?;
        }
        lab.namespace("default").plain()?;
        lab.namespace("istio-system").plain()?;
        if !self.network.1.is_empty() {
            let network = [(NETWORK, self.network.1.as_str())];
            let system = objects::namespace("istio-system", &network);
            shared.objects.set(&system)?;
        }
        if !self.mesh {
            return Ok(());
        }
        lab.control_plane()?.start()?;
        for node in lab.nodes() {
            node.agent()?.start()?;
        }
        for node in lab.nodes() {
            lab.launch_ztunnel(node, &format!("ztunnel-{}", node.name()))?;
        }
        lab.nodes()
            .iter()
            .try_for_each(|node| node.ztunnel()?.until_ready())
    }

    fn require(&self, bin: &Path) -> Result<()> {
        if !nix::unistd::Uid::effective().is_root() {
            bail!("a lab makes network namespaces: run it as root");
        }
        let wanted: &[&str] = if self.mesh {
            &[
                "istiod-lite",
                "ztunnel",
                "waypoint",
                "ambit-cni",
                "ambit-cni-agent",
            ]
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
