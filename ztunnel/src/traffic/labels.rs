//! Label set T: what is known of the two ends of a connection, as text, in the order of the wire.

use std::fmt;
use std::sync::Arc;

use hbone::Identity;
use mesh::{Service, Workload};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::{Ends, Flag, Reporter};
use crate::headers::Baggage;

pub(super) const UNKNOWN: &str = "unknown";

/// Label set T without `response_flags`, in the order of the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    reporter: Reporter,
    source: Side,
    pub(super) source_principal: Arc<str>,
    destination_service: Arc<str>,
    destination_service_namespace: Arc<str>,
    destination_service_name: Arc<str>,
    destination: Side,
    pub(super) destination_principal: Arc<str>,
    secured: bool,
}

/// The labels of one end. `app` and `version` of the wire are the canonical names again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Side {
    workload: Arc<str>,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
    namespace: Arc<str>,
    cluster: Arc<str>,
    region: Arc<str>,
    zone: Arc<str>,
}

impl Labels {
    pub(super) fn new(reporter: Reporter, ends: &Ends, said: Option<Baggage<'_>>) -> Self {
        let unknown: Arc<str> = UNKNOWN.into();
        let principal = |identity: Option<&Identity>| {
            identity.map_or_else(|| unknown.clone(), |identity| identity.to_string().into())
        };
        let service = |part: fn(&Service) -> &Arc<str>| {
            ends.service
                .as_ref()
                .map_or_else(|| unknown.clone(), |service| part(service).clone())
        };
        let source = match (&ends.source, said) {
            (None, Some(said)) => Side::said(said, ends.source_identity.as_ref()),
            (workload, _) => Side::new(workload.as_deref(), &unknown),
        };
        Self {
            reporter,
            source,
            source_principal: principal(ends.source_identity.as_ref()),
            destination_service: service(|service| &service.hostname),
            destination_service_namespace: service(|service| &service.namespace),
            destination_service_name: service(|service| &service.name),
            destination: Side::new(ends.destination.as_deref(), &unknown),
            destination_principal: principal(ends.destination_identity.as_ref()),
            secured: ends.secured,
        }
    }

    pub(super) fn without_baggage(mut self) -> Self {
        self.source = Side::new(None, &UNKNOWN.into());
        self
    }
}

impl Side {
    pub(super) fn of(workload: &Workload) -> Self {
        Self::new(Some(workload), &UNKNOWN.into())
    }

    /// The labels of a connection's source, in the order of the wire; locality stands elsewhere.
    pub(super) fn as_source<'a>(&'a self, principal: &'a str) -> [(&'static str, &'a str); 8] {
        [
            ("source_workload", &self.workload),
            ("source_canonical_service", &self.canonical_service),
            ("source_canonical_revision", &self.canonical_revision),
            ("source_workload_namespace", &self.namespace),
            ("source_principal", principal),
            ("source_app", &self.canonical_service),
            ("source_version", &self.canonical_revision),
            ("source_cluster", &self.cluster),
        ]
    }

    fn new(workload: Option<&Workload>, unknown: &Arc<str>) -> Self {
        let part = |part: fn(&Workload) -> &Arc<str>| match workload.map(part) {
            Some(value) if !value.is_empty() => value.clone(),
            _ => unknown.clone(),
        };
        Self {
            workload: part(|workload| &workload.workload_name),
            canonical_service: part(|workload| &workload.canonical_name),
            canonical_revision: part(|workload| &workload.canonical_revision),
            namespace: part(|workload| &workload.namespace),
            cluster: part(|workload| &workload.cluster),
            region: part(|workload| &workload.locality.region),
            zone: part(|workload| &workload.locality.zone),
        }
    }

    /// The namespace comes from the certificate where there is one: baggage could claim any.
    fn said(said: Baggage<'_>, identity: Option<&Identity>) -> Self {
        // Longest legal Kubernetes name; what is longer is an attempt to fill memory.
        let part = |value: Option<&str>| match value {
            Some(value) if value.len() <= 253 => value.into(),
            _ => UNKNOWN.into(),
        };
        Self {
            workload: part(said.workload),
            canonical_service: part(said.service),
            canonical_revision: part(said.version),
            namespace: identity.map_or_else(
                || part(said.namespace),
                |identity| identity.namespace().into(),
            ),
            cluster: part(said.cluster),
            region: part(said.region),
            zone: part(said.zone),
        }
    }
}

/// Labels as they go out: with the flag.
pub(super) struct Flagged<'a>(pub(super) &'a Labels, pub(super) Flag);

impl EncodeLabelSet for Flagged<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(labels, flag) = self;
        let (source, destination) = (&labels.source, &labels.destination);
        let reporter = match labels.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        };
        let pairs: [(&str, &str); 18] = [
            ("destination_service", &labels.destination_service),
            (
                "destination_service_namespace",
                &labels.destination_service_namespace,
            ),
            ("destination_service_name", &labels.destination_service_name),
            ("destination_workload", &destination.workload),
            (
                "destination_canonical_service",
                &destination.canonical_service,
            ),
            (
                "destination_canonical_revision",
                &destination.canonical_revision,
            ),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &labels.destination_principal),
            ("destination_app", &destination.canonical_service),
            ("destination_version", &destination.canonical_revision),
            ("destination_cluster", &destination.cluster),
            ("request_protocol", "tcp"),
            ("response_flags", flag.label()),
            (
                "connection_security_policy",
                if labels.secured {
                    "mutual_tls"
                } else {
                    UNKNOWN
                },
            ),
            ("source_region", &source.region),
            ("source_zone", &source.zone),
            ("destination_region", &destination.region),
            ("destination_zone", &destination.zone),
        ];
        [("reporter", reporter)]
            .into_iter()
            .chain(source.as_source(&labels.source_principal))
            .chain(pairs)
            .try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}
