//! What one peer may ask of one connection, each figure with its reason, and the names under which
//! refusals are counted.
//!
//! The engine enforces some of these itself (header list, concurrent streams, continuation frames);
//! the others are counted by [`crate::gauge`] as frames pass, with the budgets defined here.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::room::Reserve;

/// Receive window of each stream, in bytes. Wire contract; the engine `h2` announces it, in our own a stream comes to it
/// by use.
pub const STREAM_WINDOW: u32 = 4 << 20;
/// Receive window with which a stream of our own engine begins, in bytes. More than the sockets of an app take that
/// reads nothing, twice over, so that its stream never gets more; enough for 1 GB/s within a data centre.
pub const FIRST_STREAM_WINDOW: u32 = 512 << 10;
/// Receive window announced for a connection that begins, in bytes. Wire contract. It grows with
/// the number of streams (see `room`), so that streams nobody reads cannot use it up.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// By how much one connection's receive window may grow, in bytes. With `h2`: 35 streams that nobody reads before
/// the others are held up; 200 streams, as many as a peer may open, would be 784 MiB. With our own engine 200 that
/// nobody ever read have room, and a window grows only within it.
pub const CONNECTION_ROOM: u32 = 128 << 20;
/// By how much the receive windows of all connections of this process may grow together, in bytes,
/// unless a [`Reserve`] is given: half of the memory a node's proxy is commonly allowed. The 16 MiB
/// with which each connection begins are not part of it.
pub const RESERVE: u64 = 512 << 20;
/// Largest frame we accept, in bytes. Wire contract.
pub const FRAME: u32 = 1 << 20;
/// Header list announced by a server, in bytes. Wire contract: Istio's ztunnel announces this much
/// although no request of a mesh comes near it. Requests are parsed and dropped as they arrive, so
/// at worst one list per waiting stream is held: 200 x 64 KiB.
pub(crate) const SERVER_HEADER_LIST: u32 = 64 << 10;
/// Header list announced by a client, in bytes. Wire contract.
pub(crate) const CLIENT_HEADER_LIST: u32 = 16 << 10;
/// Streams a peer may have open on one connection. Wire contract.
pub(crate) const STREAMS: u32 = 200;
/// Bytes of one stream that wait in the engine to be sent. Enough to keep a 10 Gb/s link busy while
/// the task that refills it is scheduled; more would only be memory per slow stream.
pub(crate) const SEND_BUFFER: usize = 128 << 10;
/// Largest DATA frame we send, in bytes: an interactive stream waits behind at most one of these
/// per busy neighbour, and the 9-byte head is already noise at this size.
pub(crate) const DATA: usize = 64 << 10;

/// What carries a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Engine {
    /// The `h2` crate over rustls: simple, and what the other is measured by.
    H2,
    /// Our own records and frames, sealed and opened in place. What it carries can be handed over.
    #[default]
    Own,
}

/// Limits of a server connection. `Default` is what ztunnel runs with.
#[derive(Clone)]
pub struct Limits {
    /// From the accepted socket to the end of the HTTP/2 preface. A peer that is alive needs three
    /// round trips; one that is not must not hold a socket and a task.
    pub handshake: Duration,
    /// A PING is sent after this long.
    pub ping_every: Duration,
    /// A PING that is not answered for this long ends the connection.
    pub ping_answer: Duration,
    /// Where receive windows grow from.
    pub reserve: Reserve,
    /// What carries the connection.
    pub engine: Engine,
    /// Offer ways for datagrams too ([`crate::datagrams`]).
    pub datagrams: bool,
    /// Called once for every refusal, from the task that refuses: count it and return.
    pub on_refusal: Option<Arc<dyn Fn(Refusal) + Send + Sync>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            ping_every: Duration::from_secs(10),
            ping_answer: Duration::from_secs(20),
            reserve: Reserve::default(),
            engine: Engine::default(),
            datagrams: false,
            on_refusal: None,
        }
    }
}

impl Limits {
    pub(crate) fn refused(&self, why: Refusal) {
        if let Some(count) = &self.on_refusal {
            count(why);
        }
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits")
            .field("handshake", &self.handshake)
            .field("ping_every", &self.ping_every)
            .finish_non_exhaustive()
    }
}

/// Why something a peer sent was refused. [`Refusal::name`] is the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// TLS and HTTP/2 were not up in time.
    SlowHandshake,
    /// The peer has no acceptable certificate, or TLS failed otherwise.
    Tls,
    /// The HTTP/2 preface was wrong or the connection broke before it.
    Preface,
    /// A request whose method is not CONNECT.
    NotConnect,
    /// A CONNECT whose authority is missing or not `ip:port` or `host:port`.
    Authority,
    /// A stream that is no request (garbage for an authority, a CONNECT with a path, headers beyond
    /// the limit). The engine answers or resets it; nobody else sees it.
    MalformedStream,
    /// A stream beyond those that may be open at once; reset by the engine.
    SurplusStream,
    /// Too many PING frames.
    PingFlood,
    /// Too many SETTINGS frames.
    SettingsFlood,
    /// Too many empty DATA frames.
    EmptyDataFlood,
    /// Too many streams reset before they were answered (rapid reset).
    ResetFlood,
    /// Too many frames that carry nothing we use (PRIORITY and unknown types).
    IdleFrameFlood,
    /// The engine ended the connection for a violation of HTTP/2.
    Protocol,
    /// The engine ended the connection because one of its own limits was passed.
    Excess,
    /// The peer did not answer a PING.
    Unresponsive,
    /// A list came that names the peer's certificate or that of who signed it, or by which nobody can tell; its connection
    /// was open.
    Revoked,
}

impl Refusal {
    /// A stable snake_case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlowHandshake => "slow_handshake",
            Self::Tls => "tls",
            Self::Preface => "preface",
            Self::NotConnect => "not_connect",
            Self::Authority => "authority",
            Self::MalformedStream => "malformed_stream",
            Self::SurplusStream => "surplus_stream",
            Self::PingFlood => "ping_flood",
            Self::SettingsFlood => "settings_flood",
            Self::EmptyDataFlood => "empty_data_flood",
            Self::ResetFlood => "reset_flood",
            Self::IdleFrameFlood => "idle_frame_flood",
            Self::Protocol => "protocol",
            Self::Excess => "excess",
            Self::Unresponsive => "unresponsive",
            Self::Revoked => "revoked",
        }
    }
}

/// How often something may happen: `burst` at once, then `per_second`.
#[derive(Debug)]
pub(crate) struct Budget {
    burst: u32,
    per_second: u32,
    left: u32,
    refilled: Option<Instant>,
}

impl Budget {
    pub(crate) const fn new(burst: u32, per_second: u32) -> Self {
        Self {
            burst,
            per_second,
            left: burst,
            refilled: None,
        }
    }

    /// PING frames. Like each of these it allows far more than a busy honest peer sends: that
    /// acknowledges our PING each 10 s, and may probe for bandwidth once per round trip.
    pub(crate) const fn pings() -> Self {
        Self::new(1000, 100)
    }

    /// SETTINGS frames: they hardly ever change.
    pub(crate) const fn settings() -> Self {
        Self::new(50, 1)
    }

    /// DATA frames with nothing in them, not even an end.
    pub(crate) const fn empty() -> Self {
        Self::new(64, 1)
    }

    /// RST_STREAM frames: a client that cuts its connections resets a stream for each, and several
    /// thousand a second are possible.
    pub(crate) const fn resets() -> Self {
        Self::new(20_000, 5_000)
    }

    /// Streams that came to nothing before they were answered. Honest clients give up now and then;
    /// rapid reset does nothing else.
    pub(crate) const fn early_resets() -> Self {
        Self::new(1000, 200)
    }

    /// Frames that carry nothing we use.
    pub(crate) const fn idle() -> Self {
        Self::new(1000, 100)
    }

    /// Takes one. False when the budget is used up. The clock is read for the first, and then only when the
    /// budget seems empty, so that counting an ordinary frame is a subtraction.
    pub(crate) fn take(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.left == 0 || self.refilled.is_none() {
            self.refill(now());
        }
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        true
    }

    fn refill(&mut self, now: Instant) {
        // Time counts from the first that was taken, and not from the end of the burst: who stays below the rate is to be
        // served for as long as it likes, and a connection may live for months.
        let last = *self.refilled.get_or_insert(now);
        let earned = now.duration_since(last).as_millis() * u128::from(self.per_second) / 1000;
        if earned > 0 {
            self.left = u32::try_from(earned).unwrap_or(self.burst).min(self.burst);
            self.refilled = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_allows_its_burst_then_its_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(3, 10);
        assert!((0..3).all(|_| budget.take(|| start)));
        assert!(!budget.take(|| start));
        assert!(!budget.take(|| start + Duration::from_millis(99)));
        assert!(budget.take(|| start + Duration::from_millis(100)));
        assert!(!budget.take(|| start + Duration::from_millis(101)));
        let later = start + Duration::from_secs(3600);
        assert!(
            (0..3).all(|_| budget.take(|| later)),
            "the burst is earned back"
        );
        assert!(!budget.take(|| later), "and never more than the burst");
    }

    #[test]
    fn who_stays_below_the_rate_is_served_for_ever() {
        let start = Instant::now();
        let mut budget = Budget::new(3, 10);
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            assert!(budget.take(|| now), "after {second} seconds");
        }
    }

    #[test]
    fn refusal_names_are_distinct() {
        use Refusal::*;
        let all = [
            SlowHandshake,
            Tls,
            Preface,
            NotConnect,
            Authority,
            MalformedStream,
            SurplusStream,
            PingFlood,
            SettingsFlood,
            EmptyDataFlood,
            ResetFlood,
            IdleFrameFlood,
            Protocol,
            Excess,
            Unresponsive,
        ];
        let names: std::collections::HashSet<_> = all.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), all.len());
    }
}
