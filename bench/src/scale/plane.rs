//! The control plane of a large mesh: answers that were encoded before anybody asks, so that what
//! is measured is the proxy, and pushes that follow one another as fast as they are acknowledged.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context as TaskContext, Poll},
};

use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::BoxFuture, stream};
use prost::Message;
use tokio::sync::{Notify, mpsc};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{Service, http},
    server::{Grpc, NamedService, StreamingService},
};

/// Serves one mesh to whoever asks.
#[derive(Clone)]
pub(super) struct ControlPlane(Arc<Inner>);

struct Inner {
    /// The answers to the openings, encoded.
    addresses: Bytes,
    policies: Bytes,
    /// Where pushes to the stream that opened last go.
    stream: Mutex<Option<mpsc::UnboundedSender<Bytes>>>,
    pushed: AtomicU64,
    acknowledged: AtomicU64,
    heard: Notify,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl ControlPlane {
    pub(super) fn of(addresses: Vec<Resource>) -> Self {
        let answer = |type_url: &str, resources| {
            let response = DeltaDiscoveryResponse {
                system_version_info: "1".into(),
                resources,
                type_url: type_url.into(),
                nonce: type_url.into(),
                removed_resources: Vec::new(),
            };
            response.encode_to_vec().into()
        };
        Self(Arc::new(Inner {
            addresses: answer(api::ADDRESS_TYPE, addresses),
            policies: answer(api::AUTHORIZATION_TYPE, Vec::new()),
            stream: Mutex::default(),
            pushed: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            heard: Notify::new(),
        }))
    }

    /// Sends one resource; returns when it was acknowledged, or refused with an error.
    pub(super) async fn push(&self, resource: Resource) -> anyhow::Result<()> {
        let number = self.0.pushed.fetch_add(1, Ordering::Relaxed) + 1;
        let push = DeltaDiscoveryResponse {
            system_version_info: "1".into(),
            resources: vec![resource],
            type_url: api::ADDRESS_TYPE.into(),
            nonce: format!("{PUSH}{number}"),
            removed_resources: Vec::new(),
        };
        let sent = match self.0.stream.lock() {
            Ok(stream) => stream
                .as_ref()
                .map(|stream| stream.send(push.encode_to_vec().into())),
            Err(_) => None,
        };
        anyhow::ensure!(matches!(sent, Some(Ok(()))), "no stream is open");
        loop {
            let heard = self.0.heard.notified();
            match self.0.acknowledged.load(Ordering::Acquire) {
                REFUSED => anyhow::bail!("a push was refused"),
                acknowledged if acknowledged >= number => return Ok(()),
                _ => heard.await,
            }
        }
    }
}

impl Inner {
    /// What to answer to a request, if anything.
    fn on(&self, request: &DeltaDiscoveryRequest) -> Option<Bytes> {
        if let Some(number) = request.response_nonce.strip_prefix(PUSH) {
            let number = match &request.error_detail {
                None => number.parse().unwrap_or(REFUSED),
                Some(_) => REFUSED,
            };
            self.acknowledged.store(number, Ordering::Release);
            self.heard.notify_waiters();
            return None;
        }
        match &*request.type_url {
            _ if !request.response_nonce.is_empty() => None,
            api::ADDRESS_TYPE => Some(self.addresses.clone()),
            _ => Some(self.policies.clone()),
        }
    }
}

impl StreamingService<DeltaDiscoveryRequest> for ControlPlane {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let (push, pushes) = mpsc::unbounded_channel();
        if let Ok(mut stream) = self.0.stream.lock() {
            *stream = Some(push);
        }
        let plane = self.0.clone();
        let answers = request.into_inner().filter_map(move |request| {
            ready(match request {
                Ok(request) => plane.on(&request).map(Ok),
                Err(status) => Some(Err(status)),
            })
        });
        let pushes = stream::unfold(pushes, |mut pushes| async {
            Some((Ok(pushes.recv().await?), pushes))
        });
        ready(Ok(Response::new(Box::pin(stream::select(answers, pushes)))))
    }
}

impl NamedService for ControlPlane {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<http::Request<Body>> for ControlPlane {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let plane = self.clone();
        Box::pin(async move { Ok(Grpc::new(Encoded).streaming(plane, request).await) })
    }
}

/// Responses that are encoded already.
#[derive(Debug, Default, Clone, Copy)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = DeltaDiscoveryRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, response: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(to, response);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = DeltaDiscoveryRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let request = DeltaDiscoveryRequest::decode(from);
        request
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

/// What the nonces of pushes begin with.
const PUSH: &str = "push-";
/// In place of the number of the push that was acknowledged last.
const REFUSED: u64 = u64::MAX;
