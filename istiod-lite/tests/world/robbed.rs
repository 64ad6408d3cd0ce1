//! Addresses that a ServiceEntry claims and the cluster gave to a Service, and the Service's host: whoever may write entries of one
//! namespace does not say for the others where they lead.

use std::sync::Arc;

use api::k8s::dir::Change;
use api::k8s::objects::{Kind, ObjectKey};
use api::k8s::yaml::{Parsed, parse};
use api::workload::{Address, address};
use istiod_lite::world::{Automatic, Settings, World};
use mesh::{Mesh, Network, Update};
use prost::Message as _;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: bank, namespace: shop}\nspec: {clusterIP: 10.96.0.7, ports: [{port: 443}]}\n---\n";

fn entry(namespace: &str, addresses: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: thief, namespace: {namespace}}}\n\
         spec: {{hosts: [bank.example.com], addresses: [{addresses}], resolution: STATIC, ports: [{{number: 443, name: tcp}}]}}\n---\n"
    )
}

fn set(world: &mut World, text: &str) {
    let objects = parse(text).into_iter().map(|parsed| match parsed {
        Parsed::Object { object, .. } => Change::Set(object),
        other => panic!("{other:?} in {text}"),
    });
    world.apply(objects.collect());
}

/// What a proxy knows of it.
fn told(world: &World) -> Arc<Mesh> {
    let mut update = Update::default();
    for resource in world.addresses() {
        match Address::decode(resource.encoded.clone()).unwrap().r#type {
            Some(address::Type::Service(service)) => update.set_service(service),
            Some(address::Type::Workload(workload)) => update.set_workload(workload),
            None => panic!("{} is nothing", resource.name),
        }
    }
    let (mesh, mut writer) = Mesh::new();
    assert_eq!(writer.apply(update), vec![]);
    mesh
}

/// Whom a caller of that namespace means by 10.96.0.7.
fn meant(world: &World, caller: &str) -> Option<String> {
    let mesh = told(world);
    let snapshot = mesh.load();
    let found = snapshot.service_at(&Network::new(""), [10, 96, 0, 7].into(), caller);
    found.map(|service| service.hostname.to_string())
}

fn remarks(world: &World) -> Vec<String> {
    let said = world.remarks().map(|(_, text)| text.to_owned());
    said.filter(|text| text.contains("10.96.0.7")).collect()
}

const BANK: &str = "bank.shop.svc.cluster.local";
const THIEF: &str = "bank.example.com";

#[test]
fn an_entry_that_claims_the_address_of_a_service_is_meant_in_its_own_namespace_alone() {
    // Of two that are alike the first by name would be meant: this one comes before `shop`.
    for claim in ["10.96.0.7", "10.96.0.7/32", "192.0.2.1, 10.96.0.7"] {
        let mut world = World::new(Settings::default());
        set(&mut world, &(SERVICE.to_owned() + &entry("aaa", claim)));
        let meant = ["shop", "other", "aaa"].map(|caller| meant(&world, caller).unwrap());
        assert_eq!(meant, [BANK, BANK, THIEF], "{claim}");
        let said =
            "address 10.96.0.7 is that of Service shop/bank, whom callers of other namespaces mean";
        assert_eq!(remarks(&world), [said]);
    }
}

#[test]
fn the_service_is_meant_whenever_it_comes_and_the_entry_again_when_it_is_gone() {
    let mut world = World::new(Settings::default());
    set(&mut world, &entry("aaa", "10.96.0.7"));
    assert_eq!(meant(&world, "other").as_deref(), Some(THIEF));
    set(&mut world, SERVICE);
    assert_eq!(meant(&world, "other").as_deref(), Some(BANK));
    world.apply(vec![Change::Gone(ObjectKey::new(
        Kind::Service,
        "shop",
        "bank",
    ))]);
    assert_eq!(meant(&world, "other").as_deref(), Some(THIEF));
    assert_eq!(remarks(&world), Vec::<String>::new());
}

#[test]
fn a_range_around_the_address_takes_nothing_from_the_service() {
    let mut world = World::new(Settings::default());
    set(
        &mut world,
        &(SERVICE.to_owned() + &entry("aaa", "10.96.0.0/16")),
    );
    assert_eq!(meant(&world, "other").as_deref(), Some(BANK));
    assert_eq!(remarks(&world), Vec::<String>::new());
}

#[test]
fn what_somebody_wrote_into_a_status_is_no_address_but_of_those_that_are_given_automatically() {
    let mut world = World::new(Settings {
        automatic_addresses: Automatic::FromStatus,
        ..Settings::default()
    });
    let listed = |value: &str| {
        let entry = entry("aaa", "");
        let status =
            format!("status: {{addresses: [{{host: bank.example.com, value: {value}}}]}}\n---\n");
        entry
            .replace("addresses: [], ", "")
            .replace("---\n", &status)
    };
    let addresses = |world: &World| {
        let encoded = world
            .address("aaa/bank.example.com")
            .unwrap()
            .encoded
            .clone();
        match Address::decode(encoded).unwrap().r#type {
            Some(address::Type::Service(service)) => service.addresses.len(),
            other => panic!("{other:?}"),
        }
    };
    set(&mut world, &listed("10.96.0.7"));
    assert_eq!((addresses(&world), meant(&world, "other")), (0, None));
    for given in ["240.240.0.7", "'2001:2::7'"] {
        set(&mut world, &listed(given));
        assert_eq!(addresses(&world), 1, "{given}");
    }
}

#[test]
fn the_host_of_a_service_in_another_spelling_is_an_entrys_in_its_own_namespace_alone() {
    let spelled = "Bank.Shop.SVC.cluster.local";
    let by_name = |world: &World, caller: &str| {
        let mesh = told(world);
        let snapshot = mesh.load();
        let found = snapshot.service_for_host(BANK, caller);
        found.map(|service| service.namespace.to_string())
    };
    let of = |namespace| entry(namespace, "192.0.2.1").replace(THIEF, spelled);
    // Of two that are alike the first by name would be meant: this one comes before `shop`.
    let mut world = World::new(Settings::default());
    set(&mut world, &of("aaa"));
    assert_eq!(by_name(&world, "other").as_deref(), Some("aaa"));
    set(&mut world, SERVICE);
    let meant = ["shop", "other", "aaa"].map(|caller| by_name(&world, caller).unwrap());
    assert_eq!(meant, ["shop", "shop", "aaa"]);
    // In the Service's own namespace it is left to the Service, as it is where it is spelled alike.
    set(&mut world, &of("shop"));
    let left = format!("host {BANK} is left to Service shop/bank");
    assert!(world.remarks().any(|(_, text)| text == left));
    world.apply(vec![Change::Gone(ObjectKey::new(
        Kind::Service,
        "shop",
        "bank",
    ))]);
    assert_eq!(by_name(&world, "other").as_deref(), Some("aaa"));
}
