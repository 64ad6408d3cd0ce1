//! Connections to peers, shared by the tunnels that may share them.
//!
//! A destination and a CONNECT enter ([`Pool::open`]); a tunnel leaves. Connections are kept by
//! source identity, source address, expected identities and destination address, so that no source
//! workload ever uses another's. For one key:
//!
//! 1. a connection with room that is not stalled is used                                 (`slots`)
//! 2. else a connection that is being made is waited for, if not too many wait already;
//! 3. else one is made: certificate, dial, handshake, once for all who wait              (`Pool::make`)
//!
//! A connection leaves the pool the moment it breaks, is told to go away, has been unused for the release time, or
//! when the certificate it was made with ends: who was trusted once is not trusted for ever. All of them do when other
//! certificates are revoked: whoever has shown what is on a list now is cut off with its tunnels, and all others must show
//! themselves again to be given more. Half of the peer's connection window unread counts as stalled: new streams go to
//! another connection, so that readers that stopped do not hold up those that come later.

mod slots;

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    io,
    iter::Sum,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicU64},
    time::Duration,
};

use tokio::net::TcpStream;

use crate::{
    certs::{Certificate, Certificates},
    client::{Connect, ConnectError, Driver, Link, OpenError, Times},
    datagrams::{self, NoWay},
    engine::Thawed,
    first::First,
    handover::berth::Berth,
    identity::Identity,
    limits::Engine,
    own,
    room::Reserve,
    socket::Socket,
    tls::{Expected, Trust},
    tunnel::Tunnel,
};
use slots::{Slot, key_of};

/// Makes the TCP connection, in whatever network namespace and with whatever mark the caller needs.
pub trait Dial {
    /// Connects to `address`.
    fn dial(&self, address: SocketAddr) -> impl Future<Output = io::Result<TcpStream>> + Send;
}

impl<F, Dialling> Dial for F
where
    F: Fn(SocketAddr) -> Dialling,
    Dialling: Future<Output = io::Result<TcpStream>> + Send,
{
    fn dial(&self, address: SocketAddr) -> impl Future<Output = io::Result<TcpStream>> + Send {
        self(address)
    }
}

/// Which connections a tunnel may use.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The peer's HBONE port.
    pub address: SocketAddr,
    /// The address of the workload that opens the tunnel.
    pub source_ip: IpAddr,
    /// Who opens the tunnel.
    pub source: Identity,
    /// Who the peer may be, sorted. Nobody else is accepted; empty accepts nobody.
    pub expected: Vec<Identity>,
}

/// How the pool behaves. `Default` is the wire contract's.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// Streams on one connection.
    pub streams: usize,
    /// An unused connection is closed after this.
    pub release: Duration,
    /// For the TCP connection.
    pub dial: Duration,
    /// For TLS and HTTP/2.
    pub handshake: Duration,
    /// For the answer to a CONNECT: the peer connects to its application meanwhile.
    pub answer: Duration,
    /// A PING is sent after this long.
    pub ping_every: Duration,
    /// A PING that is not answered for this long ends the connection.
    pub ping_answer: Duration,
    /// Where receive windows grow from.
    pub reserve: Reserve,
    /// What carries the connections.
    pub engine: Engine,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            streams: 100,
            release: Duration::from_secs(300),
            dial: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            ping_every: Duration::from_secs(10),
            ping_answer: Duration::from_secs(20),
            reserve: Reserve::default(),
            engine: Engine::default(),
        }
    }
}

/// Attempts for one tunnel when connections turn out to be gone.
const ATTEMPTS: usize = 3;

/// The pool. One for each thread that carries traffic, or one for all.
pub struct Pool {
    certificates: Arc<Certificates>,
    config: PoolConfig,
    slots: Mutex<HashMap<Arc<Destination>, Slot>>,
    /// The lists of revoked certificates under which its connections were made.
    revocations: AtomicU64,
    itself: Weak<Self>,
}

/// Figures for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Keys with at least one connection or attempt.
    pub destinations: usize,
    /// Connections.
    pub connections: usize,
    /// Tunnels open on them.
    pub streams: usize,
}

impl Sum for PoolStats {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            destinations: sum.destinations + one.destinations,
            connections: sum.connections + one.connections,
            streams: sum.streams + one.streams,
        })
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(certificates: Arc<Certificates>, config: PoolConfig) -> Arc<Self> {
        Arc::new_cyclic(|itself| Self {
            revocations: AtomicU64::new(certificates.revocations()),
            certificates,
            config,
            slots: Mutex::default(),
            itself: itself.clone(),
        })
    }

    /// Opens a tunnel, on a connection that is there or on a new one that `dial` begins.
    ///
    /// # Errors
    /// When there is no certificate, no connection, the wrong peer, or the peer does not grant the
    /// tunnel. Nothing of the tunnel's bytes has been sent in any of these cases.
    pub async fn open(
        &self,
        destination: &Destination,
        dial: impl Dial,
        connect: Connect,
    ) -> Result<Tunnel, OpenError> {
        self.open_with(destination, dial, connect, None).await
    }

    /// Has a connection for tunnels that may come: one that is there, or a new one that `dial` begins. The peer's application
    /// learns nothing of it.
    ///
    /// # Errors
    /// When there is no certificate, no connection, or the wrong peer.
    pub async fn ready(&self, destination: &Destination, dial: impl Dial) -> Result<(), OpenError> {
        self.link(destination, &dial).await.map(drop)
    }

    /// Opens a tunnel for what `app` says, which is then to be copied to it ([`crate::both_ways`]) and used for
    /// nothing else meanwhile: what the app has said before there is a tunnel may be sent with the request for
    /// it, so that it need not wait for the answer. That is done only on connections whose peer was heard of just
    /// now.
    ///
    /// # Errors
    /// As for [`Pool::open`]. Bytes of the app may have been sent; a request with which some were is made again
    /// only when the peer has said that it has not looked at it.
    pub async fn open_for(
        &self,
        app: &TcpStream,
        destination: &Destination,
        dial: impl Dial,
        connect: Connect,
    ) -> Result<Tunnel, OpenError> {
        self.open_keeping(app, &First::default(), destination, dial, connect)
            .await
    }

    /// The same for who may ask somebody else if this does not succeed: what the app has said is in `first` then, and
    /// whether it may be repeated. Cancelled, it is not known what became of it.
    ///
    /// # Errors
    /// As for [`Pool::open_for`].
    pub async fn open_keeping(
        &self,
        app: &TcpStream,
        first: &First,
        destination: &Destination,
        dial: impl Dial,
        connect: Connect,
    ) -> Result<Tunnel, OpenError> {
        self.open_with(destination, dial, connect, Some((app, first)))
            .await
    }

    async fn open_with(
        &self,
        destination: &Destination,
        dial: impl Dial,
        connect: Connect,
        app: Option<(&TcpStream, &First)>,
    ) -> Result<Tunnel, OpenError> {
        let (mut last, nothing) = (None, First::default());
        let (app, first) = match app {
            Some((app, first)) => (Some(app), first),
            None => (None, &nothing),
        };
        for _ in 0..ATTEMPTS {
            let (link, lease) = self.link(destination, &dial).await?;
            let along = match app.filter(|_| link.takes_first()) {
                Some(app) => first.along(app)?,
                None => &[],
            };
            match link.connect(&connect, None, along, lease).await {
                Ok(tunnel) if tunnel.ahead() == first.said().len() => return Ok(tunnel),
                Ok(tunnel) => return self.send_first(tunnel, first.behind()).await,
                Err(ConnectError::Final(error)) => {
                    if let OpenError::Refused(_) | OpenError::Malformed(_) = error {
                        first.came_back();
                    }
                    if link.closed() {
                        self.sweep(destination);
                    }
                    return Err(error);
                }
                Err(ConnectError::Retry(error)) => {
                    tracing::debug!(address = %destination.address, %error, "trying another connection");
                    first.came_back();
                    last = Some(error);
                }
            }
            self.sweep(destination);
        }
        Err(last.unwrap_or_else(|| OpenError::ConnectionLost("no attempt was made".into())))
    }

    /// Opens a way for datagrams to `to` ([`crate::datagrams`]). A pool of its own is best for them: what comes in the
    /// order in which it was sent must not wait for streams of others.
    ///
    /// # Errors
    /// As for [`Pool::open`], and when the peer has said what it offers and this is not among it.
    pub async fn open_datagrams(
        &self,
        destination: &Destination,
        dial: impl Dial,
        connect: Connect,
        to: SocketAddr,
    ) -> Result<Tunnel, NoWay> {
        let (path, mut last) = (datagrams::path(to), None);
        for attempt in 0..ATTEMPTS {
            let (link, lease) = self.link(destination, &dial).await?;
            let takes = link.takes_datagrams().await;
            if !matches!(takes, Ok(Some(true))) {
                let refusal = link.refusal().map(OpenError::Tls);
                if let Some(why) = refusal.or(takes.as_ref().err().cloned()) {
                    link.close();
                    self.sweep(destination);
                    return Err(why.into());
                }
                // Only of one that has said what it carries: where nobody knows, what is meant for a tunnel does not go
                // another way.
                if let (Ok(Some(false)), 1..) = (takes, attempt)
                    && !link.closed()
                {
                    return Err(NoWay::Unsupported);
                }
                // It may offer it since this one was made; what is open on it goes on.
                link.close();
                self.sweep(destination);
                continue;
            }
            match link.connect(&connect, Some(&path), &[], lease).await {
                Ok(tunnel) => return Ok(tunnel),
                Err(ConnectError::Final(error)) => {
                    if link.closed() {
                        self.sweep(destination);
                    }
                    return Err(error.into());
                }
                Err(ConnectError::Retry(error)) => last = Some(error),
            }
            self.sweep(destination);
        }
        let lost = || OpenError::ConnectionLost("the peer took no request".into());
        Err(last.unwrap_or_else(lost).into())
    }

    /// What could not go along with the request goes before anything else.
    async fn send_first(&self, mut tunnel: Tunnel, first: Vec<u8>) -> Result<Tunnel, OpenError> {
        let (within, ahead) = (self.config.answer, first.len());
        match tokio::time::timeout(within, tunnel.send(first.into())).await {
            Ok(Ok(())) => Ok(tunnel.behind(ahead)),
            Ok(Err(error)) => Err(OpenError::ConnectionLost(error.to_string())),
            Err(_) => Err(OpenError::AnswerTimeout(within)),
        }
    }

    /// Lets go of every connection of a source workload, also of those being made: its pod is gone. Tunnels
    /// that are open or asked for go on.
    pub fn close_source(&self, source: &Identity, ip: IpAddr) {
        self.lock().retain(|key, slot| {
            let gone = key.source_ip == ip && key.source == *source;
            if gone {
                slot.links.iter().for_each(|link| link.close());
            }
            !gone
        });
    }

    /// Figures for metrics.
    pub fn stats(&self) -> PoolStats {
        let slots = self.lock();
        let links = slots.values().flat_map(|slot| &slot.links);
        PoolStats {
            destinations: slots.len(),
            connections: links.clone().count(),
            streams: links.map(|link| link.streams()).sum(),
        }
    }

    /// Certificate, socket, handshake; the driver runs from then on.
    async fn make(&self, key: &Arc<Destination>, dial: &impl Dial) -> Result<Link, OpenError> {
        loop {
            let revocations = self.certificates.revocations();
            let link = self.make_now(key, dial).await?;
            if self.certificates.revocations() == revocations {
                return Ok(link);
            }
            link.close();
        }
    }

    async fn make_now(&self, key: &Arc<Destination>, dial: &impl Dial) -> Result<Link, OpenError> {
        let certificate: Arc<Certificate> = self.certificates.of(&key.source).await?;
        let address = key.address;
        let socket = match tokio::time::timeout(self.config.dial, dial.dial(address)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                return Err(OpenError::Dial {
                    address,
                    error: Arc::new(error),
                });
            }
            Err(_) => {
                return Err(OpenError::DialTimeout {
                    address,
                    within: self.config.dial,
                });
            }
        };
        socket.tune();
        let times = Times {
            handshake: self.config.handshake,
            answer: self.config.answer,
            ping_every: self.config.ping_every,
            ping_answer: self.config.ping_answer,
            idle: self.config.release,
            engine: self.config.engine,
        };
        let (link, driver) = Link::establish(
            socket,
            &certificate,
            Expected {
                identities: &key.expected,
                address: Some(address),
            },
            times,
            self.config.reserve.clone(),
        )
        .await?;
        link.moor(Berth {
            destination: key.clone(),
            until: certificate.not_after(),
        });
        tokio::spawn(self.drive(driver, key.clone()));
        Ok(link)
    }

    /// Takes in a connection that another process has opened ([`crate::handover`]): it is as if this one had, but where
    /// certificates are revoked. What is given back drives it to its end.
    pub(crate) fn adopt(
        &self,
        berth: &Berth,
        opener: own::Opener,
        thawed: Thawed,
    ) -> impl Future<Output = ()> + Send + use<> {
        let config = &self.config;
        let link = Link::thawed(opener, &thawed, config.answer, berth.until);
        let pinger = thawed.pinger(config.ping_every, config.ping_answer);
        let trust = self.trust(&thawed);
        let driver = Driver::thawed(thawed, pinger, config.release, Some(trust));
        let mut slots = self.lock();
        let key = key_of(&slots, &berth.destination);
        // Its peer is judged by the lists of now; if there is nothing against it, its tunnels go on, and it ends with the last
        // of them. For more it must show itself here.
        match self.certificates.revoked().are_any() {
            true => link.close(),
            false => {
                let slot = slots.entry(key.clone()).or_default();
                slot.links.push(Arc::new(link));
            }
        }
        drop(slots);
        self.drive(driver, key)
    }

    /// Of the peer of a connection that another process has opened.
    pub(crate) fn trust(&self, thawed: &Thawed) -> Trust {
        let evidence = thawed.driver.0.session().evidence.clone();
        Trust::taken(evidence, self.certificates.revoked())
    }

    /// Runs a connection of `key` to its end.
    fn drive(
        &self,
        driver: Driver<TcpStream>,
        key: Arc<Destination>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let pool = self.itself.clone();
        async move {
            let ended = driver.run(|| sweep(&pool, &key)).await;
            tracing::debug!(address = %key.address, %ended, "connection ended");
            sweep(&pool, &key);
        }
    }

    /// Drops what is closed; a key without anything goes too.
    fn sweep(&self, key: &Destination) {
        let mut slots = self.lock();
        if let Some(slot) = slots.get_mut(key) {
            slot.links.retain(|link| !link.closed());
            if slot.links.is_empty() && slot.flights.is_empty() {
                slots.remove(key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<Destination>, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sweep(pool: &Weak<Pool>, key: &Destination) {
    if let Some(pool) = pool.upgrade() {
        pool.sweep(key);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
