//! What is attached to a service is told to the waypoint in front of it, there and nowhere else, and its author hears
//! what became of it.

mod closed;
mod credentials;
mod hosts;
mod reports;
mod towards;

use std::collections::BTreeMap;

use api::k8s::aim::Aim;
use api::k8s::dir::{Change, Fault};
use api::k8s::objects::{Kind, Object, ObjectKey};
use api::k8s::yaml::{Parsed, parse};
use api::waypoint as wire;
use istiod_lite::world::{Changed, Settings, World};
use prost::Message as _;
use wire::resource::Kind as Told;
use wire::target::To;

pub(super) fn set(world: &mut World, text: &str) -> Changed {
    let objects = parse(text).into_iter().map(|parsed| match parsed {
        Parsed::Object { object, .. } => object,
        other => panic!("{other:?} in {text}"),
    });
    let objects: Vec<Object> = objects.collect();
    world.apply(objects.into_iter().map(Change::Set).collect())
}

pub(super) fn gone(world: &mut World, kind: Kind, namespace: &str, name: &str) -> Changed {
    world.apply(vec![Change::Gone(ObjectKey::new(kind, namespace, name))])
}

/// All that waypoints are told, by xDS name, but for what they are told of themselves.
pub(super) fn told(world: &World) -> BTreeMap<String, Told> {
    let resources = world.waypoint_resources().map(|it| {
        let resource = wire::Resource::decode(it.encoded.clone()).unwrap();
        (it.name.to_string(), resource.kind.unwrap())
    });
    resources
        .filter(|(_, it)| !matches!(it, Told::Gateway(_) | Told::Fronted(_)))
        .collect()
}

pub(super) fn names(world: &World) -> Vec<String> {
    told(world).into_keys().collect()
}

/// Reason and message of the condition of an object.
pub(super) fn said(
    world: &World,
    kind: Kind,
    namespace: &str,
    name: &str,
) -> (bool, String, String) {
    let key = ObjectKey::new(kind, namespace, name);
    let status = world
        .status(&key)
        .unwrap_or_else(|| panic!("nothing is said of {key}"));
    let condition = &status.conditions[0];
    (
        condition.status,
        condition.reason.clone(),
        condition.message.clone(),
    )
}

pub(super) fn waypoint(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{from: All}}}}}}]}}\nstatus: {{addresses: [{{type: IPAddress, value: 10.0.0.9}}]}}\n---\n"
    )
}

pub(super) fn service(namespace: &str, name: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\nspec: {{clusterIP: 10.0.1.1, selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]}}\n---\n"
    )
}

pub(super) fn policy(kind: &str, group: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

const SECURITY: &str = "security.istio.io/v1";
const WEB: &str = "{kind: Service, group: '', name: web}";

/// Two waypoints; web and db of namespace a are behind the first, api of b behind the second.
pub(super) fn world() -> World {
    let mut world = World::new(Settings::default());
    let text = [
        waypoint("a", "wp"),
        waypoint("b", "wp"),
        service("a", "web", "istio.io/use-waypoint: wp"),
        service("a", "db", "istio.io/use-waypoint: wp"),
        service("b", "api", "istio.io/use-waypoint: wp"),
    ];
    set(&mut world, &text.concat());
    world
}

fn targets(it: &[wire::Target]) -> Vec<String> {
    let shown = it.iter().map(|it| match it.to.as_ref().unwrap() {
        To::Service(it) => format!("{}/{}:{}", it.namespace, it.hostname, it.port),
        To::Gateway(it) => format!("gateway {it}"),
        To::Listener(it) | To::Route(it) => it.clone(),
    });
    shown.collect()
}

fn authorization(world: &World, name: &str) -> wire::Authorization {
    match told(world).remove(name) {
        Some(Told::Authorization(it)) => it,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_policy_is_told_to_the_waypoint_in_front_of_what_it_is_attached_to() {
    let mut world = world();
    let spec = format!(
        "{{targetRefs: [{WEB}], action: DENY, rules: [{{to: [{{operation: {{paths: [/admin*]}}}}]}}]}}"
    );
    let changed = set(
        &mut world,
        &policy("AuthorizationPolicy", SECURITY, "a", "p", &spec),
    );
    let name = "a/wp/authorizationpolicy/a/p";
    assert_eq!(names(&world), [name]);
    assert_eq!(
        changed.resources.iter().map(|it| &**it).collect::<Vec<_>>(),
        [name]
    );
    let made = authorization(&world, name);
    assert_eq!(targets(&made.targets), ["a/web.a.svc.cluster.local:0"]);
    assert_eq!(made.rules[0].to[0].paths, ["/admin*"]);
    assert_eq!(made.action(), wire::authorization::Action::Deny);
    assert_eq!(
        said(&world, Kind::AuthorizationPolicy, "a", "p"),
        (true, "Accepted".into(), "bound to a/wp".into())
    );
    // It moves with the service.
    set(
        &mut world,
        &service(
            "a",
            "web",
            "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: b",
        ),
    );
    assert_eq!(names(&world), ["b/wp/authorizationpolicy/a/p"]);
    set(&mut world, &service("a", "web", ""));
    assert_eq!(names(&world), [""; 0]);
    assert_eq!(
        said(&world, Kind::AuthorizationPolicy, "a", "p").1,
        "AncestorNotBound"
    );
}

#[test]
fn a_policy_of_a_class_is_told_to_each_waypoint_as_its_own() {
    let mut world = world();
    let class = "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}], rules: [{}]}";
    set(
        &mut world,
        &policy(
            "AuthorizationPolicy",
            SECURITY,
            "istio-system",
            "all",
            class,
        ),
    );
    set(
        &mut world,
        &policy("AuthorizationPolicy", SECURITY, "a", "not", class),
    );
    set(&mut world, &waypoint("c", "late"));
    let all: Vec<String> = ["a/wp", "b/wp", "c/late"]
        .map(|it| format!("{it}/authorizationpolicy/istio-system/all"))
        .into();
    assert_eq!(names(&world), all);
    let made = authorization(&world, &all[2]);
    assert_eq!(targets(&made.targets), ["gateway c/late"]);
    let gateway =
        "{targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: wp}, action: AUDIT}";
    set(
        &mut world,
        &policy("AuthorizationPolicy", SECURITY, "b", "audit", gateway),
    );
    let made = authorization(&world, "b/wp/authorizationpolicy/b/audit");
    assert_eq!(targets(&made.targets), ["gateway b/wp"]);
}

#[test]
fn a_policy_for_workloads_is_no_business_of_waypoints() {
    let mut world = world();
    set(
        &mut world,
        &policy(
            "AuthorizationPolicy",
            SECURITY,
            "a",
            "p",
            "{selector: {matchLabels: {app: web}}}",
        ),
    );
    assert_eq!(names(&world), [""; 0]);
}

#[test]
fn a_policy_that_cannot_be_read_denies_what_it_is_attached_to_until_it_is_mended() {
    let mut world = world();
    let key = ObjectKey::new(Kind::AuthorizationPolicy, "a", "p");
    let target = api::k8s::istio::TargetRef {
        kind: "Service".into(),
        name: "web".into(),
        ..Default::default()
    };
    let fault = |key: &ObjectKey| {
        Change::Invalid(Fault {
            file: "f".into(),
            line: 1,
            object: Some(key.clone()),
            reason: "spec.rulez: unknown field".into(),
            aim: Some(Aim::Attached(vec![target.clone()])),
        })
    };
    world.apply(vec![fault(&key)]);
    let name = "a/wp/authorizationpolicy/a/p";
    let made = authorization(&world, name);
    assert_eq!(made.invalid, "spec.rulez: unknown field");
    assert_eq!(targets(&made.targets), ["a/web.a.svc.cluster.local:0"]);
    let (status, reason, message) = said(&world, Kind::AuthorizationPolicy, "a", "p");
    assert_eq!((status, reason.as_str()), (false, "Invalid"));
    assert!(
        message.contains("denies all requests to Service a/web"),
        "{message}"
    );
    set(
        &mut world,
        &policy(
            "AuthorizationPolicy",
            SECURITY,
            "a",
            "p",
            &format!("{{targetRefs: [{WEB}], rules: [{{}}]}}"),
        ),
    );
    assert_eq!(authorization(&world, name).invalid, "");
    // A later version that cannot be read leaves the good one in force.
    world.apply(vec![fault(&key)]);
    assert_eq!(authorization(&world, name).invalid, "");

    let tokens = ObjectKey::new(Kind::RequestAuthentication, "a", "p");
    world.apply(vec![fault(&tokens)]);
    let Some(Told::Authentication(made)) = told(&world).remove("a/wp/requestauthentication/a/p")
    else {
        panic!("{:?}", names(&world))
    };
    assert_eq!(made.invalid, "spec.rulez: unknown field");
    gone(&mut world, Kind::RequestAuthentication, "a", "p");
    gone(&mut world, Kind::AuthorizationPolicy, "a", "p");
    assert_eq!(names(&world), [""; 0]);
}

#[test]
fn who_is_asked_must_be_known_to_the_mesh() {
    let providers = serde_json::json!([
        {"name": "ext", "envoyExtAuthzGrpc": {"service": "api.b.svc.cluster.local", "port": 80}},
        {"name": "gone", "envoyExtAuthzGrpc": {"service": "nobody.b.svc.cluster.local", "port": 80}},
    ]);
    let mut world = World::new(Settings {
        providers: serde_json::from_value(providers).unwrap(),
        ..Settings::default()
    });
    let ask = |name: &str| {
        let spec = format!(
            "{{targetRefs: [{WEB}], action: CUSTOM, provider: {{name: {name}}}, rules: [{{}}]}}"
        );
        policy("AuthorizationPolicy", SECURITY, "a", "p", &spec)
    };
    let text = [
        waypoint("a", "wp"),
        service("a", "web", "istio.io/use-waypoint: wp"),
        ask("ext"),
    ];
    set(&mut world, &text.concat());
    let (status, _, message) = said(&world, Kind::AuthorizationPolicy, "a", "p");
    assert!(
        !status && message.contains("no service has the host"),
        "{message}"
    );
    assert_eq!(names(&world), ["a/wp/authorizationpolicy/a/p"]);
    set(&mut world, &service("b", "api", ""));
    assert!(said(&world, Kind::AuthorizationPolicy, "a", "p").0);
    assert_eq!(
        names(&world),
        ["a/wp/authorizationpolicy/a/p", "a/wp/provider/ext"]
    );
    let Some(Told::Provider(provider)) = told(&world).remove("a/wp/provider/ext") else {
        panic!("no provider")
    };
    let Some(wire::provider::Kind::Authorizer(it)) = provider.kind else {
        panic!("{provider:?}")
    };
    assert_eq!(it.service.unwrap().namespace, "b");
    set(&mut world, &ask("unheard-of"));
    let (status, reason, message) = said(&world, Kind::AuthorizationPolicy, "a", "p");
    assert_eq!((status, reason.as_str()), (false, "Invalid"));
    assert!(message.contains("unheard-of"), "{message}");
}

#[test]
fn whoever_names_a_provider_hears_when_its_service_comes_and_goes() {
    let providers = serde_json::json!([
        {"name": "ext", "envoyExtAuthzGrpc": {"service": "api.b.svc.cluster.local", "port": 80}},
        {"name": "count", "envoyRateLimit": {"service": "api.b.svc.cluster.local", "port": 81}},
    ]);
    let mut world = World::new(Settings {
        providers: serde_json::from_value(providers).unwrap(),
        ..Settings::default()
    });
    let asks =
        format!("{{targetRefs: [{WEB}], action: CUSTOM, provider: {{name: ext}}, rules: [{{}}]}}");
    let counts = format!(
        "{{targetRefs: [{WEB}], global: {{provider: count}}, limits: [{{requests: 5, window: 1s}}]}}"
    );
    let text = [
        waypoint("a", "wp"),
        service("a", "web", "istio.io/use-waypoint: wp"),
        policy("AuthorizationPolicy", SECURITY, "a", "asks", &asks),
        policy(
            "RateLimitPolicy",
            "ambit.io/v1alpha1",
            "a",
            "counts",
            &counts,
        ),
    ];
    set(&mut world, &text.concat());
    let heard = |world: &World, known: bool| {
        for (kind, name) in [
            (Kind::AuthorizationPolicy, "asks"),
            (Kind::RateLimitPolicy, "counts"),
        ] {
            let (status, _, message) = said(world, kind, "a", name);
            assert_eq!(status, known, "{name}: {message}");
            let unknown = message.contains("no service has the host");
            assert_eq!(unknown, !known, "{name}: {message}");
        }
        let told = names(world);
        for provider in ["a/wp/provider/count", "a/wp/provider/ext"] {
            assert_eq!(told.contains(&provider.to_owned()), known, "{told:?}");
        }
    };
    heard(&world, false);
    set(&mut world, &service("b", "api", ""));
    heard(&world, true);
    gone(&mut world, Kind::Service, "b", "api");
    heard(&world, false);
}

#[test]
fn the_service_that_an_issuers_keys_are_at_is_named_while_it_is_there() {
    let mut world = world();
    let spec = format!(
        "{{targetRefs: [{WEB}], jwtRules: [{{issuer: me, jwksUri: 'http://api.b/keys'}}]}}"
    );
    set(
        &mut world,
        &policy("RequestAuthentication", SECURITY, "a", "p", &spec),
    );
    let named = |world: &World| match told(world).remove("a/wp/requestauthentication/a/p") {
        Some(Told::Authentication(made)) => {
            let service = made.rules[0].service.clone();
            service.map(|it| format!("{}/{}:{}", it.namespace, it.hostname, it.port))
        }
        other => panic!("{other:?}"),
    };
    let there = Some("b/api.b.svc.cluster.local:80".to_owned());
    assert_eq!(named(&world), there);
    let changed = gone(&mut world, Kind::Service, "b", "api");
    assert_eq!(named(&world), None);
    let name = "a/wp/requestauthentication/a/p";
    assert!(changed.resources.iter().any(|it| **it == *name));
    set(&mut world, &service("b", "api", ""));
    assert_eq!(named(&world), there);
    // Somebody else's port.
    let spec = spec.replace("api.b", "api.b:81");
    set(
        &mut world,
        &policy("RequestAuthentication", SECURITY, "a", "p", &spec),
    );
    assert_eq!(named(&world), None);
}

#[test]
fn tokens_limits_and_reports_are_told_where_they_are_attached() {
    let mut world = world();
    let jwt = format!("{{targetRefs: [{WEB}], jwtRules: [{{issuer: me, jwks: '{{}}'}}]}}");
    let limit = format!(
        "{{targetRefs: [{WEB}], limits: [{{requests: 5, window: 1s}}, {{name: day, requests: 9, window: 24h}}]}}"
    );
    let text = [
        policy("RequestAuthentication", SECURITY, "a", "jwt", &jwt),
        policy("RateLimitPolicy", "ambit.io/v1alpha1", "a", "rate", &limit),
        policy(
            "Telemetry",
            "telemetry.istio.io/v1",
            "istio-system",
            "mesh",
            "{accessLogging: [{disabled: true}]}",
        ),
        policy(
            "Telemetry",
            "telemetry.istio.io/v1",
            "b",
            "own",
            "{tracing: [{randomSamplingPercentage: 1}]}",
        ),
    ];
    set(&mut world, &text.concat());
    assert_eq!(
        names(&world),
        [
            "a/wp/ratelimitpolicy/a/rate/0",
            "a/wp/ratelimitpolicy/a/rate/day",
            "a/wp/requestauthentication/a/jwt",
            "a/wp/telemetry/istio-system/mesh",
            "b/wp/telemetry/b/own",
            "b/wp/telemetry/istio-system/mesh",
        ]
    );
    let all = told(&world);
    let rank = |name: &str| match &all[name] {
        Told::Telemetry(it) => (it.rank, targets(&it.targets)),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        rank("b/wp/telemetry/istio-system/mesh"),
        (0, vec!["gateway b/wp".to_owned()])
    );
    assert_eq!(rank("b/wp/telemetry/b/own").0, 1);
    assert!(said(&world, Kind::RequestAuthentication, "a", "jwt").0);
    assert!(said(&world, Kind::RateLimitPolicy, "a", "rate").0);
    set(
        &mut world,
        &policy(
            "RequestAuthentication",
            SECURITY,
            "a",
            "jwt",
            "{jwtRules: [{issuer: me, jwks: x}]}",
        ),
    );
    assert_eq!(
        said(&world, Kind::RequestAuthentication, "a", "jwt").1,
        "UnsupportedValue"
    );
    set(
        &mut world,
        &policy(
            "RequestAuthentication",
            SECURITY,
            "a",
            "jwt",
            &jwt.replace("jwks: '{}'", "x: y").replace(", x: y", ""),
        ),
    );
    let (status, reason, message) = said(&world, Kind::RequestAuthentication, "a", "jwt");
    assert_eq!((status, reason.as_str()), (false, "Invalid"));
    assert!(
        message.contains("jwksUri") && message.contains("are refused"),
        "{message}"
    );
}

#[test]
fn limits_of_one_name_are_several() {
    let mut world = world();
    let spec = format!(
        "{{targetRefs: [{WEB}], limits: [{{name: each, requests: 5, window: 1s}}, {{name: each, requests: 9, window: 1h}}, {{requests: 7, window: 1m}}, {{name: '2', requests: 8, window: 24h}}]}}"
    );
    let limit = policy("RateLimitPolicy", "ambit.io/v1alpha1", "a", "rate", &spec);
    set(&mut world, &limit);
    let all = told(&world).into_iter().map(|(name, it)| match it {
        Told::RateLimit(it) => (name, it.requests),
        other => panic!("{name}: {other:?}"),
    });
    let all: Vec<(String, u64)> = all.collect();
    let expected = [("2", 7), ("2.3", 8), ("each", 5), ("each.1", 9)];
    let expected =
        expected.map(|(rule, requests)| (format!("a/wp/ratelimitpolicy/a/rate/{rule}"), requests));
    assert_eq!(all, expected);
}
