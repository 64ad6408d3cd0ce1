//! What is said of objects: of what they are attached to, why they are refused, and what is old.

use api::k8s::dir::{Change, Fault};
use api::k8s::objects::{Kind, ObjectKey};
use istiod_lite::status::Desired;
use istiod_lite::world::{Automatic, Settings, World};
use serde_json::{Value, json};

use super::{gateway, gone, set};
use crate::scenario::resources;

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
        assert_eq!(condition.status, condition.reason == "Accepted");
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
    assert_eq!(
        reason(&world, "a"),
        ("Accepted".into(), "bound to a/wp".into())
    );
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
    assert_eq!(reason(&world, "istio-system").0, "Accepted");
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
fn a_policy_at_a_gateway_that_is_no_waypoint_is_not_said_to_be_enforced() {
    let policy = |namespace: &str, kind: &str, name: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\n\
             spec: {{targetRefs: [{{group: gateway.networking.k8s.io, kind: {kind}, name: {name}}}], action: DENY, rules: [{{}}]}}\n---\n"
        )
    };
    let class = |name: &str, controller: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {name}}}\nspec: {{controllerName: {controller}}}\n---\n"
        )
    };
    let said = |world: &World, namespace: &str| {
        let key = ObjectKey::new(Kind::AuthorizationPolicy, namespace, "p");
        let condition = world.status(&key).unwrap().conditions[0].clone();
        (condition.status, condition.reason, condition.message)
    };
    for (name, controller) in [
        ("istio-east-west", "istio.io/eastwest-controller"),
        ("edge", "example.com/edge"),
    ] {
        let mut world = World::new(Settings::default());
        // It has an address all the same.
        let gateway = gateway("", "", true).replace("istio-waypoint", name);
        let text = [
            class(name, controller),
            gateway,
            policy("a", "Gateway", "wp"),
            policy("istio-system", "GatewayClass", name),
        ];
        set(&mut world, &text.concat());
        for namespace in ["a", "istio-system"] {
            let (status, reason, message) = said(&world, namespace);
            assert_eq!((status, reason.as_str()), (false, "AncestorNotBound"));
            assert!(message.contains("is no waypoint"), "{name}: {message}");
        }
    }
    // Nobody looks after such Gateways until their class is one of waypoints.
    let mut world = World::new(Settings::default());
    let gateway = gateway("", "", true).replace("istio-waypoint", "edge");
    set(&mut world, &(gateway + &policy("a", "Gateway", "wp")));
    assert_eq!(said(&world, "a").1, "AncestorNotBound");
    set(&mut world, &class("edge", "istio.io/mesh-controller"));
    assert_eq!(
        said(&world, "a"),
        (true, "Accepted".into(), "bound to a/wp".into())
    );
}

#[test]
fn a_policy_at_a_service_behind_somebody_elses_waypoint_is_not_said_to_be_enforced() {
    let class = |controller: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: edge}}\nspec: {{controllerName: {controller}}}\n---\n"
        )
    };
    let gateway = gateway("", "", true).replace("istio-waypoint", "edge");
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a, labels: {istio.io/use-waypoint: wp}}\n\
                   spec: {clusterIP: 10.0.1.1, ports: [{port: 80}]}\n---\n";
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\n\
                  spec: {targetRefs: [{group: '', kind: Service, name: web}], action: DENY, rules: [{}]}\n---\n";
    let said = |world: &World| {
        let key = ObjectKey::new(Kind::AuthorizationPolicy, "a", "p");
        let condition = world.status(&key).unwrap().conditions[0].clone();
        (condition.status, condition.reason, condition.message)
    };
    let mut world = World::new(Settings::default());
    let theirs = class("example.com/edge");
    set(&mut world, &format!("{theirs}{gateway}{service}{policy}"));
    let (status, reason, message) = said(&world);
    assert_eq!((status, reason.as_str()), (false, "AncestorNotBound"));
    let wanted = "Gateway a/wp, which Service a/web is behind, is no waypoint";
    assert!(message.starts_with(wanted), "{message}");
    set(&mut world, &class("istio.io/mesh-controller"));
    assert_eq!(
        said(&world),
        (true, "Accepted".into(), "bound to a/wp".into())
    );
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
