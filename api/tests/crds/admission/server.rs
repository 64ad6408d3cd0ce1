//! The same asked of a real API server. The cluster must be one to throw away.

use std::io::Write as _;
use std::process::{Command, Stdio};

use api::k8s::crd;
use api::k8s::objects::Kind::{
    AuthorizationPolicy, PeerAuthentication, ServiceEntry, WorkloadEntry,
};
use serde_json::{Value, json};

use super::Refused::{Both, Nowhere, Shape, Webhook};
use super::{is_refused, object, recorded, table};

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
