//! A tunnel arrives.
//!
//! 1. handshake within a deadline: TLS with a proven client, then HTTP/2   ([`accept`])
//! 2. requests one at a time                                               ([`Connection::next`])
//! 3. what is no CONNECT to a readable authority is answered here and told  ([`Incoming::Refused`])
//! 4. the caller decides: a tunnel, or a refusal                           ([`Incoming::Request`])
//! 5. drain: GOAWAY, streams go on, deadline, end                          ([`Connection::drain`])
//!
//! When other certificates are revoked, each peer is judged again by what it has shown: whoever is on the list now, or of
//! whom that cannot be told any more, is cut off, and its tunnels with it. The connections of all others are drained
//! without a deadline: what is open goes on, and they come again for more.
//!
//! [`Connection::next`] also drives every tunnel of the connection: call it until it returns `None`,
//! and do the work of each request in a task of its own.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, Sleep},
};

use crate::{
    certs::Certificate,
    engine::{
        Occupancy, Pinger, Thawed,
        server::{Asked, Broken, Serving},
    },
    gauge::Gauge,
    handover::{Freezer, NotFrozen},
    identity::Identity,
    incoming::{self, Incoming},
    limits::{Limits, Refusal},
    socket::Socket,
    tls::{Revocations, Session, TlsError, Trust},
};

/// How long a connection that was told to go may take to read it.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Error codes of GOAWAY (RFC 9113, 7).
const NO_ERROR: u32 = 0;
const ENHANCE_YOUR_CALM: u32 = 11;
const INADEQUATE_SECURITY: u32 = 12;
/// Value of `Connection::drain_within` when nobody asked to drain.
const STAY: u64 = u64::MAX;

/// Why a connection did not come into being.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AcceptError {
    /// TLS and HTTP/2 were not up within [`Limits::handshake`].
    #[error("the handshake took longer than {0:?}")]
    Slow(Duration),
    /// TLS failed; says whose fault.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP/2 preface was wrong or never came.
    #[error("no HTTP/2 after TLS: {0}")]
    Preface(String),
}

/// Why a connection ended otherwise than by mutual consent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectionError {
    /// The peer sent more of something useless than is allowed.
    #[error("the peer was cut off: {}", .0.name())]
    Flood(Refusal),
    /// The peer did not answer a PING.
    #[error("the peer did not answer a PING")]
    Unresponsive,
    /// The peer is not believed any more, by lists of revoked certificates that came while the connection was open.
    #[error("the peer was cut off: {0}")]
    Disbelieved(TlsError),
    /// The peer violated HTTP/2 or passed one of the engine's limits.
    #[error("the peer violated HTTP/2: {0}")]
    Protocol(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// It goes on elsewhere ([`crate::handover`]): nothing was closed, and nothing is to be reported.
    #[error("the connection was handed over")]
    HandedOver,
    /// Streams were still open when the drain's deadline passed.
    #[error("{0} tunnels were still open when the drain's deadline passed")]
    DrainDeadline(usize),
}

/// A connection of a proven peer.
pub struct Connection<T = TcpStream> {
    engine: Serving<T>,
    session: Session,
    limits: Limits,
    gauge: Arc<Gauge>,
    occupancy: Arc<Occupancy>,
    pinger: Pinger,
    /// Milliseconds within which to end, or [`STAY`].
    drain_within: AtomicU64,
    phase: Phase,
    /// None until somebody says by which lists a connection that was taken over is judged.
    trust: Option<Trust>,
}

/// `Serving → Draining → Leaving → Over`, any of which may be skipped.
enum Phase {
    Serving,
    /// GOAWAY is sent; open streams go on until the deadline, so many milliseconds after it.
    Draining(Pin<Box<Sleep>>, u64),
    /// Cut off; only the last GOAWAY is being written.
    Leaving(Pin<Box<Sleep>>, ConnectionError),
    Over,
}

/// Shakes hands as `certificate`'s identity with a peer that proves its own.
///
/// # Errors
/// When the peer is slow, is not who it must be, or does not speak HTTP/2. It has been counted.
pub async fn accept<T>(
    socket: T,
    certificate: Arc<Certificate>,
    limits: &Limits,
) -> Result<Connection<T>, AcceptError>
where
    T: Socket,
{
    socket.tune();
    // Boxed: handshake state is large, and is gone before the long life of the connection begins.
    let handshake = Box::pin(shake_hands(socket, &certificate, limits));
    let outcome = match tokio::time::timeout(limits.handshake, handshake).await {
        Ok(outcome) => outcome,
        Err(_) => Err(AcceptError::Slow(limits.handshake)),
    };
    outcome.inspect_err(|error| {
        limits.refused(match error {
            AcceptError::Slow(_) => Refusal::SlowHandshake,
            AcceptError::Tls(_) => Refusal::Tls,
            AcceptError::Preface(_) => Refusal::Preface,
        });
    })
}

async fn shake_hands<T>(
    socket: T,
    certificate: &Certificate,
    limits: &Limits,
) -> Result<Connection<T>, AcceptError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let revocations = certificate.revocations().clone();
    // Before anything is proven: what comes meanwhile counts as after.
    let number = revocations.number();
    let begun = Serving::begin(socket, certificate, limits).await?;
    let evidence = begun.session.evidence.clone();
    Ok(Connection {
        engine: begun.serving,
        occupancy: Occupancy::new(begun.session.peer.clone(), limits.reserve.clone()),
        session: begun.session,
        limits: limits.clone(),
        gauge: begun.gauge,
        pinger: Pinger::new(begun.ping, limits.ping_every, limits.ping_answer),
        drain_within: AtomicU64::new(STAY),
        phase: Phase::Serving,
        trust: Some(Trust::new(evidence, revocations, number)),
    })
}

impl Connection {
    /// One that was frozen.
    pub(crate) fn thawed(thawed: Thawed, limits: &Limits) -> Self {
        Self {
            pinger: thawed.pinger(limits.ping_every, limits.ping_answer),
            session: thawed.driver.0.session().clone(),
            engine: Serving::Own(thawed.driver),
            occupancy: thawed.occupancy,
            limits: limits.clone(),
            gauge: thawed.gauge,
            drain_within: AtomicU64::new(STAY),
            phase: Phase::Serving,
            trust: None,
        }
    }

    /// The peer of a connection that was taken over has proven itself to another process, and nobody here knows under
    /// which lists of revoked certificates. Where there is any in `lists` it is judged by them, and asked to come again if
    /// there is nothing against it; so it is whenever they change. One whose certificate was not handed over with it is asked
    /// to come again now, and cut off when they change.
    pub fn mind(&mut self, lists: &Arc<Revocations>) {
        let evidence = self.session.evidence.clone();
        if evidence.is_none() && lists.are_any() {
            self.drain(Duration::MAX);
        }
        self.trust = Some(Trust::taken(evidence, lists));
    }
}

impl<T> Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// To freeze it, and all its tunnels.
    ///
    /// # Errors
    /// [`NotFrozen::Engine`].
    pub fn freezer(&self) -> Result<Freezer, NotFrozen> {
        let own = self.engine.own();
        own.map(Freezer::of).ok_or(NotFrozen::Engine)
    }

    /// Who the peer is.
    pub fn peer(&self) -> &Identity {
        &self.session.peer
    }

    /// What the handshake agreed on.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Tunnels that are open now.
    pub fn streams(&self) -> usize {
        self.occupancy.streams()
    }

    /// The next request, or the news that one was answered here because it makes no sense. `None` after
    /// the end; an error once before it when the end was not peaceful. Drives all tunnels of the
    /// connection. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Incoming, ConnectionError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Tells the peer to open no more streams here, and ends when the open ones have ended or after
    /// `within`, whichever is first. Takes effect with the next call of [`Connection::next`].
    pub fn drain(&self, within: Duration) {
        let within = u64::try_from(within.as_millis())
            .unwrap_or(STAY)
            .min(STAY - 1);
        self.drain_within.fetch_min(within, Ordering::Relaxed);
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Incoming, ConnectionError>>> {
        loop {
            // Nothing is decided about a connection that may be somebody else's.
            ready!(self.engine.poll_here(cx));
            if matches!(self.phase, Phase::Over) {
                return Poll::Ready(None);
            }
            self.judge();
            self.begin_drain();
            self.widen();
            let accepted = self.engine.poll_asked(cx);
            self.gauge.refused_streams(|kind| self.limits.refused(kind));
            match accepted {
                Poll::Ready(Some(Ok(asked))) => {
                    if let Some(incoming) = self.admit(asked) {
                        return Poll::Ready(Some(Ok(incoming)));
                    }
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(self.over(Some(error))),
                Poll::Ready(None) => return Poll::Ready(self.over(None)),
                Poll::Pending => {}
            }
            match self.poll_end(cx) {
                Poll::Ready(None) => {}
                Poll::Ready(Some(error)) => {
                    self.phase = Phase::Over;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Looks whether other certificates are revoked, and what that means for the peer.
    fn judge(&mut self) {
        if matches!(self.phase, Phase::Leaving(..)) {
            return;
        }
        match self.trust.as_mut().and_then(Trust::look) {
            None => {}
            Some(Ok(())) => self.drain(Duration::MAX),
            Some(Err(why)) => {
                self.limits.refused(Refusal::Revoked);
                // Before its tunnels hear of it.
                self.occupancy.disbelieve(why.clone());
                self.cut_off(INADEQUATE_SECURITY, ConnectionError::Disbelieved(why));
            }
        }
    }

    fn begin_drain(&mut self) {
        let within = self.drain_within.load(Ordering::Relaxed);
        let timer = || tokio::time::sleep(Duration::from_millis(within));
        match &mut self.phase {
            Phase::Serving if within != STAY => {
                self.engine.drain();
                self.phase = Phase::Draining(Box::pin(timer()), within);
            }
            // There is less time than there was.
            Phase::Draining(_, before) if within < *before => {
                self.phase = Phase::Draining(Box::pin(timer()), within);
            }
            _ => {}
        }
    }

    /// Reasons to end that are not in the engine. `Ready(None)`: the engine must be polled again.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<ConnectionError>> {
        match &mut self.phase {
            Phase::Leaving(timer, error) => {
                return timer.as_mut().poll(cx).map(|()| Some(error.clone()));
            }
            Phase::Draining(timer, _) => {
                if timer.as_mut().poll(cx).is_ready() {
                    self.cut_off(
                        NO_ERROR,
                        ConnectionError::DrainDeadline(self.occupancy.streams()),
                    );
                    return Poll::Ready(None);
                }
            }
            Phase::Serving | Phase::Over => {}
        }
        if let Some(flood) = self.gauge.flood() {
            self.limits.refused(flood);
            self.cut_off(ENHANCE_YOUR_CALM, ConnectionError::Flood(flood));
            return Poll::Ready(None);
        }
        if self.pinger.poll(cx).is_ready() {
            self.limits.refused(Refusal::Unresponsive);
            return Poll::Ready(Some(ConnectionError::Unresponsive));
        }
        Poll::Pending
    }

    fn cut_off(&mut self, code: u32, error: ConnectionError) {
        self.engine.cut_off(code);
        let deadline = Instant::now() + LAST_WORDS;
        self.phase = Phase::Leaving(Box::pin(tokio::time::sleep_until(deadline)), error);
    }

    /// The engine has ended; what is there to say about it.
    fn over(&mut self, error: Option<Broken>) -> Option<Result<Incoming, ConnectionError>> {
        if let Phase::Leaving(_, error) = std::mem::replace(&mut self.phase, Phase::Over) {
            return Some(Err(error));
        }
        let error = error?;
        if let Some(flood) = self.gauge.flood() {
            self.limits.refused(flood);
            return Some(Err(ConnectionError::Flood(flood)));
        }
        Some(Err(match error {
            Broken::Lost(words) => ConnectionError::Lost(words),
            Broken::Excess(words) => {
                self.limits.refused(Refusal::Excess);
                ConnectionError::Protocol(words)
            }
            Broken::Violated(words) => {
                self.limits.refused(Refusal::Protocol);
                ConnectionError::Protocol(words)
            }
            Broken::Accused(words) => ConnectionError::Protocol(words),
            Broken::HandedOver => ConnectionError::HandedOver,
        }))
    }

    /// Takes what room the streams need.
    fn widen(&mut self) {
        let wanted = self.engine.wanted(self.occupancy.streams());
        if let Some(target) = self.occupancy.grow(wanted) {
            self.engine.widen(target);
        }
    }

    /// Lets a request through to the caller, or answers it and says why.
    fn admit(&mut self, asked: Asked) -> Option<Incoming> {
        // The engine keeps to STREAMS; a lease that lags behind a stream's end must not refuse one.
        let lease = self.occupancy.lease(usize::MAX >> 1)?;
        let incoming = incoming::read(asked, self.gauge.clone(), lease);
        if let Incoming::Refused(why) = &incoming {
            self.limits.refused(why.kind());
        }
        Some(incoming)
    }
}

impl<T> fmt::Debug for Connection<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}
