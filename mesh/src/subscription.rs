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

use crate::change::{Changes, Payload};
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
}

/// A response between [`Subscription::receive`] and [`Subscription::conclude`].
#[derive(Debug, Default)]
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
            refused: BTreeSet::new(),
            doubtful: HashSet::new(),
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
        for (name, version) in pending.versions {
            self.doubtful.remove(&name);
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
mod tests {
    use std::collections::BTreeMap;

    use api::discovery::{DeltaDiscoveryResponse, Resource};

    use super::*;

    fn response(resources: &[(&str, &str)]) -> DeltaDiscoveryResponse {
        let resource = |(name, version): &(&str, &str)| Resource {
            name: (*name).to_owned(),
            version: (*version).to_owned(),
            resource: Some(prost_types::Any {
                type_url: api::ADDRESS_TYPE.to_owned(),
                value: Vec::new(),
            }),
            aliases: Vec::new(),
        };
        DeltaDiscoveryResponse {
            resources: resources.iter().map(resource).collect(),
            ..Default::default()
        }
    }

    fn take(subscription: &mut Subscription, resources: &[(&str, &str)], refused: &[&str]) {
        let (_, pending) = subscription.receive::<api::workload::Address>(response(resources));
        let refused = refused.iter().map(|name| Rejected {
            name: Arc::from(*name),
            reason: ParseError::Missing("uid"),
        });
        let _ = subscription.conclude(pending, refused.collect());
    }

    fn holding(resources: &[(&str, &str)]) -> Subscription {
        let mut subscription = Subscription::new(api::ADDRESS_TYPE, Wish::Everything);
        take(&mut subscription, resources, &[]);
        subscription
    }

    fn held(subscription: &Subscription) -> BTreeMap<String, String> {
        let held = subscription.held();
        held.map(|(name, version)| (name.to_string(), version))
            .collect()
    }

    #[test]
    fn what_is_held_is_told_if_the_request_does_not_get_too_long() {
        let long = "n".repeat(300);
        let resources = [
            ("a", ""),
            ("b", "0"),
            ("c", "ffffffffffffffff"),
            (&*long, "FF"),
        ];
        let mut subscription = holding(&resources);
        let whole = subscription.open(Node::default(), usize::MAX);
        let length = whole.encoded_len();
        assert_eq!(whole.initial_resource_versions.len(), 4);
        assert_eq!(subscription.open(Node::default(), length), whole);
        assert_eq!(subscription.doubtful(), 0, "all of it was told");
        let bare = subscription.open(Node::default(), length - 1);
        assert_eq!(bare.initial_resource_versions.len(), 0);
        assert_eq!(subscription.doubtful(), 4);
        assert_eq!(held(&subscription).len(), 4, "and it is used as before");
        let _ = subscription.open(Node::default(), length);
        assert_eq!(subscription.drop_doubtful(), [], "a later server was told");
    }

    #[test]
    fn what_was_not_told_is_gone_if_no_answer_names_it() {
        let mut subscription =
            holding(&["a", "b", "c", "empty", "gone", "removed"].map(|name| (name, "1")));
        let _ = subscription.open(Node::default(), 0);
        take(&mut subscription, &[("a", "1"), ("b", "2")], &["b"]);
        assert_eq!(subscription.doubtful(), 4, "the answer may have more parts");
        take(&mut subscription, &[("c", "2"), ("new", "1")], &[]);
        let mut last = response(&[("empty", "2")]);
        last.resources[0].resource = None;
        last.removed_resources = vec!["removed".to_owned()];
        let (_, pending) = subscription.receive::<api::workload::Address>(last);
        let _ = subscription.conclude(pending, Vec::new());
        assert_eq!(subscription.drop_doubtful(), [Arc::from("gone")]);
        let expected = [
            ("a", "1"),
            ("b", "1"),
            ("c", "2"),
            ("empty", "1"),
            ("new", "1"),
        ];
        let expected = expected.map(|(name, version)| (name.to_owned(), version.to_owned()));
        assert_eq!(
            held(&subscription),
            expected.into(),
            "what was refused is there, and its last good version stays"
        );
    }

    #[test]
    fn a_first_one_that_was_refused_is_told_without_a_version() {
        let mut subscription = Subscription::new(WAYPOINT_TYPE, Wish::Everything);
        let names = [("good", "1"), ("bad", "1"), ("gone", "1")];
        let as_resources = |names: &[(&str, &str)]| {
            let mut response = response(names);
            for resource in &mut response.resources {
                if let Some(content) = &mut resource.resource {
                    content.type_url = WAYPOINT_TYPE.to_owned();
                }
            }
            response
        };
        let mut take = |names: &[(&str, &str)], refused: &[&str]| {
            let response = as_resources(names);
            let (_, pending) = subscription.receive::<api::waypoint::Resource>(response);
            let refused = refused.iter().map(|name| Rejected {
                name: Arc::from(*name),
                reason: ParseError::Missing("kind"),
            });
            let (answer, _) = subscription.conclude(pending, refused.collect());
            let told = subscription.open(Node::default(), usize::MAX);
            (answer, told)
        };
        let (answer, told) = take(&names, &["bad", "gone"]);
        let details = answer.error_detail.unwrap().details;
        assert_eq!(details.len(), 2);
        let refused = api::waypoint::Refused::decode(&*details[0].value).unwrap();
        assert_eq!(
            (&*refused.name, &*refused.reason),
            ("bad", "field kind is missing")
        );
        let versions = [("bad", ""), ("gone", ""), ("good", "1")];
        let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs.iter();
            pairs
                .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
                .collect()
        };
        let held: BTreeMap<_, _> = told.initial_resource_versions.clone().into_iter().collect();
        assert_eq!(held, pairs(&versions));
        let (_, told) = take(&[("bad", "2")], &[]);
        assert_eq!(told.initial_resource_versions["bad"], "2");
        assert_eq!(told.initial_resource_versions["gone"], "");
        let length = told.encoded_len();
        assert_eq!(subscription.open(Node::default(), length), told);
        let _ = subscription.open(Node::default(), length - 1);
        assert_eq!(subscription.doubtful(), 3);
        assert_eq!(subscription.drop_doubtful().len(), 3);
        let told = subscription.open(Node::default(), usize::MAX);
        assert!(told.initial_resource_versions.is_empty());
    }

    #[test]
    fn a_nack_names_what_was_refused_and_stays_short() {
        let rejected = |n: usize| Rejected {
            name: format!("ns/{n}").into(),
            reason: ParseError::Missing("uid"),
        };
        let one = error_detail(api::ADDRESS_TYPE, &[rejected(1)]).unwrap();
        assert_eq!((one.code, &*one.message), (3, "ns/1: field uid is missing"));
        let many: Vec<_> = (0..1000).map(rejected).collect();
        let many = error_detail(api::ADDRESS_TYPE, &many).unwrap();
        assert!(
            many.message.ends_with("and 968 more") && many.message.len() < 4096,
            "{}",
            many.message
        );
    }
}
