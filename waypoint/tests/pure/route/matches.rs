//! What each condition matches, one line a case.

use api::waypoint::string_match::Match as Text;
use api::waypoint::{Match, Route};
use waypoint::asked::Asked;
use waypoint::route::{Rule, Table};

use super::request::Request;
use super::wire::{
    Conditions, Written, any, exact, expression, ignoring_case, is, not, prefix, rule, text,
    text_prefix,
};

/// Whether a rule with that match is for the request.
fn meets(matches: Match, request: &Request) -> bool {
    let Written { origin, route } = rule("web", 0).when(matches);
    let table = Table::compile(&[(&origin, &route)]);
    let found = table.find(&request.asked());
    assert!(found.is_none_or(|found| found.rule.broken.is_none()));
    found.is_some()
}

#[test]
fn a_path_is_matched_as_its_kind_says() {
    let cases = [
        (exact("/foo"), "/foo", true),
        (exact("/foo"), "/foo/", false),
        (exact("/foo"), "/foo/bar", false),
        (exact("/foo"), "/Foo", false),
        (exact("/foo/"), "/foo", false),
        (exact("/"), "/", true),
        (exact("/"), "/foo", false),
        (prefix("/foo"), "/foo", true),
        (prefix("/foo"), "/foo/", true),
        (prefix("/foo"), "/foo/bar", true),
        (prefix("/foo"), "/foobar", false),
        (prefix("/foo"), "/fo", false),
        (prefix("/foo/"), "/foo", true),
        (prefix("/foo/"), "/foo/bar", true),
        (prefix("/foo/"), "/foobar", false),
        (prefix("/a/b"), "/a/bc", false),
        (prefix("/a/b"), "/a/b/c/d", true),
        (prefix("/"), "/", true),
        (prefix("/"), "/anything", true),
        (prefix(""), "/anything", true),
        (text_prefix("/foo"), "/foobar", true),
        (text_prefix("/foo"), "/foo", true),
        (text_prefix("/foo/"), "/foo", false),
        (text_prefix("/"), "/x", true),
        (expression("/foo"), "/foo", true),
        (expression("/foo"), "/foo/bar", false),
        (expression("/v[0-9]+/.*"), "/v12/x", true),
        (expression("/v[0-9]+/.*"), "/vx/x", false),
        (expression("/a|/b"), "/b", true),
        (expression("/a|/b"), "/ab", false),
        (expression("/[^/]+/Get"), "/shop.Cart/Get", true),
        (expression(r"/\d+"), "/12", true),
        (ignoring_case(exact("/Foo")), "/fOO", true),
        (ignoring_case(prefix("/Foo")), "/foo/Bar", true),
        (ignoring_case(prefix("/Foo")), "/foobar", false),
        (ignoring_case(expression("/foo.*")), "/FOO1", true),
        (any(), "/whatever", true),
        // Rules are written by people, paths arrive in their normal form.
        (exact("/a b"), "/a%20b", true),
        (exact("/%61"), "/a", true),
        (prefix("/caf\u{e9}"), "/caf%C3%A9/x", true),
    ];
    for (matches, path, expected) in cases {
        let got = meets(matches.clone(), &Request::to(path));
        assert_eq!(got, expected, "{matches:?} of {path}");
    }
}

#[test]
fn a_header_is_matched_as_its_kind_says() {
    let header = |value| any().header("x-version", value);
    let sent = |value: &str| Request::to("/").header("x-version", value);
    let without = Request::to("/");
    let twice = sent("v1").header("X-Version", "v2");
    let cases = [
        (header(is("v1")), sent("v1"), true),
        (header(is("v1")), sent("V1"), false),
        (header(is("v1")), sent("v10"), false),
        (header(is("v1")), without.clone(), false),
        (header(is("v1,v2")), twice.clone(), true),
        (header(is("v1")), twice.clone(), false),
        (header(not(is("v1"))), sent("v1"), false),
        (header(not(is("v1"))), sent("v2"), true),
        (header(not(is("v1"))), without.clone(), true),
        (header(text(Text::Prefix("v".into()))), sent("v1"), true),
        (header(text(Text::Suffix("1".into()))), sent("v1"), true),
        (header(text(Text::Suffix("v11".into()))), sent("v1"), false),
        (header(text(Text::Regex("v[0-9]".into()))), sent("v1"), true),
        (
            header(text(Text::Regex("v[0-9]".into()))),
            sent("xv1"),
            false,
        ),
        (
            header(text(Text::Regex("v[0-9]".into()))),
            sent("v1x"),
            false,
        ),
        (header(text(Text::Regex("v1".into()))), twice, false),
        (header(text(Text::Present(true))), sent(""), true),
        (header(text(Text::Present(true))), without.clone(), false),
        (header(text(Text::Present(false))), without.clone(), true),
        (header(text(Text::Present(false))), sent("v1"), false),
        (header(not(text(Text::Present(true)))), without, true),
    ];
    for (matches, request, expected) in cases {
        let got = meets(matches.clone(), &request);
        assert_eq!(got, expected, "{matches:?} of {:?}", request.headers);
    }
}

#[test]
fn names_of_headers_have_no_case_and_names_of_parameters_have() {
    let upper = any().header("X-Version", is("1"));
    assert!(meets(upper, &Request::to("/").header("x-version", "1")));
    assert!(!meets(any().query("P", is("1")), &Request::to("/?p=1")));
}

#[test]
fn a_parameter_is_matched_by_its_first_value_decoded() {
    let parameter = |value: &str| any().query("animal", is(value));
    let cases = [
        ("whale", "/?animal=whale", true),
        ("whale", "/?animal=whales", false),
        ("whale", "/?animal=dolphin&animal=whale", false),
        ("whale", "/?animal=whale&animal=dolphin", true),
        ("whale", "/?other=1&animal=whale", true),
        ("whale", "/", false),
        ("whale", "/?animals=whale", false),
        ("", "/?animal", true),
        ("", "/?animal=", true),
        ("a=b", "/?animal=a=b", true),
        ("blue whale", "/?animal=blue%20whale", true),
        ("blue whale", "/?animal=blue+whale", true),
        ("whale", "/?%61nimal=whale", true),
        ("100%", "/?animal=100%", true),
        ("caf\u{e9}", "/?animal=caf%C3%A9", true),
    ];
    for (value, target, expected) in cases {
        let got = meets(parameter(value), &Request::to(target));
        assert_eq!(got, expected, "{value} of {target}");
    }
}

#[test]
fn all_conditions_of_a_match_must_hold_and_any_match_of_a_rule() {
    let both = prefix("/a")
        .header("version", is("two"))
        .query("p", is("1"))
        .method("GET");
    let good = Request::to("/a/b?p=1").header("version", "two");
    assert!(meets(both.clone(), &good));
    assert!(!meets(both.clone(), &good.clone().method("POST")));
    assert!(!meets(both.clone(), &Request::to("/a/b?p=1")));
    assert!(!meets(both, &Request::to("/a/b").header("version", "two")));

    let either = rule("web", 0).when(exact("/a")).when(exact("/b"));
    let table = Table::compile(&[(&either.origin, &either.route)]);
    for (path, expected) in [("/a", true), ("/b", true), ("/c", false)] {
        assert_eq!(table.find(&Request::to(path).asked()).is_some(), expected);
    }
}

#[test]
fn scheme_port_and_client_are_conditions_too() {
    let scheme = Match {
        scheme: Some(is("https")),
        ..any()
    };
    assert!(!meets(scheme, &Request::to("/")));
    let port = Match {
        port: 8080,
        ..any()
    };
    assert!(!meets(port.clone(), &Request::to("/")));
    let mut other = Request::to("/");
    other.port = 8080;
    assert!(meets(port, &other));
    let namespace = Match {
        source_namespaces: vec!["shop".into(), "test".into()],
        ..any()
    };
    assert!(meets(
        namespace.clone(),
        &Request::to("/").of_namespace("test")
    ));
    assert!(!meets(
        namespace.clone(),
        &Request::to("/").of_namespace("prod")
    ));
    assert!(!meets(namespace, &Request::to("/")));
    let authority = Match {
        authority: Some(is("web.shop")),
        ..any()
    };
    assert!(meets(authority.clone(), &Request::to("/")));
    assert!(!meets(authority, &Request::to("/").host("other")));
}

#[test]
fn a_host_matches_by_its_name_and_with_the_port_that_was_asked_for() {
    let pattern = text(Text::Regex(r"web\..*:8080".to_owned()));
    let cases = [
        (is("web.shop"), "web.shop", true),
        (is("web.shop"), "web.shop:8080", true),
        (is("web.shop:8080"), "web.shop:8080", true),
        (is("web.shop:8080"), "WEB.shop:8080", true),
        // The same host and port, however a client writes them: nobody gets around a rule by a dot.
        (is("web.shop:8080"), "web.shop.:8080", true),
        (is("web.shop:8080"), "web.shop:08080", true),
        (is("web.shop:8080"), "web.shop", false),
        (is("web.shop:8080"), "web.shop:80", false),
        (pattern.clone(), "web.shop:8080", true),
        (pattern, "web.shop", false),
    ];
    for (wanted, authority, expected) in cases {
        let shown = format!("{wanted:?} for {authority}");
        let wanted = Match {
            authority: Some(wanted),
            ..any()
        };
        let Written { origin, route } = rule("web", 0).when(wanted);
        let table = Table::compile(&[(&origin, &route)]);
        let request = Request::to("/");
        let asked = Asked {
            authority,
            ..request.asked()
        };
        assert_eq!(table.find(&asked).is_some(), expected, "{shown}");
    }
}

#[test]
fn labels_of_a_client_are_those_its_proxy_says() {
    let labelled = Match {
        source_labels: [
            ("version".into(), "v2".into()),
            ("app".into(), "web".into()),
        ]
        .into(),
        ..any()
    };
    let mut request = Request::to("/");
    assert!(!meets(labelled.clone(), &request));
    request.client.said.service = Some("web".into());
    request.client.said.revision = Some("v2".into());
    assert!(meets(labelled, &request));
}

#[test]
fn a_wildcard_stands_for_one_label_or_more() {
    let written = rule("web", 0).hosts(&["*.example.org", "Shop.example.com"]);
    let table = Table::compile(&[(&written.origin, &written.route)]);
    for (host, expected) in [
        ("a.example.org", true),
        ("b.a.example.org", true),
        ("example.org", false),
        (".example.org", false),
        ("aexample.org", false),
        ("shop.example.com", true),
        ("a.shop.example.com", false),
    ] {
        let request = Request::to("/").host(host);
        let found = table.find(&request.asked()).is_some();
        assert_eq!(found, expected, "{host}");
    }
}

#[test]
fn a_rule_of_grpc_is_for_grpc_alone() {
    let written = rule("web", 0).when(exact("/shop.Cart/Get")).grpc();
    let table = Table::compile(&[(&written.origin, &written.route)]);
    for (kind, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;charset=utf-8", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        let request = Request::to("/shop.Cart/Get").header("content-type", kind);
        let found = table.find(&request.asked()).is_some();
        assert_eq!(found, expected, "{kind}");
    }
}

#[test]
fn what_cannot_be_understood_is_refused_with_a_reason() {
    let cases = [
        (expression("/a("), "regular expression"),
        (expression("/a)|(/b"), "regular expression"),
        (expression(&"a".repeat(5000)), "longer than"),
        (expression(r"/(\w{1000}){100}"), "too large"),
        (any().header("no header", is("1")), "not a name of a header"),
        (any().method("NO METHOD"), "method"),
        (
            Match {
                port: 70_000,
                ..any()
            },
            "port 70000",
        ),
        (
            Match {
                source_labels: [("team".into(), "a".into())].into(),
                ..any()
            },
            "label",
        ),
    ];
    for (matches, reason) in cases {
        let Written { origin, route } = rule("web", 0).when(matches);
        let why = Rule::compile(&origin, &route).unwrap_err();
        assert!(why.contains(reason), "{why}");
    }
    let hosts = rule("web", 0).hosts(&["a.*.example"]);
    assert!(Rule::compile(&hosts.origin, &hosts.route).is_err());
}

#[test]
fn a_rule_that_is_not_understood_closes_rather_more_than_it_is_for() {
    let bad = prefix("/admin").header("x-version", text(Text::Regex("(".into())));
    let bad = rule("web", 0).when(bad.method("GET")).hosts(&["web.shop"]);
    let good = rule("web", 1).when(any());
    let table = Table::compile(&[(&bad.origin, &bad.route), (&good.origin, &good.route)]);
    let broken = |request: Request| {
        let found = table.find(&request.asked()).unwrap();
        found.rule.broken.is_some()
    };
    assert!(broken(Request::to("/admin/x")));
    assert!(!broken(Request::to("/other")));
    assert!(!broken(Request::to("/admin").method("POST")));
    assert!(!broken(Request::to("/admin").host("other")));
    let Written { origin, route } = rule("web", 0).when(expression("/a("));
    let table = Table::compile(&[(&origin, &route)]);
    let found = table.find(&Request::to("/anything").asked());
    assert!(found.unwrap().rule.broken.is_some());
}

#[test]
fn a_rule_without_matches_is_for_everything_and_a_table_without_rules_for_nothing() {
    let Written { origin, route } = rule("web", 0);
    assert_eq!(route, Route::default());
    let table = Table::compile(&[(&origin, &route)]);
    assert!(table.find(&Request::to("/x").asked()).is_some());
    assert!(
        table
            .find(&Request::to("*").method("OPTIONS").asked())
            .is_some()
    );
    let none = Table::compile(&[]);
    assert!(none.is_empty());
    assert!(none.find(&Request::to("/x").asked()).is_none());
}

#[test]
fn clients_that_are_named_one_by_one_are_matched_when_they_are_known() {
    let matches = |uids: &[&str]| Match {
        source_workloads: Some(api::waypoint::Workloads {
            uids: uids.iter().map(|uid| (*uid).to_owned()).collect(),
        }),
        ..any()
    };
    let known = Request::to("/").of_workload("c//Pod/a/one");
    for (uids, request, expected) in [
        (&["c//Pod/a/two", "c//Pod/a/one"][..], &known, true),
        (&["c//Pod/a/two"], &known, false),
        (&[], &known, false),
        (&["c//Pod/a/one"], &Request::to("/"), false),
    ] {
        assert_eq!(meets(matches(uids), request), expected, "{uids:?}");
    }
}
