//! What an operator may ask the process.
//!
//! | port | routes |
//! |---|---|
//! | admin, localhost | `/config_dump`, `/explain?…`, `/logging`, `/quitquitquit` |
//! | metrics | `/metrics`, `/stats/prometheus` |
//! | readiness | `/healthz/ready` |

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use ops::log::LogHandle;
use ops::metrics::Registry;
use ops::ready::Readiness;
use tokio_util::sync::CancellationToken;

pub mod question;
mod shown;
mod words;

pub use question::Question;

/// What the process knows, as an operator may see it: no key material.
pub trait Shown: Send + Sync + 'static {
    /// Everything, as indented JSON, written piece by piece. No lock is held meanwhile: whoever reads may be slow.
    ///
    /// # Errors
    /// Those of `out`.
    fn dump(&self, out: &mut dyn io::Write) -> io::Result<()>;

    /// Which rule and which policies decide about a request.
    fn explain(&self, question: &Question) -> serde_json::Value;
}

/// Everything the doors show.
pub struct Doors {
    /// What `/config_dump` and `/explain` say.
    pub shown: Arc<dyn Shown>,
    /// The log, whose levels can be changed.
    pub log: LogHandle,
    /// What `/metrics` prints.
    pub registry: Arc<Registry>,
    /// What `/healthz/ready` says.
    pub readiness: Readiness,
    /// Cancelled by `/quitquitquit`.
    pub quit: CancellationToken,
}

/// Where the doors are.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// On localhost only: 15000.
    pub admin: u16,
    /// `[::]:15020`
    pub metrics: SocketAddr,
    /// `[::]:15021`
    pub readiness: SocketAddr,
}

impl Doors {
    /// Opens all doors; they close with `stop`.
    pub async fn open(self, at: Places, stop: CancellationToken) -> io::Result<()> {
        let admin = routes(self.shown).merge(ops::admin::admin(self.log, self.quit));
        for listener in ops::admin::bind_localhost(at.admin).await? {
            tokio::spawn(ops::admin::serve(listener, admin.clone(), stop.clone()));
        }
        let metrics = ops::admin::bind(at.metrics).await?;
        let scraped = ops::admin::metrics(self.registry);
        tokio::spawn(ops::admin::serve(metrics, scraped, stop.clone()));
        let readiness = ops::admin::bind(at.readiness).await?;
        let asked = ops::admin::readiness(self.readiness);
        tokio::spawn(ops::admin::serve(readiness, asked, stop));
        Ok(())
    }
}

/// `/config_dump` and `/explain`.
pub fn routes(shown: Arc<dyn Shown>) -> Router {
    Router::new()
        .route("/config_dump", get(config_dump))
        .route("/explain", get(explain))
        .with_state(shown)
}

async fn config_dump(State(shown): State<Arc<dyn Shown>>) -> Response {
    ops::admin::streamed("application/json", move |out| {
        shown.dump(out)?;
        out.write_all(b"\n")
    })
}

async fn explain(State(shown): State<Arc<dyn Shown>>, RawQuery(query): RawQuery) -> Response {
    match Question::parse(query.as_deref().unwrap_or_default()) {
        Ok(question) => Json(shown.explain(&question)).into_response(),
        Err(why) => (
            StatusCode::BAD_REQUEST,
            format!("{why}\n{}", question::USAGE),
        )
            .into_response(),
    }
}
