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
//! next stream brings it again, and the server's idea of what we have is never better than ours. Of a
//! waypoint's resources even a first one that was refused is kept, because it closes what it is for:
//! such a name is told without a version, so that the next server says if it is gone.
//!
//! What is held may be too much to tell: a name with its version takes some 90 bytes, and servers
//! end a stream whose first request is longer than they take. Then it is not told, the server
//! sends everything as if to a newcomer, and nobody says which of the names held are gone. Until
//! an answer names them they are *in doubt*, and are used as before. When the answers to the
//! opening are in, [`Subscription::drop_doubtful`] forgets the rest. When that is so is for the
//! driver to say, not for the first response: the protocol lets a server spread its first answer
//! over several, with no mark on the last.

mod version;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use api::WAYPOINT_TYPE;
use api::discovery::{DeltaDiscoveryRequest, ErrorDetail, Node};
use prost::Message as _;
use prost::encoding::encoded_len_varint;

use crate::change::{Alias, Changes, Payload};
use crate::parse::{ParseError, Rejected};
use crate::stream::part::{Found, Part};
use version::Version;

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
    /// Never applied, but kept as refused.
    refused: BTreeSet<Arc<str>>,
    /// Held, not told to the server of this stream, and not named by it yet.
    doubtful: HashSet<Arc<str>>,
    /// How many marks were asked for.
    marks: u64,
}

/// A response between [`Subscription::receive`] and [`Subscription::conclude`].
#[derive(Debug, Default)]
#[must_use = "the server waits for its acknowledgement"]
pub struct Pending {
    nonce: String,
    versions: Vec<(Arc<str>, Version)>,
    removed: Vec<Arc<str>>,
    rejected: Vec<Rejected>,
    pub(crate) aliases: Vec<Alias>,
}

impl Subscription {
    /// Nothing held yet.
    pub fn new(type_url: &'static str, wish: Wish) -> Self {
        Self {
            type_url,
            wish,
            held: HashMap::new(),
            wanted: BTreeSet::new(),
            refused: BTreeSet::new(),
            doubtful: HashSet::new(),
            marks: 0,
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

    /// The first request on a new stream: who we are, what we want, what we hold. If it would be
    /// longer than `longest` bytes, what we hold is left out, and is in doubt from now on.
    pub fn open(&mut self, node: Node, longest: usize) -> DeltaDiscoveryRequest {
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
        let mut request = DeltaDiscoveryRequest {
            node: Some(node),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..self.request()
        };
        if request.encoded_len() + self.held_len() <= longest {
            self.doubtful.clear();
            request.initial_resource_versions = self
                .held()
                .chain(self.refused.iter().map(|name| (name, String::new())))
                .map(|(name, version)| (name.to_string(), version))
                .collect();
        } else {
            self.doubtful = self.held.keys().chain(&self.refused).cloned().collect();
        }
        request
    }

    /// Bytes that [`Subscription::held`] takes in a request.
    fn held_len(&self) -> usize {
        let delimited = |length: usize| 1 + encoded_len_varint(length as u64) + length;
        let text = |length: usize| if length == 0 { 0 } else { delimited(length) };
        let entry = |(name, version): (&Arc<str>, &Version)| {
            delimited(text(name.len()) + text(version.len()))
        };
        let refused = |name: &Arc<str>| delimited(text(name.len()));
        let refused: usize = self.refused.iter().map(refused).sum();
        self.held.iter().map(entry).sum::<usize>() + refused
    }

    /// How many names are in doubt.
    pub fn doubtful(&self) -> usize {
        self.doubtful.len()
    }

    /// All that the server answered to the opening has been concluded: what is in doubt still is
    /// gone. Returns the names, for whoever applies what [`Subscription::receive`] brings.
    #[must_use = "they are not held any more"]
    pub fn drop_doubtful(&mut self) -> Vec<Arc<str>> {
        let gone: Vec<_> = std::mem::take(&mut self.doubtful).into_iter().collect();
        for name in &gone {
            self.held.remove(name);
            self.refused.remove(name);
        }
        gone
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

    /// Asks for those names no more. What was held for them alone is named as removed by the server.
    pub fn leave(&mut self, names: impl IntoIterator<Item = Arc<str>>) -> DeltaDiscoveryRequest {
        let names: BTreeSet<_> = names.into_iter().collect();
        for name in &names {
            self.wanted.remove(name);
        }
        DeltaDiscoveryRequest {
            resource_names_unsubscribe: names.iter().map(|name| name.to_string()).collect(),
            ..self.request()
        }
    }

    /// Asks for those names no more, and holds them no more: who says this has forgotten them already, and the server need
    /// not name them as removed.
    ///
    /// A name that nobody has goes along, and its predecessor with the rest. Istio's server takes a request that only gives
    /// up for one that asks for nothing, and answers it by naming all that is still asked for as removed (testdata/DEVIATIONS.md, 5).
    pub fn forget(&mut self, names: impl IntoIterator<Item = Arc<str>>) -> DeltaDiscoveryRequest {
        let names: BTreeSet<_> = names.into_iter().collect();
        for name in &names {
            self.held.remove(name);
            self.refused.remove(name);
            self.doubtful.remove(name);
        }
        let before = (self.marks > 0).then(|| mark(self.marks));
        self.marks += 1;
        let mut request = self.leave(names);
        request.resource_names_unsubscribe.extend(before);
        request.resource_names_subscribe = vec![mark(self.marks)];
        request
    }

    /// Takes a response apart: what to apply, and what to conclude with afterwards.
    pub fn receive<M>(&self, response: impl Into<Part>) -> (Changes<M>, Pending) {
        let Part {
            resources, rest, ..
        } = response.into();
        let mut pending = Pending::default();
        let set = self.sort(resources, &mut pending);
        let removed = pending.answers(rest.nonce, rest.removed_resources);
        (Changes { set, removed }, pending)
    }

    /// Resources of a response, or of a part of one: what to apply.
    pub(crate) fn sort<M>(
        &self,
        resources: Vec<Found>,
        pending: &mut Pending,
    ) -> Vec<(Arc<str>, Payload<M>)> {
        let mut set = Vec::with_capacity(resources.len());
        for found in resources {
            // Whoever holds the name already shares its allocation.
            let name = self
                .held
                .get_key_value(&*found.name)
                .map_or_else(|| Arc::from(&*found.name), |(name, _)| name.clone());
            let aliases = found.aliases.into_iter();
            let aliases = aliases.map(|alias| Alias::new(name.clone(), alias));
            pending.aliases.extend(aliases);
            match found.content {
                Some((type_url, encoded)) if *type_url == *self.type_url => {
                    pending
                        .versions
                        .push((name.clone(), Version::from(&*found.version)));
                    set.push((name, Payload::Bytes(encoded)));
                }
                Some((type_url, _)) => pending.rejected.push(Rejected {
                    name,
                    reason: ParseError::ForeignType(type_url.to_string()),
                }),
                None => pending.rejected.push(Rejected {
                    name,
                    reason: ParseError::Missing("resource"),
                }),
            }
        }
        set
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
        let refused: HashSet<&Arc<str>> = rejected.iter().map(|refused| &refused.name).collect();
        // Refused or not: what the server names is there, and the last good one of it stays.
        for name in &refused {
            self.doubtful.remove(*name);
            if self.type_url == WAYPOINT_TYPE && !self.held.contains_key(*name) {
                self.refused.insert((*name).clone());
            }
        }
        if self.held.is_empty() {
            self.held.reserve(pending.versions.len()); // the first answer: all that there is
        }
        for (name, version) in pending.versions {
            if !self.doubtful.is_empty() {
                self.doubtful.remove(&name);
            }
            if !refused.contains(&name) {
                self.refused.remove(&name);
                self.held.insert(name, version);
            }
        }
        for name in &pending.removed {
            self.doubtful.remove(name);
            self.refused.remove(name);
            self.held.remove(name);
        }
        let answer = DeltaDiscoveryRequest {
            response_nonce: pending.nonce,
            error_detail: error_detail(self.type_url, &rejected),
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

impl Pending {
    /// What stands at the end of a response: what it is answered by, and what is gone.
    pub(crate) fn answers(&mut self, nonce: String, removed: Vec<String>) -> Vec<Arc<str>> {
        self.nonce = nonce;
        self.removed = removed.into_iter().map(Arc::from).collect();
        self.removed.clone()
    }

    /// Everything in it turned out to belong to something else that was not asked for here.
    pub(crate) fn refuse_all(&mut self, type_url: &str) {
        let refused = self.versions.drain(..).map(|(name, _)| Rejected {
            name,
            reason: ParseError::ForeignType(type_url.to_owned()),
        });
        self.rejected.extend(refused);
    }
}

/// What a NACK says: every name and reason, up to a length that a header-sized log line bears; to our own control
/// plane also as messages, which it keeps apart.
fn error_detail(type_url: &str, rejected: &[Rejected]) -> Option<ErrorDetail> {
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
    let detailed = if type_url == WAYPOINT_TYPE {
        rejected.len().min(DETAILED_IN_NACK)
    } else {
        0
    };
    Some(ErrorDetail {
        code: INVALID_ARGUMENT,
        message,
        details: rejected[..detailed].iter().map(refused).collect(),
    })
}

/// A name of nobody: no address, and no uid or service has its form.
fn mark(number: u64) -> String {
    format!("ambit-gives-up-{number}")
}

fn refused(rejected: &Rejected) -> prost_types::Any {
    let mut reason = rejected.reason.to_string();
    reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
    let refused = api::waypoint::Refused {
        name: rejected.name.to_string(),
        reason,
    };
    prost_types::Any {
        type_url: api::REFUSED_TYPE.to_owned(),
        value: refused.encode_to_vec(),
    }
}

const INVALID_ARGUMENT: i32 = 3; // google.rpc.Code
const NAMED_IN_NACK: usize = 32;
const DETAILED_IN_NACK: usize = 1024;
/// In bytes: what a status condition bears.
const LONGEST_REASON: usize = 512;

#[cfg(test)]
mod tests;
