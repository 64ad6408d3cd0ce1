//! What a session says: answers, and when its client refused one.

use std::sync::Arc;

use api::discovery::{DeltaDiscoveryResponse, Resource};

use super::Entry;

/// What a request led to.
#[derive(Debug, Default)]
pub struct Answer {
    /// What to send, if anything.
    pub reply: Option<Reply>,
    /// What the client refused: its message names the resources.
    pub nack: Option<Nack>,
}

/// A client's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// The type.
    pub type_url: String,
    /// The client's words.
    pub message: String,
}

/// One response, its resources still shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The type.
    pub type_url: Arc<str>,
    /// Fresh on this stream.
    pub nonce: String,
    /// Version of the catalog.
    pub version: String,
    /// What to set.
    pub resources: Vec<Arc<Entry>>,
    /// What to forget; also the names that were asked for and do not exist.
    pub removed: Vec<Arc<str>>,
    /// On-demand clients find out through aliases which question an answer belongs to.
    pub with_aliases: bool,
}

impl Reply {
    /// The message; this is where the resource bytes are copied.
    pub fn into_response(self) -> DeltaDiscoveryResponse {
        let with_aliases = self.with_aliases;
        let resource = |entry: &Arc<Entry>| Resource {
            version: entry.version.to_string(),
            resource: Some(prost_types::Any {
                type_url: self.type_url.to_string(),
                value: entry.encoded.to_vec(),
            }),
            name: entry.name.to_string(),
            aliases: entry
                .aliases
                .iter()
                .filter(|_| with_aliases)
                .map(|alias| alias.to_string())
                .collect(),
        };
        DeltaDiscoveryResponse {
            resources: self.resources.iter().map(resource).collect(),
            system_version_info: self.version,
            type_url: self.type_url.to_string(),
            nonce: self.nonce,
            removed_resources: self.removed.iter().map(|name| name.to_string()).collect(),
        }
    }
}
