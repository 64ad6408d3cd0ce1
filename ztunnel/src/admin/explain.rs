//! `/explain?src=…&dst=…`: what would become of a connection, from the live state of this ztunnel.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use mesh::{Locality, Network, Workload};

use crate::explain::{Question, View, explain};
use crate::node::Node;
use crate::on_demand::{OnDemand, Whom};

pub(super) fn door(node: Arc<Node>) -> Router {
    Router::new()
        .route("/explain", get(answer))
        .with_state(node)
}

async fn answer(State(node): State<Arc<Node>>, Query(question): Query<Question>) -> Response {
    if let Some(on_demand) = &node.on_demand {
        ask_for(&node, on_demand, &question).await;
    }
    // It may go through all workloads for a name.
    let answered = tokio::task::spawn_blocking(move || said(&node, &question));
    match answered.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Ok(Err(why)) => (StatusCode::NOT_FOUND, format!("{why}\n")).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Where not everything is followed, whoever is spoken of is asked for first, as for a connection. What is not told is
/// not known, and the answer says so.
async fn ask_for(node: &Node, on_demand: &OnDemand, question: &Question) {
    let network = Network::new(&*node.config.network);
    for ip in question.addresses() {
        let _ = on_demand.whom(node, Whom::At(&network, ip)).await;
    }
    for host in question.hosts(&node.config.cluster_domain) {
        let _ = on_demand.whom(node, Whom::Named(&host)).await;
    }
    let leads = viewed(node, |view| question.leads(view));
    if let Some((source, destination)) = leads {
        let _ = on_demand.towards(node, &source, destination).await;
    }
}

fn said(node: &Node, question: &Question) -> Result<String, String> {
    viewed(node, |view| {
        let explained = explain(view, question)?;
        let text = serde_json::to_string_pretty(&explained);
        Ok(text.map_err(|error| error.to_string())? + "\n")
    })
}

/// What is known now, for one question.
fn viewed<T>(node: &Node, ask: impl FnOnce(&View<'_>) -> T) -> T {
    let troubled = &node.retries.troubled;
    let (network, nowhere) = (Network::new(&*node.config.network), Locality::default());
    let view = View {
        snapshot: &node.mesh.load(),
        node: &node.config.node_name,
        network: &network,
        cluster_domain: &node.config.cluster_domain,
        nowhere: &nowhere,
        resolvers: &node.resolv.servers,
        force_tunnel: node.config.force_tunnel,
        is_here: &|workload: &Workload| node.pods.of_workload(&workload.uid).is_some(),
        is_avoided: &|workload, port, calls| troubled.includes((workload.uid.clone(), port), calls),
    };
    ask(&view)
}
