//! Whether the mesh carries the UDP of a pod: what labels say, and how ztunnels are told.
//!
//! What a pod says itself goes before what its namespace says. It travels in an extension of the workload, which a ztunnel of
//! Istio passes over (docs/wire.md "UDP"); the node agent reads the same labels, and captures.

use api::k8s::labels;
use api::workload::Extension;
use prost_types::Any;

use super::Labels;

/// What a label says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Udp {
    /// Nothing.
    #[default]
    Unsaid,
    /// This.
    Said(bool),
    /// Nobody knows what: it is as if nothing were said.
    Unreadable(String),
}

impl Udp {
    /// Of a pod, or of a namespace for the pods in it.
    pub fn read(labels: &Labels) -> Self {
        match labels.get(labels::UDP).map(String::as_str) {
            None => Self::Unsaid,
            Some(labels::UDP_ENABLED) => Self::Said(true),
            Some(labels::UDP_DISABLED) => Self::Said(false),
            Some(other) => Self::Unreadable(other.to_owned()),
        }
    }

    /// What is wrong with what is written.
    pub fn fault(&self) -> Option<String> {
        let Self::Unreadable(text) = self else {
            return None;
        };
        Some(format!(
            "label {} says \"{text}\", which is neither {} nor {}, and counts as unsaid",
            labels::UDP,
            labels::UDP_ENABLED,
            labels::UDP_DISABLED
        ))
    }

    /// What it says.
    pub fn said(&self) -> Option<bool> {
        match self {
            Self::Said(said) => Some(*said),
            Self::Unsaid | Self::Unreadable(_) => None,
        }
    }
}

/// What ztunnels are told of a pod whose UDP is carried.
pub fn extension() -> Extension {
    Extension {
        name: api::UDP_EXTENSION.to_owned(),
        config: Some(Any {
            type_url: api::EMPTY_TYPE.to_owned(),
            value: Vec::new(),
        }),
    }
}
