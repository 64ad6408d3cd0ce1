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
//! A proxy of a gateway ([`Session::of_gateway`]) is told of nothing but what is for that gateway; see
//! `scope.rs`. Its resources go to nobody else: there are keys among them.
//!
//! Policies before the workloads that name them when they come, after them when they go: in
//! between, a workload would name a policy that its proxy does not know. For the same reason addresses
//! before the resources that name them, and after them when they go.

mod catalog;
mod interest;
mod reply;
mod scope;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::discovery::{DeltaDiscoveryRequest, Node};
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, WAYPOINT_TYPE};

use crate::node::metadata;
pub use catalog::{Catalog, Entry};
use interest::{Interest, Parcel};
pub use reply::{Answer, Nack, Reply};
pub use scope::MOST_ASKED;
use scope::Scope;

/// Type URL of the older workload type, which carries workloads only.
pub const WORKLOAD_TYPE: &str = "type.googleapis.com/istio.workload.Workload";

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
    /// Of a gateway's proxy.
    scope: Option<Scope>,
}

impl Session {
    /// A stream on which nothing has been asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A stream of a proxy of that gateway (`namespace/name`), proven to be one.
    pub fn of_gateway(gateway: &str) -> Self {
        Self {
            scope: Some(Scope::of(gateway)),
            ..Self::default()
        }
    }

    /// Whose proxy the client is: `namespace/name`.
    pub fn gateway(&self) -> Option<&Arc<str>> {
        self.scope.as_ref().map(Scope::gateway)
    }

    /// Who the client says it is, from the first request that told.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Whether the client asked for a type.
    pub fn follows(&self, type_url: &str) -> bool {
        self.types.contains_key(type_url)
            || (self.scope.as_ref()).is_some_and(|scope| scope.follows(type_url))
    }

    /// A request arrives. A type that is not served gets no answer.
    pub fn on_request(&mut self, catalog: &impl Catalog, request: DeltaDiscoveryRequest) -> Answer {
        let is_scoped = self.scope.is_some();
        if !catalog.serves(&request.type_url) || (request.type_url == WAYPOINT_TYPE && !is_scoped) {
            return Answer::default();
        }
        if self.node.is_none() {
            self.node.clone_from(&request.node);
        }
        let nack = request.error_detail.as_ref().map(|error| Nack {
            type_url: request.type_url.clone(),
            message: error.message.clone(),
        });
        let of_scope = [ADDRESS_TYPE, WAYPOINT_TYPE].contains(&&*request.type_url);
        if let Some(scope) = self.scope.as_mut().filter(|_| of_scope) {
            let parcel = scope.on_request(catalog, &request);
            let type_url: Arc<str> = Arc::from(&*request.type_url);
            return Answer {
                reply: parcel.map(|parcel| self.reply(catalog, &type_url, parcel)),
                nack,
            };
        }
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
            Some(interest) => interest.change(catalog, &request, &node),
        };
        Answer {
            reply: parcel.map(|parcel| self.reply(catalog, &type_url, parcel)),
            nack,
        }
    }

    /// What is left to be told when the answer to a request was sent.
    pub fn rest(&mut self, catalog: &impl Catalog) -> Option<Reply> {
        let parcel = self.scope.as_mut()?.rest();
        (!parcel.is_empty()).then(|| self.reply(catalog, &ADDRESS_TYPE.into(), parcel))
    }

    /// The catalog changed. `changed` names everything that may differ from what was sent.
    pub fn on_push(&mut self, catalog: &impl Catalog, changed: &[Changed<'_>]) -> Vec<Reply> {
        let node = node_name(self.node.as_ref());
        let mut coming = Vec::new();
        let mut addresses = Vec::new();
        let mut going = Vec::new();
        if let Some(scope) = &mut self.scope {
            let of = |url: &str| {
                let found = changed.iter().find(|changed| changed.type_url == url);
                found.map_or(&[][..], |changed| changed.names)
            };
            let told = scope.on_push(catalog, of(WAYPOINT_TYPE), of(ADDRESS_TYPE));
            let (address, resource): (Arc<str>, Arc<str>) =
                (ADDRESS_TYPE.into(), WAYPOINT_TYPE.into());
            addresses.push((address.clone(), told.coming));
            addresses.push((resource, told.resources));
            addresses.push((address, told.going));
        }
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

/// Where the client runs.
fn node_name(node: Option<&Node>) -> String {
    node.map_or("", |node| metadata(node, "NODE_NAME"))
        .to_owned()
}
