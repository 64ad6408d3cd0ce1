//! Label set T: what is known of the two ends of a connection, as text, in the order of the wire.

use std::fmt;
use std::sync::Arc;

use hbone::Identity;
use mesh::{Service, Workload};
use ops::ends::End;
pub(super) use ops::ends::{Living, OVERFLOW, Side, Towards, UNKNOWN};
use ops::series::Without;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::{Ends, Flag, Reporter};
use crate::headers::Baggage;

/// Label set T without `response_flags`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    reporter: Reporter,
    source: Side,
    service: Towards,
    destination: Side,
    secured: bool,
    /// Of UDP.
    datagrams: bool,
}

impl Labels {
    pub(super) fn new(
        reporter: Reporter,
        ends: &Ends,
        said: Option<Baggage<'_>>,
        datagrams: bool,
    ) -> Self {
        let unknown: Arc<str> = UNKNOWN.into();
        let service = |part: fn(&Service) -> &Arc<str>| {
            ends.service
                .as_ref()
                .map_or_else(|| unknown.clone(), |service| part(service).clone())
        };
        let source_identity = ends.source_identity.as_ref();
        let source = match (&ends.source, said) {
            (None, Some(said)) => claimed(said, source_identity),
            (workload, _) => side(workload.as_deref(), source_identity),
        };
        Self {
            reporter,
            source,
            service: Towards {
                host: service(|service| &service.hostname),
                namespace: service(|service| &service.namespace),
                name: service(|service| &service.name),
            },
            destination: side(
                ends.destination.as_deref(),
                ends.destination_identity.as_ref(),
            ),
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
        self.source = Side {
            principal: self.source.principal,
            ..Side::overflow(&UNKNOWN.into())
        };
        self
    }

    /// What is left out is the same for all.
    pub(super) fn without(mut self, left_out: &Without) -> Self {
        if left_out.is_empty() {
            return self;
        }
        self.secured &= !left_out.has("connection_security_policy");
        self.service.leave_out(left_out);
        self.source.leave_out(left_out, End::Source);
        self.destination.leave_out(left_out, End::Destination);
        self
    }

    /// Whether somebody is named who is gone.
    pub(super) fn name_somebody_gone(&self, living: &Living<'_>) -> bool {
        self.source.is_gone(living)
            || self.destination.is_gone(living)
            || self.service.is_gone(living)
    }
}

impl ops::series::Labels for Labels {
    fn overflow(&self) -> Self {
        let overflow: Arc<str> = OVERFLOW.into();
        Self {
            reporter: self.reporter,
            source: Side::overflow(&overflow),
            service: Towards::overflow(&overflow),
            destination: Side::overflow(&overflow),
            secured: self.secured,
            datagrams: self.datagrams,
        }
    }
}

/// Of an asker, for metrics that are about a source alone.
pub(super) fn asker(workload: &Workload, identity: &Identity, left_out: &Without) -> Side {
    let mut side = side(Some(workload), Some(identity));
    side.leave_out(left_out, End::Source);
    side
}

fn side(workload: Option<&Workload>, identity: Option<&Identity>) -> Side {
    let unknown: Arc<str> = UNKNOWN.into();
    let part = |part: fn(&Workload) -> &Arc<str>| match workload.map(part) {
        Some(value) if !value.is_empty() => value.clone(),
        _ => unknown.clone(),
    };
    Side {
        workload: part(|workload| &workload.workload_name),
        canonical_service: part(|workload| &workload.canonical_name),
        canonical_revision: part(|workload| &workload.canonical_revision),
        namespace: part(|workload| &workload.namespace),
        cluster: part(|workload| &workload.cluster),
        region: part(|workload| &workload.locality.region),
        zone: part(|workload| &workload.locality.zone),
        principal: principal(identity),
    }
}

/// The namespace comes from the certificate where there is one: baggage could claim any.
fn claimed(said: Baggage<'_>, identity: Option<&Identity>) -> Side {
    // Longest legal Kubernetes name; what is longer is an attempt to fill memory.
    let part = |value: Option<&str>| match value {
        Some(value) if value.len() <= 253 => value.into(),
        _ => UNKNOWN.into(),
    };
    Side {
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
        principal: principal(identity),
    }
}

fn principal(identity: Option<&Identity>) -> Arc<str> {
    identity.map_or_else(|| UNKNOWN.into(), |identity| identity.to_string().into())
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
        let ends = ops::ends::Ends {
            reporter: match labels.reporter {
                Reporter::Source => "source",
                Reporter::Destination => "destination",
            },
            source: &labels.source,
            service: &labels.service,
            destination: &labels.destination,
            protocol: if labels.datagrams { "udp" } else { "tcp" },
            flags: flag.label(),
            secured: labels.secured,
        };
        ends.labels()
            .filter(|(label, _)| !left_out.has(label))
            .try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}
