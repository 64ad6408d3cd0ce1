//! `/connections`: every open connection of this node, one JSON document a line, written as they are read.
//! `/traffic`: what the connections of each workload of this node did, in sums, for whoever asks again and again.
//!
//! One pod's connections are held at a time, by reference: what is shown of them is worked out while it is written.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::get;
use mesh::Workload;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::streamed;
use crate::connections::{Live, Open, Protocol};
use crate::node::Node;
use crate::report::Name;
use crate::traffic::{Reporter, Sums};

/// Which connections; all of what is said must be so.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wanted {
    direction: Option<Direction>,
    /// Of the pod at this end.
    namespace: Option<String>,
    /// The pod at this end, or who owns it.
    workload: Option<String>,
    /// Name, owner or address at the other end.
    peer: Option<String>,
    /// Host name of the service that was called.
    service: Option<String>,
    protocol: Option<Spoken>,
    /// No more than so many.
    limit: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    Inbound,
    Outbound,
}

/// What apps speak over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Spoken {
    Tcp,
    Udp,
}

impl Spoken {
    fn over(live: &Live) -> Self {
        match live.protocol {
            Protocol::Hbone | Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

pub(super) fn door(node: Arc<Node>) -> Router {
    Router::new()
        .route("/connections", get(connections))
        .route("/traffic", get(traffic))
        .with_state(node)
}

async fn connections(State(node): State<Arc<Node>>, Query(wanted): Query<Wanted>) -> Response {
    streamed("application/x-ndjson", move |out| {
        write(&node, &wanted, out)
    })
}

fn write(node: &Node, wanted: &Wanted, out: &mut dyn Write) -> io::Result<()> {
    let mut left = wanted.limit.unwrap_or(usize::MAX);
    for (_, pod) in node.connections.pods() {
        for live in pod.all() {
            if !wanted.is(&live) {
                continue;
            }
            let Some(fewer) = left.checked_sub(1) else {
                return Ok(());
            };
            left = fewer;
            serde_json::to_writer(&mut *out, &Shape::of(&live))?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}

impl Wanted {
    fn is(&self, live: &Live) -> bool {
        let ends = &live.story.ends;
        let (own, other, address) = match live.reporter {
            Reporter::Source => (&ends.source, &ends.destination, live.actual),
            Reporter::Destination => (&ends.destination, &ends.source, live.source),
        };
        let is = |wanted: Option<&String>, holds: &dyn Fn(&str) -> bool| {
            wanted.is_none_or(|text| holds(text))
        };
        let called = |it: &Option<Arc<Workload>>, text: &str| {
            it.as_ref()
                .is_some_and(|it| it.name() == text || *it.workload_name == *text)
        };
        let is_direction = |direction| match direction {
            Direction::Outbound => live.reporter == Reporter::Source,
            Direction::Inbound => live.reporter == Reporter::Destination,
        };
        self.direction.is_none_or(is_direction)
            && self.protocol.is_none_or(|it| it == Spoken::over(live))
            && is(self.namespace.as_ref(), &|text| {
                own.as_ref().is_some_and(|own| *own.namespace == *text)
            })
            && is(self.workload.as_ref(), &|text| called(own, text))
            && is(self.peer.as_ref(), &|text| {
                called(other, text) || text.parse() == Ok(address.ip())
            })
            && is(self.service.as_ref(), &|text| {
                let service = ends.service.as_ref();
                service.is_some_and(|service| *service.hostname == *text || *service.name == *text)
            })
    }
}

/// A connection as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shape<'a> {
    direction: &'static str,
    protocol: Spoken,
    source: End<'a>,
    destination: End<'a>,
    /// What the client called.
    called: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<String>,
    /// `tunnel`, `in-process` or `plain`
    carried: &'static str,
    /// What the CONNECT asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnel: Option<String>,
    /// The policy that let it in; known at the destination's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Arc<str>>,
    bytes_sent: u64,
    bytes_received: u64,
    age_ms: u64,
}

#[derive(Debug, Serialize)]
struct End<'a> {
    address: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    /// Who owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<&'a str>,
}

impl<'a> Shape<'a> {
    fn of(live: &'a Live) -> Self {
        let (story, series) = (&live.story, live.series());
        let ends = &story.ends;
        let (bytes_sent, bytes_received) = live.moved();
        Self {
            direction: match live.reporter {
                Reporter::Source => "outbound",
                Reporter::Destination => "inbound",
            },
            protocol: Spoken::over(live),
            source: End::of(live.source, ends.source.as_ref(), series.source_principal()),
            destination: End::of(
                live.actual,
                ends.destination.as_ref(),
                series.destination_principal(),
            ),
            called: live.original,
            service: ends.service.as_ref().map(|service| &*service.hostname),
            waypoint: story.waypoint.as_deref().map(|it| Name(it).to_string()),
            carried: match (live.protocol, &story.tunnelled) {
                (Protocol::Hbone, _) | (Protocol::Udp, Some(_)) => "tunnel",
                (Protocol::Tcp, Some(_)) => "in-process",
                (Protocol::Tcp | Protocol::Udp, None) => "plain",
            },
            tunnel: story.tunnelled.as_ref().map(ToString::to_string),
            policy: live.policy(),
            bytes_sent,
            bytes_received,
            age_ms: u64::try_from(story.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl<'a> End<'a> {
    fn of(
        address: SocketAddr,
        workload: Option<&'a Arc<Workload>>,
        identity: Option<&'a str>,
    ) -> Self {
        Self {
            address,
            namespace: workload.map(|it| &*it.namespace),
            pod: workload.map(|it| it.name()),
            workload: workload
                .map(|it| &*it.workload_name)
                .filter(|it| !it.is_empty()),
            identity,
        }
    }
}

async fn traffic(State(node): State<Arc<Node>>) -> Json<Value> {
    // What has moved on open connections counts too.
    node.connections.settle();
    let mut open: BTreeMap<(Arc<str>, Arc<str>), Open> = BTreeMap::new();
    {
        let snapshot = node.mesh.load();
        for (_, pod) in node.connections.pods() {
            let Some(workload) = snapshot.workload(pod.workload_uid()) else {
                continue;
            };
            let key = (workload.namespace.clone(), workload.workload_name.clone());
            let of_pod = pod.counts();
            let sum = open.entry(key).or_default();
            sum.inbound += of_pod.inbound;
            sum.outbound += of_pod.outbound;
            sum.flows += of_pod.flows;
        }
    }
    let mut moved = node.traffic.by_workload();
    for key in open.keys() {
        moved.entry(key.clone()).or_default();
    }
    let workloads: Vec<_> = moved
        .iter()
        .map(|(key, sums)| row(key, open.get(key).copied().unwrap_or_default(), *sums))
        .collect();
    Json(json!({ "node": node.config.node_name, "workloads": workloads }))
}

fn row(key: &(Arc<str>, Arc<str>), open: Open, sums: Sums) -> Value {
    json!({
        "namespace": key.0,
        "workload": key.1,
        "inbound": open.inbound,
        "outbound": open.outbound,
        "flows": open.flows,
        "opened": sums.opened,
        "closed": sums.closed,
        "refused": sums.refused,
        "sent": sums.sent,
        "received": sums.received,
    })
}
