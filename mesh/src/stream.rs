//! Drives the client's end of delta discovery over gRPC. The only file here that waits.
//!
//! 1. connect, by the caller's means (channel, TLS, bearer token)
//! 2. open every type on one stream: who we are, what we want, what we hold
//! 3. response → parsed and applied (`on_update`) → ACK, or NACK by name
//! 4. what we hold was too much to tell: when every type was answered and no response names more
//!    of it for a while, the rest is gone
//! 5. the stream ends: nothing is forgotten; wait a little, go to 1
//!
//! Policies are asked for before addresses: a server that answers in order then sends them before
//! the workloads that name them. For the same reason step 4 takes both types at once: a policy
//! does not go while a workload that names it may still be on its way out.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, StdError};

use crate::change::Update;
use crate::parse::Rejected;
use crate::subscription::{Subscription, Wish};

/// How to subscribe.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Who we are; sent with the first request of each type.
    pub node: Node,
    /// What we want of the address type. Policies are always wanted whole.
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
}

impl ClientConfig {
    /// The usual: everything, and Istio's waits.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            addresses: Wish::Everything,
            shortest_wait: Duration::from_millis(10),
            longest_wait: Duration::from_secs(15),
            largest_request: LARGEST_REQUEST,
            quiet: QUIET,
        }
    }
}

/// What happens on the way; for readiness, logs and metrics.
#[derive(Debug)]
pub enum ClientEvent<'a> {
    /// A stream is open.
    Connected,
    /// A response was applied; the first one of each type makes a proxy ready.
    Applied {
        /// Its type.
        type_url: &'static str,
        /// Its size on the wire, decoded from gRPC.
        bytes: usize,
        /// Resources set.
        set: usize,
        /// Names removed.
        removed: usize,
        /// Names refused, and told to the server.
        rejected: &'a [Rejected],
    },
    /// The stream ended, or could not be opened; state is kept.
    Disconnected {
        /// What the other end or the network said; `None` = it closed in good order.
        reason: Option<String>,
        /// When the next attempt follows.
        retry_in: Duration,
    },
}

/// Keeps a mesh up to date until `cancel`.
///
/// `connect` makes a client for each stream, `on_update` applies (it returns what it refused) and
/// should not block for long; `demands` brings names asked for on demand.
pub async fn run_client<C, F, T, E>(
    connect: C,
    config: ClientConfig,
    mut demands: Option<mpsc::Receiver<Arc<str>>>,
    mut on_update: impl FnMut(Update) -> Vec<Rejected>,
    mut events: impl FnMut(ClientEvent<'_>),
    cancel: CancellationToken,
) where
    C: Fn() -> F,
    F: Future<Output = Result<AggregatedDiscoveryServiceClient<T>, E>>,
    E: fmt::Display,
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    let mut types = Types {
        authorizations: Subscription::new(AUTHORIZATION_TYPE, Wish::Everything),
        addresses: Subscription::new(ADDRESS_TYPE, config.addresses),
        answered: Answered::default(),
        quiet: config.quiet,
        settles: None,
    };
    let mut wait = Wait::new(config.shortest_wait, config.longest_wait);
    loop {
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            ended = async {
                let client = connect().await.map_err(|error| Some(error.to_string()))?;
                one_stream(client, &config, &mut types, &mut demands, &mut on_update, &mut events, &mut wait).await
            } => ended,
        };
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
    client: AggregatedDiscoveryServiceClient<T>,
    config: &ClientConfig,
    types: &mut Types,
    demands: &mut Option<mpsc::Receiver<Arc<str>>>,
    on_update: &mut impl FnMut(Update) -> Vec<Rejected>,
    events: &mut impl FnMut(ClientEvent<'_>),
    wait: &mut Wait,
) -> Result<(), Option<String>>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    let said = |status: Status| Some(format!("{:?}: {}", status.code(), status.message()));
    let gone = |_| None;
    let (requests, outgoing) = mpsc::channel(REQUESTS_IN_FLIGHT);
    for request in types.open(config) {
        requests.send(request).await.map_err(gone)?;
    }
    let mut client = client.max_decoding_message_size(LARGEST_RESPONSE);
    let mut responses = client
        .delta_aggregated_resources(ReceiverStream::new(outgoing))
        .await
        .map_err(said)?
        .into_inner();
    events(ClientEvent::Connected);
    loop {
        let request = tokio::select! {
            biased; // what has arrived counts before the time is up
            response = responses.message() => match response.map_err(said)? {
                None => return Ok(()),
                Some(response) => {
                    let request = types.apply(response, on_update, events);
                    // Not earlier: a server may answer one type, and fail at the other each time.
                    if types.answered.all() {
                        wait.reset(); // it works: the next failure is a new one
                    }
                    request
                }
            },
            () = sleep_until(types.settles) => {
                types.settle(on_update);
                None
            }
            Some(name) = demand(demands) => Some(types.addresses.want([name])),
        };
        if let Some(request) = request {
            requests.send(request).await.map_err(gone)?;
        }
    }
}

async fn demand(demands: &mut Option<mpsc::Receiver<Arc<str>>>) -> Option<Arc<str>> {
    match demands {
        Some(demands) => demands.recv().await,
        None => None,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Types {
    authorizations: Subscription,
    addresses: Subscription,
    answered: Answered,
    quiet: Duration,
    /// When that which is in doubt is gone.
    settles: Option<Instant>,
}

/// Which types were answered on this stream.
#[derive(Debug, Default)]
struct Answered {
    authorizations: bool,
    addresses: bool,
}

impl Answered {
    fn all(&self) -> bool {
        self.authorizations && self.addresses
    }
}

impl Types {
    /// The first requests of a new stream.
    fn open(&mut self, config: &ClientConfig) -> [DeltaDiscoveryRequest; 2] {
        self.answered = Answered::default();
        self.settles = None;
        let longest = config.largest_request;
        [&mut self.authorizations, &mut self.addresses]
            .map(|subscription| subscription.open(config.node.clone(), longest))
    }

    fn doubtful(&self) -> usize {
        self.authorizations.doubtful() + self.addresses.doubtful()
    }

    /// Nothing more comes of the answers to the opening.
    fn settle(&mut self, on_update: &mut impl FnMut(Update) -> Vec<Rejected>) {
        self.settles = None;
        let mut update = Update::default();
        update.authorizations.removed = self.authorizations.drop_doubtful();
        update.addresses.removed = self.addresses.drop_doubtful();
        tracing::info!(
            authorizations = update.authorizations.removed.len(),
            addresses = update.addresses.removed.len(),
            "gone while there was no stream: the control plane does not name them"
        );
        let rejected = on_update(update);
        debug_assert!(rejected.is_empty(), "a removal cannot be refused");
    }

    /// Applies a response; returns the answer to it.
    fn apply(
        &mut self,
        response: DeltaDiscoveryResponse,
        on_update: &mut impl FnMut(Update) -> Vec<Rejected>,
        events: &mut impl FnMut(ClientEvent<'_>),
    ) -> Option<DeltaDiscoveryRequest> {
        let in_doubt = self.doubtful();
        let were_answered = self.answered.all();
        let request = self.take(response, on_update, events)?;
        // Each part of an answer in parts names some that are held, so the wait ends: every time
        // it begins anew, fewer are left.
        let still = self.doubtful();
        if still == 0 {
            self.settles = None;
        } else if self.answered.all() && (still < in_doubt || !were_answered) {
            self.settles = Some(Instant::now() + self.quiet);
        }
        Some(request)
    }

    fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
        on_update: &mut impl FnMut(Update) -> Vec<Rejected>,
        events: &mut impl FnMut(ClientEvent<'_>),
    ) -> Option<DeltaDiscoveryRequest> {
        let mut update = Update::default();
        let bytes = response.encoded_len();
        let (set, removed) = (response.resources.len(), response.removed_resources.len());
        let (subscription, pending) = match &*response.type_url {
            AUTHORIZATION_TYPE => {
                let pending;
                self.answered.authorizations = true;
                (update.authorizations, pending) = self.authorizations.receive(response);
                (&mut self.authorizations, pending)
            }
            ADDRESS_TYPE => {
                let pending;
                self.answered.addresses = true;
                (update.addresses, pending) = self.addresses.receive(response);
                (&mut self.addresses, pending)
            }
            // Not asked for: there is no subscription that an answer could belong to.
            other => {
                tracing::warn!(
                    type_url = other,
                    "a response of a type that was not asked for"
                );
                return None;
            }
        };
        let rejected = if update.is_empty() {
            Vec::new()
        } else {
            on_update(update)
        };
        let (request, rejected) = subscription.conclude(pending, rejected);
        events(ClientEvent::Applied {
            type_url: subscription.type_url(),
            bytes,
            set,
            removed,
            rejected: &rejected,
        });
        Some(request)
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

/// As large as Istio's ztunnel takes: 100,000 workloads arrive in one response.
const LARGEST_RESPONSE: usize = 200 << 20;
/// With room to spare below the 4 MiB that Istio's server takes (gRPC's default): some 40,000 names.
const LARGEST_REQUEST: usize = 7 << 19;
/// Between two parts of one answer there is less. Istio's server and ours send a type's first
/// answer as one response, and then this long nobody knows what is gone: it was stale before.
const QUIET: Duration = Duration::from_secs(2);
/// Acknowledgements that the connection has not taken yet.
const REQUESTS_IN_FLIGHT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_to_its_limit_and_starts_anew_after_success() {
        let mut wait = Wait::new(Duration::from_millis(10), Duration::from_secs(15));
        let waits: Vec<_> = (0..13).map(|_| wait.next(u64::MAX).as_millis()).collect();
        assert_eq!(
            waits,
            [
                10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000
            ]
        );
        wait.reset();
        assert_eq!(
            wait.next(0),
            Duration::from_millis(5),
            "half of it is random"
        );
    }
}
