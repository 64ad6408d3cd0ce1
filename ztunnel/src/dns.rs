//! Answers DNS for names of the mesh inside pods, and relays everything else untouched.
//!
//! 1. a query arrives on the pod's loopback, redirected by its packet rules   ([`Dns::serve`])
//! 2. A and AAAA of mesh names are answered from the snapshot                 (`names`, pure)
//! 3. where not everybody is followed, who may have the name is asked for    (`Dns::ask`, `names`)
//! 4. anything else goes to the upstream resolvers as it is                   (`upstream`)
//!
//! What is known is answered inside the receiving loop, relayed queries and those that ask are tasks with a bound and a
//! deadline: neither a dead upstream nor a dead control plane ever delays a name that is known, and no name waits for another.

mod names;
mod pace;
mod resolv;
mod upstream;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use mesh::{Mesh, NamespacedHost, Network, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};

use crate::config::Config;
use crate::metrics::{DnsLabels, DnsMetrics, DnsSeries, Protocol};
use crate::on_demand::OnDemand;
use crate::pod::Pod;
use names::{Found, Names};
use pace::Pace;
pub use resolv::Resolv;
use upstream::{HEADER, framed};
pub use upstream::{RelayError, Upstream};

/// The DNS proxy of this node; every pod has its own sockets.
#[derive(Debug)]
pub struct Dns {
    mesh: Arc<Mesh>,
    network: Network,
    cluster_domain: String,
    search: Vec<String>,
    upstream: Upstream,
    metrics: DnsMetrics,
    /// Where not everybody is followed.
    on_demand: Option<Arc<OnDemand>>,
    /// Queries under way on the whole node: relayed ones, and those that ask.
    in_flight: Arc<Semaphore>,
}

impl Dns {
    /// A proxy that relays to the servers of `resolv`, and asks `on_demand` for names that may be the mesh's.
    pub fn new(
        mesh: Arc<Mesh>,
        config: &Config,
        resolv: Resolv,
        metrics: DnsMetrics,
        on_demand: Option<Arc<OnDemand>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            mesh,
            network: Network::new(&*config.network),
            cluster_domain: config.cluster_domain.to_ascii_lowercase(),
            search: resolv.search,
            upstream: Upstream::new(resolv.servers),
            metrics,
            on_demand,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_NODE)),
        })
    }

    /// Serves one pod on its sockets until its drain is over: its open connections go on, and so do the names that
    /// the applications at their ends ask for. The drain does not wait for any of this.
    pub fn serve(self: Arc<Self>, pod: Arc<Pod>, udp: Arc<UdpSocket>, tcp: Arc<TcpListener>) {
        let client = Arc::new(Client {
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_POD)),
            pace: Mutex::new(Pace::new(Instant::now())),
            pod,
        });
        until_drained(&client, self.clone().serve_udp(client.clone(), udp));
        until_drained(&client, self.serve_tcp(client.clone(), tcp));
    }

    async fn serve_udp(self: Arc<Self>, client: Arc<Client>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; LARGEST_QUERY];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An earlier answer could not be delivered: the kernel's way to say so.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => {
                    tracing::debug!(pod = %client.pod.name, %error, "dns: cannot receive");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let query = &buffer[..length];
            match self.take(&client, query, Protocol::Udp) {
                Step::Drop => {}
                Step::Answer(answer) => {
                    let _ = socket.send_to(&answer, from).await;
                }
                Step::Relay(relay) => {
                    let (dns, client, socket, query) =
                        (self.clone(), client.clone(), socket.clone(), query.to_vec());
                    until_drained(&client.clone(), async move {
                        let answer = dns.relay(&client, &query, relay, Protocol::Udp).await;
                        let _ = socket.send_to(&answer, from).await;
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, client: Arc<Client>, listener: Arc<TcpListener>) {
        let slots = Arc::new(Semaphore::new(TCP_CONNECTIONS_POD));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            // Beyond the bound: closed at once; resolvers try again.
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                continue;
            };
            let (dns, client) = (self.clone(), client.clone());
            until_drained(&client.clone(), async move {
                if let Err(error) = dns.serve_stream(&client, stream).await {
                    tracing::debug!(pod = %client.pod.name, %error, "dns: connection ended early");
                }
                drop(slot);
            });
        }
    }

    /// Queries on one TCP connection, until the client is done or idle. Each is answered when its answer is there, whatever
    /// was asked before it (RFC 7766, 6.2.1.1).
    async fn serve_stream(
        self: &Arc<Self>,
        client: &Arc<Client>,
        stream: TcpStream,
    ) -> io::Result<()> {
        let (from, mut to) = stream.into_split();
        let (answers, mut answered) = mpsc::channel(UNSENT);
        let taking = self.take_stream(client, from, answers);
        let telling = async {
            while let Some(answer) = answered.recv().await {
                let telling = timeout(TCP_IDLE, to.write_all(&answer)).await;
                telling.unwrap_or_else(|slow| Err(slow.into()))?;
            }
            Ok(())
        };
        tokio::try_join!(taking, telling).map(|_| ())
    }

    async fn take_stream(
        self: &Arc<Self>,
        client: &Arc<Client>,
        mut from: OwnedReadHalf,
        answers: mpsc::Sender<Vec<u8>>,
    ) -> io::Result<()> {
        loop {
            let query = match timeout(TCP_IDLE, read_framed(&mut from)).await {
                Ok(Ok(query)) => query,
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(()),
            };
            match self.take(client, &query, Protocol::Tcp) {
                Step::Drop => return Ok(()),
                Step::Answer(answer) => {
                    // Nobody takes it: then the other half has failed, and says why.
                    let _ = answers.send(framed(&answer)?).await;
                }
                Step::Relay(relay) => {
                    let (dns, client, answers) = (self.clone(), client.clone(), answers.clone());
                    until_drained(&client.clone(), async move {
                        let answer = dns.relay(&client, &query, relay, Protocol::Tcp).await;
                        if let Ok(answer) = framed(&answer) {
                            let _ = answers.send(answer).await;
                        }
                    });
                }
            }
        }
    }

    /// Decides what becomes of a query; answers it if it is about the mesh.
    fn take(&self, client: &Client, query: &[u8], protocol: Protocol) -> Step {
        if query.len() < HEADER || query[2] & 0x80 != 0 {
            return Step::Drop; // not a query: answering it could start a loop
        }
        let message = Message::from_vec(query).ok();
        let labels = client.labels(
            message.as_ref().and_then(|message| message.queries.first()),
            protocol,
        );
        let counted = self.metrics.of(labels);
        counted.requests.fetch_add(1, Relaxed);
        let known = || self.answer(message.as_ref()?, client, protocol);
        let asks = message
            .as_ref()
            .is_some_and(|message| !self.unsettled(message, client).is_empty());
        if !asks && let Some(answer) = known() {
            return Step::Answer(answer);
        }
        let size = message.as_ref().map_or(PLAIN_UDP, largest_answer);
        let permits = self
            .in_flight
            .clone()
            .try_acquire_owned()
            .ok()
            .zip(client.in_flight.clone().try_acquire_owned().ok());
        match permits {
            Some((node, pod)) => Step::Relay(Relay {
                size,
                counted,
                asks,
                _permits: (node, pod),
            }),
            None => Step::Answer(known().unwrap_or_else(|| {
                counted.upstream_failures.fetch_add(1, Relaxed);
                refused(query, message.as_ref(), ResponseCode::ServFail)
            })),
        }
    }

    fn answer(&self, query: &Message, client: &Client, protocol: Protocol) -> Option<Vec<u8>> {
        let question = ours(query)?;
        let snapshot = self.mesh.load();
        let names = self.names(&snapshot, client);
        let response = respond(query, question, &names)?;
        let limit = if protocol == Protocol::Udp {
            largest_answer(query)
        } else {
            u16::MAX
        };
        fitting(response, usize::from(limit))
    }

    fn names<'a>(&'a self, snapshot: &'a Snapshot, client: &'a Client) -> Names<'a> {
        Names {
            snapshot,
            network: &self.network,
            cluster_domain: &self.cluster_domain,
            search: &self.search,
            namespace: &client.pod.namespace,
        }
    }

    /// Whom the control plane must be asked for before it is known what is asked.
    fn unsettled(&self, query: &Message, client: &Client) -> Vec<NamespacedHost> {
        let (Some(on_demand), Some(question)) = (&self.on_demand, ours(query)) else {
            return Vec::new();
        };
        let text = spelled(question);
        if is_localhost(&text) {
            return Vec::new();
        }
        let snapshot = self.mesh.load();
        let [first, others] = self.names(&snapshot, client).wanted(&text);
        let found = |host: &NamespacedHost| snapshot.service(&host.namespace, &host.host).is_some();
        let is_found = first.iter().any(found);
        let unsettled = on_demand.unsettled(&snapshot, first);
        match unsettled.is_empty() && !is_found {
            true => on_demand.unsettled(&snapshot, others),
            false => unsettled,
        }
    }

    /// The answer, as soon as the control plane has said who is asked for; as far as it is known if it does not.
    async fn ask(&self, client: &Client, query: &[u8], protocol: Protocol) -> Option<Vec<u8>> {
        let (query, on_demand) = (Message::from_vec(query).ok()?, self.on_demand.as_ref()?);
        for _ in 0..ROUNDS {
            let unsettled = self.unsettled(&query, client);
            if unsettled.is_empty() {
                break;
            }
            if !client.may_ask_for(unsettled.len()) {
                on_demand.passed_over();
                break;
            }
            if !on_demand.settle(&unsettled).await {
                break;
            }
        }
        self.answer(&query, client, protocol)
    }

    async fn relay(
        &self,
        client: &Client,
        query: &[u8],
        relay: Relay,
        protocol: Protocol,
    ) -> Vec<u8> {
        if relay.asks
            && let Some(answer) = self.ask(client, query, protocol).await
        {
            return answer;
        }
        relay.counted.upstream_requests.fetch_add(1, Relaxed);
        let started = Instant::now();
        let netns = &client.pod.netns;
        let answered = match protocol {
            Protocol::Udp => self.upstream.udp(netns, query, relay.size).await,
            Protocol::Tcp => self.upstream.tcp(netns, query).await,
        };
        relay.counted.took(started.elapsed());
        answered.unwrap_or_else(|error| {
            relay.counted.upstream_failures.fetch_add(1, Relaxed);
            tracing::debug!(pod = %client.pod.name, %error, "dns: not answered");
            refused(
                query,
                Message::from_vec(query).ok().as_ref(),
                ResponseCode::ServFail,
            )
        })
    }
}

/// A pod that asks.
#[derive(Debug)]
struct Client {
    pod: Arc<Pod>,
    /// Relayed queries of this pod: one that asks without end must not use up the node's share.
    in_flight: Arc<Semaphore>,
    /// Nor keep the control plane busy.
    pace: Mutex<Pace>,
}

impl Client {
    fn may_ask_for(&self, names: usize) -> bool {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.allows(names, Instant::now())
    }

    fn labels(&self, question: Option<&Query>, protocol: Protocol) -> DnsLabels {
        let workload = self
            .pod
            .known()
            .map(|known| known.workload.workload_name.clone());
        DnsLabels::new(
            question.map(Query::query_type),
            protocol,
            workload,
            self.pod.namespace.clone(),
        )
    }
}

enum Step {
    Drop,
    Answer(Vec<u8>),
    Relay(Relay),
}

struct Relay {
    size: u16,
    counted: DnsSeries,
    /// The control plane is asked first.
    asks: bool,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// The question, if it is one that we have answers to.
fn ours(query: &Message) -> Option<&Query> {
    let [question] = &query.queries[..] else {
        return None;
    };
    let ours = query.metadata.message_type == MessageType::Query
        && query.metadata.op_code == OpCode::Query
        && question.query_class() == DNSClass::IN
        && matches!(question.query_type(), RecordType::A | RecordType::AAAA);
    ours.then_some(question)
}

/// The name that is asked for, in lower case, without the last dot.
fn spelled(question: &Query) -> String {
    let mut text = question.name().to_ascii().to_ascii_lowercase();
    text.truncate(text.trim_end_matches('.').len());
    text
}

/// It never leaves the pod (RFC 6761, 6.3).
fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// The answer to a question about the mesh; `None` if it is not about the mesh.
fn respond(query: &Message, question: &Query, names: &Names<'_>) -> Option<Message> {
    let asked = question.name();
    let text = spelled(question);
    let localhost = is_localhost(&text);
    let (found, ttl) = if localhost {
        (loopback(), LOCALHOST_TTL)
    } else {
        (names.find(&text)?, TTL)
    };

    let mut metadata = Metadata::response_from_request(&query.metadata);
    metadata.recursion_available = true;
    metadata.authoritative = !localhost;
    let mut response = Message::response(query.metadata.id, OpCode::Query);
    response.metadata = metadata;
    response.add_query(question.clone());

    let mut owner = asked.clone();
    if let Some(alias) = &found.alias {
        let target = Name::from_ascii(format!("{alias}.")).ok()?;
        response.add_answer(Record::from_rdata(
            owner,
            ttl,
            RData::CNAME(CNAME(target.clone())),
        ));
        owner = target;
    }
    let wanted = |ip: &&IpAddr| ip.is_ipv4() == (question.query_type() == RecordType::A);
    let mut addresses: Vec<_> = found.addresses.iter().filter(wanted).collect();
    if !addresses.is_empty() {
        // Clients tend to take the first: let that be another one each time.
        let count = addresses.len();
        addresses.rotate_left(usize::from(query.metadata.id) % count);
    }
    response.add_answers(
        addresses
            .into_iter()
            .map(|ip| Record::from_rdata(owner.clone(), ttl, rdata(*ip))),
    );
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGEST_UDP_ANSWER);
        response.set_edns(edns);
    }
    Some(response)
}

fn loopback() -> Found {
    Found {
        alias: None,
        addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    }
}

fn rdata(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// In bytes, with fewer addresses and the truncation bit if it is longer than the asker takes:
/// resolvers then ask again over TCP.
fn fitting(mut response: Message, limit: usize) -> Option<Vec<u8>> {
    loop {
        let bytes = response.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        let keep = response.answers.len().checked_mul(limit)? / bytes.len();
        response.metadata.truncation = true;
        response
            .answers
            .truncate(keep.min(response.answers.len().checked_sub(1)?));
    }
}

fn largest_answer(query: &Message) -> u16 {
    query
        .edns
        .as_ref()
        .map_or(PLAIN_UDP, |edns| edns.max_payload().max(PLAIN_UDP))
}

/// An answer without content: the question again and a code.
fn refused(query: &[u8], message: Option<&Message>, code: ResponseCode) -> Vec<u8> {
    let id = u16::from_be_bytes([query[0], query[1]]);
    let mut response = Message::error_msg(id, OpCode::Query, code);
    if let Some(message) = message {
        response.metadata = Metadata::response_from_request(&message.metadata);
        response.metadata.response_code = code;
        response.add_queries(message.queries.iter().cloned());
    }
    response.to_vec().unwrap_or_default()
}

async fn read_framed(stream: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Spawns work that ends with the pod's drain, but that the drain does not wait for: it has no end of its own.
fn until_drained(client: &Client, work: impl Future<Output = ()> + Send + 'static) {
    let over = client.pod.drain.over().clone();
    tokio::spawn(async move {
        tokio::select! {
            () = over.cancelled() => {}
            () = work => {}
        }
    });
}

/// Seconds an answer may be cached. Short: names of the mesh move, and asking again is cheap.
const TTL: u32 = 30;
const LOCALHOST_TTL: u32 = 86_400;
/// Largest answer over UDP to an asker that says nothing about it (RFC 1035).
const PLAIN_UDP: u16 = 512;
/// What we say we take: fits in one packet on any path (DNS flag day 2020).
const LARGEST_UDP_ANSWER: u16 = 1232;
/// Longer queries over UDP do not exist in practice.
const LARGEST_QUERY: usize = 4096;
/// How often it is asked for one question: for whoever has the name as it stands, for everybody else, and once more for one
/// who went meanwhile.
const ROUNDS: usize = 3;
/// Relayed queries under way: at 4.5 s for a dead upstream, 400 and 50 queries a second.
const IN_FLIGHT_NODE: usize = 2048;
const IN_FLIGHT_POD: usize = 256;
/// Answers that wait for a client of a TCP connection to read; whoever does not is not asked for more.
const UNSENT: usize = 16;
const TCP_CONNECTIONS_POD: usize = 64;
/// RFC 7766 asks for seconds.
const TCP_IDLE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
