//! Pure: which host has which automatic addresses.
//!
//! What an entry's status lists is its own, and the older entry's where two list the same. What is
//! missing is given in ascending order, behind the last one that was given: an address that
//! became free may still be in somebody's DNS cache, so it comes last. Entries of a namespace with
//! the same host share its addresses: when one goes, the other has them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::k8s::objects::ObjectKey;
use k8s_openapi::jiff::Timestamp;

/// One automatic address, as it stands in a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) host: String,
    pub(super) value: String,
}

/// What matters of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Entry {
    pub(super) created: Option<Timestamp>,
    /// `metadata.resourceVersion`.
    pub(super) version: String,
    /// The hosts that should have addresses; none when the entry is refused.
    pub(super) wanting: Option<Vec<String>>,
    /// What its status lists.
    pub(super) given: Vec<Given>,
    /// What its spec lists: whoever chose an address of our ranges himself has it.
    pub(super) taken: Vec<IpAddr>,
}

/// All entries, and who has what.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: BTreeMap<ObjectKey, Entry>,
    /// By namespace and host.
    holders: HashMap<Holder, [Option<IpAddr>; 2]>,
    used: HashMap<IpAddr, Holder>,
    /// How many entries took an address by themselves.
    taken: HashMap<IpAddr, usize>,
    /// The places given last, of each family.
    last: [u16; 2],
    exhausted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Holder {
    namespace: String,
    host: String,
}

impl Holder {
    fn new(key: &ObjectKey, host: &str) -> Self {
        Self {
            namespace: key.namespace.to_string(),
            host: host.to_owned(),
        }
    }
}

impl Table {
    /// These are all entries there are. Says whose status may have to change.
    pub(super) fn is(&mut self, all: Vec<(ObjectKey, Entry)>) -> Vec<ObjectKey> {
        let mut all: Vec<_> = all.into_iter().collect();
        let keys: BTreeSet<_> = all.iter().map(|(key, _)| key.clone()).collect();
        let gone: Vec<_> = self
            .entries
            .keys()
            .filter(|key| !keys.contains(key))
            .cloned()
            .collect();
        let mut changed: BTreeSet<_> = gone.iter().flat_map(|key| self.gone(key)).collect();
        all.sort_by(|(a, one), (b, other)| (one.created, a).cmp(&(other.created, b)));
        // First what everybody has, then what somebody lacks: who has none must not get another's.
        for (key, entry) in &all {
            self.replace(key, entry.clone());
        }
        for (key, _) in all {
            self.fill(&key);
            changed.insert(key);
        }
        changed.into_iter().collect()
    }

    /// One entry is so now. Says whose status may have to change: who was given what it has chosen itself gets another.
    pub(super) fn set(&mut self, key: ObjectKey, entry: Entry) -> Vec<ObjectKey> {
        let chosen = entry.taken.iter();
        let robbed: BTreeSet<Holder> = chosen.filter_map(|it| self.used.get(it).cloned()).collect();
        let before = self.replace(&key, entry);
        self.release(&key, before);
        self.fill(&key);
        let mut changed = vec![key];
        for other in self.wanting(&robbed) {
            self.fill(&other);
            changed.push(other);
        }
        changed
    }

    /// The entries that want addresses for one of these hosts.
    fn wanting(&self, holders: &BTreeSet<Holder>) -> Vec<ObjectKey> {
        if holders.is_empty() {
            return Vec::new();
        }
        let wants = |(key, entry): &(&ObjectKey, &Entry)| {
            let mut hosts = entry.wanting.iter().flatten();
            hosts.any(|host| holders.contains(&Holder::new(key, host)))
        };
        let all = self.entries.iter().filter(wants);
        all.map(|(key, _)| key.clone()).collect()
    }

    /// One entry is gone.
    pub(super) fn gone(&mut self, key: &ObjectKey) -> Vec<ObjectKey> {
        if let Some(before) = self.entries.remove(key) {
            self.untake(&before);
            self.release(key, Some(before));
        }
        Vec::new()
    }

    /// What an entry's status should list, with the version it must still have; none if it does.
    pub(super) fn due(&self, key: &ObjectKey) -> Option<(String, Vec<Given>)> {
        let entry = self.entries.get(key)?;
        let mut wanted = Vec::new();
        for host in entry.wanting.as_ref()? {
            let held = self.holders.get(&Holder::new(key, host));
            let held = held.into_iter().flatten().flatten();
            wanted.extend(held.map(|value| Given {
                host: host.clone(),
                value: value.to_string(),
            }));
        }
        (wanted != entry.given).then(|| (entry.version.clone(), wanted))
    }

    /// Whether somebody went without since this was asked last.
    pub(super) fn take_exhausted(&mut self) -> bool {
        std::mem::take(&mut self.exhausted)
    }

    /// Takes an entry in, with what its status lists and nobody else has.
    fn replace(&mut self, key: &ObjectKey, entry: Entry) -> Option<Entry> {
        let before = self.entries.remove(key);
        if let Some(before) = &before {
            self.untake(before);
        }
        for address in &entry.taken {
            *self.taken.entry(*address).or_default() += 1;
        }
        for given in &entry.given {
            let refused = entry.wanting.is_none();
            let wanted = entry
                .wanting
                .iter()
                .flatten()
                .any(|host| *host == given.host);
            if let Ok(address) = given.value.parse()
                && (wanted || refused)
            {
                self.keep(Holder::new(key, &given.host), address);
            }
        }
        self.entries.insert(key.clone(), entry);
        before
    }

    fn untake(&mut self, entry: &Entry) {
        for address in &entry.taken {
            if let Some(count) = self.taken.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.taken.remove(address);
                }
            }
        }
    }

    /// An address that was given earlier goes on to be its holder's, unless it is another's.
    fn keep(&mut self, holder: Holder, address: IpAddr) {
        let Some((family, place)) = place(address) else {
            return;
        };
        if self.used.contains_key(&address) || self.taken.contains_key(&address) {
            return;
        }
        let held = &mut self.holders.entry(holder.clone()).or_default()[family];
        if held.is_none() {
            *held = Some(address);
            self.used.insert(address, holder);
            self.last[family] = self.last[family].max(place.unwrap_or_default());
        }
    }

    /// Hosts that an entry wanted and no other entry wants are nobody's.
    fn release(&mut self, key: &ObjectKey, before: Option<Entry>) {
        for host in before.into_iter().flat_map(|before| before.hosts()) {
            let holder = Holder::new(key, &host);
            let wanted = self.entries.iter().any(|(other, entry)| {
                other.namespace == key.namespace && entry.hosts().contains(&host)
            });
            if !wanted {
                let held = self.holders.remove(&holder).into_iter().flatten().flatten();
                held.for_each(|address| drop(self.used.remove(&address)));
            }
        }
    }

    /// Gives an entry's hosts what they lack.
    fn fill(&mut self, key: &ObjectKey) {
        let wanting = self
            .entries
            .get(key)
            .and_then(|entry| entry.wanting.clone());
        for host in wanting.unwrap_or_default() {
            let holder = Holder::new(key, &host);
            for family in FAMILIES {
                let held = self.holders.get(&holder).copied().unwrap_or_default()[family];
                // One that somebody chose by himself after it was given is his.
                if held.is_some_and(|it| !self.taken.contains_key(&it)) {
                    continue;
                }
                if let Some(held) = held {
                    self.used.remove(&held);
                }
                let fresh = self.free(family);
                self.exhausted |= fresh.is_none();
                self.holders.entry(holder.clone()).or_default()[family] = fresh;
                if let Some(address) = fresh {
                    self.used.insert(address, holder.clone());
                }
            }
        }
    }

    fn free(&mut self, family: usize) -> Option<IpAddr> {
        let is_free = |place: &u16| {
            let address = address(family, *place);
            !self.used.contains_key(&address) && !self.taken.contains_key(&address)
        };
        let behind = self.last[family].saturating_add(1).max(FIRST);
        let place = (behind..=LAST).find(is_free);
        let place = place.or_else(|| (FIRST..=LAST).find(is_free))?;
        self.last[family] = place;
        Some(address(family, place))
    }
}

impl Entry {
    /// The hosts it has a say in: those it wants addresses for, or, refused, those it has.
    fn hosts(&self) -> BTreeSet<String> {
        match &self.wanting {
            Some(hosts) => hosts.iter().cloned().collect(),
            None => self.given.iter().map(|given| given.host.clone()).collect(),
        }
    }
}

const FAMILIES: [usize; 2] = [0, 1];
/// The network and the broadcast address stay free.
const FIRST: u16 = 1;
const LAST: u16 = u16::MAX - 1;

/// 240.240.0.0/16 and 2001:2::/48, Istio's.
fn address(family: usize, place: u16) -> IpAddr {
    let [high, low] = place.to_be_bytes();
    match family {
        0 => Ipv4Addr::new(240, 240, high, low).into(),
        _ => Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, place).into(),
    }
}

/// The family of one of our addresses; and its place, if it is one that we give. (Of the other
/// range we give a part, but keep what is there.)
fn place(address: IpAddr) -> Option<(usize, Option<u16>)> {
    match address {
        IpAddr::V4(v4) => match v4.octets() {
            [240, 240, high, low] => Some((0, Some(u16::from_be_bytes([high, low])))),
            _ => None,
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0x2001, 2, 0, 0, 0, 0, 0, place] => Some((1, Some(place))),
            [0x2001, 2, 0, ..] => Some((1, None)),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests;
