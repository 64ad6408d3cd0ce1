//! Of the catalog: who is told of what, and when.

use std::collections::BTreeMap;

use bytes::Bytes;
use mesh::session::Catalog as _;
use proptest::prelude::*;

use super::*;

fn resource(name: &str, content: u8) -> Resource {
    Resource {
        name: name.into(),
        encoded: Bytes::from(vec![content; 3]),
        aliases: Arc::new([]),
    }
}

fn workload(name: &str, node: &str, ip: u8, services: &[&str]) -> Resource {
    let workload = api::workload::Workload {
        uid: name.into(),
        node: node.into(),
        services: services
            .iter()
            .map(|service| ((*service).into(), api::workload::PortList::default()))
            .collect(),
        ..Default::default()
    };
    let address = Address {
        r#type: Some(address::Type::Workload(workload)),
    };
    Resource {
        name: name.into(),
        encoded: address.encode_to_vec().into(),
        aliases: Arc::new([format!("/10.0.0.{ip}")]),
    }
}

fn contents(catalog: &Catalog) -> BTreeMap<Arc<str>, Arc<str>> {
    let entries = catalog.of(Type::Address).iter();
    entries
        .map(|(name, entry)| (name.clone(), entry.version.clone()))
        .collect()
}

#[test]
fn an_unchanged_resource_is_no_change() {
    let (mut publisher, reader) = Publisher::new();
    publisher.set(Type::Address, &"a".into(), Some(&resource("a", 1)));
    publisher.publish();
    let before = reader.load();
    publisher.set(Type::Address, &"a".into(), Some(&resource("a", 1)));
    publisher.publish();
    assert!(
        reader
            .load()
            .changes_since(&before, Type::Address)
            .is_empty()
    );
    assert_eq!(*reader.rounds().borrow(), 2);
}

#[test]
fn nothing_is_seen_before_it_is_published() {
    let (mut publisher, reader) = Publisher::new();
    publisher.set(Type::Authorization, &"a".into(), Some(&resource("a", 1)));
    assert!(reader.load().of(Type::Authorization).is_empty());
    publisher.publish();
    assert_eq!(reader.load().of(Type::Authorization).len(), 1);
}

#[test]
fn the_version_is_the_contents_and_stays_the_same_over_releases() {
    assert_eq!(
        &*entry(&resource("a", 0), Type::Address).version,
        "709e80c88487a241"
    );
}

#[test]
fn a_workload_is_found_by_its_node_services_and_address_as_they_are_now() {
    let (mut publisher, reader) = Publisher::new();
    let set = |publisher: &mut Publisher, resource: Option<Resource>| {
        publisher.set(Type::Address, &"w".into(), resource.as_ref());
        publisher.publish();
        reader.load()
    };
    let found = |catalog: &Catalog| {
        let count = |entries: Vec<&Arc<Entry>>| entries.len();
        [
            count(catalog.on_node(api::ADDRESS_TYPE, "n1")),
            count(catalog.on_node(api::ADDRESS_TYPE, "n2")),
            count(catalog.members(api::ADDRESS_TYPE, "ns/a")),
            count(catalog.members(api::ADDRESS_TYPE, "ns/b")),
            count(catalog.aliased(api::ADDRESS_TYPE, "/10.0.0.1")),
            count(catalog.aliased(api::ADDRESS_TYPE, "/10.0.0.11")),
        ]
    };
    let catalog = set(
        &mut publisher,
        Some(workload("w", "n1", 1, &["ns/a", "ns/b"])),
    );
    assert_eq!(found(&catalog), [1, 0, 1, 1, 1, 0]);
    let catalog = set(&mut publisher, Some(workload("w", "n2", 11, &["ns/b"])));
    assert_eq!(found(&catalog), [0, 1, 0, 1, 0, 1]);
    let catalog = set(&mut publisher, None);
    assert_eq!(found(&catalog), [0; 6]);
    assert!(catalog.indexes.iter().all(OrdSet::is_empty));
}

#[test]
fn services_are_counted_as_they_come_and_go() {
    let (mut publisher, reader) = Publisher::new();
    let service = Address {
        r#type: Some(address::Type::Service(api::workload::Service::default())),
    };
    let service = Resource {
        name: "ns/a".into(),
        encoded: service.encode_to_vec().into(),
        aliases: Arc::new([]),
    };
    publisher.set(Type::Address, &service.name, Some(&service));
    publisher.set(
        Type::Address,
        &"w".into(),
        Some(&workload("w", "n1", 1, &[])),
    );
    publisher.publish();
    assert_eq!(reader.load().services(), 1);
    publisher.set(Type::Address, &service.name, None);
    publisher.publish();
    assert_eq!(reader.load().services(), 0);
}

proptest! {
    /// A reader that looks only now and then ends with what one that looks always has.
    #[test]
    fn applying_the_differences_gives_the_whole(
        steps in prop::collection::vec((0_u8..40, prop::option::of(0_u8..4), any::<bool>()), 0..200)
    ) {
        let (mut publisher, reader) = Publisher::new();
        let (mut seen, mut held) = (reader.load(), BTreeMap::new());
        for (name, content, look) in steps {
            let name: Arc<str> = format!("name-{name}").into();
            publisher.set(Type::Address, &name, content.map(|content| resource(&name, content)).as_ref());
            publisher.publish();
            if look {
                let now = reader.load();
                for name in now.changes_since(&seen, Type::Address) {
                    let before = match now.named(api::ADDRESS_TYPE, &name) {
                        None => held.remove(&name),
                        Some(entry) => held.insert(name.clone(), entry.version.clone()),
                    };
                    prop_assert_ne!(before.as_ref(), held.get(&name));
                }
                prop_assert_eq!(&held, &contents(&now));
                seen = now;
            }
        }
    }
}

fn route(name: &str, services: &[&str]) -> Resource {
    use api::waypoint::{Backend, Route, ServiceRef, backend, resource};
    let backend = |service: &&str| {
        let (namespace, hostname) = service.split_once('/').unwrap();
        let to = backend::To::Service(ServiceRef {
            namespace: namespace.into(),
            hostname: hostname.into(),
            port: 80,
        });
        Backend {
            to: Some(to),
            ..Backend::default()
        }
    };
    let route = Route {
        backends: services.iter().map(backend).collect(),
        ..Route::default()
    };
    let resource = api::waypoint::Resource {
        key: name.into(),
        kind: Some(resource::Kind::Route(route)),
        ..Default::default()
    };
    Resource {
        name: name.into(),
        encoded: resource.encode_to_vec().into(),
        aliases: Arc::new([]),
    }
}

#[test]
fn the_resources_of_a_gateway_are_those_of_no_other() {
    let (mut publisher, reader) = Publisher::new();
    for name in [
        "ns/way",
        "ns/way/httproute/ns/a/0",
        "ns/way/z",
        "ns/way-2/a",
        "ns/wa/a",
        "o/way/a",
    ] {
        publisher.set(Type::Waypoint, &name.into(), Some(&route(name, &["ns/a"])));
    }
    publisher.publish();
    let catalog = reader.load();
    let names: Vec<&str> = catalog
        .of_gateway("ns/way")
        .map(|entry| &*entry.name)
        .collect();
    assert_eq!(names, ["ns/way/httproute/ns/a/0", "ns/way/z"]);
    let entry = catalog.named(api::WAYPOINT_TYPE, "ns/way/z").unwrap();
    assert_eq!(&*entry.services, [Arc::from("ns/a")]);
    assert!(
        catalog.members(api::ADDRESS_TYPE, "ns/a").is_empty(),
        "it is no endpoint"
    );
}

#[tokio::test(start_paused = true)]
async fn a_gateways_proxy_is_woken_for_what_it_may_care_about_and_for_nothing_else() {
    let (mut publisher, reader) = Publisher::new();
    let gateway: Arc<str> = "ns/way".into();
    let mut watch = reader.watch(&gateway);
    let mut publish = |r#type: Type, name: &str, resource: Option<Resource>| {
        publisher.set(r#type, &name.into(), resource.as_ref());
        publisher.publish();
        reader.load().round
    };
    let mut told = 0;
    // Whether it is woken before time is up, by a publication that was the last.
    let mut woken = async |watch: &mut Watch, round: u64| {
        let before = tokio::time::Instant::now();
        watch.moved(told).await;
        told = round;
        before.elapsed().is_zero()
    };
    let pod = |ip, services: &[&str]| Some(workload("w", &format!("n{ip}"), ip, services));
    let steps: [(&str, Type, &str, Option<Resource>, bool); 12] = [
        (
            "its own",
            Type::Waypoint,
            "ns/way/r",
            Some(route("ns/way/r", &["ns/a"])),
            true,
        ),
        (
            "another's",
            Type::Waypoint,
            "ns/other/r",
            Some(route("ns/other/r", &["ns/b"])),
            false,
        ),
        (
            "a policy",
            Type::Authorization,
            "p",
            Some(resource("p", 1)),
            false,
        ),
        (
            "a service it names",
            Type::Address,
            "ns/a",
            Some(resource("ns/a", 1)),
            true,
        ),
        (
            "a service it does not name",
            Type::Address,
            "ns/b",
            Some(resource("ns/b", 1)),
            false,
        ),
        ("somebody", Type::Address, "w", pod(1, &["ns/b"]), false),
        (
            "an endpoint that joins",
            Type::Address,
            "w",
            pod(1, &["ns/a"]),
            true,
        ),
        (
            "an endpoint that leaves",
            Type::Address,
            "w",
            pod(1, &[]),
            true,
        ),
        ("one that left", Type::Address, "w", pod(2, &[]), false),
        ("the route goes", Type::Waypoint, "ns/way/r", None, true),
        (
            "a service it named",
            Type::Address,
            "ns/a",
            Some(resource("ns/a", 2)),
            false,
        ),
        (
            "nothing new",
            Type::Address,
            "ns/a",
            Some(resource("ns/a", 2)),
            false,
        ),
    ];
    for (what, r#type, name, resource, expected) in steps {
        let round = publish(r#type, name, resource);
        assert_eq!(woken(&mut watch, round).await, expected, "{what}");
    }

    assert!(watch.ask(["/10.0.0.3"], []));
    assert!(!watch.ask(["/10.0.0.3"], []), "asked for already");
    let round = publish(Type::Address, "w", pod(3, &[]));
    assert!(woken(&mut watch, round).await, "the address it asked for");
    let other = reader.watch(&gateway);
    drop(other);
    let round = publish(Type::Address, "w", pod(4, &[]));
    assert!(
        woken(&mut watch, round).await,
        "the address is another's now"
    );
    watch.ask([], ["/10.0.0.3"]);
    let round = publish(Type::Address, "w", pod(3, &[]));
    assert!(!woken(&mut watch, round).await, "given up");
    drop(watch);
    assert!(reader.0.watches.is_empty());
}
