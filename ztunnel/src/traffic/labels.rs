//! Label set T: what is known of the two ends of a connection, as text, in the order of the wire.

use std::fmt;
use std::sync::Arc;

use hbone::Identity;
use mesh::{Service, Workload};
use ops::series::Without;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::{Ends, Flag, Reporter};
use crate::headers::Baggage;

pub(super) const UNKNOWN: &str = "unknown";
/// Of a series that stands for all for which there was no room.
pub(super) const OVERFLOW: &str = "overflow";

/// Label set T without `response_flags`, in the order of the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    reporter: Reporter,
    source: Side,
    source_principal: Arc<str>,
    destination_service: Arc<str>,
    destination_service_namespace: Arc<str>,
    destination_service_name: Arc<str>,
    destination: Side,
    destination_principal: Arc<str>,
    secured: bool,
    /// Of UDP.
    datagrams: bool,
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
    pub(super) fn new(
        reporter: Reporter,
        ends: &Ends,
        said: Option<Baggage<'_>>,
        datagrams: bool,
    ) -> Self {
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
            datagrams,
        }
    }

    /// Namespace and name of the workload at the end that reports.
    pub(super) fn own(&self) -> (Arc<str>, Arc<str>) {
        let side = match self.reporter {
            Reporter::Source => &self.source,
            Reporter::Destination => &self.destination,
        };
        (side.namespace.clone(), side.workload.clone())
    }

    pub(super) fn without_baggage(mut self) -> Self {
        self.source = Side::new(None, &UNKNOWN.into());
        self
    }

    /// What is left out is the same for all.
    pub(super) fn without(mut self, left_out: &Without) -> Self {
        if left_out.is_empty() {
            return self;
        }
        for (label, value) in [
            ("source_principal", &mut self.source_principal),
            ("destination_principal", &mut self.destination_principal),
            ("destination_service", &mut self.destination_service),
            (
                "destination_service_namespace",
                &mut self.destination_service_namespace,
            ),
            (
                "destination_service_name",
                &mut self.destination_service_name,
            ),
        ] {
            blank(value, left_out.has(label));
        }
        self.secured &= !left_out.has("connection_security_policy");
        self.source.without(left_out, &SOURCE);
        self.destination.without(left_out, &DESTINATION);
        self
    }

    /// Whether somebody is named who is gone.
    pub(super) fn name_somebody_gone(&self, living: &Living<'_>) -> bool {
        let (namespace, host) = (
            &self.destination_service_namespace,
            &self.destination_service,
        );
        self.source.is_gone(living)
            || self.destination.is_gone(living)
            || (is_name(host) && !(living.service)(namespace, host))
    }
}

/// Who there is: whether there is a workload of that namespace and name of its owner, a service of that namespace and host.
pub(super) struct Living<'a> {
    pub(super) workload: &'a dyn Fn(&str, &str) -> bool,
    pub(super) service: &'a dyn Fn(&str, &str) -> bool,
}

impl ops::series::Labels for Labels {
    fn overflow(&self) -> Self {
        let overflow: Arc<str> = OVERFLOW.into();
        Self {
            reporter: self.reporter,
            source: Side::overflow(&overflow),
            source_principal: overflow.clone(),
            destination_service: overflow.clone(),
            destination_service_namespace: overflow.clone(),
            destination_service_name: overflow.clone(),
            destination: Side::overflow(&overflow),
            destination_principal: overflow,
            secured: self.secured,
            datagrams: self.datagrams,
        }
    }
}

/// A value that names something: neither unknown, nor left out, nor one for all the rest.
fn is_name(value: &str) -> bool {
    !value.is_empty() && value != UNKNOWN && value != OVERFLOW
}

fn blank(value: &mut Arc<str>, is_left_out: bool) {
    if is_left_out {
        *value = "".into();
    }
}

/// The labels of an end, in the order of [`Side`]'s fields.
type SideLabels = [&'static [&'static str]; 7];

const SOURCE: SideLabels = [
    &["source_workload"],
    &["source_canonical_service", "source_app"],
    &["source_canonical_revision", "source_version"],
    &["source_workload_namespace"],
    &["source_cluster"],
    &["source_region"],
    &["source_zone"],
];
const DESTINATION: SideLabels = [
    &["destination_workload"],
    &["destination_canonical_service", "destination_app"],
    &["destination_canonical_revision", "destination_version"],
    &["destination_workload_namespace"],
    &["destination_cluster"],
    &["destination_region"],
    &["destination_zone"],
];

impl Side {
    /// Of an asker, for metrics that are about a source alone.
    pub(super) fn of(workload: &Workload, left_out: &Without) -> Self {
        let mut side = Self::new(Some(workload), &UNKNOWN.into());
        side.without(left_out, &SOURCE);
        side
    }

    pub(super) fn overflow(value: &Arc<str>) -> Self {
        Self {
            workload: value.clone(),
            canonical_service: value.clone(),
            canonical_revision: value.clone(),
            namespace: value.clone(),
            cluster: value.clone(),
            region: value.clone(),
            zone: value.clone(),
        }
    }

    fn without(&mut self, left_out: &Without, labels: &SideLabels) {
        let fields = [
            &mut self.workload,
            &mut self.canonical_service,
            &mut self.canonical_revision,
            &mut self.namespace,
            &mut self.cluster,
            &mut self.region,
            &mut self.zone,
        ];
        for (field, labels) in fields.into_iter().zip(labels) {
            blank(field, left_out.has_all(labels));
        }
    }

    /// Whether it names a workload that is gone.
    pub(super) fn is_gone(&self, living: &Living<'_>) -> bool {
        is_name(&self.workload) && !(living.workload)(&self.namespace, &self.workload)
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

/// Labels as they go out: with the flag, and without what is left out.
pub(super) struct Flagged<'a>(
    pub(super) &'a Labels,
    pub(super) Flag,
    pub(super) &'a Without,
);

impl EncodeLabelSet for Flagged<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(labels, flag, left_out) = self;
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
            (
                "request_protocol",
                if labels.datagrams { "udp" } else { "tcp" },
            ),
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
            .filter(|(label, _)| !left_out.has(label))
            .try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}
