//! The doors of a process: routes that every component has, and the server for them.
//!
//! | door | routes |
//! |---|---|
//! | [`readiness`] | `/healthz/ready`, `/readyz` |
//! | [`metrics`] | `/metrics`, `/stats/prometheus` |
//! | [`admin`] | `/logging`, `/quitquitquit` (localhost only) |

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio_util::sync::CancellationToken;

use crate::log::LogHandle;
use crate::metrics::{CONTENT_TYPE, Registry};
use crate::ready::Readiness;
pub use crate::server::{bind, bind_localhost, serve};
pub use crate::streamed::streamed;

/// `GET /healthz/ready` (and `/readyz`): 200 `ready`, or 503 with the names of the closed gates.
pub fn readiness(readiness: Readiness) -> Router {
    let answer = |State(readiness): State<Readiness>| async move {
        let missing = readiness.missing();
        if missing.is_empty() {
            plain(StatusCode::OK, "ready\n")
        } else {
            plain(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready, waiting for: {}\n", missing.join(", ")),
            )
        }
    };
    Router::new()
        .route("/healthz/ready", get(answer))
        .route("/readyz", get(answer))
        .with_state(readiness)
}

/// `GET /metrics` and, as Istio's scrape annotations say, `/stats/prometheus`.
pub fn metrics(registry: Arc<Registry>) -> Router {
    let scrape = |State(registry): State<Arc<Registry>>| async move {
        streamed(CONTENT_TYPE, move |out| registry.write(out))
    };
    Router::new()
        .route("/metrics", get(scrape))
        .route("/stats/prometheus", get(scrape))
        .with_state(registry)
}

/// `/logging` and `POST /quitquitquit`, which cancels `quit`. Bind it to localhost.
pub fn admin(log: LogHandle, quit: CancellationToken) -> Router {
    let quit = move || async move {
        quit.cancel();
        plain(StatusCode::OK, "shutting down now\n")
    };
    Router::new()
        .route("/logging", get(logging).post(logging))
        .with_state(log)
        .route("/quitquitquit", post(quit))
}

/// `level=debug` changes the default, `level=module:debug` (or `module=debug`) one module, commas
/// join several; `reset` goes back to the start. Answers with what is in force.
async fn logging(
    State(log): State<LogHandle>,
    method: Method,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    if !query.is_empty() && method != Method::POST {
        return plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "use POST to change log levels\n",
        );
    }
    let reset = if query.contains_key("reset") {
        log.reset()
    } else {
        Ok(())
    };
    let changed = reset.and_then(|()| query.get("level").map_or(Ok(()), |level| log.change(level)));
    match changed {
        Ok(()) => plain(
            StatusCode::OK,
            format!("current log level is {}\n", log.current()),
        ),
        Err(error) => plain(
            StatusCode::BAD_REQUEST,
            format!(
                "{error}\nPOST /logging?level=debug or /logging?level=module:debug,other::module:info or /logging?reset=\n"
            ),
        ),
    }
}

fn plain(status: StatusCode, text: impl Into<String>) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain")], text.into()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;
    use crate::log;

    async fn call(routes: &Router, method: Method, uri: &str) -> (StatusCode, String) {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .body(Body::empty())
            .unwrap();
        let response = routes.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn logging_answers_in_istios_words_and_changes_only_on_post() {
        let log = log::init("", log::Format::Text).unwrap();
        let routes = admin(log, CancellationToken::new());
        let golden =
            include_str!("../testdata/logging.txt").replace("hickory_server::server=off,", "");
        assert_eq!(
            call(&routes, Method::GET, "/logging").await,
            (StatusCode::OK, golden.clone())
        );
        assert_eq!(
            call(&routes, Method::POST, "/logging").await,
            (StatusCode::OK, golden.clone())
        );
        let refused = call(&routes, Method::GET, "/logging?level=trace").await;
        assert_eq!(refused.0, StatusCode::METHOD_NOT_ALLOWED);
        let changed = call(&routes, Method::POST, "/logging?level=ops::x:debug,warn").await;
        assert_eq!(changed.1, "current log level is ops::x=debug,warn\n");
        assert_eq!(
            call(&routes, Method::POST, "/logging?level=loud").await.0,
            StatusCode::BAD_REQUEST
        );
        assert_eq!(
            call(&routes, Method::POST, "/logging?reset=").await.1,
            golden
        );
    }

    #[tokio::test]
    async fn readiness_names_what_is_missing() {
        let ready = Readiness::new();
        let gate = ready.gate("xds");
        let routes = readiness(ready);
        let (status, text) = call(&routes, Method::GET, "/healthz/ready").await;
        assert_eq!(
            (status, text.as_str()),
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready, waiting for: xds\n"
            )
        );
        gate.open();
        let golden = include_str!("../testdata/ready.txt")
            .rsplit("\r\n")
            .next()
            .unwrap_or_default();
        let golden = golden.rsplit("\n\n").next().unwrap();
        assert_eq!(
            call(&routes, Method::GET, "/healthz/ready").await,
            (StatusCode::OK, golden.to_owned())
        );
    }
}
