//! Pure: the client's end of delta discovery, for one resource type.
//!
//! ```text
//!            open                     receive                  conclude
//!   idle ───────────▶ asked ─────────────────▶ pending ───────────────────▶ asked
//!         node, what is held        resources to apply       ACK, or NACK by name
//!    ▲                  │
//!    └──────────────────┘ the stream ends; what is held stays, and is told to the next server
//! ```
//!
//! A name is held in the version that was applied last. A refused version is not held, so the
//! next stream brings it again, and the server's idea of what we have is never better than ours.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, ErrorDetail, Node};

use crate::change::{Changes, Payload};
use crate::parse::{ParseError, Rejected};

/// What to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// Every resource.
    #[default]
    Everything,
    /// What concerns the own node, and what is named with [`Subscription::want`].
    OnDemand,
}

/// One resource type on one stream after another.
#[derive(Debug)]
pub struct Subscription {
    type_url: &'static str,
    wish: Wish,
    held: HashMap<Arc<str>, Version>,
    wanted: BTreeSet<Arc<str>>,
}

/// A response between [`Subscription::receive`] and [`Subscription::conclude`].
#[derive(Debug)]
#[must_use = "the server waits for its acknowledgement"]
pub struct Pending {
    nonce: String,
    versions: Vec<(Arc<str>, Version)>,
    removed: Vec<Arc<str>>,
    rejected: Vec<Rejected>,
}

impl Subscription {
    /// Nothing held yet.
    pub fn new(type_url: &'static str, wish: Wish) -> Self {
        Self {
            type_url,
            wish,
            held: HashMap::new(),
            wanted: BTreeSet::new(),
        }
    }

    /// The type.
    pub fn type_url(&self) -> &'static str {
        self.type_url
    }

    /// Names held, and their versions.
    pub fn held(&self) -> impl Iterator<Item = (&Arc<str>, String)> {
        self.held
            .iter()
            .map(|(name, version)| (name, version.to_string()))
    }

    /// The first request on a new stream: who we are, what we want, what we hold.
    pub fn open(&self, node: Node) -> DeltaDiscoveryRequest {
        let star = || "*".to_owned();
        let (subscribe, unsubscribe) = match self.wish {
            Wish::Everything => (Vec::new(), Vec::new()),
            // The star in both lists is how a server that knows on-demand streams tells them from
            // wildcard ones.
            Wish::OnDemand => (
                std::iter::once(star())
                    .chain(self.wanted.iter().map(|name| name.to_string()))
                    .collect(),
                vec![star()],
            ),
        };
        DeltaDiscoveryRequest {
            node: Some(node),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: self
                .held()
                .map(|(name, version)| (name.to_string(), version))
                .collect(),
            ..self.request()
        }
    }

    /// Asks for more names (`network/ip`, `namespace/host` or a uid). A name that was asked for
    /// before is asked for again: whoever wants it waits for an answer.
    pub fn want(&mut self, names: impl IntoIterator<Item = Arc<str>>) -> DeltaDiscoveryRequest {
        let names: BTreeSet<_> = names.into_iter().collect();
        let subscribe = names.iter().map(|name| name.to_string()).collect();
        self.wanted.extend(names);
        DeltaDiscoveryRequest {
            resource_names_subscribe: subscribe,
            ..self.request()
        }
    }

    /// Takes a response apart: what to apply, and what to conclude with afterwards.
    pub fn receive<M>(&self, response: DeltaDiscoveryResponse) -> (Changes<M>, Pending) {
        let mut changes = Changes::default();
        let mut pending = Pending {
            nonce: response.nonce,
            versions: Vec::new(),
            removed: Vec::new(),
            rejected: Vec::new(),
        };
        for found in response.resources {
            // Whoever holds the name already shares its allocation.
            let name = self
                .held
                .get_key_value(&*found.name)
                .map_or_else(|| Arc::from(&*found.name), |(name, _)| name.clone());
            match found.resource {
                Some(any) if any.type_url == self.type_url => {
                    pending
                        .versions
                        .push((name.clone(), Version::from(&*found.version)));
                    changes.set.push((name, Payload::Bytes(any.value)));
                }
                Some(any) => pending.rejected.push(Rejected {
                    name,
                    reason: ParseError::ForeignType(any.type_url),
                }),
                None => pending.rejected.push(Rejected {
                    name,
                    reason: ParseError::Missing("resource"),
                }),
            }
        }
        changes.removed = response
            .removed_resources
            .into_iter()
            .map(Arc::from)
            .collect();
        pending.removed.clone_from(&changes.removed);
        (changes, pending)
    }

    /// Notes what is held now and answers the server: an ACK, or a NACK that names what was
    /// refused. Everything else of the response is applied in either case.
    /// Returns the answer and all that was refused.
    pub fn conclude(
        &mut self,
        pending: Pending,
        refused: Vec<Rejected>,
    ) -> (DeltaDiscoveryRequest, Vec<Rejected>) {
        let mut rejected = pending.rejected;
        rejected.extend(refused);
        let refused: HashSet<&str> = rejected.iter().map(|refused| &*refused.name).collect();
        for (name, version) in pending.versions {
            if !refused.contains(&*name) {
                self.held.insert(name, version);
            }
        }
        for name in &pending.removed {
            self.held.remove(name);
        }
        let answer = DeltaDiscoveryRequest {
            response_nonce: pending.nonce,
            error_detail: error_detail(&rejected),
            ..self.request()
        };
        (answer, rejected)
    }

    fn request(&self) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: self.type_url.to_owned(),
            ..Default::default()
        }
    }
}

/// What a NACK says: every name and reason, up to a length that a header-sized log line bears.
fn error_detail(rejected: &[Rejected]) -> Option<ErrorDetail> {
    if rejected.is_empty() {
        return None;
    }
    let shown = rejected
        .iter()
        .take(NAMED_IN_NACK)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ");
    let more = rejected.len().saturating_sub(NAMED_IN_NACK);
    let message = if more == 0 {
        shown
    } else {
        format!("{shown}; and {more} more")
    };
    Some(ErrorDetail {
        code: INVALID_ARGUMENT,
        message,
    })
}

const INVALID_ARGUMENT: i32 = 3; // google.rpc.Code
const NAMED_IN_NACK: usize = 32;

/// An opaque text; the usual one, a 64-bit hash in hexadecimal, takes no allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    Empty,
    Hash(u64),
    #[allow(clippy::box_collection)] // rare, and the enum stays at 16 bytes for 100,000 of them
    Text(Box<String>),
}

impl From<&str> for Version {
    fn from(text: &str) -> Self {
        match u64::from_str_radix(text, 16) {
            _ if text.is_empty() => Self::Empty,
            Ok(hash) if format!("{hash:x}") == text => Self::Hash(hash),
            _ => Self::Text(Box::new(text.to_owned())),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => Ok(()),
            Self::Hash(hash) => write!(f, "{hash:x}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_comes_back_as_it_was() {
        for text in [
            "",
            "0",
            "5e135347fd3eafb",
            "00ff",
            "FF",
            "+1",
            "2026-11-20T20:53:38Z/229",
            "ffffffffffffffff",
        ] {
            assert_eq!(Version::from(text).to_string(), text);
        }
        assert_eq!(size_of::<Version>(), 16);
    }

    #[test]
    fn a_nack_names_what_was_refused_and_stays_short() {
        let rejected = |n: usize| Rejected {
            name: format!("ns/{n}").into(),
            reason: ParseError::Missing("uid"),
        };
        let one = error_detail(&[rejected(1)]).unwrap();
        assert_eq!((one.code, &*one.message), (3, "ns/1: field uid is missing"));
        let many: Vec<_> = (0..1000).map(rejected).collect();
        let many = error_detail(&many).unwrap();
        assert!(
            many.message.ends_with("and 968 more") && many.message.len() < 4096,
            "{}",
            many.message
        );
    }
}
