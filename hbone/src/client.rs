//! One connection to a peer's HBONE port, and the CONNECTs made on it.
//!
//! 1. handshake on a socket somebody dialled: TLS with an expected server, HTTP/2  ([`Link::establish`])
//! 2. its driver runs as a task: keepalive, idle end, broken end                   ([`Driver`])
//! 3. CONNECT, 200, tunnel                                                         ([`Link::connect`])
//!
//! The pool decides which link a tunnel uses; [`inside`] is the one use without a pool: TLS and
//! HTTP/2 once more, inside a tunnel to a gateway (double HBONE).

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, Sleep},
};

use crate::{
    certs::{Certificate, CertificateError, End},
    engine::{
        Lease, Occupancy, Pinger, Thawed,
        client::{Asking, Driving, Unanswered, begin},
    },
    gauge::Gauge,
    handover::berth::Berth,
    identity::Identity,
    limits::{Engine, Refusal},
    own,
    request::Authority,
    room::Reserve,
    tls::{Expected, TlsError, Trust},
    tunnel::{Tunnel, TunnelIo},
};

/// What a CONNECT says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// The final destination.
    pub authority: Authority,
    /// `forwarded`, for example `for="10.0.0.1:4711"`.
    pub forwarded: Option<String>,
    /// `baggage`: who we are, for the peer's telemetry.
    pub baggage: Option<String>,
    /// `traceparent` (W3C).
    pub traceparent: Option<String>,
    /// `x-forwarded-network`: only in the inner request of double HBONE.
    pub x_forwarded_network: Option<String>,
    /// `x-istio-source`: what we are, if not an app's own proxy (`waypoint`).
    pub source: Option<&'static str>,
}

impl Connect {
    /// A CONNECT without headers.
    pub fn to(authority: impl Into<Authority>) -> Self {
        Self {
            authority: authority.into(),
            forwarded: None,
            baggage: None,
            traceparent: None,
            x_forwarded_network: None,
            source: None,
        }
    }

    /// The headers that it has, in the order in which they are sent.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("baggage", self.baggage.as_deref()),
            ("forwarded", self.forwarded.as_deref()),
            ("traceparent", self.traceparent.as_deref()),
            ("x-forwarded-network", self.x_forwarded_network.as_deref()),
            ("x-istio-source", self.source),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }
}

/// Why there is no tunnel.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// We have no certificate to show.
    #[error(transparent)]
    Certificate(Box<CertificateError>),
    /// The peer's port could not be connected to.
    #[error("cannot connect to {address}: {error}")]
    Dial {
        /// Where.
        address: std::net::SocketAddr,
        /// What the kernel said.
        error: Arc<io::Error>,
    },
    /// No TCP connection in time.
    #[error("no answer from {address} within {within:?}; a NetworkPolicy may be blocking HBONE")]
    DialTimeout {
        /// Where.
        address: std::net::SocketAddr,
        /// How long we waited.
        within: Duration,
    },
    /// TCP is up, TLS and HTTP/2 were not in time.
    #[error("the handshake took longer than {0:?}")]
    HandshakeTimeout(Duration),
    /// The peer is somebody else.
    #[error("{0}")]
    IdentityMismatch(TlsError),
    /// TLS failed otherwise.
    #[error(transparent)]
    Tls(TlsError),
    /// HTTP/2 did not come up.
    #[error("no HTTP/2 after TLS: {0}")]
    Http2(String),
    /// The peer answered with another status than 200.
    #[error("the peer refused the tunnel with status {}", meaning(*.0))]
    Refused(u16),
    /// The stream was reset before there was an answer; the text says by whom.
    #[error("the tunnel was reset {0}")]
    Reset(String),
    /// The connection ended before the answer.
    #[error("the connection ended before the answer: {0}")]
    ConnectionLost(String),
    /// No answer to the CONNECT in time.
    #[error("no answer to the CONNECT within {0:?}")]
    AnswerTimeout(Duration),
    /// Our own request could not be formed.
    #[error("the request cannot be sent: {0}")]
    Malformed(String),
}

impl OpenError {
    /// A stable snake_case name for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "certificate",
            Self::Dial { .. } => "dial",
            Self::DialTimeout { .. } => "dial_timeout",
            Self::HandshakeTimeout(_) => "handshake_timeout",
            Self::IdentityMismatch(_) => "identity_mismatch",
            Self::Tls(_) => "tls",
            Self::Http2(_) => "http2",
            Self::Refused(_) => "refused",
            Self::Reset(_) => "reset",
            Self::ConnectionLost(_) => "connection_lost",
            Self::AnswerTimeout(_) => "answer_timeout",
            Self::Malformed(_) => "malformed",
        }
    }
}

impl From<CertificateError> for OpenError {
    fn from(error: CertificateError) -> Self {
        Self::Certificate(Box::new(error))
    }
}

impl From<TlsError> for OpenError {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::IdentityMismatch { .. } => Self::IdentityMismatch(error),
            other => Self::Tls(other),
        }
    }
}

fn meaning(status: u16) -> String {
    let what = match status {
        400 => " (the destination is not at this address)",
        401 => " (denied by policy)",
        503 => " (the destination cannot be reached)",
        _ => "",
    };
    format!("{status}{what}")
}

/// Times of a client connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) handshake: Duration,
    pub(crate) answer: Duration,
    pub(crate) ping_every: Duration,
    pub(crate) ping_answer: Duration,
    pub(crate) idle: Duration,
    pub(crate) engine: Engine,
}

/// A connection on which tunnels can be opened. The connection ends when this and all its tunnels are
/// dropped.
pub(crate) struct Link {
    asking: Asking,
    occupancy: Arc<Occupancy>,
    gauge: Arc<Gauge>,
    answer: Duration,
    /// The end of the certificate that this link was made with.
    end: End,
}

/// How opening a stream on a link failed.
pub(crate) enum ConnectError {
    /// Another link may do better: this one went away before the peer looked at the request.
    Retry(OpenError),
    /// It would fail on any link.
    Final(OpenError),
}

impl From<OpenError> for ConnectError {
    /// Of a link that was lost. Who was refused for its certificate has no other to show on the next.
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Tls(TlsError::Alert(alert)) if alert.is_about_the_certificate() => {
                Self::Final(error)
            }
            _ => Self::Retry(error),
        }
    }
}

impl Link {
    /// Shakes hands on `socket`. The driver must be run for anything to happen.
    pub(crate) async fn establish<T>(
        socket: T,
        certificate: &Certificate,
        expected: Expected<'_>,
        times: Times,
        reserve: Reserve,
    ) -> Result<(Self, Driver<T>), OpenError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = Box::pin(shake_hands(socket, certificate, expected, times, reserve));
        match tokio::time::timeout(times.handshake, handshake).await {
            Ok(outcome) => outcome,
            Err(_) => Err(OpenError::HandshakeTimeout(times.handshake)),
        }
    }

    /// Of a connection that was frozen, which was made with a certificate that ends then.
    pub(crate) fn thawed(
        opener: own::Opener,
        thawed: &Thawed,
        answer: Duration,
        until: SystemTime,
    ) -> Self {
        Self {
            asking: Asking::Own(opener),
            occupancy: thawed.occupancy.clone(),
            gauge: thawed.gauge.clone(),
            answer,
            end: End::at(until),
        }
    }

    /// It belongs to a pool: said to whoever goes on with it elsewhere.
    pub(crate) fn moor(&self, berth: Berth) {
        if let Asking::Own(own::Opener(shared)) = &self.asking {
            shared.moor(berth);
        }
    }

    pub(crate) fn streams(&self) -> usize {
        self.occupancy.streams()
    }

    pub(crate) fn closed(&self) -> bool {
        self.occupancy.closed()
    }

    /// No new streams; the open ones go on.
    pub(crate) fn close(&self) {
        self.occupancy.close();
    }

    /// Half of what the peer allows on this connection lies unread there.
    pub(crate) fn stalled(&self) -> bool {
        self.gauge.stalled() || self.asking.stalled()
    }

    /// The peer wants no more streams here.
    pub(crate) fn going_away(&self) -> bool {
        self.gauge.going_away() || self.closed()
    }

    /// Who we were when this link was made, we no longer are.
    pub(crate) fn expired(&self) -> bool {
        self.end.is_over()
    }

    /// A place for one more stream, if this link should get one.
    pub(crate) fn lease(&self, most: usize) -> Option<Lease> {
        self.occupancy.lease(most.min(self.asking.places()))
    }

    /// What an app has said may be sent with the request for its tunnel: the peer has just been heard of. One that
    /// vanished without a word would be asked in vain, and nobody could say what it has done.
    pub(crate) fn takes_first(&self) -> bool {
        self.asking.takes_first()
    }

    /// Whether the peer carries datagrams too, as it says with the first that it says; none, if it has said nothing.
    pub(crate) async fn takes_datagrams(&self) -> Result<Option<bool>, OpenError> {
        let asked = tokio::time::timeout(self.answer, self.asking.takes_datagrams());
        let late = |_| OpenError::HandshakeTimeout(self.answer);
        asked.await.map_err(late)
    }

    /// The peer does not take our handshake, of which it may speak only when it is over for us: TLS 1.3 has the client done first.
    pub(crate) fn refusal(&self) -> Option<TlsError> {
        self.gauge.refusal().map(TlsError::Alert)
    }

    /// Asks for a tunnel, with a `path` for datagrams, and waits for the answer. What its app has said `first` goes along if the peer's
    /// windows allow it; the tunnel knows how much did.
    pub(crate) async fn connect(
        &self,
        connect: &Connect,
        path: Option<&str>,
        first: &[u8],
        lease: Lease,
    ) -> Result<Tunnel, ConnectError> {
        let asking = self.asking.ask(connect, path, first);
        let answered = match tokio::time::timeout(self.answer, asking).await {
            Ok(answered) => answered.map_err(|why| self.failed(why))?,
            Err(_) => {
                // Of no use to whoever comes next either; kept, each of them would leave one more behind.
                if self.asking.places() == 0 {
                    self.close();
                }
                return Err(ConnectError::Final(OpenError::AnswerTimeout(self.answer)));
            }
        };
        if !(200..300).contains(&answered.status) {
            // Dropping both halves resets the stream (CANCEL).
            return Err(ConnectError::Final(OpenError::Refused(answered.status)));
        }
        let tunnel = Tunnel::new(answered.receiving, answered.sending, lease);
        Ok(tunnel.behind(answered.sent))
    }

    /// What it means for the request and for the link. Unless bytes of the tunnel went along with it, whatever
    /// is wrong with the connection, the request may be made again.
    fn failed(&self, why: Unanswered) -> ConnectError {
        match why {
            Unanswered::Malformed(what) => ConnectError::Final(OpenError::Malformed(what.into())),
            Unanswered::Unseen(words) => ConnectError::Retry(OpenError::Reset(words)),
            Unanswered::Reset(words) => ConnectError::Final(OpenError::Reset(words)),
            Unanswered::Lost(words) => self.lost(words).into(),
            Unanswered::Cut(words) => ConnectError::Final(self.lost(words)),
        }
    }

    fn lost(&self, words: String) -> OpenError {
        self.close();
        // Where we have hung up, that is the reason, and not what it looks like from here.
        if let Some(why) = self.occupancy.disbelieved() {
            return OpenError::Tls(why.clone());
        }
        if let Some(why) = self.refusal() {
            return OpenError::Tls(why);
        }
        let cut_off = |flood: Refusal| format!("cut off: {}", flood.name());
        OpenError::ConnectionLost(self.gauge.flood().map_or(words, cut_off))
    }
}

async fn shake_hands<T>(
    socket: T,
    certificate: &Certificate,
    expected: Expected<'_>,
    times: Times,
    reserve: Reserve,
) -> Result<(Link, Driver<T>), OpenError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let lists = certificate.revocations().clone();
    // Before anything is proven: what comes meanwhile counts as after.
    let number = lists.number();
    let begun = begin(socket, certificate, expected, times.engine).await?;
    let evidence = begun.session.evidence.clone();
    let occupancy = Occupancy::new(begun.session.peer, reserve);
    let driver = Driver {
        pinger: Pinger::new(begun.ping, times.ping_every, times.ping_answer),
        engine: begun.driving,
        gauge: begun.gauge.clone(),
        idle_timer: Box::pin(tokio::time::sleep(times.idle)),
        idle: times.idle,
        leaving: false,
        occupancy: occupancy.clone(),
        trust: Some(Trust::new(evidence, lists, number)),
    };
    let link = Link {
        asking: begun.asking,
        occupancy,
        gauge: begun.gauge,
        answer: times.answer,
        end: End::at(certificate.not_after()),
    };
    Ok((link, driver))
}

/// Why a driver ended, for logs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("closed in order")]
    Closed,
    #[error("unused")]
    Idle,
    #[error("no answer to a PING")]
    Unresponsive,
    #[error("cut off: {0}")]
    Flood(&'static str),
    #[error("cut: {0}")]
    Disbelieved(TlsError),
    #[error("broke: {0}")]
    Lost(String),
}

/// Drives one connection: a future that is done when the connection is over.
pub(crate) struct Driver<T> {
    engine: Driving<T>,
    gauge: Arc<Gauge>,
    occupancy: Arc<Occupancy>,
    pinger: Pinger,
    idle_timer: Pin<Box<Sleep>>,
    idle: Duration,
    /// It has closed itself and is only saying goodbye.
    leaving: bool,
    /// None where nobody says who was revoked.
    trust: Option<Trust>,
}

impl Driver<TcpStream> {
    /// Of a connection that was frozen.
    pub(crate) fn thawed(
        thawed: Thawed,
        pinger: Pinger,
        idle: Duration,
        trust: Option<Trust>,
    ) -> Self {
        Self {
            engine: Driving::Own(thawed.driver),
            gauge: thawed.gauge,
            occupancy: thawed.occupancy,
            pinger,
            idle_timer: Box::pin(tokio::time::sleep(idle)),
            idle,
            leaving: false,
            trust,
        }
    }
}

impl<T> Driver<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// Runs the connection to its end. `on_idle` is called when it closes itself, so that the pool
    /// lets go of it; the engine then says goodbye by itself.
    pub(crate) async fn run(mut self, mut on_idle: impl FnMut()) -> Ended {
        let ended = poll_fn(|cx| self.poll(cx, &mut on_idle)).await;
        self.occupancy.close();
        ended
    }

    fn poll(&mut self, cx: &mut Context<'_>, on_idle: &mut impl FnMut()) -> Poll<Ended> {
        loop {
            // Nothing is decided about a connection that may be somebody else's.
            ready!(self.engine.poll_here(cx));
            // Other certificates may be revoked than when the peer has shown its own.
            if let Some(Err(why)) = self.trust.as_mut().and_then(Trust::look) {
                // Before its tunnels hear of it, which they do when the engine goes.
                self.occupancy.disbelieve(why.clone());
                return Poll::Ready(Ended::Disbelieved(why));
            }
            let wanted = self.engine.wanted(self.occupancy.streams());
            if let Some(target) = self.occupancy.grow(wanted) {
                self.engine.widen(target);
            }
            if let Poll::Ready(ended) = self.engine.poll(cx) {
                return Poll::Ready(match ended {
                    Ok(()) => Ended::Closed,
                    Err(words) => Ended::Lost(words),
                });
            }
            if let Some(flood) = self.gauge.flood() {
                return Poll::Ready(Ended::Flood(flood.name()));
            }
            if self.pinger.poll(cx).is_ready() {
                return Poll::Ready(Ended::Unresponsive);
            }
            ready!(self.idle_timer.as_mut().poll(cx));
            if self.leaving {
                return Poll::Ready(Ended::Idle);
            }
            let (now, due) = (Instant::now(), self.occupancy.last_used() + self.idle);
            if due <= now && self.occupancy.close_if_unused() {
                // The pool lets go, and with nobody left the engine says GOAWAY by itself.
                on_idle();
                self.leaving = true;
                self.idle_timer.as_mut().reset(now + LAST_WORDS);
            } else {
                // In use now or lately; a stream that ends tomorrow is found by looking again.
                self.idle_timer.as_mut().reset(due.max(now + self.idle / 8));
            }
        }
    }
}

/// How long a connection that closes itself may take to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A tunnel inside a tunnel: TLS and HTTP/2 once more with the server behind a gateway. The inner
/// connection carries this one tunnel and lives as long as it.
///
/// # Errors
/// As for [`crate::Pool::open`].
pub async fn inside(
    outer: Tunnel,
    certificate: &Certificate,
    expected: &[Identity],
    connect: &Connect,
) -> Result<Tunnel, OpenError> {
    let times = Times {
        handshake: Duration::from_secs(10),
        answer: Duration::from_secs(30),
        ping_every: Duration::from_secs(10),
        ping_answer: Duration::from_secs(20),
        idle: Duration::from_secs(300),
        engine: outer.engine(),
    };
    // Nothing says which of the servers behind the gateway it will be: nothing to go on with.
    let expected = Expected {
        identities: expected,
        address: None,
    };
    let (link, driver): (Link, Driver<TunnelIo>) = Link::establish(
        outer.into_io(),
        certificate,
        expected,
        times,
        Reserve::default(),
    )
    .await?;
    tokio::spawn(driver.run(|| {}));
    let Some(lease) = link.lease(1) else {
        let none = || OpenError::Http2("the server allows no streams".into());
        return Err(link.refusal().map_or_else(none, OpenError::Tls));
    };
    match link.connect(connect, None, &[], lease).await {
        Ok(tunnel) => Ok(tunnel),
        Err(ConnectError::Retry(error) | ConnectError::Final(error)) => Err(error),
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("occupancy", &self.occupancy)
            .finish_non_exhaustive()
    }
}
