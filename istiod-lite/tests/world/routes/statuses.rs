//! What routes are told of themselves.

use api::k8s::objects::Kind;
use istiod_lite::world::World;
use serde_json::{Value, json};

use super::{mesh, names, route, said, service, set, to, told};

/// Type, whether it holds, and the reason of each condition at each parent.
fn conditions(world: &World, kind: Kind, namespace: &str) -> Vec<Vec<String>> {
    let said = said(world, kind, namespace);
    let parents = said.iter().flat_map(|it| &it.parents);
    let shown = parents.map(|parent| {
        assert_eq!(parent.controller, "istio.io/gateway-controller");
        let conditions = parent.conditions.iter();
        let shown = conditions.map(|it| format!("{}={} {}", it.r#type, it.status, it.reason));
        shown.collect()
    });
    shown.collect()
}

fn messages(world: &World) -> Vec<String> {
    let said = said(world, Kind::HttpRoute, "a").unwrap();
    let conditions = said.parents[0].conditions.iter();
    conditions.map(|it| it.message.clone()).collect()
}

const GOOD: [&str; 3] = [
    "Accepted=true Accepted",
    "ResolvedRefs=true ResolvedRefs",
    "ResolvedWaypoints=true ResolvedWaypoints",
];

#[test]
fn each_parent_is_answered_for_itself() {
    let missing = [
        "Accepted=false NoMatchingParent",
        GOOD[1],
        "ResolvedWaypoints=false NoMatchingParent",
    ];
    let no_waypoint = [
        GOOD[0],
        GOOD[1],
        "ResolvedWaypoints=false MissingUseWaypointLabel",
    ];
    let gateway = ["Accepted=false NotAllowedByListeners", GOOD[1]];
    let with_port = json!({"group": "", "kind": "Service", "name": "web", "port": 81});
    let cases: [(&str, Value, Vec<&[&str]>); 6] = [
        (
            "a",
            json!([service("web"), service("none")]),
            vec![&GOOD, &missing],
        ),
        ("a", json!([with_port]), vec![&missing]),
        ("c", json!([service("web")]), vec![&no_waypoint]),
        ("a", json!([{"name": "wp"}]), vec![&gateway]),
        // Others' to say.
        (
            "a",
            json!([{"name": "other"}, {"group": "x.y", "kind": "Z", "name": "z"}]),
            vec![],
        ),
        (
            "b",
            json!([{"group": "", "kind": "Service", "name": "web", "namespace": "a"}]),
            vec![&GOOD],
        ),
    ];
    for (namespace, parents, expected) in cases {
        let mut world = mesh();
        set(&mut world, &to(namespace, &parents));
        assert_eq!(
            conditions(&world, Kind::HttpRoute, namespace),
            expected,
            "{parents}"
        );
        if let Some(said) =
            said(&world, Kind::HttpRoute, namespace).filter(|it| !it.parents.is_empty())
        {
            assert_eq!(said.parents[0].reference, parents[0]);
            assert_eq!(said.generation, Some(3));
        }
    }
}

/// A route with annotations.
fn annotated(kind: &str, annotations: &str) -> String {
    let rules = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
    let route = route(
        kind,
        "a",
        &json!({"parentRefs": [service("web")], "rules": rules}),
    );
    let metadata = format!(r#""metadata":{{"annotations":{{{annotations}}},"#);
    route.replace(r#""metadata":{"#, &metadata)
}

#[test]
fn hedging_is_an_annotation_and_one_that_cannot_be_read_spoils_nothing_else() {
    let after = r#""ambit.io/hedge-after":"150ms""#;
    for (kind, annotations, hedge, said) in [
        ("HTTPRoute", "", Value::Null, None),
        (
            "HTTPRoute",
            after,
            json!({"after": "150", "atMost": 1}),
            Some("true Accepted"),
        ),
        (
            "HTTPRoute",
            &*format!(r#"{after},"ambit.io/hedge-at-most":"3""#),
            json!({"after": "150", "atMost": 3}),
            Some("true Accepted"),
        ),
        (
            "HTTPRoute",
            r#""ambit.io/hedge-after":"soon""#,
            Value::Null,
            Some("false Invalid"),
        ),
        (
            "GRPCRoute",
            after,
            json!({"after": "150", "atMost": 1, "calls": true}),
            Some("true Accepted"),
        ),
    ] {
        let mut world = mesh();
        set(&mut world, &annotated(kind, annotations));
        let key = format!("a/wp/{}/a/r/0", kind.to_lowercase());
        let told = told(&world);
        let route = &told[&key]["route"];
        assert_eq!(route["hedge"], hedge, "{kind} {annotations}");
        assert_eq!(route["backends"].as_array().map(Vec::len), Some(1));
        let shown = conditions(&world, kind.parse().unwrap(), "a");
        let mut expected: Vec<String> = GOOD.map(str::to_owned).into();
        expected.extend(said.map(|it| format!("ambit.io/Hedged={it}")));
        assert_eq!(shown, [expected], "{kind} {annotations}");
    }
}

#[test]
fn hedging_that_is_taken_back_is_no_longer_told() {
    let mut world = mesh();
    set(
        &mut world,
        &annotated("HTTPRoute", r#""ambit.io/hedge-after":"150ms""#),
    );
    set(&mut world, &annotated("HTTPRoute", ""));
    assert!(
        told(&world)["a/wp/httproute/a/r/0"]["route"]
            .get("hedge")
            .is_none()
    );
    assert_eq!(conditions(&world, Kind::HttpRoute, "a"), [GOOD]);
}

#[test]
fn a_route_for_a_waypoint_that_does_not_take_it_says_so() {
    let mut world = mesh();
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: a}\n\
        spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n---\n";
    set(&mut world, &(to("b", &json!([service("web")])) + gateway));
    let shown = conditions(&world, Kind::HttpRoute, "b");
    assert_eq!(shown[0][2], "ResolvedWaypoints=false NoMatchingParent");
}

#[test]
fn a_reference_that_leads_nowhere_is_named_the_worst_first() {
    let backend = |name: &str| json!({"name": name, "port": 80});
    let foreign = json!({"name": "web", "namespace": "c", "port": 80});
    let odd = json!({"group": "x.y", "kind": "Z", "name": "z"});
    for (backends, reason) in [
        (json!([backend("web")]), "ResolvedRefs=true ResolvedRefs"),
        (
            json!([backend("web"), backend("none")]),
            "ResolvedRefs=false BackendNotFound",
        ),
        (
            json!([{"name": "web"}]),
            "ResolvedRefs=false InvalidDestination",
        ),
        (
            json!([backend("none"), odd]),
            "ResolvedRefs=false InvalidKind",
        ),
        (
            json!([odd, backend("none"), foreign]),
            "ResolvedRefs=false RefNotPermitted",
        ),
    ] {
        let mut world = mesh();
        let spec = json!({"parentRefs": [service("web")], "rules": [{"backendRefs": backends}]});
        set(&mut world, &route("HTTPRoute", "a", &spec));
        assert_eq!(
            conditions(&world, Kind::HttpRoute, "a"),
            [[GOOD[0], reason, GOOD[2]]],
            "{backends}"
        );
        assert!(
            names(&world).contains(&"a/wp/httproute/a/r/0".to_owned()),
            "it answers 500"
        );
    }
}

#[test]
fn what_cannot_be_done_is_not_accepted_and_answers_500() {
    let redirect = json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "x"}});
    let rewrite = json!({"type": "URLRewrite", "urlRewrite": {"hostname": "x"}});
    for (filters, reason) in [
        (
            json!([{"type": "Compress"}]),
            "Accepted=false UnsupportedValue",
        ),
        (
            json!([redirect, rewrite]),
            "Accepted=false IncompatibleFilters",
        ),
    ] {
        let mut world = mesh();
        let spec = json!({"parentRefs": [service("web")], "rules": [{"filters": filters}]});
        set(&mut world, &route("HTTPRoute", "a", &spec));
        assert_eq!(conditions(&world, Kind::HttpRoute, "a")[0][0], reason);
        let told = told(&world);
        let told = told["a/wp/httproute/a/r/0"]["route"]["filters"]
            .as_array()
            .unwrap();
        assert!(told[0]["unknown"].is_string(), "{told:?}");
    }
}

/// What is wrong, with its place; nothing of it is in force, and then the last good version is.
#[test]
fn a_mistake_is_named_and_the_last_version_without_it_stays() {
    let cases = [
        (
            json!({"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}),
            "rules[0].matches[0].path.value: \"(\" is no regular expression",
        ),
        (
            json!({"matches": [{}, {"path": {"value": "a"}}]}),
            "rules[0].matches[1].path.value: \"a\" does not begin with /",
        ),
        (
            json!({"matches": [{"path": {"value": "/a/%2F"}}]}),
            "matches nothing",
        ),
        (
            json!({"matches": [{"path": {"value": "/a/.."}}]}),
            "matches nothing",
        ),
        (
            json!({"matches": [{"path": {"type": "Glob", "value": "/"}}]}),
            "path.type: \"Glob\" is none of Exact, PathPrefix, RegularExpression",
        ),
        (
            json!({"matches": [{"headers": [{"name": "a b", "value": "c"}]}]}),
            "rules[0].matches[0].headers[0].name: \"a b\" is no name of a header",
        ),
        (
            json!({"matches": [{"headers": [{"name": "a", "value": "b", "type": "Prefix"}]}]}),
            "headers[0].type: \"Prefix\" is none of Exact, RegularExpression",
        ),
        (json!({"matches": [{"method": "G T"}]}), "is no method"),
        (
            json!({"filters": [{"type": "URLRewrite"}]}),
            "rules[0].filters[0].type is URLRewrite, but its field is missing",
        ),
        (
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 200}}]}),
            "sends nobody elsewhere",
        ),
        (
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "ftp"}}]}),
            "\"ftp\" is none of http, https",
        ),
        (
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"port": 70000}}]}),
            "70000 is no port",
        ),
        (
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/a b"}}}]}),
            "cannot be the path",
        ),
        (
            json!({"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b\nc"}]}}]}),
            "is no value of a header",
        ),
        (
            json!({"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "web", "port": 80}, "percent": 1, "fraction": {"numerator": 1}}}]}),
            "both percent and fraction",
        ),
        (
            json!({"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "web", "port": 80}, "percent": 101}}]}),
            "101 of 100 is no share",
        ),
        (
            json!({"filters": [{"type": "CORS", "cors": {"allowOrigins": ["a.com"]}}]}),
            "neither * nor http(s)://host",
        ),
        (
            json!({"filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}}}], "matches": [{"path": {"type": "Exact", "value": "/a"}}]}),
            "ReplacePrefixMatch needs matches of type PathPrefix",
        ),
        (
            json!({"backendRefs": [{"name": "web", "port": 80, "weight": -1}]}),
            "rules[0].backendRefs[0].weight: -1 is no share",
        ),
        (
            json!({"timeouts": {"request": "5"}}),
            "timeouts.request: \"5\" is no duration",
        ),
        (
            json!({"timeouts": {"request": "1s", "backendRequest": "2s"}}),
            "backendRequest is longer than request",
        ),
        (
            json!({"retry": {"codes": [200]}}),
            "200 is no code of a failure",
        ),
        (json!({"retry": {"attempts": -1}}), "retry.attempts"),
        (
            json!({"sessionPersistence": {"type": "Fingerprint"}}),
            "\"Fingerprint\" is none of Cookie, Header",
        ),
        (
            json!({"sessionPersistence": {"cookieConfig": {"lifetimeType": "Permanent"}}}),
            "needs absoluteTimeout",
        ),
    ];
    for (rule, text) in cases {
        let mut world = mesh();
        let spec = |rule: &Value| json!({"parentRefs": [service("web")], "rules": [rule]});
        set(&mut world, &route("HTTPRoute", "a", &spec(&rule)));
        let said = &messages(&world)[0];
        assert!(said.contains(text), "{said} | {text}");
        assert!(said.contains("nothing of it is in force"), "{said}");
        assert_eq!(
            conditions(&world, Kind::HttpRoute, "a")[0][0],
            "Accepted=false UnsupportedValue"
        );
        assert_eq!(names(&world), ["a/wp/gateway/a/wp"], "{rule}");

        let good = json!({"matches": [{"path": {"value": "/good"}}]});
        set(&mut world, &route("HTTPRoute", "a", &spec(&good)));
        let before = told(&world);
        set(&mut world, &route("HTTPRoute", "a", &spec(&rule)));
        assert_eq!(told(&world), before);
        let said = &messages(&world)[0];
        assert!(
            said.contains("the last version without this fault stays in force"),
            "{said}"
        );
    }
}

#[test]
fn a_route_that_leaves_its_parents_says_nothing_more() {
    let mut world = mesh();
    set(&mut world, &to("a", &json!([service("web")])));
    assert_eq!(conditions(&world, Kind::HttpRoute, "a").len(), 1);
    set(&mut world, &to("a", &json!([{"name": "other"}])));
    assert_eq!(conditions(&world, Kind::HttpRoute, "a").len(), 0);
    assert!(
        said(&world, Kind::HttpRoute, "a").is_some(),
        "what was written is taken back"
    );
    assert_eq!(names(&world), ["a/wp/gateway/a/wp"]);
}
