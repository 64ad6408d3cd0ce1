//! What may be written: said by us in every run, and by a real API server with our definitions when
//! there is one:
//!
//! ```text
//! KUBECONFIG=… cargo test -p api --features k8s --test crds admission -- --ignored
//! ```

mod entries;
mod policies;
mod server;

use std::path::{Path, PathBuf};

use api::k8s::objects::Kind;
use api::k8s::{crd, json};
use serde_json::{Value, json};

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
    let mut table = policies::policies();
    table.extend(entries::entries());
    table
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
