//! What families are divided by: labels, in the words of Istio's dashboards.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};

/// Which resource type, by Istio's short names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Of {
    /// `wds`, `wads` or `waypoint`.
    pub r#type: Resource,
}

/// The types we serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)] // the label's text
pub enum Resource {
    /// Workloads and services.
    wds,
    /// Layer 4 policies.
    wads,
    /// What waypoints do.
    waypoint,
}

/// A change of an object: its kind, and what happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ObjectEvent {
    /// The kind.
    pub r#type: &'static str,
    /// `add`, `update`, `updatesame`, `delete` or `invalid`. (A file does not tell an addition from
    /// an update.)
    pub event: &'static str,
}

/// What led to a round of pushes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Trigger {
    /// `config`: from the directory all changes look alike.
    pub r#type: &'static str,
}

/// A proxy's version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Version {
    /// In its own words; `unknown` where it says nothing.
    pub version: String,
}

/// Why a CSR was not signed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Failure {
    /// The refusal's name.
    pub error: &'static str,
}

/// Why a machine was refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NotJoined {
    /// `token_used`, `token_expired`, `address` …: [`crate::machine::Refused::reason`].
    pub reason: &'static str,
}

/// A write into the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Write {
    /// Who wrote: `roots`, `status`, `addresses`, `taint`, `webhook`.
    pub writer: &'static str,
    /// `success` or `failure`.
    pub result: &'static str,
}

/// A Lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LeaseName {
    /// Its name.
    pub lease: &'static str,
}

/// An object that was judged before it was written, and may be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)] // as in its definition
pub struct Admitted {
    pub group: &'static str,
    pub version: &'static str,
    pub resource: &'static str,
}

/// One that may not be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)] // as in its definition
pub struct NotAdmitted {
    pub group: &'static str,
    pub version: &'static str,
    pub resource: &'static str,
    /// Why, in a word.
    pub reason: &'static str,
}
