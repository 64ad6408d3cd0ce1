//! A second request beside a slow first.

use std::time::Duration;

use api::waypoint as wire;
use http::Method;
use waypoint::retry::{Hedge, Outcome, Retry};

use super::answered;

#[test]
fn further_requests_are_due_one_after_the_other() {
    let hedge = Hedge::compile(&wire::Hedge {
        after: 50,
        at_most: 2,
        ..Default::default()
    })
    .unwrap();
    let due = [0, 1, 2].map(|further| hedge.due(further));
    let after = Some(Duration::from_millis(50));
    assert_eq!(due, [after, after, None], "each after the one before it");
    assert!(
        Hedge::compile(&wire::Hedge {
            after: 50,
            at_most: 0,
            ..Default::default()
        })
        .is_none()
    );
    assert!(
        Hedge::compile(&wire::Hedge {
            after: 0,
            at_most: 2,
            ..Default::default()
        })
        .is_none()
    );
    let many = Hedge::compile(&wire::Hedge {
        after: 1,
        at_most: 1000,
        ..Default::default()
    })
    .unwrap();
    assert_eq!(
        (0..1000)
            .filter(|further| many.due(*further).is_some())
            .count(),
        8
    );
}

#[test]
fn only_what_can_be_done_twice_is_hedged() {
    let hedge = |calls| {
        let wire = wire::Hedge {
            after: 50,
            at_most: 1,
            calls,
        };
        Hedge::compile(&wire).unwrap()
    };
    let (requests, calls) = (hedge(false), hedge(true));
    assert!(!requests.keeps() && calls.keeps());
    assert!(
        calls.suits(&Method::POST),
        "whoever wrote the route says so"
    );
    for (method, suits) in [
        (Method::GET, true),
        (Method::PUT, true),
        (Method::POST, false),
        (Method::PATCH, false),
    ] {
        assert_eq!(requests.suits(&method), suits, "{method}");
    }
}

#[test]
fn a_failure_is_no_answer_while_another_is_still_asked() {
    let retry = Retry::compile(&wire::Retry {
        codes: vec![404],
        ..wire::Retry::default()
    })
    .unwrap();
    let grpc = |code| Outcome::Answered {
        status: http::StatusCode::OK,
        grpc: Some(code),
    };
    let cases = [
        (None, answered(200), true),
        (None, answered(503), false),
        (None, grpc(0), true),
        (None, grpc(5), true),
        (None, grpc(14), false),
        (None, grpc(13), false),
        (None, Outcome::Reset, false),
        (None, Outcome::Timeout, false),
        (Some(&retry), answered(404), false),
        (Some(&retry), answered(503), true),
    ];
    for (retry, outcome, expected) in cases {
        assert_eq!(Hedge::settles(retry, outcome), expected, "{outcome:?}");
    }
}
