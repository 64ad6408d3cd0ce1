//! A Gateway of our class becomes a waypoint that runs. Pure: [`crate::write`] reads and applies.
//!
//! 1. what the Gateway asks for                                   ([`Order`])
//! 2. what every waypoint of this mesh is made after              ([`Pattern`])
//! 3. both give the objects that make it run                      ([`render`])
//! 4. parameters of its class and its own are laid over them      ([`made`], [`overlay`])
//! 5. what became of it is said in the Gateway's status           ([`Note`])
//!
//! Names, labels and ports are Istio's, so that its tools find a waypoint of ours.

mod note;
mod order;
pub mod overlay;
mod parameters;
mod pattern;
mod render;

pub use note::{Note, Notes, laid};
pub use order::{Order, Reference, Role};
pub use parameters::{Parameters, made};
pub use pattern::{Chart, Mesh, Pattern};
pub use render::render;

use kube::core::ApiResource;
use serde_json::Value;

/// The kinds of what a waypoint consists of, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // each is the Kubernetes kind of that name
pub enum PieceKind {
    ServiceAccount,
    Service,
    Deployment,
    PodDisruptionBudget,
    HorizontalPodAutoscaler,
}

impl PieceKind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::ServiceAccount,
        Self::Service,
        Self::Deployment,
        Self::PodDisruptionBudget,
        Self::HorizontalPodAutoscaler,
    ];

    /// As in the `kind` field.
    pub fn name(self) -> &'static str {
        match self {
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::Deployment => "Deployment",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::HorizontalPodAutoscaler => "HorizontalPodAutoscaler",
        }
    }

    /// The key under which parameters speak of it.
    pub fn parameter(self) -> &'static str {
        match self {
            Self::ServiceAccount => "serviceAccount",
            Self::Service => "service",
            Self::Deployment => "deployment",
            Self::PodDisruptionBudget => "podDisruptionBudget",
            Self::HorizontalPodAutoscaler => "horizontalPodAutoscaler",
        }
    }

    /// How the API server calls it.
    pub fn resource(self) -> ApiResource {
        let (group, version, plural) = match self {
            Self::ServiceAccount => ("", "v1", "serviceaccounts"),
            Self::Service => ("", "v1", "services"),
            Self::Deployment => ("apps", "v1", "deployments"),
            Self::PodDisruptionBudget => ("policy", "v1", "poddisruptionbudgets"),
            Self::HorizontalPodAutoscaler => ("autoscaling", "v2", "horizontalpodautoscalers"),
        };
        let api_version = match group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: self.name().to_owned(),
            plural: plural.to_owned(),
        }
    }

    /// Whether a waypoint runs without it.
    pub fn is_optional(self) -> bool {
        matches!(
            self,
            Self::PodDisruptionBudget | Self::HorizontalPodAutoscaler
        )
    }
}

/// One object of a waypoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its kind.
    pub kind: PieceKind,
    /// All of it that is ours to say.
    pub object: Value,
}

impl Piece {
    /// `metadata.name`
    pub fn name(&self) -> &str {
        let name = self.object.pointer("/metadata/name");
        name.and_then(Value::as_str).unwrap_or_default()
    }
}
