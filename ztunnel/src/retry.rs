//! Another endpoint for a connection that did not get through to the first one.
//!
//! Before a byte of the app has moved nobody is hurt by asking somebody else: a pod that stops, a node that is gone and
//! an address that is not told of yet are the mesh's to get over. What a policy has decided is not, and what may have
//! come to an app is not said to a second one (`outbound::Failed::is_of_the_endpoint`, [`hbone::First`]).
//!
//! * [`Tries`]: one connection's endpoints so far; three at most, in a time at most
//! * [`Troubled`]: endpoints that failed just now, which all connections of this node avoid for a while, if there are others
//! * [`Budget`]: what is tried again, of all that is tried: when everything fails, trying again only makes it worse

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// Endpoints that one connection is tried on.
const MOST_TRIES: usize = 3;
/// No other endpoint is tried after this: apps wait ten seconds or thirty.
const PATIENCE: Duration = Duration::from_secs(12);
/// An endpoint that has said nothing for so long is left for another, if there is one. Longer than two lost SYNs and than
/// a connection is held for a policy on its way (`admit::HOLD`), so that who is only busy is not left.
pub(crate) const SILENT: Duration = Duration::from_secs(4);

/// An endpoint that has failed is avoided for so long. The control plane hears of a pod that is gone in less, of a node
/// in 40 s: then one connection in each such time tries it, and finds another.
const AVOIDED: Duration = Duration::from_secs(5);
/// Endpoints that are remembered. More than that are in trouble where a zone is lost; then chance has to do.
const REMEMBERED: usize = 1024;

/// One connection in so many may be tried again, and these many a second whatever the load.
const CONNECTIONS_A_RETRY: u64 = 5;
const RETRIES_A_SECOND: u64 = 10;
/// In which time alone earns one part of a retry.
const NANOS_A_PART: u64 = 1_000_000_000 / (RETRIES_A_SECOND * CONNECTIONS_A_RETRY);
/// What can be saved up: a rollout of one service makes a burst.
const SAVED: u64 = 200;

/// An endpoint, as far as it can be in trouble by itself: a workload's uid, and the port that was asked for there.
pub(crate) type Target = (Arc<str>, u16);

/// What this node's connections know of each other's failures.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    pub(crate) troubled: Troubled,
    pub(crate) budget: Budget,
}

/// What became of a connection whose first endpoint failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Retried {
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Reached,
    Failed,
    OverBudget,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, out: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let text = match self {
            Self::Reached => "reached",
            Self::Failed => "failed",
            Self::OverBudget => "over_budget",
        };
        text.encode(out)
    }
}

impl Retried {
    /// Another one took it.
    pub(crate) const REACHED: Self = Self {
        outcome: Outcome::Reached,
    };
    /// None of those that were tried did.
    pub(crate) const FAILED: Self = Self {
        outcome: Outcome::Failed,
    };
    /// There was another one, and too much is being tried again already.
    pub(crate) const OVER_BUDGET: Self = Self {
        outcome: Outcome::OverBudget,
    };
}

/// The endpoints of one connection.
#[derive(Debug)]
pub(crate) struct Tries {
    began: Instant,
    failed: Vec<Target>,
}

impl Tries {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            failed: Vec::new(),
        }
    }

    /// Not to be tried once more.
    pub(crate) fn has_failed(&self, target: &Target) -> bool {
        self.failed.contains(target)
    }

    /// It was of no use.
    pub(crate) fn fails(&mut self, target: Target) {
        self.failed.push(target);
    }

    /// It may be tried on one more, besides the one that it is being tried on or has failed on just now.
    pub(crate) fn may_go_on(&self) -> bool {
        self.failed.len() + 1 < MOST_TRIES && self.began.elapsed() < PATIENCE
    }
}

/// Endpoints that have failed just now.
#[derive(Debug, Default)]
pub(crate) struct Troubled {
    /// For whoever calls this destination through it, or for all.
    until: Mutex<HashMap<(Target, Option<SocketAddr>), Instant>>,
    /// How many are in there: mostly none, and then nobody locks.
    count: AtomicUsize,
}

impl Troubled {
    /// Remembers that it has failed, or that it leads nowhere for who calls this destination.
    pub(crate) fn failed(&self, target: Target, calls: Option<SocketAddr>) {
        self.failed_at((target, calls), Instant::now());
    }

    fn failed_at(&self, target: (Target, Option<SocketAddr>), now: Instant) {
        let mut until = lock(&self.until);
        if until.len() >= REMEMBERED {
            until.retain(|_, until| *until > now);
        }
        if until.len() < REMEMBERED {
            until.insert(target, now + AVOIDED);
        }
        self.count.store(until.len(), Relaxed);
    }

    /// It has taken a connection to this destination.
    pub(crate) fn recovered(&self, target: &Target, calls: SocketAddr) {
        if !self.is_empty() {
            let mut until = lock(&self.until);
            until.remove(&(target.clone(), None));
            until.remove(&(target.clone(), Some(calls)));
            self.count.store(until.len(), Relaxed);
        }
    }

    /// It has failed, for all or for this destination, and not long ago.
    pub(crate) fn includes(&self, target: Target, calls: SocketAddr) -> bool {
        if self.is_empty() {
            return false;
        }
        let now = Instant::now();
        self.includes_at(&(target.clone(), None), now)
            || self.includes_at(&(target, Some(calls)), now)
    }

    fn includes_at(&self, target: &(Target, Option<SocketAddr>), now: Instant) -> bool {
        let mut until = lock(&self.until);
        match until.get(target) {
            Some(it) if *it > now => true,
            Some(_) => {
                until.remove(target);
                self.count.store(until.len(), Relaxed);
                false
            }
            None => false,
        }
    }

    /// Nobody is in trouble that anybody knows of.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Relaxed) == 0
    }
}

/// What may be tried again.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    connections: AtomicU64,
    account: Mutex<Account>,
}

#[derive(Debug)]
struct Account {
    /// In parts of a retry, of which one connection earns one.
    saved: u64,
    counted: u64,
    at: Instant,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            saved: SAVED * CONNECTIONS_A_RETRY,
            counted: 0,
            at: Instant::now(),
        }
    }
}

impl Budget {
    /// A connection begins.
    pub(crate) fn earn(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// One retry, if there is one left.
    pub(crate) fn spend(&self) -> bool {
        lock(&self.account).spend(self.connections.load(Relaxed), Instant::now())
    }
}

impl Account {
    fn spend(&mut self, connections: u64, now: Instant) -> bool {
        let nanos = now.saturating_duration_since(self.at).as_nanos();
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        let by_time = nanos / NANOS_A_PART;
        let by_connections = connections
            .wrapping_sub(self.counted)
            .min(SAVED * CONNECTIONS_A_RETRY);
        // What is no whole part yet counts with the next.
        self.at += Duration::from_nanos(by_time * NANOS_A_PART);
        self.counted = connections;
        self.saved = (self.saved + by_time + by_connections).min(SAVED * CONNECTIONS_A_RETRY);
        match self.saved.checked_sub(CONNECTIONS_A_RETRY) {
            Some(left) => {
                self.saved = left;
                true
            }
            None => false,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(uid: usize) -> (Target, Option<SocketAddr>) {
        ((uid.to_string().into(), 8080), None)
    }

    #[test]
    fn who_leads_on_to_others_is_avoided_only_by_those_for_whom_it_leads_nowhere() {
        let troubled = Troubled::default();
        let waypoint = || -> Target { ("waypoint".into(), 15008) };
        let [dead, well] = ["10.0.0.1:80", "10.0.0.2:80"].map(|ip| ip.parse().unwrap());
        troubled.failed(waypoint(), Some(dead));
        assert!(troubled.includes(waypoint(), dead) && !troubled.includes(waypoint(), well));
        troubled.recovered(&waypoint(), well);
        assert!(troubled.includes(waypoint(), dead));
        troubled.recovered(&waypoint(), dead);
        assert!(!troubled.includes(waypoint(), dead) && troubled.is_empty());
        troubled.failed(waypoint(), None);
        assert!(troubled.includes(waypoint(), dead) && troubled.includes(waypoint(), well));
    }

    #[test]
    fn an_endpoint_is_avoided_for_a_while_on_its_port_and_not_after_it_has_taken_a_connection() {
        let (troubled, now) = (Troubled::default(), Instant::now());
        assert!(troubled.is_empty());
        troubled.failed_at(target(1), now);
        assert!(troubled.includes_at(&target(1), now + AVOIDED / 2));
        assert!(!troubled.includes_at(&(("1".into(), 9090), None), now));
        assert!(!troubled.includes_at(&target(2), now));
        assert!(!troubled.includes_at(&target(1), now + AVOIDED));
        assert!(
            troubled.is_empty(),
            "forgotten with the first look after its time"
        );
        troubled.failed_at(target(1), now);
        troubled.recovered(&target(1).0, "10.0.0.1:80".parse().unwrap());
        assert!(!troubled.includes_at(&target(1), now));
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for_and_old_ones_make_room() {
        let (troubled, now) = (Troubled::default(), Instant::now());
        for uid in 0..3 * REMEMBERED {
            troubled.failed_at(target(uid), now);
        }
        assert_eq!(lock(&troubled.until).len(), REMEMBERED);
        assert!(!troubled.includes_at(&target(REMEMBERED), now));
        troubled.failed_at(target(REMEMBERED), now + AVOIDED);
        assert!(troubled.includes_at(&target(REMEMBERED), now + AVOIDED));
        assert_eq!(lock(&troubled.until).len(), 1);
    }

    #[test]
    fn one_connection_in_five_may_be_tried_again_and_ten_a_second_whatever_the_load() {
        let mut account = Account::default();
        let mut now = account.at;
        let mut granted = |connections, now| {
            (0..10_000)
                .filter(|_| account.spend(connections, now))
                .count() as u64
        };
        assert_eq!(granted(0, now), SAVED);
        // A thousand connections later, in no time.
        assert_eq!(granted(500, now), 100);
        now += Duration::from_secs(3);
        assert_eq!(granted(500, now), 3 * RETRIES_A_SECOND);
        // Neither a long calm nor a flood saves up more than that.
        now += Duration::from_secs(1 << 30);
        assert_eq!(granted(u64::MAX, now), SAVED);
    }

    #[test]
    fn time_is_not_lost_in_small_pieces() {
        let pieces = [
            (Duration::from_micros(100), 20_000, 20),
            // Nearly two parts each.
            (Duration::from_millis(39), 256, 99),
        ];
        for (piece, pieces, retries) in pieces {
            let mut account = Account::default();
            let began = account.at;
            while account.spend(0, began) {}
            let granted = (1..=pieces)
                .filter(|step| account.spend(0, began + piece * *step))
                .count();
            assert_eq!(granted, retries, "a piece of {piece:?}");
        }
    }
}
