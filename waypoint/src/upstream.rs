//! Connections to endpoints, and how requests get onto them.
//!
//! 1. an endpoint and how it is reached: through the mesh, or as it is    ([`Way`]); from other networks by their
//!    gateways                                                            (`abroad`)
//! 2. a free connection to it, or a new one                               (`host`, `link`); where there may only be so
//!    many, in the order in which requests have come                      (`lobby`)
//! 3. the request; the head of the answer; the body as the client takes it (`body`)
//!
//! All connections are made with our own identity, so all clients may share them: who a client is has been judged before.

mod abroad;
mod ahead;
mod body;
mod host;
mod kept;
mod link;
mod lobby;
mod piped;
mod preamble;
mod silent;
mod stream;
mod tee;
mod tls;
mod way;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hbone::{Authority, Connect, Destination, Identity, OpenError, Pool};
use http::{Request, Response};
use hyper::body::Incoming;
use ops::threads::here;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::abroad::Gateways;
pub use self::ahead::ReadAhead;
pub use self::body::{Answer, Cut, Outgoing};
use self::host::Host;
pub(crate) use self::lobby::Ticket;
pub use self::piped::{Gone, Pipe, Piped, open_pipe, pipe};
pub use self::stream::{Carrier, Doubt, Known, Stream};
pub use self::tls::{Inside, Tls};
use self::way::Key;
pub use self::way::{NoWay, Over, Way};

/// Why an endpoint did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// It cannot prove who it is.
    #[error(transparent)]
    NoWay(#[from] NoWay),
    /// There is no tunnel.
    #[error(transparent)]
    Tunnel(#[from] OpenError),
    /// There is no connection.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// There is no TLS.
    #[error("TLS: {0}")]
    Secure(io::Error),
    /// No connection in time.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// HTTP broke.
    #[error("{}", words(.0))]
    Http(hyper::Error),
    /// HTTP broke on a connection that had been used before: the endpoint may have closed it just then.
    #[error("{}", words(.0))]
    Stale(hyper::Error),
    /// The endpoint says that it has not begun with the request: REFUSED_STREAM, or a GOAWAY that leaves it out.
    #[error("{}", words(.0))]
    Unbegun(hyper::Error),
    /// The connection was closed before the request.
    #[error("the connection was closed before the request")]
    Closed,
    /// As many requests wait for a connection as may.
    #[error("the service's limit of requests that wait for a connection is reached")]
    Overflow,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// There is no connection that several requests would have shared, and each of them is told why.
    #[error("{0}")]
    ForAll(Arc<Failed>),
}

/// A request that was not answered.
#[derive(Debug)]
pub struct Unanswered {
    /// Why.
    pub why: Failed,
    /// Itself, if nothing of it was sent.
    pub request: Option<Box<Request<Outgoing>>>,
}

impl From<Failed> for Unanswered {
    fn from(why: Failed) -> Self {
        Self { why, request: None }
    }
}

impl Unanswered {
    /// Nothing of it was sent.
    fn unsent(why: Failed, request: Request<Outgoing>) -> Self {
        Self {
            why,
            request: Some(Box::new(request)),
        }
    }
}

impl Failed {
    /// No answer over HTTP/2, where an endpoint may say that it has not begun (RFC 9113, 8.7).
    fn shared(error: hyper::Error) -> Self {
        use std::error::Error;
        let source = error.source();
        let said = source.and_then(|source| source.downcast_ref::<h2::Error>());
        // Of a GOAWAY only those streams end that it leaves out; others end with their answer, or with the connection.
        let unbegun = said.filter(|said| said.is_remote()).is_some_and(|said| {
            said.is_go_away() || said.reason() == Some(h2::Reason::REFUSED_STREAM)
        });
        match unbegun {
            true => Self::Unbegun(error),
            false => Self::Http(error),
        }
    }

    /// Whether no connection came into being.
    pub fn is_connect(&self) -> bool {
        matches!(
            self,
            Self::NoWay(_)
                | Self::Tunnel(_)
                | Self::Connect(_)
                | Self::Secure(_)
                | Self::ConnectTimeout(_)
                | Self::ForAll(_)
        )
    }

    /// Whether a certificate was revoked: the endpoint's, or ours, as the endpoint's proxy says.
    pub fn is_revocation(&self) -> bool {
        match self {
            Self::Tunnel(OpenError::Tls(why)) => why.is_revocation(),
            Self::ForAll(why) => why.is_revocation(),
            _ => false,
        }
    }

    /// Whether the endpoint certainly has not seen the request.
    pub fn is_unseen(&self) -> bool {
        self.is_connect() || matches!(self, Self::Closed | Self::Unbegun(_))
    }

    /// Whether trying again does no harm where the request changes nothing: the endpoint has not seen it, or has closed
    /// a connection that was there for the next request.
    pub fn costs_nothing(&self) -> bool {
        self.is_unseen() || matches!(self, Self::Stale(_))
    }
}

/// What hyper says leaves out why.
fn words(error: &hyper::Error) -> String {
    use std::error::Error;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// All connections to endpoints.
pub struct Upstreams {
    /// Ours.
    identity: Identity,
    addresses: Vec<IpAddr>,
    gateways: Gateways,
    /// Of the mesh, if it has several.
    names: Vec<String>,
    /// Each thread that carries traffic has its own: none waits for another one's turn.
    shards: Box<[Shard]>,
    /// Of services that may have so many connections only: those of all threads.
    counted: Hosts,
}

/// Connections of one thread.
struct Shard {
    tunnels: Arc<Pool>,
    hosts: Hosts,
}

#[derive(Default)]
struct Hosts {
    all: ArcSwap<imbl::HashMap<Key, Arc<Host>>>,
    /// Held by who adds or removes some.
    changing: Mutex<()>,
}

impl Upstreams {
    /// None yet. One pool for each thread that carries traffic, and at least one.
    pub fn new(
        tunnels: impl IntoIterator<Item = Arc<Pool>>,
        identity: Identity,
        addresses: Vec<IpAddr>,
        gateways: Gateways,
    ) -> Self {
        let shard = |tunnels| Shard {
            tunnels,
            hosts: Hosts::default(),
        };
        Self {
            identity,
            addresses,
            gateways,
            names: Vec::new(),
            shards: tunnels.into_iter().map(shard).collect(),
            counted: Hosts::default(),
        }
    }

    /// In a mesh of these names, each of which its members may have.
    pub fn named(mut self, names: Vec<String>) -> Self {
        self.names = names;
        self
    }

    /// That of the thread that runs this.
    fn shard(&self) -> &Shard {
        &self.shards[here() % self.shards.len()]
    }

    fn host(&self, way: &Way) -> Arc<Host> {
        match way.bounds().filter(|gates| gates.counts()) {
            Some(_) => self.counted.host(way),
            None => self.shard().hosts.host(way),
        }
    }

    /// Sends a request and waits for the head of the answer. `http2`: what the endpoint speaks.
    ///
    /// # Errors
    /// When there is none.
    pub async fn send(
        &self,
        way: &Way,
        http2: bool,
        request: Request<Outgoing>,
    ) -> Result<Response<Answer>, Unanswered> {
        let host = self.host(way);
        if http2 {
            host.send_shared(self, way, request).await
        } else {
            host.send_alone(self, way, request).await
        }
    }

    /// The same for a request that asks for another protocol: over a connection that is used for nothing else, and that counts
    /// as long as its ticket is there, if connections of its service do.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) async fn upgrade(
        &self,
        way: &Way,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Option<Ticket>), Failed> {
        self.host(way).send_upgrade(self, way, request).await
    }

    /// Makes a connection ahead of requests, if there is none. Where there may only be so many, none is made. In HTTP/1.1 it is
    /// that of tunnels alone: an app that serves one connection after the other would wait for a request on one that nobody has
    /// a use for yet, and let all others wait.
    pub(crate) async fn warm(&self, way: &Way, http2: bool) {
        if way.bounds().is_some_and(|gates| gates.counts()) {
            return;
        }
        let made = match http2 {
            true => self.host(way).warm_shared(self, way).await,
            false => self.near(way).await,
        };
        if let Err(error) = made {
            tracing::debug!(%error, "upstream: no connection ahead of requests");
        }
    }

    /// A stream of bytes to an endpoint, with what is to be spoken over it first.
    ///
    /// # Errors
    /// When there is none.
    pub async fn open(&self, way: &Way, inside: Inside) -> Result<Stream, Failed> {
        let carrier = if way.is_tunnel() {
            Carrier::Tunnel(self.tunnel(way).await?.into_io())
        } else {
            Carrier::Tcp(self.connect(way).await?)
        };
        let over = way.spoken();
        let mut stream = Stream::from(carrier);
        if let Some((version, client, to)) = over.proxy {
            let header = preamble::header(version, client, to);
            stream.write_all(&header).await.map_err(Failed::Connect)?;
        }
        let Some((tls, host)) = &over.tls else {
            return Ok(stream);
        };
        let begun = tls.begin(stream, inside, host.as_deref());
        let within = way.patience().unwrap_or(CONNECT);
        match tokio::time::timeout(within, begun).await {
            Ok(begun) => Ok(Carrier::Tls(Box::new(begun.map_err(Failed::Secure)?)).into()),
            Err(_) => Err(Failed::ConnectTimeout(within)),
        }
    }

    /// A tunnel to an endpoint that is in the mesh.
    pub(crate) async fn tunnel(&self, way: &Way) -> Result<hbone::Tunnel, Failed> {
        let Some(within) = way.patience() else {
            return self.tunnelled(way).await;
        };
        // Boxed: few say so, and it would be kept twice.
        match tokio::time::timeout(within, Box::pin(self.tunnelled(way))).await {
            Ok(opened) => opened,
            Err(_) => Err(Failed::ConnectTimeout(within)),
        }
    }

    /// The same with the patience of tunnels, which is one for each step.
    async fn tunnelled(&self, way: &Way) -> Result<hbone::Tunnel, Failed> {
        if let Some(abroad) = way.abroad() {
            // Boxed: few go that far, and it is much larger.
            return Box::pin(self.through(abroad)).await;
        }
        let address = way.address().await.map_err(Failed::Connect)?;
        let destination = self.hop(way, address)?;
        let connect = Connect {
            source: Some("waypoint"),
            ..Connect::to(Authority::Ip(address))
        };
        let own = destination.source_ip;
        let dial = move |to| dial(own, to);
        Ok(self
            .shard()
            .tunnels
            .open(&destination, dial, connect)
            .await?)
    }

    /// A connection to the proxy of an endpoint that is in the mesh, and not behind a gateway, for tunnels to come.
    async fn near(&self, way: &Way) -> Result<(), Failed> {
        if !way.is_tunnel() || way.abroad().is_some() {
            return Ok(());
        }
        let address = way.address().await.map_err(Failed::Connect)?;
        let destination = self.hop(way, address)?;
        let own = destination.source_ip;
        let dial = move |to| dial(own, to);
        let ready = self.shard().tunnels.ready(&destination, dial).await;
        ready.map_err(Failed::Tunnel)
    }

    /// Where tunnels to an endpoint at that address go.
    fn hop(&self, way: &Way, address: std::net::SocketAddr) -> Result<Destination, NoWay> {
        let (hop, expected) = (Way::hop(address), way.expected()?);
        Ok(Destination {
            address: hop,
            source_ip: self.own_address(hop.ip()),
            source: self.identity.clone(),
            expected: way::by_all_names(expected, &self.names),
        })
    }

    /// A plain connection.
    pub(crate) async fn connect(&self, way: &Way) -> Result<TcpStream, Failed> {
        let within = way.patience().unwrap_or(CONNECT);
        let connected = tokio::time::timeout(within, async {
            let address = way.address().await?;
            dial(self.own_address(address.ip()), address).await
        });
        match connected.await {
            Ok(connected) => {
                let connected = connected.and_then(|tcp| {
                    let said = way.bounds().and_then(|gates| gates.each.keepalive);
                    said.map_or(Ok(()), |said| keep_alive(&tcp, said))?;
                    Ok(tcp)
                });
                connected.map_err(Failed::Connect)
            }
            Err(_) => Err(Failed::ConnectTimeout(within)),
        }
    }

    /// A connection to an address, from one of ours.
    pub(crate) async fn dial(&self, to: std::net::SocketAddr) -> io::Result<TcpStream> {
        dial(self.own_address(to.ip()), to).await
    }

    /// One of ours that can speak to `to`.
    fn own_address(&self, to: IpAddr) -> IpAddr {
        let fit = |own: &&IpAddr| own.is_ipv4() == to.is_ipv4();
        let unspecified = match to {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        self.addresses
            .iter()
            .find(fit)
            .copied()
            .unwrap_or(unspecified)
    }

    /// Lets go of connections that nobody has used for long, until `end`.
    pub async fn tend(&self, end: CancellationToken) {
        let mut looks = tokio::time::interval(SWEEP);
        while end.run_until_cancelled(looks.tick()).await.is_some() {
            let own = self.shards.iter().map(|shard| &shard.hosts);
            own.chain([&self.counted]).for_each(Hosts::sweep);
        }
    }
}

impl Hosts {
    fn host(&self, way: &Way) -> Arc<Host> {
        let key = way.key();
        if let Some(host) = self.all.load().get(&key) {
            host.told(way.bounds());
            return host.clone();
        }
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hosts = imbl::HashMap::clone(&self.all.load());
        let host = hosts.entry(key);
        let host = host.or_insert_with(|| Arc::new(Host::new(way.bounds())));
        let host = host.clone();
        self.all.store(Arc::new(hosts));
        host
    }

    fn sweep(&self) {
        let now = Instant::now();
        let empty = |host: &Arc<Host>| host.sweep(now) && Arc::strong_count(host) <= 2;
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hosts = imbl::HashMap::clone(&self.all.load());
        let before = hosts.len();
        hosts.retain(|_, host| !empty(host));
        if hosts.len() != before {
            self.all.store(Arc::new(hosts));
        }
    }
}

async fn dial(own: IpAddr, to: std::net::SocketAddr) -> io::Result<TcpStream> {
    if is_inward(to.ip()) && !own.is_loopback() {
        let why = "the endpoint's address is the proxy itself";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let socket = match to {
        std::net::SocketAddr::V4(_) => TcpSocket::new_v4()?,
        std::net::SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    if !own.is_unspecified() && !own.is_loopback() {
        socket.bind((own, 0).into())?;
    }
    socket.connect(to).await
}

/// What is said of its probes: the first after so long, then every, and so many. The kernel takes whole seconds and a certain
/// number; beyond that the nearest holds, and the connection is made all the same.
fn keep_alive(
    tcp: &TcpStream,
    (time, every, probes): (Duration, Option<Duration>, Option<u32>),
) -> io::Result<()> {
    let fit = |time: Duration| time.clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    let mut said = TcpKeepalive::new().with_time(fit(time));
    if let Some(every) = every {
        said = said.with_interval(fit(every));
    }
    if let Some(probes) = probes {
        said = said.with_retries(probes.min(MOST_PROBES));
    }
    SockRef::from(tcp).set_tcp_keepalive(&said)
}

/// Whoever may write down an endpoint's address must not reach through us what listens for us alone: the admin door. A proxy
/// that is on the loopback itself, as on somebody's desk, has its endpoints there.
fn is_inward(to: IpAddr) -> bool {
    let to = to.to_canonical();
    to.is_loopback() || to.is_unspecified()
}

/// For a plain connection.
const CONNECT: Duration = Duration::from_secs(10);
const SWEEP: Duration = Duration::from_secs(10);
/// Of keepalives, as Linux has it (MAX_TCP_KEEPIDLE, MAX_TCP_KEEPCNT).
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(32_767);
const MOST_PROBES: u32 = 127;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_kernel_does_not_take_of_keepalives_ends_no_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await;
        let tcp = tcp.unwrap();
        let (moment, day) = (Duration::from_millis(500), Duration::from_secs(86_400));
        for (said, had) in [
            ((moment, Some(moment), Some(3)), (1, 1, 3)),
            ((day, Some(day), Some(1_000)), (32_767, 32_767, 127)),
            ((Duration::from_secs(7), None, None), (7, 32_767, 127)),
        ] {
            keep_alive(&tcp, said).unwrap();
            let socket = SockRef::from(&tcp);
            assert!(socket.keepalive().unwrap());
            let (time, every, probes) = had;
            let pauses = (
                socket.tcp_keepalive_time().unwrap(),
                socket.tcp_keepalive_interval().unwrap(),
            );
            let had = (Duration::from_secs(time), Duration::from_secs(every));
            assert_eq!(pauses, had, "{said:?}");
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), probes, "{said:?}");
        }
    }
}
