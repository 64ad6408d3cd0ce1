//! Statuses: what the world has to say about objects is written onto them.
//!
//! Enters: the [`Book`], object → what its status should say. Leaves: patches of the status
//! subresource, only where something differs, only of what is ours; conditions of other
//! controllers stay.

use std::sync::Arc;

use api::k8s::objects::ObjectKey;
use serde_json::{Map, Value};

/// What every object's status should say. Cloning costs nothing; two editions are compared in the
/// time of their difference.
pub type Book = imbl::OrdMap<ObjectKey, Arc<Desired>>;

/// What one object's status should say, as far as it is ours to say.
///
/// An object that has nothing (more) to be said about it, but may carry conditions of ours from
/// before, stands in the book with an empty `Desired`: they are taken out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// `metadata.generation` of the object this was worked out from.
    pub generation: Option<i64>,
    /// Of `.status.conditions`.
    pub conditions: Vec<Condition>,
    /// Of `.status.parents` (routes) or `.status.ancestors` (policies of Gateway API).
    pub parents: Vec<Parent>,
    /// Fields of `.status` that are wholly ours: `addresses`, `listeners` of a Gateway. Conditions
    /// inside them are JSON without `lastTransitionTime`, which the writer keeps or sets.
    pub fields: Map<String, Value>,
}

/// One condition. The writer adds when it last changed, and `observedGeneration` where the kind
/// has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `ZtunnelAccepted`, `istio.io/WaypointBound` …
    pub r#type: &'static str,
    /// True or False.
    pub status: bool,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// Our entry for one parent of a route, or one ancestor of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Parent {
    /// As in `spec.parentRefs`.
    pub reference: Value,
    /// Whose entry it is: `istio.io/gateway-controller`, `istio.io/mesh-controller`.
    pub controller: &'static str,
    /// What there is to say.
    pub conditions: Vec<Condition>,
}
