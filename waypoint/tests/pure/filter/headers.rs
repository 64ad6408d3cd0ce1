//! Headers that are set, added and removed.

use api::waypoint::HeaderChange;
use api::waypoint::filter::Filter as Kind;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{compile, filters, get, header, ok, run};

fn change(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderChange {
    let pairs = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(name, value)| header(name, value));
        pairs.collect()
    };
    HeaderChange {
        set: pairs(set),
        add: pairs(add),
        remove: remove.iter().map(|name| (*name).into()).collect(),
    }
}

fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter();
    values.map(|value| value.to_str().unwrap().into()).collect()
}

/// What a header has after a change of a request that was sent with some.
fn check(change: HeaderChange, sent: &[(&str, &str)], name: &str, expected: &[&str]) {
    let mut parts = get("/");
    for (name, value) in sent {
        let name: HeaderName = name.parse().unwrap();
        parts.headers.append(name, value.parse().unwrap());
    }
    let filters = filters([Kind::RequestHeaders(change.clone())]);
    assert!(run(&filters, &mut parts).answer.is_none());
    assert_eq!(values(&parts.headers, name), expected, "{change:?}");
}

/// HTTPRouteRequestHeaderModifier of the conformance suite, and what the specification says beside it.
#[test]
fn headers_of_a_request_are_set_added_and_removed() {
    let set = || change(&[("X-Set", "new")], &[], &[]);
    check(set(), &[], "x-set", &["new"]);
    check(set(), &[("x-set", "old")], "x-set", &["new"]);
    check(set(), &[("x-set", "a"), ("x-set", "b")], "x-set", &["new"]);
    let add = || change(&[], &[("X-Add", "new")], &[]);
    check(add(), &[], "x-add", &["new"]);
    check(add(), &[("x-add", "old")], "x-add", &["old", "new"]);
    let both = change(&[], &[("X-Add", "one"), ("X-Add", "two")], &[]);
    check(both, &[], "x-add", &["one", "two"]);
    let remove = change(&[], &[], &["X-Remove"]);
    check(
        remove,
        &[("x-remove", "a"), ("x-remove", "b")],
        "x-remove",
        &[],
    );
}

#[test]
fn what_is_added_stays_whatever_else_is_said_of_it() {
    let removed = change(&[], &[("x", "new")], &["x"]);
    check(removed, &[("x", "old")], "x", &["new"]);
    let set = change(&[("x", "a")], &[("x", "b")], &[]);
    check(set, &[("x", "old")], "x", &["a", "b"]);
}

/// To apps that know headers as variables a dash is an underscore.
#[test]
fn what_a_client_sends_beside_what_is_set_or_removed_is_not_taken_for_it() {
    let both = || change(&[("x-user-role", "guest")], &[], &["x-internal"]);
    let sent = &[
        ("x_user-role", "admin"),
        ("x-user_role", "admin"),
        ("x_internal", "1"),
        ("x_other", "1"),
    ];
    check(both(), sent, "x-user-role", &["guest"]);
    for gone in ["x_user-role", "x-user_role", "x_internal"] {
        check(both(), sent, gone, &[]);
    }
    check(both(), sent, "x_other", &["1"]);
    let twice = || change(&[("x_a", "1"), ("x-a", "2")], &[], &[]);
    check(twice(), &[("x-a", "0")], "x-a", &["2"]);
    check(twice(), &[("x-a", "0")], "x_a", &["1"]);
    let add = || change(&[], &[("x-b", "2")], &[]);
    check(add(), &[("x_b", "1")], "x_b", &["1"]);
}

#[test]
fn headers_of_an_answer_are_changed_by_their_own_filter_alone() {
    let filters = filters([
        Kind::RequestHeaders(change(&[("x-request", "1")], &[], &[])),
        Kind::ResponseHeaders(change(&[("x-answer", "1")], &[], &["server"])),
    ]);
    let mut request = get("/");
    let _passed = run(&filters, &mut request);
    let mut answer = ok();
    answer
        .headers
        .insert("server", HeaderValue::from_static("app"));
    filters.response(&mut answer);
    assert_eq!(values(&request.headers, "x-request"), ["1"]);
    assert_eq!(values(&request.headers, "x-answer"), [""; 0]);
    assert_eq!(values(&answer.headers, "x-answer"), ["1"]);
    assert!(!answer.headers.contains_key("server"));
}

#[test]
fn setting_the_host_changes_it_wherever_it_is_said() {
    for name in ["Host", ":authority"] {
        let filters = filters([Kind::RequestHeaders(change(
            &[(name, "other:81")],
            &[],
            &[],
        ))]);
        let mut one = get("/a?b");
        let _passed = run(&filters, &mut one);
        assert_eq!(values(&one.headers, "host"), ["other:81"]);
        assert_eq!(one.uri, "/a?b");
        let mut two = get("http://web.shop/a?b");
        two.version = http::Version::HTTP_2;
        two.headers.clear();
        let _passed = run(&filters, &mut two);
        assert_eq!(two.uri, "http://other:81/a?b");
        assert!(two.headers.is_empty(), "HTTP/2 says it once");
    }
}

#[test]
fn a_rule_cannot_touch_what_carries_the_request() {
    for name in [
        "Connection",
        "Content-Length",
        "Transfer-Encoding",
        "Upgrade",
        "TE",
        "Keep-Alive",
        "Proxy-Connection",
        "Trailer",
    ] {
        for bad in [
            change(&[(name, "x")], &[], &[]),
            change(&[], &[(name, "x")], &[]),
            change(&[], &[], &[name]),
        ] {
            let why = compile([Kind::RequestHeaders(bad)]).unwrap_err();
            assert!(why.contains("not a rule's to change"), "{why}");
        }
    }
}

#[test]
fn what_cannot_be_a_header_is_refused() {
    for bad in [
        change(&[("a b", "x")], &[], &[]),
        change(&[("a", "x\r\ny: z")], &[], &[]),
        change(&[], &[], &[""]),
        change(&[("host", "a b")], &[], &[]),
        change(&[], &[("host", "other")], &[]),
        change(&[], &[], &["Host"]),
    ] {
        assert!(
            compile([Kind::RequestHeaders(bad.clone())]).is_err(),
            "{bad:?}"
        );
    }
}
