//! What was to be protected and cannot be read is closed: as far as what was meant can be told, and no less.

use api::k8s::dir::{Change, Fault};
use api::k8s::objects::Kind;
use api::k8s::yaml::{Parsed, parse};

use super::{SECURITY, Told, names, policy, said, service, set, targets, told, waypoint, world};
use crate::layer7::World;

/// A document that is refused.
fn refuse(world: &mut World, text: &str) {
    let changes = parse(text).into_iter().map(|parsed| match parsed {
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
    });
    world.apply(changes.collect());
}

fn closed(world: &World, name: &str) -> Vec<String> {
    match told(world).remove(name) {
        Some(Told::Authorization(it)) if !it.invalid.is_empty() => targets(&it.targets),
        Some(Told::Authentication(it)) if !it.invalid.is_empty() => targets(&it.targets),
        Some(Told::RateLimit(it)) if it.requests == 0 => targets(&it.targets),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn of_a_policy_that_names_what_cannot_be_read_everything_it_may_mean_is_closed() {
    let mut world = world();
    let abroad = "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: b";
    set(&mut world, &service("a", "abroad", abroad));
    let bad = "{targetRefs: [{kind: Service, group: '', name: web}, {name: 7}], action: DENY}";
    refuse(
        &mut world,
        &policy("AuthorizationPolicy", SECURITY, "a", "p", bad),
    );
    let (own, other) = (
        "a/wp/authorizationpolicy/a/p",
        "b/wp/authorizationpolicy/a/p",
    );
    assert_eq!(closed(&world, own), ["gateway a/wp"]);
    assert_eq!(closed(&world, other), ["a/abroad.a.svc.cluster.local:0"]);
    let (status, _, message) = said(&world, Kind::AuthorizationPolicy, "a", "p");
    assert!(!status && message.contains("namespace a"), "{message}");
    // What comes later is closed as well.
    set(&mut world, &service("a", "more", abroad));
    assert_eq!(closed(&world, other).len(), 2);
    set(&mut world, &waypoint("a", "second"));
    assert_eq!(
        closed(&world, "a/second/authorizationpolicy/a/p"),
        ["gateway a/second"]
    );
    let good = "{targetRefs: [{kind: Service, group: '', name: web}], action: DENY}";
    set(
        &mut world,
        &policy("AuthorizationPolicy", SECURITY, "a", "p", good),
    );
    assert_eq!(names(&world), [own]);
}

#[test]
fn in_the_root_namespace_it_may_mean_every_waypoint() {
    let mut world = world();
    let bad = "{targetRefs: [{kind: GatewayClas, group: gateway.networking.k8s.io, name: istio-waypoint}], rulez: 1}";
    let text = policy("RequestAuthentication", SECURITY, "istio-system", "p", bad);
    refuse(&mut world, &text);
    for gateway in ["a/wp", "b/wp"] {
        let name = format!("{gateway}/requestauthentication/istio-system/p");
        assert_eq!(closed(&world, &name), [format!("gateway {gateway}")]);
    }
}

#[test]
fn a_limit_that_was_never_good_lets_nothing_pass_unless_it_says_so() {
    let mut world = world();
    let limit = |rest: &str| {
        policy(
            "RateLimitPolicy",
            "ambit.io/v1alpha1",
            "a",
            "p",
            &format!("{{targetRefs: [{{kind: Service, group: '', name: web}}], {rest}}}"),
        )
    };
    refuse(&mut world, &limit("limits: many"));
    let name = "a/wp/ratelimitpolicy/a/p/0";
    assert_eq!(closed(&world, name), ["a/web.a.svc.cluster.local:0"]);
    let (status, _, message) = said(&world, Kind::RateLimitPolicy, "a", "p");
    assert!(!status && message.contains("429"), "{message}");
    // It reads well, and cannot be enforced.
    set(
        &mut world,
        &limit("limits: [{requests: 5, window: 1s}], global: {}"),
    );
    assert_eq!(closed(&world, name).len(), 1);
    let (status, _, message) = said(&world, Kind::RateLimitPolicy, "a", "p");
    assert!(!status && message.contains("429"), "{message}");
    set(&mut world, &limit("limits: [{requests: 5, window: 1s}]"));
    assert!(matches!(told(&world).remove(name), Some(Told::RateLimit(it)) if it.requests == 5));
    // A good one goes on.
    refuse(&mut world, &limit("limits: many"));
    assert!(matches!(told(&world).remove(name), Some(Told::RateLimit(it)) if it.requests == 5));

    let mut world = self::world();
    let open = limit("limits: many, global: {provider: p, onFailure: Allow}");
    refuse(&mut world, &open);
    assert!(names(&world).is_empty());
    // Whoever is locked out may say so later, whatever else is still wrong.
    refuse(&mut world, &limit("limits: many"));
    assert_eq!(closed(&world, name).len(), 1);
    refuse(&mut world, &open);
    assert!(names(&world).is_empty());
}
