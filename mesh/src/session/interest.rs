//! What one client asked for of one type, and what is due to it for that.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use api::ADDRESS_TYPE;
use api::discovery::DeltaDiscoveryRequest;
use ipnet::IpNet;

use super::{Catalog, Entry, MOST_ASKED, WORKLOAD_TYPE};
use crate::names::{split_address, split_range};

/// What the client asked for of one type.
#[derive(Debug, Default)]
pub(super) struct Interest {
    pub(super) wildcard: bool,
    /// On demand: names and aliases it asked for.
    wanted: HashSet<Arc<str>>,
    /// On demand: names it was sent, or says it holds.
    sent: HashSet<Arc<str>>,
    /// On demand: resources found for what it asked for; endpoints of these concern it.
    followed: HashSet<Arc<str>>,
}

/// What to send of one type, each name once.
#[derive(Default)]
pub(super) struct Parcel {
    pub(super) resources: BTreeMap<Arc<str>, Arc<Entry>>,
    pub(super) removed: Vec<Arc<str>>,
}

impl Interest {
    /// The first request of a type on the stream.
    pub(super) fn begin(
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
    pub(super) fn change(
        &mut self,
        catalog: &impl Catalog,
        request: &DeltaDiscoveryRequest,
        node: &str,
    ) -> Option<Parcel> {
        let given_up = &request.resource_names_unsubscribe;
        for name in given_up {
            self.wanted.remove(&**name);
            self.followed.remove(&**name);
        }
        for name in given_up {
            // What comes on another account as well (its service, its node) must be taken back by name when it goes.
            let named = catalog.named(&request.type_url, name);
            if !named.is_some_and(|entry| self.due(entry, node)) {
                self.sent.remove(&**name);
            }
        }
        // Each costs a look for every range that it could be in: who asks for more in one breath must ask again.
        let mut added = request
            .resource_names_subscribe
            .iter()
            .filter(|name| **name != "*")
            .take(MOST_ASKED)
            .peekable();
        added.peek()?;
        let mut parcel = Parcel::default();
        for name in added {
            self.want(catalog, &request.type_url, name, &mut parcel);
        }
        Some(parcel)
    }

    /// Names changed in the catalog.
    pub(super) fn push(
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
    /// there is no such thing. Who asks for too much is not answered: told that there is nobody, it would go around
    /// whoever is there.
    fn want(&mut self, catalog: &impl Catalog, type_url: &str, key: &str, parcel: &mut Parcel) {
        if !self.wildcard && !self.wanted.contains(key) {
            if self.wanted.len() >= MOST_ASKED {
                return;
            }
            self.wanted.insert(Arc::from(key));
        }
        let mut found = catalog.aliased(type_url, key);
        for range in ranges(key) {
            found.extend(catalog.aliased(type_url, &range));
        }
        found.extend(catalog.named(type_url, key));
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
        let asked = |alias: &Arc<str>| self.wanted.contains(alias) || self.asked_within(alias);
        self.wanted.contains(&entry.name) || entry.aliases.iter().any(asked)
    }

    /// Whether an address of that range was asked for.
    fn asked_within(&self, alias: &str) -> bool {
        let Some((network, range)) = split_range(alias) else {
            return false;
        };
        let mut wanted = self
            .wanted
            .iter()
            .filter_map(|wanted| split_address(wanted));
        wanted.any(|(of, ip)| of == network && range.contains(&ip))
    }

    fn concerned(&self, entry: &Entry, node: &str) -> bool {
        self.sent.contains(&entry.name) || self.due(entry, node)
    }

    /// Whether it is told of, whatever was sent before.
    fn due(&self, entry: &Entry, node: &str) -> bool {
        let followed = |service: &Arc<str>| self.followed.contains(service);
        self.asked_for(entry)
            || entry.services.iter().any(followed)
            || (!node.is_empty() && entry.node.as_deref() == Some(node))
    }
}

impl Parcel {
    pub(super) fn set(&mut self, entry: &Arc<Entry>) {
        self.resources.insert(entry.name.clone(), entry.clone());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }
}

/// As what the ranges with this address in them would be known.
fn ranges(key: &str) -> impl Iterator<Item = String> {
    split_address(key).into_iter().flat_map(|(network, ip)| {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        let of = move |length| Some(IpNet::new(ip, length).ok()?.trunc());
        let ranges = (0..=longest).rev().filter_map(of);
        ranges.map(move |range| format!("{network}/{range}"))
    })
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
