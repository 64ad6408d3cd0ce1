//! Who keeps which address, over changes, restarts and conflicts.

use api::k8s::objects::Kind;
use proptest::prelude::*;

use super::*;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::ServiceEntry, "alpha", name)
}

fn entry(age: i64, hosts: &[&str]) -> Entry {
    Entry {
        created: Timestamp::from_second(1000 - age).ok(),
        wanting: Some(hosts.iter().map(ToString::to_string).collect()),
        ..Entry::default()
    }
}

fn listing(mut entry: Entry, given: &[(&str, &str)]) -> Entry {
    entry.given = given
        .iter()
        .map(|(host, value)| Given {
            host: (*host).to_owned(),
            value: (*value).to_owned(),
        })
        .collect();
    entry
}

/// `host=address` of what the status of an entry comes to list.
fn held(table: &Table, name: &str) -> Vec<String> {
    let entry = &table.entries[&key(name)];
    let given = table
        .due(&key(name))
        .map_or_else(|| entry.given.clone(), |(_, given)| given);
    given
        .iter()
        .map(|it| format!("{}={}", it.host, it.value))
        .collect()
}

#[test]
fn hosts_get_one_address_of_each_family_the_older_entry_first() {
    let mut table = Table::default();
    table.is(vec![
        (key("a"), entry(1, &["late"])),
        (key("b"), entry(2, &["x", "y"])),
        (key("c"), entry(3, &[])),
    ]);
    assert_eq!(
        held(&table, "b"),
        [
            "x=240.240.0.1",
            "x=2001:2::1",
            "y=240.240.0.2",
            "y=2001:2::2"
        ]
    );
    assert_eq!(held(&table, "a"), ["late=240.240.0.3", "late=2001:2::3"]);
    assert_eq!(table.due(&key("c")), None);
}

#[test]
fn whoever_leads_next_finds_what_was_given_and_nothing_is_written_again() {
    let old = listing(
        entry(5, &["x"]),
        &[("x", "240.240.0.9"), ("x", "2001:2::77")],
    );
    let mut table = Table::default();
    table.is(vec![(key("new"), entry(9, &["n"])), (key("old"), old)]);
    assert_eq!(table.due(&key("old")), None);
    assert_eq!(held(&table, "new"), ["n=240.240.0.10", "n=2001:2::78"]);
}

#[test]
fn of_two_entries_that_list_the_same_address_the_older_keeps_it() {
    let listed = [("x", "240.240.0.1"), ("x", "2001:2::1")];
    let younger = [("y", "240.240.0.1"), ("y", "2001:2::5")];
    let mut table = Table::default();
    table.is(vec![
        (key("a"), listing(entry(1, &["y"]), &younger)),
        (key("b"), listing(entry(2, &["x"]), &listed)),
    ]);
    assert_eq!(table.due(&key("b")), None);
    assert_eq!(held(&table, "a"), ["y=240.240.0.2", "y=2001:2::5"]);
}

#[test]
fn an_address_that_somebody_chose_himself_is_his() {
    let mut chosen = entry(1, &[]);
    chosen.taken = vec!["240.240.0.1".parse().unwrap()];
    let mut table = Table::default();
    table.set(key("mine"), chosen.clone());
    table.set(key("a"), entry(2, &["x"]));
    assert_eq!(held(&table, "a"), ["x=240.240.0.2", "x=2001:2::1"]);
    table.gone(&key("mine"));
    assert!(table.taken.is_empty());
}

#[test]
fn whoever_was_given_what_somebody_chooses_then_gets_another_at_once() {
    let mut table = Table::default();
    table.set(key("a"), entry(2, &["x"]));
    table.set(key("b"), entry(1, &["x"]));
    table.set(key("c"), entry(1, &["y"]));
    let mut chosen = entry(1, &[]);
    chosen.taken = vec!["240.240.0.1".parse().unwrap()];
    let changed = table.set(key("mine"), chosen);
    assert_eq!(changed, [key("mine"), key("a"), key("b")]);
    for name in ["a", "b"] {
        assert_eq!(held(&table, name), ["x=240.240.0.3", "x=2001:2::1"]);
    }
    assert_eq!(held(&table, "c"), ["y=240.240.0.2", "y=2001:2::2"]);
}

#[test]
fn what_became_free_is_given_again_last() {
    let mut table = Table::default();
    table.set(key("a"), entry(1, &["x"]));
    table.gone(&key("a"));
    table.set(key("b"), entry(1, &["y"]));
    assert_eq!(held(&table, "b")[0], "y=240.240.0.2");
    for number in 3..=LAST {
        table.set(
            key(&format!("n{number}")),
            entry(1, &[&format!("h{number}")]),
        );
    }
    table.set(key("last"), entry(1, &["z"]));
    assert_eq!(held(&table, "last")[0], "z=240.240.0.1");
    table.set(key("without"), entry(1, &["w"]));
    assert!(held(&table, "without").is_empty() && table.take_exhausted());
}

#[test]
fn entries_of_a_namespace_with_the_same_host_share_and_inherit_its_addresses() {
    let mut table = Table::default();
    table.set(key("a"), entry(1, &["x"]));
    table.set(key("b"), entry(2, &["x"]));
    let shared = held(&table, "a");
    assert_eq!(held(&table, "b"), shared);
    table.gone(&key("a"));
    table.set(key("c"), entry(3, &["y"]));
    assert_eq!(held(&table, "b"), shared);
    assert_ne!(held(&table, "c")[0], "y=240.240.0.1");
}

#[test]
fn an_entry_that_declines_loses_its_addresses_and_one_that_is_refused_keeps_them() {
    let listed = [("x", "240.240.0.1"), ("x", "2001:2::1")];
    let mut table = Table::default();
    table.set(key("a"), listing(entry(1, &["x"]), &listed));
    let refused = Entry {
        wanting: None,
        ..listing(entry(1, &[]), &listed)
    };
    table.set(key("a"), refused);
    assert_eq!(table.due(&key("a")), None);
    table.set(key("b"), entry(1, &["y"]));
    assert_eq!(held(&table, "b")[0], "y=240.240.0.2");
    table.set(key("a"), listing(entry(1, &[]), &listed));
    assert_eq!(table.due(&key("a")).unwrap().1, []);
}

#[derive(Debug, Clone)]
enum Act {
    Set(u8, Vec<u8>),
    Gone(u8),
    /// The entry's status is written and heard of.
    Write(u8),
    /// Another leads, and reads everything anew.
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0_u8..5, proptest::collection::vec(0_u8..6, 0..3)).prop_map(|(name, hosts)| Act::Set(name, hosts)),
        1 => (0_u8..5).prop_map(Act::Gone),
        4 => (0_u8..5).prop_map(Act::Write),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    /// Whatever happens in which order: in the end every host has its own addresses, and what was
    /// written is never written differently while its host is wanted.
    #[test]
    fn no_two_hosts_ever_share_an_address(acts in proptest::collection::vec(act(), 1..60)) {
        let mut table = Table::default();
        let mut objects: BTreeMap<ObjectKey, Entry> = BTreeMap::new();
        let write = |table: &mut Table, objects: &mut BTreeMap<ObjectKey, Entry>, key: &ObjectKey| {
            if let Some((_, given)) = table.due(key) && let Some(entry) = objects.get_mut(key) {
                entry.given = given;
                table.set(key.clone(), entry.clone());
            }
        };
        for act in acts {
            match act {
                Act::Set(name, hosts) => {
                    let key = key(&name.to_string());
                    let mut hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
                    hosts.dedup();
                    let entry = objects.entry(key.clone()).or_insert_with(|| entry(i64::from(name), &[]));
                    entry.wanting = Some(hosts);
                    table.set(key, entry.clone());
                }
                Act::Gone(name) => {
                    objects.remove(&key(&name.to_string()));
                    table.gone(&key(&name.to_string()));
                }
                Act::Write(name) => write(&mut table, &mut objects, &key(&name.to_string())),
                Act::Restart => {
                    table = Table::default();
                    table.is(objects.clone().into_iter().collect());
                }
            }
        }
        let keys: Vec<_> = objects.keys().cloned().collect();
        for key in &keys {
            write(&mut table, &mut objects, key);
        }
        let mut owners: HashMap<String, String> = HashMap::new();
        for (key, entry) in &objects {
            prop_assert_eq!(table.due(key), None);
            for host in entry.wanting.iter().flatten() {
                let own: Vec<_> = entry.given.iter().filter(|it| it.host == *host).collect();
                prop_assert!(own.len() >= 2);
                for given in own {
                    let owner = owners.entry(given.value.clone()).or_insert_with(|| host.clone());
                    prop_assert_eq!(&*owner, host);
                }
            }
        }
    }
}
