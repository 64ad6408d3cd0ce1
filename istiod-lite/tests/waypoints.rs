//! Who must pass a waypoint does, or is refused: never goes around it by accident.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot read its data has failed

mod scenario;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s::dir::{Change, Fault};
use api::k8s::objects::{Gateway, Kind, Object, ObjectKey, Pod};
use api::k8s::yaml::{Parsed, parse};
use istiod_lite::status::Desired;
use istiod_lite::world::{Automatic, Changed, Settings, Unready, World};
use scenario::{Resources, all, base, normal, resources, world};
use serde_json::{Value, json};

fn objects(text: &str) -> Vec<Object> {
    let parsed = parse(text).into_iter();
    parsed
        .map(|parsed| match parsed {
            Parsed::Object { object, .. } => object,
            other => panic!("{other:?} in {text}"),
        })
        .collect()
}

fn set(world: &mut World, text: &str) -> Changed {
    world.apply(objects(text).into_iter().map(Change::Set).collect())
}

fn gone(world: &mut World, kind: Kind, namespace: &str, name: &str) -> Changed {
    world.apply(vec![Change::Gone(ObjectKey::new(kind, namespace, name))])
}

/// A Gateway of the waypoint class in namespace a, ready or not.
fn gateway(labels: &str, listener: &str, ready: bool) -> String {
    let status = if ready {
        "{addresses: [{type: IPAddress, value: 10.0.0.9}]}"
    } else {
        "{}"
    };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: a, labels: {{{labels}}}}}\n\
         spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE{listener}}}]}}\nstatus: {status}\n---\n"
    )
}

/// A namespace that names the waypoint, and a service and a pod in it.
fn town(namespace: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: a{labels}}}}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}}}\nspec: {{clusterIP: 10.0.1.1, selector: {{app: web}}, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: {namespace}, labels: {{app: web}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.0.2.1}}\n---\n"
    )
}

/// Where a resource's traffic is sent: `-` on its own way, `waypoint`, or `nowhere`.
fn way(world: &World, name: &str) -> &'static str {
    let resources = resources(world);
    let resource = &resources[&("addresses", name.to_owned())];
    let kind = if name.contains("//") {
        "workload"
    } else {
        "service"
    };
    let waypoint = &resource[kind]["waypoint"];
    match waypoint["hostname"]["hostname"].as_str() {
        Some("wp.a.waypoint-unready.invalid") => {
            assert_eq!(waypoint["hboneMtlsPort"], 15008);
            "nowhere"
        }
        Some(other) => panic!("{other}"),
        None if waypoint.is_null() => "-",
        None => "waypoint",
    }
}

fn ways(world: &World, namespace: &str) -> [&'static str; 2] {
    let service = format!("{namespace}/web.{namespace}.svc.cluster.local");
    [
        way(world, &service),
        way(world, &format!("Kubernetes//Pod/{namespace}/web")),
    ]
}

#[test]
fn a_waypoint_that_cannot_be_used_refuses_whose_traffic_must_pass_it() {
    let cases = [
        ("missing", String::new(), ["nowhere", "nowhere"]),
        (
            "not ready, for services",
            gateway("", "", false),
            ["nowhere", "-"],
        ),
        (
            "not ready, for workloads",
            gateway("istio.io/waypoint-for: workload", "", false),
            ["-", "nowhere"],
        ),
        (
            "not ready, for all",
            gateway("istio.io/waypoint-for: all", "", false),
            ["nowhere", "nowhere"],
        ),
        (
            "not ready, for none",
            gateway("istio.io/waypoint-for: none", "", false),
            ["-", "-"],
        ),
        (
            "for nobody knows whom",
            gateway("istio.io/waypoint-for: everyone", "", true),
            ["nowhere", "nowhere"],
        ),
        (
            "ready, for services",
            gateway("", "", true),
            ["waypoint", "-"],
        ),
        (
            "ready, for all",
            gateway("istio.io/waypoint-for: all", "", true),
            ["waypoint", "waypoint"],
        ),
    ];
    for (what, gateway, expected) in cases {
        let mut world = World::new(Settings::default());
        set(&mut world, &(gateway + &town("a", "")));
        assert_eq!(ways(&world, "a"), expected, "{what}");

        let pass = expected.map(|way| if way == "nowhere" { "-" } else { way });
        set(&mut world, &town("a", ", ambit.io/waypoint-unready: pass"));
        assert_eq!(
            ways(&world, "a"),
            pass,
            "{what}, and the namespace lets it pass"
        );
        set(
            &mut world,
            &town("a", ", ambit.io/waypoint-unready: perhaps"),
        );
        assert_eq!(
            ways(&world, "a"),
            expected,
            "{what}, and the namespace says nothing clear"
        );
    }
}

#[test]
fn the_mesh_may_let_traffic_pass_and_a_namespace_may_not() {
    let mut world = World::new(Settings {
        waypoint_unready: Unready::Pass,
        ..Settings::default()
    });
    set(
        &mut world,
        &(town("a", "") + &town("b", ", ambit.io/waypoint-unready: refuse")),
    );
    assert_eq!(ways(&world, "a"), ["-", "-"]);
    assert_eq!(ways(&world, "b"), ["nowhere", "nowhere"]);
}

#[test]
fn a_namespace_that_is_not_let_in_is_refused_until_it_is() {
    let selecting =
        ", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: x}}}}";
    let mut world = World::new(Settings::default());
    set(&mut world, &(gateway("", "", true) + &town("b", "")));
    assert_eq!(ways(&world, "b"), ["nowhere", "-"]);
    set(&mut world, &gateway("", selecting, true));
    assert_eq!(ways(&world, "b"), ["nowhere", "-"]);
    set(&mut world, &town("b", ", team: x"));
    assert_eq!(ways(&world, "b"), ["waypoint", "-"]);
    let condition = |world: &World| {
        let key = ObjectKey::new(Kind::Service, "b", "web");
        let condition = world.status(&key).unwrap().conditions[0].clone();
        (condition.status, condition.reason, condition.message)
    };
    assert_eq!(condition(&world).1, "WaypointAccepted");
    set(&mut world, &town("b", ", team: y"));
    assert_eq!(ways(&world, "b"), ["nowhere", "-"]);
    let (bound, reason, message) = condition(&world);
    assert_eq!((bound, &*reason), (false, "AttachmentDenied"));
    assert!(message.contains("traffic is refused"), "{message}");
}

#[test]
fn who_opts_out_and_a_waypoints_own_pods_are_never_refused() {
    let mut world = World::new(Settings::default());
    let text = town("a", "").replace(
        "labels: {app: web}",
        "labels: {app: web, gateway.networking.k8s.io/gateway-name: wp}",
    );
    set(&mut world, &text);
    assert_eq!(ways(&world, "a"), ["nowhere", "-"]);
    let text = text.replace(
        "{name: web, namespace: a}",
        "{name: web, namespace: a, labels: {istio.io/use-waypoint: none}}",
    );
    set(&mut world, &text);
    assert_eq!(ways(&world, "a"), ["-", "-"]);
}

#[test]
fn a_pod_that_names_its_waypoint_itself_is_refused_like_its_namespace() {
    let mut world = World::new(Settings::default());
    let own = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: c, labels: {app: web, istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: a}}\nspec: {containers: []}\nstatus: {phase: Running, podIP: 10.0.2.1}\n";
    set(&mut world, own);
    assert_eq!(way(&world, "Kubernetes//Pod/c/web"), "nowhere");
    gone(&mut world, Kind::Pod, "c", "web");
    assert_eq!(world.addresses().count(), 0);
}

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

/// In a mesh of 1,000 pods in one namespace that names a waypoint, 10 services.
#[test]
fn a_waypoint_that_changes_costs_who_sees_a_difference() {
    let mut text = String::from(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: wp}}\n---\n",
    );
    for number in 0..1000 {
        text += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{number}, namespace: a, labels: {{app: a{}}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.1.{}.{}}}\n---\n",
            number % 10,
            number / 250,
            number % 250 + 1
        );
    }
    for number in 0..10 {
        text += &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: a}}\nspec: {{clusterIP: 10.2.0.{number}, selector: {{app: a{number}}}, ports: [{{port: 80}}]}}\n---\n"
        );
    }
    let mut world = World::new(Settings::default());
    let everything = set(&mut world, &text);
    assert_eq!(
        (everything.addresses.len(), world.recomputed()),
        (1010, 1010)
    );
    let namespace = |name: &str, labels: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n---\n"
        )
    };
    let pod = |ready: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: wp, namespace: a, labels: {{gateway.networking.k8s.io/gateway-name: wp}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.3.0.1, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: wp, namespace: a, labels: {gateway.networking.k8s.io/gateway-name: wp}}\nspec: {clusterIP: 10.2.1.1, ports: [{port: 15008}]}\n";
    let policy = |name: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: a}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: s1}}], rules: [{{}}]}}\n"
        )
    };
    // (what, text, things made anew, addresses changed)
    let steps = [
        ("a label nobody asks for", namespace("a", "istio.io/use-waypoint: wp, team: x"), 0, 0),
        ("another namespace", namespace("b", "istio.io/use-waypoint: wp"), 0, 0),
        // Until now it might have been for pods too.
        ("its Gateway comes, not ready, for services", gateway("", "", false), 1011, 1000),
        ("its Service comes", service.to_owned(), 1, 1),
        ("its first pod comes", pod("False"), 12, 11),
        ("the pod becomes ready", pod("True"), 1, 1),
        ("its address is reported", gateway("", "", true).replace("10.0.0.9", "10.2.1.1"), 2, 0),
        ("the namespace says what happens if it is not ready", namespace("a", "istio.io/use-waypoint: wp, team: x, ambit.io/waypoint-unready: pass"), 1010, 0),
        ("a policy is attached to a service", policy("p"), 1, 0),
        ("the service changes", "apiVersion: v1\nkind: Service\nmetadata: {name: s1, namespace: a}\nspec: {clusterIP: 10.2.0.1, selector: {app: a1}, ports: [{port: 81}]}\n".to_owned(), 102, 101),
    ];
    for (what, text, made, changed) in steps {
        let before = world.recomputed();
        let names = set(&mut world, &text);
        assert_eq!(
            (world.recomputed() - before, names.addresses.len()),
            (made, changed),
            "{what}"
        );
    }
}

#[test]
fn a_policy_says_what_became_of_what_it_is_attached_to() {
    let mut world = World::new(Settings::default());
    let policy = |namespace: &str, targets: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}, generation: 3}}\nspec: {{targetRefs: [{targets}], rules: [{{}}]}}\n---\n"
        )
    };
    let reason = |world: &World, namespace: &str| {
        let key = ObjectKey::new(Kind::AuthorizationPolicy, namespace, "p");
        let status = world.status(&key).unwrap().clone();
        assert_eq!(status.generation, Some(3));
        let condition = &status.conditions[0];
        assert!(!condition.status);
        (condition.reason.clone(), condition.message.clone())
    };
    let web = "{group: '', kind: Service, name: web}";
    set(&mut world, &policy("a", web));
    assert_eq!(
        reason(&world, "a"),
        (
            "TargetNotFound".into(),
            "Service a/web was not found".into()
        )
    );
    let service = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: a, labels: {{{labels}}}}}\nspec: {{clusterIP: 10.0.1.1, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let changed = set(&mut world, &service(""));
    assert_eq!(reason(&world, "a").0, "AncestorNotBound");
    assert!(
        changed
            .statuses
            .iter()
            .any(|key| key.kind == Kind::AuthorizationPolicy)
    );
    set(&mut world, &service("istio.io/use-waypoint: wp"));
    assert_eq!(reason(&world, "a").0, "AncestorNotBound");
    set(&mut world, &gateway("", "", true));
    assert_eq!(reason(&world, "a").0, "WaypointNotServed");
    set(
        &mut world,
        &policy(
            "a",
            &format!("{web}, {{group: '', kind: Service, name: x}}"),
        ),
    );
    assert_eq!(reason(&world, "a").0, "PartiallyInvalid");
    gone(&mut world, Kind::Gateway, "a", "wp");
    set(
        &mut world,
        &policy(
            "a",
            "{group: gateway.networking.k8s.io, kind: Gateway, name: wp}",
        ),
    );
    assert_eq!(reason(&world, "a").0, "TargetNotFound");
    set(&mut world, &gateway("", "", false));
    assert_eq!(reason(&world, "a").0, "AncestorNotBound");

    let class = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}";
    set(&mut world, &policy("istio-system", class));
    assert_eq!(reason(&world, "istio-system").0, "WaypointNotServed");
    set(
        &mut world,
        &policy(
            "istio-system",
            &class.replace("istio-waypoint", "unheard-of"),
        ),
    );
    assert_eq!(reason(&world, "istio-system").0, "TargetNotFound");
}

#[test]
fn an_object_that_is_refused_says_why_and_what_is_in_force_until_it_is_mended() {
    let mut world = World::new(Settings::default());
    let good = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {action: DENY}\n";
    let key = ObjectKey::new(Kind::AuthorizationPolicy, "a", "p");
    let refuse = |world: &mut World, reasons: &[&str]| {
        let faults = reasons.iter().map(|reason| {
            Change::Invalid(Fault {
                file: "f".into(),
                line: 1,
                object: Some(key.clone()),
                reason: (*reason).to_owned(),
                aim: None,
            })
        });
        world.apply(faults.collect())
    };
    let said = |world: &World| {
        let condition = world.status(&key).unwrap().conditions[0].clone();
        (
            condition.r#type,
            condition.status,
            condition.reason,
            condition.message,
        )
    };
    let changed = refuse(&mut world, &["spec.action: unknown"]);
    assert_eq!(changed.statuses, std::slice::from_ref(&key));
    assert_eq!(
        said(&world),
        (
            "ZtunnelAccepted",
            false,
            "Invalid".into(),
            "spec.action: unknown; nothing of it is in force".into()
        )
    );
    set(&mut world, good);
    assert_eq!(said(&world).3, "attached to ztunnel");
    let changed = refuse(&mut world, &["spec.rules[0]: bad", "spec.rules[1]: worse"]);
    assert!(changed.authorizations.is_empty(), "the good version stays");
    assert_eq!(
        said(&world).3,
        "spec.rules[0]: bad; spec.rules[1]: worse; the last version without this fault stays in force"
    );
    refuse(&mut world, &["spec.rules[1]: worse"]);
    assert_eq!(
        said(&world).3,
        "spec.rules[1]: worse; the last version without this fault stays in force"
    );
    // Mended to what it was before: the same object says so.
    set(&mut world, good);
    assert_eq!(said(&world).3, "attached to ztunnel");
    refuse(&mut world, &["spec.action: unknown"]);
    let changed = gone(&mut world, Kind::AuthorizationPolicy, "a", "p");
    assert_eq!(
        (changed.statuses, world.status(&key)),
        (vec![key.clone()], None)
    );
}

#[test]
fn a_condition_of_an_earlier_life_is_taken_out() {
    let mut world = World::new(Settings::default());
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a}\nspec: {clusterIP: 10.0.1.1, ports: [{port: 80}]}\n";
    let key = ObjectKey::new(Kind::Service, "a", "web");
    set(&mut world, service);
    assert_eq!(
        world.status(&key),
        None,
        "nothing to say, nothing to take out"
    );
    gone(&mut world, Kind::Service, "a", "web");
    let marked = format!(
        "{service}status: {{conditions: [{{type: istio.io/WaypointBound, status: 'True', reason: x, message: '', lastTransitionTime: '2024-01-01T00:00:00Z'}}]}}\n"
    );
    let changed = set(&mut world, &marked);
    assert_eq!(changed.statuses, std::slice::from_ref(&key));
    assert_eq!(**world.status(&key).unwrap(), Desired::default());
    // Written by somebody else, later.
    gone(&mut world, Kind::Service, "a", "web");
    set(&mut world, service);
    assert_eq!(set(&mut world, &marked).statuses, [key]);
}

#[test]
fn in_a_cluster_automatic_addresses_are_those_of_the_status() {
    let mut world = World::new(Settings {
        automatic_addresses: Automatic::FromStatus,
        ..Settings::default()
    });
    let entry = |status: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: a}}\nspec: {{hosts: [h.x], resolution: DNS, ports: [{{number: 80, name: http}}]}}\nstatus: {status}\n"
        )
    };
    set(&mut world, &entry("{}"));
    let addresses = |world: &World| {
        resources(world)[&("addresses", "a/h.x".to_owned())]["service"]["addresses"].clone()
    };
    assert_eq!(addresses(&world), Value::Null);
    set(
        &mut world,
        &entry(
            "{addresses: [{host: h.x, value: 240.240.0.7}, {host: other.x, value: 240.240.0.8}]}",
        ),
    );
    assert_eq!(addresses(&world), json!([{"address": "automatic v4"}]));
    assert_eq!(world.automatic_addresses(), "");
}

#[test]
fn a_waypoint_is_allowed_only_where_others_are_not() {
    let mut world = World::new(Settings {
        auto_allow_waypoint: true,
        ..Settings::default()
    });
    let named = |world: &World| {
        let pod = resources(world)[&("addresses", "Kubernetes//Pod/a/web".to_owned())].clone();
        let names = pod["workload"]["authorizationPolicies"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        names
            .iter()
            .any(|name| name == "a/istio_allow_waypoint_a_wp")
    };
    let policy = |namespace: &str, action: &str, selector: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{action: {action}, {selector}}}\n---\n"
        )
    };
    set(&mut world, &(gateway("", "", true) + &town("a", "")));
    assert!(!named(&world), "an ALLOW would lock out everybody else");
    for (namespace, selector) in [
        ("a", ""),
        ("istio-system", ""),
        ("a", "selector: {matchLabels: {app: web}}"),
    ] {
        set(&mut world, &policy(namespace, "DENY", selector));
        assert!(!named(&world), "{namespace} {selector}");
        set(&mut world, &policy(namespace, "ALLOW", selector));
        assert!(named(&world), "{namespace} {selector}");
        gone(&mut world, Kind::AuthorizationPolicy, namespace, "p");
        assert!(!named(&world), "{namespace} {selector}");
    }
    // A waypoint of the service alone sends to its pods too.
    set(&mut world, &policy("a", "ALLOW", ""));
    let unnamed = town("a", "").replace(
        "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: a",
        "",
    );
    set(&mut world, &unnamed);
    assert!(!named(&world));
    set(
        &mut world,
        &unnamed.replace(
            "{name: web, namespace: a}\nspec: {clusterIP",
            "{name: web, namespace: a, labels: {istio.io/use-waypoint: wp}}\nspec: {clusterIP",
        ),
    );
    assert!(named(&world));
    set(&mut world, &gateway("", "", false));
    assert!(!named(&world));
    assert!(base().objects.len() > 3);
}
