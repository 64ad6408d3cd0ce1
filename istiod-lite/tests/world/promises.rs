//! The world's own promises: what came in when does not matter, what changed is named, and a
//! change costs what depends on it.

mod cost;
mod tangled;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use api::k8s::dir::Change;
use api::k8s::objects::{Object, ObjectKey};
use api::k8s::yaml::{Parsed, parse};
use istiod_lite::status::Desired;
use istiod_lite::translate::scope::Scopes;
use istiod_lite::translate::service_entry::Visibility;
use istiod_lite::world::{Changed, Resource, Settings, World};
use proptest::prelude::*;
use serde_json::json;
use tangled::{TANGLED, tangled};

use crate::scenario::{all, base, undo};

/// Every object of every scenario: many share a name, so one replaces another. And objects that
/// get into each other's way more than any scenario's do.
static POOL: LazyLock<Vec<Object>> = LazyLock::new(|| {
    let mut pool = tangled();
    pool.extend(base().objects);
    pool.extend(all().into_iter().flat_map(|scenario| scenario.objects));
    pool
});

fn settings() -> Settings {
    let by_scope =
        |scope: &str, visibility| ([("scope".to_owned(), scope.to_owned())].into(), visibility);
    Settings {
        dry_run: true,
        auto_allow_waypoint: true,
        service_entry_visibility: vec![
            by_scope("private", Visibility::Namespace),
            by_scope("hidden", Visibility::None),
        ],
        scopes: Scopes::read(&json!([
            {"servicesSelector": {"matchLabels": {"istio.io/global": "true"}}, "scope": "GLOBAL"},
            {"namespaceSelector": {"matchLabels": {"reach": "far"}}, "scope": "GLOBAL"},
        ]))
        .0,
        ..Settings::default()
    }
}

type Snapshot = [BTreeMap<Arc<str>, Resource>; 3];

/// What is said of objects. That nothing is said any more is the same as that nothing ever was.
fn statuses(world: &World) -> BTreeMap<ObjectKey, Desired> {
    let said = world.statuses().iter();
    said.map(|(key, said)| (key.clone(), Desired::clone(said)))
        .filter(|(_, said)| *said != Desired::default())
        .collect()
}

fn snapshot(world: &World) -> Snapshot {
    let named = |resource: &Resource| (resource.name.clone(), resource.clone());
    [
        world.addresses().map(named).collect(),
        world.authorizations().map(named).collect(),
        world.waypoint_resources().map(named).collect(),
    ]
}

/// Names whose resources differ.
fn difference(before: &Snapshot, after: &Snapshot) -> [Vec<Arc<str>>; 3] {
    [0, 1, 2].map(|kind| {
        let names: BTreeSet<_> = before[kind]
            .keys()
            .chain(after[kind].keys())
            .cloned()
            .collect();
        names
            .into_iter()
            .filter(|name| before[kind].get(name) != after[kind].get(name))
            .collect()
    })
}

fn remarks(world: &World) -> BTreeSet<(ObjectKey, String)> {
    world
        .remarks()
        .map(|(key, text)| (key.clone(), text.to_owned()))
        .collect()
}

/// The same objects, in a world that never knew anything else but who has which address.
fn from_scratch(objects: &BTreeMap<ObjectKey, Object>, addresses: &str) -> World {
    let mut world = World::new(settings());
    assert!(world.restore_automatic_addresses(addresses).is_empty());
    world.apply(objects.values().cloned().map(Change::Set).collect());
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_world_that_saw_every_step_is_the_one_that_saw_only_the_end(
        picked in proptest::collection::vec(prop_oneof![0..TANGLED, 0..POOL.len()], 1..40),
        steps in proptest::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<bool>()), 1..60),
    ) {
        let mut world = World::new(settings());
        let mut objects = BTreeMap::new();
        let mut batch = Vec::new();
        for (index, action, more) in steps {
            let object = POOL[picked[index.index(picked.len())]].clone();
            let key = object.key();
            if action == 0 {
                objects.remove(&key);
                batch.push(Change::Gone(key));
            } else {
                objects.insert(key, object.clone());
                batch.push(Change::Set(object));
            }
            if more {
                continue;
            }
            let before = snapshot(&world);
            let said = world.statuses().clone();
            let Changed { addresses, authorizations, resources, statuses: named, .. } = world.apply(std::mem::take(&mut batch));
            let after = snapshot(&world);
            prop_assert_eq!([addresses, authorizations, resources], difference(&before, &after), "what changed is named, and nothing else");
            let mut differing: Vec<ObjectKey> = said.keys().chain(world.statuses().keys()).filter(|key| said.get(*key) != world.status(key)).cloned().collect();
            differing.sort();
            differing.dedup();
            let mut named = named;
            named.sort();
            prop_assert_eq!(named, differing);
            let again = from_scratch(&objects, &world.automatic_addresses());
            prop_assert_eq!(statuses(&again), statuses(&world));
            prop_assert_eq!(snapshot(&again), after);
            prop_assert_eq!(remarks(&again), remarks(&world));
        }
    }

    #[test]
    fn objects_in_any_order_give_the_same_resources(order in Just((0..POOL.len()).collect::<Vec<_>>()).prop_shuffle()) {
        // One version of each object, or the last one would count.
        let mut objects = BTreeMap::new();
        for object in POOL.iter() {
            objects.entry(object.key()).or_insert_with(|| object.clone());
        }
        let mut world = World::new(settings());
        let keys: Vec<ObjectKey> = POOL.iter().map(Object::key).collect();
        for index in order {
            world.apply(vec![Change::Set(objects[&keys[index]].clone())]);
        }
        let again = from_scratch(&objects, &world.automatic_addresses());
        prop_assert_eq!(snapshot(&again), snapshot(&world));
    }
}

/// The text of every scenario.
static TEXTS: LazyLock<Vec<String>> =
    LazyLock::new(|| all().into_iter().map(|scenario| scenario.text()).collect());

proptest! {
    #[test]
    fn mangled_text_is_refused_or_read_and_the_world_lives_on(
        text in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0..6u8), 1..8),
    ) {
        let mut lines: Vec<String> = TEXTS[text.index(TEXTS.len())].lines().map(str::to_owned).collect();
        for (index, kind) in damage {
            let index = index.index(lines.len());
            match kind {
                0 => { lines.remove(index); }
                1 => lines[index].insert(0, ' '),
                2 => { let line = lines[index].clone(); lines.insert(index, line); }
                3 => lines[index] = lines[index].replace(['1', 'a'], "-"),
                4 => lines[index] = lines[index].split(':').next().unwrap_or_default().to_owned() + ": [",
                _ => lines[index] = lines[index].replace(": ", ": !x &y "),
            }
            if lines.is_empty() {
                return Ok(());
            }
        }
        let last = lines.len();
        let mut objects = BTreeMap::new();
        let mut world = World::new(settings());
        for parsed in parse(&lines.join("\n")) {
            match parsed {
                Parsed::Object { object, line } => {
                    prop_assert!((1..=last).contains(&line));
                    objects.insert(object.key(), object.clone());
                    world.apply(vec![Change::Set(object)]);
                }
                Parsed::Fault { line, reason, .. } => {
                    prop_assert!((1..=last + 1).contains(&line), "{line} of {last}");
                    prop_assert!(!reason.is_empty());
                }
                Parsed::Ignored { .. } => {}
            }
        }
        let again = from_scratch(&objects, &world.automatic_addresses());
        prop_assert_eq!(snapshot(&again), snapshot(&world));
    }
}

#[test]
fn a_change_that_changes_nothing_is_not_named_and_costs_nothing() {
    let mut world = World::new(settings());
    world.apply(POOL.iter().cloned().map(Change::Set).collect());
    let mut last = BTreeMap::new();
    last.extend(POOL.iter().map(|object| (object.key(), object.clone())));
    let before = world.recomputed();
    assert_eq!(
        world.apply(last.into_values().map(Change::Set).collect()),
        Changed::default()
    );
    assert_eq!(world.recomputed(), before);
}

#[test]
fn nothing_is_left_when_everything_goes() {
    let mut world = World::new(settings());
    world.apply(POOL.iter().cloned().map(Change::Set).collect());
    world.apply(
        POOL.iter()
            .map(|object| Change::Gone(object.key()))
            .collect(),
    );
    assert_eq!(snapshot(&world), Snapshot::default());
    assert_eq!(remarks(&world), BTreeSet::new());
    assert!(world.statuses().is_empty());
    assert!(undo(&[]).is_empty());
}

fn objects(text: &str) -> Vec<Object> {
    parse(text)
        .into_iter()
        .map(|parsed| match parsed {
            Parsed::Object { object, .. } => object,
            other => panic!("{other:?} in {text}"),
        })
        .collect()
}

fn set(world: &mut World, text: &str) -> Changed {
    world.apply(objects(text).into_iter().map(Change::Set).collect())
}

#[test]
fn a_mesh_with_several_names_means_the_same_identity_by_all_of_them() {
    let mut world = World::new(Settings {
        trust_domain: "new.org".into(),
        trust_domain_aliases: vec!["old.org".into()],
        ..Settings::default()
    });
    set(
        &mut world,
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {rules: [{from: [{source: {principals: [old.org/ns/a/sa/b]}}], when: [{key: source.principal, notValues: [new.org/ns/a/sa/c]}]}]}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: a}\nspec: {hosts: [h.x], addresses: [192.0.2.1], subjectAltNames: ['spiffe://old.org/ns/a/sa/b'], ports: [{number: 80, name: http}]}\n",
    );
    let resources = crate::scenario::resources(&world);
    let policy = &resources[&("authorizations", "a/p".to_owned())]["groups"][0]["rules"];
    let exact =
        |texts: [&str; 2]| serde_json::json!(texts.map(|text| serde_json::json!({"exact": text})));
    assert_eq!(
        policy[0]["matches"][0]["principals"],
        exact(["new.org/ns/a/sa/b", "old.org/ns/a/sa/b"])
    );
    assert_eq!(
        policy[1]["matches"][0]["notPrincipals"],
        exact(["new.org/ns/a/sa/c", "old.org/ns/a/sa/c"])
    );
    let service = &resources[&("addresses", "a/h.x".to_owned())]["service"];
    assert_eq!(
        service["subjectAltNames"],
        serde_json::json!(["spiffe://new.org/ns/a/sa/b", "spiffe://old.org/ns/a/sa/b"])
    );
}

#[test]
fn remarks_say_what_has_no_effect_once() {
    let mut world = World::new(Settings::default());
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\n\
                spec: {action: DENY, rules: [{to: [{operation: {methods: [GET], hosts: [h]}}]}, {from: [{source: {namespaces: [b]}}], when: [{key: 'request.headers[x]', values: [y]}]}]}\n---\n\
                apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a, labels: {istio.io/use-waypoint: wp}}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n";
    let said: Vec<String> = set(&mut world, text)
        .remarks
        .into_iter()
        .map(|(key, text)| format!("{key}: {text}"))
        .collect();
    assert_eq!(
        said,
        [
            "Service a/web: waypoint \"a/wp\" is not ready: there is no Gateway of that name. Until it is usable its traffic is refused; label ambit.io/waypoint-unready=pass on the namespace lets it go without the waypoint",
            "AuthorizationPolicy a/p: rule 0 uses hosts, methods, which only a waypoint can see, and there is nothing else in the rule, so it denies nothing",
            "AuthorizationPolicy a/p: rule 1 uses request.headers[x], which only a waypoint can see, so the rule denies without them",
        ]
    );
    let again = set(&mut world, &text.replace("10.0.0.1", "10.0.0.2"));
    assert_eq!((again.addresses.len(), again.remarks.len()), (1, 0));
    assert_eq!(remarks(&world).len(), 3);
}

#[test]
fn a_resource_is_also_found_by_its_addresses_and_a_service_by_its_host() {
    let mut world = World::new(Settings::default());
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: net1}}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: own, namespace: a}\nspec: {containers: []}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: '2001:db8::1'}]}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: host, namespace: a}\nspec: {hostNetwork: true, containers: []}\nstatus: {phase: Running, podIP: 10.9.9.9}\n---\n\
                apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: range, namespace: a}\nspec: {hosts: [h.x], addresses: [192.0.2.7/24, 192.0.2.1], ports: [{number: 80, name: http}]}\n";
    set(&mut world, text);
    let aliases = |name: &str| world.address(name).unwrap().aliases.to_vec();
    assert_eq!(
        aliases("Kubernetes//Pod/a/own"),
        ["net1/10.0.0.1", "net1/2001:db8::1"]
    );
    assert_eq!(aliases("Kubernetes//Pod/a/host"), ["net1/10.9.9.9"]);
    assert_eq!(
        aliases("a/h.x"),
        ["net1/192.0.2.0/24", "net1/192.0.2.1", "*/h.x"]
    );
}

#[test]
fn a_pod_is_known_to_the_authority_before_it_has_an_address() {
    let mut world = World::new(Settings::default());
    set(
        &mut world,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a, uid: u}\nspec: {nodeName: n, serviceAccountName: s, containers: []}\nstatus: {phase: Pending}\n",
    );
    assert_eq!(world.addresses().count(), 0);
    let pod = world.pod("a", "p").unwrap();
    assert_eq!(
        [&*pod.uid, &*pod.node, &*pod.service_account, &*pod.phase],
        ["u", "n", "s", "Pending"]
    );
    assert_eq!(world.pod("b", "p"), None);
}
