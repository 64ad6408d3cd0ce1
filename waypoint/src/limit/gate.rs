//! Circuit breaking: how much may be on its way to a service at one time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use api::waypoint as wire;
use api::waypoint::limits::Upgrade;

/// All gates of one service, port and subset.
#[derive(Debug, Clone)]
pub struct Gates {
    /// Connections to its endpoints.
    pub connections: Gate,
    /// Requests that wait for a connection.
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
    /// Closed after so long without a request.
    pub idle: Duration,
    /// Closed when so old; none: never.
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
            connections: Gate::new(found.connections),
            pending: Gate::new(found.pending),
            requests: Gate::new(found.requests),
            retries: Gate::new(found.retries),
            each: Connections::compile(found),
        }
    }

    /// Other limits for the same service: what is on its way goes on counting.
    #[must_use]
    pub fn succeeded_by(&self, found: Option<&wire::Limits>) -> Self {
        let next = Self::compile(found);
        let same = |old: &Gate, new: Gate| Gate {
            limit: new.limit,
            counts: old.counts.clone(),
        };
        Self {
            connections: same(&self.connections, next.connections),
            pending: same(&self.pending, next.pending),
            requests: same(&self.requests, next.requests),
            retries: same(&self.retries, next.retries),
            each: next.each,
        }
    }
}

impl Connections {
    /// How long a connection may take to be made, where somebody has said that.
    pub fn patience(&self) -> Option<Duration> {
        (self.connect_timeout != CONNECT_TIMEOUT).then_some(self.connect_timeout)
    }

    fn compile(found: &wire::Limits) -> Self {
        let some = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
        let number = |count: u32| (count > 0).then_some(count);
        Self {
            connect_timeout: some(found.connect_timeout).unwrap_or(CONNECT_TIMEOUT),
            idle: some(found.connection_idle).unwrap_or(IDLE),
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

/// Lets so many in at one time.
#[derive(Debug, Clone)]
pub struct Gate {
    /// 0 = any number.
    limit: u32,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    inside: AtomicU32,
    refused: AtomicU64,
}

impl Gate {
    fn new(limit: u32) -> Self {
        Self {
            limit,
            counts: Arc::default(),
        }
    }

    /// Goes in, until the permit is dropped; None if it is full.
    pub fn enter(&self) -> Option<Permit> {
        let before = self.counts.inside.fetch_add(1, Relaxed);
        let permit = Permit(self.counts.clone());
        if self.limit > 0 && before >= self.limit {
            self.counts.refused.fetch_add(1, Relaxed);
            return None; // and the permit gives the place back
        }
        Some(permit)
    }

    /// How many are inside.
    pub fn inside(&self) -> u32 {
        self.counts.inside.load(Relaxed)
    }

    /// How many were refused since the start.
    pub fn refused(&self) -> u64 {
        self.counts.refused.load(Relaxed)
    }

    /// How many may be inside; none: any number.
    pub fn limit(&self) -> Option<u32> {
        (self.limit > 0).then_some(self.limit)
    }
}

/// A place inside a gate.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct Permit(Arc<Counts>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Relaxed);
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(3600);
