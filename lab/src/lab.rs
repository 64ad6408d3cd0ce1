//! A lab from its start to its removal.
//!
//! 1. claim an id, clean up after labs whose owners died, start a reaper for the case that we do
//! 2. switch, control plane, nodes                    ([`crate::fabric`])
//! 3. name server and istiod-lite                     ([`crate::control_plane`])
//! 4. node agents, then a ztunnel per node, as pods   ([`crate::node`])
//! 5. the user's namespaces, pods, services, policies
//! 6. stop: end every process, remove every namespace and file   ([`crate::inventory`])
//!
//! Steps 1 to 4 are in [`crate::builder`].

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};

use crate::{
    access::AccessLog,
    builder::Builder,
    capture::Capture,
    component::Component,
    control_plane,
    fabric::Fabric,
    inventory::Claim,
    machine::{self, Machine},
    metrics::Metrics,
    namespace::{Namespace, Service},
    netns::Netns,
    node::Node,
    objects::{self, Objects},
    plan::{Host, MOST_MACHINES, Plan},
    pod::{Pod, PodBuilder, split},
    process::Process,
    waypoint::{self, Role, Waypoint, WaypointPod},
    ztunnel::Credentials,
};

/// A running lab. It is removed when this is dropped.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
}

/// What all handles of a lab share: its parts, and what happened to it since.
#[derive(Debug)]
pub(crate) struct Shared {
    parts: Parts,
    pods: Mutex<Vec<Pod>>,
    ambient: Mutex<BTreeSet<String>>,
    known: Mutex<BTreeSet<(String, String)>>,
    pod_count: AtomicU32,
    service_count: AtomicU16,
    capture_count: AtomicU32,
    machine_count: AtomicUsize,
    stopped: AtomicBool,
}

/// What a lab is put together from.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) plan: Plan,
    pub(crate) objects: Objects,
    pub(crate) fabric: Fabric,
    pub(crate) control_site: control_plane::Site,
    pub(crate) names: Component,
    pub(crate) istiod: Option<Component>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) claim: Claim,
    pub(crate) waypoint_env: Vec<(String, String)>,
}

impl Lab {
    pub(crate) fn of(parts: Parts) -> Self {
        Self {
            shared: Arc::new(Shared::new(parts)),
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Two nodes, both address families, the whole mesh, unless said otherwise.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// The lab's id, part of the name of each of its namespaces.
    pub fn id(&self) -> &str {
        self.shared.plan.id()
    }

    /// Where it keeps everything: logs, configuration, captures, pods' files.
    pub fn dir(&self) -> &Path {
        self.shared.dir()
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
    /// ports are (service port, pod port), of which nothing is said.
    pub fn service(&self, reference: &str, ports: &[(u16, u16)]) -> Result<Service> {
        let named: Vec<_> = ports
            .iter()
            .map(|(port, target)| (format!("tcp-{port}"), *port, *target))
            .collect();
        let ports: Vec<_> = named
            .iter()
            .map(|(name, port, target)| (&**name, *port, *target))
            .collect();
        self.service_of(reference, &ports)
    }

    /// The same with names for its ports, which say what is spoken there: (name, service port, pod port).
    pub fn service_of(&self, reference: &str, ports: &[(&str, u16, u16)]) -> Result<Service> {
        let (_, name) = split(reference)?;
        self.service_for(reference, ("app", name), ports)
    }

    /// The same for pods with another label.
    pub fn service_for(
        &self,
        reference: &str,
        label: (&str, &str),
        ports: &[(&str, u16, u16)],
    ) -> Result<Service> {
        self.service_with(reference, label, ports, &[])
    }

    /// The same with labels of its own.
    pub fn service_with(
        &self,
        reference: &str,
        label: (&str, &str),
        ports: &[(&str, u16, u16)],
        own: &[(&str, &str)],
    ) -> Result<Service> {
        let (namespace, name) = split(reference)?;
        let addresses = self
            .shared
            .plan
            .service_addresses(self.shared.service_count.fetch_add(1, Ordering::Relaxed));
        let service = Service {
            object: objects::service(namespace, name, &[label], ports, &addresses),
            addresses,
            host: format!("{name}.{namespace}.svc.cluster.local"),
        };
        self.label_service(&service, own)?;
        self.until_all_dumps(&format!("service {}", service.host), |dump| {
            dump["services"]
                .as_array()
                .is_some_and(|all| all.iter().any(|s| s["hostname"] == service.host.as_str()))
        })?;
        Ok(service)
    }

    /// Gives a service these labels in the place of those that it has.
    pub fn label_service(&self, service: &Service, labels: &[(&str, &str)]) -> Result<()> {
        let mut object = service.object.clone();
        object["metadata"]["labels"] = objects::pairs(labels);
        self.shared.objects.set(&object)
    }

    /// A waypoint `namespace/name` with one pod, on a node; it is ready when this returns.
    pub fn waypoint(&self, reference: &str, node: usize) -> Result<Waypoint> {
        let (namespace, name) = split(reference)?;
        self.shared
            .objects
            .set(&objects::waypoint(namespace, name))?;
        let label = (waypoint::GATEWAY_NAME, name);
        self.service_for(reference, label, &[("hbone", 15008, 15008)])?;
        let first = self.waypoint_pod(reference, &format!("{name}-0"), node)?;
        Ok(Waypoint {
            reference: reference.to_owned(),
            first,
        })
    }

    /// The east-west gateway `namespace/name` of this lab's network, one pod on a node; it is ready when this returns.
    pub fn east_west(&self, reference: &str, node: usize) -> Result<WaypointPod> {
        let (namespace, name) = split(reference)?;
        let gateway = objects::east_west(namespace, name);
        self.shared.objects.set(&gateway)?;
        let label = (waypoint::GATEWAY_NAME, name);
        self.service_for(reference, label, &[("hbone", 15008, 15008)])?;
        self.gateway_pod(reference, &format!("{name}-0"), node, Role::EastWest)
    }

    /// Another pod of a waypoint that is there.
    pub fn waypoint_pod(&self, reference: &str, pod: &str, node: usize) -> Result<WaypointPod> {
        self.gateway_pod(reference, pod, node, Role::Waypoint)
    }

    fn gateway_pod(
        &self,
        reference: &str,
        pod: &str,
        node: usize,
        role: Role,
    ) -> Result<WaypointPod> {
        let (namespace, name) = split(reference)?;
        let pod = self
            .pod(&format!("{namespace}/{pod}"))
            .node(node)
            .service_account(name)
            .label(waypoint::GATEWAY_NAME, name)
            .label(waypoint::GATEWAY_CLASS, role.class())
            .label("istio.io/dataplane-mode", "none")
            .unready()
            .start()?;
        let site = &self.shared.control_site;
        let token = site.token(namespace, name, pod.name())?;
        let env = self.shared.waypoint_env.clone();
        let root = site.root_cert();
        let started = WaypointPod::start(&site.bin, pod, name, &token, &root, env, role)?;
        started.pod().ready()?;
        Ok(started)
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

    /// A machine that is no pod and on no node, `namespace/name`, with the rules of the mesh and a proxy that is not started.
    pub fn machine(&self, reference: &str, account: &str) -> Result<Machine> {
        let (namespace, name) = split(reference)?;
        let number = self.shared.machine_count.fetch_add(1, Ordering::Relaxed);
        ensure!(
            number < MOST_MACHINES,
            "a lab has at most {MOST_MACHINES} machines"
        );
        let (plan, site) = (&self.shared.plan, &self.shared.control_site);
        let netns = self.shared.fabric.add_machine(plan, number)?;
        let place = machine::Place {
            netns,
            addresses: plan.on_fabric(Host::Machine(number)),
            dir: self.shared.dir().join(format!("machine-{number}")),
            name_server: self.shared.name_server(),
        };
        Machine::new(site, place, namespace, name, account)
    }

    /// Where the programs are that it runs.
    pub fn bin_dir(&self) -> &Path {
        &self.shared.control_site.bin
    }

    /// The roots of trust, for those who must verify istiod-lite.
    pub fn root_cert(&self) -> PathBuf {
        self.shared.control_site.root_cert()
    }

    /// A token of istiod-lite's for an account, of no pod.
    pub fn account_token(&self, namespace: &str, account: &str) -> Result<String> {
        self.shared.control_site.account_token(namespace, account)
    }

    /// What `istiod-lite vm …` says, on the control plane's host.
    pub fn vm(&self, words: &[&str]) -> Result<String> {
        self.shared.control_site.vm(words)
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
            .dir()
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

    /// Makes one pod of another lab reachable from here, and nothing else there: as the public address of a network is.
    /// The two labs have networks of different numbers ([`Builder::network`]).
    pub fn way_to(&self, other: &Lab, pod: &Pod) -> Result<()> {
        let ports = [other.id(), self.id()].map(|id| format!("to-{id}"));
        let fabric = &self.shared.fabric;
        fabric.join(&ports[0], &other.shared.fabric, &ports[1])?;
        let theirs = other.node(pod.node());
        let (there, via) = (pod.ip(), theirs.addresses()[0]);
        for node in self.nodes() {
            let way = format!("route replace {there}/32 via {via} dev eth0 onlink\n");
            node.netns().ip(&way)?;
            let subnets = self.shared.plan.pod_subnets(node.index());
            let (back, via) = (&subnets[0], node.addresses()[0]);
            let way = format!("route replace {back} via {via} dev eth0 onlink\n");
            theirs.netns().ip(&way)?;
        }
        Ok(())
    }

    /// Starts a second ztunnel on a node, in a pod of its own, as a rolling update does, and waits until it is ready. It
    /// is the node's from now on; the process of the one before, still running, is returned.
    pub fn surge_ztunnel(&self, node: usize) -> Result<Process> {
        let old = self.begin_surge(node)?;
        self.node(node).ztunnel()?.until_ready()?;
        Ok(old)
    }

    /// [`Lab::surge_ztunnel`] without waiting.
    pub fn begin_surge(&self, node: usize) -> Result<Process> {
        let node = self.node(node);
        let old = node.ztunnel()?.process()?;
        let number = self.shared.pod_count.load(Ordering::Relaxed);
        self.launch_ztunnel(node, &format!("ztunnel-{}-{number}", node.name()))?;
        Ok(old)
    }

    pub(crate) fn launch_ztunnel(&self, node: &Node, name: &str) -> Result<()> {
        let pod = self
            .pod(&format!("istio-system/{name}"))
            .node(node.index())
            .service_account("ztunnel");
        let pod = pod.label("app", "ztunnel").without_waiting().start()?;
        let site = &self.shared.control_site;
        let token = site.token(pod.namespace(), "ztunnel", name)?;
        node.run_ztunnel(
            pod,
            &Credentials {
                token: &token,
                root_cert: &site.root_cert(),
            },
        )?;
        Ok(())
    }

    /// Brings every ztunnel the roots of the control plane's signer as they are now, as the kubelet would.
    pub fn project_roots(&self) -> Result<()> {
        let roots = self.shared.control_site.root_cert();
        let meshed = self.nodes().iter().filter(|node| node.meshed());
        meshed
            .into_iter()
            .try_for_each(|node| node.project_roots(&roots))
    }

    /// Keeps the logs when the lab is removed.
    pub fn keep_logs(&self) {
        self.shared.claim.keep_logs(true);
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

/// A lab is its parts; the rest is private to this file.
impl Deref for Shared {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Shared {
    /// Everything but running programs.
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts,
            pods: Mutex::default(),
            ambient: Mutex::default(),
            known: Mutex::default(),
            pod_count: AtomicU32::new(0),
            service_count: AtomicU16::new(0),
            capture_count: AtomicU32::new(0),
            machine_count: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    pub(crate) fn node(&self, index: usize) -> Result<&Node> {
        self.nodes
            .get(index)
            .with_context(|| format!("there are {} nodes, no number {index}", self.nodes.len()))
    }

    pub(crate) fn next_pod(&self) -> u32 {
        self.pod_count.fetch_add(1, Ordering::Relaxed)
    }

    /// Where it keeps everything.
    pub(crate) fn dir(&self) -> &Path {
        &self.claim.dir
    }

    pub(crate) fn name_server(&self) -> IpAddr {
        self.control_site.addresses[0]
    }

    pub(crate) fn set_ambient(&self, namespace: &str, on: bool) {
        let mut ambient = locked(&self.ambient);
        if on {
            ambient.insert(namespace.to_owned());
        } else {
            ambient.remove(namespace);
        }
    }

    pub(crate) fn is_ambient(&self, namespace: &str) -> bool {
        locked(&self.ambient).contains(namespace)
    }

    /// Takes note of a pod whose programs are to be reaped at the end.
    pub(crate) fn adopt(&self, pod: &Pod) {
        locked(&self.pods).push(pod.clone());
    }

    /// Writes a service account's object once.
    pub(crate) fn account(&self, namespace: &str, name: &str) -> Result<()> {
        if locked(&self.known).insert((namespace.into(), name.into())) {
            self.objects
                .set(&objects::service_account(namespace, name))?;
        }
        Ok(())
    }

    fn stop(&self) -> Result<()> {
        if self.stopped.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let swept = self.claim.give_back();
        // All are dead by now; this reaps them, so that a long-lived owner collects no zombies.
        for node in &self.nodes {
            let _ = node.agent().and_then(Component::kill);
            let _ = node.ztunnel().and_then(|ztunnel| ztunnel.kill());
        }
        for component in [&self.names].into_iter().chain(&self.istiod) {
            let _ = component.kill();
        }
        locked(&self.pods)
            .drain(..)
            .for_each(|pod| pod.end_programs());
        swept
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
