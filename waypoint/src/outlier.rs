//! Pure: which endpoints are left out for a while.
//!
//! 1. what came of a request is noted at its endpoint ([`Watch::note`]): so many errors in a row, and it is out;
//! 2. it is out for the base time, times how often it was out before, and at most five minutes;
//! 3. each interval it stays in takes one of those times away again;
//! 4. never more than `at_most` percent are out, but one of several always may be.
//!
//! The single endpoint of a service is left out only if `at_most` is 100: one that answers errors is better than
//! none. Where a client's request failed because of this proxy, nothing is noted.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::waypoint as wire;

/// What came of a request, as far as it tells something about the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered with this status.
    Answered(u16),
    /// No connection.
    ConnectFailure,
    /// No answer in time.
    Timeout,
    /// The connection broke before the answer.
    Reset,
}

impl Outcome {
    /// An answer. Where its head says how a gRPC call ended, that counts, as HTTP would have said it (Envoy, outlier
    /// detection): such answers have status 200 whatever they say.
    pub fn answered(status: u16, grpc: Option<u32>) -> Self {
        Self::Answered(grpc.map_or(status, as_http))
    }

    /// Status by which it counts where local errors are not counted apart.
    fn status(self) -> u16 {
        match self {
            Self::Answered(status) => status,
            Self::Timeout => 504,
            Self::ConnectFailure | Self::Reset => 503,
        }
    }
}

/// A status of gRPC; one that nobody knows is an error.
fn as_http(code: u32) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// When an endpoint is left out, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// 0 = off, as the next two.
    consecutive_5xx: u32,
    consecutive_gateway: u32,
    consecutive_local: u32,
    split_local: bool,
    interval: Duration,
    base: Duration,
    at_most: u32,
    least_healthy: u32,
}

impl Settings {
    /// From the wire; nothing in it can be misunderstood.
    pub fn compile(found: &wire::Outliers) -> Self {
        let millis = |value: u64, default: u64| {
            Duration::from_millis(if value == 0 { default } else { value })
        };
        Self {
            consecutive_5xx: found.consecutive_5xx.unwrap_or(5),
            consecutive_gateway: found.consecutive_gateway_errors.unwrap_or(0),
            consecutive_local: if found.split_local {
                found.consecutive_local.unwrap_or(5)
            } else {
                0
            },
            split_local: found.split_local,
            interval: millis(found.interval, 10_000),
            base: millis(found.ejection, 30_000),
            at_most: if found.at_most == 0 {
                10
            } else {
                found.at_most.min(100)
            },
            least_healthy: found.least_healthy.min(100),
        }
    }
}

/// What is remembered of one endpoint.
#[derive(Debug, Default)]
pub struct Record {
    in_a_row_5xx: AtomicU32,
    in_a_row_gateway: AtomicU32,
    in_a_row_local: AtomicU32,
    ejections: Mutex<Ejections>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Ejections {
    /// It is out until then.
    until: Option<Instant>,
    /// How long it is out next time, in base times, less one.
    times: u32,
    /// Since when it is in again.
    since: Option<Instant>,
}

impl Record {
    /// Until when it is out.
    pub fn out_until(&self) -> Option<Instant> {
        self.lock().until
    }

    /// Lets it in again if its time is over; returns until when it is out.
    pub fn readmit(&self, now: Instant) -> Option<Instant> {
        let mut ejections = self.lock();
        if ejections.until.is_some_and(|until| until <= now) {
            ejections.since = ejections.until.take();
        }
        ejections.until
    }

    fn clear(&self) {
        self.in_a_row_5xx.store(0, Relaxed);
        self.in_a_row_gateway.store(0, Relaxed);
        self.in_a_row_local.store(0, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Ejections> {
        self.ejections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches the endpoints of one service.
#[derive(Debug)]
pub struct Watch {
    settings: Settings,
    /// Of how many.
    total: AtomicU32,
    out: AtomicU32,
}

impl Watch {
    /// Nobody is out.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            total: AtomicU32::new(0),
            out: AtomicU32::new(0),
        }
    }

    /// Counts anew: so many endpoints there are, and so many of them are out.
    pub fn recount(&self, total: usize, out: usize) {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        self.total.store(number(total), Relaxed);
        self.out.store(number(out), Relaxed);
    }

    /// Whether so few are in that nobody counts as out.
    pub fn gives_up(&self, total: usize, out: usize) -> bool {
        out > 0 && (total - out) * 100 < total * self.settings.least_healthy as usize
    }

    /// Notes what came of a request. True if the endpoint has just been left out.
    pub fn note(&self, record: &Record, outcome: Outcome, now: Instant) -> bool {
        let guilty = match outcome {
            Outcome::Answered(_) => {
                record.in_a_row_local.store(0, Relaxed);
                self.answered(record, outcome.status())
            }
            _ if self.settings.split_local => {
                reached(&record.in_a_row_local, self.settings.consecutive_local)
            }
            _ => self.answered(record, outcome.status()),
        };
        guilty && self.eject(record, now)
    }

    fn answered(&self, record: &Record, status: u16) -> bool {
        let mut guilty = false;
        if matches!(status, 502..=504) {
            guilty |= reached(&record.in_a_row_gateway, self.settings.consecutive_gateway);
        } else {
            forget(&record.in_a_row_gateway);
        }
        if matches!(status, 500..=599) {
            guilty |= reached(&record.in_a_row_5xx, self.settings.consecutive_5xx);
        } else {
            forget(&record.in_a_row_5xx);
        }
        guilty
    }

    fn eject(&self, record: &Record, now: Instant) -> bool {
        let mut ejections = record.lock();
        if ejections.until.is_some_and(|until| now < until) || !self.take_place() {
            return false;
        }
        // Whose time is over, and was let in by nobody yet, has been in since then.
        let since = ejections.until.or(ejections.since);
        let good = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let forgiven = good.as_nanos() / self.settings.interval.as_nanos().max(1);
        let before = u128::from(ejections.times).saturating_sub(forgiven);
        ejections.times = (before as u32).saturating_add(1);
        let out = self.settings.base.saturating_mul(ejections.times);
        ejections.until = Some(now + out.min(LONGEST.max(self.settings.base)));
        record.clear();
        true
    }

    /// Takes one of the places of those that may be out.
    fn take_place(&self) -> bool {
        let total = self.total.load(Relaxed);
        let share = u64::from(total) * u64::from(self.settings.at_most) / 100;
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        let most = match self.settings.at_most {
            100 => share,
            _ => share.max(1).min(total.saturating_sub(1)),
        };
        let more = |out: u32| (out < most).then_some(out + 1);
        self.out.fetch_update(Relaxed, Relaxed, more).is_ok()
    }
}

/// One more in a row: whether that is as many as `limit`, of which 0 is never reached.
fn reached(count: &AtomicU32, limit: u32) -> bool {
    limit > 0 && count.fetch_add(1, Relaxed).saturating_add(1) >= limit
}

/// Nearly always there is nothing to forget, and then nothing is written that other cores read.
fn forget(count: &AtomicU32) {
    if count.load(Relaxed) != 0 {
        count.store(0, Relaxed);
    }
}

/// An endpoint is tried again after five minutes, however often it failed.
const LONGEST: Duration = Duration::from_secs(300);
