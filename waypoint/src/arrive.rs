//! A tunnel arrives.
//!
//! 1. TLS: the client's proxy proves who the client is                     (`hbone::accept`)
//! 2. CONNECT: what it is for, and whether that is ours to serve           (`tell`, pure)
//! 3. what is spoken: as the service declares it, else by the first bytes  (`speak`, pure)
//! 4. HTTP: one request after the other, or many at a time                 ([`crate::request`])
//! 5. anything else: bytes, to an endpoint                                 ([`crate::carry`])
//!
//! Each tunnel is a task of its own, with its connection unless that thread has more to do than others ([`ops::threads`]).

mod frames;
mod hello;
mod late;
mod leave;
mod linger;
mod speak;
mod stalled;
mod tell;
#[cfg(test)]
mod tests;
mod turns;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hbone::{AcceptError, Authority, Identity, Incoming, Request, ResponseHeaders, Status, Tunnel};
use http::{HeaderValue, StatusCode, header};
use http_body::Body;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh::Workload;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::linger::Linger;
use self::speak::Guess;
use self::stalled::{Asked, Streams, hand};
pub use self::tell::{Misdirected, To};
use self::turns::{Last, Turns};
use crate::carry;
use crate::client::{Baggage, Client};
use crate::compiled::Front;
use crate::east_west;
use crate::load::Share;
use crate::proxy::Proxy;
use crate::report::Caller;
use crate::request;
use crate::upstream::{Carrier, Stream};

/// A connection of a client's to something that we serve.
pub struct Arrived {
    /// What all share.
    pub proxy: Arc<Proxy>,
    /// Who it is.
    pub client: Arc<Client>,
    /// The same, as reports have it.
    pub caller: Arc<Caller>,
    /// What it is for.
    pub to: To,
    /// The same as one of those we stand in front of.
    pub front: Front,
    /// It came through the gateway of this network: it is led to nobody behind that of another one.
    pub from_abroad: bool,
    /// Its place among the others.
    pub share: Share,
}

/// Takes tunnel connections until the drain has begun and everybody has heard of it: who has not would find the door
/// closed, and has nobody else to ask.
pub async fn listen(proxy: Arc<Proxy>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(proxy.config.max_connections));
    let closing = heard(proxy.drain.accepting().clone());
    let mut closing = std::pin::pin!(closing);
    loop {
        // Never closed: it is ours.
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut closing => return,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let peer = unmapped(peer);
                let connected = match proxy.load.connected(peer.ip()) {
                    Ok(connected) => connected,
                    Err(why) => {
                        tracing::debug!(%peer, %why, "arrive: refused");
                        continue;
                    }
                };
                let (there, proxy) = (proxy.workers.anywhere(), proxy.clone());
                let tcp = match there.adopt(tcp) {
                    Ok(tcp) => tcp,
                    Err(error) => {
                        tracing::warn!(%error, "arrive: cannot take a connection");
                        continue;
                    }
                };
                let (runtime, load) = there.held();
                proxy.drain.clone().spawn_on(&runtime, async move {
                    let _places = (place, connected, load);
                    serve(proxy, tcp, peer).await;
                });
            }
            Err(error) => {
                // Out of descriptors, most likely; what is open goes on, and ends.
                tracing::warn!(%error, "arrive: cannot accept");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

/// Everybody knows that we leave.
async fn heard(leaving: CancellationToken) {
    leaving.cancelled().await;
    tokio::time::sleep(NEWS).await;
}

/// One tunnel connection, to its end.
async fn serve(proxy: Arc<Proxy>, tcp: TcpStream, peer: SocketAddr) {
    let certificate = match proxy.certificates.of(&proxy.identity).await {
        Ok(certificate) => certificate,
        Err(error) => {
            tracing::warn!(%peer, %error, "arrive: no certificate of our own");
            return;
        }
    };
    let mut connection = match hbone::accept(tcp, certificate, &proxy.limits).await {
        Ok(connection) => connection,
        Err(error) => {
            tracing::info!(%peer, %error, response_flags = flag(&error), "arrive: refused");
            return;
        }
    };
    let leaving = proxy.drain.accepting().clone();
    // Who comes when the drain has begun has not heard of it, and is told when others must have.
    let late = leaving.is_cancelled();
    let leaving = async {
        if late {
            tokio::time::sleep(NEWS).await;
        } else {
            leaving.cancelled().await;
        }
    };
    let mut leaving = std::pin::pin!(leaving);
    let mut draining = false;
    loop {
        let incoming = tokio::select! {
            incoming = connection.next() => incoming,
            () = &mut leaving, if !draining => {
                draining = true;
                connection.drain(proxy.config.drain_deadline());
                continue;
            }
        };
        match incoming {
            Some(Ok(Incoming::Request(request))) => {
                let (proxy, identity) = (proxy.clone(), connection.peer().clone());
                let (drain, place) = (proxy.drain.clone(), proxy.workers.beside());
                let tunnel = Box::pin(tunnel(proxy, request, identity, peer));
                let (runtime, load) = place.held();
                drain.spawn_on(&runtime, async move {
                    let _load = load;
                    tunnel.await;
                });
            }
            Some(Ok(Incoming::Refused(why))) => tracing::info!(%peer, %why, "arrive: refused"),
            Some(Err(why)) => {
                tracing::debug!(%peer, %why, "arrive: a tunnel connection ended");
                return;
            }
            None => return,
        }
    }
}

/// Why there is no connection in a word: ztunnels have the same.
fn flag(why: &AcceptError) -> &'static str {
    match why {
        AcceptError::Tls(why) if why.is_revocation() => "CERT_REVOKED",
        AcceptError::Tls(_) | AcceptError::Slow(_) => "TLS_FAILURE",
        AcceptError::Preface(_) => "H2_HANDSHAKE_FAILURE",
    }
}

/// One CONNECT, to its end.
async fn tunnel(proxy: Arc<Proxy>, request: Request, identity: Identity, peer: SocketAddr) {
    let now = proxy.drain.now().clone();
    // Before anything is looked up for it.
    let share = match proxy.load.tunnel(peer.ip()) {
        Ok(share) => share,
        Err(why) => {
            tracing::debug!(%peer, client = %identity, %why, "arrive: refused");
            return request.refuse(Status::Unavailable);
        }
    };
    if proxy.config.is_east_west() {
        let client = Arc::new(client(None, &request, identity, peer));
        now.run_until_cancelled(east_west::carry(&proxy, request, client))
            .await;
        drop(share);
        return;
    }
    let (to, front) = match told(&proxy, &request.authority, identity.namespace()).await {
        Ok(told) => told,
        Err(why) => {
            tracing::info!(%peer, client = %identity, %why, "arrive: refused");
            return request.refuse(Status::BadRequest);
        }
    };
    // A service by its name is what gateways are asked for, and who is behind them.
    let from_abroad = matches!(request.authority, Authority::Host(..))
        || request.headers.x_forwarded_network.is_some();
    let workload = proxy.clients.find(peer.ip()).await;
    // Behind an east-west gateway the address is the gateway's, who only leads others on.
    let workload = workload.filter(|it| runs_as(it, &identity));
    let client = Arc::new(client(workload, &request, identity, peer));
    let arrived = Arc::new(Arrived {
        caller: proxy.reports.caller(client.clone()),
        proxy,
        client,
        to,
        front,
        from_abroad,
        share,
    });
    tokio::select! {
        _ = now.run_until_cancelled(arrived.clone().converse(request)) => {}
        () = arrived.over() => {}
    }
}

/// What it is for. The client's proxy may have heard that it goes through us before we have: that is waited for.
async fn told(
    proxy: &Proxy,
    authority: &Authority,
    namespace: &str,
) -> Result<(To, Front), Misdirected> {
    let tell = || {
        let (snapshot, config) = (proxy.mesh.load_full(), proxy.state.load_full());
        let fronts = &config.fronts;
        tell::tell(&proxy.network, &snapshot, fronts, authority, namespace)
    };
    let mut changed = proxy.state.changed();
    let mut told = tell();
    if let (Err(Misdirected::Unknown(_)), Authority::Ip(address)) = (&told, authority) {
        // A workload that no service of ours leads to is told to who asks for it.
        proxy.clients.find(address.ip()).await;
        told = tell();
    }
    let late = tokio::time::sleep(HOLD);
    let mut late = std::pin::pin!(late);
    while let Err(Misdirected::Unknown(_) | Misdirected::NotOurs(_)) = &told {
        tokio::select! {
            Ok(()) = changed.changed() => told = tell(),
            () = &mut late => break,
        }
    }
    told
}

/// Whether a workload runs as who was proven, whatever its trust domain is called.
fn runs_as(workload: &Workload, identity: &Identity) -> bool {
    let (_, namespace, account) = workload.identity_parts();
    (namespace, account) == (identity.namespace(), identity.service_account())
}

/// Who asks. Its address is that of its socket, which its node's proxy opens from the pod's own address; the port is as
/// the proxy says.
fn client(
    workload: Option<Arc<Workload>>,
    request: &Request,
    identity: Identity,
    peer: SocketAddr,
) -> Client {
    let own = |said: &SocketAddr| {
        said.ip() == peer.ip()
            || workload
                .as_ref()
                .is_some_and(|workload| workload.addresses.contains(&said.ip()))
    };
    let said = request.headers.forwarded_for().filter(own);
    Client {
        identity: Some(identity),
        address: said.unwrap_or(peer),
        peer: peer.ip(),
        workload,
        said: Baggage::read(request.headers.baggage.as_deref().unwrap_or_default()),
    }
}

impl Arrived {
    async fn converse(self: Arc<Self>, request: Request) {
        use mesh::service::AppProtocol as Spoken;
        let declared = self.to.protocol();
        if declared == Spoken::Tcp {
            return carry::refusable(&self, request).await;
        }
        let Ok(mut tunnel) = request.accept(ResponseHeaders::default()) else {
            return; // The client has gone.
        };
        let within = match declared {
            Spoken::Unknown | Spoken::Tls => self.proxy.config.detect_timeout,
            _ => IDLE,
        };
        // Outside of what may be given up: what was said is passed on, whoever it turns out to be for.
        let mut bytes = Bytes::new();
        let listening = first(&mut tunnel, declared, &mut bytes);
        let guess = tokio::time::timeout(within, listening).await;
        let guess = guess.unwrap_or_else(|_| speak::silence(declared, &bytes));
        tunnel.settle();
        let stream = |first: Bytes| Stream::new(Carrier::Tunnel(tunnel.into_io()), first);
        match guess {
            Guess::Http1 => self.http1(stream(bytes)).await,
            Guess::Http2 => self.http2(stream(bytes)).await,
            Guess::Other => {
                let hello = hello::read(&bytes);
                let unread = hello.is_unread(&bytes);
                let sni = match hello {
                    hello::Hello::Tls(name) => name,
                    _ => None,
                };
                let named = carry::ServerName {
                    name: sni.as_deref(),
                    unread,
                };
                let open = declared == Spoken::Unknown && speak::told(&bytes).is_none();
                let late = CancellationToken::new();
                let client = match open && carry::hides(&self) {
                    true => stream(bytes.clone()).doubted(late::doubt(&bytes, late.clone())),
                    false => stream(bytes),
                };
                carry::accepted(&self, client, named, late).await;
            }
            Guess::Broken => carry::broken(&self),
            Guess::Gone => {}
        }
    }

    async fn http1(self: Arc<Self>, stream: Stream) {
        let turns = Arc::new(Turns::default());
        let service = service_fn(|request| {
            let (arrived, turns) = (self.clone(), turns.clone());
            let serving = turns.begin(&request);
            async move {
                let mut answer = request::serve(arrived.clone(), request).await?;
                if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                    turns.switch();
                } else if arrived.should_go() {
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(header::CONNECTION, close);
                }
                let last = |body| Last {
                    body,
                    _serving: serving,
                };
                Ok::<_, Infallible>(answer.map(last))
            }
        });
        let Proxy { load, .. } = &*self.proxy;
        let stream = Linger::one(
            stream,
            self.proxy.drain.clone(),
            load.clone(),
            turns.clone(),
        );
        let connection = one()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            // Whoever asks again is told with the answer, and asks elsewhere next.
            patience = self.going() => {
                match tokio::time::timeout(patience, &mut connection).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(client = %self.client.address, %error, "arrive: HTTP/1.1 ended");
        }
    }

    async fn http2(self: Arc<Self>, stream: Stream) {
        let service = service_fn(|request| {
            let arrived = self.clone();
            async move {
                let answer = request::serve(arrived, request).await?;
                hand(!answer.body().is_end_stream());
                Ok::<_, Infallible>(answer.map(Asked))
            }
        });
        let load = &self.proxy.load;
        let stream = Linger::two(stream, self.proxy.drain.clone(), load.clone());
        let connection = two(Streams(load.clone())).serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            _ = self.going() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(client = %self.client.address, %error, "arrive: HTTP/2 ended");
        }
    }
}

/// How we speak HTTP/1.1 with clients.
fn one() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(MOST_HEADERS)
        .max_buf_size(LARGEST_HEAD)
        .half_close(true)
        .writev(false);
    builder
}

/// How we speak HTTP/2 with them.
fn two(streams: Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(LARGEST_HEAD_2)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_local_error_reset_streams(MOST_RESETS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .enable_connect_protocol();
    builder
}

/// Listens until it is clear what is spoken.
async fn first(
    tunnel: &mut Tunnel,
    declared: mesh::service::AppProtocol,
    bytes: &mut Bytes,
) -> Guess {
    loop {
        match tunnel.recv().await {
            Some(Ok(chunk)) if bytes.is_empty() => *bytes = chunk,
            Some(Ok(chunk)) => {
                let mut all = BytesMut::from(&**bytes);
                all.extend_from_slice(&chunk);
                *bytes = all.freeze();
            }
            None | Some(Err(_)) => return speak::end(declared, bytes),
        }
        if let Some(guess) = speak::guess(bytes, declared) {
            return guess;
        }
    }
}

impl Baggage {
    /// Reads what it knows, skips what it does not.
    pub fn read(header: &str) -> Self {
        let mut said = Self::default();
        for member in header.split(',') {
            let member = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = member.split_once('=') else {
                continue;
            };
            let field = match key.trim() {
                "k8s.cluster.name" => &mut said.cluster,
                "k8s.namespace.name" => &mut said.namespace,
                "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.pod.name" | "k8s.job.name" => {
                    &mut said.workload
                }
                "service.name" => &mut said.service,
                "service.version" => &mut said.revision,
                "app.name" => &mut said.app,
                "app.version" => &mut said.version,
                _ => continue,
            };
            if !value.trim().is_empty() {
                *field = Some(value.trim().into());
            }
        }
        said
    }
}

/// An IPv4 peer of a socket for both families.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Until the news that a pod leaves has reached every proxy: some tenths of a second, and a control plane that is busy.
const NEWS: Duration = Duration::from_secs(3);
/// Until we must have heard of what others have.
const HOLD: Duration = Duration::from_secs(3);
/// Before accepting is tried again.
const BREATH: Duration = Duration::from_millis(50);
/// A client that has connected and says nothing.
const IDLE: Duration = Duration::from_secs(3600);
/// From the end of one request to the end of the next one's head: who needs longer for it connects again.
const HEAD: Duration = Duration::from_secs(300);
/// Header fields of a request.
const MOST_HEADERS: usize = 128;
/// Bytes of a request's head, and of what is read ahead of its body.
const LARGEST_HEAD: usize = 64 << 10;
const LARGEST_HEAD_2: u32 = 64 << 10;
/// Requests at a time on one HTTP/2 connection.
const MOST_STREAMS: u32 = 200;
const STREAM_WINDOW: u32 = 256 << 10;
/// Of a connection: so many of its streams may stand still before the others do.
const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW;
const SEND_BUFFER: usize = 128 << 10;
/// Streams that we had to reset for the client's fault.
const MOST_RESETS: usize = 256;
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_ANSWER: Duration = Duration::from_secs(20);
