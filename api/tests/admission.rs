//! What may be written: said by us in every run, and by a real API server with our definitions when
//! there is one:
//!
//! ```text
//! KUBECONFIG=… cargo test -p api --features k8s --test admission -- --ignored
//! ```

#![cfg(feature = "k8s")]
#![allow(clippy::unwrap_used)] // a test

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use api::k8s::objects::Kind;
use api::k8s::{crd, json};
use serde_json::{Value, json};

use Kind::{AuthorizationPolicy, PeerAuthentication, ServiceEntry, WorkloadEntry};

/// Who refuses a spec, and a word of what each says.
#[derive(Clone, Copy)]
enum Refused {
    Nowhere,
    /// By the rules of the definition, and by us.
    Both(&'static str),
    /// By the shape of the definition, in an API server's own words, and by us.
    Shape(&'static str, &'static str),
    /// By us alone: an API server's rules do not reach so deep, the webhook says it.
    Webhook(&'static str),
}

use Refused::{Both, Nowhere, Shape, Webhook};

fn table() -> Vec<(Kind, Value, Refused)> {
    let source = |source: Value| json!({"rules": [{"from": [{"source": source}]}]});
    let operation = |operation: Value| json!({"rules": [{"to": [{"operation": operation}]}]});
    let condition = |condition: Value| json!({"rules": [{"when": [condition]}]});
    let target = |target: Value| json!({"targetRefs": [target]});
    let service = |mut fields: Value| {
        if fields.get("hosts").is_none() {
            fields["hosts"] = json!(["api.example.com"]);
        }
        fields
    };
    let port = |port: Value| service(json!({"ports": [port]}));
    let endpoint = |resolution: &str, endpoint: Value| {
        service(json!({"resolution": resolution, "endpoints": [endpoint]}))
    };
    vec![
        // ---- nothing wrong
        (AuthorizationPolicy, json!({}), Nowhere),
        (AuthorizationPolicy, json!({"rules": [{}]}), Nowhere),
        (
            AuthorizationPolicy,
            json!({"selector": {}, "action": "DENY", "rules": []}),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            json!({"selector": {"matchLabels": {"app": "a"}}}),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            json!({"action": "CUSTOM", "provider": {"name": "x"}}),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            source(json!({"ipBlocks": ["10.0.0.1", "2001:db8::/32"]})),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            source(json!({"serviceAccounts": ["a", "b/c"]})),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            operation(json!({"ports": ["80"], "paths": ["/*"]})),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            condition(json!({"key": "source.ip", "values": ["10.0.0.0/8"]})),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            target(json!({"kind": "Service", "name": "a", "group": ""})),
            Nowhere,
        ),
        (PeerAuthentication, json!({}), Nowhere),
        (
            PeerAuthentication,
            json!({"mtls": {"mode": "STRICT"}}),
            Nowhere,
        ),
        (
            PeerAuthentication,
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"8080": {"mode": "DISABLE"}}}),
            Nowhere,
        ),
        (ServiceEntry, service(json!({})), Nowhere),
        (
            ServiceEntry,
            service(json!({"addresses": ["198.51.100.0/24", "2001:db8::1"]})),
            Nowhere,
        ),
        (
            ServiceEntry,
            json!({"hosts": ["*.example.com"], "resolution": "DYNAMIC_DNS"}),
            Nowhere,
        ),
        (
            ServiceEntry,
            port(json!({"number": 443, "name": "tls", "protocol": "tls", "targetPort": 0})),
            Nowhere,
        ),
        (
            ServiceEntry,
            endpoint("DNS", json!({"address": "db.example.com", "weight": 3})),
            Nowhere,
        ),
        (
            ServiceEntry,
            endpoint("STATIC", json!({"network": "net2"})),
            Nowhere,
        ),
        (
            ServiceEntry,
            service(json!({"resolution": "STATIC", "workloadSelector": {"labels": {"a": "b"}}})),
            Nowhere,
        ),
        (
            WorkloadEntry,
            json!({"address": "192.0.2.1", "ports": {"http": 80}, "locality": "a/b"}),
            Nowhere,
        ),
        (WorkloadEntry, json!({"network": "net2"}), Nowhere),
        // ---- policies
        (
            AuthorizationPolicy,
            json!({"selector": {}, "targetRef": {"kind": "Service", "name": "a"}}),
            Both("only one of selector"),
        ),
        (
            AuthorizationPolicy,
            json!({"action": "CUSTOM"}),
            Both("spec.provider.name"),
        ),
        (
            AuthorizationPolicy,
            json!({"provider": {"name": "x"}}),
            Both("remove spec.provider"),
        ),
        (
            AuthorizationPolicy,
            json!({"action": "CUSTOM", "provider": {}}),
            Both("extension provider"),
        ),
        (
            AuthorizationPolicy,
            json!({"rules": [{"from": []}]}),
            Both("leave the field out"),
        ),
        (
            AuthorizationPolicy,
            json!({"rules": [{"to": []}]}),
            Both("leave the field out"),
        ),
        (
            AuthorizationPolicy,
            json!({"rules": [{"when": []}]}),
            Both("leave the field out"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"serviceAccounts": ["a"], "namespaces": ["b"]})),
            Both("cannot be combined"),
        ),
        (
            AuthorizationPolicy,
            json!({"selector": {"matchLabels": {"app": "a*"}}}),
            Both("wildcards"),
        ),
        (
            AuthorizationPolicy,
            json!({"selector": {"matchLabels": {"a*": "b"}}}),
            Both("wildcards"),
        ),
        (
            AuthorizationPolicy,
            json!({"selector": {"matchLabels": {"": "b"}}}),
            Both("without a name"),
        ),
        (
            AuthorizationPolicy,
            target(json!({"kind": "Service"})),
            Both("kind and name"),
        ),
        (
            AuthorizationPolicy,
            target(json!({"kind": "Service", "name": "a", "namespace": "b"})),
            Both("own namespace"),
        ),
        (
            AuthorizationPolicy,
            source(json!({})),
            Shape("at least 1 properties", "name somebody"),
        ),
        (
            AuthorizationPolicy,
            operation(json!({})),
            Shape("at least 1 properties", "name ports"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"principals": []})),
            Shape("at least 1 items", "leave the field out"),
        ),
        (
            AuthorizationPolicy,
            operation(json!({"notPorts": []})),
            Shape("at least 1 items", "leave the field out"),
        ),
        (
            AuthorizationPolicy,
            operation(json!({"ports": [80]})),
            Shape("must be of type string", "in quotes"),
        ),
        (
            AuthorizationPolicy,
            json!({"action": "FORBID"}),
            Shape("supported values", "FORBID"),
        ),
        (
            AuthorizationPolicy,
            condition(json!({"values": ["a"]})),
            Shape("key", "key is missing"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"serviceAccounts": vec!["a"; 17]})),
            Shape("at most 16 items", "more than 16"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"ipBlocks": ["10.0.0.0/33"]})),
            Webhook("ipBlocks[0]: \"10.0.0.0/33\" is neither"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"notRemoteIpBlocks": ["nowhere"]})),
            Webhook("nowhere"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"principals": [""]})),
            Webhook("matches nothing"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"serviceAccounts": ["a/b/c"]})),
            Webhook("a/b/c"),
        ),
        (
            AuthorizationPolicy,
            operation(json!({"ports": ["99999"]})),
            Webhook("99999"),
        ),
        (
            AuthorizationPolicy,
            condition(json!({"key": "destination.port", "values": ["http"]})),
            Webhook("is not a port"),
        ),
        (
            AuthorizationPolicy,
            condition(json!({"key": "source.ip"})),
            Webhook("values and notValues"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"principal": ["a"]})),
            Webhook("did you mean principals"),
        ),
        (
            AuthorizationPolicy,
            json!({"rulez": []}),
            Webhook("did you mean rules"),
        ),
        (
            PeerAuthentication,
            json!({"portLevelMtls": {"8080": {"mode": "STRICT"}}}),
            Both("requires a selector"),
        ),
        (
            PeerAuthentication,
            json!({"selector": {}, "portLevelMtls": {"8080": {}}}),
            Both("requires a selector"),
        ),
        (
            PeerAuthentication,
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"http": {}}}),
            Both("is not a port"),
        ),
        (
            PeerAuthentication,
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"65536": {}}}),
            Both("is not a port"),
        ),
        (
            PeerAuthentication,
            json!({"selector": {"matchLabels": {"a": "*"}}}),
            Both("wildcards"),
        ),
        (
            PeerAuthentication,
            json!({"mtls": {"mode": "SOMETIMES"}}),
            Shape("supported values", "SOMETIMES"),
        ),
        (
            PeerAuthentication,
            json!({"mtls": {"mod": "STRICT"}}),
            Webhook("did you mean mode"),
        ),
        // ---- entries
        (
            ServiceEntry,
            json!({}),
            Shape("Required value", "at least one host"),
        ),
        (
            ServiceEntry,
            json!({"hosts": []}),
            Shape("at least 1 items", "at least one host"),
        ),
        (ServiceEntry, json!({"hosts": ["*"]}), Both("every host")),
        (
            ServiceEntry,
            json!({"hosts": ["a b"]}),
            Webhook("is not a host name"),
        ),
        (
            ServiceEntry,
            json!({"hosts": ["a.b", "a.b"]}),
            Webhook("twice"),
        ),
        (
            ServiceEntry,
            service(json!({"addresses": ["nowhere"]})),
            Both("neither an IP address nor a CIDR"),
        ),
        (
            ServiceEntry,
            service(json!({"addresses": ["240.0.0.1/40"]})),
            Both("neither an IP address nor a CIDR"),
        ),
        (
            ServiceEntry,
            service(json!({"addresses": ["10.0.0.0/8"], "resolution": "DNS"})),
            Both("needs resolution NONE or STATIC"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 0, "name": "a"})),
            Shape("greater than or equal to 1", "0 is not a port"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 70000, "name": "a"})),
            Shape("less than or equal to 65535", "70000 is not a port"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 80})),
            Shape("Required value", "name is missing"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 80, "name": ""})),
            Both("name the port"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 80, "name": "a", "targetPort": 81})),
            Both("resolution NONE keeps the port"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 80, "name": "a", "protocol": "PIGEON"})),
            Webhook("PIGEON"),
        ),
        (
            ServiceEntry,
            service(json!({"ports": [{"number": 80, "name": "a"}, {"number": 80, "name": "b"}]})),
            Both("there twice"),
        ),
        (
            ServiceEntry,
            service(json!({"ports": [{"number": 80, "name": "a"}, {"number": 81, "name": "a"}]})),
            Shape("Duplicate value", "names are unique"),
        ),
        (
            ServiceEntry,
            service(json!({"resolution": "MAGIC"})),
            Shape("supported values", "MAGIC"),
        ),
        (
            ServiceEntry,
            endpoint("NONE", json!({"address": "192.0.2.1"})),
            Both("resolution NONE has no endpoints"),
        ),
        (
            ServiceEntry,
            endpoint("DYNAMIC_DNS", json!({"address": "192.0.2.1"})),
            Both("DYNAMIC_DNS has no endpoints"),
        ),
        (
            ServiceEntry,
            endpoint("STATIC", json!({"address": "c.d"})),
            Both("which resolution STATIC needs"),
        ),
        (
            ServiceEntry,
            endpoint("STATIC", json!({"ports": {}})),
            Both("address is missing"),
        ),
        (
            ServiceEntry,
            endpoint("DNS", json!({"address": "unix:///a"})),
            Both("unix sockets"),
        ),
        (
            ServiceEntry,
            endpoint("DNS", json!({"address": "a.b", "ports": {"http": 80}})),
            Webhook("no port \"http\""),
        ),
        (
            ServiceEntry,
            service(
                json!({"resolution": "STATIC", "endpoints": [{"address": "192.0.2.1"}], "workloadSelector": {}}),
            ),
            Both("only one of workloadSelector"),
        ),
        (
            ServiceEntry,
            service(json!({"workloadSelector": {"labels": {"a": "b"}}})),
            Both("needs resolution STATIC or DNS"),
        ),
        (
            ServiceEntry,
            json!({"hosts": ["*.a.b"], "resolution": "DNS"}),
            Both("DYNAMIC_DNS or NONE"),
        ),
        (
            ServiceEntry,
            service(
                json!({"resolution": "DNS_ROUND_ROBIN", "endpoints": [{"address": "a.b"}, {"address": "c.d"}]}),
            ),
            Both("at most one endpoint"),
        ),
        (WorkloadEntry, json!({}), Both("address is missing")),
        (
            WorkloadEntry,
            json!({"address": "unix:///a"}),
            Both("unix sockets"),
        ),
        (
            WorkloadEntry,
            json!({"address": "a b"}),
            Webhook("neither an IP address nor a host name"),
        ),
        (
            WorkloadEntry,
            json!({"address": "a.b", "ports": {"http": 0}}),
            Shape("greater than or equal to 1", "0 is not a port"),
        ),
        (
            WorkloadEntry,
            json!({"address": "a.b", "weight": -1}),
            Shape("greater than or equal to 0", "-1 is not a whole number"),
        ),
        (
            WorkloadEntry,
            json!({"adress": "a.b", "network": "n"}),
            Webhook("did you mean address"),
        ),
    ]
}

fn object(kind: Kind, spec: &Value) -> Value {
    json!({
        "apiVersion": kind.api_versions()[0],
        "kind": kind.name(),
        "metadata": {"name": "p", "namespace": "alpha"},
        "spec": spec,
    })
}

#[test]
fn we_refuse_what_is_wrong_by_name_and_take_the_rest() {
    for (kind, spec, refused) in table() {
        let found = json::read(kind, &object(kind, &spec));
        let word = match refused {
            Nowhere => {
                assert!(found.is_ok(), "{kind} {spec}: {found:?}");
                continue;
            }
            Both(word) | Shape(_, word) | Webhook(word) => word,
        };
        let reasons = found.expect_err(&format!("{kind} {spec}"));
        assert!(
            reasons.iter().any(|it| it.contains(word)),
            "{kind} {spec}: {word:?} is not said in {reasons:?}"
        );
    }
}

/// The inputs of the recorded scenarios, Istio's kinds only: where from, and the object.
fn recorded() -> Vec<(PathBuf, Value)> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../istiod-lite/testdata");
    let mut recorded = Vec::new();
    for suite in ["wds", "wds-flags-env", "wds-flags-mesh"] {
        for scenario in std::fs::read_dir(data.join(suite)).unwrap() {
            let path = scenario.unwrap().path().join("input.yaml");
            let Ok(text) = std::fs::read_to_string(&path) else {
                continue;
            };
            for document in text.split("\n---") {
                let options = serde_saphyr::options! { strict_booleans: true };
                let value: Value =
                    serde_saphyr::from_str_with_options(document, options).unwrap_or_default();
                let kind = value["kind"].as_str().and_then(|kind| kind.parse().ok());
                if kind.is_some_and(|kind| crd::KINDS.contains(&kind)) {
                    recorded.push((path.clone(), value));
                }
            }
        }
    }
    recorded
}

/// The one that Istio's definitions refuse (`refused_by_api_server`).
fn is_refused(path: &Path) -> bool {
    path.to_string_lossy()
        .contains("95-pa-ports-without-selector")
}

#[test]
fn recorded_objects_are_taken_or_refused_as_istios_definitions_do() {
    let recorded = recorded();
    assert!(recorded.len() > 100, "only {}", recorded.len());
    for (path, mut object) in recorded {
        let kind: Kind = object["kind"].as_str().unwrap().parse().unwrap();
        object.as_object_mut().unwrap().remove("status");
        let found = json::read(kind, &object);
        assert_eq!(
            found.is_err(),
            is_refused(&path),
            "{}: {found:?}",
            path.display()
        );
    }
}

// ---- with an API server

fn kubectl(arguments: &[&str], input: &str) -> Result<String, String> {
    let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".into());
    let mut kubectl = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl");
    kubectl
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = kubectl.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// Definitions as in the chart, and the namespaces of the scenarios.
fn prepare() {
    for kind in crd::KINDS {
        let (name, text) = crd::file(kind).unwrap();
        kubectl(
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            &text,
        )
        .unwrap();
        let name = format!("crd/{}", name.trim_end_matches(".yaml"));
        kubectl(
            &[
                "wait",
                "--for=condition=Established",
                "--timeout=60s",
                &name,
            ],
            "",
        )
        .unwrap();
    }
    for namespace in ["alpha", "beta", "gamma", "istio-system"] {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        kubectl(&["apply", "-f", "-"], &namespace.to_string()).unwrap();
    }
}

fn created(object: &Value) -> Result<String, String> {
    kubectl(
        &["create", "--dry-run=server", "--validate=strict", "-f", "-"],
        &object.to_string(),
    )
}

/// The cluster should have no webhook of ours: what is asked here is what the definitions do alone.
#[test]
#[ignore = "needs an API server of its own (KUBECONFIG) and kubectl"]
fn an_api_server_with_our_definitions_says_the_same() {
    prepare();
    let mut wrong = Vec::new();
    for (kind, spec, refused) in table() {
        let found = created(&object(kind, &spec));
        let word = match refused {
            Nowhere | Webhook(_) => None,
            Both(word) | Shape(word, _) => Some(word),
        };
        match (&found, word) {
            (Ok(_), None) => {}
            (Err(text), Some(word)) if text.contains(word) => {}
            _ => wrong.push(format!("{kind} {spec}: {word:?} but {found:?}")),
        }
    }
    for (path, object) in recorded() {
        let found = created(&object);
        if found.is_err() != is_refused(&path) {
            wrong.push(format!("{}: {found:?}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every version is served, and nothing that was written is dropped on the way.
#[test]
#[ignore = "needs an API server of its own (KUBECONFIG) and kubectl"]
fn an_api_server_keeps_what_it_does_not_know_in_every_version() {
    prepare();
    let specs = [
        (
            AuthorizationPolicy,
            json!({"rules": [{"from": [{"source": {"principal": ["a"], "namespaces": ["b"]}}]}], "later": {"a": 1}}),
        ),
        (
            PeerAuthentication,
            json!({"mtls": {"mode": "STRICT", "later": 1}}),
        ),
        (
            ServiceEntry,
            json!({"hosts": ["a.b"], "ports": [{"number": 80, "name": "a", "later": "b"}]}),
        ),
        (
            WorkloadEntry,
            json!({"address": "a.b", "later": [1, {"a": null}]}),
        ),
    ];
    for (kind, spec) in specs {
        for version in kind.api_versions() {
            let mut object = object(kind, &spec);
            object["apiVersion"] = json!(version);
            object["beside"] = json!({"the": "spec"});
            let arguments = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
            let text = kubectl(&arguments, &object.to_string()).unwrap();
            let kept: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(kept["spec"], spec, "{version} {kind}");
            assert_eq!(kept["beside"], object["beside"], "{version} {kind}");
        }
    }
}
