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

use bytes::Bytes;
use http::{HeaderValue, Method, uri};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep},
};

use crate::{
    ahead::ReadAhead,
    certs::{Certificate, CertificateError},
    engine::{Lease, Occupancy, Pinger, words},
    gauge::{Gauge, Gauged},
    identity::Identity,
    limits::{CLIENT_HEADER_LIST, CONNECTION_WINDOW, FRAME, SEND_BUFFER, STREAM_WINDOW},
    request::Authority,
    room::Reserve,
    tls::{Stream, TlsError},
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
        }
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
    /// The peer reset the stream instead of answering.
    #[error("the peer reset the tunnel: {0}")]
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
}

/// A connection on which tunnels can be opened. The connection ends when this and all its tunnels are
/// dropped.
pub(crate) struct Link {
    send: h2::client::SendRequest<Bytes>,
    occupancy: Arc<Occupancy>,
    gauge: Arc<Gauge>,
    answer: Duration,
    /// The end of the certificate that this link was made with.
    expires: Instant,
}

/// How opening a stream on a link failed.
pub(crate) enum ConnectError {
    /// Another link may do better: this one went away before the peer looked at the request.
    Retry(OpenError),
    /// It would fail on any link.
    Final(OpenError),
}

impl Link {
    /// Shakes hands on `socket`. The driver must be run for anything to happen.
    pub(crate) async fn establish<T>(
        socket: T,
        certificate: &Certificate,
        expected: &[Identity],
        times: Times,
        reserve: Reserve,
    ) -> Result<(Self, Driver<T>), OpenError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = Box::pin(shake_hands(socket, certificate, expected, times, reserve));
        match tokio::time::timeout(times.handshake, handshake).await {
            Ok(outcome) => outcome,
            Err(_) => Err(OpenError::HandshakeTimeout(times.handshake)),
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
        self.gauge.stalled()
    }

    /// The peer wants no more streams here.
    pub(crate) fn going_away(&self) -> bool {
        self.gauge.going_away() || self.closed()
    }

    /// Who we were when this link was made, we no longer are.
    pub(crate) fn expired(&self) -> bool {
        self.expires <= Instant::now()
    }

    /// A place for one more stream, if this link should get one.
    pub(crate) fn lease(&self, most: usize) -> Option<Lease> {
        self.occupancy
            .lease(most.min(self.send.current_max_send_streams()))
    }

    /// Asks for a tunnel and waits for the answer.
    pub(crate) async fn connect(
        &self,
        connect: &Connect,
        lease: Lease,
    ) -> Result<Tunnel, ConnectError> {
        let request = request(connect).map_err(ConnectError::Final)?;
        let asking = async {
            let mut send = self.send.clone().ready().await?;
            let (response, writer) = send.send_request(request, false)?;
            Ok((response.await?, writer))
        };
        let (response, writer) = match tokio::time::timeout(self.answer, asking).await {
            Ok(answered) => answered.map_err(|e| self.failed(&e))?,
            Err(_) => return Err(ConnectError::Final(OpenError::AnswerTimeout(self.answer))),
        };
        if !response.status().is_success() {
            // Dropping both halves resets the stream (CANCEL).
            return Err(ConnectError::Final(OpenError::Refused(
                response.status().as_u16(),
            )));
        }
        Ok(Tunnel::new(response.into_body(), writer, lease))
    }

    /// What an engine error means for the request and for the link. No byte of the tunnel has been
    /// sent yet, so whatever is wrong with the connection, the request may be made again.
    fn failed(&self, error: &h2::Error) -> ConnectError {
        if error.is_reset() && !error.is_library() {
            let reset = OpenError::Reset(
                error
                    .reason()
                    .map_or_else(|| "unknown".to_owned(), |r| r.to_string()),
            );
            return if error.reason() == Some(h2::Reason::REFUSED_STREAM) {
                ConnectError::Retry(reset)
            } else {
                ConnectError::Final(reset)
            };
        }
        self.close();
        ConnectError::Retry(OpenError::ConnectionLost(words(error)))
    }
}

async fn shake_hands<T>(
    socket: T,
    certificate: &Certificate,
    expected: &[Identity],
    times: Times,
    reserve: Reserve,
) -> Result<(Link, Driver<T>), OpenError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (stream, session) = certificate
        .credentials
        .connect(ReadAhead::new(socket), expected)
        .await?;
    let left = certificate.not_after().duration_since(SystemTime::now());
    let left = left.unwrap_or_default();
    let gauge = Gauge::new();
    let (send, mut engine) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(CLIENT_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(Gauged::client(stream, gauge.clone()))
        .await
        .map_err(|e| OpenError::Http2(words(&e)))?;
    let occupancy = Occupancy::new(session.peer, reserve);
    let driver = Driver {
        pinger: Pinger::new(engine.ping_pong(), times.ping_every, times.ping_answer),
        engine,
        gauge: gauge.clone(),
        idle_timer: Box::pin(tokio::time::sleep(times.idle)),
        idle: times.idle,
        leaving: false,
        occupancy: occupancy.clone(),
    };
    Ok((
        Link {
            send,
            occupancy,
            gauge,
            answer: times.answer,
            expires: Instant::now() + left,
        },
        driver,
    ))
}

fn request(connect: &Connect) -> Result<http::Request<()>, OpenError> {
    let malformed = |what: &str| OpenError::Malformed(what.to_owned());
    let authority = uri::Authority::try_from(connect.authority.to_string())
        .map_err(|_| malformed("authority"))?;
    let mut target = uri::Parts::default();
    target.authority = Some(authority);
    let mut request = http::Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = http::Uri::from_parts(target).map_err(|_| malformed("authority"))?;
    for (name, value) in [
        ("baggage", &connect.baggage),
        ("forwarded", &connect.forwarded),
        ("traceparent", &connect.traceparent),
        ("x-forwarded-network", &connect.x_forwarded_network),
    ] {
        if let Some(value) = value {
            request.headers_mut().insert(
                name,
                HeaderValue::try_from(value).map_err(|_| malformed(name))?,
            );
        }
    }
    Ok(request)
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
    #[error("broke: {0}")]
    Lost(String),
}

/// Drives one connection: a future that is done when the connection is over.
pub(crate) struct Driver<T> {
    engine: h2::client::Connection<Gauged<Stream<ReadAhead<T>>>, Bytes>,
    gauge: Arc<Gauge>,
    occupancy: Arc<Occupancy>,
    pinger: Pinger,
    idle_timer: Pin<Box<Sleep>>,
    idle: Duration,
    /// It has closed itself and is only saying goodbye.
    leaving: bool,
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
            if let Some(target) = self.occupancy.grow() {
                self.engine.set_target_window_size(target);
            }
            if let Poll::Ready(ended) = Pin::new(&mut self.engine).poll(cx) {
                return Poll::Ready(match ended {
                    Ok(()) => Ended::Closed,
                    Err(error) => Ended::Lost(words(&error)),
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
        return Err(OpenError::Http2("the server allows no streams".into()));
    };
    match link.connect(connect, lease).await {
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
