//! Label sets H and T: what is known of the two ends, as text, in the order of the wire (`docs/wire.md`).

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use hbone::Identity;
use mesh::{Service, Workload};
use ops::series::Without;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::flag::Flags;
use super::shape::Shape;
use super::{Protocol, Reporter};
use crate::client::{Baggage, Client};

pub(super) const UNKNOWN: &str = "unknown";
/// Of a series that stands for all for which there was no room.
pub(super) const OVERFLOW: &str = "overflow";

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

    pub(super) fn overflow(value: &Arc<str>) -> Self {
        Self {
            workload: value.clone(),
            canonical_service: value.clone(),
            canonical_revision: value.clone(),
            namespace: value.clone(),
            cluster: value.clone(),
            region: value.clone(),
            zone: value.clone(),
            principal: value.clone(),
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
            &mut self.principal,
        ];
        for (field, labels) in fields.into_iter().zip(labels) {
            blank(field, left_out.has_all(labels));
        }
    }

    /// Whether it names a workload that is gone.
    fn is_gone(&self, living: &Living<'_>) -> bool {
        is_name(&self.workload) && !(living.workload)(&self.namespace, &self.workload)
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

    pub(super) fn overflow(value: &Arc<str>) -> Self {
        Self {
            host: value.clone(),
            namespace: value.clone(),
            name: value.clone(),
        }
    }
}

/// Who there is: whether there is a workload of that namespace and name of its owner, a service of that namespace and host.
pub(super) struct Living<'a> {
    pub(super) workload: &'a dyn Fn(&str, &str) -> bool,
    pub(super) service: &'a dyn Fn(&str, &str) -> bool,
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
type SideLabels = [&'static [&'static str]; 8];

const SOURCE: SideLabels = [
    &["source_workload"],
    &["source_canonical_service", "source_app"],
    &["source_canonical_revision", "source_version"],
    &["source_workload_namespace"],
    &["source_cluster"],
    &["source_region"],
    &["source_zone"],
    &["source_principal"],
];
const DESTINATION: SideLabels = [
    &["destination_workload"],
    &["destination_canonical_service", "destination_app"],
    &["destination_canonical_revision", "destination_version"],
    &["destination_workload_namespace"],
    &["destination_cluster"],
    &["destination_region"],
    &["destination_zone"],
    &["destination_principal"],
];

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
    /// What is left out is the same for all.
    pub(super) fn without(mut self, left_out: &Without) -> Self {
        if left_out.is_empty() {
            return self;
        }
        for (label, value) in [
            ("destination_service", &mut self.service.host),
            ("destination_service_namespace", &mut self.service.namespace),
            ("destination_service_name", &mut self.service.name),
        ] {
            blank(value, left_out.has(label));
        }
        self.secured &= !left_out.has("connection_security_policy");
        Arc::make_mut(&mut self.source).without(left_out, &SOURCE);
        self.destination.without(left_out, &DESTINATION);
        self
    }

    /// Whether somebody is named who is gone.
    pub(super) fn name_somebody_gone(&self, living: &Living<'_>) -> bool {
        let Towards {
            host, namespace, ..
        } = &self.service;
        self.source.is_gone(living)
            || self.destination.is_gone(living)
            || (is_name(host) && !(living.service)(namespace, host))
    }

    /// All of them in their order but for those left out, before anything is made other.
    fn each(
        &self,
        left_out: &Without,
        mut say: impl FnMut(&'static str, &str) -> fmt::Result,
    ) -> fmt::Result {
        let mut say = |name: &'static str, value: &str| match left_out.has(name) {
            true => Ok(()),
            false => say(name, value),
        };
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
    pub(super) fn of_metric(&self, metric: usize, left_out: &Without) -> Option<Named> {
        let also = self.also.as_ref();
        let change = also.and_then(|it| it.shape.change(metric));
        if change.is_some_and(|it| it.disabled) {
            return None;
        }
        let mut all: Vec<(Cow<'static, str>, Box<str>)> = Vec::with_capacity(32);
        // It cannot fail.
        let _ = self.each(left_out, |name, value| {
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

/// Labels as they go out: without what is left out.
pub(super) struct Printed<'a>(pub(super) &'a Labels, pub(super) &'a Without);

impl EncodeLabelSet for Printed<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(labels, left_out) = self;
        labels.each(left_out, |name, value| {
            (name, value).encode(encoder.encode_label())
        })
    }
}
