//! Whom a workload may call that nobody knows, as its ztunnel is told: the narrowest setting counts.

use api::egress::Egress;
use api::egress::egress::Mode;
use api::k8s::dir::Change;
use api::k8s::objects::{Kind, ObjectKey};
use api::k8s::yaml::{Parsed, parse};
use api::workload::{Address, Workload, address};
use istiod_lite::world::{Changed, EgressMode, Settings, World};
use prost::Message as _;

const POD: &str = "Kubernetes//Pod/a/web";
const ENTRY: &str = "Kubernetes/networking.istio.io/WorkloadEntry/a/web";

fn set(world: &mut World, text: &str) -> Changed {
    let objects = parse(text).into_iter().map(|parsed| match parsed {
        Parsed::Object { object, .. } => Change::Set(object),
        other => panic!("{other:?} in {text}"),
    });
    world.apply(objects.collect())
}

fn world(mesh: EgressMode) -> World {
    World::new(Settings {
        egress: mesh,
        ..Settings::default()
    })
}

fn says(value: &str) -> String {
    format!("ambit.io/egress: '{value}'")
}

fn namespace(labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{{labels}}}}}\n---\n")
}

fn pod(labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: a, labels: {{{labels}}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.0.2.1}}\n---\n"
    )
}

fn entry(labels: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: web, namespace: a, labels: {{{labels}}}}}\nspec: {{address: 10.0.2.2}}\n---\n"
    )
}

fn workload(world: &World, name: &str) -> Workload {
    let address = Address::decode(world.address(name).unwrap().encoded.clone()).unwrap();
    match address.r#type {
        Some(address::Type::Workload(workload)) => workload,
        other => panic!("{other:?}"),
    }
}

/// What is told of it: `-` if nothing.
fn told(world: &World, name: &str) -> String {
    let workload = workload(world, name);
    let [extension] = &workload.extensions[..] else {
        assert_eq!(workload.extensions, []);
        return "-".to_owned();
    };
    assert_eq!(extension.name, "ambit.io/egress");
    let config = extension.config.as_ref().unwrap();
    assert_eq!(
        config.type_url,
        "type.googleapis.com/ambit.workload.v1.Egress"
    );
    let said = Egress::decode(&*config.value).unwrap();
    let mode = match said.mode() {
        Mode::Allow => "allow",
        Mode::Log => "log",
        Mode::Refuse => "refuse",
    };
    format!("{mode}, by {}", said.set_by)
}

const OWN: &str = "by the workload's own label ambit.io/egress";
const NAMESPACE: &str = "by label ambit.io/egress of namespace a";
const MESH: &str = "by the mesh's settings";

#[test]
fn what_a_workload_says_goes_before_its_namespace_and_that_before_the_mesh() {
    for (write, name) in [
        (pod as fn(&str) -> String, POD),
        (entry as fn(&str) -> String, ENTRY),
    ] {
        for (mesh, of_mesh) in [
            (EgressMode::Allow, "-".to_owned()),
            (EgressMode::Log, format!("log, {MESH}")),
            (EgressMode::Refuse, format!("refuse, {MESH}")),
        ] {
            let mut world = world(mesh);
            set(&mut world, &write(""));
            assert_eq!(told(&world, name), of_mesh);
            set(&mut world, &namespace(&says("log")));
            assert_eq!(told(&world, name), format!("log, {NAMESPACE}"));
            set(&mut world, &write(&says("refuse")));
            assert_eq!(told(&world, name), format!("refuse, {OWN}"));
            set(&mut world, &write(&says("allow")));
            assert_eq!(told(&world, name), "-");
            set(&mut world, &(write("") + &namespace(&says("allow"))));
            assert_eq!(told(&world, name), "-");
            world.apply(vec![Change::Gone(ObjectKey::new(Kind::Namespace, "", "a"))]);
            assert_eq!(told(&world, name), of_mesh);
        }
    }
}

#[test]
fn a_namespace_that_changes_its_mind_costs_those_who_say_nothing_themselves() {
    let mut world = world(EgressMode::Allow);
    let named =
        |name: &str, labels: &str| pod(labels).replace("name: web", &format!("name: {name}"));
    set(
        &mut world,
        &(namespace("") + &named("one", "") + &named("two", &says("log")) + &entry("")),
    );
    let before = world.recomputed();
    let changed = set(&mut world, &namespace(&says("refuse")));
    let names: Vec<&str> = changed.addresses.iter().map(|name| &**name).collect();
    assert_eq!(names, ["Kubernetes//Pod/a/one", ENTRY]);
    assert_eq!(world.recomputed() - before, 2);
    assert_eq!(told(&world, "Kubernetes//Pod/a/two"), format!("log, {OWN}"));
}

#[test]
fn what_cannot_be_read_refuses_and_is_said() {
    let mut world = world(EgressMode::Allow);
    set(&mut world, &(namespace(&says("deny")) + &pod("")));
    assert_eq!(told(&world, POD), format!("refuse, {NAMESPACE}"));
    let changed = set(&mut world, &pod(&says("no")));
    assert_eq!(told(&world, POD), format!("refuse, {OWN}"));
    let [(key, remark)] = &changed.remarks[..] else {
        panic!("{:?}", changed.remarks)
    };
    assert_eq!(*key, ObjectKey::new(Kind::Pod, "a", "web"));
    assert!(
        remark.contains("\"no\"") && remark.contains("refuse"),
        "{remark}"
    );
}

#[test]
fn the_pods_of_a_gateway_may_call_whom_its_routes_name_unless_they_say_otherwise_themselves() {
    let its = "gateway.networking.k8s.io/gateway-name: one";
    let mut world = world(EgressMode::Refuse);
    set(&mut world, &(namespace(&says("refuse")) + &pod(its)));
    assert_eq!(told(&world, POD), "-");
    set(&mut world, &pod(&format!("{its}, {}", says("log"))));
    assert_eq!(told(&world, POD), format!("log, {OWN}"));
}
