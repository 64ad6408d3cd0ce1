//! Several networks: which services they share, who vouches for whom, and the gateway of our own.

use api::k8s::dir::Change;
use api::k8s::objects::{Kind, Object, ObjectKey};
use api::k8s::yaml::{Parsed, parse};
use istiod_lite::translate::scope::Scopes;
use istiod_lite::world::{Settings, World};
use serde_json::{Value, json};

use crate::scenario::resources;

fn objects(text: &str) -> Vec<Object> {
    let parsed = parse(text).into_iter();
    parsed
        .map(|parsed| match parsed {
            Parsed::Object { object, .. } => object,
            other => panic!("{other:?} in {text}"),
        })
        .collect()
}

fn set(world: &mut World, text: &str) {
    world.apply(objects(text).into_iter().map(Change::Set).collect());
}

fn system(network: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: istio-system, labels: {{topology.istio.io/network: {network}}}}}\n---\n"
    )
}

fn entry(account: &str, network: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: far, namespace: a}}\n\
         spec: {{address: 10.0.0.7, network: '{network}', serviceAccount: {account}, labels: {{app: web}}}}\n---\n"
    )
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a}\n\
    spec: {clusterIP: 10.96.1.1, selector: {app: web}, ports: [{port: 80}]}\n---\n";

/// The same, offered to other networks.
fn global() -> String {
    SERVICE.replace(
        "namespace: a}",
        "namespace: a, labels: {istio.io/global: 'true'}}",
    )
}

const WEB: &str = "a/web.a.svc.cluster.local";
const FAR: &str = "Kubernetes/networking.istio.io/WorkloadEntry/a/far";

fn vouched(world: &World, service: &str) -> Value {
    let resource = &resources(world)[&("addresses", service.to_owned())];
    resource["service"]["subjectAltNames"].clone()
}

/// Whether a workload is an endpoint of a service.
fn serves(world: &World, workload: &str, service: &str) -> bool {
    let resource = &resources(world)[&("addresses", workload.to_owned())];
    !resource["workload"]["services"][service].is_null()
}

/// Whether gateways are told that other networks may call it.
fn is_offered(world: &World, service: &str) -> bool {
    let resource = &resources(world)[&("addresses", service.to_owned())];
    match &resource["service"]["extensions"] {
        Value::Null => false,
        told => {
            assert_eq!(told[0]["name"], "ambit.io/global", "{told}");
            true
        }
    }
}

fn remarks(world: &World) -> Vec<String> {
    let all = world.remarks();
    all.map(|(object, remark)| format!("{object}: {remark}"))
        .collect()
}

#[test]
fn a_service_has_endpoints_on_other_networks_while_its_label_makes_it_global() {
    let mut world = World::new(Settings::default());
    set(
        &mut world,
        &(system("one") + SERVICE + &entry("far", "two")),
    );
    for _ in 0..2 {
        assert!(!serves(&world, FAR, WEB));
        assert!(!is_offered(&world, WEB));
        assert_eq!(vouched(&world, WEB), Value::Null);
        assert_eq!(
            remarks(&world),
            [
                "WorkloadEntry a/far: Service a/web is LOCAL, so it has no endpoint on network two: label it istio.io/global=true"
            ]
        );
        set(&mut world, &global());
        assert!(serves(&world, FAR, WEB));
        assert!(is_offered(&world, WEB));
        let far = json!(["spiffe://cluster.local/ns/a/sa/far"]);
        assert_eq!(vouched(&world, WEB), far);
        assert_eq!(remarks(&world), [""; 0]);
        set(&mut world, &global().replace("'true'", "'false'"));
    }
    // On our own network a scope means nothing, however that is spelled.
    for near in ["one", ""] {
        set(&mut world, &entry("far", near));
        assert!(serves(&world, FAR, WEB), "{near:?}");
        assert!(!is_offered(&world, WEB));
        assert_eq!(remarks(&world), [""; 0]);
    }
    set(&mut world, &entry("far", "two"));
    assert!(!serves(&world, FAR, WEB));
    set(&mut world, &system("two"));
    assert!(serves(&world, FAR, WEB), "what was abroad is here");
}

fn under(rules: Value) -> World {
    World::new(Settings {
        scopes: Scopes::read(&rules).0,
        ..Settings::default()
    })
}

#[test]
fn namespaces_make_their_services_global_while_a_rule_selects_them() {
    let namespace = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{{labels}}}}}\n---\n"
        )
    };
    let selector =
        json!({"matchExpressions": [{"key": "reach", "operator": "In", "values": ["far"]}]});
    let mut world = under(json!([{"namespaceSelector": selector, "scope": "GLOBAL"}]));
    let objects = system("one") + &global() + &entry("far", "two");
    set(&mut world, &objects);
    assert!(!is_offered(&world, WEB), "the label means nothing here");
    for (labels, expected) in [
        ("", false),
        ("reach: far", true),
        ("reach: near", false),
        ("reach: far, team: x", true),
    ] {
        set(&mut world, &namespace(labels));
        let found = [is_offered(&world, WEB), serves(&world, FAR, WEB)];
        assert_eq!(found, [expected; 2], "{labels:?}");
        assert_eq!(vouched(&world, WEB).is_null(), !expected, "{labels:?}");
    }
    world.apply(vec![Change::Gone(ObjectKey::new(Kind::Namespace, "", "a"))]);
    assert!(!is_offered(&world, WEB));
    assert!(!serves(&world, FAR, WEB));
}

#[test]
fn under_rules_that_nobody_understands_every_service_is_local() {
    for rules in [
        json!("GLOBAL"),
        json!([{"scope": "GLOBAL", "selector": {"matchLabels": {"istio.io/global": "true"}}}]),
    ] {
        let mut world = under(rules);
        set(
            &mut world,
            &(system("one") + &global() + &entry("far", "two")),
        );
        assert!(!is_offered(&world, WEB));
        assert!(!serves(&world, FAR, WEB));
        assert_eq!(vouched(&world, WEB), Value::Null);
    }
}

#[test]
fn a_service_vouches_for_those_who_serve_it_on_other_networks_and_for_nobody_else() {
    let mut world = World::new(Settings::default());
    set(&mut world, &(system("one") + &global()));
    assert_eq!(vouched(&world, WEB), Value::Null);
    for (told, expected) in [
        (
            entry("far", "two"),
            json!(["spiffe://cluster.local/ns/a/sa/far"]),
        ),
        (
            entry("other", "two"),
            json!(["spiffe://cluster.local/ns/a/sa/other"]),
        ),
        (
            entry("''", "two"),
            json!(["spiffe://cluster.local/ns/a/sa/default"]),
        ),
        (entry("near", "one"), Value::Null),
        (entry("near", ""), Value::Null),
        (
            entry("far", "two"),
            json!(["spiffe://cluster.local/ns/a/sa/far"]),
        ),
        // What was abroad is here.
        (system("two"), Value::Null),
        (system("one"), json!(["spiffe://cluster.local/ns/a/sa/far"])),
    ] {
        set(&mut world, &told);
        assert_eq!(vouched(&world, WEB), expected, "{told}");
    }
    let far = ObjectKey::new(Kind::WorkloadEntry, "a", "far");
    world.apply(vec![Change::Gone(far)]);
    assert_eq!(vouched(&world, WEB), Value::Null);
}

#[test]
fn a_service_entry_vouches_for_its_own_endpoints_there_beside_whom_it_names() {
    let mut world = World::new(Settings::default());
    let text = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: far, namespace: a, labels: {istio.io/global: 'true'}}\n\
        spec: {hosts: [far.example], addresses: [10.97.1.1], ports: [{number: 80, name: tcp, protocol: TCP}], resolution: STATIC,\n  \
        subjectAltNames: ['spiffe://cluster.local/ns/b/sa/named'],\n  \
        endpoints: [{network: two, serviceAccount: inline}, {address: 10.0.0.1, serviceAccount: near}, {network: two, address: 10.0.0.2, serviceAccount: inline}]}\n---\n";
    set(&mut world, &(system("one") + text));
    let of = |address| format!("Kubernetes/networking.istio.io/ServiceEntry/a/far/{address}");
    let endpoints =
        |world: &World| ["10.0.0.1", "10.0.0.2"].map(|it| serves(world, &of(it), "a/far.example"));
    assert_eq!(endpoints(&world), [true, true]);
    assert!(is_offered(&world, "a/far.example"));
    assert_eq!(
        vouched(&world, "a/far.example"),
        json!([
            "spiffe://cluster.local/ns/b/sa/named",
            "spiffe://cluster.local/ns/a/sa/inline"
        ])
    );
    set(&mut world, &text.replace("'true'", "'no'"));
    assert_eq!(endpoints(&world), [true, false]);
    assert!(!is_offered(&world, "a/far.example"));
    let named = json!(["spiffe://cluster.local/ns/b/sa/named"]);
    assert_eq!(vouched(&world, "a/far.example"), named);
    let apart = "ServiceEntry a/far: ServiceEntry a/far is LOCAL, so it has no endpoint on network two: label it istio.io/global=true";
    assert!(
        remarks(&world).iter().any(|it| it == apart),
        "{:?}",
        remarks(&world)
    );
}

const DOOR: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: door, namespace: a}\n\
    spec: {gatewayClassName: istio-east-west, listeners: [{name: mesh, port: 15008, protocol: HBONE, tls: {mode: Terminate}}]}\n---\n\
    apiVersion: v1\nkind: Service\nmetadata: {name: door, namespace: a, labels: {gateway.networking.k8s.io/gateway-name: door}}\n\
    spec: {clusterIP: 10.96.1.9, ports: [{port: 15008}]}\n---\n\
    apiVersion: v1\nkind: Pod\nmetadata: {name: door-0, namespace: a, labels: {gateway.networking.k8s.io/gateway-name: door}}\n\
    spec: {containers: []}\nstatus: {phase: Running, podIP: 10.0.0.9}\n---\n";

#[test]
fn the_gateway_of_our_network_is_programmed_and_nobodys_waypoint() {
    let mut world = World::new(Settings::default());
    let named = SERVICE.replace(
        "namespace: a}",
        "namespace: a, labels: {istio.io/use-waypoint: door}}",
    );
    set(&mut world, &(DOOR.to_owned() + &named));
    let said = |kind, name: &str| {
        let key = ObjectKey::new(kind, "a", name);
        let said = world.status(&key).cloned();
        said.unwrap_or_else(|| panic!("nothing is said of {name}"))
    };
    let gateway = said(Kind::Gateway, "door");
    let programmed = gateway
        .conditions
        .iter()
        .find(|it| it.r#type == "Programmed");
    assert!(programmed.unwrap().status, "{gateway:?}");
    assert_eq!(gateway.fields["addresses"][0]["value"], "10.96.1.9");
    let service = said(Kind::Service, "web");
    assert!(
        service.conditions.iter().any(|it| !it.status
            && it
                .message
                .starts_with("Gateway \"a/door\" is an east-west gateway")),
        "{service:?}"
    );
    let resource = &resources(&world)[&("addresses", "a/web.a.svc.cluster.local".to_owned())];
    let waypoint = &resource["service"]["waypoint"]["hostname"]["hostname"];
    assert_eq!(
        waypoint, "door.a.waypoint-unready.invalid",
        "who wants a waypoint does not go without"
    );
    assert_eq!(
        world.waypoint_resources().count(),
        0,
        "there is nothing to tell it"
    );
}

/// Load balancers of clouds have names: whoever calls looks them up.
#[test]
fn a_gateway_of_another_network_may_have_a_name_in_the_place_of_an_address() {
    let mut world = World::new(Settings::default());
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
        metadata: {name: two, namespace: istio-system, labels: {topology.istio.io/network: two}}\n\
        spec:\n  gatewayClassName: istio-remote\n  addresses: [{type: Hostname, value: door.example.com}]\n  \
        listeners: [{name: mesh, port: 15008, protocol: HBONE}]\n";
    set(
        &mut world,
        &(system("one") + SERVICE + &entry("far", "two") + gateway),
    );
    let resources = resources(&world);
    let of = |name: &str| &resources[&("addresses", name.to_owned())]["workload"];
    let door = of("NetworkGateway/two/door.example.com/15008");
    assert_eq!(door["hostname"], "door.example.com");
    assert_eq!(
        (&door["network"], &door["addresses"]),
        (&json!("two"), &Value::Null)
    );
    assert_eq!(
        door["namespace"], "istio-system",
        "by it and the name it is found"
    );
    let far = &of("Kubernetes/networking.istio.io/WorkloadEntry/a/far")["networkGateway"];
    let named = json!({"namespace": "istio-system", "hostname": "door.example.com"});
    assert_eq!(
        (&far["hostname"], &far["hboneMtlsPort"]),
        (&named, &json!(15008))
    );
}

#[test]
fn the_way_into_a_network_is_the_root_namespaces_whoever_else_offers_one() {
    let gateway = |namespace: &str, address: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {{name: two, namespace: {namespace}, labels: {{topology.istio.io/network: two}}}}\n\
             spec: {{gatewayClassName: istio-remote, addresses: [{{type: Hostname, value: {address}}}], listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n---\n"
        )
    };
    let workload = |world: &World, name: &str| {
        resources(world)[&("addresses", name.to_owned())]["workload"].clone()
    };
    let far = "Kubernetes/networking.istio.io/WorkloadEntry/a/far";
    let mut world = World::new(Settings::default());
    let first = gateway("aaa", "thief.example.com");
    set(&mut world, &(system("one") + &entry("far", "two") + &first));
    let way = &workload(&world, far)["networkGateway"]["hostname"];
    assert_eq!(way["hostname"], "thief.example.com", "there is no other");
    set(&mut world, &gateway("istio-system", "door.example.com"));
    let way = &workload(&world, far)["networkGateway"]["hostname"];
    let named = json!({"namespace": "istio-system", "hostname": "door.example.com"});
    assert_eq!(*way, named);
    // Nor does another say who answers there.
    set(&mut world, &gateway("aaa", "door.example.com"));
    let door = workload(&world, "NetworkGateway/two/door.example.com/15008");
    assert_eq!(door["namespace"], "istio-system");
}
