//! Whose UDP is carried, as ztunnels are told: what a pod says goes before what its namespace says.

use api::k8s::dir::Change;
use api::k8s::yaml::{Parsed, parse};
use api::workload::{Address, address};
use istiod_lite::world::{Changed, Settings, World};
use prost::Message as _;

fn set(world: &mut World, text: &str) -> Changed {
    let objects = parse(text).into_iter().map(|parsed| match parsed {
        Parsed::Object { object, .. } => Change::Set(object),
        other => panic!("{other:?} in {text}"),
    });
    world.apply(objects.collect())
}

fn namespace(said: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{{said}}}}}\n---\n")
}

fn pod(said: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: a, labels: {{{said}}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.0.2.1}}\n---\n"
    )
}

fn is_carried(world: &World) -> bool {
    let encoded = world
        .address("Kubernetes//Pod/a/web")
        .unwrap()
        .encoded
        .clone();
    let Some(address::Type::Workload(workload)) = Address::decode(encoded).unwrap().r#type else {
        panic!("a service");
    };
    let names: Vec<_> = workload.extensions.iter().map(|it| &*it.name).collect();
    match names[..] {
        [] => false,
        ["ambit.io/udp"] => true,
        _ => panic!("{names:?}"),
    }
}

#[test]
fn what_a_pod_says_goes_before_its_namespace_and_what_nobody_understands_says_nothing() {
    const ON: &str = "ambit.io/udp: enabled";
    const OFF: &str = "ambit.io/udp: disabled";
    const ODD: &str = "ambit.io/udp: 'true'";
    const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name: x";
    for (around, own, carried) in [
        ("", "", false),
        (ON, "", true),
        (ON, OFF, false),
        (OFF, ON, true),
        ("", ON, true),
        (ON, ODD, true),
        (ODD, "", false),
        (ON, GATEWAY, false),
    ] {
        let mut world = World::new(Settings::default());
        set(&mut world, &(namespace(around) + &pod(own)));
        assert_eq!(is_carried(&world), carried, "{around}, {own}");
    }
}

#[test]
fn a_change_of_the_namespace_is_told_of_the_pods_that_say_nothing() {
    let mut world = World::new(Settings::default());
    set(&mut world, &(namespace("") + &pod("")));
    assert!(!is_carried(&world));
    set(&mut world, &namespace("ambit.io/udp: enabled"));
    assert!(is_carried(&world));
    set(&mut world, &namespace("ambit.io/udp: disabled"));
    assert!(!is_carried(&world));
}
