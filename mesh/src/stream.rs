//! Drives the client's end of delta discovery over gRPC. The only file here that waits.
//!
//! 1. connect, by the caller's means (channel, TLS, bearer token)
//! 2. open every type on one stream: who we are, what we want, what we hold
//! 3. response → parsed and applied (`on_update`) → ACK, or NACK by name; a long one in parts while
//!    it arrives (`cut.rs`, `part.rs`), to be seen when it is whole
//! 4. what we hold was too much to tell: when every type was answered and no response names more
//!    of it for a while, the rest is gone
//! 5. the stream ends: nothing is forgotten; wait a little, go to 1
//!
//! What the answers do, and what is answered to them: `types.rs`.

mod cut;
mod event;
pub(crate) mod part;
#[cfg(test)]
mod tests;
mod types;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use api::discovery::{DeltaDiscoveryRequest, ErrorDetail, Node};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Body as HttpBody, StdError};
use tonic::{IntoStreamingRequest, Status};

use crate::change::Update;
use crate::parse::Rejected;
use crate::stream::cut::InParts;
pub use crate::stream::event::{ClientEvent, FirstAnswers};
use crate::stream::part::PartCodec;
pub use crate::stream::types::Kind;
use crate::stream::types::Types;
use crate::subscription::Wish;

/// How to subscribe.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Who we are; sent with the first request of each type.
    pub node: Node,
    /// The types that are followed, in the order in which they are asked for: what others name before
    /// those. Default: policies, then addresses.
    pub follows: Vec<Kind>,
    /// What we want of the address type. The others are always wanted whole.
    pub addresses: Wish,
    /// First wait after a stream that failed; doubles up to `longest_wait`. Default 10 ms.
    pub shortest_wait: Duration,
    /// Default 15 s.
    pub longest_wait: Duration,
    /// Bytes of a first request that the server is sure to take; if it would be longer, what we
    /// hold is left out of it. Default 3.5 MiB: Istio's server takes 4 MiB.
    pub largest_request: usize,
    /// How long after a response that named some of it, what was left out counts as gone.
    /// Default 2 s.
    pub quiet: Duration,
    /// How the application behind this proxy does, if anybody asks it: well, or why not. Told on each stream, and whenever it
    /// changes, as Istio's agents do.
    pub health: Option<watch::Receiver<Option<String>>>,
}

impl ClientConfig {
    /// The usual: everything, and Istio's waits.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            follows: vec![Kind::Authorizations, Kind::Addresses],
            addresses: Wish::Everything,
            shortest_wait: Duration::from_millis(10),
            longest_wait: Duration::from_secs(15),
            largest_request: LARGEST_REQUEST,
            quiet: QUIET,
            health: None,
        }
    }
}

/// What is asked of the address type while a stream is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// Tell about this: `network/ip`, `namespace/host` or a uid.
    Want(Arc<str>),
    /// The same, although it was told before: what was told then is not believed any more.
    Again(Arc<str>),
    /// No more; what is held for that alone goes, when the server says so.
    Leave(Arc<str>),
    /// No more of all this. Who says so has taken what was held for it out of the mesh, and names that too.
    Forget(Box<[Arc<str>]>),
}

/// Keeps a mesh up to date until `cancel`.
///
/// `connect` makes a channel for each stream, `on_update` applies (it returns what it refused) and
/// should not block for long; `demands` brings names asked for on demand.
pub async fn run_client<C, F, T, E>(
    connect: C,
    config: ClientConfig,
    mut demands: Option<mpsc::Receiver<Demand>>,
    mut on_update: impl FnMut(Update) -> Vec<Rejected>,
    mut events: impl FnMut(ClientEvent<'_>),
    cancel: CancellationToken,
) where
    C: Fn() -> F,
    F: Future<Output = Result<T, E>>,
    E: fmt::Display,
    T: GrpcService<Body>,
    T::Future: Send + 'static,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    let mut types = Types::new(&config);
    let mut wait = Wait::new(config.shortest_wait, config.longest_wait);
    loop {
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            ended = async {
                let channel = connect().await.map_err(|error| Some(error.to_string()))?;
                one_stream(channel, &config, &mut types, &mut demands, &mut on_update, &mut events, &mut wait).await
            } => ended,
        };
        types.withdraw(&mut on_update);
        let retry_in = wait.next(RandomState::new().hash_one(0u8));
        events(ClientEvent::Disconnected {
            reason: ended.err().flatten(),
            retry_in,
        });
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(retry_in) => {}
        }
    }
}

/// Ends with `Ok` when the server closed in good order, else with what was said.
async fn one_stream<T>(
    channel: T,
    config: &ClientConfig,
    types: &mut Types,
    demands: &mut Option<mpsc::Receiver<Demand>>,
    on_update: &mut impl FnMut(Update) -> Vec<Rejected>,
    events: &mut impl FnMut(ClientEvent<'_>),
    wait: &mut Wait,
) -> Result<(), Option<String>>
where
    T: GrpcService<Body>,
    T::Future: Send + 'static,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    let said = |status: Status| Some(format!("{:?}: {}", status.code(), status.message()));
    let gone = |_| None;
    let (requests, outgoing) = mpsc::channel(REQUESTS_IN_FLIGHT);
    for request in types.open(config) {
        requests.send(request).await.map_err(gone)?;
    }
    let mut client = Grpc::new(InParts(channel)).max_decoding_message_size(LARGEST_RESPONSE);
    let unready = |error: T::Error| said(Status::unknown(error.into().to_string()));
    client.ready().await.map_err(unready)?;
    let mut responses = client
        .streaming(
            ReceiverStream::new(outgoing).into_streaming_request(),
            PathAndQuery::from_static(METHOD),
            PartCodec,
        )
        .await
        .map_err(said)?
        .into_inner();
    events(ClientEvent::Connected);
    let mut health = config.health.clone();
    health.iter_mut().for_each(watch::Receiver::mark_changed);
    loop {
        let asked = tokio::select! {
            biased; // what has arrived counts before the time is up
            response = responses.message() => match response.map_err(said)? {
                None => return Ok(()),
                Some(part) => {
                    let request = types.apply(part, on_update, events);
                    // Not earlier: a server may answer one type, and fail at the other each time.
                    if types.all_answered() {
                        wait.reset(); // it works: the next failure is a new one
                    }
                    Vec::from_iter(request)
                }
            },
            // What is arriving may still name what is in doubt.
            () = sleep_until(types.settles), if !types.in_the_middle() => {
                types.settle(on_update);
                Vec::new()
            }
            Some(asked) = some(demands, &requests) => types.demand(asked),
            Some(report) = how_it_does(&mut health, &requests) => vec![report],
        };
        for request in asked {
            requests.send(request).await.map_err(gone)?;
        }
    }
}

/// What is demanded by now, once there is room for the requests that it leads to: a server that waits for us to take its
/// answers takes no requests, and we must go on taking them. Cancel safe.
async fn some(
    demands: &mut Option<mpsc::Receiver<Demand>>,
    requests: &mpsc::Sender<DeltaDiscoveryRequest>,
) -> Option<Vec<Demand>> {
    let demands = demands.as_mut()?;
    drop(requests.reserve_many(REQUESTS_OF_DEMANDS).await.ok()?);
    let mut some = vec![demands.recv().await?];
    while some.len() < DEMANDS_AT_ONCE
        && let Ok(more) = demands.try_recv()
    {
        some.push(more);
    }
    Some(some)
}

/// How the application does now, once that is another than it was; with room, as above. Cancel safe.
async fn how_it_does(
    health: &mut Option<watch::Receiver<Option<String>>>,
    requests: &mpsc::Sender<DeltaDiscoveryRequest>,
) -> Option<DeltaDiscoveryRequest> {
    let health = health.as_mut()?;
    drop(requests.reserve().await.ok()?);
    health.changed().await.ok()?;
    let unhealthy = health.borrow_and_update().clone();
    Some(DeltaDiscoveryRequest {
        type_url: api::HEALTH_TYPE.to_owned(),
        error_detail: unhealthy.map(|message| ErrorDetail {
            code: UNWELL,
            message,
            details: Vec::new(),
        }),
        ..DeltaDiscoveryRequest::default()
    })
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// How long to wait before the next attempt: doubling, a random part of it so that 1,000 proxies
/// do not come back in step.
#[derive(Debug)]
struct Wait {
    shortest: Duration,
    longest: Duration,
    next: Duration,
}

impl Wait {
    fn new(shortest: Duration, longest: Duration) -> Self {
        Self {
            shortest,
            longest,
            next: shortest,
        }
    }

    fn reset(&mut self) {
        self.next = self.shortest;
    }

    fn next(&mut self, draw: u64) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.longest);
        let half = now / 2;
        half + half.mul_f64(draw as f64 / u64::MAX as f64)
    }
}

/// The service and its method.
const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// As large as Istio's ztunnel takes: 100,000 workloads arrive in one response.
const LARGEST_RESPONSE: usize = 200 << 20;
/// With room to spare below the 4 MiB that Istio's server takes (gRPC's default): some 40,000 names.
const LARGEST_REQUEST: usize = 7 << 19;
/// Between two parts of one answer there is less. Istio's server and ours send a type's first
/// answer as one response, and then this long nobody knows what is gone: it was stale before.
const QUIET: Duration = Duration::from_secs(2);
/// Acknowledgements that the connection has not taken yet.
const REQUESTS_IN_FLIGHT: usize = 16;
/// What is left, what is forgotten, what is wanted.
const REQUESTS_OF_DEMANDS: usize = 3;
/// Istio's agents' code for an application that is not well.
const UNWELL: i32 = 500;
/// Demands that one request answers for: some 30 KB.
const DEMANDS_AT_ONCE: usize = 512;
