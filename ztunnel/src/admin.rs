//! The doors of this process: admin on localhost, metrics, readiness.
//!
//! | port | routes |
//! |---|---|
//! | 15000, localhost | `/config_dump`, `/connections`, `/traffic`, `/explain`, `/logging`, `/quitquitquit` |
//! | 15020 | `/metrics`, `/stats/prometheus` |
//! | 15021 | `/healthz/ready`; of a dedicated proxy also `/app-health/…` |
//!
//! A dump of a large mesh is hundreds of megabytes: it is written on a thread of its own into a
//! few small chunks, never faster than the caller reads.

mod certificates;
mod connections;
mod dump;
mod explain;
mod policies;
mod settings;
mod shapes;

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use ops::admin::streamed;
use ops::log::LogHandle;
use ops::metrics::Registry;
use ops::ready::Readiness;
use tokio_util::sync::CancellationToken;

use crate::agent::Roster;
use crate::dedicated;
use crate::node::Node;
use dump::Dump;

/// Everything the doors show.
pub struct Doors {
    /// What the proxies share.
    pub node: Arc<Node>,
    /// The pods of this node.
    pub roster: Roster,
    /// The log, whose levels can be changed.
    pub log: LogHandle,
    /// What `/metrics` prints.
    pub registry: Arc<Registry>,
    /// What `/healthz/ready` says.
    pub readiness: Readiness,
    /// Cancelled by `/quitquitquit`.
    pub quit: CancellationToken,
}

impl Doors {
    /// Opens all doors; they close with `stop`.
    pub async fn open(self, stop: CancellationToken) -> io::Result<()> {
        let config = self.node.config.clone();
        let admin =
            admin(self.node.clone(), self.roster).merge(ops::admin::admin(self.log, self.quit));
        for listener in ops::admin::bind_localhost(config.admin_port).await? {
            tokio::spawn(ops::admin::serve(listener, admin.clone(), stop.clone()));
        }
        let metrics = ops::admin::metrics(self.registry)
            .layer(middleware::from_fn_with_state(self.node, settle));
        let metrics_listener = ops::admin::bind(config.stats_address).await?;
        tokio::spawn(ops::admin::serve(metrics_listener, metrics, stop.clone()));
        let readiness_listener = ops::admin::bind(config.readiness_address).await?;
        let mut readiness = ops::admin::readiness(self.readiness);
        if let Some(apps) = dedicated::apps::door(&config) {
            readiness = readiness.merge(apps);
        }
        tokio::spawn(ops::admin::serve(readiness_listener, readiness, stop));
        Ok(())
    }
}

/// What this process knows and does: to be read, never changed.
fn admin(node: Arc<Node>, roster: Roster) -> Router {
    Router::new()
        .route("/config_dump", get(config_dump))
        .with_state((node.clone(), roster))
        .merge(connections::door(node.clone()))
        .merge(explain::door(node))
}

/// Open connections' bytes enter the metrics before they are printed.
async fn settle(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    node.connections.settle();
    next.run(request).await
}

async fn config_dump(State((node, roster)): State<(Arc<Node>, Roster)>) -> Response {
    streamed("application/json", move |out| {
        Ok(Dump::new(node, roster).write(out)?)
    })
}

#[cfg(test)]
mod tests;
