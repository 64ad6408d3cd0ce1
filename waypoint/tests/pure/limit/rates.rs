//! How many of a kind may pass in a time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use api::waypoint as wire;
use api::waypoint::limit_key::By;
use http::HeaderMap;
use proptest::prelude::*;
use waypoint::authenticate::Claims;
use waypoint::limit::{Judged, Limiter};

use crate::route::request::Request;

fn limit(requests: u64, seconds: u64) -> wire::RateLimit {
    wire::RateLimit {
        requests,
        window: seconds * 1_000,
        ..Default::default()
    }
}

fn keyed(by: By, name: &str, limit: wire::RateLimit) -> wire::RateLimit {
    let mut keys = limit.keys;
    keys.push(wire::LimitKey {
        by: by.into(),
        name: name.to_owned(),
        descriptor: String::new(),
    });
    wire::RateLimit { keys, ..limit }
}

fn origin(name: &str) -> wire::Origin {
    wire::Origin {
        kind: "RateLimitPolicy".to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        rule: "0".to_owned(),
        ..Default::default()
    }
}

fn limiter(limits: &[wire::RateLimit], now: Instant) -> Limiter {
    let origins: Vec<_> = (0..limits.len())
        .map(|at| origin(&format!("limit-{at}")))
        .collect();
    let all: Vec<_> = origins.iter().zip(limits).collect();
    Limiter::compile(&all, None, now).unwrap()
}

fn passes(limiter: &Limiter, request: &Request, now: Instant) -> bool {
    matches!(limiter.judge(&request.asked(), now), Judged::Pass(_))
}

fn passing(limiter: &Limiter, request: &Request, times: usize, now: Instant) -> usize {
    (0..times).filter(|_| passes(limiter, request, now)).count()
}

#[test]
fn a_full_bucket_lets_its_burst_pass_and_then_one_at_a_time() {
    let start = Instant::now();
    let limiter = limiter(&[limit(10, 1)], start);
    let request = Request::to("/");
    assert_eq!(passing(&limiter, &request, 50, start), 10);
    let later = start + Duration::from_millis(99);
    assert!(!passes(&limiter, &request, later));
    let later = start + Duration::from_millis(100);
    assert_eq!(passing(&limiter, &request, 50, later), 1);
    let later = start + Duration::from_secs(60);
    assert_eq!(
        passing(&limiter, &request, 50, later),
        10,
        "it never holds more"
    );
}

#[test]
fn the_burst_may_be_more_or_less_than_a_windows_requests() {
    let start = Instant::now();
    for burst in [1, 3, 40] {
        let limiter = limiter(
            &[wire::RateLimit {
                burst,
                ..limit(10, 1)
            }],
            start,
        );
        assert_eq!(
            passing(&limiter, &Request::to("/"), 100, start),
            burst as usize
        );
    }
}

#[test]
fn a_limit_of_none_lets_none_pass() {
    let start = Instant::now();
    for quota in [false, true] {
        let limiter = limiter(
            &[wire::RateLimit {
                quota,
                ..limit(0, 60)
            }],
            start,
        );
        assert_eq!(
            passing(
                &limiter,
                &Request::to("/"),
                5,
                start + Duration::from_secs(600)
            ),
            0
        );
    }
}

#[test]
fn a_quota_is_a_budget_that_each_window_begins_anew() {
    let start = Instant::now();
    let limiter = limiter(
        &[wire::RateLimit {
            quota: true,
            ..limit(3, 60)
        }],
        start,
    );
    let request = Request::to("/");
    assert_eq!(
        passing(&limiter, &request, 5, start + Duration::from_secs(59)),
        3
    );
    assert_eq!(
        passing(&limiter, &request, 5, start + Duration::from_secs(60)),
        3
    );
    assert_eq!(
        passing(&limiter, &request, 5, start + Duration::from_secs(119)),
        0
    );
    assert_eq!(
        passing(&limiter, &request, 5, start + Duration::from_secs(600)),
        3
    );
}

#[test]
fn each_kind_has_a_bucket_of_its_own() {
    let claims = |sub: &str, org: &str| Claims {
        issuer: "me".to_owned(),
        subject: sub.to_owned(),
        audiences: Vec::new(),
        all: serde_json::json!({"sub": sub, "org": {"name": org}, "level": 7})
            .as_object()
            .unwrap()
            .clone(),
    };
    let mut far = Request::to("/");
    far.client.address = ([10, 0, 0, 77], 1).into();
    let mut far_port = far.clone();
    far_port.client.address.set_port(99);
    let (anna, bob) = (claims("anna", "one"), claims("bob", "two"));
    // Which key; two requests of one kind; one of another.
    let plain = Request::to("/");
    let rows = [
        (
            By::Identity,
            "",
            plain.clone().of_namespace("a"),
            plain.clone().of_namespace("a"),
            plain.clone().of_namespace("b"),
        ),
        (
            By::Identity,
            "",
            plain.clone(),
            plain.clone(),
            plain.clone().of_namespace("b"),
        ),
        (
            By::Namespace,
            "",
            plain.clone().of_namespace("a"),
            plain.clone().of_namespace("a"),
            plain.clone().of_namespace("b"),
        ),
        (By::Address, "", far, far_port, plain.clone()),
        (
            By::Header,
            "x-key",
            plain.clone().header("x-key", "1"),
            Request::to("/x").header("x-key", "1"),
            plain.clone().header("x-key", "2"),
        ),
        (
            By::Header,
            "x-key",
            plain.clone(),
            Request::to("/x"),
            plain.clone().header("x-key", ""),
        ),
        (
            By::Path,
            "",
            Request::to("/a?b"),
            Request::to("/a?c"),
            Request::to("/b"),
        ),
        (
            By::Method,
            "",
            plain.clone(),
            Request::to("/x"),
            plain.clone().method("POST"),
        ),
    ];
    let start = Instant::now();
    for (by, name, one, same, other) in rows {
        let limiter = limiter(&[keyed(by, name, limit(1, 60))], start);
        let found = [&one, &same, &other, &other].map(|request| passes(&limiter, request, start));
        assert_eq!(found, [true, false, true, false], "{by:?}");
    }
    for name in ["sub", "org.name"] {
        let limiter = limiter(&[keyed(By::Claim, name, limit(1, 60))], start);
        let mut ask = |claims| {
            let mut asked = plain.asked();
            asked.claims = claims;
            matches!(limiter.judge(&asked, start), Judged::Pass(_))
        };
        let found = [Some(&anna), Some(&anna), Some(&bob), None, None].map(&mut ask);
        assert_eq!(found, [true, false, true, true, false], "{name}");
    }
}

#[test]
fn all_limits_must_agree_and_who_is_refused_is_not_counted_elsewhere() {
    let start = Instant::now();
    let wide = limit(5, 60);
    let narrow = keyed(By::Header, "x-user", limit(2, 60));
    let limiter = limiter(&[wide, narrow], start);
    let anna = Request::to("/").header("x-user", "anna");
    let bob = Request::to("/").header("x-user", "bob");
    assert_eq!(passing(&limiter, &anna, 10, start), 2);
    assert_eq!(
        passing(&limiter, &bob, 10, start),
        2,
        "anna's eight refusals took nothing of the five"
    );
    let carl = Request::to("/").header("x-user", "carl");
    assert_eq!(passing(&limiter, &carl, 10, start), 1);
}

#[test]
fn a_condition_says_which_requests_it_is_for() {
    let start = Instant::now();
    let when = wire::Match {
        path: Some(wire::PathMatch {
            r#match: Some(wire::path_match::Match::Prefix("/admin".to_owned())),
            ignore_case: false,
        }),
        ..Default::default()
    };
    let limiter = limiter(
        &[wire::RateLimit {
            when: Some(when),
            ..limit(1, 60)
        }],
        start,
    );
    assert_eq!(passing(&limiter, &Request::to("/admin/x"), 5, start), 1);
    assert_eq!(
        passing(&limiter, &Request::to("/administrator"), 5, start),
        5
    );
}

#[test]
fn clients_are_told_what_is_left_and_when_to_come_again() {
    let start = Instant::now();
    let limiter = limiter(&[limit(100, 60), limit(2, 10)], start);
    let request = Request::to("/");
    let told = || {
        let mut headers = HeaderMap::new();
        match limiter.judge(&request.asked(), start) {
            Judged::Pass(Some(told)) | Judged::Refuse(told) => told.write(&mut headers),
            Judged::Pass(None) => {}
        }
        let text = |name: &str| {
            headers
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        (
            text("ratelimit-policy"),
            text("ratelimit"),
            text("retry-after"),
        )
    };
    let policy = Some("\"limit-1\";q=2;w=10".to_owned());
    assert_eq!(
        told(),
        (policy.clone(), Some("\"limit-1\";r=1;t=5".to_owned()), None)
    );
    assert_eq!(
        told(),
        (
            policy.clone(),
            Some("\"limit-1\";r=0;t=10".to_owned()),
            None
        )
    );
    let refused = (
        policy,
        Some("\"limit-1\";r=0;t=5".to_owned()),
        Some("5".to_owned()),
    );
    assert_eq!(told(), refused);
}

#[test]
fn a_limit_that_did_not_change_goes_on_where_it_was() {
    let start = Instant::now();
    let request = Request::to("/");
    let name = origin("limit-0");
    let first = limiter(&[limit(3, 60)], start);
    assert_eq!(passing(&first, &request, 2, start), 2);
    let same = Limiter::compile(&[(&name, &limit(3, 60))], Some(&first), start).unwrap();
    assert_eq!(passing(&same, &request, 5, start), 1);
    let other = Limiter::compile(&[(&name, &limit(4, 60))], Some(&same), start).unwrap();
    assert_eq!(
        passing(&other, &request, 5, start),
        4,
        "another limit is another bucket"
    );
}

#[test]
fn a_rate_limit_service_is_asked_with_descriptors() {
    let start = Instant::now();
    let mut global = keyed(
        By::Header,
        "x-user",
        keyed(By::Fixed, "orders", limit(0, 0)),
    );
    global.service = "provider/limits".to_owned();
    global.domain = "shop".to_owned();
    global.keys[0].descriptor = "what".to_owned();
    global.service_decides = true;
    let limiter = limiter(&[global], start);
    let request = Request::to("/").header("x-user", "anna");
    let asked = request.asked();
    assert_eq!(limiter.judge(&asked, start), Judged::Pass(None));
    let inquiries = limiter.inquiries(&asked);
    assert_eq!(inquiries.len(), 1);
    assert_eq!(
        (inquiries[0].provider, inquiries[0].domain),
        ("provider/limits", "shop")
    );
    let descriptor = &inquiries[0].descriptors[0];
    let entries = descriptor.entries.iter();
    let entries: HashMap<_, _> = entries.map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(
        entries,
        HashMap::from([("what", "orders"), ("x-user", "anna")])
    );
    let nobody = Request::to("/");
    assert_eq!(
        limiter.inquiries(&nobody.asked()).len(),
        0,
        "without the header it is not for it"
    );
}

#[test]
fn what_cannot_be_understood_is_refused() {
    let start = Instant::now();
    let name = origin("bad");
    for bad in [
        keyed(By::Header, "no header", limit(1, 1)),
        keyed(By::Claim, "", limit(1, 1)),
        limit(1, 0),
    ] {
        assert!(
            Limiter::compile(&[(&name, &bad)], None, start).is_err(),
            "{bad:?}"
        );
    }
}

proptest! {
    /// In no stretch of time do more pass than the burst and what that stretch allows; and whoever keeps to the pace
    /// is never refused.
    #[test]
    fn a_rate_holds_over_every_stretch_of_time(
        requests in 1..50_u64,
        burst in 1..20_u64,
        gaps in prop::collection::vec(0..400_u64, 1..300),
    ) {
        let start = Instant::now();
        let limiter = limiter(&[wire::RateLimit { burst, ..limit(requests, 1) }], start);
        let request = Request::to("/");
        let (mut now, mut passed) = (start, Vec::new());
        for gap in gaps {
            now += Duration::from_millis(gap);
            if passes(&limiter, &request, now) {
                passed.push(now);
            }
        }
        for (at, from) in passed.iter().enumerate() {
            for (count, to) in passed[at..].iter().enumerate() {
                let stretch = (*to - *from).as_secs_f64();
                prop_assert!((count + 1) as f64 <= burst as f64 + stretch * requests as f64 + 1e-6);
            }
        }
    }

    #[test]
    fn who_keeps_to_the_pace_is_never_refused(requests in 1..1_000_u64, seconds in 1..100_u64) {
        let start = Instant::now();
        let limiter = limiter(&[wire::RateLimit { burst: 1, ..limit(requests, seconds) }], start);
        let pace = Duration::from_nanos(seconds * 1_000_000_000 / requests + 1);
        for turn in 0..200 {
            prop_assert!(passes(&limiter, &Request::to("/"), start + pace * turn));
        }
    }
}

#[test]
fn a_flood_of_kinds_frees_nobody_who_goes_on_asking() {
    let start = Instant::now();
    let limiter = limiter(&[keyed(By::Header, "x-user", limit(5, 3_600))], start);
    let regular = Request::to("/").header("x-user", "regular");
    let mut passed = 0;
    for nth in 0..150_000_u32 {
        let other = Request::to("/").header("x-user", &nth.to_string());
        passes(&limiter, &other, start);
        passed += usize::from(nth % 500 == 0 && passes(&limiter, &regular, start));
    }
    assert_eq!(passed, 5);
    assert!(
        limiter.remembered() <= 65_536 + 1,
        "{}",
        limiter.remembered()
    );
}
