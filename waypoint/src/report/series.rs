//! The numbers behind the labels.
//!
//! 1. a request that has ended finds its [`Series`] by the objects at its ends (`Table::find`), so that no label is
//!    formatted twice;
//! 2. it counts there with relaxed atomics;
//! 3. a scrape walks all series once per metric (`scrape`).
//!
//! Bounded ([`ops::series`]): beyond so many series new ones fall together in one per reporter and protocol, whose labels are
//! `overflow`; what a client's proxy says of it is believed up to a fifth of that. Those that name who is gone expire.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hbone::Identity;
use mesh::{Service, Snapshot, Workload};
use ops::series::{self, Bounds, Figures, Without};

use super::labels::{self, Also, How, Labels, Living, OVERFLOW, Side, Towards};
use super::{Caller, Reporter};
use crate::client::Client;

/// The part of the series up to which a client that the mesh does not know is what its proxy says it is.
const BELIEVED: usize = 5;
/// Where the cache of handles starts anew. Each update of a workload makes new keys.
const CACHED: usize = 2_048;
const SHARDS: usize = 16;

/// Upper ends of the buckets, for milliseconds and for bytes alike: Envoy's, which dashboards are made for.
pub(super) const BUCKETS: [f64; 20] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
    f64::INFINITY,
];

/// All series of the process.
#[derive(Debug)]
pub(super) struct Table {
    all: series::Table<Labels, Counts>,
    believed: usize,
    pub(super) without: Without,
    cache: [Mutex<HashMap<Key, Cached>>; SHARDS],
    /// Clients that the mesh knows: each of their connections has the same labels.
    sides: Mutex<HashMap<Known, Named>>,
    spread: RandomState,
}

/// A client's workload by address, and its identity. Sound as below.
type Known = (usize, Option<Identity>);
type Named = (Arc<Workload>, Arc<Side>);

/// Objects by address. Sound because the entry keeps them alive: an address cannot be reused while it is a key.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    caller: usize,
    service: usize,
    destination: usize,
    identity: Option<Identity>,
    how: How,
    also: Option<Also>,
}

#[derive(Debug)]
struct Cached {
    series: Arc<Series>,
    /// Since the last sweep.
    used: AtomicBool,
    _alive: (Arc<Side>, Option<Arc<Service>>, Option<Arc<Workload>>),
}

/// The other end, as far as it is known.
#[derive(Debug, Default, Clone)]
pub(super) struct Destination {
    pub(super) service: Option<Arc<Service>>,
    pub(super) workload: Option<Arc<Workload>>,
    pub(super) identity: Option<Identity>,
}

impl Table {
    pub(super) fn new(bounds: Bounds, without: Without) -> Self {
        Self {
            all: series::Table::new(bounds),
            believed: bounds.most / BELIEVED,
            without,
            cache: Default::default(),
            sides: Mutex::default(),
            spread: RandomState::new(),
        }
    }

    pub(super) fn find(
        &self,
        reporter: Reporter,
        caller: &Caller,
        to: &Destination,
        how: How,
        also: Option<Also>,
    ) -> Arc<Series> {
        let key = Key {
            caller: Arc::as_ptr(&caller.side).addr(),
            service: to.service.as_ref().map_or(0, |it| Arc::as_ptr(it).addr()),
            destination: to.workload.as_ref().map_or(0, |it| Arc::as_ptr(it).addr()),
            identity: to.identity.clone(),
            how,
            also,
        };
        let shard = &self.cache[(self.spread.hash_one(&key) as usize) % SHARDS];
        if let Some(cached) = lock(shard).get(&key) {
            cached.used.store(true, Relaxed);
            return cached.series.clone();
        }
        let labels = Labels {
            reporter,
            source: caller.side.clone(),
            service: labels::towards(to.service.as_deref()),
            destination: labels::side(to.workload.as_deref(), to.identity.as_ref()),
            secured: caller.client.identity.is_some(),
            how,
            also: key.also.clone(),
        };
        let series = self.all.of(labels.without(&self.without));
        let mut cache = lock(shard);
        if cache.len() >= CACHED {
            cache.clear();
        }
        let alive = (caller.side.clone(), to.service.clone(), to.workload.clone());
        cache.insert(
            key,
            Cached {
                series: series.clone(),
                used: AtomicBool::new(true),
                _alive: alive,
            },
        );
        series
    }

    /// The labels of a client.
    pub(super) fn side(&self, client: &Client) -> Arc<Side> {
        let Some(workload) = &client.workload else {
            return Arc::new(labels::side_of_client(client, self.believes()));
        };
        let key = (Arc::as_ptr(workload).addr(), client.identity.clone());
        if let Some((_, side)) = lock(&self.sides).get(&key) {
            return side.clone();
        }
        let side = Arc::new(labels::side_of_client(client, false));
        let mut sides = lock(&self.sides);
        if sides.len() >= CACHED {
            sides.clear();
        }
        sides.insert(key, (workload.clone(), side.clone()));
        side
    }

    /// Whether what a client's proxy says of it may still make series.
    fn believes(&self) -> bool {
        self.len() < self.believed
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn figures(&self) -> Figures {
        self.all.figures()
    }

    /// All of them, copied out so that a slow scrape does not hold up new ones.
    pub(super) fn all(&self) -> Vec<Arc<Series>> {
        self.all.all()
    }

    /// Takes out those that nobody has used for a while and that name somebody who is gone, by the mesh as of now.
    pub(super) fn sweep(&self, mesh: &Snapshot, now: Instant) {
        // Whoever was not asked for since the last time has no hold on a series.
        for shard in &self.cache {
            lock(shard).retain(|_, cached| cached.used.swap(false, Relaxed));
        }
        let idle = self.all.idle(now);
        if idle.is_empty() {
            return;
        }
        let owners = mesh.workloads();
        let owners = owners.map(|workload| (&*workload.namespace, &*workload.workload_name));
        let owners: HashSet<(&str, &str)> = owners.collect();
        let living = Living {
            workload: &|namespace, name| owners.contains(&(namespace, name)),
            service: &|namespace, host| mesh.service(namespace, host).is_some(),
        };
        let gone = idle.into_iter();
        let gone: Vec<_> = gone
            .filter(|labels| labels.name_somebody_gone(&living))
            .collect();
        self.all.expire(&gone, now);
    }
}

impl series::Labels for Labels {
    fn overflow(&self) -> Self {
        let overflow: Arc<str> = OVERFLOW.into();
        Self {
            reporter: self.reporter,
            source: Arc::new(Side::overflow(&overflow)),
            service: Towards::overflow(&overflow),
            destination: Side::overflow(&overflow),
            secured: self.secured,
            how: How {
                code: self.how.code / 100 * 100,
                grpc: None,
                ..self.how
            },
            also: None,
        }
    }
}

/// One label set and its numbers.
pub(super) type Series = series::Series<Labels, Counts>;

/// The numbers of one label set. TCP uses only some of them.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: AtomicU64,
    pub(super) millis: Histogram,
    pub(super) received: Histogram,
    pub(super) sent: Histogram,
    pub(super) messages_received: AtomicU64,
    pub(super) messages_sent: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) failed: AtomicU64,
}

impl Counts {
    /// A request ended.
    pub(super) fn request(&self, took: Duration, moved: Moved) {
        self.requests.fetch_add(1, Relaxed);
        self.millis.observe(took.as_micros() as u64, 1_000);
        self.received.observe(moved.received, 1);
        self.sent.observe(moved.sent, 1);
        if moved.messages_received > 0 {
            self.messages_received
                .fetch_add(moved.messages_received, Relaxed);
        }
        if moved.messages_sent > 0 {
            self.messages_sent.fetch_add(moved.messages_sent, Relaxed);
        }
    }

    /// A connection was opened.
    pub(super) fn opened(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// A connection carried more.
    pub(super) fn moved(&self, sent: u64, received: u64) {
        self.sent.sum.fetch_add(sent, Relaxed);
        self.received.sum.fetch_add(received, Relaxed);
    }

    /// A connection ended.
    pub(super) fn closed(&self) {
        self.closed.fetch_add(1, Relaxed);
    }

    /// A connection could not be made, or was refused.
    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }
}

/// What was carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) messages_received: u64,
    pub(super) messages_sent: u64,
}

/// Of milliseconds or bytes.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    pub(super) counts: [AtomicU64; BUCKETS.len()],
    /// In the unit that was observed.
    pub(super) sum: AtomicU64,
}

impl Histogram {
    /// `scale`: how many of `value` are one of the buckets' unit.
    pub(super) fn observe(&self, value: u64, scale: u64) {
        let shown = value as f64 / scale as f64;
        let at = BUCKETS.partition_point(|end| *end < shown);
        self.counts[at.min(BUCKETS.len() - 1)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
