//! Label sets H and T: what is known of the two ends, as text, in the order of the wire (`docs/wire.md`).

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use hbone::Identity;
use mesh::{Service, Workload};
use ops::ends::{End, Ends};
pub(super) use ops::ends::{Living, OVERFLOW, Side, Towards, UNKNOWN};
use ops::series::Without;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::flag::Flags;
use super::shape::Shape;
use super::{Protocol, Reporter};
use crate::client::{Baggage, Client};

/// Of somebody of the mesh, or who has shown who he is.
pub(super) fn side(workload: Option<&Workload>, identity: Option<&Identity>) -> Side {
    let unknown: Arc<str> = UNKNOWN.into();
    let part = |part: fn(&Workload) -> &Arc<str>| match workload.map(part) {
        Some(value) if !value.is_empty() => value.clone(),
        _ => unknown.clone(),
    };
    Side {
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
        principal: identity.map_or_else(|| unknown.clone(), |identity| identity.to_string().into()),
    }
}

/// Whom the mesh does not know is what its proxy says, but in the namespace that its certificate says.
pub(super) fn side_of_client(client: &Client, believe: bool) -> Side {
    let known = side(client.workload.as_deref(), client.identity.as_ref());
    if client.workload.is_some() || !believe {
        return known;
    }
    told(known, &client.said)
}

fn told(mut side: Side, said: &Baggage) -> Side {
    // 253: longest legal Kubernetes name. What is longer is an attempt to fill memory.
    let take = |into: &mut Arc<str>, value: &Option<Box<str>>| match value.as_deref() {
        Some(value) if !value.is_empty() && value.len() <= 253 && **into == *UNKNOWN => {
            *into = value.into();
        }
        _ => {}
    };
    take(&mut side.workload, &said.workload);
    take(&mut side.canonical_service, &said.service);
    take(&mut side.canonical_revision, &said.revision);
    take(&mut side.namespace, &said.namespace);
    take(&mut side.cluster, &said.cluster);
    side
}

pub(super) fn towards(service: Option<&Service>) -> Towards {
    let part = |part: fn(&Service) -> &Arc<str>| {
        service.map_or_else(|| UNKNOWN.into(), |service| part(service).clone())
    };
    Towards {
        host: part(|service| &service.hostname),
        namespace: part(|service| &service.namespace),
        name: part(|service| &service.name),
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
    /// What is left out is the same for all.
    pub(super) fn without(mut self, left_out: &Without) -> Self {
        if left_out.is_empty() {
            return self;
        }
        self.service.leave_out(left_out);
        self.secured &= !left_out.has("connection_security_policy");
        Arc::make_mut(&mut self.source).leave_out(left_out, End::Source);
        self.destination.leave_out(left_out, End::Destination);
        self
    }

    /// Whether somebody is named who is gone.
    pub(super) fn name_somebody_gone(&self, living: &Living<'_>) -> bool {
        self.source.is_gone(living)
            || self.destination.is_gone(living)
            || self.service.is_gone(living)
    }

    /// All of them in their order but for those left out, before anything is made other.
    fn each(
        &self,
        left_out: &Without,
        mut say: impl FnMut(&'static str, &str) -> fmt::Result,
    ) -> fmt::Result {
        let flags = self.how.flags.to_string();
        let ends = Ends {
            reporter: self.reporter.label(),
            source: &self.source,
            service: &self.service,
            destination: &self.destination,
            protocol: self.how.protocol.label(),
            flags: &flags,
            secured: self.secured,
        };
        let mut say = |name: &'static str, value: &str| match left_out.has(name) {
            true => Ok(()),
            false => say(name, value),
        };
        ends.labels()
            .try_for_each(|(name, value)| say(name, value))?;
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
