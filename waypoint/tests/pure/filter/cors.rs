//! Who may read answers in a browser.

use api::waypoint::filter::Filter as Kind;
use api::waypoint::string_match::Match as Text;
use api::waypoint::{Cors, StringMatch};
use http::{HeaderMap, HeaderName, request};
use waypoint::filter::Filters;

use super::{compile, filters, get, ok, run};

fn origin(of: Text) -> StringMatch {
    StringMatch {
        r#match: Some(of),
        ..StringMatch::default()
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).into()).collect()
}

fn policy() -> Cors {
    Cors {
        origins: vec![
            origin(Text::Exact("https://shop.example".into())),
            origin(Text::Suffix(".trusted.example".into())),
        ],
        methods: texts(&["GET", "PUT"]),
        headers: texts(&["x-one", "x-two"]),
        expose: texts(&["x-three"]),
        max_age_seconds: 3600,
        ..Cors::default()
    }
}

fn compiled(cors: Cors) -> Filters {
    filters([Kind::Cors(cors)])
}

fn with(mut parts: request::Parts, headers: &[(&str, &str)]) -> request::Parts {
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        parts.headers.append(name, value.parse().unwrap());
    }
    parts
}

fn preflight(origin: &str) -> request::Parts {
    let mut parts = with(
        get("/"),
        &[
            ("origin", origin),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-one"),
        ],
    );
    parts.method = http::Method::OPTIONS;
    parts
}

/// What a client sees: our own answer with what is granted, or an app's.
fn seen(filters: &Filters, mut parts: request::Parts) -> (bool, HeaderMap) {
    let passed = run(filters, &mut parts);
    let mut answer = ok();
    let ours = passed.answer.is_some();
    if let Some(own) = passed.answer {
        assert_eq!(own.status, 200);
        answer.headers = own.headers;
    }
    filters.response(&mut answer);
    if let Some(granted) = passed.granted {
        granted.response(&mut answer);
    }
    (ours, answer.headers)
}

fn expect(headers: &HeaderMap, expected: &[(&str, &str)]) {
    let mut got: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    got.sort_unstable();
    assert_eq!(got, expected);
}

#[test]
fn a_preflight_of_a_page_that_may_is_answered() {
    let (ours, headers) = seen(&compiled(policy()), preflight("https://shop.example"));
    assert!(ours);
    expect(
        &headers,
        &[
            ("access-control-allow-headers", "x-one, x-two"),
            ("access-control-allow-methods", "GET, PUT"),
            ("access-control-allow-origin", "https://shop.example"),
            ("access-control-expose-headers", "x-three"),
            ("access-control-max-age", "3600"),
            ("vary", "origin"),
        ],
    );
}

#[test]
fn a_preflight_of_another_page_is_answered_without_leave_or_left_to_the_app() {
    let (ours, headers) = seen(&compiled(policy()), preflight("https://evil.example"));
    assert!(ours);
    expect(&headers, &[]);
    let forwarding = Cors {
        forward_unmatched: true,
        ..policy()
    };
    let (ours, headers) = seen(&compiled(forwarding), preflight("https://evil.example"));
    assert!(!ours);
    expect(&headers, &[]);
}

#[test]
fn an_answer_says_who_may_read_it() {
    let page = |origin| with(get("/"), &[("origin", origin)]);
    let filters = compiled(policy());
    for (from, may) in [
        ("https://shop.example", true),
        ("https://a.trusted.example", true),
        ("https://shop.example.evil", false),
        ("http://shop.example", false),
        ("null", false),
    ] {
        let (ours, headers) = seen(&filters, page(from));
        assert!(!ours);
        let allowed = headers.get("access-control-allow-origin");
        assert_eq!(allowed.is_some(), may, "{from}");
        assert!(allowed.is_none_or(|allowed| allowed == from));
        assert!(!headers.contains_key("access-control-allow-methods"));
    }
    let (_, headers) = seen(&filters, get("/"));
    expect(&headers, &[]);
}

#[test]
fn an_options_that_asks_no_leave_is_the_apps() {
    let mut parts = with(get("/"), &[("origin", "https://shop.example")]);
    parts.method = http::Method::OPTIONS;
    let (ours, headers) = seen(&compiled(policy()), parts);
    assert!(!ours);
    assert!(headers.contains_key("access-control-allow-origin"));
}

#[test]
fn any_is_a_star_without_credentials_and_what_was_asked_for_with_them() {
    let open = Cors {
        any_origin: true,
        methods: texts(&["*"]),
        headers: texts(&["*"]),
        expose: texts(&["*"]),
        ..Cors::default()
    };
    let (_, headers) = seen(&compiled(open.clone()), preflight("https://a.example"));
    expect(
        &headers,
        &[
            ("access-control-allow-headers", "*"),
            ("access-control-allow-methods", "*"),
            ("access-control-allow-origin", "*"),
            ("access-control-expose-headers", "*"),
        ],
    );
    let trusting = Cors {
        credentials: true,
        expose: vec![],
        ..open
    };
    let (_, headers) = seen(&compiled(trusting), preflight("https://a.example"));
    expect(
        &headers,
        &[
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-headers", "x-one"),
            ("access-control-allow-methods", "PUT"),
            ("access-control-allow-origin", "https://a.example"),
            ("vary", "origin"),
        ],
    );
}

#[test]
fn what_the_app_says_of_origins_is_replaced() {
    let filters = compiled(policy());
    let mut parts = with(get("/"), &[("origin", "https://shop.example")]);
    let granted = run(&filters, &mut parts).granted.unwrap();
    let mut answer = ok();
    for name in [
        "access-control-allow-origin",
        "access-control-allow-credentials",
    ] {
        let name: HeaderName = name.parse().unwrap();
        answer.headers.insert(name, "true".parse().unwrap());
    }
    granted.response(&mut answer);
    assert_eq!(
        answer.headers["access-control-allow-origin"],
        "https://shop.example"
    );
    assert!(
        !answer
            .headers
            .contains_key("access-control-allow-credentials")
    );
}

#[test]
fn what_is_no_method_or_header_is_refused() {
    let bad = Cors {
        methods: texts(&["GET\r\nx: y"]),
        ..Cors::default()
    };
    assert!(compile([Kind::Cors(bad)]).is_err());
}
