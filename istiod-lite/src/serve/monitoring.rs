//! The port for operators: `/metrics`, `/version`, `/ready`, `/debug/…`.
//!
//! Nothing here changes anything, and nothing of a token or a key is shown.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use ops::metrics::Registry;
use ops::ready::Readiness;
use serde::Serialize;

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
pub fn monitoring(registry: Arc<Registry>, readiness: Readiness, debug: Option<Debug>) -> Router {
    let always = Router::new()
        .route("/version", get(version))
        .route("/ready", get(ready))
        .with_state(readiness)
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

async fn ready(State(readiness): State<Readiness>) -> Response {
    let missing = readiness.missing();
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    let text = format!("not ready: {}\n", missing.join(", "));
    (http::StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn syncz(State(debug): State<Debug>) -> Response {
    Json(debug.connected.list()).into_response()
}

async fn catalogz(State(debug): State<Debug>) -> Response {
    Json(debug.catalog.versions()).into_response()
}

async fn faultz(State(debug): State<Debug>) -> Response {
    Json(debug.faults.load().as_slice().to_vec()).into_response()
}
