//! The life of a waypoint, event by event as a proxy and an author saw it under the real control plane.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s::dir::Change;
use api::k8s::objects::{Gateway, Kind, Object, ObjectKey, Pod};
use istiod_lite::status::Desired;
use istiod_lite::world::World;
use serde_json::{Value, json};

use crate::scenario::{self, Resources, all, normal, resources, world};

/// One event of a golden transcript: what was there after it.
struct Event {
    about: String,
    resources: Resources,
    status: Value,
}

/// What a proxy knew after each event, from what it was sent.
fn transcript(file: &str) -> Vec<Event> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/xds")
        .join(file);
    let mut known = Resources::new();
    let mut events: Vec<Event> = Vec::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if let Some(about) = line["event"].as_str() {
            let about = about.to_owned();
            events.push(Event {
                about,
                resources: known.clone(),
                status: Value::Null,
            });
        }
        let kind = match line["type"].as_str() {
            Some("istio.workload.Address") => "addresses",
            _ => "authorizations",
        };
        if line["dir"] == "server->client" {
            for resource in line["resources"].as_array().into_iter().flatten() {
                let name = resource["name"].as_str().unwrap().to_owned();
                known.insert((kind, name), normal(resource["resource"].clone()));
            }
            for name in line["removed_resources"].as_array().into_iter().flatten() {
                known.remove(&(kind, name.as_str().unwrap().to_owned()));
            }
        }
        if let Some(event) = events.last_mut() {
            // Once its status was read, what comes is the cleaning up.
            if event.status.is_null() {
                event.resources = known.clone();
            }
            if !line["status_now"].is_null() {
                event.status = line["status_now"].clone();
            }
        }
    }
    events
}

/// Conditions and addresses as the transcript shows them.
fn status_now(world: &World) -> Value {
    let of = |kind, name| {
        world
            .status(&ObjectKey::new(kind, "alpha", name))
            .cloned()
            .unwrap_or_default()
    };
    let truth = |status: bool| if status { "True" } else { "False" };
    let gateway: Arc<Desired> = of(Kind::Gateway, "waypoint");
    let conditions: serde_json::Map<String, Value> = gateway
        .conditions
        .iter()
        .map(|it| {
            (
                it.r#type.to_owned(),
                format!("{}/{}", truth(it.status), it.reason).into(),
            )
        })
        .collect();
    let addresses = gateway.fields.get("addresses").and_then(Value::as_array);
    let addresses: Vec<&Value> = addresses
        .into_iter()
        .flatten()
        .map(|it| &it["value"])
        .collect();
    let service = of(Kind::Service, "web");
    let bound: Vec<Value> = service
        .conditions
        .iter()
        .map(|it| {
            let golden = it.message.split(": there is").next().unwrap();
            json!([it.r#type, truth(it.status), it.reason, golden])
        })
        .collect();
    json!({"gateway_conditions": conditions, "gateway_addresses": addresses, "service_conditions": bound})
}

/// What the writer of statuses does with a Gateway, until there is nothing more to write.
fn write_back(world: &mut World, gateway: &mut Option<Arc<Gateway>>) {
    let key = ObjectKey::new(Kind::Gateway, "alpha", "waypoint");
    while let Some(gateway) = gateway.as_mut() {
        let desired = world.status(&key).unwrap();
        let mut now = Gateway::clone(gateway);
        now.status = Some(
            serde_json::from_value(json!({"addresses": desired.fields.get("addresses")})).unwrap(),
        );
        if now == **gateway {
            break;
        }
        *gateway = Arc::new(now);
        world.apply(vec![Change::Set(Object::Gateway(gateway.clone()))]);
    }
}

/// xds/14: its waypoint comes, has a first pod that is not ready, loses it, and goes.
#[test]
fn a_waypoint_lives_as_it_does_under_the_real_control_plane() {
    let mut objects: BTreeMap<String, Object> = BTreeMap::new();
    let scenario = all()
        .into_iter()
        .find(|it| it.name == "wds/48-waypoint-on-namespace")
        .unwrap();
    for object in scenario.objects.clone() {
        let name = object.key().name.to_string();
        objects.insert(format!("{}/{name}", object.kind()), object);
    }
    let choosing = |waypoint: &str| {
        let mut web = objects["Service/web"].clone();
        let labels = web.metadata_mut().labels.get_or_insert_default();
        labels.insert("istio.io/use-waypoint".to_owned(), waypoint.to_owned());
        Change::Set(web)
    };
    let pod = |ready: &str| {
        let Object::Pod(pod) = &objects["Pod/waypoint-5c9f7b6d8-abcde"] else {
            panic!("a pod")
        };
        let mut pod = Pod::clone(pod);
        let status = pod.status.as_mut().unwrap();
        status.conditions.as_mut().unwrap()[0].status = ready.to_owned();
        Change::Set(Object::Pod(Arc::new(pod)))
    };
    let no_pod = Change::Gone(objects["Pod/waypoint-5c9f7b6d8-abcde"].key());
    let set = |name: &str| Change::Set(objects[name].clone());
    let steps = [
        vec![choosing("waypoint"), set("Pod/web-0")],
        vec![set("Service/waypoint"), set("Gateway/waypoint")],
        vec![pod("False")],
        vec![pod("True")],
        vec![pod("False")],
        vec![no_pod],
        vec![pod("True")],
        vec![choosing("none")],
        vec![choosing("waypoint")],
        vec![Change::Gone(objects["Gateway/waypoint"].key())],
    ];
    let events = transcript("14-waypoint-life.jsonl");
    assert_eq!(events.len(), steps.len());
    let mut world = world(scenario.settings());
    let mut gateway = None;
    for (step, event) in steps.into_iter().zip(events) {
        for change in &step {
            match change {
                Change::Set(Object::Gateway(it)) => gateway = Some(it.clone()),
                Change::Gone(key) if key.kind == Kind::Gateway => gateway = None,
                _ => {}
            }
        }
        world.apply(step);
        write_back(&mut world, &mut gateway);
        scenario::assert_same(&event.about, &resources(&world), &event.resources);
        assert_eq!(status_now(&world), event.status, "{}", event.about);
    }
}
