//! Pure: the server's end of delta discovery, for one stream.
//!
//! A request or a change of the catalog enters; the replies to send leave, in order. The catalog
//! is the truth and is passed in each time; a session remembers only what its client asked for,
//! and, on an on-demand stream, what it was sent.
//!
//! What is sent, by kind of stream (remembered from the first request of a type):
//!
//! | | wildcard | on demand |
//! |---|---|---|
//! | first request | everything but what the client holds in the same version | what is on its node, what it names, what it holds in another version |
//! | later request | exactly the names | exactly the names, each with the endpoints of a service |
//! | change | the changed names | those that it was sent, that it named, that are on its node, or that join a service it named |
//!
//! Policies before the workloads that name them when they come, after them when they go: in
//! between, a workload would name a policy that its proxy does not know.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use bytes::Bytes;

/// Type URL of the older workload type, which carries workloads only.
pub const WORKLOAD_TYPE: &str = "type.googleapis.com/istio.workload.Workload";

/// A resource, encoded once and shared by every stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Resource name.
    pub name: Arc<str>,
    /// Version: a function of the content.
    pub version: Arc<str>,
    /// The encoded message.
    pub encoded: Bytes,
    /// `network/ip` for every address it has.
    pub aliases: Box<[Arc<str>]>,
    /// For a workload: its node.
    pub node: Option<Arc<str>>,
    /// For a workload: the resource names of the services it is an endpoint of.
    pub services: Box<[Arc<str>]>,
}

/// Everything there is to send.
///
/// The provided methods search everything, which is right for tests; a catalog that serves
/// on-demand streams at size has indexes.
pub trait Catalog {
    /// Version of the whole, for `system_version_info`.
    fn version(&self) -> &str;

    /// Whether the type is served.
    fn serves(&self, type_url: &str) -> bool;

    /// Every resource of a type.
    fn all<'a>(&'a self, type_url: &str) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a>;

    /// The resource of that name.
    fn named(&self, type_url: &str, name: &str) -> Option<&Arc<Entry>>;

    /// The resources that have an alias.
    fn aliased(&self, type_url: &str, alias: &str) -> Vec<&Arc<Entry>> {
        self.all(type_url)
            .filter(|entry| entry.aliases.iter().any(|held| **held == *alias))
            .collect()
    }

    /// The endpoints of a service, given by resource name.
    fn members(&self, type_url: &str, service: &str) -> Vec<&Arc<Entry>> {
        self.all(type_url)
            .filter(|entry| entry.services.iter().any(|held| **held == *service))
            .collect()
    }

    /// The workloads of a node.
    fn on_node(&self, type_url: &str, node: &str) -> Vec<&Arc<Entry>> {
        self.all(type_url)
            .filter(|entry| entry.node.as_deref() == Some(node))
            .collect()
    }
}

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

/// Names of one type that changed, appeared or vanished.
#[derive(Debug, Clone, Copy)]
pub struct Changed<'a> {
    /// The type.
    pub type_url: &'a str,
    /// The names.
    pub names: &'a [Arc<str>],
}

/// One client's stream.
#[derive(Debug, Default)]
pub struct Session {
    node: Option<Node>,
    types: BTreeMap<Arc<str>, Interest>,
    nonces: u64,
}

/// What the client asked for of one type.
#[derive(Debug, Default)]
struct Interest {
    wildcard: bool,
    /// On demand: names and aliases it asked for.
    wanted: HashSet<Arc<str>>,
    /// On demand: names it was sent, or says it holds.
    sent: HashSet<Arc<str>>,
    /// On demand: resources found for what it asked for; endpoints of these concern it.
    followed: HashSet<Arc<str>>,
}

/// What to send of one type, each name once.
#[derive(Default)]
struct Parcel {
    resources: BTreeMap<Arc<str>, Arc<Entry>>,
    removed: Vec<Arc<str>>,
}

impl Session {
    /// A stream on which nothing has been asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Who the client says it is, from the first request that told.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Whether the client asked for a type.
    pub fn follows(&self, type_url: &str) -> bool {
        self.types.contains_key(type_url)
    }

    /// A request arrives. A type that is not served gets no answer.
    pub fn on_request(&mut self, catalog: &impl Catalog, request: DeltaDiscoveryRequest) -> Answer {
        if !catalog.serves(&request.type_url) {
            return Answer::default();
        }
        if self.node.is_none() {
            self.node.clone_from(&request.node);
        }
        let nack = request.error_detail.as_ref().map(|error| Nack {
            type_url: request.type_url.clone(),
            message: error.message.clone(),
        });
        let type_url: Arc<str> = Arc::from(&*request.type_url);
        let node = node_name(self.node.as_ref());
        let parcel = match self.types.get_mut(&type_url) {
            None => {
                let (interest, parcel) = Interest::begin(catalog, &request, &node);
                self.types.insert(type_url.clone(), interest);
                Some(parcel) // always, even empty: the client is ready after the first answer
            }
            // Names count whatever the nonce: an acknowledgement may cross a push on its way, and
            // a name dropped for that would be waited for in vain.
            Some(interest) => interest.change(catalog, &request),
        };
        Answer {
            reply: parcel.map(|parcel| self.reply(catalog, &type_url, parcel)),
            nack,
        }
    }

    /// The catalog changed. `changed` names everything that may differ from what was sent.
    pub fn on_push(&mut self, catalog: &impl Catalog, changed: &[Changed<'_>]) -> Vec<Reply> {
        let node = node_name(self.node.as_ref());
        let mut coming = Vec::new();
        let mut addresses = Vec::new();
        let mut going = Vec::new();
        for Changed { type_url, names } in changed {
            let Some(interest) = self.types.get_mut(*type_url) else {
                continue;
            };
            let type_url: Arc<str> = Arc::from(*type_url);
            let mut parcel = interest.push(catalog, &type_url, names, &node);
            if *type_url == *AUTHORIZATION_TYPE {
                let removed = std::mem::take(&mut parcel.removed);
                going.push((
                    type_url.clone(),
                    Parcel {
                        removed,
                        ..Parcel::default()
                    },
                ));
                coming.push((type_url, parcel));
            } else {
                addresses.push((type_url, parcel));
            }
        }
        let ordered = coming.into_iter().chain(addresses).chain(going);
        let filled = ordered.filter(|(_, parcel)| !parcel.is_empty());
        filled
            .map(|(type_url, parcel)| self.reply(catalog, &type_url, parcel))
            .collect()
    }

    fn reply(&mut self, catalog: &impl Catalog, type_url: &Arc<str>, parcel: Parcel) -> Reply {
        self.nonces += 1;
        let mut removed = parcel.removed;
        removed.sort_unstable();
        removed.dedup();
        Reply {
            type_url: type_url.clone(),
            nonce: self.nonces.to_string(),
            version: catalog.version().to_owned(),
            resources: parcel.resources.into_values().collect(),
            removed,
            with_aliases: self
                .types
                .get(type_url)
                .is_some_and(|interest| !interest.wildcard),
        }
    }
}

impl Interest {
    /// The first request of a type on the stream.
    fn begin(
        catalog: &impl Catalog,
        request: &DeltaDiscoveryRequest,
        node: &str,
    ) -> (Self, Parcel) {
        let type_url = &*request.type_url;
        let held = &request.initial_resource_versions;
        let mut interest = Self {
            wildcard: is_wildcard(request),
            ..Self::default()
        };
        let mut parcel = Parcel::default();
        if interest.wildcard {
            catalog.all(type_url).for_each(|entry| parcel.set(entry));
        } else {
            for entry in catalog.on_node(type_url, node) {
                interest.send(entry, &mut parcel);
            }
            for name in held
                .keys()
                .chain(&request.resource_names_subscribe)
                .filter(|name| **name != "*")
            {
                interest.want(catalog, type_url, name, &mut parcel);
            }
            interest
                .sent
                .extend(held.keys().map(|name| Arc::from(&**name)));
        }
        parcel.resources.retain(|name, entry| {
            held.get(&**name)
                .is_none_or(|version| **version != *entry.version)
        });
        for name in held
            .keys()
            .filter(|name| catalog.named(type_url, name).is_none())
        {
            interest.sent.remove(&**name);
            parcel.removed.push(Arc::from(&**name));
        }
        (interest, parcel)
    }

    /// A later request: an answer is due for the names it adds, and for nothing else.
    fn change(
        &mut self,
        catalog: &impl Catalog,
        request: &DeltaDiscoveryRequest,
    ) -> Option<Parcel> {
        for name in &request.resource_names_unsubscribe {
            self.wanted.remove(&**name);
            self.followed.remove(&**name);
            self.sent.remove(&**name);
        }
        let mut added = request
            .resource_names_subscribe
            .iter()
            .filter(|name| **name != "*")
            .peekable();
        added.peek()?;
        let mut parcel = Parcel::default();
        for name in added {
            self.want(catalog, &request.type_url, name, &mut parcel);
        }
        Some(parcel)
    }

    /// Names changed in the catalog.
    fn push(
        &mut self,
        catalog: &impl Catalog,
        type_url: &str,
        names: &[Arc<str>],
        node: &str,
    ) -> Parcel {
        let mut parcel = Parcel::default();
        for name in names {
            match catalog.named(type_url, name) {
                None => {
                    self.followed.remove(name);
                    if self.wildcard || self.sent.remove(name) {
                        parcel.removed.push(name.clone());
                    }
                }
                Some(entry) if self.wildcard => parcel.set(entry),
                // Asked for before it existed: now comes the answer, endpoints and all.
                Some(entry) if self.asked_for(entry) && !self.followed.contains(name) => {
                    self.found(catalog, type_url, entry, &mut parcel);
                }
                Some(entry) if self.concerned(entry, node) => self.send(entry, &mut parcel),
                Some(_) => {}
            }
        }
        parcel
    }

    /// The client names something: it gets it, and the endpoints with a service, or learns that
    /// there is no such thing.
    fn want(&mut self, catalog: &impl Catalog, type_url: &str, key: &str, parcel: &mut Parcel) {
        let mut found = catalog.aliased(type_url, key);
        found.extend(catalog.named(type_url, key));
        if !self.wildcard {
            self.wanted.insert(Arc::from(key));
        }
        if found.is_empty() {
            parcel.removed.push(Arc::from(key));
        }
        for entry in found {
            self.found(catalog, type_url, entry, parcel);
        }
    }

    /// Something the client asked for: a service brings its endpoints along.
    fn found(
        &mut self,
        catalog: &impl Catalog,
        type_url: &str,
        entry: &Arc<Entry>,
        parcel: &mut Parcel,
    ) {
        self.send(entry, parcel);
        if !self.wildcard {
            self.followed.insert(entry.name.clone());
            for member in catalog.members(type_url, &entry.name) {
                self.send(member, parcel);
            }
        }
    }

    fn send(&mut self, entry: &Arc<Entry>, parcel: &mut Parcel) {
        if !self.wildcard {
            self.sent.insert(entry.name.clone());
        }
        parcel.set(entry);
    }

    fn asked_for(&self, entry: &Entry) -> bool {
        self.wanted.contains(&entry.name)
            || entry
                .aliases
                .iter()
                .any(|alias| self.wanted.contains(alias))
    }

    fn concerned(&self, entry: &Entry, node: &str) -> bool {
        self.sent.contains(&entry.name)
            || entry
                .services
                .iter()
                .any(|service| self.followed.contains(service))
            || (!node.is_empty() && entry.node.as_deref() == Some(node))
    }
}

impl Parcel {
    fn set(&mut self, entry: &Arc<Entry>) {
        self.resources.insert(entry.name.clone(), entry.clone());
    }

    fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }
}

/// A star that is not taken back at once, or no name at all. Policies are always sent whole:
/// which of them matter is the proxy's to decide.
fn is_wildcard(request: &DeltaDiscoveryRequest) -> bool {
    let star = |names: &[String]| names.iter().any(|name| name == "*");
    let held = request.initial_resource_versions.contains_key("*");
    (request.type_url != ADDRESS_TYPE && request.type_url != WORKLOAD_TYPE)
        || request.resource_names_subscribe.is_empty()
        || ((held || star(&request.resource_names_subscribe))
            && !star(&request.resource_names_unsubscribe))
}

fn node_name(node: Option<&Node>) -> String {
    use prost_types::value::Kind;
    let name = node.and_then(|node| {
        node.metadata
            .as_ref()?
            .fields
            .get("NODE_NAME")?
            .kind
            .as_ref()
    });
    match name {
        Some(Kind::StringValue(name)) => name.clone(),
        _ => String::new(),
    }
}
