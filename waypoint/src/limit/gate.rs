//! Circuit breaking: how much may be on its way to a service at one time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use api::waypoint as wire;
use api::waypoint::limits::Upgrade;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

/// All gates of one service, port and subset.
#[derive(Debug, Clone)]
pub struct Gates {
    /// Which these are: those of an older version of the same policy have the same number.
    pub number: u64,
    /// Connections to its endpoints. Those that requests share are counted where something is said of connections
    /// ([`Gates::binds`]): others are shared with whatever else the endpoint serves.
    pub connections: Gate,
    /// Requests that wait for a connection, counted like these.
    pub pending: Gate,
    /// Requests on their way.
    pub requests: Gate,
    /// Of these, those that are tried once more.
    pub retries: Gate,
    /// What holds for each connection.
    pub each: Connections,
}

/// What holds for each connection to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// To be made within.
    pub connect_timeout: Duration,
    /// Closed after so long without a request; none: as is usual.
    pub idle: Option<Duration>,
    /// One that carries bytes is ended after so long without any; none: never.
    pub silent: Option<Duration>,
    /// When so old it is given no further request, and ended where it carries bytes; none: never.
    pub age: Option<Duration>,
    /// Closed after so many requests; none: never.
    pub requests: Option<u32>,
    /// Requests at one time on an HTTP/2 connection; none: as many as the endpoint says.
    pub streams: Option<u32>,
    /// When HTTP/2 is spoken.
    pub http2: Upgrade,
    /// TCP keepalive: first probe after, then every, and so many.
    pub keepalive: Option<(Duration, Option<Duration>, Option<u32>)>,
}

impl Gates {
    /// From the wire; None: no limits.
    pub fn compile(found: Option<&wire::Limits>) -> Self {
        let none = wire::Limits::default();
        let found = found.unwrap_or(&none);
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            connections: Gate::new(found.connections),
            pending: Gate::new(found.pending),
            requests: Gate::new(found.requests),
            retries: Gate::new(found.retries),
            each: Connections::compile(found),
        }
    }

    /// Other limits for the same service: what is on its way goes on counting, and whoever waits is told.
    #[must_use]
    pub fn succeeded_by(&self, found: Option<&wire::Limits>) -> Self {
        let next = Self::compile(found);
        Self {
            number: self.number,
            connections: self.connections.succeeded_by(next.connections.limit()),
            pending: self.pending.succeeded_by(next.pending.limit()),
            requests: self.requests.succeeded_by(next.requests.limit()),
            retries: self.retries.succeeded_by(next.retries.limit()),
            each: next.each,
        }
    }

    /// Nothing is said any more: these limit nobody, and whoever waits is told. An older version, which has the same gates, may
    /// be used again then.
    pub fn lift(&self) {
        let all = [
            &self.connections,
            &self.pending,
            &self.requests,
            &self.retries,
        ];
        all.into_iter().for_each(|gate| gate.limit_to(None));
    }

    /// Whether something is said of connections or of those who wait for one, so that the service must have its own.
    pub fn binds(&self) -> bool {
        let each = &self.each;
        let ages = each.idle.is_some() || each.age.is_some() || each.keepalive.is_some();
        self.counts() || ages || each.requests.is_some() || each.streams.is_some()
    }

    /// Whether there may only be so many of them.
    pub fn counts(&self) -> bool {
        self.connections.limit().is_some() || self.pending.limit().is_some()
    }
}

impl Connections {
    /// How long a connection may take to be made, where somebody has said that.
    pub fn patience(&self) -> Option<Duration> {
        (self.connect_timeout != CONNECT_TIMEOUT).then_some(self.connect_timeout)
    }

    /// Whether one that was made then and has carried so many requests is to carry no more.
    pub fn is_over(&self, born: Instant, carried: u32) -> bool {
        self.age.is_some_and(|age| born.elapsed() >= age)
            || self.requests.is_some_and(|most| carried >= most)
    }

    /// Whether one that has been free since then is to be closed.
    pub fn is_late(&self, since: Instant) -> bool {
        self.idle.is_some_and(|idle| since.elapsed() >= idle)
    }

    fn compile(found: &wire::Limits) -> Self {
        let some = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
        let number = |count: u32| (count > 0).then_some(count);
        Self {
            connect_timeout: some(found.connect_timeout).unwrap_or(CONNECT_TIMEOUT),
            idle: some(found.connection_idle),
            silent: some(found.silence),
            age: some(found.connection_age),
            requests: number(found.requests_per_connection),
            streams: number(found.streams),
            http2: found.http2(),
            keepalive: some(found.keepalive_time).map(|time| {
                let every = some(found.keepalive_interval);
                (time, every, number(found.keepalive_probes))
            }),
        }
    }
}

/// Lets so many in at one time. Clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    /// 0 = any number.
    limit: AtomicU32,
    inside: AtomicU32,
    refused: AtomicU64,
    /// Who waits for somebody to leave: mostly nobody, and then nobody is told.
    waiting: AtomicU32,
    left: Notify,
}

impl Gate {
    fn new(limit: u32) -> Self {
        Self(Arc::new(Counts {
            limit: AtomicU32::new(limit),
            inside: AtomicU32::default(),
            refused: AtomicU64::default(),
            waiting: AtomicU32::default(),
            left: Notify::new(),
        }))
    }

    fn succeeded_by(&self, limit: Option<u32>) -> Self {
        self.limit_to(limit);
        self.clone()
    }

    fn limit_to(&self, limit: Option<u32>) {
        self.0.limit.store(limit.unwrap_or(0), Ordering::SeqCst);
        self.0.tell();
    }

    /// Goes in, until the permit is dropped; None if it is full.
    pub fn enter(&self) -> Option<Permit> {
        let permit = self.room();
        if permit.is_none() {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
        }
        permit
    }

    /// The same by somebody who will wait, and is not refused.
    pub(crate) fn room(&self) -> Option<Permit> {
        let Some(most) = self.limit() else {
            return Some(self.enter_beyond());
        };
        let more = |inside: u32| (inside < most).then_some(inside + 1);
        let (order, inside) = (Ordering::SeqCst, &self.0.inside);
        let entered = inside.fetch_update(order, order, more);
        entered.is_ok().then(|| Permit(self.0.clone()))
    }

    /// Goes in though it may be full.
    pub(crate) fn enter_beyond(&self) -> Permit {
        self.0.inside.fetch_add(1, Ordering::SeqCst);
        Permit(self.0.clone())
    }

    /// To be told when somebody leaves, or when more may come in.
    pub(crate) fn watch(&self) -> Watch<'_> {
        self.0.waiting.fetch_add(1, Ordering::SeqCst);
        Watch(&self.0)
    }

    /// How many are inside.
    pub fn inside(&self) -> u32 {
        self.0.inside.load(Ordering::Relaxed)
    }

    /// How many were refused since the start.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// How many may be inside; none: any number.
    pub fn limit(&self) -> Option<u32> {
        let limit = self.0.limit.load(Ordering::Relaxed);
        (limit > 0).then_some(limit)
    }
}

impl Counts {
    fn tell(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.left.notify_waiters();
        }
    }
}

/// A place inside a gate.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct Permit(Arc<Counts>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
        self.0.tell();
    }
}

/// Somebody who waits at a gate.
#[derive(Debug)]
pub(crate) struct Watch<'g>(&'g Counts);

impl Watch<'_> {
    /// Ends when somebody has left since.
    pub(crate) fn left(&self) -> Notified<'_> {
        self.0.left.notified()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

static NUMBERS: AtomicU64 = AtomicU64::new(0);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
