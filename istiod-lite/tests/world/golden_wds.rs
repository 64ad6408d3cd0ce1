//! What the real control plane made of our objects, we make of them too, in whatever order they
//! come; where we mean to differ, `testdata/DEVIATIONS.md` says why.

use api::k8s::dir::Change;
use istiod_lite::world::World;

use crate::scenario::{Scenario, all, assert_same, base, resources, undo, world};

#[test]
fn every_scenario_is_here() {
    assert_eq!(all().len(), 87);
}

#[test]
fn the_base_gives_its_resources() {
    assert_same(
        "base",
        &resources(&world(base().settings())),
        &base().expected(),
    );
}

#[test]
fn what_the_api_server_refuses_we_refuse() {
    for scenario in all() {
        assert_eq!(
            scenario.refused,
            scenario.api_server_refused(),
            "{}",
            scenario.name
        );
    }
}

#[test]
fn objects_applied_one_by_one_give_the_expected_resources() {
    for scenario in all() {
        let mut world = world(scenario.settings());
        for object in scenario.objects.clone() {
            world.apply(vec![Change::Set(object)]);
        }
        assert_same(&scenario.name, &resources(&world), &scenario.expected());
    }
}

#[test]
fn objects_applied_backwards_give_the_expected_resources() {
    for scenario in all() {
        let mut world = world(scenario.settings());
        for object in scenario.objects.iter().rev().cloned() {
            world.apply(vec![Change::Set(object)]);
        }
        assert_same(&scenario.name, &resources(&world), &scenario.expected());
    }
}

#[test]
fn objects_applied_at_once_give_the_expected_resources() {
    for scenario in all() {
        let mut world = world(scenario.settings());
        world.apply(scenario.objects.iter().cloned().map(Change::Set).collect());
        assert_same(&scenario.name, &resources(&world), &scenario.expected());
    }
}

#[test]
fn objects_that_go_take_exactly_their_resources_along() {
    for scenario in all() {
        let mut world = world(scenario.settings());
        world.apply(scenario.objects.iter().cloned().map(Change::Set).collect());
        let (mut addresses, mut authorizations) = (Vec::new(), Vec::new());
        for change in undo(&scenario.objects) {
            let changed = world.apply(vec![change]);
            addresses.extend(
                changed
                    .addresses
                    .into_iter()
                    .filter(|name| world.address(name).is_none()),
            );
            authorizations.extend(
                changed
                    .authorizations
                    .into_iter()
                    .filter(|name| world.authorization(name).is_none()),
            );
        }
        addresses.sort();
        authorizations.sort();
        let text = |names: &[std::sync::Arc<str>]| {
            names
                .iter()
                .map(|name| name.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            text(&addresses),
            scenario.removed("addresses"),
            "{}",
            scenario.name
        );
        assert_eq!(
            text(&authorizations),
            scenario.removed("authorizations"),
            "{}",
            scenario.name
        );
        assert_same(&scenario.name, &resources(&world), &base().expected());
    }
}

#[test]
fn every_deviation_is_explained_and_every_explanation_is_of_one() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let explained = std::fs::read_to_string(folder.join("DEVIATIONS.md")).unwrap();
    for Scenario { name, .. } in all() {
        let deviates = folder.join(&name).join("deviation.json").exists();
        assert_eq!(deviates, explained.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn automatic_addresses_are_never_given_twice() {
    let scenario = all()
        .into_iter()
        .find(|scenario| scenario.name == "wds/38-se-auto-vip")
        .unwrap();
    let mut world = world(scenario.settings());
    world.apply(scenario.objects.iter().cloned().map(Change::Set).collect());
    let text = world.automatic_addresses();
    let addresses: Vec<&str> = text
        .lines()
        .flat_map(|line| line.split(' ').take(2))
        .collect();
    assert_eq!(
        addresses,
        [
            "240.240.0.1",
            "2001:2::1",
            "240.240.0.2",
            "2001:2::2",
            "240.240.0.3",
            "2001:2::3",
            "240.240.0.4",
            "2001:2::4"
        ]
    );
    // Who starts again with the table gives everybody the same, whoever comes first.
    let mut again = World::new(scenario.settings());
    assert!(again.restore_automatic_addresses(&text).is_empty());
    for object in scenario.objects.iter().rev().cloned() {
        again.apply(vec![Change::Set(object)]);
    }
    assert_eq!(again.automatic_addresses(), text);
    for resource in again.addresses() {
        assert_eq!(world.address(&resource.name), Some(resource));
    }
}
