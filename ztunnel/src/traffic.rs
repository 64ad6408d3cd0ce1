//! TCP metrics with label set T: who talked to whom, how often, how much, how it ended.
//!
//! 1. a connection finds its `Series` (cached by the objects at its two ends, so that no label is formatted twice);
//! 2. it counts there with relaxed atomics, no lock, no hashing;
//! 3. a scrape walks all series once per metric.
//!
//! One label set holds all its counters: half of what a registry family per metric would cost in memory.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use hbone::{Identity, Refusal};
use mesh::{Service, Workload};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

mod labels;
mod names;

use labels::{Flagged, Labels, UNKNOWN};
use names::{Asked, ToUnknown};

use crate::headers::Baggage;
use crate::retry::Retried;

/// Which end of a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The end that opened the connection: `direction="outbound"` in the log.
    Source,
    /// The end that took it: `direction="inbound"`.
    Destination,
}

/// How a connection ended, as label `response_flags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Nothing to remark.
    None,
    /// A policy said no.
    Deny,
    /// The next hop could not be reached or refused.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// TLS stood, HTTP/2 did not.
    H2HandshakeFailure,
    /// Port 15008 did not answer: most likely a NetworkPolicy.
    NetworkPolicy,
    /// The peer was not who it had to be.
    IdentityError,
    /// The peer's certificate was revoked.
    CertRevoked,
    /// Nobody is known at the destination, and the caller may not call who is unknown.
    Egress,
}

impl Flag {
    const ALL: [Self; 9] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
        Self::Egress,
    ];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
            Self::Egress => "EGRESS",
        }
    }
}

/// The two ends of a connection, as far as they are known.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ends {
    pub(crate) source: Option<Arc<Workload>>,
    /// Proven for tunnels and joined connections, absent for plaintext.
    pub(crate) source_identity: Option<Identity>,
    pub(crate) destination: Option<Arc<Workload>>,
    pub(crate) destination_identity: Option<Identity>,
    pub(crate) service: Option<Arc<Service>>,
    /// Both ends proven: the connection is mutually authenticated.
    pub(crate) secured: bool,
}

/// All TCP series of this node.
#[derive(Debug, Clone, Default)]
pub struct Traffic(Arc<Table>);

#[derive(Debug, Default)]
struct Table {
    series: RwLock<HashMap<Arc<Labels>, Arc<Series>>>,
    cache: Mutex<HashMap<CacheKey, Cached>>,
    open: [AtomicI64; 2],
    /// What peers were refused at the tunnel port, by name.
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    /// Names that had to be resolved for a connection.
    names: Family<Asked, Counter>,
    /// Connections to who is unknown that a setting wants to be told or refused.
    to_unknown: Family<ToUnknown, Counter>,
    /// Connections whose first endpoint failed.
    retried: Family<Retried, Counter>,
}

/// Beyond this many series, what a peer says of itself in `baggage` no longer makes new ones: a peer with a
/// certificate but bad intentions must not be able to fill memory with invented names.
const SERIES_FROM_BAGGAGE: usize = 10_000;

/// The cache is cleared when it reaches this size; it refills in a moment. Each update of a workload makes a new
/// key, so a limit is needed, and at this one a node with 100 busy pods rarely meets it.
const CACHED: usize = 8_192;

/// Objects by address. Sound because the entry keeps them alive: an address cannot be reused while it is a key.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CacheKey(
    Reporter,
    usize,
    usize,
    usize,
    Option<Identity>,
    Option<Identity>,
    bool,
);

/// What all connections between the same ends share.
#[derive(Debug, Clone)]
struct Cached {
    ends: Arc<Ends>,
    series: Arc<Series>,
}

impl Traffic {
    /// Enters the TCP metrics into `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
        registry.register(
            "istio_on_demand_dns",
            "The total number of requests that used on-demand DNS (unstable)",
            self.0.names.clone(),
        );
        registry.register(
            "ambit_egress_connections",
            "Connections to destinations unknown to the mesh that a setting wants logged or refused",
            self.0.to_unknown.clone(),
        );
        registry.register(
            "ambit_connection_retries",
            "Connections whose first endpoint failed, by what became of them",
            self.0.retried.clone(),
        );
    }

    /// The first endpoint of a connection failed.
    pub(crate) fn retried(&self, retried: Retried) {
        self.0.retried.get_or_create(&retried).inc();
    }

    /// The series of a connection between these ends.
    pub(crate) fn series(
        &self,
        reporter: Reporter,
        ends: &Ends,
        said: Option<Baggage<'_>>,
    ) -> Arc<Series> {
        self.between(reporter, ends.clone(), said).1
    }

    /// The ends of a connection, as all connections between them share them, and its series.
    pub(crate) fn between(
        &self,
        reporter: Reporter,
        ends: Ends,
        said: Option<Baggage<'_>>,
    ) -> (Arc<Ends>, Arc<Series>) {
        let said = said.filter(|_| ends.source.is_none());
        if said.is_some() {
            let series = self.enter(Labels::new(reporter, &ends, said), true);
            return (Arc::new(ends), series);
        }
        let key = CacheKey::new(reporter, &ends);
        if let Some(cached) = lock(&self.0.cache).get(&key) {
            let Cached { ends, series } = cached.clone();
            return (ends, series);
        }
        let series = self.enter(Labels::new(reporter, &ends, None), false);
        let ends = Arc::new(ends);
        let mut cache = lock(&self.0.cache);
        if cache.len() >= CACHED {
            cache.clear();
        }
        let cached = Cached {
            ends: ends.clone(),
            series: series.clone(),
        };
        cache.insert(key, cached);
        (ends, series)
    }

    fn enter(&self, labels: Labels, from_baggage: bool) -> Arc<Series> {
        let table = self.0.series.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = table.get(&labels) {
            return series.clone();
        }
        let full = from_baggage && table.len() >= SERIES_FROM_BAGGAGE;
        drop(table);
        let labels = Arc::new(if full {
            labels.without_baggage()
        } else {
            labels
        });
        let mut table = self
            .0
            .series
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let series = table
            .entry(labels.clone())
            .or_insert_with(|| Arc::new(Series::new(labels)));
        series.clone()
    }

    /// A peer was refused something at the tunnel port, before or instead of a connection between workloads.
    pub(crate) fn refused(&self, refusal: Refusal) {
        *lock(&self.0.refusals).entry(refusal.name()).or_default() += 1;
    }

    /// A connection goes to a destination that the mesh knows by name alone, and the name is to be resolved for it.
    pub(crate) fn asked(&self, source: &Workload, identity: &Identity, name: &Arc<str>) {
        let asked = Asked::new(source, identity, name);
        self.0.names.get_or_create(&asked).inc();
    }

    /// A connection goes to who is unknown, or is refused for that, and its setting wants it to be told.
    pub(crate) fn to_unknown(&self, source: &Workload, identity: &Identity, refused: bool) {
        let to_unknown = ToUnknown::new(source, identity, refused);
        self.0.to_unknown.get_or_create(&to_unknown).inc();
    }

    /// One more socket is open at this end, as `istio_tcp_sockets_open` counts it.
    pub(crate) fn socket_opened(&self, reporter: Reporter) {
        self.0.open[reporter as usize].fetch_add(1, Relaxed);
    }

    /// One fewer.
    pub(crate) fn socket_closed(&self, reporter: Reporter) {
        self.0.open[reporter as usize].fetch_sub(1, Relaxed);
    }
}

/// The counters of one label set.
#[derive(Debug)]
pub(crate) struct Series {
    labels: Arc<Labels>,
    opened: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    closed: [AtomicU64; Flag::ALL.len()],
    failed: [AtomicU64; Flag::ALL.len()],
}

impl Series {
    fn new(labels: Arc<Labels>) -> Self {
        Self {
            labels,
            opened: AtomicU64::default(),
            sent: AtomicU64::default(),
            received: AtomicU64::default(),
            closed: Default::default(),
            failed: Default::default(),
        }
    }

    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    pub(crate) fn moved(&self, sent: u64, received: u64) {
        if sent > 0 {
            self.sent.fetch_add(sent, Relaxed);
        }
        if received > 0 {
            self.received.fetch_add(received, Relaxed);
        }
    }

    pub(crate) fn closed(&self, flag: Flag) {
        self.closed[flag as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn failed(&self, flag: Flag) {
        self.failed[flag as usize].fetch_add(1, Relaxed);
    }

    /// (sent, received) so far.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.sent.load(Relaxed), self.received.load(Relaxed))
    }

    /// `spiffe://…` of the source, formatted once for all connections of these ends.
    pub(crate) fn source_principal(&self) -> Option<&str> {
        Some(&*self.labels.source_principal).filter(|principal| *principal != UNKNOWN)
    }

    /// `spiffe://…` of the destination.
    pub(crate) fn destination_principal(&self) -> Option<&str> {
        Some(&*self.labels.destination_principal).filter(|principal| *principal != UNKNOWN)
    }
}

impl CacheKey {
    fn new(reporter: Reporter, ends: &Ends) -> Self {
        fn at<T>(object: Option<&Arc<T>>) -> usize {
            object.map_or(0, |object| Arc::as_ptr(object).addr())
        }
        Self(
            reporter,
            at(ends.source.as_ref()),
            at(ends.destination.as_ref()),
            at(ends.service.as_ref()),
            ends.source_identity.clone(),
            ends.destination_identity.clone(),
            ends.secured,
        )
    }
}

type Value = fn(&Series, Flag) -> u64;
type Wanted = fn(&Series, Flag) -> bool;

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Copied out so that a slow scrape does not hold up new series.
        let mut all: Vec<Arc<Series>> = {
            let table = self.0.series.read().unwrap_or_else(PoisonError::into_inner);
            table.values().cloned().collect()
        };
        all.sort_by_key(|series| Arc::as_ptr(series).addr());
        let opened = |series: &Series, flag| flag == Flag::None && series.opened.load(Relaxed) > 0;
        let mut counter = |name: &str, help: &str, value: Value, wanted: Wanted| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for series in &all {
                for flag in Flag::ALL.into_iter().filter(|flag| wanted(series, *flag)) {
                    let labels = Flagged(&series.labels, flag);
                    let value = value(series, flag);
                    family
                        .encode_family(&labels)?
                        .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
                }
            }
            fmt::Result::Ok(())
        };
        counter(
            "istio_tcp_connections_opened",
            "TCP connections opened",
            |series, _| series.opened.load(Relaxed),
            opened,
        )?;
        counter(
            "istio_tcp_connections_closed",
            "TCP connections closed",
            |series, flag| series.closed[flag as usize].load(Relaxed),
            |series, flag| series.closed[flag as usize].load(Relaxed) > 0,
        )?;
        counter(
            "istio_tcp_sent_bytes",
            "Bytes the reporting end's workload sent",
            |series, _| series.sent.load(Relaxed),
            opened,
        )?;
        counter(
            "istio_tcp_received_bytes",
            "Bytes the reporting end's workload received",
            |series, _| series.received.load(Relaxed),
            opened,
        )?;
        counter(
            "istio_tcp_connections_failed",
            "TCP connections that could not be established or were refused",
            |series, flag| series.failed[flag as usize].load(Relaxed),
            |series, flag| series.failed[flag as usize].load(Relaxed) > 0,
        )?;
        let mut family = encoder.encode_descriptor(
            "istio_tcp_sockets_open",
            "TCP connections open now",
            None,
            MetricType::Gauge,
        )?;
        for (index, reporter) in [(0, "source"), (1, "destination")] {
            let labels = [("reporter", reporter)];
            family
                .encode_family(&labels)?
                .encode_gauge(&self.0.open[index].load(Relaxed))?;
        }
        let mut family = encoder.encode_descriptor(
            "ambit_tunnel_refusals",
            "What peers were refused at the tunnel port, by reason",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in &*lock(&self.0.refusals) {
            let labels = [("reason", *reason)];
            family
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, u64>(count, None)?;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
