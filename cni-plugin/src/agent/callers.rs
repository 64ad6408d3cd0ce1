//! Who is heard: ztunnels on theirs, plugins on two sockets in the run directory.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::door::{self, Asked};
use super::jobs::Tools;
use super::metrics::Metrics;
use super::zds::{self, Ask};
use super::{StartError, at, seqpacket};

/// What they ask.
pub(super) struct Callers {
    pub(super) ztunnels: mpsc::Receiver<Ask>,
    pub(super) plugins: mpsc::Receiver<Asked>,
}

/// In the run directory: what the plugin asks, and what it logs.
pub(super) const SOCKETS: [&str; 2] = ["pluginevent.sock", "log.sock"];

/// Listens to them until `silence`.
pub(super) fn listen(
    tools: &Tools,
    metrics: &Metrics,
    silence: CancellationToken,
) -> Result<Callers, StartError> {
    let (asks, ztunnels) = mpsc::channel(QUEUE);
    let (questions, plugins) = mpsc::channel(QUEUE);
    let socket = &tools.config.ztunnel_socket;
    if let Some(parent) = socket.parent() {
        std::fs::create_dir_all(parent).map_err(at(parent))?;
    }
    let listener = seqpacket::Listener::bind(socket).map_err(at(socket))?;
    let serve = zds::serve(listener, tools.ztunnels.clone(), asks, silence.clone());
    tokio::spawn(serve);
    let routes = [door::events(questions, metrics.clone()), door::log()];
    for (name, routes) in SOCKETS.iter().zip(routes) {
        let path = tools.config.site.cni_run_dir.join(name);
        let listener = door::bind(&path).map_err(at(&path))?;
        tokio::spawn(door::serve(listener, routes, silence.clone()));
    }
    Ok(Callers { ztunnels, plugins })
}

const QUEUE: usize = 64;
