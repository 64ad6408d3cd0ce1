//! What a family holds: counts under Istio's names, histograms with Istio's bounds, and ends of validity.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A counter whose name is written as it is.
#[derive(Debug, Clone, Default)]
pub struct Count(Arc<AtomicU64>);

impl Count {
    /// One more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Until now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl EncodeMetric for Count {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.value())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Count {
    const TYPE: MetricType = MetricType::Unknown;
}

pub(super) type Histograms<L> = Family<L, Histogram, Buckets>;

/// A histogram's bounds.
#[derive(Clone, Copy)]
pub struct Buckets(pub(super) &'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// An end of validity: when, and in how many seconds (worked out at each scrape).
#[derive(Debug, Clone, Default)]
pub(super) struct Expiry(Arc<AtomicI64>);

#[derive(Debug, Clone)]
pub(super) struct SecondsLeft(pub(super) Expiry);

impl Expiry {
    /// In seconds since 1970.
    pub(super) fn set(&self, end: i64) {
        self.0.store(end, Ordering::Relaxed);
    }
}

impl EncodeMetric for Expiry {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0.load(Ordering::Relaxed))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

impl EncodeMetric for SecondsLeft {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let now = x509_parser::time::ASN1Time::now().timestamp();
        encoder.encode_gauge(&(self.0.0.load(Ordering::Relaxed) - now))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// From a millisecond to a minute; Istio's own bounds.
pub(super) const SECONDS: &[f64] = &[0.001, 0.01, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0];
/// Up to what a proxy takes in one message.
pub(super) const BYTES: &[f64] = &[
    1.0,
    10_000.0,
    100_000.0,
    1_000_000.0,
    4_000_000.0,
    10_000_000.0,
    40_000_000.0,
    200_000_000.0,
];
