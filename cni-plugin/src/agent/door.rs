//! The sockets on which the plugin speaks: `POST /cmdadd` on `pluginevent.sock`, `/log` on `log.sock`.
//!
//! Anyone on the node may open them, as with Istio, but only root is heard: who could name a
//! network namespace as he likes could have one pod's traffic carried in another's name.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::any;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::metrics::{Code, Metrics};
use crate::cmdadd::{CmdAdd, POD_UID};

/// A runtime's question, with the way back. The error is for people.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) event: CmdAdd,
    pub(crate) reply: oneshot::Sender<Result<(), String>>,
}

/// The routes of `pluginevent.sock`.
pub(crate) fn events(owner: mpsc::Sender<Asked>, metrics: Metrics) -> Router {
    Router::new()
        .route("/cmdadd", any(cmdadd))
        .fallback(|| async { (StatusCode::NOT_FOUND, "404 page not found\n") })
        .layer(DefaultBodyLimit::max(BODY))
        .with_state((owner, metrics))
}

type Answer = (StatusCode, String);

/// 200: enrolled, or none of the mesh's business. The method does not matter, as it does not to Istio.
async fn cmdadd(
    State((owner, metrics)): State<(mpsc::Sender<Asked>, Metrics)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let uid = headers.get(POD_UID).and_then(|uid| uid.to_str().ok());
    let event = serde_json::from_slice::<CmdAdd>(&body).map(|event| CmdAdd {
        pod_uid: uid.map(str::to_owned),
        ..event
    });
    let (status, text) = match event {
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
        Ok(event) => match ask(owner, event).await {
            Ok(()) => (StatusCode::OK, String::new()),
            Err(reason) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{reason}\n")),
        },
    };
    metrics
        .requests
        .get_or_create(&Code {
            response_code: status.as_u16(),
        })
        .inc();
    (status, text)
}

async fn ask(owner: mpsc::Sender<Asked>, event: CmdAdd) -> Result<(), String> {
    let (reply, answer) = oneshot::channel();
    let stopping = || "the agent is stopping".to_owned();
    owner
        .send(Asked { event, reply })
        .await
        .map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())?
}

/// The routes of `log.sock`.
pub(crate) fn log() -> Router {
    Router::new()
        .route("/log", any(print))
        .layer(DefaultBodyLimit::max(BODY))
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The plugin's lines among our own. What is no line of a plugin is dropped.
async fn print(body: Bytes) -> StatusCode {
    let Ok(lines) = serde_json::from_slice::<Vec<String>>(&body) else {
        return StatusCode::BAD_REQUEST;
    };
    for line in lines {
        match serde_json::from_str::<Line>(&line) {
            Ok(Line { level, msg }) if level == "error" => {
                tracing::error!(target: "cni-plugin", "{msg}")
            }
            Ok(Line { level, msg }) if level == "warn" => {
                tracing::warn!(target: "cni-plugin", "{msg}")
            }
            Ok(Line { level, msg }) if level == "debug" => {
                tracing::debug!(target: "cni-plugin", "{msg}")
            }
            Ok(Line { msg, .. }) => tracing::info!(target: "cni-plugin", "{msg}"),
            Err(_) => {}
        }
    }
    StatusCode::OK
}

/// Binds `path`, in place of whatever socket was left there, for everyone to open.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves `routes` until told to stop; answers under way are still given.
pub(crate) async fn serve(listener: UnixListener, routes: Router, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let own = nix::unistd::geteuid().as_raw();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _))
                if stream
                    .peer_cred()
                    .is_ok_and(|peer| [0, own].contains(&peer.uid())) =>
            {
                let routes = routes.clone();
                tokio::spawn(async move {
                    connection(stream, routes).await;
                    drop(slot);
                });
            }
            Ok(_) => tracing::warn!("someone other than root spoke to the agent and was not heard"),
            Err(error) => {
                tracing::warn!(%error, "a plugin could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, routes: Router) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // A plugin waits 5 s for its answer; who keeps a connection much longer is not one.
    if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, served).await {
        tracing::debug!(%error, "a plugin's connection ended early");
    }
}

/// A pod with a dozen addresses makes 2 KiB; log lines come one call at a time.
const BODY: usize = 64 << 10;
/// A node starts a handful of pods at a time; the rest waits in the socket's backlog.
const CONNECTIONS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(30);
