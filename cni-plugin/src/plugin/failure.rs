//! Why a call fails, and how the CNI specification wants to hear it.

use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};

/// A failed call. The codes below 100 are the specification's.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A version of the specification we do not speak.
    #[error("CNI version {0:?} is not supported")]
    IncompatibleVersion(String),
    /// A variable the runtime must set.
    #[error("environment variable {0} is missing")]
    Environment(&'static str),
    /// A verb the specification does not know.
    #[error("CNI_COMMAND {0:?} is unknown")]
    UnknownCommand(String),
    /// Reading or writing failed.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// stdin is not what the specification says.
    #[error("network configuration: {0}")]
    Decode(#[from] serde_json::Error),
    /// An address of the previous result that is none.
    #[error("prevResult: {0:?} is not an address with a prefix length")]
    Address(String),
    /// Nothing ran before us, so there is no interface to enrol.
    #[error("prevResult is missing: this plugin must come after one that makes an interface")]
    NotChained,
    /// The agent cannot be reached.
    #[error("the node agent is not at {path}: {error}; is its pod running on this node?")]
    AgentAway {
        /// The socket.
        path: PathBuf,
        /// What happened there.
        error: io::Error,
    },
    /// The agent did not answer in time.
    #[error("the node agent at {0} did not answer within 5 s")]
    AgentSilent(PathBuf),
    /// The agent answered something that is not HTTP.
    #[error("the node agent's answer is not understood: {0}")]
    AgentGarbled(&'static str),
    /// The agent could not enrol the pod.
    #[error("the node agent could not enrol the pod: {reason}")]
    NotEnrolled {
        /// Status of its answer.
        status: u16,
        /// Its text.
        reason: String,
    },
}

impl Failure {
    /// Whether the agent could not be spoken to at all.
    pub(super) fn agent_is_away(&self) -> bool {
        matches!(self, Failure::AgentAway { .. } | Failure::AgentSilent(_))
    }

    /// The specification's error object.
    pub(super) fn json(&self, version: &str) -> Value {
        let details = match self {
            Failure::IncompatibleVersion(_) => {
                format!("supported: {}", super::SUPPORTED.join(", "))
            }
            Failure::NotEnrolled { status, .. } => format!("status {status}"),
            _ => String::new(),
        };
        json!({
            "cniVersion": version,
            "code": self.code(),
            "msg": self.to_string(),
            "details": details,
        })
    }

    fn code(&self) -> u32 {
        match self {
            Failure::IncompatibleVersion(_) => 1,
            Failure::Environment(_) | Failure::UnknownCommand(_) => 4,
            Failure::Io(..) => 5,
            Failure::Decode(_) => 6,
            Failure::Address(_) | Failure::NotChained => 7,
            // "try again later": what the kubelet does anyway.
            Failure::AgentAway { .. } | Failure::AgentSilent(_) | Failure::AgentGarbled(_) => 11,
            Failure::NotEnrolled { .. } => 100,
        }
    }
}
