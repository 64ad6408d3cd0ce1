//! Which rule is for a connection.

use api::waypoint::{Origin, TcpRoute};
use waypoint::client::Client;
use waypoint::route::TcpTable;

use super::request::Request;

fn rule(name: &str, created: i64, sni: &[&str], namespaces: &[&str]) -> (Origin, TcpRoute) {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).into()).collect();
    let origin = Origin {
        namespace: "shop".into(),
        name: name.into(),
        created,
        ..Origin::default()
    };
    let route = TcpRoute {
        sni: texts(sni),
        source_namespaces: texts(namespaces),
        ..TcpRoute::default()
    };
    (origin, route)
}

fn client(namespace: Option<&str>) -> Client {
    let request = Request::to("/");
    match namespace {
        Some(namespace) => request.of_namespace(namespace).client,
        None => request.client,
    }
}

#[test]
fn a_rule_for_some_workloads_is_for_no_others_and_for_nobody_unknown() {
    let (origin, mut route) = rule("some", 1, &[], &[]);
    let uids = vec!["c//Pod/a/two".to_owned(), "c//Pod/a/one".to_owned()];
    route.source_workloads = Some(api::waypoint::Workloads { uids });
    let table = TcpTable::compile(&[(&origin, &route)]);
    for (uid, found) in [(None, false), (Some("one"), true), (Some("three"), false)] {
        let client = match uid {
            Some(uid) => {
                Request::to("/")
                    .of_workload(&format!("c//Pod/a/{uid}"))
                    .client
            }
            None => client(None),
        };
        assert_eq!(table.find(None, &client).is_some(), found, "{uid:?}");
    }
}

#[test]
fn a_connection_goes_by_the_name_it_asks_for_then_by_age() {
    let rules = [
        rule("all", 9, &[], &[]),
        rule("older", 1, &[], &[]),
        rule("wild", 5, &["*.example.org"], &[]),
        rule("name", 6, &["a.example.org"], &[]),
        rule("test", 0, &["a.example.org"], &["test"]),
    ];
    let rules: Vec<_> = rules
        .iter()
        .map(|(origin, route)| (origin, route))
        .collect();
    let table = TcpTable::compile(&rules);
    let cases = [
        (None, None, "older"),
        (Some("a.example.org"), None, "name"),
        (Some("a.example.org"), Some("test"), "test"),
        (Some("a.example.org"), Some("prod"), "name"),
        (Some("b.example.org"), None, "wild"),
        (Some("example.org"), None, "older"),
    ];
    for (sni, namespace, expected) in cases {
        let found = table.find(sni, &client(namespace)).unwrap();
        assert_eq!(&*found.name.name, expected, "{sni:?} {namespace:?}");
    }
    assert!(TcpTable::compile(&[]).find(None, &client(None)).is_none());
}

#[test]
fn rules_for_clients_of_one_namespace_are_no_rules_for_others() {
    let rules = [
        rule("front", 1, &[], &["front"]),
        rule("named", 2, &["a.example.org"], &["named"]),
        rule("all", 3, &["a.example.org"], &[]),
    ];
    let rules: Vec<_> = rules
        .iter()
        .map(|(origin, route)| (origin, route))
        .collect();
    let cases = [
        (0, [false; 4]),
        (1, [true, false, false, false]),
        (2, [true, true, false, false]),
        (3, [true; 4]),
    ];
    let namespaces = [Some("front"), Some("named"), Some("shop"), None];
    for (count, concerned) in cases {
        let table = TcpTable::compile(&rules[..count]);
        let found = namespaces.map(|namespace| table.concerns(namespace));
        assert_eq!(found, concerned, "{count}");
    }
}

#[test]
fn one_that_is_not_understood_closes_what_it_is_for() {
    let (origin, mut route) = rule("bad", 1, &["a.example.org"], &[]);
    route.backends.push(api::waypoint::Backend {
        weight: 1,
        ..Default::default()
    });
    let table = TcpTable::compile(&[(&origin, &route)]);
    assert!(
        table
            .find(Some("a.example.org"), &client(None))
            .unwrap()
            .broken
            .is_some()
    );
    assert!(table.find(Some("b.example.org"), &client(None)).is_none());
}
