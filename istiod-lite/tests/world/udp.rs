//! Whose UDP is carried, as ztunnels are told: what a pod says goes before what its namespace says, and who brings his own
//! proxy says it himself.

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

fn machine(said: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: db, namespace: a, labels: {{{said}}}}}\nspec: {{address: 10.9.0.5}}\n---\n"
    )
}

fn is_carried(world: &World) -> bool {
    announces(world, "Kubernetes//Pod/a/web")
}

fn announces(world: &World, uid: &str) -> bool {
    let encoded = world.address(uid).unwrap().encoded.clone();
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
    const APART: &str = "istio.io/dataplane-mode: none";
    const APART_ON: &str = "istio.io/dataplane-mode: none, ambit.io/udp: enabled";
    for (around, own, carried) in [
        ("", "", false),
        (ON, "", true),
        (ON, OFF, false),
        (OFF, ON, true),
        ("", ON, true),
        (ON, ODD, true),
        (ODD, "", false),
        (ON, GATEWAY, false),
        (ON, APART, false),
        ("", APART_ON, true),
    ] {
        let mut world = World::new(Settings::default());
        set(&mut world, &(namespace(around) + &pod(own)));
        assert_eq!(is_carried(&world), carried, "{around}, {own}");
    }
}

#[test]
fn a_pod_that_was_given_a_proxy_is_announced_only_where_it_says_so_itself() {
    for (own, carried) in [("", false), ("ambit.io/udp: enabled", true)] {
        let mut world = World::new(Settings::default());
        let given = "annotations: {sidecar.istio.io/status: '{}'}, labels:";
        let pod = pod(own).replacen("labels:", given, 1);
        set(&mut world, &(namespace("ambit.io/udp: enabled") + &pod));
        assert_eq!(is_carried(&world), carried, "{own}");
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

#[test]
fn a_machine_is_announced_only_where_it_says_so_itself() {
    for (around, own, carried) in [
        ("ambit.io/udp: enabled", "", false),
        ("ambit.io/udp: disabled", "ambit.io/udp: enabled", true),
        ("ambit.io/udp: enabled", "ambit.io/udp: disabled", false),
    ] {
        let mut world = World::new(Settings::default());
        set(&mut world, &(namespace(around) + &machine(own)));
        let uid = "Kubernetes/networking.istio.io/WorkloadEntry/a/db";
        assert_eq!(announces(&world, uid), carried, "{around}, {own}");
    }
}
