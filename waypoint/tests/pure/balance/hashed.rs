//! Clients that come back to their endpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::waypoint as wire;
use api::waypoint::consistent_hash::{Algorithm, Key};
use waypoint::balance::{Group, Hints, Policy};
use waypoint::session;

use super::shop::{Shop, balanced, group, pod, weighing};
use crate::route::request::Request;

fn hashing(algorithm: Algorithm, key: Key) -> wire::BackendPolicy {
    balanced(wire::LoadBalancer {
        hash: Some(wire::ConsistentHash {
            algorithm: algorithm.into(),
            key: Some(key),
            size: 0,
        }),
        ..Default::default()
    })
}

fn attribute(name: &str, value: &str) -> wire::Header {
    wire::Header {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

fn by_header(algorithm: Algorithm) -> wire::BackendPolicy {
    hashing(algorithm, Key::Header("x-user".to_owned()))
}

fn keyed(shop: &mut Shop, group: &Arc<Group>, keys: u64) -> Vec<String> {
    let mixed = |key: u64| key.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let mut one = |key| {
        let hints = Hints {
            hash: Some(mixed(key)),
            ..Default::default()
        };
        let choice = shop.ask(group, &hints).unwrap();
        choice.endpoint.workload.uid.to_string()
    };
    (0..keys).map(&mut one).collect()
}

fn pods(count: usize) -> impl Iterator<Item = api::workload::Workload> {
    (0..count).map(|at| pod(&format!("pod-{at}")))
}

const KEYS: u64 = 20_000;

#[test]
fn a_key_stays_with_its_endpoint_whichever_replica_is_asked() {
    for algorithm in [Algorithm::Ring, Algorithm::Maglev] {
        let mut one = Shop::new(pods(7));
        let mut other = Shop::new(pods(7).collect::<Vec<_>>().into_iter().rev());
        let policy = by_header(algorithm);
        let first = keyed(&mut one, &group(&policy), 2_000);
        assert_eq!(
            first,
            keyed(&mut other, &group(&policy), 2_000),
            "{algorithm:?}"
        );
    }
}

#[test]
fn keys_are_spread_by_capacity() {
    for (algorithm, slack) in [(Algorithm::Ring, 40), (Algorithm::Maglev, 8)] {
        let heavy = [weighing("heavy", 3)];
        let mut shop = Shop::new(heavy.into_iter().chain(pods(5)));
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for uid in keyed(&mut shop, &group(&by_header(algorithm)), KEYS) {
            *counts.entry(uid).or_default() += 1;
        }
        for (uid, count) in &counts {
            let due = KEYS / 8 * if uid == "heavy" { 3 } else { 1 };
            assert!(
                count.abs_diff(due) * 100 <= due * slack,
                "{algorithm:?} {counts:?}"
            );
        }
    }
}

#[test]
fn when_one_goes_or_comes_hardly_any_other_key_moves() {
    for (algorithm, most) in [(Algorithm::Ring, 0), (Algorithm::Maglev, 3)] {
        let mut shop = Shop::new(pods(10));
        let group = group(&by_header(algorithm));
        let before = keyed(&mut shop, &group, KEYS);
        shop.go("pod-3");
        let without = keyed(&mut shop, &group, KEYS);
        let pairs = before.iter().zip(&without);
        let moved = pairs
            .filter(|(was, is)| *was != "pod-3" && was != is)
            .count() as u64;
        assert!(moved * 100 <= KEYS * most, "{algorithm:?}: {moved}");
        shop.come([pod("pod-3")]);
        assert_eq!(
            before,
            keyed(&mut shop, &group, KEYS),
            "{algorithm:?}: back as it was"
        );
    }
}

#[test]
fn without_a_key_any_endpoint_will_do() {
    let mut shop = Shop::new(pods(4));
    let counts = shop.counts(&group(&by_header(Algorithm::Ring)), 400);
    assert_eq!(counts.len(), 4);
}

#[test]
fn a_retry_goes_elsewhere_and_always_to_the_same_place() {
    let mut shop = Shop::new(pods(5));
    let group = group(&by_header(Algorithm::Maglev));
    for key in 0..200 {
        let hints = Hints {
            hash: Some(key),
            ..Default::default()
        };
        let first = shop
            .ask(&group, &hints)
            .unwrap()
            .endpoint
            .workload
            .uid
            .clone();
        let avoid = [first.clone()];
        let mut second = || {
            let choice = shop
                .ask(
                    &group,
                    &Hints {
                        avoid: &avoid,
                        ..hints
                    },
                )
                .unwrap();
            choice.endpoint.workload.uid.clone()
        };
        let elsewhere = second();
        assert_ne!(first, elsewhere);
        assert_eq!(elsewhere, second());
    }
}

#[test]
fn what_a_request_is_hashed_by() {
    let policy = |key| Policy::compile(&hashing(Algorithm::Ring, key)).unwrap();
    let hash = |key, request: &Request| policy(key).hash().unwrap().of(&request.asked());
    let header = || Key::Header("X-User".to_owned());
    let anna = Request::to("/").header("x-user", "anna");
    let bob = Request::to("/other?x=1").header("x-user", "bob");
    assert!(hash(header(), &anna).is_some() && hash(header(), &Request::to("/")).is_none());
    assert_eq!(
        hash(header(), &anna),
        hash(header(), &anna.clone().method("POST"))
    );
    assert_ne!(hash(header(), &anna), hash(header(), &bob));
    let twice = anna.clone().header("x-user", "bob");
    assert_ne!(
        hash(header(), &anna),
        hash(header(), &twice),
        "all values count"
    );

    let query = |path: &str| hash(Key::Query("user".to_owned()), &Request::to(path));
    assert_eq!(query("/a?user=anna"), query("/b?x=1&user=anna&user=bob"));
    assert_ne!(query("/a?user=anna"), query("/a?user=bob"));
    assert!(query("/a?users=anna").is_none());

    let mut elsewhere = Request::to("/");
    elsewhere.client.address = ([10, 0, 0, 9], 7).into();
    let mut other_port = Request::to("/");
    other_port.client.address.set_port(9);
    let source = |request: &Request| hash(Key::SourceIp(true), request);
    assert_eq!(source(&Request::to("/")), source(&other_port));
    assert_ne!(source(&Request::to("/")), source(&elsewhere));
}

#[test]
fn of_a_connection_that_nobody_looks_into_only_its_client_can_decide() {
    let policy = |key| Policy::compile(&hashing(Algorithm::Ring, key)).unwrap();
    let of = |key, client: [u8; 4]| policy(key).hash().unwrap().of_connection(client.into());
    let source = |client| of(Key::SourceIp(true), client);
    assert!(source([10, 0, 0, 7]).is_some());
    assert_eq!(source([10, 0, 0, 7]), source([10, 0, 0, 7]));
    assert_ne!(source([10, 0, 0, 7]), source([10, 0, 0, 9]));
    let header = Key::Header("x-user".to_owned());
    assert_eq!(of(header, [10, 0, 0, 7]), None);
    assert_eq!(of(Key::Query("user".to_owned()), [10, 0, 0, 7]), None);
}

#[test]
fn a_client_without_the_cookie_is_given_one_that_leads_back() {
    let key = Key::Cookie(wire::HashCookie {
        name: "shop".to_owned(),
        path: "/cart".to_owned(),
        ttl: 90_000,
        only_read: false,
        attributes: vec![attribute("SameSite", "Strict"), attribute("Secure", "")],
    });
    let policy = Policy::compile(&hashing(Algorithm::Ring, key)).unwrap();
    let by = policy.hash().unwrap();
    let first = Request::to("/").header("cookie", "other=1; shopping=2");
    assert!(by.of(&first.asked()).is_none());
    let (hash, cookie) = by.new_cookie(&first.asked(), 42).unwrap();
    let cookie = cookie.to_str().unwrap().to_owned();
    let (pair, rest) = cookie.split_once(';').unwrap();
    assert_eq!(
        rest,
        " Max-Age=90; Path=/cart; HttpOnly; SameSite=Strict; Secure"
    );
    let again = Request::to("/").header("cookie", &format!("a=b; {pair}"));
    assert_eq!(by.of(&again.asked()), Some(hash));
    assert!(by.new_cookie(&again.asked(), 43).is_none());
    assert_ne!(by.new_cookie(&first.asked(), 43).unwrap().0, hash);
}

/// It is the app's: one of ours beside it, perhaps for another path, would end its sessions.
#[test]
fn a_cookie_that_is_only_read_is_given_to_nobody() {
    let key = Key::Cookie(wire::HashCookie {
        name: "JSESSIONID".to_owned(),
        path: String::new(),
        ttl: 0,
        only_read: true,
        ..Default::default()
    });
    let policy = Policy::compile(&hashing(Algorithm::Ring, key)).unwrap();
    let by = policy.hash().unwrap();
    let first = Request::to("/");
    assert!(by.of(&first.asked()).is_none());
    assert!(by.new_cookie(&first.asked(), 42).is_none());
    let again = Request::to("/").header("cookie", "JSESSIONID=of-the-app");
    assert!(by.of(&again.asked()).is_some());
}

#[test]
fn what_cannot_be_hashed_by_is_refused() {
    let cookie = |name: &str, path: &str| {
        Key::Cookie(wire::HashCookie {
            name: name.to_owned(),
            path: path.to_owned(),
            ..Default::default()
        })
    };
    let with = |name: &str, value: &str| {
        Key::Cookie(wire::HashCookie {
            name: "a".to_owned(),
            attributes: vec![attribute(name, value)],
            ..Default::default()
        })
    };
    for key in [
        Key::Header("no header".to_owned()),
        cookie("a=b", "/"),
        cookie("", "/"),
        cookie("a", "/; Domain=evil"),
        cookie("a", "/\r\nx: y"),
        with("", "x"),
        with("Same Site", "Strict"),
        with("Secure", "; Domain=evil"),
        with("Secure", "\r\nx: y"),
    ] {
        let policy = hashing(Algorithm::Ring, key);
        assert!(Policy::compile(&policy).is_err(), "{policy:?}");
    }
}

#[test]
fn sizes_that_somebody_asks_for_have_a_ceiling() {
    for algorithm in [Algorithm::Ring, Algorithm::Maglev] {
        let mut policy = by_header(algorithm);
        let hash = policy
            .load_balancer
            .as_mut()
            .unwrap()
            .hash
            .as_mut()
            .unwrap();
        hash.size = u64::MAX;
        let mut shop = Shop::new(pods(2));
        assert_eq!(keyed(&mut shop, &group(&policy), 10).len(), 10);
    }
}

#[test]
fn a_session_stays_with_its_endpoint_while_that_is_there() {
    let mut shop = Shop::new(pods(6));
    let group = group(&wire::BackendPolicy::default());
    let wanted = session::Endpoint::of("shop", "web.shop", "pod-4");
    let hints = Hints {
        prefer: Some(wanted),
        ..Default::default()
    };
    for _ in 0..20 {
        let choice = shop.ask(&group, &hints).unwrap();
        assert_eq!(&*choice.endpoint.workload.uid, "pod-4");
    }
    shop.go("pod-4");
    let choice = shop.ask(&group, &hints).unwrap();
    assert_ne!(&*choice.endpoint.workload.uid, "pod-4");
    let foreign = Hints {
        prefer: Some(session::Endpoint::of("other", "web.shop", "pod-1")),
        ..Default::default()
    };
    assert!(shop.ask(&group, &foreign).is_ok());
}
