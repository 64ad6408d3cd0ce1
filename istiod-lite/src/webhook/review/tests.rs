//! Questions as an API server asks them, and what it is told.

use std::sync::Arc;

use api::k8s::objects::{Kind, ObjectKey};
use ops::metrics::Registry;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::metrics::Metrics;

fn judge() -> Judge {
    Judge {
        root_namespace: "istio-system".into(),
        dry_run: false,
        exists: Arc::new(|key| {
            let known = ObjectKey::new(Kind::Gateway, "alpha", "waypoint");
            (key.kind != Kind::Service).then(|| *key == known)
        }),
        metrics: Metrics::register(&mut Registry::new("pilot", "test")),
    }
}

fn group(kind: &str) -> &'static str {
    if kind.ends_with("Route") {
        "gateway.networking.k8s.io"
    } else if kind.ends_with("Entry") || kind.ends_with("Rule") {
        "networking.istio.io"
    } else {
        "security.istio.io"
    }
}

/// A review of the creation of `object` in namespace alpha.
fn created(kind: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5",
            "kind": {"group": group(kind), "version": "v1", "kind": kind},
            "resource": {"group": group(kind), "version": "v1", "resource": "any"},
            "operation": "CREATE",
            "name": "p",
            "namespace": "alpha",
            "userInfo": {"username": "admin"},
            "object": {
                "apiVersion": format!("{}/v1", group(kind)),
                "kind": kind,
                "metadata": {"name": "p", "namespace": "alpha"},
                "spec": spec,
            },
            "oldObject": null,
            "dryRun": false,
        },
    })
}

fn told(judge: &Judge, review: &Value) -> Value {
    let answer = answer(judge, review.to_string().as_bytes()).unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
    answer["response"].clone()
}

fn allowed(review: &Value) -> bool {
    told(&judge(), review)["allowed"] == true
}

const BAD: &str = r#"{"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/33"]}}]}]}"#;

fn bad() -> Value {
    serde_json::from_str(BAD).unwrap()
}

#[test]
fn a_route_is_never_refused_but_warned_of() {
    let rules = |expression: &str| json!([{"matches": [{"path": {"type": "RegularExpression", "value": expression}}]}]);
    let service = json!([{"group": "", "kind": "Service", "name": "web"}]);
    for (parents, expression, warned) in [
        (service.clone(), "/a(", true),
        (service, "/a", false),
        // Of others' Gateways others know more.
        (json!([{"name": "gateway"}]), "/a(", false),
    ] {
        let spec = json!({"parentRefs": parents, "rules": rules(expression)});
        let response = told(&judge(), &created("HTTPRoute", &spec));
        assert_eq!(response["allowed"], true);
        let warnings = response["warnings"].as_array().map_or(0, Vec::len);
        assert_eq!(warnings == 1, warned, "{response}");
    }
}

#[test]
fn a_refusal_names_field_value_reason_and_what_to_do() {
    let response = told(&judge(), &created("AuthorizationPolicy", &bad()));
    assert_eq!(
        response,
        json!({
            "uid": "705ab4f5",
            "allowed": false,
            "status": {
                "code": 422,
                "reason": "Invalid",
                "message": "AuthorizationPolicy alpha/p: spec.rules[0].from[0].source.ipBlocks[0]: \"10.0.0.0/33\" is neither an IP address nor a CIDR; write 192.0.2.1 or 192.0.2.0/24",
            },
        })
    );
}

#[test]
fn several_mistakes_are_told_at_once() {
    let spec = json!({"action": "FORBID", "rulez": []});
    let response = told(&judge(), &created("AuthorizationPolicy", &spec));
    assert_eq!(
        response["status"]["message"],
        "AuthorizationPolicy alpha/p has 2 mistakes:\n* spec.action: \"FORBID\" is not one of ALLOW, DENY, AUDIT, CUSTOM\n* spec.rulez: unknown field; did you mean rules?"
    );
    let spec = json!({"hosts": ["a b"], "ports": [{"number": 0, "name": ""}]});
    let message = told(&judge(), &created("ServiceEntry", &spec))["status"]["message"].clone();
    assert!(
        message
            .as_str()
            .unwrap()
            .starts_with("ServiceEntry alpha/p has 3 mistakes:\n* spec.hosts[0]: "),
        "{message}"
    );
}

#[test]
fn only_what_is_written_and_ours_is_judged() {
    let mut review = created("AuthorizationPolicy", &bad());
    assert!(!allowed(&review));
    for (field, value) in [
        ("operation", json!("DELETE")),
        ("operation", json!("CONNECT")),
        ("subResource", json!("status")),
        (
            "kind",
            json!({"group": "apps", "version": "v1", "kind": "Deployment"}),
        ),
        (
            "kind",
            json!({"group": "example.com", "version": "v1", "kind": "AuthorizationPolicy"}),
        ),
        (
            "kind",
            json!({"group": "security.istio.io", "version": "v7", "kind": "AuthorizationPolicy"}),
        ),
    ] {
        let before = std::mem::replace(&mut review["request"][field], value);
        assert!(allowed(&review), "{field} {}", review["request"][field]);
        review["request"][field] = before;
    }
    review["request"]["kind"]["version"] = json!("v1beta1");
    assert!(!allowed(&review), "another version of the same");
}

#[test]
fn what_was_wrong_before_does_not_keep_metadata_from_changing() {
    let mut review = created("AuthorizationPolicy", &bad());
    review["request"]["operation"] = json!("UPDATE");
    review["request"]["oldObject"] = review["request"]["object"].clone();
    review["request"]["object"]["metadata"]["labels"] = json!({"a": "b"});
    let response = told(&judge(), &review);
    assert_eq!(response["allowed"], true);
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(
        warning.starts_with("wrong already: spec.rules[0]"),
        "{warning}"
    );

    review["request"]["object"]["spec"]["action"] = json!("DENY");
    assert!(!allowed(&review), "the spec changed");
    review["request"]["object"]["spec"] = review["request"]["oldObject"]["spec"].clone();
    review["request"]["object"]["sepc"] = json!({});
    assert!(!allowed(&review), "something was added beside it");
    review["request"]["object"]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(allowed(&review), "it leaves");
}

#[test]
fn an_object_whose_name_is_still_to_be_generated_may_be_written() {
    let mut review = created("PeerAuthentication", &json!({}));
    review["request"]["object"]["metadata"] = json!({"generateName": "p-", "namespace": "alpha"});
    assert!(allowed(&review));
    review["request"]["object"]["metadata"] = json!({"namespace": "alpha"});
    assert!(!allowed(&review));
}

/// What is right but will not do what it looks like.
#[test]
fn warnings_say_what_will_not_work() {
    let policy = |spec| ("AuthorizationPolicy", "alpha", spec);
    let target = |group: &str, kind: &str, name: &str| {
        policy(json!({"targetRefs": [{"group": group, "kind": kind, "name": name}]}))
    };
    let root = |kind, spec| (kind, "istio-system", spec);
    let table = [
        (
            policy(json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]})),
            "methods",
        ),
        (policy(json!({"action": "AUDIT"})), "AUDIT"),
        (
            policy(json!({"action": "CUSTOM", "provider": {"name": "x"}})),
            "CUSTOM",
        ),
        (
            policy(
                json!({"rules": [{"from": [{"source": {"principals": ["spiffe://a/ns/b/sa/c"]}}]}]}),
            ),
            "as in \"a/ns/b/sa/c\"",
        ),
        (
            policy(
                json!({"rules": [{"when": [{"key": "source.principal", "values": ["spiffe://a"]}]}]}),
            ),
            "matches nobody",
        ),
        (
            target("gateway.networking.k8s.io", "Gateway", "missing"),
            "no Gateway alpha/missing",
        ),
        (target("", "Deployment", "web"), "can be attached"),
        (
            root("AuthorizationPolicy", json!({})),
            "every workload of the mesh",
        ),
        (
            root(
                "AuthorizationPolicy",
                json!({"selector": {"matchLabels": {"a": "b"}}}),
            ),
            "in every namespace",
        ),
        (
            root("PeerAuthentication", json!({"mtls": {"mode": "STRICT"}})),
            "every workload of the mesh",
        ),
        (
            (
                "PeerAuthentication",
                "alpha",
                json!({"mtls": {"mode": "DISABLE"}}),
            ),
            "PERMISSIVE",
        ),
        (
            (
                "ServiceEntry",
                "alpha",
                json!({"hosts": ["a.b"], "exportTo": ["."]}),
            ),
            "exportTo",
        ),
        (
            (
                "DestinationRule",
                "alpha",
                json!({"host": "a", "trafficPolicy": {"tunnel": {"targetHost": "b"}}}),
            ),
            "tunnel",
        ),
        (("RequestAuthentication", "alpha", json!({})), "targetRefs"),
    ];
    for ((kind, namespace, spec), word) in table {
        let mut review = created(kind, &spec);
        review["request"]["object"]["metadata"]["namespace"] = json!(namespace);
        let response = told(&judge(), &review);
        assert_eq!(response["allowed"], true, "{response}");
        let warnings = response["warnings"].as_array().cloned().unwrap_or_default();
        assert!(
            warnings.len() == 1 && warnings[0].as_str().unwrap().contains(word),
            "{word}: {response}"
        );
        assert!(warnings[0].as_str().unwrap().len() <= 256);
    }
}

#[test]
fn nothing_is_said_of_what_works() {
    let table = [
        (
            "AuthorizationPolicy",
            json!({"rules": [{"from": [{"source": {"namespaces": ["a"]}}]}]}),
        ),
        (
            "AuthorizationPolicy",
            json!({"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"}]}),
        ),
        // Nobody knows whether it exists.
        (
            "AuthorizationPolicy",
            json!({"targetRef": {"kind": "Service", "name": "web"}}),
        ),
        ("PeerAuthentication", json!({"mtls": {"mode": "STRICT"}})),
        ("ServiceEntry", json!({"hosts": ["a.b"], "exportTo": ["*"]})),
        ("WorkloadEntry", json!({"address": "192.0.2.1"})),
    ];
    for (kind, spec) in table {
        let response = told(&judge(), &created(kind, &spec));
        assert_eq!(
            response,
            json!({"uid": "705ab4f5", "allowed": true}),
            "{spec}"
        );
    }
}

#[test]
fn judgements_are_counted_and_rehearsals_are_not() {
    let mut registry = Registry::new("pilot", "test");
    let judge = Judge {
        metrics: Metrics::register(&mut registry),
        ..judge()
    };
    let mut review = created("AuthorizationPolicy", &bad());
    told(&judge, &review);
    review["request"]["dryRun"] = json!(true);
    assert_eq!(told(&judge, &review)["allowed"], false);
    told(&judge, &created("ServiceEntry", &json!({"hosts": ["a.b"]})));
    let text = registry.text().unwrap();
    for line in [
        r#"galley_validation_failed{group="security.istio.io",version="v1",resource="authorizationpolicies",reason="invalid"} 1"#,
        r#"galley_validation_passed{group="networking.istio.io",version="v1",resource="serviceentries"} 1"#,
    ] {
        assert!(
            text.lines().any(|it| it == line),
            "{line} is missing in\n{text}"
        );
    }
}

#[test]
fn long_texts_are_cut_where_a_letter_ends() {
    assert_eq!(clipped("abc", 3), "abc");
    assert_eq!(clipped("abcdef", 5), "ab…");
    assert_eq!(clipped("aäää", 6), "aä…");
    let many = vec!["x".repeat(10_000); 1_000];
    assert!(message("p", &many).len() < 16 * 1024);
}

#[test]
fn what_is_no_review_is_an_error() {
    let judge = judge();
    for text in [
        "",
        "null",
        "[]",
        "{}",
        "{\"apiVersion\": \"admission.k8s.io/v1\"}",
        "{\"apiVersion\": \"admission.k8s.io/v1\", \"request\": {\"uid\": 7}}",
    ] {
        assert!(answer(&judge, text.as_bytes()).is_err(), "{text}");
    }
    let mut other = created("PeerAuthentication", &json!({}));
    other["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let error = answer(&judge, other.to_string().as_bytes()).unwrap_err();
    assert!(error.to_string().contains("v1beta1"), "{error}");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = created("PeerAuthentication", &json!("DEEP"))
        .to_string()
        .replace("\"DEEP\"", &deep);
    assert!(answer(&judge, deep.as_bytes()).is_err());
}

#[test]
fn what_would_be_far_longer_read_than_written_is_not_read() {
    let of = |entries: usize| {
        let spec = json!({"rules": vec![json!({}); entries]});
        answer(
            &judge(),
            created("AuthorizationPolicy", &spec).to_string().as_bytes(),
        )
    };
    assert!(of(500).is_ok());
    let error = of(MOST_NESTED).unwrap_err();
    assert!(error.to_string().contains("split it"), "{error}");
}

/// Any JSON, with names that mean something here and there.
fn hostile() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just("spec"),
        Just("rules"),
        Just("from"),
        Just("source"),
        Just("principals"),
        Just("hosts"),
        Just("ports"),
        Just("portLevelMtls"),
        Just("mtls"),
        Just("mode"),
        Just("selector"),
        Just("matchLabels"),
        Just("endpoints"),
        Just("metadata"),
        Just("name"),
        Just("\u{0}"),
        Just("é*"),
        Just("")
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(word.clone().prop_map(String::from), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_is_asked_there_is_an_answer(
        object in hostile(),
        spec in hostile(),
        kind in prop_oneof![
            Just("AuthorizationPolicy"), Just("PeerAuthentication"), Just("ServiceEntry"), Just("WorkloadEntry")
        ],
    ) {
        let judge = judge();
        let mut review = created(kind, &spec);
        let response = told(&judge, &review);
        prop_assert_eq!(response["allowed"] == true, response["status"].is_null());
        review["request"]["object"] = object;
        told(&judge, &review);
    }
}

#[test]
fn pods_are_counted_by_what_became_of_them_and_a_refusal_says_why() {
    let injector = inject::tests::injector();
    let metrics = Metrics::register(&mut Registry::new("pilot", "test"));
    let asked = |pod: Value, rehearsed: bool| {
        let mut review = created("Pod", &json!({}));
        review["request"]["kind"] = json!({"group": "", "version": "v1", "kind": "Pod"});
        review["request"]["dryRun"] = rehearsed.into();
        review["request"]["object"] = pod;
        let answer = inject(&injector, &metrics, review.to_string().as_bytes()).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        answer["response"].clone()
    };
    let pod = |annotations: Value, host: bool| {
        json!({
            "metadata": {"name": "p", "annotations": annotations},
            "spec": {"hostNetwork": host, "containers": [{"name": "c", "image": "i"}]},
        })
    };
    let given = asked(pod(json!({}), false), false);
    assert_eq!(given["allowed"], true);
    assert_eq!(given["patchType"], "JSONPatch");
    asked(pod(json!({}), false), true);
    let left = asked(pod(json!({}), true), false);
    assert!(left["allowed"] == true && left["patch"].is_null());
    let warning = left["warnings"][0].as_str().unwrap();
    assert!(warning.contains("the node's network"), "{warning}");
    let wrong = json!({"traffic.sidecar.istio.io/excludeInboundPorts": "http"});
    let refused = asked(pod(wrong, false), false);
    assert_eq!(refused["allowed"], false);
    assert_eq!(
        refused["status"]["message"],
        "Pod alpha/p: annotation traffic.sidecar.istio.io/excludeInboundPorts: \"http\" is no port"
    );
    let counts = [
        &metrics.injections_asked,
        &metrics.injected,
        &metrics.injections_left,
        &metrics.injections_refused,
    ];
    assert_eq!(counts.map(|count| count.value()), [3, 1, 1, 1]);
}
