//! The numbers as Prometheus reads them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Protocol;
use super::queue::Collectors;
use super::series::{BUCKETS, Histogram, Series, Table};

/// The table, for a registry.
#[derive(Debug)]
pub(super) struct Scraped(pub(super) Arc<Table>);

/// What became of what collectors are told, for a registry.
#[derive(Debug)]
pub(super) struct Delivered(pub(super) Collectors);

impl Collector for Delivered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.counts();
        if all.is_empty() {
            return Ok(());
        }
        let help = "Spans and log records for collectors, by what became of them";
        let mut family =
            encoder.encode_descriptor("ambit_reports", help, None, MetricType::Counter)?;
        for (provider, counts) in &all {
            for (outcome, count) in [
                ("sent", &counts.sent),
                ("dropped", &counts.dropped),
                ("failed", &counts.failed),
            ] {
                let name = provider.strip_prefix("provider/").unwrap_or(provider);
                let labels = [("provider", name), ("outcome", outcome)];
                let count = count.load(Relaxed);
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            }
        }
        Ok(())
    }
}

/// Name, help, value.
type Counter = (&'static str, &'static str, fn(&Series) -> u64);
/// Name, help, how many of what was observed are one of what is shown, value.
type Shown = (&'static str, &'static str, u64, fn(&Series) -> &Histogram);

const HTTP: [Counter; 3] = [
    ("istio_requests", "Requests", |series| {
        series.requests.load(Relaxed)
    }),
    (
        "istio_request_messages",
        "gRPC messages of clients",
        |series| series.messages_received.load(Relaxed),
    ),
    (
        "istio_response_messages",
        "gRPC messages to clients",
        |series| series.messages_sent.load(Relaxed),
    ),
];

const HISTOGRAMS: [Shown; 3] = [
    (
        "istio_request_duration_milliseconds",
        "From a request's head to the end of its answer",
        1_000,
        |series| &series.millis,
    ),
    (
        "istio_request_bytes",
        "Bytes of requests' bodies",
        1,
        |series| &series.received,
    ),
    (
        "istio_response_bytes",
        "Bytes of answers' bodies",
        1,
        |series| &series.sent,
    ),
];

const TCP: [Counter; 5] = [
    (
        "istio_tcp_connections_opened",
        "TCP connections opened",
        |series| series.requests.load(Relaxed),
    ),
    (
        "istio_tcp_connections_closed",
        "TCP connections closed",
        |series| series.closed.load(Relaxed),
    ),
    ("istio_tcp_sent_bytes", "Bytes sent to clients", |series| {
        series.sent.sum.load(Relaxed)
    }),
    (
        "istio_tcp_received_bytes",
        "Bytes received from clients",
        |series| series.received.sum.load(Relaxed),
    ),
    (
        "istio_tcp_connections_failed",
        "TCP connections that could not be made or were refused",
        |series| series.failed.load(Relaxed),
    ),
];

impl Collector for Scraped {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.all();
        let is_tcp = |series: &&Arc<Series>| series.labels.how.protocol == Protocol::Tcp;
        let (tcp, http): (Vec<_>, Vec<_>) = all.iter().partition(is_tcp);
        for shown in HISTOGRAMS {
            histogram(&mut encoder, shown, &http)?;
        }
        let http = HTTP.into_iter().map(|shown| (shown, &http));
        let tcp = TCP.into_iter().map(|shown| (shown, &tcp));
        for (shown, series) in http.chain(tcp) {
            counter(&mut encoder, shown, series)?;
        }
        Ok(())
    }
}

/// A series that has never counted anything is not there.
fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, of): Counter,
    series: &[&Arc<Series>],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for series in series {
        let value = of(series);
        if value > 0 {
            family
                .encode_family(&*series.labels)?
                .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
    }
    Ok(())
}

fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, scale, of): Shown,
    series: &[&Arc<Series>],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for series in series {
        let found = of(series);
        let mut buckets = [(0.0, 0); BUCKETS.len()];
        for ((shown, end), count) in buckets.iter_mut().zip(BUCKETS).zip(&found.counts) {
            *shown = (end, count.load(Relaxed));
        }
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = found.sum.load(Relaxed) as f64 / scale as f64;
        family
            .encode_family(&*series.labels)?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}
