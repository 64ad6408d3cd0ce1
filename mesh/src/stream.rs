//! Drives the client's end of delta discovery over gRPC. The only file here that waits.
//!
//! 1. connect, by the caller's means (channel, TLS, bearer token)
//! 2. open every type on one stream: who we are, what we want, what we hold
//! 3. response → parsed and applied (`on_update`) → ACK, or NACK by name
//! 4. the stream ends: nothing is forgotten; wait a little, go to 1
//!
//! Policies are asked for before addresses: a server that answers in order then sends them before
//! the workloads that name them.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use api::discovery::DeltaDiscoveryResponse;
use api::discovery::Node;
use api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use bytes::Bytes;
use tokio::sync::mpsc;
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
}

impl ClientConfig {
    /// The usual: everything, and Istio's waits.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            addresses: Wish::Everything,
            shortest_wait: Duration::from_millis(10),
            longest_wait: Duration::from_secs(15),
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
    requests
        .send(types.authorizations.open(config.node.clone()))
        .await
        .map_err(gone)?;
    requests
        .send(types.addresses.open(config.node.clone()))
        .await
        .map_err(gone)?;
    let mut client = client.max_decoding_message_size(LARGEST_RESPONSE);
    let mut responses = client
        .delta_aggregated_resources(ReceiverStream::new(outgoing))
        .await
        .map_err(said)?
        .into_inner();
    events(ClientEvent::Connected);
    loop {
        let request = tokio::select! {
            response = responses.message() => match response.map_err(said)? {
                None => return Ok(()),
                Some(response) => {
                    wait.reset(); // it works: the next failure is a new one
                    types.apply(response, on_update, events)
                }
            },
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

struct Types {
    authorizations: Subscription,
    addresses: Subscription,
}

impl Types {
    fn apply(
        &mut self,
        response: DeltaDiscoveryResponse,
        on_update: &mut impl FnMut(Update) -> Vec<Rejected>,
        events: &mut impl FnMut(ClientEvent<'_>),
    ) -> Option<api::discovery::DeltaDiscoveryRequest> {
        let mut update = Update::default();
        let (set, removed) = (response.resources.len(), response.removed_resources.len());
        let (subscription, pending) = match &*response.type_url {
            AUTHORIZATION_TYPE => {
                let pending;
                (update.authorizations, pending) = self.authorizations.receive(response);
                (&mut self.authorizations, pending)
            }
            ADDRESS_TYPE => {
                let pending;
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
