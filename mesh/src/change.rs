//! What the control plane says of the mesh, and whether it is the whole of it.
//!
//! An [`Update`] enters a snapshot in `change/apply.rs`.

mod apply;
mod first;

use std::sync::Arc;

use api::{security, waypoint, workload as wire};
use bytes::Bytes;

use crate::parse::ParseError;
use crate::stream::part::Text;
use crate::unknown::policy_is_understood;

pub(crate) use apply::Effect;
pub(crate) use first::Gathered;

/// What changed in the mesh: one response of the control plane, or several.
#[derive(Debug, Default)]
pub struct Update {
    /// Workloads (by uid) and services (by `namespace/host`).
    pub addresses: Changes<wire::Address>,
    /// Policies (by `namespace/name`).
    pub authorizations: Changes<security::Authorization>,
    /// What a waypoint does (by the name on the wire). No part of a snapshot: whoever follows them
    /// keeps them.
    pub resources: Changes<waypoint::Resource>,
    /// By which other names the addresses of it can be asked for, if they were asked for on demand. No part of a snapshot:
    /// who waits for an answer finds it by them.
    pub aliases: Vec<Alias>,
    /// Whether readers see it at once.
    pub step: Step,
}

/// Another name of an address: `network/ip`, or `network/ip/length`.
#[derive(Debug, Clone)]
pub struct Alias {
    /// Name of the resource.
    pub of: Arc<str>,
    text: Text,
}

impl Alias {
    pub(crate) fn new(of: Arc<str>, text: Text) -> Self {
        Self { of, text }
    }

    /// The other name.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// A change of the mesh may come in parts, and is seen whole or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Step {
    /// All of it, or its last part: to be seen now.
    #[default]
    Complete,
    /// More follows.
    Part,
    /// The rest will never come; what came of it is taken back.
    Withdrawn,
}

/// What changed of one type.
#[derive(Debug)]
pub struct Changes<M> {
    /// New and changed resources by name.
    pub set: Vec<(Arc<str>, Payload<M>)>,
    /// Names that are gone; an unknown one means nothing.
    pub removed: Vec<Arc<str>>,
}

/// A message, or its bytes: decoding one at a time keeps the peak low when 100,000 arrive at once.
#[derive(Debug)]
pub enum Payload<M> {
    /// The message.
    Message(M),
    /// Its encoding.
    Bytes(Bytes),
}

impl<M> Default for Changes<M> {
    fn default() -> Self {
        Self {
            set: Vec::new(),
            removed: Vec::new(),
        }
    }
}

impl<M> Changes<M> {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }
}

impl<M: prost::Message + Default> Payload<M> {
    /// The message.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode(self) -> Result<M, ParseError> {
        match self {
            Self::Message(message) => Ok(message),
            Self::Bytes(bytes) => {
                M::decode(bytes).map_err(|error| ParseError::Undecodable(error.to_string()))
            }
        }
    }
}

impl Payload<security::Authorization> {
    fn is_understood(&self) -> bool {
        match self {
            Self::Message(_) => true,
            Self::Bytes(bytes) => policy_is_understood(bytes),
        }
    }
}

impl Update {
    /// Adds a workload under its uid.
    pub fn set_workload(&mut self, workload: wire::Workload) {
        let name = Arc::from(&*workload.uid);
        let address = wire::Address {
            r#type: Some(wire::address::Type::Workload(workload)),
        };
        self.addresses.set.push((name, Payload::Message(address)));
    }

    /// Adds a service under its `namespace/host`.
    pub fn set_service(&mut self, service: wire::Service) {
        let name = format!("{}/{}", service.namespace, service.hostname).into();
        let address = wire::Address {
            r#type: Some(wire::address::Type::Service(service)),
        };
        self.addresses.set.push((name, Payload::Message(address)));
    }

    /// Adds a policy under its `namespace/name`.
    pub fn set_policy(&mut self, policy: security::Authorization) {
        let name = format!("{}/{}", policy.namespace, policy.name).into();
        self.authorizations
            .set
            .push((name, Payload::Message(policy)));
    }

    /// Takes back the parts of a change whose end will not come.
    pub fn withdrawn() -> Self {
        Self {
            step: Step::Withdrawn,
            ..Self::default()
        }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.authorizations.is_empty() && self.resources.is_empty()
    }
}
