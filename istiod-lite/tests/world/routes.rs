//! What waypoints are told because of routes, and what routes are told of themselves.

mod rules;
mod statuses;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s::dir::Change;
use api::k8s::objects::{Kind, Object, ObjectKey};
use api::k8s::yaml::{Parsed, parse};
use istiod_lite::status::Desired;
use istiod_lite::translate::service_entry::Visibility;
use istiod_lite::world::{Changed, Settings, World};
use prost_reflect::{DescriptorPool, DynamicMessage};
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

/// What waypoints are told, by its name on the wire.
fn told(world: &World) -> BTreeMap<String, Value> {
    let pool = DescriptorPool::decode(api::DESCRIPTORS).unwrap();
    let message = pool
        .get_message_by_name("ambit.waypoint.v1.Resource")
        .unwrap();
    let resources = world.waypoint_resources().map(|resource| {
        let decoded = DynamicMessage::decode(message.clone(), resource.encoded.clone()).unwrap();
        (
            resource.name.to_string(),
            serde_json::to_value(decoded).unwrap(),
        )
    });
    resources.collect()
}

/// Without whom it fronts.
fn names(world: &World) -> Vec<String> {
    let names = told(world).into_keys();
    names.filter(|it| !it.contains("/fronted/")).collect()
}

fn fronted(world: &World) -> Vec<String> {
    let names = told(world).into_keys();
    let fronted = |it: String| Some(it.split_once("/fronted/")?.1.to_owned());
    names.filter_map(fronted).collect()
}

/// Namespace a with a waypoint `wp` that lets everybody in, services `web` and `api` and a ServiceEntry in
/// it; namespace b that names the same waypoint; namespace c that names none.
fn mesh() -> World {
    mesh_with(Settings::default())
}

fn mesh_with(settings: Settings) -> World {
    let mut text = String::from(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: a}\n\
         spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: out, namespace: a}\n\
         spec: {hosts: [out.example.com], resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http}]}\n---\n",
    );
    for (namespace, labels) in [
        ("a", "istio.io/use-waypoint: wp"),
        (
            "b",
            "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: a",
        ),
        ("c", ""),
    ] {
        text += &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{{labels}}}}}\n---\n"
        );
        for name in ["web", "api"] {
            text += &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
                 spec: {{clusterIP: 10.0.1.1, selector: {{app: {name}}}, ports: [{{port: 80, name: http}}, {{port: 90, name: grpc}}, {{port: 53, name: dns, protocol: UDP}}]}}\n---\n"
            );
        }
    }
    let mut world = World::new(settings);
    set(&mut world, &text);
    world
}

/// A route of a kind, in a namespace.
fn route(kind: &str, namespace: &str, spec: &Value) -> String {
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"name": "r", "namespace": namespace, "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 3},
        "spec": spec,
    });
    format!("{route}\n---\n")
}

/// A route of which only the parents matter.
fn to(namespace: &str, parents: &Value) -> String {
    let rules = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
    route(
        "HTTPRoute",
        namespace,
        &json!({"parentRefs": parents, "rules": rules}),
    )
}

fn service(name: &str) -> Value {
    json!({"group": "", "kind": "Service", "name": name})
}

fn said(world: &World, kind: Kind, namespace: &str) -> Option<Arc<Desired>> {
    world.status(&ObjectKey::new(kind, namespace, "r")).cloned()
}

/// Parents, hosts of services and ports, of one resource.
fn parents(resource: &Value) -> Vec<String> {
    let route = resource.get("route").or(resource.get("tcpRoute")).unwrap();
    let parents = route["parents"].as_array().unwrap().iter();
    parents
        .map(|it| {
            let service = &it["service"];
            let port = service["port"].as_u64().unwrap_or(0);
            format!(
                "{} {} {port}",
                service["namespace"].as_str().unwrap(),
                service["hostname"].as_str().unwrap()
            )
        })
        .collect()
}

#[test]
fn a_waypoint_is_told_of_itself_and_whom_it_fronts_before_it_is_ready() {
    let mut world = mesh();
    let gateway = &told(&world)["a/wp/gateway/a/wp"];
    assert_eq!(gateway["origin"]["kind"], "Gateway");
    let gateway = &gateway["gateway"];
    assert_eq!(
        fronted(&world),
        [
            "service/a/api.a.svc.cluster.local",
            "service/a/out.example.com",
            "service/a/web.a.svc.cluster.local",
            "service/b/api.b.svc.cluster.local",
            "service/b/web.b.svc.cluster.local"
        ]
    );
    assert_eq!(gateway["trustDomain"], "cluster.local");
    assert_eq!(gateway["class"], "istio-waypoint");
    assert_eq!(names(&world).len(), 1);

    let changed = set(
        &mut world,
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: b, labels: {istio.io/use-waypoint: none}}\nspec: {clusterIP: 10.0.1.1, ports: [{port: 80}]}\n",
    );
    let left = "a/wp/fronted/service/b/web.b.svc.cluster.local";
    assert_eq!(changed.resources, [left.into()]);
    let changed = gone(&mut world, Kind::Gateway, "a", "wp");
    assert_eq!(changed.resources.len(), 5);
    assert!(told(&world).is_empty());
}

#[test]
fn a_waypoint_for_workloads_is_told_of_them_before_anybody_asks() {
    let mut world = mesh();
    let pod = |name: &str, labels: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, labels: {{{labels}}}}}\n\
             spec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.1.0.1}}\n"
        )
    };
    set(&mut world, &pod("one", ""));
    let gateway = |serves: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: a, labels: {{istio.io/waypoint-for: {serves}}}}}\n\
             spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n"
        )
    };
    set(&mut world, &gateway("workload"));
    assert_eq!(fronted(&world), ["workload/Kubernetes//Pod/a/one"]);
    set(&mut world, &pod("two", "istio.io/use-waypoint: none"));
    assert_eq!(fronted(&world).len(), 1);
    set(&mut world, &pod("two", ""));
    assert_eq!(fronted(&world).len(), 2);
    set(&mut world, &gateway("all"));
    assert_eq!(fronted(&world).len(), 5);
    gone(&mut world, Kind::Pod, "a", "one");
    set(&mut world, &gateway("service"));
    assert!(
        fronted(&world)
            .iter()
            .all(|it| it.starts_with("service/a/"))
    );
}

#[test]
fn a_route_goes_to_the_waypoints_of_its_parents_as_theirs_or_as_their_clients() {
    let all =
        |namespace: &str, name: &str| format!("{namespace} {name}.{namespace}.svc.cluster.local 0");
    let port = |namespace: &str, name: &str, port: u16| {
        format!("{namespace} {name}.{namespace}.svc.cluster.local {port}")
    };
    let entry = json!({"group": "networking.istio.io", "kind": "ServiceEntry", "name": "out"});
    let in_a = json!({"group": "", "kind": "Service", "name": "web", "namespace": "a"});
    let with = |mut parent: Value, more: Value| {
        crate::scenario::merge(&mut parent, &more);
        parent
    };
    // (namespace of the route, parents, as the producer's, as a consumer's)
    let cases = [
        ("a", json!([service("web")]), vec![all("a", "web")], vec![]),
        (
            "a",
            json!([service("web"), service("api")]),
            vec![all("a", "web"), all("a", "api")],
            vec![],
        ),
        (
            "a",
            json!([with(service("web"), json!({"port": 80}))]),
            vec![port("a", "web", 80)],
            vec![],
        ),
        (
            "a",
            json!([with(service("web"), json!({"sectionName": "grpc"}))]),
            vec![port("a", "web", 90)],
            vec![],
        ),
        (
            "a",
            json!([with(
                service("web"),
                json!({"sectionName": "grpc", "port": 80})
            )]),
            vec![],
            vec![],
        ),
        (
            "a",
            json!([with(service("web"), json!({"port": 81}))]),
            vec![],
            vec![],
        ),
        ("a", json!([service("other")]), vec![], vec![]),
        (
            "a",
            json!([entry]),
            vec!["a out.example.com 0".to_owned()],
            vec![],
        ),
        ("a", json!([{"name": "wp"}]), vec![], vec![]),
        (
            "a",
            json!([{"group": "x.y", "kind": "Mesh", "name": "web"}]),
            vec![],
            vec![],
        ),
        ("b", json!([in_a]), vec![], vec![all("a", "web")]),
        (
            "b",
            json!([service("web"), in_a]),
            vec![all("b", "web")],
            vec![all("a", "web")],
        ),
        ("c", json!([in_a]), vec![], vec![all("a", "web")]),
        // Names no waypoint.
        ("c", json!([service("web")]), vec![], vec![]),
    ];
    for (namespace, refs, producer, consumer) in cases {
        let mut world = mesh();
        set(&mut world, &to(namespace, &refs));
        let told = told(&world);
        let of = |suffix: &str| {
            let found = told.get(&format!("a/wp/httproute/{namespace}/r/0{suffix}"));
            if let Some(found) = found {
                let client = &found["route"]["consumerNamespace"];
                let expected = if suffix.is_empty() {
                    &Value::Null
                } else {
                    &json!(namespace)
                };
                assert_eq!(client, expected, "{refs}");
            }
            found.map(parents).unwrap_or_default()
        };
        assert_eq!((of(""), of("/consumer")), (producer, consumer), "{refs}");
    }
}

#[test]
fn a_service_entry_that_nobody_is_told_stands_for_no_host() {
    let entry = json!([{"group": "networking.istio.io", "kind": "ServiceEntry", "name": "out"}]);
    let host = "a out.example.com 0".to_owned();
    // (who may see the entries of the namespace, what a route of one is for)
    for (visibility, expected) in [
        (Visibility::Public, vec![host.clone()]),
        (Visibility::Namespace, vec![host]),
        (Visibility::None, vec![]),
    ] {
        let of_a = [("istio.io/use-waypoint".to_owned(), "wp".to_owned())].into();
        let mut world = mesh_with(Settings {
            service_entry_visibility: vec![(of_a, visibility)],
            ..Settings::default()
        });
        set(&mut world, &to("a", &entry));
        let told = told(&world);
        let of = told.get("a/wp/httproute/a/r/0").map(parents);
        assert_eq!(of.unwrap_or_default(), expected, "{visibility:?}");
    }
}

#[test]
fn each_rule_is_a_resource_and_an_edit_of_one_changes_one() {
    let mut world = mesh();
    let spec = |path: &str| {
        let rule = |path: &str| json!({"matches": [{"path": {"value": path}}], "backendRefs": [{"name": "api", "port": 80}]});
        let mut named = rule("/named");
        named["name"] = "special".into();
        json!({"parentRefs": [service("web")], "rules": [rule("/one"), named, rule(path)]})
    };
    let changed = set(&mut world, &route("HTTPRoute", "a", &spec("/three")));
    let key = |rule: u8| -> Arc<str> { format!("a/wp/httproute/a/r/{rule}").into() };
    assert_eq!(changed.resources, [key(0), key(1), key(2)]);
    let changed = set(&mut world, &route("HTTPRoute", "a", &spec("/four")));
    assert_eq!(changed.resources, [key(2)]);
    let origin = &told(&world)[&*key(1)]["origin"];
    let expected = json!({"kind": "HTTPRoute", "namespace": "a", "name": "r", "rule": "special", "index": 1, "created": "1767225600"});
    assert_eq!(*origin, expected);
    let changed = gone(&mut world, Kind::HttpRoute, "a", "r");
    assert_eq!(changed.resources.len(), 3);
}

#[test]
fn a_backend_that_comes_and_a_grant_that_goes_are_noticed() {
    let mut world = mesh();
    let rules = json!([{"backendRefs": [
        {"name": "late", "port": 80},
        {"name": "web", "namespace": "c", "port": 80},
        {"group": "networking.istio.io", "kind": "Hostname", "name": "late.example.com", "port": 80},
    ]}]);
    let spec = json!({"parentRefs": [service("web")], "rules": rules});
    set(&mut world, &route("HTTPRoute", "a", &spec));
    let valid = |world: &World| {
        let told = told(world);
        let backends = told["a/wp/httproute/a/r/0"]["route"]["backends"].clone();
        let backends = backends.as_array().unwrap().clone();
        backends
            .iter()
            .map(|it| it.get("service").is_some())
            .collect::<Vec<_>>()
    };
    assert_eq!(valid(&world), [false, false, false]);
    let late = "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: a}\nspec: {clusterIP: 10.0.1.9, ports: [{port: 80}]}\n";
    set(&mut world, late);
    assert_eq!(valid(&world), [true, false, false]);
    let grant = |to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: c}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}}], to: [{{group: '', kind: Service{to}}}]}}\n"
        )
    };
    for (to, expected) in [
        (", name: api", false),
        (", name: web", true),
        ("", true),
        (", name: ''", true),
    ] {
        set(&mut world, &grant(to));
        assert_eq!(valid(&world), [true, expected, false], "{to}");
    }
    gone(&mut world, Kind::ReferenceGrant, "c", "g");
    assert_eq!(valid(&world), [true, false, false]);
    let entry = |namespace: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: late, namespace: {namespace}}}\nspec: {{hosts: [late.example.com], resolution: DNS, ports: [{{number: 80, name: http}}]}}\n"
        )
    };
    set(&mut world, &entry("c"));
    assert_eq!(valid(&world), [true, false, false]);
    let entries = grant("")
        .replace("group: ''", "group: networking.istio.io")
        .replace("kind: Service}", "kind: ServiceEntry}");
    set(&mut world, &entries);
    assert_eq!(valid(&world), [true, false, true]);
    gone(&mut world, Kind::ReferenceGrant, "c", "g");
    assert_eq!(valid(&world), [true, false, false]);
    set(&mut world, &entry("a"));
    assert_eq!(valid(&world), [true, false, true]);
    gone(&mut world, Kind::ServiceEntry, "a", "late");
    gone(&mut world, Kind::ServiceEntry, "c", "late");
    gone(&mut world, Kind::Service, "a", "late");
    assert_eq!(valid(&world), [false, false, false]);
}

/// Who sends a service's requests elsewhere in its namespace leaves that one's policies out.
#[test]
fn a_clients_route_needs_no_grant_to_let_requests_go_on() {
    let of = |name: &str| json!({"group": "", "kind": "Service", "name": name, "namespace": "a"});
    for (parents, backend, good) in [
        (json!([of("web")]), "web", true),
        (json!([of("web")]), "api", false),
        (json!([of("web"), of("api")]), "web", false),
        (json!([of("web"), service("web")]), "web", false),
    ] {
        let mut world = mesh();
        let rules = json!([{"backendRefs": [{"name": backend, "namespace": "a", "port": 80}]}]);
        let spec = json!({"parentRefs": parents, "rules": rules});
        set(&mut world, &route("HTTPRoute", "b", &spec));
        let told = &told(&world)["a/wp/httproute/b/r/0/consumer"]["route"]["backends"][0];
        assert_eq!(told.get("service").is_some(), good, "{parents}: {told}");
    }
}

#[test]
fn a_waypoint_that_is_named_no_more_is_told_no_more() {
    let mut world = mesh();
    set(&mut world, &to("b", &json!([service("web")])));
    assert!(names(&world).contains(&"a/wp/httproute/b/r/0".to_owned()));
    set(
        &mut world,
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n",
    );
    assert_eq!(names(&world), ["a/wp/gateway/a/wp"]);
    set(
        &mut world,
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: b, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: a}}\n",
    );
    assert_eq!(names(&world).len(), 2);
    // The waypoint lets nobody else in.
    set(
        &mut world,
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: a}\n\
         spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n",
    );
    assert_eq!(names(&world), ["a/wp/gateway/a/wp"]);
}

#[test]
fn of_five_thousand_routes_an_edit_costs_one() {
    let mut world = mesh();
    let route = |number: usize, path: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{number}, namespace: a}}\n\
             spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: web, port: 80}}]}}]}}\n---\n"
        )
    };
    let all: String = (0..5000).map(|it| route(it, &format!("/{it}"))).collect();
    assert_eq!(set(&mut world, &all).resources.len(), 5000);
    let before = world.recomputed();
    let changed = set(&mut world, &route(4711, "/elsewhere"));
    assert_eq!(
        (changed.resources.len(), world.recomputed() - before),
        (1, 1)
    );
}
