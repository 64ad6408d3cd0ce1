//! Endpoints that are nearer go before others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::waypoint as wire;
use api::waypoint::load_balancer::Simple;
use api::workload;
use api::workload::load_balancing::{Mode, Scope};
use proptest::prelude::*;
use waypoint::balance::{Group, Hints, NoEndpoint};
use waypoint::outlier::Outcome;

use super::shop::{Shop, at, balanced, by, group, pod, service, weighing};

fn local(locality: wire::Locality) -> wire::BackendPolicy {
    balanced(wire::LoadBalancer {
        simple: Simple::RoundRobin.into(),
        locality: Some(locality),
        ..Default::default()
    })
}

fn spread() -> Vec<workload::Workload> {
    vec![
        at("here", "eu/a/1"),
        at("subzone", "eu/a/2"),
        at("zone", "eu/b/1"),
        at("us", "us/a/1"),
        at("asia", "asia/a/1"),
    ]
}

fn whom(shop: &mut Shop, group: &Arc<Group>) -> String {
    shop.counts(group, 40)
        .into_keys()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn the_nearest_that_are_there_are_chosen_without_anybody_watching_for_errors() {
    let mut shop = Shop::new(spread()).standing_at("eu/a/1");
    let group = group(&local(wire::Locality::default()));
    for (goes, whom_then) in [
        ("", "here"),
        ("here", "subzone"),
        ("subzone", "zone"),
        ("zone", "asia us"),
    ] {
        if !goes.is_empty() {
            shop.go(goes);
        }
        assert_eq!(whom(&mut shop, &group), whom_then);
    }
}

#[test]
fn failover_says_which_region_is_next() {
    let mut shop = Shop::new([at("us", "us/a/1"), at("asia", "asia/a/1")]).standing_at("eu/a/1");
    let group = group(&local(wire::Locality {
        failover: vec![wire::locality::Failover {
            from: "eu".to_owned(),
            to: "us".to_owned(),
        }],
        ..Default::default()
    }));
    assert_eq!(whom(&mut shop, &group), "us");
    shop.go("us");
    assert_eq!(whom(&mut shop, &group), "asia");
}

#[test]
fn the_more_is_in_common_from_the_first_on_the_nearer() {
    use wire::locality::Likeness;
    use wire::locality::likeness::By;
    let mut shop = Shop::new([
        at("here", "eu/a/1"),
        at("named", "us/b/1"),
        at("named-here", "eu/b/1"),
    ])
    .standing_at("eu/a/1");
    let among = |uids: &[&str]| Likeness {
        by: By::Workloads.into(),
        workloads: Some(wire::Workloads {
            uids: uids.iter().map(|uid| (*uid).to_owned()).collect(),
        }),
        ..Default::default()
    };
    let of = |by: By| Likeness {
        by: by.into(),
        ..Default::default()
    };
    let group = group(&local(wire::Locality {
        priority: vec![among(&["named", "named-here"]), of(By::Region)],
        ..Default::default()
    }));
    for (goes, whom_then) in [
        ("", "named-here"),
        ("named-here", "named"),
        ("named", "here"),
    ] {
        if !goes.is_empty() {
            shop.go(goes);
        }
        assert_eq!(whom(&mut shop, &group), whom_then);
    }
}

#[test]
fn an_endpoint_may_be_near_by_where_it_is_wherever_the_proxy_is() {
    use wire::locality::Likeness;
    use wire::locality::likeness::By;
    let at_place = |by: By, value: &str| Likeness {
        by: by.into(),
        value: Some(value.to_owned()),
        ..Default::default()
    };
    let mut shop = Shop::new([
        at("here", "eu/a/1"),
        at("there", "us/a/1"),
        at("there-too", "us/b/1"),
    ])
    .standing_at("eu/a/1");
    let group = group(&local(wire::Locality {
        priority: vec![at_place(By::Region, "us"), at_place(By::Zone, "b")],
        ..Default::default()
    }));
    assert_eq!(whom(&mut shop, &group), "there-too");
    shop.go("there-too");
    assert_eq!(whom(&mut shop, &group), "there");
    shop.go("there");
    assert_eq!(whom(&mut shop, &group), "here");
}

#[test]
fn who_knows_not_where_he_is_prefers_nobody() {
    let mut shop = Shop::new(spread());
    let any = group(&local(wire::Locality::default()));
    assert_eq!(whom(&mut shop, &any).split(' ').count(), 5);
    let mut shop = Shop::new(spread()).standing_at("eu/a/1");
    let disabled = group(&local(wire::Locality {
        disabled: true,
        ..Default::default()
    }));
    assert_eq!(whom(&mut shop, &disabled).split(' ').count(), 5);
}

fn distributed(to: &[(&str, u32)]) -> Arc<Group> {
    group(&local(wire::Locality {
        distribute: vec![wire::locality::Distribute {
            from: "eu/a/*".to_owned(),
            to: to
                .iter()
                .map(|(to, share)| ((*to).to_owned(), *share))
                .collect(),
        }],
        ..Default::default()
    }))
}

#[test]
fn shares_are_parted_among_those_they_are_for() {
    let mut pods = spread();
    pods.push(at("here-too", "eu/a/1"));
    let mut shop = Shop::new(pods).standing_at("eu/a/1");
    let group = distributed(&[("eu/a/*", 60), ("eu/b/*", 30), ("us", 10)]);
    let counts = shop.counts(&group, 10_000);
    let expected = BTreeMap::from([
        ("here", 2_000),
        ("here-too", 2_000),
        ("subzone", 2_000),
        ("zone", 3_000),
        ("us", 1_000),
    ]);
    assert_eq!(
        counts.len(),
        expected.len(),
        "{counts:?}: asia has no share"
    );
    for (name, due) in expected {
        assert!(counts[name].abs_diff(due) * 50 <= due, "{counts:?}");
    }
    shop.go("zone");
    let counts = shop.counts(&group, 7_000);
    assert!(
        counts["us"].abs_diff(1_000) < 30,
        "who is not there leaves its share to all: {counts:?}"
    );
}

#[test]
fn elsewhere_the_shares_are_not_in_force() {
    let mut shop = Shop::new(spread()).standing_at("us/a/1");
    let group = distributed(&[("asia/*", 100)]);
    assert_eq!(whom(&mut shop, &group), "us");
}

#[test]
fn a_level_that_loses_many_gives_part_of_its_requests_to_the_next() {
    let near = (0..10).map(|nth| at(&format!("near-{nth}"), "eu/a/1"));
    let far = (0..10).map(|nth| at(&format!("far-{nth}"), "eu/b/1"));
    let mut shop = Shop::new(near.chain(far)).standing_at("eu/a/1");
    let mut policy = local(wire::Locality::default());
    policy.outliers = Some(wire::Outliers {
        consecutive_5xx: Some(1),
        at_most: 100,
        ..Default::default()
    });
    let group = group(&policy);
    let mut lost = BTreeSet::new();
    // Health 0.7 times 1.4 is nearly one; 0.5 gives 0.7 of the requests.
    for (loses, share) in [(2, 100), (3, 98), (5, 70), (9, 14), (10, 0)] {
        while lost.len() < loses {
            let choice = shop.ask(&group, &Hints::default()).unwrap();
            if choice.endpoint.workload.uid.starts_with("near") {
                choice.ended(Outcome::Answered(500), shop.now);
                lost.insert(choice.endpoint.workload.uid.clone());
            }
        }
        let counts = shop.counts(&group, 4_000);
        let near: usize = counts
            .iter()
            .filter(|(uid, _)| uid.starts_with("near"))
            .map(|(_, count)| count)
            .sum();
        assert!(near.abs_diff(40 * share) <= 120, "{loses}: {near}");
    }
}

#[test]
fn strict_means_none_rather_than_a_far_one() {
    let mut strict = service();
    strict.load_balancing = Some(workload::LoadBalancing {
        routing_preference: vec![Scope::Region.into()],
        mode: Mode::Strict.into(),
        ..Default::default()
    });
    let mut shop = Shop::new(spread()).standing_at("eu/a/1");
    shop.service(strict);
    let group = group(&local(wire::Locality {
        disabled: true,
        ..Default::default()
    }));
    assert_eq!(whom(&mut shop, &group), "here subzone zone");
    ["here", "subzone", "zone"]
        .iter()
        .for_each(|name| shop.go(name));
    assert_eq!(
        shop.ask(&group, &Hints::default()).unwrap_err(),
        NoEndpoint::TooFar
    );
}

/// Endpoints and preferences of all sorts.
fn any_pod() -> impl Strategy<Value = (u8, u8, u8, u8, u32)> {
    (0..3_u8, 0..2_u8, 0..2_u8, 0..2_u8, 0..3_u32)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// What ztunnel's choice can give, this one gives, and nothing else.
    #[test]
    fn by_the_services_own_preference_it_chooses_among_the_same_as_ztunnel(
        pods in prop::collection::vec(any_pod(), 1..12),
        scopes in prop::sample::subsequence(vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node], 0..5),
        mode in prop::sample::select(vec![Mode::UnspecifiedMode, Mode::Failover, Mode::Strict]),
    ) {
        let pods = pods.into_iter().enumerate().map(|(nth, (region, zone, other, network, capacity))| {
            workload::Workload {
                node: if other == 0 { String::new() } else { "elsewhere".to_owned() },
                network: if network == 0 { String::new() } else { "far".to_owned() },
                capacity: Some(capacity),
                ..at(&format!("pod-{nth}"), &format!("r{region}/z{zone}/"))
            }
        });
        let mut shop = Shop::new(pods).standing_at("r0/z0/");
        let mut preferring = service();
        preferring.load_balancing = Some(workload::LoadBalancing {
            routing_preference: scopes.into_iter().map(i32::from).collect(),
            mode: mode.into(),
            ..Default::default()
        });
        shop.service(preferring);
        let group = group(&by(Simple::Random));
        let snapshot = shop.snapshot();
        let service = snapshot.service("shop", "web.shop").unwrap().clone();
        let (mut ours, mut theirs) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..300 {
            let draw = shop.draw();
            let client = shop.client();
            if let Ok(found) = mesh::pick(&snapshot, &service, 80, &client, draw >> 20) {
                theirs.insert((found.workload.uid.to_string(), found.target_port, found.address));
            }
            if let Ok(choice) = group.choose(&shop.members(), &client, &Hints::default(), draw, shop.now) {
                let found = &choice.endpoint;
                ours.insert((found.workload.uid.to_string(), found.target_port, found.address));
            }
        }
        prop_assert_eq!(ours, theirs);
    }
}

/// One of another network, which only its gateway leads to.
fn abroad(name: &str) -> workload::Workload {
    let gateway = workload::GatewayAddress {
        hbone_mtls_port: 15008,
        destination: Some(workload::gateway_address::Destination::Address(
            workload::NetworkAddress {
                network: "far".to_owned(),
                address: vec![10, 9, 9, 9].into(),
                length: None,
            },
        )),
    };
    workload::Workload {
        network: "far".to_owned(),
        network_gateway: Some(gateway),
        addresses: Vec::new(),
        ..pod(name)
    }
}

#[test]
fn an_endpoint_of_another_network_is_reached_through_its_gateway() {
    let mut shop = Shop::new([abroad("behind")]);
    let choice = shop
        .ask(&group(&wire::BackendPolicy::default()), &Hints::default())
        .unwrap();
    assert_eq!(
        (choice.endpoint.address, choice.endpoint.target_port),
        (None, 8080)
    );
}

#[test]
fn what_came_from_another_network_goes_to_none_whatever_balances_it() {
    let only_here = Hints {
        only_here: true,
        ..Hints::default()
    };
    for simple in [Simple::RoundRobin, Simple::LeastRequest, Simple::Random] {
        let group = group(&by(simple));
        let mut shop = Shop::new([pod("a"), weighing("b", 3), abroad("behind")]);
        let all = shop.counts(&group, 300);
        assert_eq!(all.len(), 3, "{simple:?}: {all:?}");
        let mut here = BTreeMap::new();
        for _ in 0..400 {
            let choice = shop.ask(&group, &only_here).unwrap();
            *here
                .entry(choice.endpoint.workload.uid.to_string())
                .or_insert(0) += 1;
        }
        assert!(!here.contains_key("behind"), "{simple:?}: {here:?}");
        let (a, b) = (here["a"], here["b"]);
        assert!(
            b > 2 * a && b < 4 * a,
            "{simple:?}: by weight, as ever: {here:?}"
        );
        // Also one that was tried before is better than none that may not be.
        let tried = ["a".into(), "b".into()];
        let again = Hints {
            avoid: &tried,
            ..only_here
        };
        let choice = shop.ask(&group, &again).unwrap();
        assert_ne!(&*choice.endpoint.workload.uid, "behind");
        drop(choice);
        shop.go("a");
        shop.go("b");
        assert_eq!(
            shop.ask(&group, &only_here).unwrap_err(),
            NoEndpoint::Abroad
        );
        assert_eq!(shop.one(&group), "behind");
    }
}
