//! Random rules and requests of a few words, so that much of it meets.

use std::sync::Arc;

use api::waypoint::path_match::Match as Path;
use api::waypoint::route::Precedence;
use api::waypoint::string_match::Match as Text;
use api::waypoint::{Match, NamedMatch, PathMatch, StringMatch};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use waypoint::route::{Rule, Table};

use super::oracle;
use super::request::Request;
use super::wire::{Written, rule};

const HOSTS: [&str; 6] = [
    "web.shop",
    "a.example",
    "b.a.example",
    "*.example",
    "*.a.example",
    "c.b.a.example",
];
const NAMESPACES: [&str; 3] = ["shop", "test", "other"];
const VALUES: [&str; 4] = ["v1", "v2", "V1", "v12"];
const EXPRESSIONS: [&str; 16] = [
    "/a.*",
    "/a/[ab]+",
    "/(a|b)/.*",
    "/a|/b",
    "/a/b|/ab.*",
    "/ab?",
    "/ab*/a",
    "/a/b{0,2}",
    "(?i)/A/.*",
    ".*",
    "/a\\.b",
    "/[^/]+/b",
    "/a(b|c)?",
    "/a+/a",
    "/A(?i)b",
    "/(?:a|b|ab)(/a)?|/A",
];

const SEGMENTS: [&str; 6] = ["a", "b", "ab", "A", "a.b", ""];

fn segments() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(SEGMENTS.to_vec());
    vec(segment, 0..4).prop_map(|segments| format!("/{}", segments.join("/")))
}

fn path() -> impl Strategy<Value = PathMatch> {
    let how = prop_oneof![
        segments().prop_map(Path::Exact),
        segments().prop_map(Path::Prefix),
        segments().prop_map(Path::TextPrefix),
        prop::sample::select(EXPRESSIONS.to_vec()).prop_map(|text| Path::Regex(text.into())),
    ];
    (how, prop::bool::weighted(0.15)).prop_map(|(how, ignore_case)| PathMatch {
        ignore_case,
        r#match: Some(how),
    })
}

fn text() -> impl Strategy<Value = StringMatch> {
    let value = || prop::sample::select(VALUES.to_vec()).prop_map(String::from);
    let how = prop_oneof![
        5 => value().prop_map(Text::Exact),
        1 => value().prop_map(Text::Prefix),
        1 => value().prop_map(Text::Suffix),
        1 => Just(Text::Regex("v[0-9]".into())),
        1 => any::<bool>().prop_map(Text::Present),
    ];
    let seldom = || prop::bool::weighted(0.1);
    (how, seldom(), seldom()).prop_map(|(how, ignore_case, invert)| StringMatch {
        r#match: Some(how),
        ignore_case,
        invert,
    })
}

fn named(names: [&'static str; 2]) -> impl Strategy<Value = Vec<NamedMatch>> {
    let one = (prop::sample::select(names.to_vec()), text());
    let one = one.prop_map(|(name, value)| NamedMatch {
        name: name.into(),
        value: Some(value),
    });
    vec(one, 0..3)
}

fn condition() -> impl Strategy<Value = Match> {
    let method = prop::sample::select(vec!["GET", "POST"]);
    (
        option::weighted(0.8, path()),
        named(["x-one", "x-two"]),
        prop_oneof![2 => Just(Vec::new()), 1 => named(["p", "q"])],
        option::weighted(0.2, method),
        prop_oneof![8 => Just(0u32), 1 => Just(80), 1 => Just(8080)],
        vec(prop::sample::select(NAMESPACES.to_vec()), 0..2),
    )
        .prop_map(|(path, headers, query, method, port, namespaces)| Match {
            path,
            headers,
            query,
            method: method.map(super::wire::is),
            port,
            source_namespaces: namespaces.into_iter().map(String::from).collect(),
            ..Match::default()
        })
}

fn written() -> impl Strategy<Value = Written> {
    (
        vec(condition(), 0..4),
        prop_oneof![2 => Just(vec![]), 1 => vec(prop::sample::select(HOSTS.to_vec()), 1..3)],
        (0..2i64, prop::sample::select(vec!["one", "two"])),
        prop::bool::weighted(0.25),
        option::weighted(0.2, prop::sample::select(NAMESPACES.to_vec())),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(matches, hosts, (created, object), listed, consumer, grpc)| {
                let mut written = rule(object, 0).hosts(&hosts).created(created);
                written.route.matches = matches;
                written.route.grpc = grpc;
                if listed {
                    written.route.precedence = Precedence::Listed.into();
                }
                written.route.consumer_namespace = consumer.unwrap_or_default().into();
                written
            },
        )
}

fn request() -> impl Strategy<Value = Request> {
    let value = || prop::sample::select(VALUES.to_vec());
    (
        segments(),
        prop::sample::select(
            HOSTS
                .iter()
                .filter(|host| !host.contains('*'))
                .collect::<Vec<_>>(),
        ),
        vec(
            (prop::sample::select(vec!["x-one", "x-two"]), value()),
            0..4,
        ),
        vec((prop::sample::select(vec!["p", "q"]), value()), 0..3),
        prop::sample::select(vec!["GET", "POST"]),
        option::of(prop::sample::select(NAMESPACES.to_vec())),
        (any::<bool>(), any::<bool>()),
    )
        .prop_map(
            |(path, host, headers, query, method, namespace, (grpc, other_port))| {
                let mut request = Request::to(&path).host(host).method(method);
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                let pairs = query.iter().map(|(name, value)| format!("{name}={value}"));
                let pairs: Vec<_> = pairs.collect();
                request.query = (!pairs.is_empty()).then(|| pairs.join("&"));
                if grpc {
                    request = request.header("content-type", "application/grpc");
                }
                if other_port {
                    request.port = 8080;
                }
                match namespace {
                    Some(namespace) => request.of_namespace(namespace),
                    None => request,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_index_answers_as_a_look_at_every_rule_does(
        mut rules in vec(written(), 1..40),
        requests in vec(request(), 25),
    ) {
        for (number, written) in rules.iter_mut().enumerate() {
            written.origin.index = number as u32;
            written.origin.rule = number.to_string();
        }
        let compiled = rules.iter().map(|written| {
            Arc::new(Rule::compile(&written.origin, &written.route).unwrap())
        });
        // In whatever order they come.
        let mut compiled: Vec<_> = compiled.collect();
        compiled.reverse();
        let table = Table::of(compiled);
        for request in &requests {
            let found = table.find(&request.asked()).map(|found| &*found.rule.name.rule);
            prop_assert_eq!(found, oracle::find(&rules, request), "{:?}", request);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_table_that_rules_have_left_answers_as_if_they_had_never_been_there(
        mut rules in vec((written(), any::<bool>()), 1..40),
        requests in vec(request(), 25),
    ) {
        for (number, (written, _)) in rules.iter_mut().enumerate() {
            written.origin.index = number as u32;
            written.origin.rule = number.to_string();
        }
        let compile = |(written, stays): &(Written, bool)| {
            (Arc::new(Rule::compile(&written.origin, &written.route).unwrap()), *stays)
        };
        let compiled: Vec<_> = rules.iter().map(compile).collect();
        let whole = Table::of(compiled.iter().map(|(rule, _)| rule.clone()));
        let mut table = whole.clone();
        for (rule, _) in compiled.iter().filter(|(_, stays)| !stays) {
            table.remove(rule);
            table.remove(rule); // not there any more: nothing
        }
        let all: Vec<_> = rules.iter().map(|(written, _)| written.clone()).collect();
        let staying = rules.into_iter().filter(|(_, stays)| *stays);
        let staying: Vec<_> = staying.map(|(written, _)| written).collect();
        prop_assert_eq!(table.is_empty(), staying.is_empty());
        prop_assert_eq!(table.rules().count(), staying.len());
        for request in &requests {
            let name = |table: &Table| Some(table.find(&request.asked())?.rule.name.rule.to_string());
            let expected = oracle::find(&staying, request).map(str::to_owned);
            prop_assert_eq!(name(&table), expected, "{:?}", request);
            let expected = oracle::find(&all, request).map(str::to_owned);
            prop_assert_eq!(name(&whole), expected, "a copy stays as it was: {:?}", request);
        }
        for (rule, _) in compiled.iter().filter(|(_, stays)| !stays) {
            table.insert(rule.clone());
        }
        for request in &requests {
            let name = table.find(&request.asked()).map(|found| &*found.rule.name.rule);
            prop_assert_eq!(name, oracle::find(&all, request), "they came back: {:?}", request);
        }
    }
}

/// An expression is looked for where its first characters lead: that must never hide it.
#[test]
fn an_expression_is_found_for_every_path_that_it_matches() {
    let mut paths = vec![String::new()];
    for _ in 0..3 {
        let longer = paths.iter().flat_map(|path| {
            let segments = SEGMENTS.iter();
            segments.map(move |segment| format!("{path}/{segment}"))
        });
        let longer: Vec<_> = longer.collect();
        paths.extend(longer);
    }
    paths.retain(|path| !path.is_empty());
    paths.extend([
        "/abb".into(),
        "/abbb/a".into(),
        "/aa/a".into(),
        "/a/bb".into(),
    ]);
    for text in EXPRESSIONS {
        for ignore_case in [false, true] {
            let mut matches = super::wire::expression(text);
            if ignore_case {
                matches = super::wire::ignoring_case(matches);
            }
            let rules = [rule("one", 0).when(matches)];
            let table = Table::compile(&[(&rules[0].origin, &rules[0].route)]);
            for path in &paths {
                let request = Request::to(path);
                let found = table.find(&request.asked()).is_some();
                assert_eq!(
                    found,
                    oracle::find(&rules, &request).is_some(),
                    "{text} {path}"
                );
            }
        }
    }
}
