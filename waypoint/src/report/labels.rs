//! Label sets H and T: what is known of the two ends, as text, in the order of the wire (`docs/wire.md`).

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use hbone::Identity;
use mesh::{Service, Workload};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::flag::Flags;
use super::shape::Shape;
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
    pub(super) cluster: Arc<str>,
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
    /// What Telemetry objects make other.
    pub(super) also: Option<Also>,
}

/// What is other about a series.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Also {
    pub(super) shape: Arc<Shape>,
    pub(super) values: Box<[Box<str>]>,
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

impl Labels {
    /// All of them in their order, before anything is made other.
    fn each(&self, mut say: impl FnMut(&'static str, &str) -> fmt::Result) -> fmt::Result {
        let (source, destination) = (&*self.source, &self.destination);
        let flags = self.how.flags.to_string();
        let secured = if self.secured { "mutual_tls" } else { UNKNOWN };
        say("reporter", self.reporter.label())?;
        say("source_workload", &source.workload)?;
        say("source_canonical_service", &source.canonical_service)?;
        say("source_canonical_revision", &source.canonical_revision)?;
        say("source_workload_namespace", &source.namespace)?;
        say("source_principal", &source.principal)?;
        say("source_app", &source.canonical_service)?;
        say("source_version", &source.canonical_revision)?;
        say("source_cluster", &source.cluster)?;
        say("destination_service", &self.service.host)?;
        say("destination_service_namespace", &self.service.namespace)?;
        say("destination_service_name", &self.service.name)?;
        say("destination_workload", &destination.workload)?;
        say(
            "destination_canonical_service",
            &destination.canonical_service,
        )?;
        say(
            "destination_canonical_revision",
            &destination.canonical_revision,
        )?;
        say("destination_workload_namespace", &destination.namespace)?;
        say("destination_principal", &destination.principal)?;
        say("destination_app", &destination.canonical_service)?;
        say("destination_version", &destination.canonical_revision)?;
        say("destination_cluster", &destination.cluster)?;
        say("request_protocol", self.how.protocol.label())?;
        say("response_flags", &flags)?;
        say("connection_security_policy", secured)?;
        say("source_region", &source.region)?;
        say("source_zone", &source.zone)?;
        say("destination_region", &destination.region)?;
        say("destination_zone", &destination.zone)?;
        if self.how.protocol == Protocol::Tcp {
            return Ok(());
        }
        say("response_code", &self.how.code.to_string())?;
        let grpc = self.how.grpc.map(|it| it.to_string());
        say("grpc_response_status", &grpc.unwrap_or_default())
    }

    /// As one metric has them; none if it is not shown.
    pub(super) fn of_metric(&self, metric: usize) -> Option<Named> {
        let also = self.also.as_ref();
        let change = also.and_then(|it| it.shape.change(metric));
        if change.is_some_and(|it| it.disabled) {
            return None;
        }
        let mut all: Vec<(Cow<'static, str>, Box<str>)> = Vec::with_capacity(32);
        // It cannot fail.
        let _ = self.each(|name, value| {
            let gone = change.is_some_and(|it| it.removed.iter().any(|gone| **gone == *name));
            if !gone {
                all.push((name.into(), value.into()));
            }
            Ok(())
        });
        for (label, at) in change.iter().flat_map(|it| &it.set) {
            let value = also.and_then(|it| it.values.get(*at)).cloned();
            let value = value.unwrap_or_else(|| UNKNOWN.into());
            match all.iter_mut().find(|(name, _)| **name == **label) {
                Some((_, held)) => *held = value,
                None => all.push((label.to_string().into(), value)),
            }
        }
        Some(Named(all))
    }
}

/// Labels by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Named(Vec<(Cow<'static, str>, Box<str>)>);

impl EncodeLabelSet for Named {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut all = self.0.iter();
        all.try_for_each(|(name, value)| (&**name, &**value).encode(encoder.encode_label()))
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.each(|name, value| (name, value).encode(encoder.encode_label()))
    }
}
