//! A control plane over a real socket: delta discovery as ours serves it, silent or away when a test wants it so, and a
//! record of what it was asked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use api::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, workload as wire};
use futures_util::{Stream, StreamExt};
use mesh::names::host_name;
use mesh::{Catalog, Changed, Entry, Payload, Reply, Session, Update};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// The control plane of a world.
pub(crate) struct Control {
    pub(crate) address: SocketAddr,
    desk: Arc<Desk>,
}

/// What all streams share.
struct Desk {
    shelf: Mutex<Shelf>,
    news: broadcast::Sender<(&'static str, Arc<str>)>,
    asked: Mutex<Vec<Asked>>,
    /// Whether requests are taken.
    talks: watch::Sender<bool>,
    /// Until it goes away.
    open: Mutex<CancellationToken>,
}

/// One request that names something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) node: String,
    pub(crate) type_url: String,
    pub(crate) subscribe: Vec<String>,
    pub(crate) unsubscribe: Vec<String>,
}

impl Control {
    pub(crate) async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let desk = Arc::new(Desk {
            shelf: Mutex::default(),
            news: broadcast::channel(1024).0,
            asked: Mutex::default(),
            talks: watch::Sender::new(true),
            open: Mutex::default(),
        });
        let address = listener.local_addr().unwrap();
        let service = AggregatedDiscoveryServiceServer::new(Server(desk.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Arc::new(Self { address, desk })
    }

    /// Its streams end, and no other lasts.
    pub(crate) fn goes_away(&self) {
        self.desk.open.lock().unwrap().cancel();
    }

    /// Whether no stream is open.
    pub(crate) fn is_alone(&self) -> bool {
        self.desk.talks.receiver_count() == 0
    }

    pub(crate) fn comes_back(&self) {
        *self.desk.open.lock().unwrap() = CancellationToken::new();
    }

    /// It takes no requests, and answers none, until it talks again.
    pub(crate) fn talks(&self, talks: bool) {
        self.desk.talks.send_replace(talks);
    }

    /// Everything it was asked by a node, but acknowledgements.
    pub(crate) fn asked_by(&self, node: &str, type_url: &str) -> Vec<Asked> {
        let asked = self.desk.asked.lock().unwrap();
        let of = |asked: &&Asked| asked.node == node && asked.type_url == type_url;
        asked.iter().filter(of).cloned().collect()
    }

    /// The names of addresses that a node has asked for.
    pub(crate) fn names_asked_by(&self, node: &str) -> Vec<String> {
        let asked = self.asked_by(node, ADDRESS_TYPE).into_iter();
        asked.flat_map(|asked| asked.subscribe).collect()
    }

    /// Takes over what changed, and tells whom it concerns.
    pub(crate) fn take(&self, update: Update) {
        let mut changed = Vec::new();
        let mut shelf = self.desk.shelf.lock().unwrap();
        for (name, payload) in update.addresses.set {
            let address = payload.decode().unwrap();
            shelf.set(ADDRESS_TYPE, entry(name.clone(), &address));
            changed.push((ADDRESS_TYPE, name));
        }
        for name in update.addresses.removed {
            shelf.remove(ADDRESS_TYPE, &name);
            changed.push((ADDRESS_TYPE, name));
        }
        for (name, payload) in update.authorizations.set {
            let Payload::Message(policy) = payload else {
                panic!("tests write messages")
            };
            let entry = bare(name.clone(), policy.encode_to_vec());
            shelf.set(AUTHORIZATION_TYPE, entry);
            changed.push((AUTHORIZATION_TYPE, name));
        }
        drop(shelf);
        for news in changed {
            let _ = self.desk.news.send(news); // nobody may be listening
        }
    }

    /// Gives out what nobody can read under this name.
    pub(crate) fn garbles(&self, name: &str, alias: &str) {
        let mut entry = bare(name.into(), b"no address".to_vec());
        entry.aliases = [alias.into()].into();
        self.desk.shelf.lock().unwrap().set(ADDRESS_TYPE, entry);
        let _ = self.desk.news.send((ADDRESS_TYPE, name.into()));
    }
}

fn bare(name: Arc<str>, encoded: Vec<u8>) -> Entry {
    Entry {
        version: format!(
            "{:x}",
            encoded
                .iter()
                .fold(7u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte))
        )
        .into(),
        name,
        encoded: encoded.into(),
        aliases: [].into(),
        node: None,
        services: [].into(),
    }
}

fn entry(name: Arc<str>, address: &wire::Address) -> Entry {
    let alias = |network: &str, ip: &[u8], length: Option<u32>| -> Arc<str> {
        let ip: IpAddr = match ip.len() {
            4 => <[u8; 4]>::try_from(ip).unwrap().into(),
            _ => <[u8; 16]>::try_from(ip).unwrap().into(),
        };
        match length {
            Some(length) => format!("{network}/{ip}/{length}").into(),
            None => format!("{network}/{ip}").into(),
        }
    };
    let mut entry = bare(name, address.encode_to_vec());
    match address.r#type.as_ref().unwrap() {
        wire::address::Type::Workload(workload) => {
            let addresses = workload.addresses.iter();
            entry.aliases = addresses
                .map(|ip| alias(&workload.network, ip, None))
                .collect();
            entry.services = workload
                .services
                .keys()
                .map(|name| Arc::from(&**name))
                .collect();
            entry.node =
                Some(workload.node.as_str().into()).filter(|node: &Arc<str>| !node.is_empty());
        }
        wire::address::Type::Service(service) => {
            let addresses = service.addresses.iter();
            entry.aliases = addresses
                .map(|at| alias(&at.network, &at.address, at.length))
                .chain([host_name(&service.hostname).into()])
                .collect();
        }
    }
    entry
}

#[derive(Default)]
struct Shelf(BTreeMap<&'static str, BTreeMap<Arc<str>, Arc<Entry>>>);

impl Shelf {
    fn set(&mut self, type_url: &'static str, entry: Entry) {
        let of = self.0.entry(type_url).or_default();
        of.insert(entry.name.clone(), Arc::new(entry));
    }

    fn remove(&mut self, type_url: &'static str, name: &str) {
        self.0.entry(type_url).or_default().remove(name);
    }
}

impl Catalog for Shelf {
    fn version(&self) -> &str {
        "1"
    }

    fn serves(&self, type_url: &str) -> bool {
        [ADDRESS_TYPE, AUTHORIZATION_TYPE].contains(&type_url)
    }

    fn all<'a>(&'a self, type_url: &str) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a> {
        Box::new(self.0.get(type_url).into_iter().flat_map(BTreeMap::values))
    }

    fn named(&self, type_url: &str, name: &str) -> Option<&Arc<Entry>> {
        self.0.get(type_url)?.get(name)
    }
}

struct Server(Arc<Desk>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(16);
        let (desk, open) = (self.0.clone(), self.0.open.lock().unwrap().clone());
        if open.is_cancelled() {
            return Err(Status::unavailable("away"));
        }
        let stream = async move { desk.stream(request.into_inner(), &responses).await };
        tokio::spawn(async move { open.run_until_cancelled(stream).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

type Responses = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

impl Desk {
    async fn stream(&self, mut requests: Streaming<DeltaDiscoveryRequest>, responses: &Responses) {
        let (mut session, mut news) = (Session::new(), self.news.subscribe());
        let mut talks = self.talks.subscribe();
        loop {
            let replies = tokio::select! {
                request = requests.next() => {
                    let Some(Ok(request)) = request else { return };
                    let _ = talks.wait_for(|talks| *talks).await;
                    self.answer(&mut session, request)
                }
                Ok((type_url, name)) = news.recv() => {
                    let changed = Changed { type_url, names: &[name] };
                    session.on_push(&*self.shelf.lock().unwrap(), &[changed])
                }
            };
            for reply in replies {
                if responses.send(Ok(reply.into_response())).await.is_err() {
                    return;
                }
            }
        }
    }

    fn answer(&self, session: &mut Session, request: DeltaDiscoveryRequest) -> Vec<Reply> {
        let is_first = request.node.is_some();
        let (type_url, subscribe, unsubscribe) = (
            request.type_url.clone(),
            request.resource_names_subscribe.clone(),
            request.resource_names_unsubscribe.clone(),
        );
        let answer = session.on_request(&*self.shelf.lock().unwrap(), request);
        assert_eq!(
            answer.nack.filter(|nack| !nack.message.contains("garbled")),
            None
        );
        if is_first || !subscribe.is_empty() || !unsubscribe.is_empty() {
            let node = session
                .node()
                .map(|node| mesh::node::metadata(node, "NODE_NAME"));
            self.asked.lock().unwrap().push(Asked {
                node: node.unwrap_or_default().to_owned(),
                type_url,
                subscribe,
                unsubscribe,
            });
        }
        Vec::from_iter(answer.reply)
    }
}
