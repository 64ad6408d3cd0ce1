//! Of `waypoint::session`: whom a client stays with.

use std::time::{Duration, SystemTime};

use api::waypoint as wire;
use api::waypoint::session::By;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use waypoint::session::{Endpoint, Session};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn cookie(change: impl FnOnce(&mut wire::Session)) -> Session {
    let mut wire = wire::Session {
        by: Some(By::Cookie("stay".into())),
        ..wire::Session::default()
    };
    change(&mut wire);
    Session::compile(&wire).unwrap()
}

fn pod(name: &str) -> Endpoint {
    Endpoint::of("shop", "web.shop.svc.cluster.local", name)
}

/// What a browser sends after that answer.
fn sent(given: &(HeaderName, HeaderValue)) -> HeaderMap {
    let mut headers = HeaderMap::new();
    match given.0.as_str() {
        "set-cookie" => {
            let cookie = given.1.to_str().unwrap().split(';').next().unwrap();
            let all = format!("first=1; {cookie}; last=2");
            headers.insert("cookie", all.parse().unwrap());
        }
        _ => {
            headers.insert(given.0.clone(), given.1.clone());
        }
    }
    headers
}

#[test]
fn a_client_stays_with_the_endpoint_that_first_answered() {
    let by_header = Session::compile(&wire::Session {
        by: Some(By::Header("x-session".into())),
        ..wire::Session::default()
    });
    for session in [cookie(|_| ()), by_header.unwrap()] {
        assert_eq!(session.wanted(&HeaderMap::new(), at(0)), None);
        let given = session.keep(pod("a"), None, at(0)).unwrap();
        let wanted = session.wanted(&sent(&given), at(1000)).unwrap();
        assert_eq!(wanted.endpoint, pod("a"));
        assert_eq!(
            session.keep(pod("a"), Some(&wanted), at(1000)),
            None,
            "it knows"
        );
        let other = session.keep(pod("b"), Some(&wanted), at(1000)).unwrap();
        let wanted = session.wanted(&sent(&other), at(1001)).unwrap();
        assert_eq!(wanted.endpoint, pod("b"), "the first is gone");
    }
}

#[test]
fn a_token_names_neither_address_nor_pod_and_is_of_its_service_alone() {
    let given = cookie(|_| ())
        .keep(pod("cluster//Pod/shop/web-1"), None, at(0))
        .unwrap();
    let text = given.1.to_str().unwrap();
    assert!(!text.contains("web") && !text.contains("shop"), "{text}");
    let other = Endpoint::of("shop", "api.shop.svc.cluster.local", "a");
    assert_ne!(other, pod("a"));
    assert_ne!(Endpoint::of("a", "b", "c"), Endpoint::of("ab", "", "c"));
}

#[test]
fn a_session_ends_after_its_absolute_time_however_much_it_is_used() {
    let session = cookie(|wire| wire.absolute_timeout = 100_000);
    let given = session.keep(pod("a"), None, at(0)).unwrap();
    assert!(session.wanted(&sent(&given), at(99)).is_some());
    assert!(session.wanted(&sent(&given), at(100)).is_none());
}

#[test]
fn an_idle_session_ends_and_a_used_one_goes_on() {
    let session = cookie(|wire| {
        wire.idle_timeout = 100_000;
        wire.absolute_timeout = 250_000;
    });
    let mut given = session.keep(pod("a"), None, at(0)).unwrap();
    assert!(session.wanted(&sent(&given), at(100)).is_none(), "idle");
    for now in [60, 120, 180, 240] {
        let wanted = session.wanted(&sent(&given), at(now)).unwrap();
        given = session.keep(pod("a"), Some(&wanted), at(now)).unwrap();
    }
    assert!(session.wanted(&sent(&given), at(250)).is_none(), "absolute");
    let given = session.keep(pod("a"), None, at(0)).unwrap();
    let wanted = session.wanted(&sent(&given), at(5)).unwrap();
    let again = session.keep(pod("a"), Some(&wanted), at(5));
    assert_eq!(again, None, "not with every answer");
}

#[test]
fn a_cookie_says_how_long_and_where() {
    let plain = cookie(|_| ()).keep(pod("a"), None, at(0)).unwrap();
    let text = plain.1.to_str().unwrap();
    assert!(text.starts_with("stay="), "{text}");
    assert!(text.ends_with("; Path=/; HttpOnly"), "{text}");
    let session = cookie(|wire| {
        wire.permanent = true;
        wire.absolute_timeout = 3_600_000;
        wire.path = "/cart".into();
    });
    let lasting = session.keep(pod("a"), None, at(0)).unwrap();
    let text = lasting.1.to_str().unwrap();
    assert!(
        text.ends_with("; Path=/cart; HttpOnly; Max-Age=3600"),
        "{text}"
    );
    let wanted = session.wanted(&sent(&lasting), at(600)).unwrap();
    let moved = session.keep(pod("b"), Some(&wanted), at(600)).unwrap();
    assert!(
        moved.1.to_str().unwrap().ends_with("Max-Age=3600"),
        "another session"
    );
}

#[test]
fn a_session_that_began_later_than_now_is_as_long_as_a_new_one() {
    let session = cookie(|wire| {
        wire.permanent = true;
        wire.idle_timeout = 100_000;
        wire.absolute_timeout = 3_600_000;
    });
    let given = session.keep(pod("a"), None, at(0)).unwrap();
    let text = given.1.to_str().unwrap();
    let token = text["stay=".len()..].split(';').next().unwrap();
    let mut bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
    bytes[13..17].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut headers = HeaderMap::new();
    let made_up = format!("stay={}", URL_SAFE_NO_PAD.encode(bytes));
    headers.insert("cookie", made_up.parse().unwrap());
    let wanted = session.wanted(&headers, at(50)).unwrap();
    let again = session.keep(pod("a"), Some(&wanted), at(50)).unwrap();
    let text = again.1.to_str().unwrap();
    assert!(text.ends_with("Max-Age=3600"), "{text}");
}

#[test]
fn what_cannot_be_kept_anywhere_is_refused() {
    for by in [
        None,
        Some(By::Cookie("a b".into())),
        Some(By::Cookie(String::new())),
        Some(By::Header("a\n".into())),
    ] {
        let bad = wire::Session {
            by: by.clone(),
            ..wire::Session::default()
        };
        assert!(Session::compile(&bad).is_err(), "{by:?}");
    }
    let path = wire::Session {
        by: Some(By::Cookie("a".into())),
        path: "/;x".into(),
        ..wire::Session::default()
    };
    assert!(Session::compile(&path).is_err());
}

proptest! {
    #[test]
    fn what_a_client_makes_up_is_no_session_or_one_like_any_other(text in "[ -~]{0,80}", now in 0u64..9) {
        let session = cookie(|wire| wire.idle_timeout = 1);
        let mut headers = HeaderMap::new();
        headers.insert("cookie", format!("stay={text}").parse().unwrap());
        if let Some(wanted) = session.wanted(&headers, at(now)) {
            let _kept = session.keep(wanted.endpoint, Some(&wanted), at(now + 5));
        }
    }
}
