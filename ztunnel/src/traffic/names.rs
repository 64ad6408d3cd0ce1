//! Labels about a source alone: who had a name resolved, and which (`istio_on_demand_dns_total`); who called somebody
//! that the mesh does not know, and what became of it (`ambit_egress_connections_total`).

use std::fmt;
use std::sync::Arc;

use hbone::Identity;
use mesh::Workload;
use ops::series::Without;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::labels::{Living, OVERFLOW, Side, asker};

/// One asker and one name. The control plane gives the names, so there are as many as it has hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    source: Side,
    hostname: Arc<str>,
}

impl Asked {
    pub(super) fn new(
        source: &Workload,
        identity: &Identity,
        hostname: &Arc<str>,
        left_out: &Without,
    ) -> Self {
        let hostname = match left_out.has("hostname") {
            true => "".into(),
            false => hostname.clone(),
        };
        Self {
            source: asker(source, identity, left_out),
            hostname,
        }
    }

    pub(super) fn names_somebody_gone(&self, living: &Living<'_>) -> bool {
        self.source.is_gone(living)
    }
}

impl ops::series::Labels for Asked {
    fn overflow(&self) -> Self {
        let overflow: Arc<str> = OVERFLOW.into();
        Self {
            source: Side::overflow(&overflow),
            hostname: overflow,
        }
    }
}

/// Labels as they go out: without what is left out.
pub(super) struct Shown<'a, L>(pub(super) &'a L, pub(super) &'a Without);

impl EncodeLabelSet for Shown<'_, Asked> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(labels, left_out) = self;
        let own = labels.source.as_source();
        own.into_iter()
            .chain([("hostname", &*labels.hostname)])
            .filter(|(label, _)| !left_out.has(label))
            .try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}

/// One caller of who is unknown, and what becomes of its connections. Callers are pods of this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ToUnknown {
    source: Side,
    refused: bool,
}

impl ToUnknown {
    pub(super) fn new(
        source: &Workload,
        identity: &Identity,
        refused: bool,
        left_out: &Without,
    ) -> Self {
        Self {
            source: asker(source, identity, left_out),
            refused,
        }
    }

    pub(super) fn names_somebody_gone(&self, living: &Living<'_>) -> bool {
        self.source.is_gone(living)
    }
}

impl ops::series::Labels for ToUnknown {
    fn overflow(&self) -> Self {
        let overflow: Arc<str> = OVERFLOW.into();
        Self {
            source: Side::overflow(&overflow),
            refused: self.refused,
        }
    }
}

impl EncodeLabelSet for Shown<'_, ToUnknown> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(labels, left_out) = self;
        let own = labels.source.as_source();
        let decision = if labels.refused { "refused" } else { "logged" };
        own.into_iter()
            .filter(|(label, _)| !left_out.has(label))
            .chain([("decision", decision)])
            .try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}
