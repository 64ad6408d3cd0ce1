//! Hands records to collectors, each by a task of its own, as requests through the mesh.
//!
//! 1. what has come within a second, or fills a message            (`gather`)
//! 2. is sent to the collector's service, with our own identity    (`deliver`)
//! 3. again where it could not be reached; then it is counted as failed
//!
//! Meanwhile records wait in the queue, which drops what is too much. At the process's end what waits is sent once.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use api::otlp;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use prost::Message;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::collector::Own;
use super::queue::{Opened, Openings, Record};
use crate::call;
use crate::proxy::Proxy;
use crate::upstream::Outgoing;

/// Sends for all collectors until `end`, and then what is left.
pub async fn run(proxy: Arc<Proxy>, mut openings: Openings, end: CancellationToken) {
    let sending = TaskTracker::new();
    let own = Arc::new(own(&proxy));
    while let Some(opened) = end.run_until_cancelled(openings.next()).await {
        let sender = Sender {
            proxy: proxy.clone(),
            own: own.clone(),
            opened,
            complained: None,
        };
        sending.spawn(sender.run(end.clone()));
    }
    sending.close();
    let _ = timeout(LAST, sending.wait()).await;
}

fn own(proxy: &Proxy) -> Own {
    let config = &proxy.config;
    let said = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    Own {
        service: format!("{}.{}", config.gateway_name, config.pod_namespace),
        namespace: config.pod_namespace.clone(),
        pod: config.pod_name.clone(),
        cluster: config.cluster_id.clone(),
        attributes: Own::attributes(&said),
    }
}

struct Sender {
    proxy: Arc<Proxy>,
    own: Arc<Own>,
    opened: Opened,
    complained: Option<Instant>,
}

impl Sender {
    async fn run(mut self, end: CancellationToken) {
        let mut batch = Vec::new();
        while self.gather(&mut batch, &end).await {
            let mut pause = PAUSE;
            let mut tries = 1;
            let delivered = loop {
                let sent = self.deliver(&batch).await;
                match sent {
                    Err(why) if why.again && tries < TRIES && !end.is_cancelled() => {
                        tries += 1;
                        let _ = end.run_until_cancelled(tokio::time::sleep(pause)).await;
                        pause *= 2;
                    }
                    sent => break sent,
                }
            };
            self.count(batch.len() as u64, delivered);
            batch.clear();
        }
    }

    /// Records for one message; false if there will be no more.
    async fn gather(&mut self, batch: &mut Vec<Record>, end: &CancellationToken) -> bool {
        let records = &mut self.opened.records;
        let first = match end.run_until_cancelled(records.recv()).await {
            Some(first) => first,
            None => records.try_recv().ok(),
        };
        let Some(first) = first else {
            return false;
        };
        batch.push(first);
        let until = Instant::now() + LINGER;
        while batch.len() < MOST {
            let room = MOST - batch.len();
            if end.is_cancelled() {
                while batch.len() < MOST
                    && let Ok(record) = records.try_recv()
                {
                    batch.push(record);
                }
                break;
            }
            let more = timeout_at(until, records.recv_many(batch, room));
            if let Some(Ok(0) | Err(_)) = end.run_until_cancelled(more).await {
                break;
            }
        }
        true
    }

    fn count(&mut self, records: u64, delivered: Result<u64, Undelivered>) {
        let counts = &self.opened.counts;
        let refused = match delivered {
            Ok(refused) => refused.min(records),
            Err(why) => {
                let quiet = |last: Instant| last.elapsed() < COMPLAIN;
                if !self.complained.is_some_and(quiet) {
                    self.complained = Some(Instant::now());
                    let collector = &self.opened.to.key;
                    tracing::warn!(%collector, records, why = why.why, "report: not delivered");
                }
                records
            }
        };
        counts.failed.fetch_add(refused, Relaxed);
        counts.sent.fetch_add(records - refused, Relaxed);
    }

    /// How many of them the collector did not want.
    async fn deliver(&self, batch: &[Record]) -> Result<u64, Undelivered> {
        let within = self.opened.to.timeout;
        match timeout(within, self.send(batch)).await {
            Ok(sent) => sent,
            Err(_) => Err(Undelivered::again(format!("no answer within {within:?}"))),
        }
    }

    async fn send(&self, batch: &[Record]) -> Result<u64, Undelivered> {
        let collector = &self.opened.to;
        let arrived = call::ourselves(&self.proxy, &collector.service);
        let arrived = arrived.map_err(Undelivered::again)?;
        let request = collector.request(batch, &self.own);
        let request = request.map_err(Undelivered::never)?;
        let request = request.map(|body| Outgoing::Whole(Some(body)));
        let config = self.proxy.state.load_full();
        let answer = call::ask(&arrived, &config, &arrived.to, request).await;
        let (head, body) = answer
            .map_err(|why| Undelivered::again(why.to_string()))?
            .into_parts();
        let body = Limited::new(body, LARGEST).collect().await;
        let body =
            body.map_err(|why| Undelivered::again(format!("its answer broke off: {why}")))?;
        if !head.status.is_success() {
            let why = format!("it answers {}", head.status);
            let again = head.status == StatusCode::TOO_MANY_REQUESTS
                || head.status == StatusCode::BAD_GATEWAY
                || head.status == StatusCode::SERVICE_UNAVAILABLE
                || head.status == StatusCode::GATEWAY_TIMEOUT;
            return Err(Undelivered { why, again });
        }
        if !collector.speaks_grpc() {
            return Ok(0);
        }
        let ends = body.trailers().unwrap_or(&head.headers);
        let status = ends.get("grpc-status").and_then(|it| it.to_str().ok());
        match status {
            Some("0") => Ok(refused(&body.to_bytes())),
            status => Err(Undelivered {
                why: format!("it answers gRPC status {}", status.unwrap_or("none")),
                // Unavailable, or too much at this moment (OTLP's list).
                again: matches!(status, Some("1" | "4" | "8" | "10" | "11" | "14" | "15")),
            }),
        }
    }
}

/// Of both kinds of answer the first field says the same.
fn refused(body: &[u8]) -> u64 {
    let message = body.get(5..).unwrap_or_default();
    let answer = otlp::ExportTraceServiceResponse::decode(message).unwrap_or_default();
    let rejected = answer.partial_success.map_or(0, |it| it.rejected_spans);
    u64::try_from(rejected).unwrap_or(0)
}

#[derive(Debug)]
struct Undelivered {
    why: String,
    /// It may work later.
    again: bool,
}

impl Undelivered {
    fn again(why: String) -> Self {
        Self { why, again: true }
    }

    fn never(why: String) -> Self {
        Self { why, again: false }
    }
}

/// From the first record of a message to when it is sent.
const LINGER: Duration = Duration::from_secs(1);
/// Records of a message.
const MOST: usize = 512;
const TRIES: usize = 3;
/// Before a second try; twice as long before a third.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two complaints about the same collector.
const COMPLAIN: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const LARGEST: usize = 64 << 10;
/// For what is left at the process's end.
const LAST: Duration = Duration::from_secs(2);
