//! TCP metrics with label set T: who talked to whom, how often, how much, how it ended.
//!
//! 1. a connection finds its `Series` (cached by the objects at its two ends, so that no label is formatted twice);
//! 2. it counts there with relaxed atomics, no lock, no hashing;
//! 3. a scrape walks all series once per metric.
//!
//! One label set holds all its counters: half of what a registry family per metric would cost in memory. How many there are
//! is bounded, and those that name somebody who is gone expire (`ops::series`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hbone::{Identity, Refusal};
use mesh::{Service, Snapshot, Workload};
use ops::series::{self, Bounded, Bounds, Without};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

mod labels;
mod names;

use labels::{Flagged, Labels, Living};
use names::{Asked, Shown, ToUnknown};

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
    /// A certificate was revoked: the peer's, or ours, as the peer says.
    CertRevoked,
    /// Nobody is known at the destination, and the caller may not call who is unknown.
    Egress,
    /// There was no room for it.
    Overload,
}

impl Flag {
    const ALL: [Self; 10] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
        Self::Egress,
        Self::Overload,
    ];

    /// As logs and metrics have it.
    pub(crate) const fn label(self) -> &'static str {
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
            Self::Overload => "OVERLOAD",
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
#[derive(Debug, Clone)]
pub struct Traffic(Arc<Table>);

#[derive(Debug, Default)]
struct Table {
    series: series::Table<Labels, Counts>,
    cache: Mutex<HashMap<CacheKey, Cached>>,
    /// Series up to which a peer that the mesh does not know is what it says of itself.
    believed: usize,
    without: Without,
    open: [AtomicI64; 2],
    /// What peers were refused at the tunnel port, by name.
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    /// Connections that this end refused or cut because the other end's certificate was revoked.
    revoked: [AtomicU64; 2],
    /// Names that had to be resolved for a connection.
    names: series::Table<Asked, AtomicU64>,
    /// Connections to who is unknown that a setting wants to be told or refused.
    to_unknown: series::Table<ToUnknown, AtomicU64>,
    /// Connections whose first endpoint failed.
    retried: Family<Retried, Counter>,
}

/// Beyond this part of the series there may be, what a peer says of itself in `baggage` no longer makes new ones: a peer with a
/// certificate but bad intentions must not be able to use up the room with invented names.
const BELIEVED: usize = 5;

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
    bool,
);

/// What all connections between the same ends share.
#[derive(Debug)]
struct Cached {
    ends: Arc<Ends>,
    series: Arc<Series>,
    /// Since the last sweep.
    used: AtomicBool,
}

impl Default for Traffic {
    fn default() -> Self {
        Self::new(Bounds::default(), Without::default())
    }
}

impl Traffic {
    /// Nothing is counted yet; labels that are left out never are.
    pub fn new(bounds: Bounds, without: Without) -> Self {
        Self(Arc::new(Table {
            series: series::Table::new(bounds),
            names: series::Table::new(bounds),
            to_unknown: series::Table::new(bounds),
            believed: bounds.most / BELIEVED,
            without,
            ..Table::default()
        }))
    }

    /// Enters the TCP metrics into `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
        self.register_few(registry);
    }

    /// Those that have few series, and are locked while they are printed.
    pub fn register_few(&self, registry: &mut Registry) {
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
    #[cfg(test)]
    pub(crate) fn series(
        &self,
        reporter: Reporter,
        ends: &Ends,
        said: Option<Baggage<'_>>,
    ) -> Arc<Series> {
        self.between(reporter, ends.clone(), said, false).1
    }

    /// The ends of a connection, or of a flow of `datagrams`, as all between them share them, and its series.
    pub(crate) fn between(
        &self,
        reporter: Reporter,
        ends: Ends,
        said: Option<Baggage<'_>>,
        datagrams: bool,
    ) -> (Arc<Ends>, Arc<Series>) {
        let said = said.filter(|_| ends.source.is_none());
        if said.is_some() {
            let labels = Labels::new(reporter, &ends, said, datagrams);
            let series = self.enter(labels, &ends, true);
            return (Arc::new(ends), series);
        }
        let key = CacheKey::new(reporter, &ends, datagrams);
        if let Some(cached) = lock(&self.0.cache).get(&key) {
            cached.used.store(true, Relaxed);
            return (cached.ends.clone(), cached.series.clone());
        }
        let series = self.enter(Labels::new(reporter, &ends, None, datagrams), &ends, false);
        let ends = Arc::new(ends);
        let mut cache = lock(&self.0.cache);
        if cache.len() >= CACHED {
            cache.clear();
        }
        let cached = Cached {
            ends: ends.clone(),
            series: series.clone(),
            used: AtomicBool::new(true),
        };
        cache.insert(key, cached);
        (ends, series)
    }

    fn enter(&self, labels: Labels, ends: &Ends, from_baggage: bool) -> Arc<Series> {
        let full = from_baggage && self.0.series.len() >= self.0.believed;
        let labels = match full {
            true => labels.without_baggage(),
            false => labels,
        };
        let principal = |identity: &Option<Identity>| {
            let identity = identity.as_ref();
            identity.map(|identity| identity.to_string().into())
        };
        Arc::new(Series {
            source_principal: principal(&ends.source_identity),
            destination_principal: principal(&ends.destination_identity),
            counts: self.0.series.of(labels.without(&self.0.without)),
        })
    }

    /// Takes out the series that nobody has used for a while and that name somebody who is gone, by the mesh as of now.
    pub fn sweep(&self, mesh: &Snapshot, now: Instant) {
        // Whoever was not asked for since the last time has no hold on a series.
        lock(&self.0.cache).retain(|_, cached| cached.used.swap(false, Relaxed));
        let Table {
            series,
            names,
            to_unknown,
            ..
        } = &*self.0;
        let (idle, asked, unknown) = (series.idle(now), names.idle(now), to_unknown.idle(now));
        if idle.is_empty() && asked.is_empty() && unknown.is_empty() {
            return;
        }
        let owners = mesh.workloads();
        let owners: HashSet<(&str, &str)> = owners
            .map(|workload| (&*workload.namespace, &*workload.workload_name))
            .collect();
        let living = Living {
            workload: &|namespace, name| owners.contains(&(namespace, name)),
            service: &|namespace, host| mesh.service(namespace, host).is_some(),
        };
        let gone: Vec<_> = idle
            .into_iter()
            .filter(|labels| labels.name_somebody_gone(&living))
            .collect();
        series.expire(&gone, now);
        let gone: Vec<_> = asked
            .into_iter()
            .filter(|labels| labels.names_somebody_gone(&living))
            .collect();
        names.expire(&gone, now);
        let gone: Vec<_> = unknown
            .into_iter()
            .filter(|labels| labels.names_somebody_gone(&living))
            .collect();
        to_unknown.expire(&gone, now);
    }

    /// How it stands with the bounds, by family.
    pub fn bounded(&self) -> Bounded {
        let (tcp, names, egress) = (self.clone(), self.clone(), self.clone());
        Bounded::none()
            .and("istio_tcp", move || tcp.0.series.figures())
            .and("istio_on_demand_dns", move || names.0.names.figures())
            .and("ambit_egress_connections", move || {
                egress.0.to_unknown.figures()
            })
    }

    /// A peer was refused something at the tunnel port, before or instead of a connection between workloads.
    pub(crate) fn refused(&self, refusal: Refusal) {
        *lock(&self.0.refusals).entry(refusal.name()).or_default() += 1;
    }

    /// A connection was refused or cut at this end because the other end's certificate was revoked.
    pub(crate) fn revoked(&self, reporter: Reporter) {
        self.0.revoked[reporter as usize].fetch_add(1, Relaxed);
    }

    /// A connection goes to a destination that the mesh knows by name alone, and the name is to be resolved for it.
    pub(crate) fn asked(&self, source: &Workload, identity: &Identity, name: &Arc<str>) {
        let asked = Asked::new(source, identity, name, &self.0.without);
        self.0.names.of(asked).fetch_add(1, Relaxed);
    }

    /// A connection goes to who is unknown, or is refused for that, and its setting wants it to be told.
    pub(crate) fn to_unknown(&self, source: &Workload, identity: &Identity, refused: bool) {
        let to_unknown = ToUnknown::new(source, identity, refused, &self.0.without);
        self.0.to_unknown.of(to_unknown).fetch_add(1, Relaxed);
    }

    /// What connections of each workload of this node did, by namespace and name of its owner.
    pub(crate) fn by_workload(&self) -> BTreeMap<(Arc<str>, Arc<str>), Sums> {
        let mut found: BTreeMap<_, Sums> = BTreeMap::new();
        for series in self.0.series.all() {
            let sums = found.entry(series.labels().own()).or_default();
            let all =
                |counters: &[AtomicU64]| counters.iter().map(|it| it.load(Relaxed)).sum::<u64>();
            sums.opened += series.opened.load(Relaxed);
            sums.closed += all(&series.closed);
            sums.refused += all(&series.failed);
            sums.sent += series.sent.load(Relaxed);
            sums.received += series.received.load(Relaxed);
        }
        found
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

/// What the connections of a workload did since this process began.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Sums {
    pub(crate) opened: u64,
    pub(crate) closed: u64,
    /// Refused, or not established.
    pub(crate) refused: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// The counters of one label set.
#[derive(Debug, Default)]
struct Counts {
    opened: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    closed: [AtomicU64; Flag::ALL.len()],
    failed: [AtomicU64; Flag::ALL.len()],
}

/// Where the connections between two ends are counted: with others', where labels are left out or there is no room.
#[derive(Debug)]
pub(crate) struct Series {
    source_principal: Option<Arc<str>>,
    destination_principal: Option<Arc<str>>,
    counts: Arc<series::Series<Labels, Counts>>,
}

impl Series {
    pub(crate) fn opened(&self) {
        self.counts.opened.fetch_add(1, Relaxed);
    }

    pub(crate) fn moved(&self, sent: u64, received: u64) {
        if sent > 0 {
            self.counts.sent.fetch_add(sent, Relaxed);
        }
        if received > 0 {
            self.counts.received.fetch_add(received, Relaxed);
        }
    }

    pub(crate) fn closed(&self, flag: Flag) {
        self.counts.closed[flag as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn failed(&self, flag: Flag) {
        self.counts.failed[flag as usize].fetch_add(1, Relaxed);
    }

    /// (sent, received) so far.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let Counts { sent, received, .. } = &**self.counts;
        (sent.load(Relaxed), received.load(Relaxed))
    }

    /// `spiffe://…` of the source, formatted once for all connections of these ends.
    pub(crate) fn source_principal(&self) -> Option<&str> {
        self.source_principal.as_deref()
    }

    /// `spiffe://…` of the destination.
    pub(crate) fn destination_principal(&self) -> Option<&str> {
        self.destination_principal.as_deref()
    }
}

impl CacheKey {
    fn new(reporter: Reporter, ends: &Ends, datagrams: bool) -> Self {
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
            datagrams,
        )
    }
}

type Value = fn(&Counts, Flag) -> u64;
type Wanted = fn(&Counts, Flag) -> bool;

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Copied out so that a slow scrape does not hold up new series.
        let mut all = self.0.series.all();
        all.sort_by_key(|series| Arc::as_ptr(series).addr());
        let opened = |series: &Counts, flag| flag == Flag::None && series.opened.load(Relaxed) > 0;
        let mut counter = |name: &str, help: &str, value: Value, wanted: Wanted| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for series in &all {
                for flag in Flag::ALL.into_iter().filter(|flag| wanted(series, *flag)) {
                    let labels = Flagged(series.labels(), flag, &self.0.without);
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
        let refusals = lock(&self.0.refusals).clone();
        for (reason, count) in &refusals {
            let labels = [("reason", *reason)];
            family
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, u64>(count, None)?;
        }
        let (name, help) = (
            "istio_crl_policy_rejections",
            "Connections refused or cut because the other end's certificate was revoked (unstable)",
        );
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (index, reporter) in [(0, "source"), (1, "destination")] {
            let labels = [("reporter", reporter)];
            let count = self.0.revoked[index].load(Relaxed);
            family
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
        }
        let (name, help) = (
            "istio_on_demand_dns",
            "The total number of requests that used on-demand DNS (unstable)",
        );
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for series in self.0.names.all() {
            family
                .encode_family(&Shown(series.labels(), &self.0.without))?
                .encode_counter::<NoLabelSet, u64, u64>(&series.load(Relaxed), None)?;
        }
        let (name, help) = (
            "ambit_egress_connections",
            "Connections to destinations unknown to the mesh that a setting wants logged or refused",
        );
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for series in self.0.to_unknown.all() {
            family
                .encode_family(&Shown(series.labels(), &self.0.without))?
                .encode_counter::<NoLabelSet, u64, u64>(&series.load(Relaxed), None)?;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
