//! Who names another waypoint leaves the earlier one after a while, in which that one is told all that is said there.
//! Time is simulated.

use std::collections::BTreeMap;
use std::time::Duration;

use api::k8s::objects::Kind;
use api::waypoint as wire;
use istiod_lite::world::{LEAVING, Settings, World};
use prost::Message as _;
use wire::resource::Kind as Told;

use super::{gone, set};
use crate::scenario::resources;

const WEB: &str = "fronted/service/a/web.a.svc.cluster.local";
const STAYS: Option<u64> = Some(0);
const LEAVES: Option<u64> = Some(10_000);

/// Waypoints `old` and `new` of namespace a, a service there and a policy that is attached to it.
fn town(service: &str) -> String {
    format!(
        "{}{}{}{}{}",
        gateway("old", ""),
        gateway("new", ""),
        web(service),
        policy("GET"),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: a, labels: {app: web}}\nspec: {containers: []}\nstatus: {phase: Running, podIP: 10.0.2.1}\n---\n"
    )
}

fn gateway(name: &str, labels: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: a, labels: {{{labels}}}}}\n\
         spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n\
         status: {{addresses: [{{type: IPAddress, value: 10.0.0.9}}]}}\n---\n"
    )
}

fn web(labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: a, labels: {{{labels}}}}}\n\
         spec: {{clusterIP: 10.0.1.1, selector: {{app: web}}, ports: [{{port: 80}}]}}\n---\n"
    )
}

fn policy(method: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: a}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, name: web}}], rules: [{{to: [{{operation: {{methods: [{method}]}}}}]}}]}}\n---\n"
    )
}

fn named(waypoint: &str) -> String {
    format!("istio.io/use-waypoint: {waypoint}")
}

/// What a waypoint of namespace a is told, by key.
fn told(world: &World, gateway: &str) -> BTreeMap<String, Told> {
    let prefix = format!("a/{gateway}/");
    let its = world.waypoint_resources().filter_map(|it| {
        let key = it.name.strip_prefix(&prefix)?.to_owned();
        let resource = wire::Resource::decode(it.encoded.clone()).unwrap();
        Some((key, resource.kind.unwrap()))
    });
    its.collect()
}

/// For how long it is told that it fronts the service; none if it is not told.
fn fronts(world: &World, gateway: &str) -> Option<u64> {
    match told(world, gateway).get(WEB)? {
        Told::Fronted(it) => Some(it.leaving),
        other => panic!("{other:?}"),
    }
}

fn both(world: &World) -> [Option<u64>; 2] {
    ["old", "new"].map(|gateway| fronts(world, gateway))
}

/// The method that its policy allows there.
fn allows(world: &World, gateway: &str) -> Option<String> {
    match told(world, gateway).get("authorizationpolicy/a/p")? {
        Told::Authorization(it) => Some(it.rules[0].to[0].methods[0].clone()),
        other => panic!("{other:?}"),
    }
}

/// Everything was read a while ago.
fn running(settings: Settings, service: &str) -> World {
    let mut world = World::new(settings);
    set(&mut world, &town(service));
    world.pass(at(0));
    world
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(100 + seconds)
}

#[test]
fn the_earlier_waypoint_keeps_a_service_and_its_policies_for_a_while() {
    let mut world = running(Settings::default(), &named("old"));
    assert_eq!(both(&world), [STAYS, None]);
    assert_eq!(world.due(), None);

    set(&mut world, &web(&named("new")));
    assert_eq!(both(&world), [LEAVES, STAYS]);
    assert_eq!(world.due(), Some(at(0) + LEAVING));

    // What is said of it there is what is said of it now.
    world.pass(at(3));
    set(&mut world, &policy("PUT"));
    assert_eq!(allows(&world, "old").as_deref(), Some("PUT"));
    assert_eq!(allows(&world, "new").as_deref(), Some("PUT"));

    assert!(world.pass(at(9)).resources.is_empty());
    assert_eq!(both(&world), [LEAVES, STAYS]);
    let changed = world.pass(at(10));
    assert_eq!(both(&world), [None, STAYS]);
    assert_eq!(allows(&world, "old"), None);
    assert!(changed.addresses.is_empty(), "clients have known for long");
    assert_eq!(world.due(), None);
    let mut fresh = World::new(Settings::default());
    set(&mut fresh, &town(&named("new")));
    set(&mut fresh, &policy("PUT"));
    assert_eq!(resources(&world), resources(&fresh));
    for gateway in ["old", "new"] {
        assert_eq!(told(&world, gateway), told(&fresh, gateway));
    }
}

#[test]
fn a_service_that_names_none_any_more_leaves_in_the_same_way_and_one_that_is_gone_at_once() {
    let mut world = running(Settings::default(), &named("old"));
    set(&mut world, &web(""));
    assert_eq!(both(&world), [LEAVES, None]);
    assert!(allows(&world, "old").is_some());
    world.pass(at(4));
    gone(&mut world, Kind::Service, "a", "web");
    assert_eq!(both(&world), [None, None]);
    assert_eq!(allows(&world, "old"), None);
    // The same name again is another service.
    set(&mut world, &web(&named("new")));
    assert_eq!(both(&world), [None, STAYS]);
    assert!(world.pass(at(20)).resources.is_empty());
}

#[test]
fn who_comes_back_stays_and_who_goes_again_has_its_time_again() {
    let mut world = running(Settings::default(), &named("old"));
    set(&mut world, &web(&named("new")));
    world.pass(at(6));
    set(&mut world, &web(&named("old")));
    assert_eq!(both(&world), [STAYS, LEAVES]);
    world.pass(at(8));
    set(&mut world, &web(&named("new")));
    assert_eq!(both(&world), [LEAVES, STAYS]);
    world.pass(at(10));
    assert_eq!(both(&world), [LEAVES, STAYS], "its first time is over");
    world.pass(at(18));
    assert_eq!(both(&world), [None, STAYS]);
}

#[test]
fn a_canary_that_gets_nothing_more_and_a_namespace_that_names_another_are_no_exceptions() {
    let canary = "istio.io/use-waypoint: old, istio.io/use-waypoint-canary: new";
    let mut world = running(Settings::default(), canary);
    assert_eq!(both(&world), [STAYS, STAYS]);
    set(&mut world, &web(&named("new")));
    assert_eq!(both(&world), [LEAVES, STAYS]);
    world.pass(at(10));
    assert_eq!(both(&world), [None, STAYS]);

    let namespace = |waypoint: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{{}}}}}\n---\n",
            named(waypoint)
        )
    };
    let mut world = World::new(Settings::default());
    set(&mut world, &(namespace("old") + &town("")));
    world.pass(at(0));
    set(&mut world, &namespace("new"));
    assert_eq!(both(&world), [LEAVES, STAYS]);
    world.pass(at(10));
    assert_eq!(both(&world), [None, STAYS]);
}

#[test]
fn nobody_leaves_while_the_objects_are_read_for_the_first_time() {
    let mut world = World::new(Settings::default());
    set(&mut world, &town(&named("old")));
    set(&mut world, &web(&named("new")));
    assert_eq!(both(&world), [None, STAYS]);
    world.pass(at(0));
    assert_eq!(world.due(), None);
}

#[test]
fn a_gateway_that_takes_no_services_any_more_serves_them_for_the_same_while() {
    let mut world = running(Settings::default(), &named("old"));
    set(
        &mut world,
        &gateway("old", "istio.io/waypoint-for: workload"),
    );
    assert_eq!(both(&world), [LEAVES, None]);
    world.pass(at(10));
    assert_eq!(both(&world), [None, None]);
}

#[test]
fn where_waypoints_are_allowed_by_themselves_the_earlier_one_is_for_as_long() {
    let settings = Settings {
        auto_allow_waypoint: true,
        ..Settings::default()
    };
    let mut world = running(settings, &named("old"));
    set(
        &mut world,
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: all, namespace: a}\n\
         spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/friend]}}]}]}\n",
    );
    let policies = |world: &World| {
        let name = ("addresses", "Kubernetes//Pod/a/web".to_owned());
        let named = resources(world)[&name]["workload"]["authorizationPolicies"].clone();
        let named: Vec<String> = serde_json::from_value(named).unwrap();
        named
            .into_iter()
            .filter_map(|it| Some(it.strip_prefix("a/istio_allow_waypoint_a_")?.to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(policies(&world), ["old"]);
    set(&mut world, &web(&named("new")));
    assert_eq!(policies(&world), ["new", "old"]);
    world.pass(at(10));
    assert_eq!(policies(&world), ["new"]);
}
