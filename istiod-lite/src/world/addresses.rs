//! Automatic addresses of ServiceEntry hosts: 240.240.0.0/16 and 2001:2::/48, one of each a host.
//!
//! They are given in ascending order and kept: a client that looked a name up must not reach
//! another service at the address it got. So a host that goes keeps its place, for itself should it
//! come back, until every other place was given once; and the table is written down by whoever runs
//! the world ([`Addresses::save`], [`Addresses::load`]).

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::k8s::objects::ObjectKey;

/// A host of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Holder {
    pub(super) namespace: String,
    pub(super) host: String,
}

/// Which place belongs to whom.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    places: HashMap<Holder, u16>,
    holders: BTreeMap<u16, Holder>,
    /// The ServiceEntry that has the host now. A place whose holder is not here was abandoned.
    owners: HashMap<Holder, ObjectKey>,
    owned: HashMap<ObjectKey, Vec<Holder>>,
    /// The place given last.
    last: u16,
    /// How often a place was given to somebody else than before.
    given: u64,
}

/// The network and the broadcast address stay free.
const FIRST: u16 = 1;
const LAST: u16 = u16::MAX - 1;

impl Addresses {
    /// The addresses of a host for the ServiceEntry that has it, new ones if it has none; `wished`
    /// is tried first. None if hosts that are there hold every place.
    pub(super) fn take(
        &mut self,
        holder: Holder,
        owner: &ObjectKey,
        wished: &[IpAddr],
    ) -> Option<[IpAddr; 2]> {
        let place = match self.places.get(&holder) {
            Some(place) => *place,
            None => self.free(wished)?,
        };
        self.give(place, holder.clone());
        self.owned
            .entry(owner.clone())
            .or_default()
            .push(holder.clone());
        self.owners.insert(holder, owner.clone());
        Some(addresses(place))
    }

    /// A ServiceEntry lets go of all its hosts, except those that another has taken since.
    pub(super) fn release(&mut self, owner: &ObjectKey) {
        for holder in self.owned.remove(owner).into_iter().flatten() {
            if self.owners.get(&holder) == Some(owner) {
                self.owners.remove(&holder);
            }
        }
    }

    fn free(&mut self, wished: &[IpAddr]) -> Option<u16> {
        let is_free =
            |place: &u16| (FIRST..=LAST).contains(place) && !self.holders.contains_key(place);
        if let Some(place) = wished
            .iter()
            .filter_map(|address| place(*address))
            .find(is_free)
        {
            return Some(place);
        }
        let next = (self.last.saturating_add(1).max(FIRST)..=LAST).find(is_free);
        let abandoned = || {
            self.holders
                .iter()
                .find(|(_, holder)| !self.owners.contains_key(*holder))
                .map(|(place, _)| *place)
        };
        let place = next
            .or_else(|| (FIRST..=LAST).find(is_free))
            .or_else(abandoned)?;
        self.last = place;
        Some(place)
    }

    fn give(&mut self, place: u16, holder: Holder) {
        if self.holders.get(&place) == Some(&holder) {
            return;
        }
        self.given += 1;
        if let Some(before) = self.holders.insert(place, holder.clone()) {
            self.places.remove(&before);
        }
        self.places.insert(holder, place);
    }

    /// Moves whenever the table is another.
    pub(super) fn given(&self) -> u64 {
        self.given
    }

    /// The table as text: a line a place.
    pub(super) fn save(&self) -> String {
        let mut text = String::new();
        for (place, holder) in &self.holders {
            let [v4, v6] = addresses(*place);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{v4} {v6} {} {}", holder.namespace, holder.host);
        }
        text
    }

    /// Takes over a saved table. Returns the lines that make no sense.
    pub(super) fn load(&mut self, text: &str) -> Vec<String> {
        let mut refused = Vec::new();
        for line in text.lines() {
            match read(line) {
                Some((place, holder))
                    if !self.holders.contains_key(&place) && !self.places.contains_key(&holder) =>
                {
                    self.last = self.last.max(place);
                    self.give(place, holder);
                }
                _ => refused.push(line.to_owned()),
            }
        }
        refused
    }
}

fn read(line: &str) -> Option<(u16, Holder)> {
    let mut words = line.split(' ');
    let (v4, v6): (IpAddr, IpAddr) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let holder = Holder {
        namespace: words.next()?.to_owned(),
        host: words.next()?.to_owned(),
    };
    let place = place(v4)
        .filter(|place| (FIRST..=LAST).contains(place) && addresses(*place) == [v4, v6])?;
    words.next().is_none().then_some((place, holder))
}

fn addresses(place: u16) -> [IpAddr; 2] {
    let [high, low] = place.to_be_bytes();
    [
        Ipv4Addr::new(240, 240, high, low).into(),
        Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, place).into(),
    ]
}

fn place(address: IpAddr) -> Option<u16> {
    let place = match address {
        IpAddr::V4(address) => u16::from_be_bytes([address.octets()[2], address.octets()[3]]),
        IpAddr::V6(address) => address.segments()[7],
    };
    addresses(place).contains(&address).then_some(place)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use api::k8s::objects::{Kind, ObjectKey};
    use proptest::prelude::*;

    use super::{Addresses, Holder, LAST};

    fn owner(name: &str) -> ObjectKey {
        ObjectKey::new(Kind::ServiceEntry, "alpha", name)
    }

    /// Host `name` of the entry `name`.
    fn take(addresses: &mut Addresses, name: &str, wished: &[IpAddr]) -> Option<String> {
        let holder = Holder {
            namespace: "alpha".into(),
            host: name.into(),
        };
        addresses
            .take(holder, &owner(name), wished)
            .map(|[v4, _]| v4.to_string())
    }

    fn v4(addresses: &mut Addresses, name: &str) -> String {
        take(addresses, name, &[]).expect("room")
    }

    #[test]
    fn places_are_given_in_order_and_kept_for_who_comes_back() {
        let mut addresses = Addresses::default();
        assert_eq!(
            ["a", "b", "a"].map(|name| v4(&mut addresses, name)),
            ["240.240.0.1", "240.240.0.2", "240.240.0.1"]
        );
        addresses.release(&owner("a"));
        assert_eq!(
            ["c", "a"].map(|name| v4(&mut addresses, name)),
            ["240.240.0.3", "240.240.0.1"]
        );
    }

    #[test]
    fn a_wish_is_granted_where_the_place_is_free() {
        let mut addresses = Addresses::default();
        let wish: Vec<IpAddr> = ["10.0.0.1", "2001:2::7", "240.240.0.9"]
            .map(|ip| ip.parse().expect("an address"))
            .into();
        let given = ["a", "b", "c"].map(|name| take(&mut addresses, name, &wish).expect("room"));
        assert_eq!(given, ["240.240.0.7", "240.240.0.9", "240.240.0.1"]);
    }

    #[test]
    fn when_all_are_given_only_the_abandoned_are_given_again() {
        let mut addresses = Addresses::default();
        for number in 1..=LAST {
            v4(&mut addresses, &number.to_string());
        }
        assert_eq!(take(&mut addresses, "late", &[]), None);
        addresses.release(&owner("300"));
        assert_eq!(v4(&mut addresses, "late"), "240.240.1.44");
        assert_eq!(take(&mut addresses, "300", &[]), None);
    }

    #[test]
    fn a_host_that_moved_to_another_entry_is_not_abandoned_when_the_first_lets_go() {
        let mut addresses = Addresses::default();
        let holder = Holder {
            namespace: "alpha".into(),
            host: "h".into(),
        };
        let first = addresses.take(holder.clone(), &owner("a"), &[]);
        assert_eq!(addresses.take(holder.clone(), &owner("b"), &[]), first);
        addresses.release(&owner("a"));
        for number in 2..=LAST {
            v4(&mut addresses, &number.to_string());
        }
        assert_eq!(take(&mut addresses, "late", &[]), None);
    }

    #[test]
    fn lines_that_make_no_sense_are_returned() {
        let mut addresses = Addresses::default();
        let refused = addresses.load("240.240.0.5 2001:2::5 alpha a\n240.240.0.6 2001:2::7 alpha b\n240.240.0.5 2001:2::5 alpha c\nnonsense\n240.240.0.0 2001:2:: alpha d\n");
        assert_eq!(refused.len(), 4);
        assert_eq!(
            ["a", "e"].map(|name| v4(&mut addresses, name)),
            ["240.240.0.5", "240.240.0.6"]
        );
    }

    proptest! {
        #[test]
        fn a_saved_table_is_loaded_as_it_was(names in proptest::collection::vec("[a-z.*]{1,3}", 0..30)) {
            let mut before = Addresses::default();
            for name in &names {
                v4(&mut before, name);
            }
            let mut after = Addresses::default();
            prop_assert_eq!(after.load(&before.save()), Vec::<String>::new());
            for name in &names {
                prop_assert_eq!(v4(&mut after, name), v4(&mut before, name));
            }
            prop_assert_eq!(after.save(), before.save());
        }
    }
}
