//! How often each endpoint is chosen.

use std::sync::Arc;
use std::time::Duration;

use api::waypoint as wire;
use api::waypoint::load_balancer::Simple;
use proptest::prelude::*;
use waypoint::balance::{Group, Hints, Policy};

use super::shop::{Shop, balanced, by, group, pod, weighing};

fn near(found: usize, expected: usize) -> bool {
    found.abs_diff(expected) * 10 <= expected // a tenth
}

#[test]
fn in_turn_means_each_as_often_as_the_others() {
    let mut shop = Shop::new([pod("a"), pod("b"), pod("c")]);
    let group = group(&by(Simple::RoundRobin));
    let counts = shop.counts(&group, 300);
    assert!(counts.len() == 3 && counts.values().all(|count| *count == 100));
    let pair: Vec<_> = (0..3).map(|_| shop.one(&group)).collect();
    assert!(pair[0] != pair[1] && pair[1] != pair[2] && pair[0] != pair[2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn turns_are_as_many_as_weights_say_and_evenly_spread(weights in prop::collection::vec(1..12_u32, 1..8)) {
        let pods = weights.iter().enumerate();
        let mut shop = Shop::new(pods.map(|(at, weight)| weighing(&format!("pod-{at}"), *weight)));
        let group = group(&by(Simple::RoundRobin));
        let total: u32 = weights.iter().sum();
        let mut counts = vec![0_u32; weights.len()];
        for asked in 1..=total * 2 {
            let uid = shop.one(&group);
            counts[uid[4..].parse::<usize>().unwrap()] += 1;
            for (count, weight) in counts.iter().zip(&weights) {
                let due = f64::from(asked) * f64::from(*weight) / f64::from(total);
                prop_assert!((f64::from(*count) - due).abs() <= weights.len() as f64, "{counts:?} of {weights:?}");
            }
        }
        for (count, weight) in counts.iter().zip(&weights) {
            prop_assert_eq!(*count, weight * 2);
        }
    }
}

#[test]
fn huge_and_uneven_weights_cost_bounded_memory_and_starve_nobody() {
    let mut shop = Shop::new([
        weighing("big", 4_000_000_000),
        weighing("small", 1),
        weighing("odd", 77_777),
    ]);
    let counts = shop.counts(&group(&by(Simple::RoundRobin)), 20_000);
    assert!(
        counts["big"] > 19_000 && counts["small"] > 0 && counts["odd"] > 0,
        "{counts:?}"
    );
}

#[test]
fn at_random_and_by_load_idle_endpoints_are_chosen_by_capacity() {
    for simple in [Simple::Random, Simple::LeastRequest, Simple::Unspecified] {
        let mut shop = Shop::new([weighing("a", 1), weighing("b", 3), weighing("none", 0)]);
        let counts = shop.counts(&group(&by(simple)), 8_000);
        assert!(
            near(counts["a"], 2_000) && near(counts["b"], 6_000),
            "{simple:?} {counts:?}"
        );
        assert!(
            !counts.contains_key("none"),
            "without capacity nobody is chosen"
        );
    }
}

#[test]
fn whoever_is_busy_is_spared() {
    let mut shop = Shop::new([pod("a"), pod("b")]);
    let group = group(&wire::BackendPolicy::default());
    let mut kept = Vec::new();
    while kept.len() < 20 {
        let choice = shop.ask(&group, &Hints::default()).unwrap();
        if *choice.endpoint.workload.uid == *"a" {
            kept.push(choice);
        }
    }
    assert_eq!(kept[0].endpoint.busy(), 20);
    let counts = shop.counts(&group, 1_000);
    assert!(
        counts["b"] > 650,
        "both draws must be the busy one: {counts:?}"
    );
    drop(kept);
    let counts = shop.counts(&group, 1_000);
    assert!(near(counts["a"], 500), "{counts:?}");
}

#[test]
fn load_is_kept_even_while_nothing_ends() {
    let mut shop = Shop::new((0..10).map(|at| pod(&format!("pod-{at}"))));
    let group = group(&wire::BackendPolicy::default());
    let kept: Vec<_> = (0..1_000)
        .map(|_| shop.ask(&group, &Hints::default()).unwrap())
        .collect();
    let busy = kept.iter().map(|choice| choice.endpoint.busy());
    let (least, most) = (busy.clone().min().unwrap(), busy.max().unwrap());
    assert!(most - least <= 8, "two draws keep it near: {least}..{most}");
}

#[test]
fn what_is_known_of_an_endpoint_outlives_changes_of_others_and_of_the_policy() {
    let mut shop = Shop::new([pod("a")]);
    let first = group(&by(Simple::RoundRobin));
    let kept = shop.ask(&first, &Hints::default()).unwrap();
    shop.come([pod("b"), pod("c")]);
    shop.one(&first);
    let busy = |group: &Arc<Group>| {
        let shown = group.shown();
        let a = shown.iter().find(|(found, _)| *found.workload.uid == *"a");
        a.unwrap().0.busy()
    };
    assert_eq!(busy(&first), 1);
    let next = Arc::new(first.succeeded_by(None, Policy::default()));
    shop.one(&next);
    assert_eq!(busy(&next), 1);
    drop(kept);
    assert_eq!(busy(&next), 0);
}

#[test]
fn each_thread_is_told_once_of_those_who_come_to_others() {
    let mut shop = Shop::new([pod("a"), pod("b")]);
    let group = group(&by(Simple::RoundRobin));
    let told = |group: &Arc<Group>, thread: usize| -> Vec<String> {
        let all = group.newcomers(thread);
        all.iter().map(|it| it.workload.uid.to_string()).collect()
    };
    assert_eq!(told(&group, 0), [""; 0], "nobody has asked");
    shop.one(&group);
    assert_eq!(told(&group, 0), [""; 0], "they were the first");
    shop.come([pod("c"), pod("d")]);
    assert_eq!(told(&group, 0), [""; 0], "nobody has asked since");
    shop.one(&group);
    for thread in [0, 1, 65] {
        let expected: &[&str] = if thread == 65 { &[] } else { &["c", "d"] };
        assert_eq!(told(&group, thread), expected, "{thread}");
        assert_eq!(told(&group, thread), [""; 0], "{thread} knows");
    }
    shop.come((0..40).map(|at| pod(&format!("pod-{at:02}"))));
    shop.one(&group);
    assert_eq!(told(&group, 0).len(), 16, "no storm");
}

#[test]
fn what_has_gone_is_forgotten() {
    let mut shop = Shop::new([pod("stays")]);
    let group = group(&wire::BackendPolicy::default());
    for round in 0..50 {
        let name = format!("pod-{round}");
        shop.come([pod(&name)]);
        shop.counts(&group, 3);
        shop.go(&name);
        assert_eq!(shop.one(&group), "stays");
        assert_eq!(group.shown().len(), 1);
    }
}

#[test]
fn new_endpoints_begin_slowly_and_get_their_share_in_time() {
    let policy = balanced(wire::LoadBalancer {
        simple: Simple::RoundRobin.into(),
        warm_up: 60_000,
        ..Default::default()
    });
    let mut shop = Shop::new([pod("a"), pod("b"), pod("c")]);
    let group = group(&policy);
    let counts = shop.counts(&group, 300);
    assert!(
        counts.values().all(|count| *count == 100),
        "at first all are as old: {counts:?}"
    );
    shop.come([pod("new")]);
    let mut last = 0;
    for (after, at_least, at_most) in [
        (0, 60, 160),
        (30, 400, 650),
        (20, 700, 950),
        (10, 1_000, 1_000),
    ] {
        shop.wait(Duration::from_secs(after));
        let new = shop.counts(&group, 4_000)["new"];
        assert!(
            (at_least..=at_most).contains(&new) && new > last,
            "{after}: {new}"
        );
        last = new;
    }
}

#[test]
fn when_all_are_new_they_share_alike() {
    let policy = balanced(wire::LoadBalancer {
        simple: Simple::Random.into(),
        warm_up: 60_000,
        ..Default::default()
    });
    let mut shop = Shop::new([pod("old")]);
    let group = group(&policy);
    shop.one(&group);
    shop.come([pod("a"), pod("b")]);
    shop.go("old");
    let counts = shop.counts(&group, 2_000);
    assert!(near(counts["a"], 1_000), "{counts:?}");
}

/// Whatever comes and goes meanwhile: nobody is counted as busy in the end, and nobody panics.
#[test]
fn many_at_once_leave_nothing_behind() {
    let policy = wire::BackendPolicy {
        outliers: Some(wire::Outliers {
            consecutive_5xx: Some(2),
            at_most: 100,
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut shop = Shop::new((0..6).map(|at| pod(&format!("pod-{at}"))));
    let group = group(&policy);
    let mesh = shop.mesh.clone();
    let (own, network) = (shop.own.clone(), mesh::Network::default());
    let client = mesh::Client {
        network: &network,
        locality: &own,
        node: "",
        cluster: "",
        namespace: "shop",
        ipv6: false,
    };
    let start = shop.now;
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (group, mesh) = (&group, &mesh);
            scope.spawn(move || {
                for nth in 0..5_000_u64 {
                    let now = start + Duration::from_millis(nth * 20);
                    let members = mesh.load().members("shop", "web.shop").unwrap();
                    let draw = (nth * 4 + thread).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let hints = Hints::default();
                    if let Ok(choice) = group.choose(&members, &client, &hints, draw, now) {
                        let status = if draw % 5 == 0 { 200 } else { 500 };
                        choice.ended(waypoint::outlier::Outcome::Answered(status), now);
                    }
                }
            });
        }
        for round in 0..200 {
            shop.go(&format!("pod-{}", round % 6));
            shop.come([pod(&format!("pod-{}", round % 6))]);
        }
    });
    shop.wait(Duration::from_secs(10_000));
    assert_eq!(shop.counts(&group, 600).len(), 6);
    assert!(group.shown().iter().all(|(found, _)| found.busy() == 0));
}
