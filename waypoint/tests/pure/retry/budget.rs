//! How many of a service's requests may be retries.

use std::time::Duration;

use api::waypoint::RetryBudget;
use proptest::collection::vec;
use proptest::prelude::*;
use waypoint::retry::Budget;

fn budget(percent: u32, least: u32) -> Budget {
    Budget::compile(&RetryBudget {
        percent,
        interval: 10_000,
        least,
        least_interval: 1_000,
    })
}

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn allowed(budget: &Budget, now: Duration, asked: u32) -> u32 {
    (0..asked).map(|_| u32::from(budget.retry(now))).sum()
}

#[test]
fn a_share_of_all_requests_may_be_retries() {
    let budget = budget(20, 0);
    assert!(!budget.retry(at(0)), "of nothing, nothing");
    for _ in 0..80 {
        budget.request(at(5));
    }
    assert_eq!(allowed(&budget, at(6), 1000), 20, "20 of 100");
}

#[test]
fn what_is_past_the_interval_is_forgotten() {
    let budget = budget(50, 0);
    for _ in 0..10 {
        budget.request(at(0));
    }
    assert_eq!(allowed(&budget, at(8_999), 100), 10);
    assert_eq!(allowed(&budget, at(10_000), 100), 0);
    budget.request(at(19_500));
    assert_eq!(
        allowed(&budget, at(19_500), 100),
        1,
        "the ten retries are forgotten too"
    );
}

#[test]
fn the_least_is_allowed_each_interval_of_its_own() {
    let budget = budget(0, 3);
    assert_eq!(allowed(&budget, at(100), 10), 3);
    assert_eq!(allowed(&budget, at(900), 10), 0);
    assert_eq!(allowed(&budget, at(1_100), 10), 3);
}

#[test]
fn a_clock_that_begins_late_or_stands_still_does_no_harm() {
    let budget = budget(50, 0);
    let now = Duration::from_secs(u64::from(u32::MAX) * 3);
    budget.request(now);
    assert_eq!(allowed(&budget, now, 5), 1);
    assert_eq!(allowed(&budget, now + at(20_000), 5), 0);
}

proptest! {
    /// However requests and retries come, within any interval there are no more retries than the share and the least allow.
    #[test]
    fn a_storm_stays_within_its_budget(steps in vec((0u64..400, any::<bool>()), 1..400)) {
        let budget = budget(20, 2);
        let (mut now, mut requests, mut retries) = (0u64, Vec::new(), Vec::<u64>::new());
        for (pause, retry) in steps {
            now += pause;
            if !retry {
                budget.request(at(now));
                requests.push(now);
            } else if budget.retry(at(now)) {
                let within = |times: &[u64], window| {
                    times.iter().filter(|time| **time + window > now).count()
                };
                let share = (within(&retries, 10_000) + within(&requests, 10_000) + 1) as f64 * 0.2;
                let least = within(&retries, 900) < 2;
                retries.push(now);
                prop_assert!(least || within(&retries, 9_000) as f64 <= share);
            }
        }
    }
}
