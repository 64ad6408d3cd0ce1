//! What the proxy of a gateway is told: what is for the gateway, what that names, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, WAYPOINT_TYPE};
use mesh::{Catalog, Changed, Entry, Reply, Session, key_of};
use proptest::prelude::*;

use crate::shelf::{Shelf, entry};

const GATEWAY: &str = "shop/way";

fn workload(name: &str, version: &str, services: &[&str]) -> Entry {
    // A version is a function of the content.
    let version = format!("{version} {services:?}");
    Entry {
        aliases: [Arc::from(format!("/ip-of-{name}"))].into(),
        services: services.iter().map(|service| Arc::from(*service)).collect(),
        ..entry(name, &version)
    }
}

fn resource(name: &str, version: &str, services: &[&str]) -> Entry {
    Entry {
        aliases: [].into(),
        ..workload(name, version, services)
    }
}

fn request(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        ..Default::default()
    }
}

/// A gateway's proxy that has what it was told.
struct Proxy {
    session: Session,
    held: BTreeMap<String, BTreeMap<String, Arc<Entry>>>,
    wanted: BTreeSet<String>,
}

impl Proxy {
    fn new() -> Self {
        Self {
            session: Session::of_gateway(GATEWAY),
            held: BTreeMap::new(),
            wanted: BTreeSet::new(),
        }
    }

    /// Opens a stream, with what is held of before.
    fn open(&mut self, shelf: &Shelf) {
        self.session = Session::of_gateway(GATEWAY);
        for type_url in [ADDRESS_TYPE, WAYPOINT_TYPE] {
            let held = self.held.get(type_url).into_iter().flatten();
            let star = || "*".to_owned();
            let is_address = type_url == ADDRESS_TYPE;
            let wanted = self.wanted.iter().filter(|_| is_address).cloned();
            let stars: Vec<_> = is_address.then(star).into_iter().collect();
            let first = DeltaDiscoveryRequest {
                resource_names_subscribe: stars.iter().cloned().chain(wanted).collect(),
                resource_names_unsubscribe: stars,
                initial_resource_versions: held
                    .map(|(name, entry)| (name.clone(), entry.version.to_string()))
                    .collect(),
                ..request(type_url)
            };
            let answer = self.session.on_request(shelf, first);
            self.take(shelf, answer.reply.expect("an answer, even if it is empty"));
            if let Some(rest) = self.session.rest(shelf) {
                self.take(shelf, rest);
            }
        }
    }

    fn take(&mut self, shelf: &Shelf, reply: Reply) {
        let is_resource = *reply.type_url == *WAYPOINT_TYPE;
        let held = self.held.entry(reply.type_url.to_string()).or_default();
        for entry in &reply.resources {
            held.insert(entry.name.to_string(), entry.clone());
        }
        for name in &reply.removed {
            held.remove(&**name);
        }
        let (addresses, resources) = (self.of(ADDRESS_TYPE), self.of(WAYPOINT_TYPE));
        let exists = |name: &str| shelf.named(ADDRESS_TYPE, name).is_some();
        for resource in reply.resources.iter().filter(|_| is_resource) {
            for service in resource.services.iter().filter(|service| exists(service)) {
                let known = addresses.contains_key(&**service);
                assert!(known, "{} names {service}, not known", resource.name);
            }
        }
        for name in reply.removed.iter().filter(|name| exists(name)) {
            let named = resources.values().find(|held| held.services.contains(name));
            assert_eq!(named, None, "{name} goes while a resource names it");
        }
    }

    fn of(&self, type_url: &str) -> BTreeMap<String, Arc<Entry>> {
        self.held.get(type_url).cloned().unwrap_or_default()
    }

    fn push(&mut self, shelf: &Shelf, changed: &BTreeSet<(String, String)>) {
        let of = |type_url: &str| -> Vec<Arc<str>> {
            let names = changed.iter().filter(|(url, _)| url == type_url);
            names.map(|(_, name)| Arc::from(&**name)).collect()
        };
        let types = [ADDRESS_TYPE, AUTHORIZATION_TYPE, WAYPOINT_TYPE];
        let names = types.map(of);
        let changed: Vec<_> = types
            .iter()
            .zip(&names)
            .map(|(type_url, names)| Changed { type_url, names })
            .collect();
        for reply in self.session.on_push(shelf, &changed) {
            self.take(shelf, reply);
        }
    }

    fn ask(&mut self, shelf: &Shelf, name: &str, wants: bool) {
        let mut asks = request(ADDRESS_TYPE);
        if wants {
            self.wanted.insert(name.to_owned());
            asks.resource_names_subscribe.push(name.to_owned());
        } else {
            self.wanted.remove(name);
            asks.resource_names_unsubscribe.push(name.to_owned());
        }
        if let Some(reply) = self.session.on_request(shelf, asks).reply {
            self.take(shelf, reply);
        }
    }

    /// What it should hold: everything that is for its gateway, the services which that names, their
    /// endpoints, and what it asked for.
    fn has_all_and_no_more(&self, shelf: &Shelf) {
        let names = |entries: Vec<&Arc<Entry>>| -> BTreeMap<String, String> {
            let pairs = entries.into_iter();
            pairs
                .map(|entry| (entry.name.to_string(), entry.version.to_string()))
                .collect()
        };
        let resources = shelf.all(WAYPOINT_TYPE);
        let own: Vec<_> = resources
            .filter(|entry| key_of(&entry.name, GATEWAY).is_some())
            .collect();
        let named: BTreeSet<&Arc<str>> = own.iter().flat_map(|entry| &*entry.services).collect();
        let due = shelf.all(ADDRESS_TYPE).filter(|entry| {
            named.contains(&entry.name)
                || entry.services.iter().any(|service| named.contains(service))
                || self.wanted.contains(&*entry.name)
                || entry
                    .aliases
                    .iter()
                    .any(|alias| self.wanted.contains(&**alias))
        });
        let (held_own, held_due) = (self.of(WAYPOINT_TYPE), self.of(ADDRESS_TYPE));
        assert_eq!(names(held_own.values().collect()), names(own));
        assert_eq!(names(held_due.values().collect()), names(due.collect()));
    }
}

#[test]
fn nobody_else_is_told_of_a_gateways_resources() {
    let mut shelf = Shelf::default();
    shelf.set(
        WAYPOINT_TYPE,
        resource("shop/way/httproute/shop/web/0", "1", &[]),
    );
    shelf.set(
        WAYPOINT_TYPE,
        resource("shop/wayward/secret/shop/key", "1", &[]),
    );
    for (session, told) in [
        (Session::new(), None),
        (Session::of_gateway("shop/wayw"), Some(0)),
        (Session::of_gateway("shop/wayward"), Some(1)),
    ] {
        let mut session = session;
        let whole = session.on_request(&shelf, request(WAYPOINT_TYPE)).reply;
        assert_eq!(whole.map(|reply| reply.resources.len()), told);
        let by_name = DeltaDiscoveryRequest {
            resource_names_subscribe: vec!["shop/way/httproute/shop/web/0".to_owned()],
            ..request(WAYPOINT_TYPE)
        };
        let named = session.on_request(&shelf, by_name).reply;
        assert!(named.is_none_or(|reply| reply.resources.is_empty()));
        let changed = Changed {
            type_url: WAYPOINT_TYPE,
            names: &["shop/way/httproute/shop/web/0".into()],
        };
        assert_eq!(session.on_push(&shelf, &[changed]), []);
    }
}

#[test]
fn a_service_comes_before_the_route_that_leads_to_it_and_goes_after_it() {
    let mut shelf = Shelf::default();
    shelf.set(ADDRESS_TYPE, resource("shop/v2", "1", &[]));
    shelf.set(ADDRESS_TYPE, workload("pod", "1", &["shop/v2"]));
    let mut proxy = Proxy::new();
    proxy.open(&shelf);
    let told = |proxy: &mut Proxy, shelf: &Shelf| -> Vec<(String, usize, usize)> {
        let changed = Changed {
            type_url: WAYPOINT_TYPE,
            names: &["shop/way/httproute/shop/web/0".into()],
        };
        let replies = proxy.session.on_push(shelf, &[changed]);
        let shown = |reply: &Reply| {
            let kind = reply.type_url.rsplit('.').next().unwrap().to_owned();
            (kind, reply.resources.len(), reply.removed.len())
        };
        replies.iter().map(shown).collect()
    };
    let line = |kind: &str, set, removed| (kind.to_owned(), set, removed);
    shelf.set(
        WAYPOINT_TYPE,
        resource("shop/way/httproute/shop/web/0", "1", &["shop/v2"]),
    );
    assert_eq!(
        told(&mut proxy, &shelf),
        [line("Address", 2, 0), line("Resource", 1, 0)]
    );
    shelf.remove(WAYPOINT_TYPE, "shop/way/httproute/shop/web/0");
    assert_eq!(
        told(&mut proxy, &shelf),
        [line("Resource", 0, 1), line("Address", 0, 2)]
    );
}

#[test]
fn a_response_is_as_long_as_what_it_carries() {
    // The message itself, as the stream's driver makes it.
    let mut shelf = Shelf::default();
    shelf.set(
        WAYPOINT_TYPE,
        resource("shop/way/telemetry/shop/all", "1", &[]),
    );
    let mut session = Session::of_gateway(GATEWAY);
    let reply = session.on_request(&shelf, request(WAYPOINT_TYPE)).reply;
    let response: DeltaDiscoveryResponse = reply.unwrap().into_response();
    assert_eq!(response.type_url, WAYPOINT_TYPE);
    assert!(session.follows(WAYPOINT_TYPE) && !session.follows(ADDRESS_TYPE));
}

#[derive(Debug, Clone)]
enum Step {
    Resource(u8, Option<(u8, Vec<u8>)>),
    Service(u8, Option<u8>),
    Workload(u8, Option<(u8, Vec<u8>)>),
    Ask(u8, bool),
    Push,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let version = 0..3u8;
    let services = || prop::collection::vec(0..4u8, 0..3);
    let some = |services| proptest::option::weighted(0.7, (0..3u8, services));
    let step = prop_oneof![
        4 => (0..6u8, some(services())).prop_map(|(name, content)| Step::Resource(name, content)),
        2 => (0..4u8, proptest::option::weighted(0.7, version)).prop_map(|(name, content)| Step::Service(name, content)),
        3 => (0..6u8, some(services())).prop_map(|(name, content)| Step::Workload(name, content)),
        2 => (0..6u8, any::<bool>()).prop_map(|(name, wants)| Step::Ask(name, wants)),
        4 => Just(Step::Push),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens in whatever order, with pushes in between or not.
    #[test]
    fn a_gateways_proxy_holds_what_is_due_to_it(steps in steps()) {
        let mut shelf = Shelf::default();
        let mut proxy = Proxy::new();
        // What the client was told of; the stream's driver keeps it as a catalog.
        let mut changed = BTreeSet::new();
        proxy.open(&shelf);
        for step in steps {
            let mut put = |type_url: &str, name: String, entry: Option<Entry>| {
                match entry {
                    Some(entry) => shelf.set(type_url, entry),
                    None => shelf.remove(type_url, &name),
                }
                changed.insert((type_url.to_owned(), name));
            };
            let services = |numbers: &[u8]| -> Vec<String> {
                numbers.iter().map(|number| format!("shop/s{number}")).collect()
            };
            match step {
                Step::Resource(number, content) => {
                    let gateway = ["shop/way", "shop/wayward"][usize::from(number) % 2];
                    let name = format!("{gateway}/httproute/shop/r/{number}");
                    let entry = content.map(|(version, numbers)| {
                        let services = services(&numbers);
                        let services: BTreeSet<&str> = services.iter().map(|name| &**name).collect();
                        let services: Vec<&str> = services.into_iter().collect();
                        resource(&name, &version.to_string(), &services)
                    });
                    put(WAYPOINT_TYPE, name, entry);
                }
                Step::Service(number, content) => {
                    let name = format!("shop/s{number}");
                    let entry = content.map(|version| resource(&name, &version.to_string(), &[]));
                    put(ADDRESS_TYPE, name, entry);
                }
                Step::Workload(number, content) => {
                    let name = format!("pod{number}");
                    let entry = content.map(|(version, numbers)| {
                        let services = services(&numbers);
                        let services: Vec<&str> = services.iter().map(|name| &**name).collect();
                        workload(&name, &version.to_string(), &services)
                    });
                    put(ADDRESS_TYPE, name, entry);
                }
                Step::Ask(number, wants) => {
                    // The driver answers from the catalog that the client was told.
                    proxy.push(&shelf, &std::mem::take(&mut changed));
                    proxy.ask(&shelf, &format!("/ip-of-pod{number}"), wants);
                }
                Step::Push => proxy.push(&shelf, &std::mem::take(&mut changed)),
                Step::Reopen => {
                    changed.clear();
                    proxy.open(&shelf);
                }
            }
        }
        proxy.push(&shelf, &changed);
        proxy.has_all_and_no_more(&shelf);
    }
}
