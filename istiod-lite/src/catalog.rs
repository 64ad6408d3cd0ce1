//! The resources as they go over the wire, encoded once and shared by every stream.
//!
//! 1. the world names what changed, its owner takes those over  ([`Publisher::take`])
//! 2. a new [`Catalog`] stands beside the old one               ([`Publisher::publish`])
//! 3. each stream compares the one it sent with the new one     ([`Catalog::changes_since`]); those of
//!    gateways' proxies are woken only for what they may care about  (`care`)
//!
//! A catalog is made of persistent maps: a copy is a pointer, two copies share what is equal
//! between them, and comparing them walks only what is not. So no stream needs a queue of changes
//! or a list of names: one that was slow for a minute holds an old pointer, and gets the sum of
//! that minute in one push.

mod care;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use api::workload::{Address, address};
use arc_swap::ArcSwap;
use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
use mesh::session::{self, Entry};
use prost::Message as _;
use serde::{Serialize, Serializer};
use tokio::sync::watch;

use crate::world::{Changed, Resource, World};
pub use care::Watch;
use care::{Named, Watches};

/// A type of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    /// `istio.workload.Address`
    Address,
    /// `istio.security.Authorization`
    Authorization,
    /// `ambit.waypoint.v1.Resource`
    Waypoint,
}

impl Type {
    /// All of them.
    pub const ALL: [Type; 3] = [Type::Address, Type::Authorization, Type::Waypoint];

    /// Its type URL.
    pub fn url(self) -> &'static str {
        match self {
            Type::Address => api::ADDRESS_TYPE,
            Type::Authorization => api::AUTHORIZATION_TYPE,
            Type::Waypoint => api::WAYPOINT_TYPE,
        }
    }

    /// The type of that URL.
    pub fn of(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.url() == url)
    }
}

/// Everything that is served at one moment.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// How many were published before it; as text the `system_version_info` of its pushes.
    pub round: u64,
    version: String,
    /// When it was published.
    pub since: Instant,
    entries: [OrdMap<Arc<str>, Arc<Entry>>; Type::ALL.len()],
    services: usize,
    indexes: [Index; 3],
}

/// What on-demand streams look by: pairs (key, name of the address) in order, so that all of one
/// key are a range. Half the memory of a map of sets.
type Index = OrdSet<(Arc<str>, Arc<str>)>;

/// Which index.
#[derive(Clone, Copy)]
enum By {
    Alias,
    Service,
    Node,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            round: 0,
            version: "0".into(),
            since: Instant::now(),
            entries: Default::default(),
            services: 0,
            indexes: Default::default(),
        }
    }
}

impl Catalog {
    /// The resources of a type, by name.
    pub fn of(&self, r#type: Type) -> &OrdMap<Arc<str>, Arc<Entry>> {
        &self.entries[r#type as usize]
    }

    /// How many of the addresses are services.
    pub fn services(&self) -> usize {
        self.services
    }

    /// The names that `older` lacks, has too much or has in another version. Costs what changed,
    /// not what there is.
    pub fn changes_since(&self, older: &Self, r#type: Type) -> Vec<Arc<str>> {
        let changes = older.of(r#type).diff(self.of(r#type));
        changes
            .map(|item| match item {
                DiffItem::Add(name, _) | DiffItem::Remove(name, _) => name.clone(),
                DiffItem::Update { new: (name, _), .. } => name.clone(),
            })
            .collect()
    }

    fn insert(&mut self, r#type: Type, entry: Entry) {
        let entry = Arc::new(entry);
        let old = self.entries[r#type as usize].insert(entry.name.clone(), entry.clone());
        if r#type == Type::Address {
            if let Some(old) = old {
                self.forget(&old);
            }
            self.services += usize::from(is_service(&entry));
            for (by, key) in keys(&entry) {
                self.indexes[by as usize].insert((key.clone(), entry.name.clone()));
            }
        }
    }

    fn remove(&mut self, r#type: Type, name: &str) {
        let old = self.entries[r#type as usize].remove(name);
        if let Some(old) = old.filter(|_| r#type == Type::Address) {
            self.forget(&old);
        }
    }

    fn forget(&mut self, entry: &Arc<Entry>) {
        self.services -= usize::from(is_service(entry));
        for (by, key) in keys(entry) {
            self.indexes[by as usize].remove(&(key.clone(), entry.name.clone()));
        }
    }

    fn indexed(&self, type_url: &str, by: By, key: &str) -> Vec<&Arc<Entry>> {
        if Type::of(type_url) != Some(Type::Address) {
            return Vec::new();
        }
        let from: (Arc<str>, Arc<str>) = (key.into(), "".into());
        let pairs = self.indexes[by as usize].range(from..);
        pairs
            .take_while(|(found, _)| **found == *key)
            .filter_map(|(_, name)| self.of(Type::Address).get(name))
            .collect()
    }
}

impl session::Catalog for Catalog {
    fn version(&self) -> &str {
        &self.version
    }

    fn serves(&self, type_url: &str) -> bool {
        Type::of(type_url).is_some()
    }

    fn all<'a>(&'a self, type_url: &str) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a> {
        match Type::of(type_url) {
            Some(r#type) => Box::new(self.of(r#type).values()),
            None => Box::new(std::iter::empty()),
        }
    }

    fn named(&self, type_url: &str, name: &str) -> Option<&Arc<Entry>> {
        self.of(Type::of(type_url)?).get(name)
    }

    fn aliased(&self, type_url: &str, alias: &str) -> Vec<&Arc<Entry>> {
        self.indexed(type_url, By::Alias, alias)
    }

    fn members(&self, type_url: &str, service: &str) -> Vec<&Arc<Entry>> {
        self.indexed(type_url, By::Service, service)
    }

    fn of_gateway<'a>(&'a self, gateway: &str) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a> {
        let prefix: Arc<str> = format!("{gateway}/").into();
        let from = self.of(Type::Waypoint).range(prefix.clone()..);
        let own = from.take_while(move |(name, _)| name.starts_with(&*prefix));
        Box::new(own.map(|(_, entry)| entry))
    }

    fn on_node(&self, type_url: &str, node: &str) -> Vec<&Arc<Entry>> {
        self.indexed(type_url, By::Node, node)
    }
}

fn keys(entry: &Entry) -> impl Iterator<Item = (By, &Arc<str>)> {
    let aliases = entry.aliases.iter().map(|key| (By::Alias, key));
    let services = entry.services.iter().map(|key| (By::Service, key));
    aliases
        .chain(services)
        .chain(entry.node.iter().map(|key| (By::Node, key)))
}

/// The first byte of an `Address` is the tag of its only field: 1 is a workload, 2 a service.
fn is_service(entry: &Entry) -> bool {
    entry.encoded.first() == Some(&(2 << 3 | 2))
}

/// Makes a resource ready for everybody. The version is 64 bits of SHA-256 of the content in hex:
/// equal in every replica, after every restart and in every release, so that a proxy that comes
/// back to another control plane is not sent the mesh again.
fn entry(resource: &Resource, r#type: Type) -> Entry {
    let (node, services) = match r#type {
        Type::Address => facts(resource),
        Type::Authorization => (None, Box::default()),
        Type::Waypoint => (None, named(resource)),
    };
    Entry {
        name: resource.name.clone(),
        version: content_hash(&resource.encoded).into(),
        encoded: resource.encoded.clone(),
        aliases: resource
            .aliases
            .iter()
            .map(|alias| Arc::from(&**alias))
            .collect(),
        node,
        services,
    }
}

/// A workload's node and the services it is an endpoint of.
fn facts(resource: &Resource) -> (Option<Arc<str>>, Box<[Arc<str>]>) {
    // Our own encoding of a moment ago: what cannot be read has no facts.
    let Ok(Address {
        r#type: Some(address::Type::Workload(workload)),
    }) = Address::decode(resource.encoded.clone())
    else {
        return (None, Box::default());
    };
    let node = Some(workload.node)
        .filter(|node| !node.is_empty())
        .map(Arc::from);
    (node, workload.services.into_keys().map(Arc::from).collect())
}

/// The services and workloads that a waypoint's resource names.
fn named(resource: &Resource) -> Box<[Arc<str>]> {
    let Ok(resource) = api::waypoint::Resource::decode(resource.encoded.clone()) else {
        return Box::default();
    };
    let mut services = BTreeSet::new();
    mesh::ties(&resource, |tie| {
        services.extend(tie.address());
    });
    services.into_iter().map(Arc::from).collect()
}

fn content_hash(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut text = String::with_capacity(16);
    for byte in &digest.as_ref()[..8] {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The writing end: owned by whoever owns the world.
pub struct Publisher {
    next: Catalog,
    /// Which gateways' resources name which services.
    named: Named,
    /// Gateways that a change since the last publication is of concern to.
    touched: BTreeSet<Arc<str>>,
    shared: Arc<Shared>,
}

/// The reading end: one per stream.
#[derive(Clone)]
pub struct Reader(Arc<Shared>);

struct Shared {
    current: ArcSwap<Catalog>,
    rounds: watch::Sender<u64>,
    watches: Watches,
}

impl Publisher {
    /// Nothing is served yet.
    pub fn new() -> (Self, Reader) {
        let shared = Arc::new(Shared {
            current: ArcSwap::default(),
            rounds: watch::Sender::new(0),
            watches: Watches::default(),
        });
        let publisher = Self {
            next: Catalog::default(),
            named: Named::default(),
            touched: BTreeSet::new(),
            shared: shared.clone(),
        };
        (publisher, Reader(shared))
    }

    /// Takes over what changed in the world, without publishing it.
    pub fn take(&mut self, world: &World, changed: &Changed) {
        for name in &changed.addresses {
            self.set(Type::Address, name, world.address(name));
        }
        for name in &changed.authorizations {
            self.set(Type::Authorization, name, world.authorization(name));
        }
        for name in &changed.resources {
            self.set(Type::Waypoint, name, world.waypoint_resource(name));
        }
    }

    /// Sets or (with `None`) removes one resource, without publishing it.
    pub fn set(&mut self, r#type: Type, name: &Arc<str>, resource: Option<&Resource>) {
        let known = self.next.of(r#type).get(name).cloned();
        match resource {
            None if known.is_none() => return,
            None => self.next.remove(r#type, name),
            // An equal entry in a new place would make every stream compare it.
            Some(new) if known.as_ref().is_some_and(|it| it.encoded == new.encoded) => return,
            Some(new) => self.next.insert(r#type, entry(new, r#type)),
        }
        let now = self.next.of(r#type).get(name);
        self.note(r#type, [known.as_ref(), now].map(Option::<&_>::cloned));
    }

    /// Notes whom a change of an entry, from what it was to what it is, may be of concern to.
    fn note(&mut self, r#type: Type, [before, after]: [Option<Arc<Entry>>; 2]) {
        match r#type {
            Type::Authorization => {}
            Type::Waypoint => {
                let gateway = self.named.count(before.as_deref(), after.as_deref());
                self.touched.extend(gateway);
            }
            Type::Address => {
                for entry in [before, after].iter().flatten() {
                    self.named.care_about(entry, &mut self.touched);
                    self.shared.watches.care_about(entry, &mut self.touched);
                }
            }
        }
    }

    /// How many services were taken over.
    pub fn services(&self) -> usize {
        self.next.services()
    }

    /// Makes what was taken over the current catalog and wakes every stream.
    pub fn publish(&mut self) {
        self.next.round += 1;
        self.next.version = self.next.round.to_string();
        self.next.since = Instant::now();
        self.shared.current.store(Arc::new(self.next.clone()));
        self.shared.rounds.send_replace(self.next.round);
        let touched = std::mem::take(&mut self.touched);
        self.shared.watches.wake(&touched, self.next.round);
    }
}

impl Reader {
    /// The current catalog.
    pub fn load(&self) -> Arc<Catalog> {
        self.0.current.load_full()
    }

    /// Moves with every publication.
    pub fn rounds(&self) -> watch::Receiver<u64> {
        self.0.rounds.subscribe()
    }

    /// Moves with the publications that are of concern to a gateway's proxy.
    pub fn watch(&self, gateway: &Arc<str>) -> Watch {
        Watch::new(self.0.clone(), gateway.clone())
    }
}

/// Names and versions, by type URL: what `/debug/catalogz` shows.
impl Serialize for Catalog {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut all = Type::ALL;
        all.sort_unstable_by_key(|r#type| r#type.url());
        out.collect_map(
            all.into_iter()
                .map(|r#type| (r#type.url(), Versions(self.of(r#type)))),
        )
    }
}

/// Of one type.
struct Versions<'a>(&'a OrdMap<Arc<str>, Arc<Entry>>);

impl Serialize for Versions<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_map(
            self.0
                .iter()
                .map(|(name, entry)| (&**name, &*entry.version)),
        )
    }
}

#[cfg(test)]
mod tests;
