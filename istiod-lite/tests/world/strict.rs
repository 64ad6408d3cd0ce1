//! Which PeerAuthentication counts for a workload, where the recorded scenarios leave off.

use api::k8s::dir::Change;
use api::k8s::yaml::{Parsed, parse};
use istiod_lite::world::{Settings, World};

use crate::scenario::resources;

const PODS: [&str; 4] = ["a/web", "a/db", "b/web", "istio-system/web"];

/// Pods whose label `app` is their name, and these PeerAuthentications; who of them refuses plain text on every port.
fn strict(written: &[String]) -> Vec<&'static str> {
    let pods = PODS.iter().zip(1..).map(|(pod, number)| {
        let (namespace, name) = pod.split_once('/').unwrap();
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: u{number}, labels: {{app: {name}}}}}\n\
             spec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.0.2.{number}}}\n"
        )
    });
    let all: Vec<String> = pods.chain(written.iter().cloned()).collect();
    let parsed = parse(&all.join("---\n")).into_iter();
    let changes = parsed.map(|parsed| match parsed {
        Parsed::Object { object, .. } => Change::Set(object),
        other => panic!("{other:?}"),
    });
    let mut world = World::new(Settings::default());
    world.apply(changes.collect());
    let resources = resources(&world);
    let names_it = |pod: &&str| {
        let workload = &resources[&("addresses", format!("Kubernetes//Pod/{pod}"))]["workload"];
        let named = workload["authorizationPolicies"].as_array();
        let strict = "istio-system/istio_converted_static_strict";
        named.is_some_and(|named| named.iter().any(|name| name == strict))
    };
    PODS.into_iter().filter(|pod| names_it(pod)).collect()
}

/// One that was written on this day of a month.
fn peers(name: &str, namespace: &str, day: u8, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2024-01-{day:02}T00:00:00Z'}}\nspec: {spec}\n"
    )
}

const STRICT: &str = "{mtls: {mode: STRICT}}";
const PERMISSIVE: &str = "{mtls: {mode: PERMISSIVE}}";
const WEB_STRICT: &str = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}";
const WEB_PERMISSIVE: &str = "{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}}";
const WEB_OFF: &str = "{selector: {matchLabels: {app: web}}, mtls: {mode: DISABLE}}";

#[test]
fn the_narrowest_counts_and_of_equals_the_oldest_and_a_selector_reaches_its_own_namespace_only() {
    let root = "istio-system";
    for (written, expected) in [
        (
            vec![peers("m", root, 1, WEB_STRICT)],
            &["istio-system/web"][..],
        ),
        (vec![peers("m", root, 1, STRICT)], &PODS),
        (
            vec![
                peers("old", root, 1, PERMISSIVE),
                peers("new", root, 2, STRICT),
            ],
            &[],
        ),
        (
            vec![
                peers("a-new", root, 2, PERMISSIVE),
                peers("old", root, 1, STRICT),
            ],
            &PODS,
        ),
        (
            vec![peers("m", root, 1, STRICT), peers("n", "a", 2, PERMISSIVE)],
            &["b/web", "istio-system/web"],
        ),
        (
            vec![
                peers("n", "a", 1, STRICT),
                peers("a-new", "a", 3, WEB_PERMISSIVE),
                peers("old", "a", 2, WEB_STRICT),
            ],
            &["a/web", "a/db"],
        ),
        (
            vec![
                peers("n", "a", 1, STRICT),
                peers("old", "a", 2, WEB_PERMISSIVE),
                peers("a-new", "a", 3, WEB_STRICT),
            ],
            &["a/db"],
        ),
        (
            vec![peers("m", root, 1, STRICT), peers("w", "b", 2, WEB_OFF)],
            &["a/web", "a/db", "istio-system/web"],
        ),
    ] {
        assert_eq!(strict(&written), expected, "{}", written.join("---\n"));
    }
}
