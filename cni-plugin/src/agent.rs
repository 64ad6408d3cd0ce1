//! The node agent: brings the pods of its node into the mesh, and out of it.
//!
//! One owner ([`Owner`](owner)) holds all state and is told everything through channels; what takes
//! time runs beside it, one job a pod.
//!
//! ```text
//! Kubernetes or directory ──source──┐                    ┌─> zds         (Add, Del, snapshot)
//! plugin ──door: /cmdadd────────────┤                    ├─> nft, routes (in the pod)
//! ztunnel ──zds: snapshot?──────────┼─> owner ──> job ───┼─> host        (probes)
//! jobs ──done───────────────────────┤  (plan)            └─> mark        (annotation)
//! retries ──────────────────────────┘
//! ```
//!
//! [`run`] is the agent's life: learn everything there is, listen, install the plugin, go on until told to
//! stop, and then leave everything for the next agent, or nothing (`depart`).
//!
//! # Layout
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | settings |
//! | `source`, `cluster` | where news of pods and namespaces comes from; the API server |
//! | `owner` | select → Action → apply |
//! | `entry` | one pod, as the owner knows it |
//! | `plan` | pure: what is to be done with a pod now |
//! | `eligible` | pure: does a pod belong into the mesh |
//! | `pod` | what is known of a pod |
//! | `jobs`, `mark` | enrol, release, forget, step by step; the annotation |
//! | `zds`, `seqpacket` | the socket to ztunnel |
//! | `door` | the sockets to the plugin |
//! | `nft`, `routes`, `netns`, `processes`, `cgroup` | the kernel |
//! | `host`, `kubelet` | the node's side of probes |
//! | `installer`, `depart` | the plugin on the host; whether everything stays when the agent stops |
//! | `store` | memory over restarts |

mod cgroup;
mod cluster;
pub mod config;
mod depart;
mod door;
mod eligible;
mod entry;
mod host;
mod installer;
mod jobs;
mod kubelet;
mod mark;
mod metrics;
mod netns;
mod nft;
mod owner;
mod plan;
mod pod;
mod processes;
mod routes;
mod seqpacket;
mod source;
mod store;
mod zds;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::k8s::dir::Directory;
use ops::ready::Readiness;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use eligible::Selector;
pub use metrics::Metrics;

use crate::install;
use cluster::Daemonset;
use depart::Departure;
use installer::Installer;
use mark::Marker;
use source::{Kubernetes, Source};

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory or socket could not be made.
    #[error("{path}: {error}")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No API server to speak to.
    #[error("{0}")]
    Kubernetes(String),
    /// The node's network namespace.
    #[error(
        "the node's network namespace cannot be opened: {0}. HOST_ROOT must say where the node's /proc is mounted, and the agent needs CAP_SYS_PTRACE; ALLOW_SWITCH_TO_HOST_NS=false does without, for an agent in the node's own network"
    )]
    Node(String),
}

/// What the agent tells of itself.
#[derive(Clone, Debug)]
pub struct Signs {
    /// Its numbers.
    pub metrics: Metrics,
    /// Those of the installation.
    pub install: install::Metrics,
    /// Whether it counts as ready.
    pub readiness: Readiness,
}

/// Runs the agent until `stop`.
///
/// # Errors
/// When a directory or a socket is missing, or a kubeconfig is wrong; once it runs, nothing ends it.
pub async fn run(config: Config, signs: Signs, stop: CancellationToken) -> Result<(), StartError> {
    let ready = signs.readiness.gate("agent");
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| StartError::Path { path, error }
    };
    let run_dir = config.site.cni_run_dir.clone();
    std::fs::create_dir_all(&run_dir).map_err(at(&run_dir))?;
    if let Some(parent) = config.ztunnel_socket.parent() {
        std::fs::create_dir_all(parent).map_err(at(parent))?;
    }
    let state = config.state_dir();
    let store = store::Store::open(&state).map_err(at(&state))?;
    let (world, tools) = connect(config, &signs, &stop).await?;
    let config = &tools.config;

    // Everything is known before anyone is heard: a ztunnel's first snapshot is complete. Until then the
    // plugin finds nobody, and lets no pod start.
    let mut owner = owner::Owner::new(tools.clone(), store, signs.metrics.clone());
    let Some(recovered) = unless(&stop, owner.recover(world.source)).await else {
        return Ok(());
    };
    recovered.map_err(at(&state))?;

    // Sockets are served a little longer than the owner decides.
    let silence = CancellationToken::new();
    let _quiet = silence.clone().drop_guard();
    let (asks, mut ztunnels) = mpsc::channel(64);
    let (questions, mut plugins) = mpsc::channel(64);
    let zds = seqpacket::Listener::bind(&config.ztunnel_socket);
    let zds = zds.map_err(at(&config.ztunnel_socket))?;
    tokio::spawn(zds::serve(
        zds,
        tools.ztunnels.clone(),
        asks,
        silence.clone(),
    ));
    let doors = [
        (
            "pluginevent.sock",
            door::events(questions, signs.metrics.clone()),
        ),
        ("log.sock", door::log()),
    ];
    for (name, routes) in doors {
        let path = run_dir.join(name);
        let listener = door::bind(&path).map_err(at(&path))?;
        tokio::spawn(door::serve(listener, routes, silence.clone()));
    }
    // The plugin comes last: on a node that never had it no pod waits for an agent that is not there yet.
    let installer = world.install.then(|| Installer::start(config, &signs));
    ready.open();
    tracing::info!(node = %config.node_name, "the agent is ready");

    owner.run(&mut ztunnels, &mut plugins, &stop).await;
    ready.close();
    drop(plugins); // who asks now is refused at once, and asks again
    let clean = match &world.daemonset {
        None => false,
        Some(daemonset) => departs(daemonset).await,
    };
    if let Some(installer) = installer {
        installer.stop(clean).await;
    }
    if clean {
        let left = owner.leave(&mut ztunnels, config.uninstall_deadline).await;
        for pod in left {
            tracing::error!(%pod, "the pod could not be released in time; it must be restarted");
        }
        tools.clean(&state, &run_dir).await;
    } else {
        owner.stay().await;
        if world.daemonset.is_none()
            && let Err(error) = tools.host.clear().await
        {
            // Beside a directory nobody comes after us. A DaemonSet's next agent takes the table over,
            // and until then probes go on.
            tracing::warn!(%error, "the node's probe rules could not be removed");
        }
    }
    Ok(())
}

/// Where this agent learns of its world.
struct World {
    source: Source,
    /// On Kubernetes: what decides how the agent goes.
    daemonset: Option<Daemonset>,
    install: bool,
}

/// The source and what acts on it: the same on Kubernetes and beside a directory.
async fn connect(
    config: Config,
    signs: &Signs,
    stop: &CancellationToken,
) -> Result<(World, Arc<jobs::Tools>), StartError> {
    let mut not_pods = netns::NotPods::look(None);
    let (world, marker) = match &config.config_dir {
        Some(root) => {
            let directory = Directory::open(root).map_err(|error| StartError::Path {
                path: root.clone(),
                error,
            })?;
            let world = World {
                source: Source::Directory {
                    directory: Box::new(directory),
                    node: config.node_name.clone(),
                },
                daemonset: None,
                install: false,
            };
            (world, Marker::Directory(root.clone()))
        }
        None => {
            if config.switch_to_host_netns {
                not_pods = netns::NotPods::look(Some(&config.proc()));
            }
            let client = cluster::connect().await.map_err(StartError::Kubernetes)?;
            let reach = signs.readiness.gate("kubernetes");
            let kubernetes = Kubernetes::watch(client.clone(), &config.node_name, reach);
            let namespace = &config.site.pod_namespace;
            let world = World {
                source: Source::Kubernetes(Box::new(kubernetes)),
                daemonset: Some(Daemonset::watch(
                    client.clone(),
                    namespace,
                    &config.daemonset,
                )),
                install: true,
            };
            (world, Marker::Kubernetes(client))
        }
    };
    let not_pods = not_pods.map_err(|error| StartError::Node(error.to_string()))?;
    let nft = nft::Nft::new(config.nft.clone());
    let kernel = host::Kernel {
        nft: nft.clone(),
        netns: not_pods
            .node()
            .filter(|_| config.switch_to_host_netns)
            .cloned(),
        proc: config.proc(),
        probes: config.probes(),
        v6: config.ipv6,
    };
    let sign = kubelet::watch(&config, stop.clone());
    let tools = jobs::Tools {
        host: host::Host::start(kernel, sign, stop.clone()),
        ztunnels: zds::Ztunnels::new(signs.metrics.ztunnels.clone()),
        nft,
        marker,
        finder: processes::Finder::new(config.proc(), not_pods.clone()),
        not_pods,
        config,
    };
    Ok((world, Arc::new(tools)))
}

/// Whether the mesh is leaving this node, or only this agent.
async fn departs(daemonset: &Daemonset) -> bool {
    let (known, answer) = daemonset.ask().await;
    match depart::decide(known, answer) {
        Departure::Stay(why) => {
            tracing::info!(
                why,
                "stopping; the plugin stays and lets no pod start until the next agent is here, enrolled pods stay enrolled"
            );
            false
        }
        Departure::Clean(why) => {
            tracing::info!(why, "stopping; the mesh leaves this node");
            true
        }
    }
}

async fn unless<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        () = stop.cancelled() => None,
        done = work => Some(done),
    }
}

impl jobs::Tools {
    /// The node as it was before the mesh: its rules, the sockets, what was remembered.
    async fn clean(&self, state: &Path, run_dir: &Path) {
        let cleared = tokio::time::timeout(Duration::from_secs(6), self.host.clear()).await;
        match cleared {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the node's probe rules stay"),
            Err(_) => tracing::error!("the node's probe rules stay: nft takes too long"),
        }
        let files = ["pluginevent.sock", "log.sock"].map(|name| run_dir.join(name));
        for file in files.iter().chain([&self.config.ztunnel_socket]) {
            let _ = std::fs::remove_file(file);
        }
        let _ = std::fs::remove_dir_all(state);
        tracing::info!("nothing of the mesh is left on this node");
    }
}
