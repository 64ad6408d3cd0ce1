//! The port for operators: `/metrics`, `/version`, `/ready`, `/debug/…`.
//!
//! Nothing here changes anything, and nothing of a token or a key is shown.

use std::io;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use ops::metrics::Registry;
use ops::ready::Readiness;
use serde::Serialize;

use crate::cluster::Health;
use crate::push::Connected;

/// What `/debug/…` looks into.
#[derive(Clone)]
pub struct Debug {
    /// The proxies that are connected.
    pub connected: Arc<Connected>,
    /// The names and versions served at this moment.
    pub catalog: crate::catalog::Reader,
    /// The faults of the configuration that stand now, one line each.
    pub faults: Arc<arc_swap::ArcSwap<Vec<String>>>,
}

/// `/version`, in the shape Istio's tools read.
#[derive(Debug, Serialize)]
pub struct Version {
    version: &'static str,
    revision: &'static str,
    status: &'static str,
}

/// All of it; without `debug` nothing that tells what runs in the mesh.
pub fn monitoring(
    registry: Arc<Registry>,
    readiness: Readiness,
    health: Health,
    debug: Option<Debug>,
) -> Router {
    let always = Router::new()
        .route("/version", get(version))
        .route("/ready", get(ready))
        .with_state((readiness, health))
        .merge(ops::admin::metrics(registry));
    let Some(debug) = debug else {
        return always;
    };
    let debug = Router::new()
        .route("/debug/syncz", get(syncz))
        .route("/debug/catalogz", get(catalogz))
        .route("/debug/faultz", get(faultz))
        .with_state(debug);
    always.merge(debug)
}

async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION"),
        revision: "ambit",
        status: "Clean",
    })
}

/// In one line: what is missing, and what is known of why.
async fn ready(State((readiness, health)): State<(Readiness, Health)>) -> Response {
    let missing = readiness.missing();
    if missing.is_empty() {
        return match health.not_ready() {
            None => "ready\n".into_response(),
            Some(why) => not_ready(&why),
        };
    }
    let mut text = missing.join(", ");
    for line in health.lines() {
        text = format!("{text}; {line}");
    }
    not_ready(&text)
}

fn not_ready(why: &str) -> Response {
    let text = format!("not ready: {why}\n");
    (http::StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn syncz(State(debug): State<Debug>) -> Response {
    json(move |out| serde_json::to_writer(out, &*debug.connected))
}

async fn catalogz(State(debug): State<Debug>) -> Response {
    json(move |out| serde_json::to_writer(out, &*debug.catalog.load()))
}

async fn faultz(State(debug): State<Debug>) -> Response {
    json(move |out| serde_json::to_writer(out, debug.faults.load_full().as_slice()))
}

/// Written an item at a time: a large mesh has much to show.
fn json(
    write: impl FnOnce(&mut dyn io::Write) -> serde_json::Result<()> + Send + 'static,
) -> Response {
    ops::admin::streamed("application/json", move |out| Ok(write(out)?))
}
