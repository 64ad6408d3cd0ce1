//! Delta discovery: every proxy is told what changed, and only that.
//!
//! 1. a stream begins: its token is good, or it ends at once          ([`Discovery`])
//! 2. its first request says who it is, and the token must agree; whether it is a gateway's
//!    proxy, which is told of that gateway alone                      (`node`)
//! 3. requests and changes of the catalog become replies, by the pure
//!    state machine [`mesh::session`]                                 (`stream`)
//! 4. replies become bytes when the client takes them                 (`body`)
//!
//! One task per stream, one reply under way in each. A stream whose client does not read waits
//! at 4 with a pointer to the catalog it was told; nobody waits for it, nothing piles up for it,
//! and when the client reads again it gets the difference to that day's catalog.

mod body;
mod connected;
mod debounce;
mod node;
mod refused;
mod stream;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use api::discovery::DeltaDiscoveryRequest;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use http::HeaderValue;
use tokio::sync::mpsc;
use tonic::codec::{Codec as _, Streaming};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::authenticate::Authenticator;
use crate::catalog::Reader;
use crate::machine::Connection;
use crate::machine::register::Registrar;
use crate::metrics::Metrics;
use crate::serve::{Leaving, Peer, Stranger};

pub use connected::{Connected, ProxyState, Sync};
pub use debounce::Debounce;
pub use refused::Refusals;

/// Method of the service; the older, whole-state method is not served: no proxy of the mesh asks
/// for it.
const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// What every stream needs.
pub struct Discovery {
    /// Who calls.
    pub authenticator: Arc<Authenticator>,
    /// What there is to tell.
    pub catalog: Reader,
    /// Who is being told.
    pub connected: Arc<Connected>,
    /// What proxies refused.
    pub refusals: Arc<Refusals>,
    /// What machines say of how they do goes there.
    pub registrar: Arc<Registrar>,
    /// Counts it.
    pub metrics: Arc<Metrics>,
}

impl Discovery {
    /// The gRPC method as a route. (Not tonic's generated server: it would write each message in
    /// a whole, for each stream; see `body`.)
    pub fn routes(self: Arc<Self>) -> Router {
        Router::new().route(METHOD, post(begin)).with_state(self)
    }
}

async fn begin(State(discovery): State<Arc<Discovery>>, request: Request) -> Response {
    // A request's body may not be shared between threads, which a wait would do.
    let metadata = request.headers().clone();
    let connection = Connection::of(request.extensions());
    let caller = discovery.authenticator.caller_on(&connection, &metadata);
    let caller = match caller.await {
        Ok(caller) => caller,
        Err(error) => {
            tracing::info!(%error, "stream refused: caller unknown");
            let refused = error.status("authentication failure");
            return refused.into_http::<axum::body::Body>();
        }
    };
    if let Some(stranger) = request.extensions().get::<Arc<Stranger>>() {
        stranger.prove();
    }
    let leaving = request.extensions().get::<Leaving>().cloned();
    let peer = request.extensions().get::<Peer>().copied();
    let mut codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryRequest>::default();
    let requests = Streaming::new_request(
        codec.decoder(),
        request.into_body(),
        None,
        Some(LARGEST_REQUEST),
    );
    let (replies, receiver) = mpsc::channel(1);
    let status = Arc::new(OnceLock::new());
    let stream = stream::Stream {
        discovery,
        caller,
        connection,
        peer: peer.map(|peer| peer.0),
        leaving: leaving.map(|leaving| leaving.0).unwrap_or_default(),
        requests,
        replies,
    };
    let left = status.clone();
    tokio::spawn(async move { stream.run(&left).await });
    let body = axum::body::Body::new(body::Responses::new(receiver, status));
    let mut response = body.into_response();
    let grpc = HeaderValue::from_static("application/grpc");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, grpc);
    response
}

/// Whether a stream's end is worth counting as a fault of ours.
fn is_internal(status: &Status) -> bool {
    matches!(status.code(), Code::Internal | Code::Unknown)
}

/// A client that comes back names all it holds, some 90 bytes a resource: 700,000 of them. Only a
/// caller that has proved who it is gets this far.
const LARGEST_REQUEST: usize = 64 << 20;
/// A client that opens a stream and says nothing is not one.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
