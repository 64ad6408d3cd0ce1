//! The numbers as Prometheus reads them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ops::series::Without;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Protocol;
use super::asked::Asked;
use super::labels::{Named, Printed};
use super::mirrored::{Mirrored, OUTCOMES};
use super::queue::Collectors;
use super::series::{BUCKETS, Counts, Histogram, Series, Table};
use super::shape::METRICS;

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

/// What came of asking others, for a registry.
#[derive(Debug)]
pub(super) struct Consulted(pub(super) Asked);

impl Collector for Consulted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.all();
        if all.is_empty() {
            return Ok(());
        }
        let help = "Questions to others about requests, by what came of them";
        let mut family =
            encoder.encode_descriptor("ambit_asked", help, None, MetricType::Counter)?;
        for ([kind, provider], answers) in &all {
            for (outcome, count) in answers.outcomes() {
                let labels = [
                    (kind.0, kind.1.as_str()),
                    (provider.0, provider.1.as_str()),
                    ("outcome", outcome),
                ];
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            }
        }
        let (name, help) = (
            "ambit_asked_duration_milliseconds",
            "From a question about a request until it is known what came of it",
        );
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, answers) in &all {
            let mut sum = Sum::default();
            sum.add(&answers.took);
            sum.encode(1_000, family.encode_family(labels)?)?;
        }
        Ok(())
    }
}

/// What became of copies of requests, for a registry.
#[derive(Debug)]
pub(super) struct Mirrors(pub(super) Mirrored);

impl Collector for Mirrors {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.all();
        if all.is_empty() {
            return Ok(());
        }
        let help = "Copies of requests for mirrors, by what became of them";
        let mut family =
            encoder.encode_descriptor("ambit_mirrored", help, None, MetricType::Counter)?;
        for (service, outcomes) in &all {
            for (outcome, count) in OUTCOMES.into_iter().zip(outcomes) {
                let labels = [("service", service.as_str()), ("outcome", outcome)];
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, u64, u64>(count, None)?;
            }
        }
        Ok(())
    }
}

/// Name, help, value.
type Counter = (&'static str, &'static str, fn(&Counts) -> u64);
/// Name, help, how many of what was observed are one of what is shown, value.
type Shown = (&'static str, &'static str, u64, fn(&Counts) -> &Histogram);

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
        let (all, without) = (self.0.all(), &self.0.without);
        let is_tcp = |series: &&Arc<Series>| series.labels().how.protocol == Protocol::Tcp;
        let (tcp, http): (Vec<_>, Vec<_>) = all.iter().partition(is_tcp);
        for shown in HISTOGRAMS {
            histogram(&mut encoder, shown, &http, without)?;
        }
        let http = HTTP.into_iter().map(|shown| (shown, &http));
        let tcp = TCP.into_iter().map(|shown| (shown, &tcp));
        for (shown, series) in http.chain(tcp) {
            counter(&mut encoder, shown, series, without)?;
        }
        Ok(())
    }
}

/// Whether something is other about one of them: labels that are removed make one series of several.
fn are_other(series: &[&Arc<Series>]) -> bool {
    series.iter().any(|it| it.labels().also.is_some())
}

/// Several series by the labels that are left.
fn merged<T: Default>(
    metric: &str,
    series: &[&Arc<Series>],
    without: &Without,
    add: impl Fn(&mut T, &Counts),
) -> HashMap<Named, T> {
    let metric = METRICS.iter().position(|name| *name == metric);
    let mut all: HashMap<Named, T> = HashMap::new();
    for one in series {
        if let Some(labels) = one
            .labels()
            .of_metric(metric.unwrap_or(METRICS.len()), without)
        {
            add(all.entry(labels).or_default(), one);
        }
    }
    all
}

/// A series that has never counted anything is not there.
fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, of): Counter,
    series: &[&Arc<Series>],
    without: &Without,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    if are_other(series) {
        let add = |sum: &mut u64, one: &Counts| *sum += of(one);
        for (labels, value) in merged(&format!("{name}_total"), series, without, add) {
            if value > 0 {
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
            }
        }
        return Ok(());
    }
    for series in series {
        let value = of(series);
        if value > 0 {
            family
                .encode_family(&Printed(series.labels(), without))?
                .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
    }
    Ok(())
}

fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, scale, of): Shown,
    series: &[&Arc<Series>],
    without: &Without,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    if are_other(series) {
        let add = |sum: &mut Sum, one: &Counts| sum.add(of(one));
        for (labels, sum) in merged(name, series, without, add) {
            sum.encode(scale, family.encode_family(&labels)?)?;
        }
        return Ok(());
    }
    for series in series {
        let mut sum = Sum::default();
        sum.add(of(series));
        sum.encode(
            scale,
            family.encode_family(&Printed(series.labels(), without))?,
        )?;
    }
    Ok(())
}

/// Of one histogram, or of several.
#[derive(Debug, Default)]
struct Sum {
    counts: [u64; BUCKETS.len()],
    sum: u64,
}

impl Sum {
    fn add(&mut self, found: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&found.counts) {
            *count += more.load(Relaxed);
        }
        self.sum += found.sum.load(Relaxed);
    }

    fn encode(&self, scale: u64, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut buckets = [(0.0, 0); BUCKETS.len()];
        for ((shown, end), count) in buckets.iter_mut().zip(BUCKETS).zip(self.counts) {
            *shown = (end, count);
        }
        let count = self.counts.iter().sum();
        let sum = self.sum as f64 / scale as f64;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}
