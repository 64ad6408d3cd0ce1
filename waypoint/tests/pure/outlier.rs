//! Of `waypoint::outlier`, through a balancer: who is left out, for how long, and never too many.

use std::sync::Arc;
use std::time::Duration;

use api::waypoint as wire;
use proptest::prelude::*;
use waypoint::balance::{Choice, Group, Hints, NoEndpoint, Policy};
use waypoint::outlier::Outcome::{self, Answered, ConnectFailure, Reset, Timeout};

use crate::balance::shop::{Shop, group, pod};

fn watched(outliers: wire::Outliers) -> Arc<Group> {
    group(&wire::BackendPolicy {
        outliers: Some(outliers),
        ..Default::default()
    })
}

/// After so many errors, and all may be out.
fn after(errors: u32) -> wire::Outliers {
    wire::Outliers {
        consecutive_5xx: Some(errors),
        at_most: 100,
        ..Default::default()
    }
}

fn pods(count: usize) -> Shop {
    Shop::new((0..count).map(|at| pod(&format!("pod-{at}"))))
}

fn chosen(shop: &mut Shop, group: &Arc<Group>, uid: &str) -> Choice {
    for _ in 0..10_000 {
        let choice = shop.ask(group, &Hints::default()).unwrap();
        if *choice.endpoint.workload.uid == *uid {
            return choice;
        }
    }
    panic!("{uid} is never chosen");
}

/// Tells whether it was left out after the last of these.
fn happens(shop: &mut Shop, group: &Arc<Group>, uid: &str, outcomes: &[Outcome]) -> bool {
    let mut out = false;
    for outcome in outcomes {
        let choice = chosen(shop, group, uid);
        out = choice.ended(*outcome, shop.now);
    }
    out
}

fn is_in(shop: &mut Shop, group: &Arc<Group>, uid: &str) -> bool {
    shop.counts(group, 400).contains_key(uid)
}

#[test]
fn errors_in_a_row_put_an_endpoint_out_for_the_base_time() {
    let mut shop = pods(3);
    let group = watched(after(5));
    assert!(!happens(&mut shop, &group, "pod-1", &[Answered(500); 4]));
    assert!(happens(&mut shop, &group, "pod-1", &[Answered(599)]));
    assert!(!is_in(&mut shop, &group, "pod-1"));
    shop.wait(Duration::from_millis(29_999));
    assert!(!is_in(&mut shop, &group, "pod-1"));
    shop.wait(Duration::from_millis(1));
    assert!(is_in(&mut shop, &group, "pod-1"));
}

#[test]
fn what_grpc_says_in_a_head_counts_as_http_would_have_said_it() {
    for (code, status) in [
        (0, 200),
        (1, 499),
        (4, 504),
        (5, 404),
        (12, 501),
        (13, 500),
        (14, 503),
        (99, 500),
    ] {
        assert_eq!(Outcome::answered(200, Some(code)), Answered(status));
    }
    assert_eq!(Outcome::answered(502, None), Answered(502));
    let mut shop = pods(2);
    let group = watched(after(3));
    let unavailable = Outcome::answered(200, Some(14));
    assert!(happens(&mut shop, &group, "pod-0", &[unavailable; 3]));
    let not_found = Outcome::answered(200, Some(5));
    assert!(!happens(&mut shop, &group, "pod-1", &[not_found; 3]));
}

#[test]
fn one_good_answer_begins_the_row_anew() {
    let mut shop = pods(2);
    let group = watched(after(3));
    for good in [200, 404, 499] {
        let row = [Answered(503), Answered(503), Answered(good)];
        assert!(!happens(&mut shop, &group, "pod-0", &row));
    }
    assert!(!happens(&mut shop, &group, "pod-0", &[Answered(500); 2]));
    assert!(happens(&mut shop, &group, "pod-0", &[Answered(500)]));
}

#[test]
fn gateway_errors_are_counted_apart() {
    let mut shop = pods(2);
    let group = watched(wire::Outliers {
        consecutive_5xx: Some(0),
        consecutive_gateway_errors: Some(2),
        at_most: 100,
        ..Default::default()
    });
    assert!(!happens(&mut shop, &group, "pod-0", &[Answered(500); 20]));
    assert!(!happens(
        &mut shop,
        &group,
        "pod-0",
        &[Answered(502), Answered(500), Answered(502)]
    ));
    assert!(happens(&mut shop, &group, "pod-0", &[Answered(504)]));
}

#[test]
fn what_breaks_on_the_way_counts_as_an_error_of_a_gateway() {
    for outcome in [ConnectFailure, Timeout, Reset] {
        let mut shop = pods(2);
        let group = watched(wire::Outliers {
            consecutive_5xx: Some(0),
            consecutive_gateway_errors: Some(3),
            at_most: 100,
            ..Default::default()
        });
        assert!(
            happens(&mut shop, &group, "pod-0", &[outcome; 3]),
            "{outcome:?}"
        );
    }
}

#[test]
fn local_errors_are_counted_alone_where_that_is_asked() {
    let mut shop = pods(2);
    let group = watched(wire::Outliers {
        consecutive_5xx: Some(2),
        consecutive_local: Some(3),
        split_local: true,
        at_most: 100,
        ..Default::default()
    });
    let row = [
        ConnectFailure,
        ConnectFailure,
        Answered(500),
        Timeout,
        Reset,
    ];
    assert!(
        !happens(&mut shop, &group, "pod-0", &row),
        "an answer ends the row of local errors"
    );
    assert!(happens(&mut shop, &group, "pod-0", &[ConnectFailure]));
}

#[test]
fn each_time_it_is_out_longer_and_good_behaviour_is_remembered() {
    let mut shop = pods(3);
    let group = watched(after(1));
    let out_for = |shop: &mut Shop| {
        assert!(happens(shop, &group, "pod-0", &[Answered(500)]));
        let mut seconds = 0;
        while !is_in(shop, &group, "pod-0") {
            shop.wait(Duration::from_secs(5));
            seconds += 5;
        }
        seconds
    };
    assert_eq!(out_for(&mut shop), 30);
    assert_eq!(out_for(&mut shop), 60);
    assert_eq!(out_for(&mut shop), 90);
    shop.wait(Duration::from_secs(20)); // two intervals
    assert_eq!(out_for(&mut shop), 60);
    shop.wait(Duration::from_secs(3_600));
    assert_eq!(out_for(&mut shop), 30);
    let longest = (0..12).map(|_| out_for(&mut shop)).max();
    assert_eq!(longest, Some(300), "five minutes at most");
}

#[test]
fn not_more_than_asked_are_out_but_one_of_several_may_be() {
    for (count, at_most, expected) in [
        (10, 0, 1),
        (10, 30, 3),
        (30, 10, 3),
        (5, 10, 1),
        (2, 10, 1),
        (1, 10, 0),
        (1, 99, 0),
        (1, 100, 1),
        (4, 100, 4),
        (4, 99, 3),
    ] {
        let mut shop = pods(count);
        let group = watched(wire::Outliers {
            at_most,
            ..after(1)
        });
        for _ in 0..count * 20 {
            if let Ok(choice) = shop.ask(&group, &Hints::default()) {
                choice.ended(Answered(500), shop.now);
            }
        }
        let out = group
            .shown()
            .iter()
            .filter(|(_, out)| out.is_some())
            .count();
        assert_eq!(out, expected, "{count} endpoints, {at_most} percent");
    }
}

#[test]
fn when_all_are_out_that_is_said() {
    let mut shop = pods(1);
    let group = watched(after(1));
    assert!(happens(&mut shop, &group, "pod-0", &[Answered(500)]));
    let refused = shop.ask(&group, &Hints::default()).unwrap_err();
    assert_eq!(refused, NoEndpoint::Ejected);
    shop.wait(Duration::from_secs(30));
    assert!(shop.ask(&group, &Hints::default()).is_ok());
}

#[test]
fn below_the_least_number_of_healthy_ones_nobody_counts_as_out() {
    let mut shop = pods(4);
    let group = watched(wire::Outliers {
        least_healthy: 50,
        ..after(1)
    });
    for uid in ["pod-0", "pod-1"] {
        assert!(happens(&mut shop, &group, uid, &[Answered(500)]));
    }
    assert_eq!(
        shop.counts(&group, 400).len(),
        2,
        "half are in: that is enough"
    );
    assert!(happens(&mut shop, &group, "pod-2", &[Answered(500)]));
    assert_eq!(shop.counts(&group, 400).len(), 4);
    shop.wait(Duration::from_secs(30));
    assert_eq!(
        shop.counts(&group, 400).len(),
        4,
        "and when their time is over all are in"
    );
}

#[test]
fn who_leaves_makes_room() {
    let mut shop = pods(3);
    let group = watched(wire::Outliers {
        at_most: 34,
        ..after(1)
    });
    assert!(happens(&mut shop, &group, "pod-0", &[Answered(500)]));
    assert!(!happens(&mut shop, &group, "pod-1", &[Answered(500)]));
    shop.go("pod-0");
    assert!(is_in(&mut shop, &group, "pod-2"));
    assert!(happens(&mut shop, &group, "pod-1", &[Answered(500)]));
}

#[test]
fn who_fails_a_request_of_before_an_edit_is_left_out_by_those_after_it() {
    let mut shop = pods(3);
    let first = watched(after(1));
    let under_way = chosen(&mut shop, &first, "pod-1");
    let edited = wire::BackendPolicy {
        outliers: Some(after(1)),
        ..Default::default()
    };
    let edited = Policy::compile(&edited).unwrap();
    let next = Arc::new(first.succeeded_by(None, edited));
    assert!(is_in(&mut shop, &next, "pod-1"));
    assert!(under_way.ended(Timeout, shop.now));
    assert!(!is_in(&mut shop, &next, "pod-1"));
    assert!(!is_in(&mut shop, &first, "pod-1"));
    shop.wait(Duration::from_secs(30));
    assert!(is_in(&mut shop, &next, "pod-1"));
}

#[test]
fn without_outlier_detection_errors_change_nothing() {
    let mut shop = pods(2);
    let group = group(&wire::BackendPolicy::default());
    assert!(!happens(&mut shop, &group, "pod-0", &[Answered(500); 50]));
    assert!(is_in(&mut shop, &group, "pod-0"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens in whatever order: the limit holds, and in time everybody is in again.
    #[test]
    fn limits_hold_and_everybody_comes_back(
        count in 1..12_usize,
        at_most in 1..=100_u32,
        steps in prop::collection::vec((0..6_u8, 0..40_u64), 1..200),
    ) {
        let mut shop = pods(count);
        let group = watched(wire::Outliers { at_most, ..after(2) });
        let most = match at_most {
            100 => count,
            _ => (count * at_most as usize / 100).max(1).min(count - 1),
        };
        for (step, seconds) in steps {
            shop.wait(Duration::from_secs(seconds));
            let outcome = [Answered(200), Answered(500), Answered(503), ConnectFailure, Timeout, Reset][usize::from(step)];
            if let Ok(choice) = shop.ask(&group, &Hints::default()) {
                choice.ended(outcome, shop.now);
            }
            let now = shop.now;
            let out = group.shown().iter().filter(|(_, out)| out.is_some_and(|out| out > now)).count();
            prop_assert!(out <= most, "{} of {}", out, count);
        }
        shop.wait(Duration::from_secs(300));
        prop_assert_eq!(shop.counts(&group, 100 * count).len(), count);
    }
}
