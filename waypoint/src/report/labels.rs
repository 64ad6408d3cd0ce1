//! Label sets H and T: what is known of the two ends, as text, in the order of the wire (`docs/wire.md`).

use std::fmt;
use std::sync::Arc;

use hbone::Identity;
use mesh::{Service, Workload};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::flag::Flags;
use super::{Protocol, Reporter};
use crate::client::{Baggage, Client};

pub(super) const UNKNOWN: &str = "unknown";

/// One end of a request. `app` and `version` of the wire are the canonical names again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Side {
    pub(super) workload: Arc<str>,
    pub(super) canonical_service: Arc<str>,
    pub(super) canonical_revision: Arc<str>,
    pub(super) namespace: Arc<str>,
    cluster: Arc<str>,
    region: Arc<str>,
    zone: Arc<str>,
    pub(super) principal: Arc<str>,
}

impl Side {
    pub(super) fn new(workload: Option<&Workload>, identity: Option<&Identity>) -> Self {
        let unknown: Arc<str> = UNKNOWN.into();
        let part = |part: fn(&Workload) -> &Arc<str>| match workload.map(part) {
            Some(value) if !value.is_empty() => value.clone(),
            _ => unknown.clone(),
        };
        Self {
            workload: part(|workload| &workload.workload_name),
            canonical_service: part(|workload| &workload.canonical_name),
            canonical_revision: part(|workload| &workload.canonical_revision),
            namespace: match identity {
                Some(identity) if workload.is_none() => identity.namespace().into(),
                _ => part(|workload| &workload.namespace),
            },
            cluster: part(|workload| &workload.cluster),
            region: part(|workload| &workload.locality.region),
            zone: part(|workload| &workload.locality.zone),
            principal: identity
                .map_or_else(|| unknown.clone(), |identity| identity.to_string().into()),
        }
    }

    /// Whom the mesh does not know is what its proxy says, but in the namespace that its certificate says.
    pub(super) fn of_client(client: &Client, believe: bool) -> Self {
        let known = Self::new(client.workload.as_deref(), client.identity.as_ref());
        if client.workload.is_some() || !believe {
            return known;
        }
        known.told(&client.said)
    }

    fn told(mut self, said: &Baggage) -> Self {
        // 253: longest legal Kubernetes name. What is longer is an attempt to fill memory.
        let take = |into: &mut Arc<str>, value: &Option<Box<str>>| match value.as_deref() {
            Some(value) if !value.is_empty() && value.len() <= 253 && **into == *UNKNOWN => {
                *into = value.into();
            }
            _ => {}
        };
        take(&mut self.workload, &said.workload);
        take(&mut self.canonical_service, &said.service);
        take(&mut self.canonical_revision, &said.revision);
        take(&mut self.namespace, &said.namespace);
        take(&mut self.cluster, &said.cluster);
        self
    }
}

/// A service's labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Towards {
    host: Arc<str>,
    namespace: Arc<str>,
    name: Arc<str>,
}

impl Towards {
    pub(super) fn new(service: Option<&Service>) -> Self {
        let part = |part: fn(&Service) -> &Arc<str>| {
            service.map_or_else(|| UNKNOWN.into(), |service| part(service).clone())
        };
        Self {
            host: part(|service| &service.hostname),
            namespace: part(|service| &service.namespace),
            name: part(|service| &service.name),
        }
    }
}

/// Everything that tells one series from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    pub(super) reporter: Reporter,
    pub(super) source: Arc<Side>,
    pub(super) service: Towards,
    pub(super) destination: Side,
    pub(super) secured: bool,
    pub(super) how: How,
}

/// How it ended; the part of the labels that needs no text to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct How {
    pub(super) protocol: Protocol,
    /// Of HTTP; 0 = there was no answer.
    pub(super) code: u16,
    pub(super) grpc: Option<u16>,
    pub(super) flags: Flags,
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let (source, destination) = (&*self.source, &self.destination);
        let flags = self.how.flags.to_string();
        let pairs: [(&str, &str); 27] = [
            ("reporter", self.reporter.label()),
            ("source_workload", &source.workload),
            ("source_canonical_service", &source.canonical_service),
            ("source_canonical_revision", &source.canonical_revision),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_app", &source.canonical_service),
            ("source_version", &source.canonical_revision),
            ("source_cluster", &source.cluster),
            ("destination_service", &self.service.host),
            ("destination_service_namespace", &self.service.namespace),
            ("destination_service_name", &self.service.name),
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
            ("destination_principal", &destination.principal),
            ("destination_app", &destination.canonical_service),
            ("destination_version", &destination.canonical_revision),
            ("destination_cluster", &destination.cluster),
            ("request_protocol", self.how.protocol.label()),
            ("response_flags", &flags),
            (
                "connection_security_policy",
                if self.secured { "mutual_tls" } else { UNKNOWN },
            ),
            ("source_region", &source.region),
            ("source_zone", &source.zone),
            ("destination_region", &destination.region),
            ("destination_zone", &destination.zone),
        ];
        for pair in pairs {
            pair.encode(encoder.encode_label())?;
        }
        if self.how.protocol == Protocol::Tcp {
            return Ok(());
        }
        ("response_code", u32::from(self.how.code)).encode(encoder.encode_label())?;
        match self.how.grpc {
            Some(status) => {
                ("grpc_response_status", u32::from(status)).encode(encoder.encode_label())
            }
            None => ("grpc_response_status", "").encode(encoder.encode_label()),
        }
    }
}
