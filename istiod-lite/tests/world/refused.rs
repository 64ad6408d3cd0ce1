//! A policy that cannot be read protects those whom it was to protect: it denies until it is mended.

use api::k8s::dir::{Change, Fault};
use api::k8s::objects::{Kind, ObjectKey};
use api::k8s::yaml::{Parsed, parse};
use api::security::{Action, Authorization, Group, Scope};
use istiod_lite::world::{Settings, World};
use prost::Message as _;

/// What the control plane hears when these documents come in.
fn changes(text: &str) -> Vec<Change> {
    let parsed = parse(text).into_iter();
    parsed
        .map(|parsed| match parsed {
            Parsed::Object { object, .. } => Change::Set(object),
            Parsed::Fault {
                object,
                reason,
                aim,
                ..
            } => Change::Invalid(Fault {
                file: "f".into(),
                line: 1,
                object,
                reason,
                aim,
            }),
            other => panic!("{other:?} in {text}"),
        })
        .collect()
}

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: a, uid: web, labels: {app: web}}
spec: {containers: []}
status: {phase: Running, podIP: 10.0.2.1}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: a, uid: other}
spec: {containers: []}
status: {phase: Running, podIP: 10.0.2.2}
";

const BAD: &str = "{action: PERHAPS}";
const BAD_FOR_WEB: &str = "{selector: {matchLabels: {app: web}}, action: PERHAPS}";

fn world() -> World {
    let mut world = World::new(Settings::default());
    world.apply(changes(PODS));
    world
}

/// The denial in the place of policy p, if there is one: its scope, and who names it.
fn denial(world: &World, namespace: &str) -> Option<(Scope, Vec<String>)> {
    let name = format!("{namespace}/p");
    let resource = world.authorization(&name)?;
    let denial = Authorization::decode(resource.encoded.clone()).unwrap();
    assert_eq!(denial.action(), Action::Deny);
    assert_eq!(
        denial.groups,
        [Group::default()],
        "a group without rules matches everything"
    );
    let named = world.addresses().filter(|it| {
        let address = api::workload::Address::decode(it.encoded.clone()).unwrap();
        format!("{address:?}").contains(&format!("{name:?}"))
    });
    let mut named: Vec<String> = named
        .map(|it| it.name.rsplit('/').next().unwrap().to_owned())
        .collect();
    named.sort();
    Some((denial.scope(), named))
}

fn message(world: &World, namespace: &str) -> String {
    let key = ObjectKey::new(Kind::AuthorizationPolicy, namespace, "p");
    let condition = &world.status(&key).unwrap().conditions[0];
    assert_eq!(
        (condition.r#type, condition.status, &*condition.reason),
        ("ZtunnelAccepted", false, "Invalid")
    );
    condition.message.clone()
}

#[test]
fn a_policy_that_was_never_good_denies_in_the_narrowest_scope_that_is_certain() {
    let cases = [
        (
            "a",
            BAD_FOR_WEB,
            Scope::WorkloadSelector,
            vec!["web"],
            "workloads of namespace a with app=web",
        ),
        (
            "a",
            BAD,
            Scope::Namespace,
            vec![],
            "all workloads of namespace a",
        ),
        (
            "a",
            "{selector: {matchLabels: {app: 'w*'}}}",
            Scope::Namespace,
            vec![],
            "all workloads of namespace a",
        ),
        (
            "istio-system",
            BAD,
            Scope::Global,
            vec![],
            "all workloads of the mesh",
        ),
        (
            "istio-system",
            BAD_FOR_WEB,
            Scope::WorkloadSelector,
            vec!["web"],
            "workloads of the mesh with app=web",
        ),
    ];
    for (namespace, spec, scope, named, words) in cases {
        let mut world = world();
        world.apply(changes(&policy(namespace, spec)));
        let named = named.into_iter().map(str::to_owned).collect();
        assert_eq!(denial(&world, namespace), Some((scope, named)), "{spec}");
        let message = message(&world, namespace);
        assert!(
            message.ends_with(&format!(
                "; until it is mended it denies all traffic to {words}"
            )),
            "{message}"
        );
    }
}

#[test]
fn what_node_proxies_would_not_enforce_denies_nothing_when_it_cannot_be_read() {
    for (spec, said) in [
        ("{targetRefs: [{kind: 7}]}", "and every service in it"),
        ("{action: AUDIT, rules: 7}", "nothing of it is in force"),
    ] {
        let mut world = world();
        world.apply(changes(&policy("a", spec)));
        assert_eq!(denial(&world, "a"), None, "{spec}");
        assert!(message(&world, "a").ends_with(said), "{spec}");
    }
}

#[test]
fn a_denial_follows_its_policy_and_ends_when_that_is_mended_or_gone() {
    let mut world = world();
    let all = Some((Scope::Namespace, vec![]));
    let web = Some((Scope::WorkloadSelector, vec!["web".to_owned()]));
    world.apply(changes(&policy("a", BAD)));
    assert_eq!(denial(&world, "a"), all);
    world.apply(changes(&policy("a", BAD_FOR_WEB)));
    assert_eq!(denial(&world, "a"), web);
    let key = ObjectKey::new(Kind::AuthorizationPolicy, "a", "p");
    let changed = world.apply(vec![Change::Gone(key)]);
    assert_eq!(denial(&world, "a"), None);
    assert_eq!(changed.authorizations, ["a/p".into()]);

    world.apply(changes(&policy("a", BAD)));
    world.apply(changes(&policy("a", "{rules: [{}]}")));
    let resource = world.authorization("a/p").unwrap();
    let good = Authorization::decode(resource.encoded.clone()).unwrap();
    assert_eq!(good.action(), Action::Allow);
    // From now on there is an earlier version.
    world.apply(changes(&policy("a", BAD)));
    assert_eq!(
        world.authorization("a/p").unwrap().encoded,
        good.encode_to_vec()
    );
    assert!(message(&world, "a").ends_with("stays in force"));
}

/// Who is strict on every port.
fn strict(world: &World) -> Vec<String> {
    let named = world.addresses().filter(|it| {
        let address = api::workload::Address::decode(it.encoded.clone()).unwrap();
        format!("{address:?}").contains("istio-system/istio_converted_static_strict")
    });
    let mut named: Vec<String> = named
        .map(|it| it.name.rsplit('/').next().unwrap().to_owned())
        .collect();
    named.sort();
    named
}

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}, creationTimestamp: 2020-01-01T00:00:00Z}}\nspec: {spec}\n"
    )
}

#[test]
fn a_peer_authentication_that_was_never_good_means_strict_for_those_it_is_about() {
    let bad = "{mtls: {mode: STRICTLY}}";
    let bad_for_web = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICTLY}}";
    let cases = [
        (
            "a",
            bad_for_web,
            vec!["web"],
            "workloads of namespace a with app=web",
        ),
        (
            "a",
            bad,
            vec!["other", "web"],
            "all workloads of namespace a",
        ),
        ("b", bad, vec![], "all workloads of namespace b"),
        (
            "istio-system",
            bad,
            vec!["other", "web"],
            "all workloads of the mesh",
        ),
    ];
    for (namespace, spec, expected, words) in cases {
        let mut world = world();
        world.apply(changes(&peer(namespace, "p", spec)));
        assert_eq!(strict(&world), expected, "{spec} in {namespace}");
        let key = ObjectKey::new(Kind::PeerAuthentication, namespace, "p");
        let condition = &world.status(&key).unwrap().conditions[0];
        assert_eq!(
            (condition.r#type, condition.status, &*condition.reason),
            ("ambit.io/Accepted", false, "Invalid")
        );
        let ending =
            format!("; until it is mended it means STRICT for {words}: plain text is refused");
        assert!(
            condition.message.ends_with(&ending),
            "{}",
            condition.message
        );
    }
}

#[test]
fn strict_in_the_place_of_a_fault_ends_when_that_is_mended_or_gone() {
    let bad = peer("a", "p", "{mtls: {mode: STRICTLY}}");
    let open = |name| peer("a", name, "{mtls: {mode: PERMISSIVE}}");
    let key = ObjectKey::new(Kind::PeerAuthentication, "a", "p");
    let mut world = world();
    // An older one that is good does not open what this was to close.
    world.apply(changes(&open("older")));
    world.apply(changes(&bad));
    assert_eq!(strict(&world), ["other", "web"]);
    world.apply(vec![Change::Gone(key.clone())]);
    assert!(strict(&world).is_empty());
    world.apply(changes(&bad));
    world.apply(changes(&open("p")));
    assert!(strict(&world).is_empty());
    // From now on there is an earlier version.
    world.apply(changes(&bad));
    assert!(strict(&world).is_empty());
    assert!(
        world.status(&key).unwrap().conditions[0]
            .message
            .ends_with("stays in force")
    );
}
