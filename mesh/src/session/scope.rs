//! What the proxy of one gateway is told: the resources that are for it, and of the addresses those
//! that its resources name, each service with its endpoints, and those that it asks for.
//!
//! ```text
//!   resources of the gateway ──name──▶ services ──┬─▶ due ─▶ sent
//!                       names and addresses asked ┘
//! ```
//!
//! An address is due or it is not, whatever happened before; what was sent and is due no more is
//! named as removed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::ADDRESS_TYPE;
use api::WAYPOINT_TYPE;
use api::discovery::DeltaDiscoveryRequest;

use super::interest::Parcel;
use super::{Catalog, Entry};
use crate::resource::key_of;

/// One gateway's part of the catalog.
#[derive(Debug)]
pub(super) struct Scope {
    /// `namespace/name`.
    gateway: Arc<str>,
    /// Its resources, as they were when they were last looked at.
    resources: HashMap<Arc<str>, Arc<Entry>>,
    /// Services, and how many of the resources name each.
    named: HashMap<Arc<str>, usize>,
    /// Whether resources were asked for.
    follows_resources: bool,
    addresses: Option<Around>,
    is_loaded: bool,
}

/// The addresses of one client.
#[derive(Debug, Default)]
struct Around {
    /// Names and aliases that it asked for.
    wanted: HashSet<Arc<str>>,
    /// Names that it was sent.
    sent: HashSet<Arc<str>>,
    /// Names that it held when it came, and that are not due: told as removed when it knows its
    /// resources, because those it holds may name them still.
    leaving: Vec<Arc<str>>,
}

/// Services that resources name now and did not, and the other way round.
#[derive(Debug, Default, PartialEq, Eq)]
struct Moved {
    gained: Vec<Arc<str>>,
    lost: Vec<Arc<str>>,
}

/// What a change is to a scope, in the order in which it must be told.
#[derive(Default)]
pub(super) struct Told {
    /// Addresses that come: nothing names what is not known.
    pub(super) coming: Parcel,
    pub(super) resources: Parcel,
    /// Addresses that go: nothing names them any more.
    pub(super) going: Parcel,
}

impl Scope {
    pub(super) fn of(gateway: &str) -> Self {
        Self {
            gateway: gateway.into(),
            resources: HashMap::new(),
            named: HashMap::new(),
            follows_resources: false,
            addresses: None,
            is_loaded: false,
        }
    }

    pub(super) fn gateway(&self) -> &Arc<str> {
        &self.gateway
    }

    /// Whether the client asked for that type, of those that a scope answers for.
    pub(super) fn follows(&self, type_url: &str) -> bool {
        match type_url {
            WAYPOINT_TYPE => self.follows_resources,
            ADDRESS_TYPE => self.addresses.is_some(),
            _ => false,
        }
    }

    /// A request for addresses or resources; the answer that is due, if any.
    pub(super) fn on_request(
        &mut self,
        catalog: &impl Catalog,
        request: &DeltaDiscoveryRequest,
    ) -> Option<Parcel> {
        if !std::mem::replace(&mut self.is_loaded, true) {
            let names: Vec<_> = catalog
                .of_gateway(&self.gateway)
                .map(|entry| entry.name.clone())
                .collect();
            self.look(catalog, &names);
        }
        if request.type_url == WAYPOINT_TYPE {
            let is_first = !std::mem::replace(&mut self.follows_resources, true);
            return if is_first {
                Some(self.all_resources(catalog, request))
            } else {
                self.named_resources(catalog, request)
            };
        }
        let Some(mut around) = self.addresses.take() else {
            let (around, parcel) = self.begin(catalog, request);
            self.addresses = Some(around);
            return Some(parcel);
        };
        let parcel = self.change(&mut around, catalog, request);
        self.addresses = Some(around);
        parcel
    }

    /// Names changed in the catalog.
    pub(super) fn on_push(
        &mut self,
        catalog: &impl Catalog,
        resources: &[Arc<str>],
        addresses: &[Arc<str>],
    ) -> Told {
        let own: Vec<_> = resources
            .iter()
            .filter(|name| key_of(name, &self.gateway).is_some())
            .cloned()
            .collect();
        let moved = self.look(catalog, &own);
        let mut told = Told::default();
        if self.follows_resources {
            for name in own {
                match catalog.named(WAYPOINT_TYPE, &name) {
                    Some(entry) => told.resources.set(entry),
                    None => told.resources.removed.push(name),
                }
            }
        }
        if let Some(mut around) = self.addresses.take() {
            told.coming = self.push(&mut around, catalog, addresses, &moved);
            told.going.removed = std::mem::take(&mut told.coming.removed);
            told.going.removed.extend(around.take_leaving());
            self.addresses = Some(around);
        }
        told
    }

    /// What is left to be told after the first answers.
    pub(super) fn rest(&mut self) -> Parcel {
        let mut rest = Parcel::default();
        if self.follows_resources
            && let Some(around) = &mut self.addresses
        {
            rest.removed = around.take_leaving();
        }
        rest
    }

    // ---- resources

    /// Takes note of what those resources name now.
    fn look(&mut self, catalog: &impl Catalog, names: &[Arc<str>]) -> Moved {
        let mut before: HashMap<Arc<str>, bool> = HashMap::new();
        for name in names {
            let now = catalog.named(WAYPOINT_TYPE, name).cloned();
            let old = match &now {
                Some(entry) => self.resources.insert(name.clone(), entry.clone()),
                None => self.resources.remove(name),
            };
            for service in now.iter().flat_map(|entry| &entry.services) {
                let count = self.named.entry(service.clone()).or_insert(0);
                before.entry(service.clone()).or_insert(*count > 0);
                *count += 1;
            }
            for service in old.iter().flat_map(|entry| &entry.services) {
                before.entry(service.clone()).or_insert(true);
                if let Some(count) = self.named.get_mut(service) {
                    *count -= 1;
                    if *count == 0 {
                        self.named.remove(service);
                    }
                }
            }
        }
        let mut moved = Moved::default();
        for (service, was) in before {
            match (was, self.named.contains_key(&service)) {
                (false, true) => moved.gained.push(service),
                (true, false) => moved.lost.push(service),
                _ => {}
            }
        }
        moved
    }

    fn all_resources(&self, catalog: &impl Catalog, request: &DeltaDiscoveryRequest) -> Parcel {
        let held = &request.initial_resource_versions;
        let mut parcel = Parcel::default();
        for entry in catalog.of_gateway(&self.gateway) {
            if held
                .get(&*entry.name)
                .is_none_or(|held| **held != *entry.version)
            {
                parcel.set(entry);
            }
        }
        let gone = held.keys().filter(|name| !self.has(catalog, name));
        parcel.removed.extend(gone.map(|name| Arc::from(&**name)));
        parcel
    }

    /// Exactly the names; those of others do not exist.
    fn named_resources(
        &self,
        catalog: &impl Catalog,
        request: &DeltaDiscoveryRequest,
    ) -> Option<Parcel> {
        let names = request.resource_names_subscribe.iter();
        let mut names = names.filter(|name| **name != "*").peekable();
        names.peek()?;
        let mut parcel = Parcel::default();
        for name in names {
            match catalog.named(WAYPOINT_TYPE, name) {
                Some(entry) if self.has(catalog, name) => parcel.set(entry),
                _ => parcel.removed.push(Arc::from(&**name)),
            }
        }
        Some(parcel)
    }

    fn has(&self, catalog: &impl Catalog, name: &str) -> bool {
        key_of(name, &self.gateway).is_some() && catalog.named(WAYPOINT_TYPE, name).is_some()
    }

    // ---- addresses

    fn begin(&self, catalog: &impl Catalog, request: &DeltaDiscoveryRequest) -> (Around, Parcel) {
        let mut around = Around::default();
        let mut parcel = Parcel::default();
        for service in self.named.keys() {
            around.send_service(catalog, service, &mut parcel);
        }
        for name in asked(request) {
            around.want(catalog, name, &mut parcel);
        }
        let held = &request.initial_resource_versions;
        let gone = held.keys().filter(|name| !around.sent.contains(&***name));
        around.leaving = gone.map(|name| Arc::from(&**name)).collect();
        parcel.resources.retain(|name, entry| {
            held.get(&**name)
                .is_none_or(|version| **version != *entry.version)
        });
        (around, parcel)
    }

    /// A later request: an answer is due for the names it adds, and for what goes with those it
    /// takes back.
    fn change(
        &self,
        around: &mut Around,
        catalog: &impl Catalog,
        request: &DeltaDiscoveryRequest,
    ) -> Option<Parcel> {
        let mut parcel = Parcel::default();
        for name in &request.resource_names_unsubscribe {
            if !around.wanted.remove(&**name) {
                continue;
            }
            let mut found = catalog.aliased(ADDRESS_TYPE, name);
            found.extend(catalog.named(ADDRESS_TYPE, name));
            for entry in found {
                self.drop_unless_due(around, entry, &mut parcel);
            }
        }
        let mut is_due = !parcel.is_empty();
        for name in asked(request) {
            is_due = true;
            around.want(catalog, name, &mut parcel);
        }
        is_due.then_some(parcel)
    }

    fn push(
        &self,
        around: &mut Around,
        catalog: &impl Catalog,
        names: &[Arc<str>],
        moved: &Moved,
    ) -> Parcel {
        let mut parcel = Parcel::default();
        for name in names {
            match catalog.named(ADDRESS_TYPE, name) {
                Some(entry) if self.is_due(around, entry) => around.send(entry, &mut parcel),
                _ if around.sent.remove(name) => parcel.removed.push(name.clone()),
                _ => {}
            }
        }
        for service in &moved.gained {
            around.send_service(catalog, service, &mut parcel);
        }
        for service in &moved.lost {
            let itself = catalog.named(ADDRESS_TYPE, service);
            let members = catalog.members(ADDRESS_TYPE, service);
            for entry in members.into_iter().chain(itself) {
                self.drop_unless_due(around, entry, &mut parcel);
            }
        }
        parcel
    }

    fn drop_unless_due(&self, around: &mut Around, entry: &Arc<Entry>, parcel: &mut Parcel) {
        if !self.is_due(around, entry) && around.sent.remove(&entry.name) {
            parcel.removed.push(entry.name.clone());
        }
    }

    fn is_due(&self, around: &Around, entry: &Entry) -> bool {
        self.named.contains_key(&entry.name)
            || entry
                .services
                .iter()
                .any(|service| self.named.contains_key(service))
            || around.asked_for(entry)
    }
}

impl Around {
    fn take_leaving(&mut self) -> Vec<Arc<str>> {
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|name| !self.sent.contains(name)); // or it came back
        leaving
    }

    fn asked_for(&self, entry: &Entry) -> bool {
        let mut aliases = entry.aliases.iter();
        self.wanted.contains(&entry.name) || aliases.any(|alias| self.wanted.contains(alias))
    }

    fn send(&mut self, entry: &Arc<Entry>, parcel: &mut Parcel) {
        self.sent.insert(entry.name.clone());
        parcel.set(entry);
    }

    fn send_service(&mut self, catalog: &impl Catalog, service: &str, parcel: &mut Parcel) {
        if let Some(entry) = catalog.named(ADDRESS_TYPE, service) {
            self.send(entry, parcel);
        }
        for entry in catalog.members(ADDRESS_TYPE, service) {
            self.send(entry, parcel);
        }
    }

    /// The client names something: it gets it, or learns that there is no such thing.
    fn want(&mut self, catalog: &impl Catalog, name: &str, parcel: &mut Parcel) {
        let mut found = Vec::new();
        if self.wanted.len() < MOST_ASKED || self.wanted.contains(name) {
            self.wanted.insert(Arc::from(name));
            found = catalog.aliased(ADDRESS_TYPE, name);
            found.extend(catalog.named(ADDRESS_TYPE, name));
        }
        if found.is_empty() {
            parcel.removed.push(Arc::from(name));
        }
        for entry in found {
            self.send(entry, parcel);
        }
    }
}

/// Names that one client may ask for; of more it is told that they do not exist. Ours stops long before.
pub const MOST_ASKED: usize = 1 << 16;

/// The names that a request asks for.
fn asked(request: &DeltaDiscoveryRequest) -> impl Iterator<Item = &str> {
    let names = request.resource_names_subscribe.iter().map(|name| &**name);
    names.filter(|name| *name != "*")
}
