//! What a proxy proves itself by and whom it believes no more, in figures for a scrape.
//!
//! Each scrape asks the store of certificates ([`Certificates::figures`]) and the lists ([`Revocations::figures`]) how they
//! stand; nothing is kept here. Whom a certificate is of is in dumps: a label for each identity would be one for each pod.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::certs::{CertificateFigures, Certificates};
use crate::tls::RevocationFigures;

/// Enters the figures of certificates and of lists of revoked ones into a registry.
#[derive(Debug)]
pub struct TrustFigures(Arc<Certificates>);

impl TrustFigures {
    /// Of these, and of the lists that they judge others by.
    pub fn of(certificates: &Arc<Certificates>) -> Self {
        Self(certificates.clone())
    }
}

impl Collector for TrustFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        certificates(&self.0.figures(), &mut encoder)?;
        let revoked = self.0.revoked().figures();
        revocations(&revoked, SystemTime::now(), &mut encoder)
    }
}

fn certificates(figures: &CertificateFigures, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut states = encoder.encode_descriptor(
        "ambit_certificates",
        "Identities of this proxy, by the state of their certificate",
        None,
        MetricType::Gauge,
    )?;
    for (state, count) in [
        ("available", figures.available),
        ("initializing", figures.initializing),
        ("unavailable", figures.unavailable),
    ] {
        states
            .encode_family(&[("state", state)])?
            .encode_gauge(&number(count))?;
    }
    let mut requests = encoder.encode_descriptor(
        "ambit_certificate_requests",
        "Requests for certificates, by what came of them",
        None,
        MetricType::Counter,
    )?;
    for (result, count) in [("obtained", figures.obtained), ("failed", figures.failed)] {
        requests
            .encode_family(&[("result", result)])?
            .encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
    }
    gauge(
        encoder,
        "ambit_certificates_failing",
        "Identities whose last request failed, also where an earlier certificate is in force still",
        number(figures.failing),
    )?;
    match figures.first_end {
        Some(end) => gauge(
            encoder,
            "ambit_certificate_expiry_timestamp_seconds",
            "When the first of the certificates in force ends",
            seconds(end),
        ),
        None => Ok(()),
    }
}

fn revocations(
    figures: &RevocationFigures,
    now: SystemTime,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    gauge(
        encoder,
        "ambit_crl_lists",
        "Lists of revoked certificates in force",
        number(figures.lists),
    )?;
    gauge(
        encoder,
        "ambit_crl_revoked_certificates",
        "Certificates that they name",
        number(figures.revoked),
    )?;
    gauge(
        encoder,
        "ambit_crl_overdue_lists",
        "Lists that were to be followed by another before now",
        number(figures.overdue(now)),
    )?;
    if let Some(next) = figures.next_updates.iter().min() {
        gauge(
            encoder,
            "ambit_crl_next_update_timestamp_seconds",
            "When the first of the lists is to be followed by another",
            seconds(*next),
        )?;
    }
    encoder
        .encode_descriptor(
            "ambit_crl_load_failures",
            "Texts that were to be lists of revoked certificates and could not be read",
            None,
            MetricType::Counter,
        )?
        .encode_counter::<NoLabelSet, u64, u64>(&figures.unreadable, None)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What is the same whoever asks.
    #[derive(Debug)]
    struct Shown(CertificateFigures, RevocationFigures);

    impl Collector for Shown {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            certificates(&self.0, &mut encoder)?;
            revocations(&self.1, at(500), &mut encoder)
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn text(shown: Shown) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(shown));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn a_scrape_says_what_is_in_force_and_until_when() {
        let certificates = CertificateFigures {
            available: 3,
            initializing: 1,
            unavailable: 2,
            failing: 4,
            first_end: Some(at(1000)),
            obtained: 12,
            failed: 34,
        };
        let revocations = RevocationFigures {
            lists: 3,
            revoked: 7,
            next_updates: vec![at(900), at(400)],
            unreadable: 5,
        };
        let text = text(Shown(certificates, revocations));
        for line in [
            "ambit_certificates{state=\"available\"} 3",
            "ambit_certificates{state=\"initializing\"} 1",
            "ambit_certificates{state=\"unavailable\"} 2",
            "ambit_certificate_requests_total{result=\"obtained\"} 12",
            "ambit_certificate_requests_total{result=\"failed\"} 34",
            "ambit_certificates_failing 4",
            "ambit_certificate_expiry_timestamp_seconds 1000",
            "ambit_crl_lists 3",
            "ambit_crl_revoked_certificates 7",
            "ambit_crl_overdue_lists 1",
            "ambit_crl_next_update_timestamp_seconds 400",
            "ambit_crl_load_failures_total 5",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn what_there_is_none_of_has_no_end() {
        let text = text(Shown(
            CertificateFigures::default(),
            RevocationFigures::default(),
        ));
        assert!(!text.contains("timestamp"), "{text}");
    }
}
