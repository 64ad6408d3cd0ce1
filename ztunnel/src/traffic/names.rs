//! Labels about a source alone: who had a name resolved, and which (`istio_on_demand_dns_total`); who called somebody
//! that the mesh does not know, and what became of it (`ambit_egress_connections_total`).

use std::fmt;
use std::sync::Arc;

use hbone::Identity;
use mesh::Workload;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::labels::Side;

/// One asker and one name. The control plane gives the names, so there are as many as it has hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    source: Side,
    source_principal: Arc<str>,
    hostname: Arc<str>,
}

impl Asked {
    pub(super) fn new(source: &Workload, identity: &Identity, hostname: &Arc<str>) -> Self {
        Self {
            source: Side::of(source),
            source_principal: identity.to_string().into(),
            hostname: hostname.clone(),
        }
    }
}

impl EncodeLabelSet for Asked {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let own = self.source.as_source(&self.source_principal);
        own.into_iter()
            .chain([("hostname", &*self.hostname)])
            .try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}

/// One caller of who is unknown, and what becomes of its connections. Callers are pods of this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ToUnknown {
    source: Side,
    source_principal: Arc<str>,
    refused: bool,
}

impl ToUnknown {
    pub(super) fn new(source: &Workload, identity: &Identity, refused: bool) -> Self {
        Self {
            source: Side::of(source),
            source_principal: identity.to_string().into(),
            refused,
        }
    }
}

impl EncodeLabelSet for ToUnknown {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let own = self.source.as_source(&self.source_principal);
        let decision = if self.refused { "refused" } else { "logged" };
        own.into_iter()
            .chain([("decision", decision)])
            .try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}
