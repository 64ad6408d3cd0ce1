//! Redirects and rewrites.

use api::waypoint::filter::Filter as Kind;
use api::waypoint::path_change::Change;
use api::waypoint::{PathChange, Redirect, RegexChange, Rewrite};
use waypoint::filter::About;
use waypoint::route::Matched;

use super::{ABOUT, compile, filters, get};

fn path(change: Change) -> Option<PathChange> {
    Some(PathChange {
        change: Some(change),
    })
}

fn prefix(text: &str) -> Option<PathChange> {
    path(Change::Prefix(text.into()))
}

fn full(text: &str) -> Option<PathChange> {
    path(Change::Full(text.into()))
}

fn expression(pattern: &str, substitution: &str) -> Option<PathChange> {
    path(Change::Regex(RegexChange {
        pattern: pattern.into(),
        substitution: substitution.into(),
    }))
}

fn about(port: u16, scheme: &'static str, matched: &str) -> About<'static> {
    About {
        scheme,
        port,
        matched: Matched {
            length: matched.len(),
            segments: true,
        },
        ..ABOUT
    }
}

fn rewritten(change: Option<PathChange>, target: &str, about: &About<'_>) -> String {
    let filters = filters([Kind::Rewrite(Rewrite {
        path: change,
        ..Rewrite::default()
    })]);
    let mut parts = get(target);
    let passed = filters.request(&mut parts, about, || 0);
    match passed.answer {
        Some(answer) => answer.status.to_string(),
        None => parts.uri.to_string(),
    }
}

fn location(redirect: Redirect, target: &str, about: &About<'_>) -> (u16, String) {
    let filters = filters([Kind::Redirect(redirect)]);
    let answer = filters
        .request(&mut get(target), about, || 0)
        .answer
        .unwrap();
    let location = answer.headers.get("location").unwrap();
    (answer.status.as_u16(), location.to_str().unwrap().into())
}

/// The table in the specification of HTTPPathModifier, and beside it the query, which stays.
#[test]
fn a_prefix_is_replaced_by_whole_segments() {
    let cases = [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo", "/foo", "/xyz/", "/xyz"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo?a=b", "/foo", "/xyz", "/xyz?a=b"),
        ("/foo/bar?a", "/foo", "/", "/bar?a"),
        ("/bar", "", "/xyz", "/xyz/bar"),
        ("/a/b/c", "/a/b", "xyz", "/xyz/c"),
    ];
    for (target, matched, replacement, expected) in cases {
        let got = rewritten(prefix(replacement), target, &about(80, "http", matched));
        assert_eq!(got, expected, "{target} {matched} {replacement}");
    }
}

#[test]
fn a_prefix_by_characters_is_replaced_by_characters() {
    let matched = |length| About {
        matched: Matched {
            length,
            segments: false,
        },
        ..ABOUT
    };
    assert_eq!(rewritten(prefix("/b"), "/aXY", &matched(2)), "/bXY");
    assert_eq!(rewritten(prefix("/"), "/api/x", &matched(5)), "/x");
    assert_eq!(rewritten(prefix("/v2/"), "/api/x", &matched(5)), "/v2/x");
    assert_eq!(rewritten(prefix("/new"), "/exact", &matched(6)), "/new");
    assert_eq!(
        rewritten(prefix("/"), "/api/x", &matched(4)),
        "/x",
        "not //x"
    );
}

#[test]
fn a_path_is_replaced_whole_or_by_an_expression() {
    let cases = [
        (full("/one/two"), "/any?q=1", "/one/two?q=1"),
        (full("one"), "/any", "/one"),
        (full(""), "/any", "/"),
        (full("/a?x=1"), "/any?q=1", "/a?x=1&q=1"),
        (
            expression("^/service/([^/]+)(/.*)$", r"\2/instance/\1"),
            "/service/foo/v1/api",
            "/v1/api/instance/foo",
        ),
        (
            expression("one", "two"),
            "/xxx/one/yyy/one/zzz",
            "/xxx/two/yyy/two/zzz",
        ),
        (
            expression("(?i)/xxx/", "/yyy/"),
            "/aaa/XxX/bbb",
            "/aaa/yyy/bbb",
        ),
        (expression("x", "$1"), "/x", "/$1"),
        (expression("x", r"\\"), "/x", "/"),
        (expression("(a)?b", r"_\1_"), "/b", "/__"),
        (expression("^/.*$", ""), "/x", "/"),
        (expression("x", " y"), "/x", "/%20y"),
        (expression("x", "%zz"), "/x", "500 Internal Server Error"),
        (expression("none", "y"), "/x?none", "/x?none"),
    ];
    for (change, target, expected) in cases {
        let got = rewritten(change.clone(), target, &ABOUT);
        assert_eq!(got, expected, "{change:?} {target}");
    }
}

#[test]
fn a_rewrite_gives_another_host() {
    let filters = filters([Kind::Rewrite(Rewrite {
        hostname: "one.example.org".into(),
        path: full("/x"),
    })]);
    let mut parts = get("/a");
    assert!(filters.request(&mut parts, &ABOUT, || 0).answer.is_none());
    assert_eq!(parts.headers["host"], "one.example.org");
    assert_eq!(parts.uri, "/x");
}

/// HTTPRouteRedirect* of the conformance suite: what the rule says (scheme, host, port, path; `-` nothing), the
/// listener, and what becomes of `/foo/a?q=1` under the prefix `/foo`.
const REDIRECTS: &str = "
-      example.org  -     -            80 http    http://example.org/foo/a?q=1
-      example.org  -     -          8080 http    http://example.org:8080/foo/a?q=1
-      Example.org  -     -           443 https   https://example.org/foo/a?q=1
https  -            -     -            80 http    https://web.shop/foo/a?q=1
https  -            -     -          8080 http    https://web.shop/foo/a?q=1
http   -            -     -           443 https   http://web.shop/foo/a?q=1
http   -            -     -          8080 http    http://web.shop/foo/a?q=1
-      -            8083  -            80 http    http://web.shop:8083/foo/a?q=1
-      -            80    -          8080 http    http://web.shop/foo/a?q=1
https  -            443   -            80 http    https://web.shop/foo/a?q=1
https  -            80    -            80 http    https://web.shop:80/foo/a?q=1
http   -            443   -            80 http    http://web.shop:443/foo/a?q=1
https  -            8443  -            80 http    https://web.shop:8443/foo/a?q=1
-      example.org  -     prefix:/new  80 http    http://example.org/new/a?q=1
-      -            -     full:/one    80 http    http://web.shop/one?q=1
";

#[test]
fn a_redirect_says_what_changes_and_keeps_the_rest() {
    let some = |text: &str| text.replace('-', "");
    let mut lines = 0;
    for line in REDIRECTS.lines().filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [scheme, host, port, change, at, spoken, expected] = words[..] else {
            panic!("{line}");
        };
        let redirect = Redirect {
            scheme: some(scheme),
            hostname: some(host),
            port: port.parse().unwrap_or_default(),
            path: match change.split_once(':') {
                Some(("prefix", text)) => prefix(text),
                Some((_, text)) => full(text),
                None => None,
            },
            ..Redirect::default()
        };
        let spoken = if spoken == "http" { "http" } else { "https" };
        let about = about(at.parse().unwrap(), spoken, "/foo");
        let got = location(redirect, "/foo/a?q=1", &about);
        assert_eq!(got, (302, expected.into()), "{line}");
        lines += 1;
    }
    assert_eq!(lines, 15);
}

#[test]
fn a_redirect_has_the_status_it_says_and_can_leave_the_query() {
    for status in [301, 302, 303, 307, 308] {
        let redirect = Redirect {
            status: status.into(),
            strip_query: true,
            ..Redirect::default()
        };
        let got = location(redirect, "/a?q=1", &ABOUT);
        assert_eq!(got, (status, "http://web.shop/a".into()));
    }
}

#[test]
fn what_is_no_address_is_refused() {
    let redirects = [
        Redirect {
            status: 200,
            ..Redirect::default()
        },
        Redirect {
            status: 304,
            ..Redirect::default()
        },
        Redirect {
            port: 70_000,
            ..Redirect::default()
        },
        Redirect {
            scheme: "javascript".into(),
            ..Redirect::default()
        },
        Redirect {
            hostname: "a b".into(),
            ..Redirect::default()
        },
        Redirect {
            path: expression("(", ""),
            ..Redirect::default()
        },
        Redirect {
            path: expression("a", r"\1"),
            ..Redirect::default()
        },
        Redirect {
            path: expression("a", r"\x"),
            ..Redirect::default()
        },
        Redirect {
            path: expression("a", r"x\"),
            ..Redirect::default()
        },
    ];
    for redirect in redirects {
        let refused = compile([Kind::Redirect(redirect.clone())]).is_err();
        assert!(refused, "{redirect:?}");
    }
    let rewrite = Rewrite {
        hostname: "a b".into(),
        path: None,
    };
    assert!(compile([Kind::Rewrite(rewrite)]).is_err());
}
