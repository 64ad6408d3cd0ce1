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
//! | `world` | the two worlds an agent can live in, Kubernetes and a directory |
//! | `source`, `cluster` | where news of pods and namespaces comes from; the API server |
//! | `owner` | select → Action → apply |
//! | `entry` | one pod, as the owner knows it |
//! | `plan` | pure: what is to be done with a pod now |
//! | `eligible` | pure: does a pod belong into the mesh |
//! | `pod` | what is known of a pod |
//! | `jobs`, `mark` | enrol, release, forget, step by step; the annotation |
//! | `zds`, `seqpacket` | the socket to ztunnel |
//! | `callers`, `door` | who is heard; the sockets to the plugin |
//! | `nft`, `routes`, `connections`, `netlink`, `netns`, `processes`, `cgroup` | the kernel |
//! | `host`, `kubelet` | the node's side of probes |
//! | `installer`, `depart` | the plugin on the host; whether everything stays when the agent stops |
//! | `retire` | ends the agents of all nodes, before the mesh is removed |
//! | `store` | memory over restarts |

mod callers;
mod cgroup;
mod cluster;
pub mod config;
mod connections;
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
mod netlink;
mod netns;
mod nft;
mod own;
mod owner;
mod plan;
mod pod;
mod processes;
mod retire;
mod routes;
mod seqpacket;
mod source;
mod store;
mod world;
mod zds;

use std::io;
use std::path::{Path, PathBuf};

use ops::ready::Readiness;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use eligible::Selector;
pub use metrics::Metrics;
pub use own::{Own, OwnError};
pub use retire::{Retire, Retired};

use crate::install;
use callers::Callers;
use cluster::Daemonset;
use depart::Departure;
use world::{Home, World};

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
    let run_dir = &config.site.cni_run_dir;
    std::fs::create_dir_all(run_dir).map_err(at(run_dir))?;
    let state = config.state_dir();
    let store = store::Store::open(&state).map_err(at(&state))?;
    let (World { source, home }, tools) = world::connect(config, &signs, &stop).await?;

    // Everything is known before anyone is heard: a ztunnel's first snapshot is complete. Until then the
    // plugin finds nobody, and lets no pod start.
    let mut owner = owner::Owner::new(tools.clone(), store, signs.metrics.clone());
    tokio::select! {
        // Nothing is known of the pods, so nothing is done to them.
        () = stop.cancelled() => return depart(home, None, &tools).await,
        recovered = owner.recover(source) => recovered.map_err(at(&state))?,
    }
    // Sockets are served a little longer than the owner decides.
    let silence = CancellationToken::new();
    let _quiet = silence.clone().drop_guard();
    let Callers {
        mut ztunnels,
        mut plugins,
    } = callers::listen(&tools, &signs.metrics, silence)?;
    let home = home.map(|mut home| {
        // Last: on a node that never had the plugin no pod waits for an agent that is not there yet.
        home.installer.start();
        home
    });
    ready.open();
    tracing::info!(node = %tools.config.node_name, "the agent is ready");
    owner.run(&mut ztunnels, &mut plugins, &stop).await;
    ready.close();
    drop(plugins); // who asks now is refused at once, and asks again
    depart(home, Some((owner, ztunnels)), &tools).await
}

/// Leaves everything for the next agent, or nothing.
async fn depart(
    home: Option<Home>,
    pods: Option<(owner::Owner, Receiver<zds::Ask>)>,
    tools: &jobs::Tools,
) -> Result<(), StartError> {
    let Some(home) = home else {
        if let Some((owner, _)) = pods {
            owner.stay().await;
        }
        // Beside a directory nobody comes after us. A DaemonSet's next agent takes the table over, and until
        // then probes go on.
        tools.clear_host().await;
        return Ok(());
    };
    let clean = departs(&home.daemonset).await;
    home.installer.stop(clean).await;
    match pods {
        Some((owner, mut ztunnels)) if clean => {
            let limit = tools.config.uninstall_deadline;
            for pod in owner.leave(&mut ztunnels, limit).await {
                tracing::error!(%pod, "the pod could not be released in time; it must be restarted");
            }
            tools.clean().await;
        }
        Some((owner, _)) => owner.stay().await,
        None => {}
    }
    Ok(())
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

impl jobs::Tools {
    /// The node as it was before the mesh: its rules, the sockets, what was remembered.
    async fn clean(&self) {
        self.clear_host().await;
        let files = callers::SOCKETS.map(|name| self.config.site.cni_run_dir.join(name));
        // What the plugin said while no agent listened.
        let log = self.config.site.cni_run_dir.join(crate::plugin::LOG_FILE);
        for file in files.iter().chain([&self.config.ztunnel_socket, &log]) {
            let _ = std::fs::remove_file(file);
        }
        let _ = std::fs::remove_dir_all(self.config.state_dir());
        // Where a ztunnel waits for its successor: it leaves the name there, so that a successor never finds none.
        let door = self.config.ztunnel_socket.with_file_name("handover");
        let _ = std::fs::remove_dir_all(door);
        tracing::info!("nothing of the mesh is left on this node");
    }

    async fn clear_host(&self) {
        if let Err(error) = self.host.clear().await {
            tracing::error!(%error, "the node's probe rules could not be removed");
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StartError + use<> {
    let path = path.to_owned();
    move |error| StartError::Path { path, error }
}
