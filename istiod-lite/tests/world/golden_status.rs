//! What the real control plane said of objects in their statuses, we say too; where we mean to say
//! something else, `testdata/DEVIATIONS.md` says why.

use std::collections::BTreeMap;
use std::path::Path;

use api::k8s::dir::Change;
use api::k8s::objects::{Kind, Object, ObjectKey};
use api::k8s::yaml::{Parsed, parse};
use istiod_lite::status::{Condition, Desired, Parent};
use istiod_lite::world::{Settings, Unready, World};
use serde_json::{Map, Value, json};

use crate::scenario::{all, world};

/// Conditions whose message is ours: it says the same in other words, or more. All others must at
/// least begin as the golden ones do.
const OWN_WORDS: [(&str, &str); 6] = [
    ("ZtunnelAccepted", "UnsupportedValue"),
    ("istio.io/VisibilityApplied", "Namespace"),
    ("istio.io/VisibilityApplied", "Public"),
    ("Programmed", "AddressNotAssigned"),
    ("Programmed", "Programmed"),
    ("Accepted", "Accepted"),
];

/// `Kind/namespace/name`, as golden data names objects.
fn name(key: &ObjectKey) -> String {
    match &*key.namespace {
        "" => format!("{}/{}", key.kind, key.name),
        namespace => format!("{}/{namespace}/{}", key.kind, key.name),
    }
}

/// As the writer would write it, without times.
fn written(desired: &Desired) -> Value {
    let condition = |it: &Condition| {
        let mut written = json!({
            "type": it.r#type,
            "status": if it.status { "True" } else { "False" },
            "reason": it.reason,
            "message": it.message,
        });
        if let Some(generation) = desired.generation {
            written["observedGeneration"] = generation.to_string().into();
        }
        written
    };
    let mut status = desired.fields.clone();
    if !desired.conditions.is_empty() {
        let conditions = desired.conditions.iter().map(condition).collect();
        status.insert("conditions".to_owned(), conditions);
    }
    if !desired.parents.is_empty() {
        let parent = |it: &Parent| {
            json!({
                "controllerName": it.controller,
                "parentRef": it.reference,
                "conditions": it.conditions.iter().map(condition).collect::<Value>(),
            })
        };
        let parents = desired.parents.iter().map(parent).collect();
        status.insert("parents".to_owned(), parents);
    }
    Value::Object(status)
}

fn said(world: &World) -> BTreeMap<String, Value> {
    let said = world.statuses().iter();
    said.map(|(key, desired)| (name(key), written(desired)))
        .filter(|(_, status)| *status != json!({}))
        .collect()
}

/// Without what an API server, the load balancer or the writer of automatic addresses says, and
/// without times; numbers of generations as text, as half of them are.
fn golden(key: &str, mut status: Value) -> Value {
    let fields = status.as_object_mut().unwrap();
    fields.remove("loadBalancer");
    if key.starts_with("ServiceEntry/") {
        fields.remove("addresses");
    }
    if let Some(conditions) = fields.get_mut("conditions").and_then(Value::as_array_mut) {
        conditions.retain(|it| it["message"] != "Waiting for controller");
        conditions.iter_mut().for_each(timeless);
    }
    if fields.get("conditions") == Some(&json!([])) {
        // A Gateway of a class that nobody looks after: what it has is not ours to say.
        fields.clear();
    }
    if fields.get("parents") == Some(&json!([])) {
        fields.clear();
    }
    for parent in fields
        .get_mut("parents")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let conditions = parent["conditions"].as_array_mut().unwrap();
        conditions.iter_mut().for_each(timeless);
    }
    for listener in fields
        .get_mut("listeners")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let conditions = listener["conditions"].as_array_mut().unwrap();
        for condition in conditions {
            timeless(condition);
            condition
                .as_object_mut()
                .unwrap()
                .remove("observedGeneration");
        }
    }
    status
}

fn timeless(condition: &mut Value) {
    let condition = condition.as_object_mut().unwrap();
    condition.remove("lastTransitionTime");
    if let Some(generation) = condition.get_mut("observedGeneration") {
        *generation = generation.to_string().trim_matches('"').into();
    }
}

/// Our message where it may be ours, or begins as the golden one.
fn lenient(ours: &mut Value, golden: &Value) {
    let conditions = ours.get_mut("conditions").and_then(Value::as_array_mut);
    for ours in conditions.into_iter().flatten() {
        let mut golden = golden["conditions"].as_array().into_iter().flatten();
        let Some(golden) = golden.find(|golden| golden["type"] == ours["type"]) else {
            continue;
        };
        let text = |it: &Value, field: &str| it[field].as_str().unwrap_or_default().to_owned();
        let own = OWN_WORDS.contains(&(&text(ours, "type"), &text(ours, "reason")));
        assert!(!text(ours, "message").is_empty(), "{ours}");
        if own || text(ours, "message").starts_with(&text(golden, "message")) {
            ours["message"] = golden["message"].clone();
        }
    }
}

/// The same at each parent of a route.
fn lenient_at_parents(ours: &mut Value, golden: &Value) {
    let parents = ours.get_mut("parents").and_then(Value::as_array_mut);
    let parents = parents.into_iter().flatten();
    let golden = golden["parents"].as_array().into_iter().flatten();
    for (ours, golden) in parents.zip(golden) {
        lenient(ours, golden);
    }
}

/// An API server counts the generations of these; ours does not.
fn first_generation(object: &Object) -> Object {
    let mut object = object.clone();
    if !matches!(object.kind(), Kind::Service | Kind::Pod | Kind::Namespace) {
        object.metadata_mut().generation = Some(1);
    }
    object
}

fn compare(what: &str, mut ours: BTreeMap<String, Value>, golden_statuses: &Map<String, Value>) {
    let mut expected = BTreeMap::new();
    for (key, status) in golden_statuses {
        let status = golden(key, status.clone());
        if status != json!({}) {
            if let Some(ours) = ours.get_mut(key) {
                lenient(ours, &status);
                lenient_at_parents(ours, &status);
            }
            expected.insert(key.clone(), status);
        }
    }
    let mut differences = String::new();
    for key in ours.keys().chain(expected.keys()) {
        let (ours, golden) = (ours.get(key), expected.get(key));
        if ours != golden {
            differences += &format!(
                "{key}\n  ours   {}\n  golden {}\n",
                json!(ours),
                json!(golden)
            );
        }
    }
    assert!(differences.is_empty(), "{what}:\n{differences}");
}

#[test]
fn objects_of_the_scenarios_are_told_what_the_real_control_plane_told_them() {
    let mut compared = 0;
    for scenario in all() {
        let statuses = scenario.statuses();
        for backwards in [false, true] {
            let mut world = world(scenario.settings());
            let mut objects: Vec<Object> = scenario.objects.iter().map(first_generation).collect();
            if backwards {
                objects.reverse();
            }
            for object in objects {
                world.apply(vec![Change::Set(object)]);
            }
            compare(&scenario.name, said(&world), &statuses);
        }
        compared += statuses.len();
    }
    assert!(compared > 90, "{compared}");
}

fn objects(texts: &[&str]) -> Vec<Object> {
    let parsed = texts.iter().flat_map(|text| parse(text));
    parsed
        .map(|parsed| match parsed {
            Parsed::Object { object, .. } => first_generation(&object),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// Objects of one golden file, and their statuses with our differences in them.
fn of_file(file: &str) -> (Vec<Object>, Map<String, Value>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/status");
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
    };
    let mut statuses = Map::new();
    let mut found = Vec::new();
    for pair in read("objects.json")[file].as_array().unwrap() {
        let object = objects(&[&pair["object"].to_string()]).remove(0);
        statuses.insert(name(&object.key()), pair["status"].clone());
        found.push(object);
    }
    let mut whole = Value::Object(statuses);
    if let Some(deviation) = read("deviation.json").get(file) {
        crate::scenario::merge(&mut whole, deviation);
    }
    let Value::Object(statuses) = whole else {
        panic!("not a map")
    };
    (found, statuses)
}

const SERVICE: &str = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "waypoint", "namespace": "alpha",
    "labels": {"gateway.istio.io/managed": "istio.io-mesh-controller", "gateway.networking.k8s.io/gateway-name": "waypoint"}},
    "spec": {"clusterIP": "10.96.185.80", "clusterIPs": ["10.96.185.80", "fd00:10:96::9ef1"], "ports": [{"port": 15008}]}}"#;
const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "waypoint-1", "namespace": "alpha",
    "labels": {"gateway.networking.k8s.io/gateway-name": "waypoint"}}, "spec": {"containers": []},
    "status": {"phase": "Running", "podIP": "10.10.9.1"}}"#;

fn world_of(objects: Vec<Object>) -> World {
    let mut world = World::new(Settings {
        waypoint_unready: Unready::Pass,
        ..Settings::default()
    });
    world.apply(objects.into_iter().map(Change::Set).collect());
    world
}

fn statuses_of(file: &str, beside: &[&str]) -> (BTreeMap<String, Value>, Map<String, Value>) {
    let (mut found, statuses) = of_file(file);
    found.extend(objects(beside));
    (said(&world_of(found)), statuses)
}

#[test]
fn classes_and_gateways_are_told_what_the_real_control_plane_told_them() {
    for file in [
        "gatewayclasses",
        "waypoint-bad-gateways",
        "waypoint-gateway-1-without-pods",
        "waypoint-variant",
    ] {
        let (ours, golden) = statuses_of(file, &[]);
        compare(file, ours, &golden);
    }
    let (ours, golden) = statuses_of("waypoint-gateway-2-with-pod", &[SERVICE, POD]);
    compare("waypoint-gateway-2-with-pod", ours, &golden);
}

#[test]
fn routes_are_told_what_the_real_control_plane_told_them() {
    let (mut found, golden) = of_file("routes");
    for file in ["routes-services", "waypoint-gateway-1-without-pods"] {
        found.extend(of_file(file).0);
    }
    found.extend(objects(&[SERVICE, POD]));
    let mut ours = said(&world_of(found));
    ours.retain(|key, _| key.contains("Route/"));
    assert!(ours.len() > 12, "{}", ours.len());
    compare("routes", ours, &golden);
}

#[test]
fn a_service_is_told_whether_it_is_bound_and_not_longer_than_it_asks() {
    let (mut found, mut golden) = of_file("services-waypoint-bound");
    for file in [
        "waypoint-gateway-1-without-pods",
        "waypoint-variant",
        "waypoint-bad-gateways",
    ] {
        found.extend(of_file(file).0);
    }
    found.extend(objects(&[SERVICE, POD]));
    let mut world = world_of(found);
    let services = |world: &World| {
        let mut said = said(world);
        said.retain(|key, _| key.starts_with("Service/"));
        said
    };
    compare("services-waypoint-bound", services(&world), &golden);

    let (unlabelled, after) = of_file("services-waypoint-unbound");
    let key = unlabelled[0].key();
    world.apply(unlabelled.into_iter().map(Change::Set).collect());
    golden.extend(after);
    compare("services-waypoint-unbound", services(&world), &golden);
    assert_eq!(
        **world.status(&key).unwrap(),
        Desired::default(),
        "to be taken out"
    );
    world.apply(vec![Change::Gone(key.clone())]);
    assert_eq!(world.status(&key), None);
}
