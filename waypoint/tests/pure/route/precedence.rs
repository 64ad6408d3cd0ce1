//! Which of several rules that match is meant: the specification's own examples, and the conformance suite's.

use waypoint::route::Table;

use super::request::Request;
use super::wire::{Conditions, Written, any, exact, expression, is, prefix, rule, text_prefix};

fn table(rules: &[Written]) -> Table {
    let rules: Vec<_> = rules.iter().map(|it| (&it.origin, &it.route)).collect();
    Table::compile(&rules)
}

/// For each request the rule that is for it, `-` for none.
fn check(rules: &[Written], cases: &[(Request, &str)]) {
    let backwards: Vec<_> = rules.iter().rev().cloned().collect();
    for table in [table(rules), table(&backwards)] {
        for (request, expected) in cases {
            let found = table.find(&request.asked());
            let name = found.map_or("-", |found| &*found.rule.name.rule);
            assert_eq!(name, *expected, "{request:?}");
        }
    }
}

#[test]
fn a_more_specific_path_goes_first_wherever_it_stands() {
    let rules = [
        rule("any", 0).when(any()),
        rule("root", 0).when(prefix("/")).created(1),
        rule("expression", 0).when(expression("/match.*")),
        rule("longer", 0).when(expression("/match/.*e.*")),
        rule("short", 0).when(prefix("/match/")),
        rule("exact", 0).when(exact("/match/exact")),
        rule("long", 0).when(prefix("/match/prefix")),
        rule("longest", 0).when(prefix("/match/prefix/one")),
    ];
    check(
        &rules,
        &[
            (Request::to("/match/exact"), "exact-0"),
            (Request::to("/match/exact/one"), "short-0"),
            (Request::to("/match/prefix"), "long-0"),
            (Request::to("/match/prefix/one"), "longest-0"),
            (Request::to("/match/prefix/one/any"), "longest-0"),
            (Request::to("/match/any"), "short-0"),
            (Request::to("/matching/e"), "expression-0"),
            (Request::to("/other"), "any-0"),
        ],
    );
}

#[test]
fn then_a_method_then_headers_then_parameters() {
    let rules = [
        rule("plain", 0).when(prefix("/a")),
        rule("query", 0).when(prefix("/a").query("p", is("1")).query("q", is("1"))),
        rule("header", 0).when(prefix("/a").header("x", is("1"))),
        rule("headers", 0).when(prefix("/a").header("x", is("1")).header("y", is("1"))),
        rule("method", 0).when(prefix("/a").method("PUT")),
        rule("longer", 0).when(prefix("/a/b")),
    ];
    let all = || Request::to("/a?p=1&q=1").header("x", "1").header("y", "1");
    check(
        &rules,
        &[
            (all().method("PUT"), "method-0"),
            (all(), "headers-0"),
            (Request::to("/a?p=1&q=1").header("x", "1"), "header-0"),
            (Request::to("/a?p=1&q=1"), "query-0"),
            (Request::to("/a?p=1"), "plain-0"),
            (
                Request::to("/a/b?p=1&q=1").header("x", "1").method("PUT"),
                "longer-0",
            ),
        ],
    );
}

#[test]
fn ties_are_broken_by_age_then_name_then_place() {
    let same = |object, index| rule(object, index).when(prefix("/a"));
    let older = [same("a", 0).created(2), same("z", 0).created(1)];
    check(&older, &[(Request::to("/a"), "z-0")]);
    let named = [same("b", 0), same("a", 1), same("a", 2)];
    check(&named, &[(Request::to("/a"), "a-1")]);
    let mut elsewhere = same("a", 0);
    elsewhere.origin.namespace = "zoo".into();
    check(&[elsewhere, same("b", 5)], &[(Request::to("/a"), "b-5")]);
}

#[test]
fn an_older_object_does_not_go_before_a_more_specific_match() {
    let rules = [
        rule("old", 0).when(prefix("/")).created(1),
        rule("new", 0).when(prefix("/v2")).created(9),
    ];
    check(
        &rules,
        &[(Request::to("/v2"), "new-0"), (Request::to("/"), "old-0")],
    );
}

#[test]
fn a_host_goes_before_a_path() {
    let rules = [
        rule("all", 0).when(exact("/path")),
        rule("wild", 0)
            .when(exact("/path"))
            .hosts(&["*.example.org"]),
        rule("wilder", 0)
            .when(prefix("/path"))
            .hosts(&["*.b.example.org"]),
        rule("name", 0)
            .when(prefix("/path"))
            .hosts(&["a.b.example.org"]),
    ];
    check(
        &rules,
        &[
            (Request::to("/path").host("a.b.example.org"), "name-0"),
            (Request::to("/path").host("c.b.example.org"), "wilder-0"),
            (Request::to("/path").host("c.example.org"), "wild-0"),
            (Request::to("/path").host("example.org"), "all-0"),
            (Request::to("/other").host("a.b.example.org"), "-"),
        ],
    );
}

#[test]
fn listed_rules_keep_their_order_and_go_before_the_others() {
    let rules = [
        rule("listed", 0).when(text_prefix("/a")).listed(),
        rule("listed", 1).when(exact("/ab")).listed(),
        rule("listed", 2)
            .when(text_prefix("/b").header("x", is("1")))
            .listed(),
        rule("route", 0).when(exact("/b/c")),
        rule("route", 1).when(exact("/ab")),
    ];
    check(
        &rules,
        &[
            (Request::to("/ab"), "listed-0"),
            (Request::to("/b/c"), "route-0"),
            (Request::to("/b/c").header("x", "1"), "listed-2"),
            (Request::to("/c"), "-"),
        ],
    );
}

#[test]
fn a_consumers_own_rules_go_first_for_its_namespace_alone() {
    let rules = [
        rule("producer", 0).when(exact("/a")).created(1),
        rule("producer", 1).when(exact("/b")).listed(),
        rule("consumer", 0)
            .when(prefix("/a"))
            .for_consumers_in("client"),
    ];
    check(
        &rules,
        &[
            (Request::to("/a").of_namespace("client"), "consumer-0"),
            (Request::to("/a").of_namespace("other"), "producer-0"),
            (Request::to("/a"), "producer-0"),
            (Request::to("/b").of_namespace("client"), "producer-1"),
        ],
    );
}

#[test]
fn of_grpc_a_service_and_method_go_before_a_service_before_a_method() {
    let rules = [
        rule("any", 0).grpc(),
        rule("method", 0).when(expression("/[^/]+/Echo")).grpc(),
        rule("service", 0).when(prefix("/shop.Echo")).grpc(),
        rule("both", 0).when(exact("/shop.Echo/Echo")).grpc(),
    ];
    let call = |path| Request::to(path).header("content-type", "application/grpc");
    check(
        &rules,
        &[
            (call("/shop.Echo/Echo"), "both-0"),
            (call("/shop.Echo/EchoTwo"), "service-0"),
            (call("/shop.Other/Echo"), "method-0"),
            (call("/shop.Other/Any"), "any-0"),
        ],
    );
}

/// MeshHTTPRouteMatching and HTTPRouteMatching: one route, prefix or header.
#[test]
fn as_the_conformance_suite_matches() {
    let rules = [
        rule("matching", 0)
            .when(prefix("/"))
            .when(any().header("version", is("one"))),
        rule("matching", 1)
            .when(prefix("/v2"))
            .when(any().header("version", is("two"))),
    ];
    let version = |path, version| Request::to(path).header("version", version);
    check(
        &rules,
        &[
            (Request::to("/"), "matching-0"),
            (Request::to("/example"), "matching-0"),
            (version("/", "one"), "matching-0"),
            (Request::to("/v2"), "matching-1"),
            (Request::to("/v2/"), "matching-1"),
            (Request::to("/v2/example"), "matching-1"),
            (Request::to("/v2example"), "matching-0"),
            (version("/", "two"), "matching-1"),
            (version("/foo", "two"), "matching-1"),
        ],
    );
}

/// HTTPRouteMatchingAcrossRoutes: two objects, each with some of it.
#[test]
fn as_the_conformance_suite_matches_across_objects() {
    let hosts = ["example.com", "example.net"];
    let rules = [
        rule("part1", 0).when(prefix("/")).created(1).hosts(&hosts),
        rule("part1", 1)
            .when(any().header("version", is("one")))
            .created(1)
            .hosts(&hosts),
        rule("part2", 0)
            .when(prefix("/v2"))
            .created(2)
            .hosts(&["example.com"]),
        rule("part2", 1)
            .when(any().header("version", is("two")))
            .created(2)
            .hosts(&["example.com"]),
    ];
    let to = |host, path| Request::to(path).host(host);
    check(
        &rules,
        &[
            (to("example.com", "/"), "part1-0"),
            (to("example.com", "/example"), "part1-0"),
            (to("example.net", "/example"), "part1-0"),
            (
                to("example.com", "/example").header("version", "one"),
                "part1-1",
            ),
            (to("example.com", "/v2"), "part2-0"),
            (to("example.net", "/v2"), "part1-0"),
            (to("example.com", "/v2/example"), "part2-0"),
            (to("example.com", "/").header("version", "two"), "part2-1"),
        ],
    );
}

/// HTTPRouteQueryParamMatching and HTTPRouteMethodMatching.
#[test]
fn as_the_conformance_suite_breaks_ties() {
    let rules = [
        rule("query", 0).when(any().query("animal", is("whale"))),
        rule("query", 1).when(any().query("animal", is("dolphin"))),
        rule("query", 2).when(
            any()
                .query("animal", is("dolphin"))
                .query("color", is("blue")),
        ),
        rule("query", 3).when(any().query("ANIMAL", is("Whale"))),
        rule("query", 4).when(prefix("/path1").query("animal", is("whale"))),
        rule("query", 5).when(
            any()
                .header("version", is("one"))
                .query("animal", is("whale")),
        ),
        rule("query", 6).when(prefix("/path1").method("POST")),
    ];
    check(
        &rules,
        &[
            (Request::to("/?animal=whale"), "query-0"),
            (Request::to("/?animal=dolphin"), "query-1"),
            (
                Request::to("/?animal=whale&otherparam=irrelevant"),
                "query-0",
            ),
            (Request::to("/?animal=dolphin&color=blue"), "query-2"),
            (Request::to("/?ANIMAL=Whale"), "query-3"),
            (Request::to("/path1?animal=whale"), "query-4"),
            (
                Request::to("/?animal=whale").header("version", "one"),
                "query-5",
            ),
            (Request::to("/path1?animal=whale").method("POST"), "query-6"),
            (Request::to("/?animal=shark"), "-"),
            (Request::to("/path5?animal=%68"), "-"),
        ],
    );
}
