//! What the frame counts: pods, DNS, discovery, the tunnels that are open. The TCP metrics are the path's (`traffic`).

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hbone::PoolStats;
use hickory_proto::rr::RecordType;
use mesh::Snapshot;
use ops::discovery::DiscoveryMetrics;
use ops::metrics::Registry;
use ops::series::{Bounds, Figures, Labels, Series, Table, Without};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeLabelValue, EncodeMetric,
    LabelSetEncoder, LabelValueEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};

use crate::node::Node;
use crate::workers::Workers;

/// Everything the frame counts. Clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Pods of this node.
    pub pods: PodMetrics,
    /// The DNS proxy.
    pub dns: DnsMetrics,
    /// The discovery stream.
    pub xds: DiscoveryMetrics,
}

/// Pods of this node.
#[derive(Debug, Clone, Default)]
pub struct PodMetrics {
    /// Served now.
    pub active: Gauge,
    /// Handed over by the node agent, but not yet served.
    pub pending: Gauge,
    /// Started since the beginning.
    pub started: Counter,
    /// Stopped since the beginning.
    pub stopped: Counter,
}

/// The tunnel connections that this node has opened, counted when somebody looks.
#[derive(Debug)]
struct Tunnels(Arc<Workers>);

/// The DNS proxy. Clones share the counters; how many series there are is bounded.
#[derive(Debug, Clone, Default)]
pub struct DnsMetrics {
    series: Arc<Table<DnsLabels, DnsCounts>>,
    without: Without,
}

/// What is counted of the queries of one label set.
#[derive(Debug, Default)]
pub struct DnsCounts {
    /// Queries received.
    pub requests: AtomicU64,
    /// Queries relayed.
    pub upstream_requests: AtomicU64,
    /// Relayed queries that nobody answered, or that were too many.
    pub upstream_failures: AtomicU64,
    /// How long the upstream took: how many took no longer than each of [`SECONDS`], and all together in microseconds.
    took: ([AtomicU64; SECONDS.len()], AtomicU64),
}

/// What is counted of queries like one that is under way.
pub type DnsSeries = Arc<Series<DnsLabels, DnsCounts>>;

/// Upper ends of the buckets.
const SECONDS: [f64; 8] = [0.0005, 0.002, 0.01, 0.05, 0.2, 1.0, 5.0, f64::INFINITY];

/// Label set of the DNS metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DnsLabels {
    request_query_type: QueryType,
    request_protocol: Protocol,
    source_workload: Text,
    source_workload_namespace: Text,
}

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// As a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct QueryType(Option<RecordType>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Text(Arc<str>);

impl Metrics {
    /// Enters all families into `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let Self { pods, dns, xds } = self.clone();
        xds.register(registry);
        registry.large().register_collector(Box::new(dns));
        let families = registry.families();
        let unstable = |help: &str| format!("{help} (unstable)");
        families.register(
            "workload_manager_active_proxy_count",
            unstable("The total number current workloads with active proxies"),
            pods.active,
        );
        families.register(
            "workload_manager_pending_proxy_count",
            unstable("The total number current workloads with pending proxies"),
            pods.pending,
        );
        families.register(
            "workload_manager_proxies_started",
            unstable("The total number of proxies that were started"),
            pods.started,
        );
        families.register(
            "workload_manager_proxies_stopped",
            unstable("The total number of proxies that were stopped"),
            pods.stopped,
        );
    }
}

/// Takes out series that name who is gone, until dropped.
pub async fn sweep(node: Arc<Node>, dns: DnsMetrics) {
    let period = (node.config.metrics_expiry / 4).clamp(SHORTEST_PERIOD, LONGEST_PERIOD);
    loop {
        tokio::time::sleep(period).await;
        let (node, dns) = (node.clone(), dns.clone());
        // A look at a large mesh takes milliseconds, which whoever else is on this thread should not wait for.
        let swept = tokio::task::spawn_blocking(move || {
            let (mesh, now) = (node.mesh.load_full(), Instant::now());
            node.traffic.sweep(&mesh, now);
            dns.sweep(&mesh, now);
        });
        if let Err(error) = swept.await {
            tracing::error!(%error, "metrics: a sweep ended early");
        }
    }
}

const SHORTEST_PERIOD: Duration = Duration::from_millis(100);
const LONGEST_PERIOD: Duration = Duration::from_secs(60);

impl DnsMetrics {
    /// Bounded so, and without these labels.
    pub fn new(bounds: Bounds, without: Without) -> Self {
        Self {
            series: Arc::new(Table::new(bounds)),
            without,
        }
    }

    /// What queries of these labels are counted by.
    pub fn of(&self, labels: DnsLabels) -> DnsSeries {
        self.series.of(labels.without(&self.without))
    }

    /// Those of all label sets together.
    pub fn sum(&self, of: impl Fn(&DnsCounts) -> &AtomicU64) -> u64 {
        let all = self.series.all();
        all.iter().map(|series| of(series).load(Relaxed)).sum()
    }

    /// How it stands with the bounds.
    pub fn figures(&self) -> Figures {
        self.series.figures()
    }

    /// Takes out what names a workload that is gone.
    pub fn sweep(&self, mesh: &Snapshot, now: Instant) {
        let idle = self.series.idle(now);
        if idle.is_empty() {
            return;
        }
        let owners = mesh.workloads();
        let owners: HashSet<(&str, &str)> = owners
            .map(|workload| (&*workload.namespace, &*workload.workload_name))
            .collect();
        let is_gone = |labels: &Arc<DnsLabels>| {
            let owner = (
                &*labels.source_workload_namespace.0,
                &*labels.source_workload.0,
            );
            // Where that label is left out nobody is named.
            !owner.1.is_empty() && !owners.contains(&owner)
        };
        let gone: Vec<_> = idle.into_iter().filter(is_gone).collect();
        self.series.expire(&gone, now);
    }
}

impl DnsCounts {
    /// Upstream answered, or did not, after so long.
    pub fn took(&self, took: Duration) {
        let at = SECONDS.partition_point(|end| *end < took.as_secs_f64());
        self.took.0[at.min(SECONDS.len() - 1)].fetch_add(1, Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.took.1.fetch_add(micros, Relaxed);
    }
}

impl Collector for DnsMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.series.all();
        let mut counter = |name, help, of: fn(&DnsCounts) -> &AtomicU64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for series in &all {
                let value = of(series).load(Relaxed);
                if value > 0 {
                    family
                        .encode_family(&Shown(series.labels(), &self.without))?
                        .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
                }
            }
            fmt::Result::Ok(())
        };
        counter(
            "istio_dns_requests",
            "The total number of DNS requests (unstable)",
            |counts| &counts.requests,
        )?;
        counter(
            "istio_dns_upstream_requests",
            "The total number of DNS requests relayed upstream (unstable)",
            |counts| &counts.upstream_requests,
        )?;
        counter(
            "istio_dns_upstream_failures",
            "The total number of DNS requests nobody answered upstream (unstable)",
            |counts| &counts.upstream_failures,
        )?;
        let (name, help) = (
            "istio_dns_upstream_request_duration_seconds",
            "How long upstream took to answer a DNS request (unstable)",
        );
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for series in &all {
            let (counts, micros) = &series.took;
            let mut buckets = [(0.0, 0); SECONDS.len()];
            for ((bucket, end), count) in buckets.iter_mut().zip(SECONDS).zip(counts) {
                *bucket = (end, count.load(Relaxed));
            }
            let count = buckets.iter().map(|(_, count)| count).sum();
            if count > 0 {
                let seconds = micros.load(Relaxed) as f64 / 1e6;
                family
                    .encode_family(&Shown(series.labels(), &self.without))?
                    .encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

/// Labels as they go out: without what is left out.
struct Shown<'a>(&'a DnsLabels, &'a Without);

impl EncodeLabelSet for Shown<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(labels, left_out) = self;
        ("request_query_type", labels.request_query_type).encode(encoder.encode_label())?;
        ("request_protocol", labels.request_protocol).encode(encoder.encode_label())?;
        [
            ("source_workload", &*labels.source_workload.0),
            (
                "source_workload_namespace",
                &*labels.source_workload_namespace.0,
            ),
        ]
        .into_iter()
        .filter(|(label, _)| !left_out.has(label))
        .try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}

/// Enters the figures of `pool` into `registry`.
pub fn register_pools(registry: &mut Registry, workers: &Arc<Workers>) {
    let tunnels = Tunnels(workers.clone());
    registry.families().register_collector(Box::new(tunnels));
}

impl Collector for Tunnels {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        show(self.0.stats(), encoder)
    }
}

fn show(stats: PoolStats, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
    let mut gauge = |name, help, count: usize| {
        let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    };
    gauge(
        "ambit_pool_connections",
        "Tunnel connections that this node has opened to others",
        stats.connections,
    )?;
    gauge(
        "ambit_pool_streams",
        "Tunnels open on these connections",
        stats.streams,
    )
}

impl DnsLabels {
    /// Labels of a query; `kind` is absent when it could not be read.
    pub fn new(
        kind: Option<RecordType>,
        protocol: Protocol,
        workload: Option<Arc<str>>,
        namespace: Arc<str>,
    ) -> Self {
        Self {
            request_query_type: QueryType(kind.filter(is_common)),
            request_protocol: protocol,
            source_workload: Text(workload.unwrap_or_else(|| "unknown".into())),
            source_workload_namespace: Text(namespace),
        }
    }
}

impl DnsLabels {
    fn without(mut self, left_out: &Without) -> Self {
        for (label, value) in [
            ("source_workload", &mut self.source_workload),
            (
                "source_workload_namespace",
                &mut self.source_workload_namespace,
            ),
        ] {
            if left_out.has(label) {
                value.0 = "".into();
            }
        }
        self
    }
}

impl Labels for DnsLabels {
    fn overflow(&self) -> Self {
        Self {
            source_workload: Text("overflow".into()),
            source_workload_namespace: Text("overflow".into()),
            ..self.clone()
        }
    }
}

/// A pod must not be able to make 65,536 series by asking for strange types.
fn is_common(kind: &RecordType) -> bool {
    use RecordType::{A, AAAA, ANY, CNAME, HTTPS, MX, NS, PTR, SOA, SRV, SVCB, TXT};
    matches!(
        kind,
        A | AAAA | ANY | CNAME | HTTPS | MX | NS | PTR | SOA | SRV | SVCB | TXT
    )
}

impl EncodeLabelValue for QueryType {
    fn encode(&self, out: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self.0 {
            Some(kind) => kind.to_string().encode(out),
            None => "other".encode(out),
        }
    }
}

impl EncodeLabelValue for Protocol {
    fn encode(&self, out: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Udp => "udp".encode(out),
            Self::Tcp => "tcp".encode(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, help texts and types; the rest of the recording is tested where it is made.
    #[test]
    fn every_recorded_family_of_ours_is_there() {
        let mut registry = Registry::new("ztunnel", "unknown");
        Metrics::default().register(&mut registry);
        let text = registry.text().unwrap();
        let recorded = include_str!("../testdata/admin/metrics-server-node.txt");
        let ours = |line: &&str| line.starts_with("# ") && line.contains("workload_manager");
        assert_eq!(recorded.lines().filter(ours).count(), 8);
        for line in recorded.lines().filter(ours) {
            assert!(
                text.lines().any(|printed| printed == line),
                "{line} is missing in\n{text}"
            );
        }
    }

    /// Those that no recording has, for nobody asked for names there.
    #[test]
    fn names_and_discovery_are_counted_under_istios_names_and_labels() {
        let metrics = Metrics::default();
        let client = Some("client".into());
        let asked = DnsLabels::new(
            Some(RecordType::AAAA),
            Protocol::Tcp,
            client,
            "alpha".into(),
        );
        let dns = metrics.dns.of(asked);
        dns.requests.fetch_add(1, Relaxed);
        dns.upstream_requests.fetch_add(2, Relaxed);
        dns.upstream_failures.fetch_add(3, Relaxed);
        dns.took(Duration::from_millis(3));
        let url = "type.googleapis.com/istio.workload.Address";
        metrics.xds.received(url, 70);
        metrics.xds.ended(true);
        metrics.xds.ended(false);
        let mut registry = Registry::new("ztunnel", "unknown");
        metrics.register(&mut registry);
        let text = registry.text().unwrap();
        let asked = "{request_query_type=\"AAAA\",request_protocol=\"tcp\",source_workload=\"client\",source_workload_namespace=\"alpha\"}";
        let of_type = format!("{{url=\"{url}\"}}");
        for line in [
            format!("istio_dns_requests_total{asked} 1"),
            format!("istio_dns_upstream_requests_total{asked} 2"),
            format!("istio_dns_upstream_failures_total{asked} 3"),
            format!("istio_dns_upstream_request_duration_seconds_count{asked} 1"),
            format!("istio_xds_message_total{of_type} 1"),
            format!("istio_xds_message_bytes_total{of_type} 70"),
            "istio_xds_connection_terminations_total{reason=\"Complete\"} 1".to_owned(),
            "istio_xds_connection_terminations_total{reason=\"Error\"} 1".to_owned(),
        ] {
            assert!(
                text.lines().any(|printed| printed == line),
                "{line} is missing in\n{text}"
            );
        }
    }

    /// Figures instead of a pool.
    #[derive(Debug)]
    struct Fixed(PoolStats);

    impl Collector for Fixed {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            show(self.0, encoder)
        }
    }

    #[test]
    fn connections_and_the_tunnels_on_them_are_told_apart() {
        let stats = PoolStats {
            destinations: 1,
            connections: 2,
            streams: 30,
        };
        let mut registry = Registry::new("ztunnel", "unknown");
        registry
            .families()
            .register_collector(Box::new(Fixed(stats)));
        let text = registry.text().unwrap();
        for line in [
            "# TYPE ambit_pool_connections gauge",
            "ambit_pool_connections 2",
            "# TYPE ambit_pool_streams gauge",
            "ambit_pool_streams 30",
        ] {
            assert!(
                text.lines().any(|printed| printed == line),
                "{line} is missing in\n{text}"
            );
        }
    }

    #[test]
    fn strange_query_types_share_a_series() {
        let dns = DnsMetrics::default();
        for kind in [
            None,
            Some(RecordType::Unknown(65_280)),
            Some(RecordType::NULL),
        ] {
            let labels = DnsLabels::new(kind, Protocol::Udp, None, "alpha".into());
            dns.of(labels).requests.fetch_add(1, Relaxed);
        }
        let mut registry = Registry::new("ztunnel", "unknown");
        registry.large().register_collector(Box::new(dns));
        let text = registry.text().unwrap();
        let line = "istio_dns_requests_total{request_query_type=\"other\",request_protocol=\"udp\",source_workload=\"unknown\",source_workload_namespace=\"alpha\"} 3";
        assert!(text.lines().any(|printed| printed == line), "{text}");
    }
}
