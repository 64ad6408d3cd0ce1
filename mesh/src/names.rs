//! The names by which the mesh knows things, and the table that stores each text once.
//!
//! A mesh of 100,000 workloads repeats few texts (namespaces, nodes, accounts, zones) very often.
//! [`Interner`] keeps one allocation per distinct text or small list; everything parsed shares it.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::parse::BriefGateway;
use crate::service::Port;
use crate::workload::brief::{BriefLocality, Common};
use crate::workload::{GatewayAddress, Locality, Template};

/// A network: addresses are unique inside one. The empty name is the default network.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(Arc<str>);

impl Network {
    /// The network of that name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// Its name; empty for the default network.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn as_arc(&self) -> &Arc<str> {
        &self.0
    }

    /// Whether it is the very same text, in the same place.
    pub(crate) fn same_text(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Default for Network {
    fn default() -> Self {
        Self(Arc::from(""))
    }
}

impl Borrow<str> for Network {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The key of a service: `namespace/host`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHost {
    /// Namespace of the object that made the service.
    pub namespace: Arc<str>,
    /// Fully qualified host name, as the control plane spells it.
    pub host: Arc<str>,
}

impl NamespacedHost {
    /// The key made of its two halves.
    pub fn new(namespace: impl Into<Arc<str>>, host: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            host: host.into(),
        }
    }

    /// Splits `namespace/host` at the first slash; neither half may be empty.
    pub fn split(text: &str) -> Option<(&str, &str)> {
        text.split_once('/')
            .filter(|(namespace, host)| !namespace.is_empty() && !host.is_empty())
    }
}

impl fmt::Display for NamespacedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.host)
    }
}

impl fmt::Debug for NamespacedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name by which an address is asked for on demand.
pub fn address_name(network: &Network, ip: IpAddr) -> String {
    format!("{network}/{}", ip.to_canonical())
}

/// The name by which a host is asked for on demand where nobody knows its namespace: the services of that host in any of them.
pub fn host_name(host: &str) -> String {
    format!("{ANY_NAMESPACE}/{}", host.to_ascii_lowercase())
}

/// In place of a namespace: any. None is called so.
pub const ANY_NAMESPACE: &str = "*";

/// `network/ip`, taken apart.
pub fn split_address(name: &str) -> Option<(&str, IpAddr)> {
    let (network, ip) = name.rsplit_once('/')?;
    Some((network, ip.parse().ok()?))
}

/// `network/ip/length`, taken apart.
pub fn split_range(name: &str) -> Option<(&str, IpNet)> {
    let (address, _) = name.rsplit_once('/')?;
    let (network, _) = address.rsplit_once('/')?;
    Some((network, name[network.len() + 1..].parse().ok()?))
}

/// One allocation per distinct text or list, shared by everything that was parsed with it.
///
/// Entries nobody uses any more are dropped when the tables have doubled since the last sweep, so
/// a mesh that churns does not grow, and the cost per insertion stays constant on average.
#[derive(Debug, Default)]
pub struct Interner {
    texts: Table<str>,
    ports: Table<[Port]>,
    localities: Shared<Locality>,
    gateways: Shared<GatewayAddress>,
    templates: Shared<Template>,
}

impl Interner {
    /// The shared copy of `text`.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        self.texts.intern(text, |text| Arc::from(text))
    }

    /// The network of that name.
    pub fn network(&mut self, name: &str) -> Network {
        Network(self.text(name))
    }

    /// The shared copy of a locality.
    pub(crate) fn locality(&mut self, brief: BriefLocality<'_>) -> Arc<Locality> {
        let is = |held: &Locality| {
            *held.zone == *brief.zone
                && *held.region == *brief.region
                && *held.subzone == *brief.subzone
        };
        if let Some(same) = self.localities.last(is) {
            return same;
        }
        let hash = self.localities.hash(brief);
        if let Some(found) = self.localities.find(hash, is) {
            return found;
        }
        let kept = Locality {
            region: self.text(brief.region),
            zone: self.text(brief.zone),
            subzone: self.text(brief.subzone),
        };
        self.localities.keep(hash, kept)
    }

    /// The shared copy of a list of ports.
    pub fn ports(&mut self, ports: &[Port]) -> Arc<[Port]> {
        self.ports.intern(ports, |ports| Arc::from(ports))
    }

    /// The shared copy of a gateway's address.
    pub(crate) fn gateway(&mut self, brief: &BriefGateway<'_>) -> Arc<GatewayAddress> {
        let hash = self.gateways.hash(brief);
        if let Some(found) = self.gateways.find(hash, |held| brief.is(held)) {
            return found;
        }
        let kept = brief.keep(self);
        self.gateways.keep(hash, kept)
    }

    /// The shared copy of what replicas have in common.
    pub(crate) fn template(&mut self, brief: &Common<'_>) -> Arc<Template> {
        if let Some(same) = self.templates.last(|held| brief.is(held)) {
            return same;
        }
        let hash = self.templates.hash(brief);
        if let Some(found) = self.templates.find(hash, |held| brief.is(held)) {
            return found;
        }
        let kept = Template::keep(brief, self);
        self.templates.keep(hash, kept)
    }
}

/// The same for values that are found by what says the same in brief, before they are made.
#[derive(Debug)]
struct Shared<T> {
    /// By hash of the brief. Of two that have the same hash one is kept; the other is not shared.
    entries: HashMap<u64, Arc<T>>,
    /// What was found last: replicas often follow one another, and to hash costs more than to compare.
    last: Option<Arc<T>>,
    hasher: RandomState,
    sweep_at: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            last: None,
            hasher: RandomState::new(),
            sweep_at: SMALLEST_SWEEP,
        }
    }
}

impl<T> Shared<T> {
    fn hash(&self, brief: impl Hash) -> u64 {
        self.hasher.hash_one(brief)
    }

    fn last(&self, is: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        self.last.clone().filter(|last| is(last))
    }

    fn find(&mut self, hash: u64, is: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        let found = self.entries.get(&hash).filter(|found| is(found))?;
        self.last = Some(found.clone());
        self.last.clone()
    }

    fn keep(&mut self, hash: u64, value: T) -> Arc<T> {
        if self.entries.len() >= self.sweep_at {
            self.entries.retain(|_, entry| Arc::strong_count(entry) > 1);
            self.sweep_at = SMALLEST_SWEEP.max(self.entries.len() * 2);
        }
        let value = Arc::new(value);
        self.last = Some(value.clone());
        self.entries.insert(hash, value.clone());
        value
    }
}

#[derive(Debug)]
struct Table<T: ?Sized> {
    entries: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Table<T> {
    fn default() -> Self {
        Self {
            entries: HashSet::new(),
            sweep_at: SMALLEST_SWEEP,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Table<T> {
    fn intern(&mut self, wanted: &T, store: impl FnOnce(&T) -> Arc<T>) -> Arc<T> {
        if let Some(found) = self.entries.get(wanted) {
            return found.clone();
        }
        if self.entries.len() >= self.sweep_at {
            self.entries.retain(|entry| Arc::strong_count(entry) > 1);
            self.sweep_at = SMALLEST_SWEEP.max(self.entries.len() * 2);
        }
        let stored = store(wanted);
        self.entries.insert(stored.clone());
        stored
    }
}

const SMALLEST_SWEEP: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_one_allocation() {
        let mut names = Interner::default();
        assert!(Arc::ptr_eq(&names.text("default"), &names.text("default")));
    }

    #[test]
    fn texts_nobody_uses_are_swept() {
        let mut names = Interner::default();
        let kept = names.text("kept");
        for n in 0..SMALLEST_SWEEP * 4 {
            names.text(&format!("churn-{n}"));
        }
        assert!(names.texts.entries.len() <= SMALLEST_SWEEP + 1);
        assert!(Arc::ptr_eq(&kept, &names.text("kept")));
    }

    #[test]
    fn a_host_key_needs_both_halves() {
        assert_eq!(NamespacedHost::split("a/b.c"), Some(("a", "b.c")));
        for bad in ["", "a", "/b", "a/"] {
            assert_eq!(NamespacedHost::split(bad), None, "{bad}");
        }
    }
}
