//! The node agent: brings the pods of its node into the mesh, and out of it.
//!
//! One owner ([`Owner`](owner)) holds all state and is told everything through channels; what takes
//! time runs beside it, one job a pod.
//!
//! ```text
//! config directory ──changes──┐                    ┌─> zds        (Add, Del, snapshot)
//! plugin ──door: /cmdadd──────┤                    ├─> nft, routes (in the pod)
//! ztunnel ──zds: snapshot?────┼─> owner ──> job ───┼─> host        (probes)
//! jobs ──done─────────────────┤  (plan)            └─> annotation  (status mirror)
//! retries ────────────────────┘
//! ```
//!
//! # Layout
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | settings |
//! | `owner` | select → Action → apply |
//! | `entry` | one pod, as the owner knows it |
//! | `plan` | pure: what is to be done with a pod now |
//! | `eligible` | pure: does a pod belong into the mesh |
//! | `pod` | what is known of a pod |
//! | `jobs` | enrol, release, forget, step by step |
//! | `zds`, `seqpacket` | the socket to ztunnel |
//! | `door` | the sockets to the plugin |
//! | `nft`, `routes`, `netns`, `host`, `processes` | the kernel |
//! | `store` | memory over restarts |

pub mod config;
mod door;
mod eligible;
mod entry;
mod host;
mod jobs;
mod metrics;
mod netns;
mod nft;
mod owner;
mod plan;
mod pod;
mod processes;
mod routes;
mod seqpacket;
mod store;
mod zds;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::k8s::dir::Directory;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use eligible::Selector;
pub use metrics::Metrics;

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
}

/// Runs the agent until `stop`. `ready` is opened as soon as plugins and ztunnels are heard.
///
/// # Errors
/// When a directory or a socket is missing; once it runs, nothing ends it.
pub async fn run(
    config: Config,
    metrics: Metrics,
    ready: ops::ready::Gate,
    stop: CancellationToken,
) -> Result<(), StartError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| StartError::Path { path, error }
    };
    std::fs::create_dir_all(&config.cni_run_dir).map_err(at(&config.cni_run_dir))?;
    if let Some(parent) = config.ztunnel_socket.parent() {
        std::fs::create_dir_all(parent).map_err(at(parent))?;
    }
    let state = config.state_dir();
    let store = store::Store::open(&state).map_err(at(&state))?;
    let directory = Directory::open(&config.config_dir).map_err(at(&config.config_dir))?;

    let nft = nft::Nft::new(config.nft.clone());
    let (host, host_task) = host::Host::start(
        config.kubelet_uid,
        config.probes(),
        config.ipv6,
        nft.clone(),
        stop.clone(),
    );
    let ztunnels = zds::Ztunnels::new(metrics.ztunnels.clone());
    let tools = Arc::new(jobs::Tools {
        config,
        ztunnels: ztunnels.clone(),
        nft,
        host,
    });

    // Everything is known before anyone is heard: a ztunnel's first snapshot is complete.
    let mut owner = owner::Owner::new(tools.clone(), store, metrics.clone());
    owner.recover(directory).await.map_err(at(&state))?;

    let config = &tools.config;
    let zds_listener =
        seqpacket::Listener::bind(&config.ztunnel_socket).map_err(at(&config.ztunnel_socket))?;
    let bind = |name: &str| {
        let path = config.cni_run_dir.join(name);
        door::bind(&path).map_err(at(&path))
    };
    let (events, log) = (bind("pluginevent.sock")?, bind("log.sock")?);
    let (asks, asked_by_ztunnel) = mpsc::channel(64);
    let (questions, asked_by_plugin) = mpsc::channel(64);
    tokio::spawn(zds::serve(zds_listener, ztunnels, asks, stop.clone()));
    tokio::spawn(door::serve(
        events,
        door::events(questions, metrics),
        stop.clone(),
    ));
    tokio::spawn(door::serve(log, door::log(), stop.clone()));
    ready.open();
    tracing::info!(node = %config.node_name, "the agent is ready");

    owner.run(asked_by_ztunnel, asked_by_plugin, stop).await;
    let _ = host_task.await;
    Ok(())
}
