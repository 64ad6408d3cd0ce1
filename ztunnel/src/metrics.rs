//! What the frame counts: pods, DNS, discovery, the tunnels that are open. The TCP metrics are the path's (`traffic`).

use std::fmt;
use std::sync::Arc;

use hbone::PoolStats;
use hickory_proto::rr::RecordType;
use ops::discovery::DiscoveryMetrics;
use ops::metrics::Registry;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;

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

/// The DNS proxy.
#[derive(Debug, Clone)]
pub struct DnsMetrics {
    /// Queries received.
    pub requests: Family<DnsLabels, Counter>,
    /// Queries relayed.
    pub upstream_requests: Family<DnsLabels, Counter>,
    /// Relayed queries that nobody answered, or that were too many.
    pub upstream_failures: Family<DnsLabels, Counter>,
    /// How long the upstream took, in seconds.
    pub upstream_seconds: Family<DnsLabels, Histogram, fn() -> Histogram>,
}

/// Label set of the DNS metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
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
        families.register(
            "istio_dns_requests",
            unstable("The total number of DNS requests"),
            dns.requests,
        );
        families.register(
            "istio_dns_upstream_requests",
            unstable("The total number of DNS requests relayed upstream"),
            dns.upstream_requests,
        );
        families.register(
            "istio_dns_upstream_failures",
            unstable("The total number of DNS requests nobody answered upstream"),
            dns.upstream_failures,
        );
        families.register(
            "istio_dns_upstream_request_duration_seconds",
            unstable("How long upstream took to answer a DNS request"),
            dns.upstream_seconds,
        );
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

impl Default for DnsMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            upstream_requests: Family::default(),
            upstream_failures: Family::default(),
            upstream_seconds: Family::new_with_constructor(|| {
                Histogram::new([0.0005, 0.002, 0.01, 0.05, 0.2, 1.0, 5.0])
            }),
        }
    }
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

impl EncodeLabelValue for Text {
    fn encode(&self, out: &mut LabelValueEncoder<'_>) -> fmt::Result {
        (&*self.0).encode(out)
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
            dns.requests.get_or_create(&labels).inc();
        }
        let mut registry = Registry::new("ztunnel", "unknown");
        registry
            .families()
            .register("istio_dns_requests", "x", dns.requests);
        let text = registry.text().unwrap();
        let line = "istio_dns_requests_total{request_query_type=\"other\",request_protocol=\"udp\",source_workload=\"unknown\",source_workload_namespace=\"alpha\"} 3";
        assert!(text.lines().any(|printed| printed == line), "{text}");
    }
}
