//! The client, the server it is connected to over a real socket, and the mesh it fills.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use api::{security, workload as wire};
use mesh::{
    Changed, ClientConfig, ClientEvent, Demand, Entry, Mesh, Payload, Session, Wish, run_client,
};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::shelf::{Shelf, entry};

/// Nothing that a test waits for takes as long, with the largest mesh on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// One stream of a client, in the hands of the test.
pub(crate) struct Stream {
    pub(crate) requests: Streaming<DeltaDiscoveryRequest>,
    pub(crate) responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    pub(crate) session: Session,
}

/// Hands every stream to the test.
struct Server(mpsc::Sender<Stream>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(16);
        let stream = Stream {
            requests: request.into_inner(),
            responses,
            session: Session::new(),
        };
        self.0
            .send(stream)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

impl Stream {
    pub(crate) async fn next(&mut self) -> DeltaDiscoveryRequest {
        let next = tokio::time::timeout(PATIENCE, self.requests.next()).await;
        next.expect("no request comes").unwrap().unwrap()
    }

    /// Takes a request and answers it as a server does.
    pub(crate) async fn serve(&mut self, shelf: &Shelf) -> DeltaDiscoveryRequest {
        let request = self.next().await;
        let answer = self.session.on_request(shelf, request.clone());
        if let Some(reply) = answer.reply {
            self.responses
                .send(Ok(reply.into_response()))
                .await
                .unwrap();
        }
        request
    }

    pub(crate) async fn push(&mut self, shelf: &Shelf, type_url: &str, names: &[&str]) {
        let names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
        for reply in self.session.on_push(
            shelf,
            &[Changed {
                type_url,
                names: &names,
            }],
        ) {
            self.responses
                .send(Ok(reply.into_response()))
                .await
                .unwrap();
        }
    }
}

pub(crate) fn pod(name: &str, version: &str) -> Entry {
    let workload = wire::Workload {
        uid: name.to_owned(),
        name: name.to_owned(),
        workload_name: version.to_owned(),
        ..Default::default()
    };
    let address = wire::Address {
        r#type: Some(wire::address::Type::Workload(workload)),
    };
    Entry {
        encoded: address.encode_to_vec().into(),
        aliases: [Arc::from(format!("/ip-of-{name}"))].into(),
        ..entry(name, version)
    }
}

pub(crate) fn policy(name: &str) -> Entry {
    let policy = security::Authorization {
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        ..Default::default()
    };
    Entry {
        encoded: policy.encode_to_vec().into(),
        ..entry(&format!("ns/{name}"), "1")
    }
}

/// Whoever follows resources refuses what cannot be decoded.
fn refused(
    (name, payload): (Arc<str>, Payload<api::waypoint::Resource>),
) -> Option<mesh::Rejected> {
    let reason = payload.decode().err()?;
    Some(mesh::Rejected { name, reason })
}

/// A client that runs until the harness is dropped, and its mesh.
pub(crate) struct Harness {
    pub(crate) streams: mpsc::Receiver<Stream>,
    events: mpsc::UnboundedReceiver<String>,
    /// What the client said it waits before each attempt.
    pub(crate) retries: mpsc::UnboundedReceiver<Duration>,
    pub(crate) demands: mpsc::Sender<Demand>,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) cancel: CancellationToken,
    pub(crate) client: tokio::task::JoinHandle<()>,
}

impl Harness {
    pub(crate) async fn start(addresses: Wish) -> Self {
        Self::with(|config| config.addresses = addresses).await
    }

    /// The server takes requests of at most 4 MiB, as Istio's does: it is gRPC's default.
    pub(crate) async fn with(change: impl FnOnce(&mut ClientConfig)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (send, streams) = mpsc::channel(4);
        let service = AggregatedDiscoveryServiceServer::new(Server(send));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let (event, events) = mpsc::unbounded_channel();
        let (retry, retries) = mpsc::unbounded_channel();
        let (demands, demanded) = mpsc::channel(4);
        let (mesh, mut writer) = Mesh::new();
        let cancel = CancellationToken::new();
        let mut config = ClientConfig::new(Node {
            id: "ztunnel~me".to_owned(),
            ..Default::default()
        });
        config.longest_wait = Duration::from_millis(20);
        change(&mut config);
        let connect = move || async move {
            let channel = tonic::transport::Endpoint::try_from(format!("http://{address}"))
                .unwrap()
                .connect_lazy();
            Ok::<_, Infallible>(channel)
        };
        let token = cancel.clone();
        let client = tokio::spawn(async move {
            let tell = move |what: ClientEvent<'_>| {
                let text = match what {
                    ClientEvent::Connected => "connected".to_owned(),
                    ClientEvent::Applied {
                        type_url,
                        set,
                        removed,
                        rejected,
                        bytes,
                    } => {
                        assert!(bytes > 0, "a response has a size");
                        let rejected: Vec<_> = rejected.iter().map(|found| &*found.name).collect();
                        format!(
                            "{} +{set} -{removed} {rejected:?}",
                            type_url.rsplit('.').next().unwrap()
                        )
                    }
                    ClientEvent::Disconnected { reason, retry_in } => {
                        let _ = retry.send(retry_in);
                        format!("disconnected {reason:?}")
                    }
                };
                let _ = event.send(text); // the test may have seen enough
            };
            run_client(
                connect,
                config,
                Some(demanded),
                move |mut update| {
                    let resources = std::mem::take(&mut update.resources).set;
                    let mut rejected = writer.apply(update);
                    rejected.extend(resources.into_iter().filter_map(refused));
                    rejected
                },
                tell,
                token,
            )
            .await;
        });
        Self {
            streams,
            events,
            retries,
            demands,
            mesh,
            cancel,
            client,
        }
    }

    pub(crate) async fn told(&mut self) -> String {
        let told = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        told.expect("the client tells nothing").unwrap()
    }

    pub(crate) async fn hears(&mut self, expected: &str) {
        assert_eq!(self.told().await, expected);
    }

    pub(crate) fn pods(&self) -> Vec<String> {
        let snapshot = self.mesh.load();
        let mut pods: Vec<_> = snapshot
            .workloads()
            .map(|workload| format!("{}:{}", workload.uid, workload.workload_name))
            .collect();
        pods.sort();
        pods
    }
}
