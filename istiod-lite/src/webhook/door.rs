//! A request, from its first byte to its answer.
//!
//! 1. only `POST /validate` and `POST /inject`, and only JSON
//! 2. its body, bounded in bytes, in time, and together with all others in memory
//! 3. read and judged on a thread of its own, few at a time
//! 4. the answer; whatever happens there is one, with what to look at

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Judge, review};
use crate::inject::Injector;

/// Where requests are worked on.
pub(super) struct Desk {
    judge: Arc<Judge>,
    /// None where nobody said what to put into pods.
    injector: Option<Arc<Injector>>,
    /// KiB of bodies that may be there at once.
    memory: Arc<Semaphore>,
    /// Reviews that are worked on at once.
    places: Arc<Semaphore>,
}

/// No judgement; the API server is told why and does as its `failurePolicy` says.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("only POST /validate and POST /inject are answered here")]
    Elsewhere(StatusCode),
    #[error(
        "this control plane gives pods no proxies: it was not told of which images (AMBIT_ZTUNNEL_IMAGE, AMBIT_CNI_IMAGE)"
    )]
    NoInjector,
    #[error("a review is application/json, and this is {0:?}")]
    Kind(String),
    #[error("a review of more than {LARGEST} bytes")]
    TooLarge,
    #[error("the review did not arrive within {} seconds", PATIENCE.as_secs())]
    TooSlow,
    #[error("too many reviews at once, try again")]
    Busy,
    #[error("the review was cut off")]
    CutOff,
    #[error("not an AdmissionReview: {0}")]
    Unreadable(String),
    #[error("a fault of ours, see the log of istiod")]
    Ours,
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Refused::Elsewhere(status) => *status,
            Refused::NoInjector => StatusCode::NOT_FOUND,
            Refused::Kind(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Refused::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refused::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Refused::Busy => StatusCode::TOO_MANY_REQUESTS,
            Refused::CutOff | Refused::Unreadable(_) => StatusCode::BAD_REQUEST,
            Refused::Ours => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Desk {
    pub(super) fn new(judge: Judge, injector: Option<Injector>) -> Self {
        Self {
            judge: Arc::new(judge),
            injector: injector.map(Arc::new),
            memory: Arc::new(Semaphore::new(MEMORY)),
            places: Arc::new(Semaphore::new(PLACES)),
        }
    }

    /// The answer to a request.
    pub(super) async fn answer<B>(&self, request: Request<B>, peer: SocketAddr) -> Response<Full>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        match self.review(request).await {
            Ok(answer) => respond(StatusCode::OK, "application/json", answer),
            Err(refused) => {
                tracing::debug!(%peer, reason = %refused, "no judgement");
                let text = format!("{refused}\n");
                respond(refused.status(), "text/plain; charset=utf-8", text.into())
            }
        }
    }

    async fn review<B>(&self, request: Request<B>) -> Result<Bytes, Refused>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let injector = match request.uri().path() {
            "/validate" => None,
            "/inject" => Some(self.injector.clone()),
            _ => return Err(Refused::Elsewhere(StatusCode::NOT_FOUND)),
        };
        if request.method() != Method::POST {
            return Err(Refused::Elsewhere(StatusCode::METHOD_NOT_ALLOWED));
        }
        let injector = injector
            .map(|it| it.ok_or(Refused::NoInjector))
            .transpose()?;
        is_json(request.headers())?;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let arrived = tokio::time::timeout_at(deadline, self.read(request.into_body()));
        let (body, memory) = arrived.await.map_err(|_| Refused::TooSlow)??;
        // A long one takes, read, a multiple of what it took to write, and is alone.
        let weight = if body.len() > LONG { PLACES as u32 } else { 1 };
        let place = self.places.clone().acquire_many_owned(weight);
        let place = tokio::time::timeout_at(deadline, place).await;
        let place = place
            .map_err(|_| Refused::Busy)?
            .map_err(|_| Refused::Busy)?;
        let judge = self.judge.clone();
        let judged = tokio::task::spawn_blocking(move || {
            let answer = match injector {
                None => review::answer(&judge, &body),
                Some(injector) => review::inject(&injector, &judge.metrics, &body),
            };
            drop((place, memory));
            answer
        });
        let answer = judged.await.map_err(|error| {
            tracing::error!(%error, "a review could not be judged");
            Refused::Ours
        })?;
        answer.map_err(|error| Refused::Unreadable(error.to_string()))
    }

    /// The body, and what holds its place in memory.
    async fn read<B>(&self, mut body: B) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Refused>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (mut bytes, mut memory) = (Vec::new(), None::<OwnedSemaphorePermit>);
        while let Some(frame) =
            std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context)).await
        {
            let Ok(data) = frame.map_err(|_| Refused::CutOff)?.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > LARGEST {
                return Err(Refused::TooLarge);
            }
            bytes.extend_from_slice(&data);
            let held = memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let needed = bytes.len().div_ceil(1024).saturating_sub(held);
            let more = u32::try_from(needed).map_err(|_| Refused::TooLarge)?;
            let more = self.memory.clone().try_acquire_many_owned(more);
            let more = more.map_err(|_| Refused::Busy)?;
            match &mut memory {
                Some(memory) => memory.merge(more),
                None => memory = Some(more),
            }
        }
        Ok((bytes, memory))
    }
}

/// Who does not say what it sends is believed to send what is asked for here.
fn is_json(headers: &http::HeaderMap) -> Result<(), Refused> {
    let Some(said) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let said = String::from_utf8_lossy(said.as_bytes());
    let kind = said.split(';').next().unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(Refused::Kind(said.chars().take(LONGEST_KIND).collect())),
    }
}

/// A body that is there as a whole.
pub(super) type Full = axum::body::Body;

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// An API server takes at most 3 MiB, etcd keeps at most 1.5; a review of a change holds the old one too.
const LARGEST: usize = 5 * 1024 * 1024;
/// Of what a caller says its body is, in an answer.
const LONGEST_KIND: usize = 100;
/// Longer than any policy that somebody wrote by hand.
const LONG: usize = 256 * 1024;
/// KiB of all bodies together.
const MEMORY: usize = 32 * 1024;
/// At once; a review takes a fraction of a millisecond.
const PLACES: usize = 4;
/// For a body to arrive and to get its turn: as long as an API server waits for an answer by default.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
