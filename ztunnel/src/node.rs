//! What the proxies of all pods on this node share.
//!
//! Made once in `main`, then only read. `Pods` is how a connection finds out that its destination is on this very
//! node (`local`). A pod enters when it can take connections and leaves when it stops, through `Node::pod_started`
//! and `Node::pod_stopped`; the frame calls both.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::bounds::Bounds;
use crate::config::Config;
use crate::connections::Connections;
use crate::dns::Resolv;
use crate::handover::Handover;
use crate::on_demand::OnDemand;
use crate::pod::Pod;
use crate::retry::Retries;
use crate::traffic::Traffic;
use crate::udp::UdpMetrics;
use crate::workers::Workers;

/// State and machinery that every pod's proxy on this node uses.
pub struct Node {
    /// Workloads, services and policies as the control plane last told.
    pub mesh: Arc<mesh::Mesh>,
    /// One certificate per service account of this node.
    pub certificates: Arc<hbone::Certificates>,
    /// The threads that carry traffic, and each one's open tunnels.
    pub workers: Arc<Workers>,
    /// What one peer may ask of one tunnel connection.
    pub limits: hbone::Limits,
    /// How much is carried at a time, and may be.
    pub bounds: Bounds,
    /// What is asked of the control plane when a connection needs it, where not everything is followed.
    pub on_demand: Option<Arc<OnDemand>>,
    /// The pods of this node that take connections now.
    pub pods: Pods,
    /// TCP metrics (label set T); the frame registers them: `Traffic::register(&mut Registry)`.
    pub traffic: Traffic,
    /// What is counted of UDP; the frame registers it.
    pub udp: UdpMetrics,
    /// Open connections, by pod: for `/config_dump`, for judging again, for counting at drain.
    pub connections: Arc<Connections>,
    /// Endpoints that failed just now, and what may be tried again.
    pub(crate) retries: Retries,
    /// Whom this node asks for names, and where it searches them.
    pub resolv: Resolv,
    /// Where connections go when this process is replaced.
    pub handover: Handover,
    /// What the operator asked for.
    pub config: Arc<Config>,
}

impl Node {
    /// A node without pods. What peers are refused at the tunnel port is counted, unless `limits` counts it already.
    pub fn new(
        mesh: Arc<mesh::Mesh>,
        certificates: Arc<hbone::Certificates>,
        workers: Workers,
        mut limits: hbone::Limits,
        config: Arc<Config>,
    ) -> Arc<Self> {
        let traffic = Traffic::new(config.metrics(), config.metrics_without.clone());
        let counting = traffic.clone();
        limits
            .on_refusal
            .get_or_insert_with(|| Arc::new(move |refusal| counting.refused(refusal)));
        let (pods, connections) = (Pods::default(), Arc::default());
        let resolv = Resolv::read(&config.resolv_conf);
        Arc::new(Self {
            mesh,
            certificates,
            workers: Arc::new(workers),
            limits,
            bounds: Bounds::new(&config),
            on_demand: OnDemand::of(&config),
            pods,
            traffic,
            udp: UdpMetrics::default(),
            connections,
            retries: Retries::default(),
            resolv,
            handover: Handover::default(),
            config,
        })
    }

    /// Judges open connections again when policies change, settles byte counters and looks after memory, until cancelled.
    /// Spawn once.
    pub async fn tend(self: Arc<Self>, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = crate::rejudge::run(&self) => {}
            () = self.bounds.watch() => {}
        }
    }

    /// The pod's listeners are open and its workload is known: connections from this node are joined to it in process
    /// from now on.
    pub fn pod_started(&self, pod: &Arc<Pod>) {
        if let Some(known) = pod.known() {
            self.pods.add(&known.workload_uid, pod);
        }
    }

    /// The pod takes no new connections from now on (drain or removal). Open ones go on; idle tunnels are closed.
    pub fn pod_stopped(&self, pod: &Arc<Pod>) {
        self.pods.remove(pod);
        let Some(known) = pod.known() else { return };
        // What was told first may have been of the pod that had its name before.
        let latest = pod.workload(&self.mesh.load());
        let told = [&known.workload].into_iter().chain(&latest);
        for ip in told.flat_map(|workload| workload.addresses.iter()) {
            for pool in self.workers.pools() {
                pool.close_source(&known.identity, *ip);
            }
        }
    }
}

/// Local pods by the uid of their workload. Read on each outbound connection, written when a pod comes or goes.
#[derive(Debug, Default)]
pub struct Pods {
    by_workload: ArcSwap<HashMap<Arc<str>, Arc<Pod>>>,
}

impl Pods {
    /// The pod of this workload, if it runs here and takes connections.
    pub fn of_workload(&self, uid: &str) -> Option<Arc<Pod>> {
        self.by_workload.load().get(uid).cloned()
    }

    /// The uids of their workloads.
    pub(crate) fn workloads(&self) -> Vec<Arc<str>> {
        self.by_workload.load().keys().cloned().collect()
    }

    fn add(&self, workload_uid: &Arc<str>, pod: &Arc<Pod>) {
        self.by_workload.rcu(|pods| {
            let mut pods = HashMap::clone(pods);
            pods.insert(workload_uid.clone(), pod.clone());
            pods
        });
    }

    fn remove(&self, pod: &Arc<Pod>) {
        self.by_workload.rcu(|pods| {
            let mut pods = HashMap::clone(pods);
            // A successor of the same name (StatefulSet) may have taken the place already: it stays.
            pods.retain(|_, other| !Arc::ptr_eq(other, pod));
            pods
        });
    }
}
