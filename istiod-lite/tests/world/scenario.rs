//! The golden scenarios: objects that were given to the real control plane, and the resources it
//! made of them (`testdata/README.md`).

#![allow(unreachable_pub)] // a crate of tests has no other side

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use api::k8s::dir::Change;
use api::k8s::objects::{Object, Time};
use api::k8s::yaml::{Parsed, parse};
use base64::Engine;
use istiod_lite::translate::service_entry::Visibility;
use istiod_lite::world::{Resource, Settings, Unready, World};
use k8s_openapi::jiff::Timestamp;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;

/// Resources by type and name.
pub type Resources = BTreeMap<(&'static str, String), Value>;

/// One scenario.
#[derive(Debug)]
pub struct Scenario {
    /// Suite and folder, as `wds/01-pod-plain`.
    pub name: String,
    /// In the order they were applied.
    pub objects: Vec<Object>,
    /// Objects that the API server refused.
    pub refused: usize,
    expected: Value,
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

/// Every scenario, sorted by name; the base is not one.
pub fn all() -> Vec<Scenario> {
    let mut folders = Vec::new();
    for suite in ["wds", "wds-flags-env", "wds-flags-mesh"] {
        let entries = fs::read_dir(testdata().join(suite)).unwrap();
        folders.extend(
            entries
                .map(|entry| format!("{suite}/{}", entry.unwrap().file_name().to_str().unwrap())),
        );
    }
    folders.retain(|name| name != "wds/00-base");
    folders.sort();
    folders.into_iter().map(Scenario::read).collect()
}

/// What is always there, and its resources.
pub fn base() -> Scenario {
    let mut base = Scenario::read("wds/00-base".into());
    for (second, object) in base.objects.iter_mut().enumerate() {
        object.metadata_mut().creation_timestamp = at(second);
    }
    base
}

impl Scenario {
    fn read(name: String) -> Self {
        let folder = testdata().join(&name);
        let mut objects = Vec::new();
        let mut refused = 0;
        for file in ["input.yaml", "also.yaml"] {
            for parsed in parse(&fs::read_to_string(folder.join(file)).unwrap_or_default()) {
                match parsed {
                    Parsed::Object { object, .. } => objects.push(object),
                    Parsed::Ignored { kind } => panic!("{name}: {kind} is not read"),
                    Parsed::Fault { .. } => refused += 1,
                }
            }
        }
        for (second, object) in objects.iter_mut().enumerate() {
            adopt(object);
            let metadata = object.metadata_mut();
            metadata.creation_timestamp = at(1000 + second);
            let step = metadata
                .annotations
                .as_ref()
                .and_then(|annotations| annotations.get("golden.example/step"));
            if step.is_some_and(|step| step == "terminate") {
                metadata.deletion_timestamp = at(2000);
            }
        }
        let mut expected = json(&folder.join("expected.json"));
        let statuses = folder.join("status.json");
        expected["status"] = if statuses.exists() {
            json(&statuses)
        } else {
            Value::Object(serde_json::Map::new())
        };
        for file in ["removed.json", "deviation.json"] {
            if folder.join(file).exists() {
                merge(&mut expected, &json(&folder.join(file)));
            }
        }
        Self {
            name,
            objects,
            refused,
            expected,
        }
    }

    /// Its objects as they are written.
    pub fn text(&self) -> String {
        fs::read_to_string(testdata().join(&self.name).join("input.yaml")).unwrap()
    }

    /// What the real control plane's switches were.
    pub fn settings(&self) -> Settings {
        let by_scope =
            |scope: &str, visibility| ([("scope".to_owned(), scope.to_owned())].into(), visibility);
        match self.name.split('/').next() {
            Some("wds-flags-env") => Settings {
                dry_run: true,
                auto_allow_waypoint: true,
                ..as_istio()
            },
            Some("wds-flags-mesh") => Settings {
                service_entry_visibility: vec![
                    by_scope("private", Visibility::Namespace),
                    by_scope("hidden", Visibility::None),
                ],
                ..as_istio()
            },
            _ => as_istio(),
        }
    }

    /// Every resource that must be there: the base's, and over them this scenario's.
    pub fn expected(&self) -> Resources {
        let mut resources = if self.name == "wds/00-base" {
            Resources::new()
        } else {
            base().expected()
        };
        for kind in ["addresses", "authorizations"] {
            let named = self.expected[kind].as_object().into_iter().flatten();
            resources.extend(
                named.map(|(name, resource)| ((kind, name.clone()), normal(resource.clone()))),
            );
        }
        resources
    }

    /// The names that must go when the objects go.
    pub fn removed(&self, kind: &str) -> Vec<String> {
        let names = self.expected["removed_resources"][kind].as_array().unwrap();
        names
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }

    /// What the control plane wrote into the statuses, by object.
    pub fn statuses(&self) -> serde_json::Map<String, Value> {
        self.expected["status"].as_object().unwrap().clone()
    }

    pub fn api_server_refused(&self) -> usize {
        self.expected["refused_by_api_server"]
            .as_array()
            .map_or(0, Vec::len)
    }
}

/// Who names a waypoint that is not ready goes without it.
fn as_istio() -> Settings {
    Settings {
        waypoint_unready: Unready::Pass,
        ..Settings::default()
    }
}

/// Istio's control plane writes this into the Service of a waypoint; who runs ours writes it too.
fn adopt(object: &mut Object) {
    let metadata = object.metadata();
    let labels = metadata.labels.iter().flatten();
    let managed = labels
        .into_iter()
        .any(|(label, _)| label == "gateway.istio.io/managed");
    if managed && matches!(object, Object::Service(_)) {
        let annotations = object.metadata_mut().annotations.get_or_insert_default();
        let near = "networking.istio.io/traffic-distribution".to_owned();
        annotations.insert(near, "PreferClose".to_owned());
    }
}

/// The changes that take a scenario's objects away again: namespaces stay, without their labels.
pub fn undo(objects: &[Object]) -> Vec<Change> {
    let before = base();
    let undo = |object: &Object| {
        let key = object.key();
        match before.objects.iter().find(|object| object.key() == key) {
            Some(object) => Change::Set(object.clone()),
            None => Change::Gone(key),
        }
    };
    objects.iter().rev().map(undo).collect()
}

/// A world with the base in it.
pub fn world(settings: Settings) -> World {
    let mut world = World::new(settings);
    world.apply(base().objects.into_iter().map(Change::Set).collect());
    world
}

/// All resources of a world as golden JSON.
pub fn resources(world: &World) -> Resources {
    let pool = DescriptorPool::decode(api::DESCRIPTORS).unwrap();
    let types = [
        (
            "addresses",
            "istio.workload.Address",
            world.addresses().collect::<Vec<_>>(),
        ),
        (
            "authorizations",
            "istio.security.Authorization",
            world.authorizations().collect(),
        ),
    ];
    let mut resources = Resources::new();
    for (kind, message, list) in types {
        let descriptor = pool.get_message_by_name(message).unwrap();
        for Resource { name, encoded, .. } in list {
            let message = DynamicMessage::decode(descriptor.clone(), encoded.clone()).unwrap();
            resources.insert(
                (kind, name.to_string()),
                normal(readable(serde_json::to_value(message).unwrap())),
            );
        }
    }
    resources
}

/// Fails with what differs, resource by resource.
pub fn assert_same(what: &str, found: &Resources, expected: &Resources) {
    let mut differences = String::new();
    for key in found
        .keys()
        .chain(expected.keys())
        .collect::<std::collections::BTreeSet<_>>()
    {
        let (found, expected) = (found.get(key), expected.get(key));
        if found != expected {
            let text = |value: Option<&Value>| value.map_or("nothing".into(), ToString::to_string);
            differences += &format!(
                "{} {}\n  found    {}\n  expected {}\n",
                key.0,
                key.1,
                text(found),
                text(expected)
            );
        }
    }
    assert!(differences.is_empty(), "{what}:\n{differences}");
}

fn at(second: usize) -> Option<Time> {
    Timestamp::from_second(1_700_000_000 + i64::try_from(second).unwrap())
        .ok()
        .map(Time)
}

fn json(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// RFC 7386.
pub fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(fields), Value::Object(entries)) => {
            for (name, value) in entries {
                if value.is_null() {
                    fields.remove(name);
                } else {
                    merge(fields.entry(name.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// Bytes are addresses; golden data shows them as such.
fn readable(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(name, value)| match (name.as_str(), value) {
                    ("address", Value::String(text)) => (name, ip(&text)),
                    ("addresses", Value::Array(list)) => {
                        let items = list.into_iter().map(|item| match item {
                            Value::String(text) => ip(&text),
                            other => readable(other),
                        });
                        (name, Value::Array(items.collect()))
                    }
                    (_, value) => (name, readable(value)),
                })
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(readable).collect()),
        other => other,
    }
}

fn ip(text: &str) -> Value {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap();
    let ip: IpAddr = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(octets) => octets.into(),
        Err(_) => <[u8; 16]>::try_from(bytes.as_slice()).unwrap().into(),
    };
    ip.to_string().into()
}

/// Automatic addresses depend on who came before: their kind is compared, not their number.
pub fn normal(value: Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("240.240.") => "automatic v4".into(),
        Value::String(text) if text.starts_with("2001:2::") => "automatic v6".into(),
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(name, value)| (name, normal(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(normal).collect()),
        other => other,
    }
}
