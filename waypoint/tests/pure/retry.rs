//! Of `waypoint::retry`: whether again, and when.

#[path = "retry/budget.rs"]
mod budget;
#[path = "retry/hedge.rs"]
mod hedge;

use std::time::Duration;

use api::waypoint as wire;
use http::StatusCode;
use proptest::prelude::*;
use waypoint::retry::{Outcome, Retry};

fn answered(status: u16) -> Outcome {
    Outcome::Answered {
        status: StatusCode::from_u16(status).unwrap(),
        grpc: None,
    }
}

fn grpc(code: u32) -> Outcome {
    Outcome::Answered {
        status: StatusCode::OK,
        grpc: Some(code),
    }
}

fn policy(wire: wire::Retry) -> Retry {
    Retry::compile(&wire).unwrap()
}

#[test]
fn each_condition_is_for_its_outcomes_alone() {
    let all = [
        ("connect", Outcome::ConnectFailure),
        ("refused", Outcome::RefusedStream),
        ("reset", Outcome::Reset),
        ("timeout", Outcome::Timeout),
        ("500", answered(500)),
        ("502", answered(502)),
        ("503", answered(503)),
        ("504", answered(504)),
        ("409", answered(409)),
        ("404", answered(404)),
        ("200", answered(200)),
        ("grpc 14", grpc(14)),
        ("grpc 0", grpc(0)),
    ];
    let none = wire::Retry::default;
    let cases = [
        (none(), ""),
        (
            wire::Retry {
                connect_failure: true,
                ..none()
            },
            "connect",
        ),
        (
            wire::Retry {
                refused_stream: true,
                ..none()
            },
            "refused",
        ),
        (
            wire::Retry {
                reset: true,
                ..none()
            },
            "refused reset timeout",
        ),
        (
            wire::Retry {
                gateway_error: true,
                ..none()
            },
            "connect refused reset timeout 502 503 504",
        ),
        (
            wire::Retry {
                server_error: true,
                ..none()
            },
            "connect refused reset timeout 500 502 503 504",
        ),
        (
            wire::Retry {
                retriable_4xx: true,
                ..none()
            },
            "409",
        ),
        (
            wire::Retry {
                codes: vec![404, 503],
                ..none()
            },
            "503 404",
        ),
        (
            wire::Retry {
                codes: vec![504],
                ..none()
            },
            "timeout 504",
        ),
        (
            wire::Retry {
                grpc_codes: vec![14],
                ..none()
            },
            "grpc 14",
        ),
    ];
    for (wire, expected) in cases {
        let retry = policy(wire.clone());
        let names = all.iter().filter(|(_, outcome)| retry.concerns(*outcome));
        let names: Vec<_> = names.map(|(name, _)| *name).collect();
        assert_eq!(names.join(" "), expected, "{wire:?}");
    }
}

#[test]
fn there_are_as_many_further_tries_as_the_rule_says() {
    let retry = policy(wire::Retry {
        attempts: 2,
        codes: vec![503],
        ..wire::Retry::default()
    });
    let again = |made| retry.again(made, answered(503), None, 0).is_some();
    assert_eq!([1, 2, 3, 4].map(again), [true, true, false, false]);
    assert!(retry.again(1, answered(500), None, 0).is_none());
    let none = policy(wire::Retry {
        codes: vec![503],
        ..wire::Retry::default()
    });
    assert!(none.again(1, answered(503), None, 0).is_none());
}

#[test]
fn waits_double_up_to_the_longest() {
    let retry = |backoff, backoff_limit| {
        policy(wire::Retry {
            attempts: 10,
            reset: true,
            backoff,
            backoff_limit,
            ..wire::Retry::default()
        })
    };
    let waits = |retry: Retry| {
        let waits = (1..=6).map(|made| retry.again(made, Outcome::Reset, None, 0).unwrap());
        waits.map(|wait| wait.as_millis()).collect::<Vec<_>>()
    };
    assert_eq!(waits(retry(0, 0)), [25, 50, 100, 200, 250, 250]);
    assert_eq!(waits(retry(100, 300)), [100, 200, 300, 300, 300, 300]);
    assert_eq!(waits(retry(100, 50)), [100; 6]);
}

#[test]
fn nobody_waits_past_the_requests_own_deadline() {
    let retry = policy(wire::Retry {
        attempts: 1,
        reset: true,
        backoff: 100,
        ..wire::Retry::default()
    });
    let left = |milliseconds| Some(Duration::from_millis(milliseconds));
    assert!(retry.again(1, Outcome::Reset, left(100), 0).is_none());
    assert!(retry.again(1, Outcome::Reset, left(101), 0).is_some());
    assert!(
        retry
            .again(1, Outcome::Reset, left(140), u64::MAX)
            .is_none()
    );
}

#[test]
fn a_status_that_none_is_is_refused() {
    for code in [0, 99, 600, 70_000] {
        let bad = wire::Retry {
            codes: vec![code],
            ..wire::Retry::default()
        };
        assert!(Retry::compile(&bad).is_err(), "{code}");
    }
}

proptest! {
    #[test]
    fn a_wait_is_never_shorter_than_asked_for_nor_half_as_long_again_as_the_longest(
        made in 1u32..200, draw: u64, backoff in 1u64..100_000, limit in 0u64..1_000_000,
    ) {
        let retry = policy(wire::Retry {
            attempts: 1000, reset: true, backoff, backoff_limit: limit, ..wire::Retry::default()
        });
        if let Some(wait) = retry.again(made, Outcome::Reset, None, draw) {
            let longest = if limit == 0 { backoff * 10 } else { limit.max(backoff) };
            prop_assert!(wait >= Duration::from_millis(backoff));
            prop_assert!(wait <= Duration::from_millis(longest) * 3 / 2);
        }
    }
}
