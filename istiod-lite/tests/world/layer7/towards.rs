//! What is done towards a service: DestinationRules, and policies of Gateway API.

use api::k8s::dir::Change;
use api::k8s::objects::{Kind, ObjectKey};
use api::waypoint as wire;
use istiod_lite::world::World;
use wire::resource::Kind as Told;

use super::{gone, names, policy, said, service, set, told, world};

fn rule(namespace: &str, name: &str, spec: &str) -> String {
    policy(
        "DestinationRule",
        "networking.istio.io/v1",
        namespace,
        name,
        spec,
    )
}

fn towards(world: &World, name: &str) -> wire::BackendPolicy {
    match told(world).remove(name) {
        Some(Told::BackendPolicy(it)) => it,
        other => panic!("{name}: {other:?} in {:?}", names(world)),
    }
}

fn pod(name: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, labels: {{app: web, {labels}}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.0.2.1}}\n---\n"
    )
}

const WEB: &str = "web.a.svc.cluster.local";

#[test]
fn a_rule_is_told_with_its_service_and_its_subsets_name_the_pods() {
    let mut world = world();
    let spec = "{host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}, portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {maxConnections: 3}}}]}, subsets: [{name: v1, labels: {version: v1}}]}";
    set(
        &mut world,
        &[
            rule("a", "r", spec),
            pod("one", "version: v1"),
            pod("two", "version: v2"),
        ]
        .concat(),
    );
    let key = |rest: &str| format!("a/wp/destinationrule/a/r/a/{WEB}{rest}");
    assert_eq!(names(&world), [key("/subset/v1"), key(":0"), key(":80")]);
    let all = towards(&world, &key(":0"));
    assert_eq!(
        all.load_balancer.unwrap().simple(),
        wire::load_balancer::Simple::Random
    );
    let port = towards(&world, &key(":80"));
    assert_eq!(
        (port.limits.unwrap().connections, port.service.unwrap().port),
        (3, 80)
    );
    assert_eq!(
        port.load_balancer.unwrap().simple(),
        wire::load_balancer::Simple::Unspecified
    );
    let subset = |world: &World| match told(world).remove(&key("/subset/v1")) {
        Some(Told::Subset(it)) => it.workloads,
        other => panic!("{other:?}"),
    };
    assert_eq!(subset(&world), ["Kubernetes//Pod/a/one"]);
    let changed = set(&mut world, &pod("two", "version: v1"));
    assert_eq!(
        subset(&world),
        ["Kubernetes//Pod/a/one", "Kubernetes//Pod/a/two"]
    );
    assert_eq!(
        changed.resources.iter().map(|it| &**it).collect::<Vec<_>>(),
        [key("/subset/v1")]
    );
    gone(&mut world, Kind::Pod, "a", "one");
    assert_eq!(subset(&world), ["Kubernetes//Pod/a/two"]);
    gone(&mut world, Kind::DestinationRule, "a", "r");
    assert_eq!(names(&world), [""; 0]);
}

#[test]
fn the_waypoints_own_rule_goes_before_the_services_and_the_mesh_s_comes_last() {
    let mut world = world();
    let simple = |host: &str, simple: &str| {
        format!("{{host: '{host}', trafficPolicy: {{loadBalancer: {{simple: {simple}}}}}}}")
    };
    // web is behind a waypoint of b.
    set(
        &mut world,
        &service(
            "a",
            "web",
            "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: b",
        ),
    );
    set(
        &mut world,
        &rule(
            "istio-system",
            "mesh",
            &simple("*.svc.cluster.local", "RANDOM"),
        ),
    );
    let holding = |world: &World| {
        let names = names(world).into_iter();
        names.filter(|it| it.contains(WEB)).collect::<Vec<_>>()
    };
    assert_eq!(
        holding(&world),
        [format!("b/wp/destinationrule/istio-system/mesh/a/{WEB}:0")]
    );
    set(&mut world, &rule("a", "own", &simple("web", "ROUND_ROBIN")));
    assert_eq!(
        holding(&world),
        [format!("b/wp/destinationrule/a/own/a/{WEB}:0")]
    );
    set(
        &mut world,
        &rule("b", "nearest", &simple(WEB, "ROUND_ROBIN")),
    );
    assert_eq!(
        holding(&world),
        [format!("b/wp/destinationrule/b/nearest/a/{WEB}:0")]
    );
    set(
        &mut world,
        &rule("c", "strangers", &simple(WEB, "ROUND_ROBIN")),
    );
    assert_eq!(holding(&world).len(), 1);
    gone(&mut world, Kind::DestinationRule, "b", "nearest");
    gone(&mut world, Kind::DestinationRule, "a", "own");
    assert_eq!(
        holding(&world),
        [format!("b/wp/destinationrule/istio-system/mesh/a/{WEB}:0")]
    );
}

#[test]
fn a_waypoint_whose_routes_lead_to_a_service_is_told_what_to_do_there() {
    let mut world = world();
    set(&mut world, &service("c", "far", ""));
    set(
        &mut world,
        &rule(
            "c",
            "r",
            "{host: far, trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
        ),
    );
    assert_eq!(names(&world), [""; 0]);
    let far = "a/wp/destinationrule/c/r/c/far.c.svc.cluster.local:0".to_owned();
    let route = "{hosts: [web], http: [{route: [{destination: {host: far.c.svc.cluster.local}}]}]}";
    set(
        &mut world,
        &policy("VirtualService", "networking.istio.io/v1", "a", "v", route),
    );
    assert!(names(&world).contains(&far), "{:?}", names(&world));
    set(&mut world, &service("a", "web", ""));
    assert_eq!(names(&world), [""; 0]);
    set(
        &mut world,
        &service("a", "web", "istio.io/use-waypoint: wp"),
    );
    assert!(names(&world).contains(&far), "{:?}", names(&world));
    gone(&mut world, Kind::VirtualService, "a", "v");
    assert_eq!(names(&world), [""; 0]);

    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: c}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}\n---\n";
    let http = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: h, namespace: a}\nspec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: far, namespace: c, port: 80}]}]}\n";
    set(&mut world, &[grant, http].concat());
    assert!(names(&world).contains(&far), "{:?}", names(&world));
    gone(&mut world, Kind::HttpRoute, "a", "h");
    assert_eq!(names(&world), [""; 0]);
}

#[test]
fn policies_of_gateway_api_go_over_rules() {
    let mut world = world();
    let target = "targetRefs: [{group: '', kind: Service, name: web}]";
    let traffic = format!(
        "{{{target}, retryConstraint: {{budget: {{percent: 7}}}}, sessionPersistence: {{sessionName: s}}}}"
    );
    set(
        &mut world,
        &policy(
            "XBackendTrafficPolicy",
            "gateway.networking.x-k8s.io/v1alpha1",
            "a",
            "t",
            &traffic,
        ),
    );
    let made = towards(&world, &format!("a/wp/xbackendtrafficpolicy/a/t/a/{WEB}:0"));
    assert_eq!(made.retry_budget.unwrap().percent, 7);
    assert!(made.session.is_some());
    set(
        &mut world,
        &rule(
            "a",
            "r",
            "{host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}, retryBudget: {percent: 50}}}",
        ),
    );
    let made = towards(&world, &format!("a/wp/destinationrule/a/r/a/{WEB}:0"));
    assert_eq!(made.retry_budget.unwrap().percent, 7);
    assert!(made.load_balancer.is_some() && made.session.is_some());
    let tls = "{targetRefs: [{group: '', kind: Service, name: web, sectionName: http}], validation: {hostname: web.example, wellKnownCACertificates: System}}";
    set(
        &mut world,
        &policy(
            "BackendTLSPolicy",
            "gateway.networking.k8s.io/v1",
            "a",
            "tls",
            tls,
        ),
    );
    let port = towards(&world, &format!("a/wp/destinationrule/a/r/a/{WEB}:80"));
    assert_eq!(port.tls.unwrap().sni, "web.example");
    assert!(
        port.load_balancer.is_some(),
        "what the rule says of all ports holds for this one too"
    );
    assert!(
        towards(&world, &format!("a/wp/destinationrule/a/r/a/{WEB}:0"))
            .tls
            .is_none()
    );
    gone(&mut world, Kind::DestinationRule, "a", "r");
    gone(&mut world, Kind::BackendTrafficPolicy, "a", "t");
    assert_eq!(
        names(&world),
        [
            format!("a/wp/backendtlspolicy/a/tls/a/{WEB}:0"),
            format!("a/wp/backendtlspolicy/a/tls/a/{WEB}:80")
        ][1..]
    );
}

#[test]
fn tls_to_one_port_of_a_service_is_not_that_of_an_entry_of_its_name() {
    let mut world = world();
    let entry = "{group: networking.istio.io, kind: ServiceEntry, name: web}";
    let tls = format!(
        "{{targetRefs: [{{group: '', kind: Service, name: web, sectionName: http}}, {entry}], validation: {{hostname: web.example, wellKnownCACertificates: System}}}}"
    );
    set(
        &mut world,
        &policy(
            "BackendTLSPolicy",
            "gateway.networking.k8s.io/v1",
            "a",
            "tls",
            &tls,
        ),
    );
    let port = format!("a/wp/backendtlspolicy/a/tls/a/{WEB}:80");
    assert_eq!(names(&world), [port], "its other ports are as they were");
}

#[test]
fn tls_for_a_port_that_is_not_there_is_not_said_to_be_in_force() {
    let mut world = world();
    let tls = |port: &str| {
        let spec = format!(
            "{{targetRefs: [{{group: '', kind: Service, name: web, sectionName: {port}}}], validation: {{hostname: web.example, wellKnownCACertificates: System}}}}"
        );
        let group = "gateway.networking.k8s.io/v1";
        policy("BackendTLSPolicy", group, "a", "tls", &spec)
    };
    let accepted = |world: &World| {
        let key = ObjectKey::new(Kind::BackendTlsPolicy, "a", "tls");
        let status = world.status(&key).unwrap();
        let condition = &status.parents[0].conditions[0];
        assert_eq!(condition.r#type, "Accepted");
        (condition.status, condition.reason.clone())
    };
    set(&mut world, &tls("https"));
    assert_eq!(names(&world), [""; 0], "the port is called http");
    assert_eq!(accepted(&world), (false, "TargetNotFound".to_owned()));
    set(&mut world, &tls("http"));
    assert_eq!(names(&world).len(), 1);
    assert_eq!(accepted(&world), (true, "Accepted".to_owned()));
    let renamed = service("a", "web", "istio.io/use-waypoint: wp").replace("name: http", "name: h");
    set(&mut world, &renamed);
    assert_eq!(names(&world), [""; 0]);
    assert_eq!(accepted(&world), (false, "TargetNotFound".to_owned()));
}

#[test]
fn of_several_targets_behind_a_waypoint_each_that_is_not_in_force_is_said() {
    let mut world = world();
    let tls = |targets: &str| {
        let spec = format!(
            "{{targetRefs: [{targets}], validation: {{hostname: web.example, wellKnownCACertificates: System}}}}"
        );
        let group = "gateway.networking.k8s.io/v1";
        policy("BackendTLSPolicy", group, "a", "tls", &spec)
    };
    let accepted = |world: &World| {
        let key = ObjectKey::new(Kind::BackendTlsPolicy, "a", "tls");
        let status = world.status(&key).unwrap();
        assert_eq!(status.parents.len(), 1, "both are behind a/wp");
        let condition = status.parents[0].conditions[0].clone();
        (condition.status, condition.reason, condition.message)
    };
    let port = |service: &str, port: &str| {
        format!("{{group: '', kind: Service, name: {service}, sectionName: {port}}}")
    };
    let (good, bad) = (port("web", "http"), port("db", "https"));
    for targets in [format!("{good}, {bad}"), format!("{bad}, {good}")] {
        set(&mut world, &tls(&targets));
        assert_eq!(names(&world).len(), 1, "web's alone");
        let (status, reason, message) = accepted(&world);
        assert_eq!((status, reason.as_str()), (false, "TargetNotFound"));
        assert!(message.contains("db"), "{message}");
    }
    let worse = port("web", "https");
    set(&mut world, &tls(&format!("{worse}, {bad}")));
    let (_, _, message) = accepted(&world);
    assert!(
        message.contains("web") && message.contains("db"),
        "{message}"
    );
    set(&mut world, &tls(&format!("{good}, {}", port("db", "http"))));
    assert_eq!(accepted(&world).1, "Accepted");
}

#[test]
fn what_of_a_rule_has_no_effect_is_said() {
    let mut world = world();
    set(
        &mut world,
        &rule(
            "a",
            "r",
            "{host: web, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c}, connectionPool: {tcp: {connectTimeout: soon}}}}",
        ),
    );
    let (status, reason, message) = said(&world, Kind::DestinationRule, "a", "r");
    assert_eq!((status, reason.as_str()), (false, "PartiallyInvalid"));
    assert!(
        message.contains("Secret a/c is not there") && message.contains("soon"),
        "{message}"
    );
    let made = towards(&world, &format!("a/wp/destinationrule/a/r/a/{WEB}:0"));
    assert_eq!(made.tls.unwrap().ca, "secret/a/c", "which nobody is told");
}

#[test]
fn a_policy_of_gateway_api_says_of_each_waypoint_what_became_of_it() {
    let mut world = world();
    let tls = |name: &str, ca: &str| {
        let spec = format!(
            "{{targetRefs: [{{group: '', kind: Service, name: web}}], validation: {{hostname: x, {ca}}}}}"
        );
        policy(
            "BackendTLSPolicy",
            "gateway.networking.k8s.io/v1",
            "a",
            name,
            &spec,
        )
    };
    let said = |world: &World, name: &str| {
        let key = ObjectKey::new(Kind::BackendTlsPolicy, "a", name);
        let status = world.status(&key).cloned();
        let parents = status.map(|it| it.parents.clone()).unwrap_or_default();
        let lines = parents.iter().map(|it| {
            let reasons: Vec<&str> = it.conditions.iter().map(|it| it.reason.as_str()).collect();
            format!(
                "{}/{} {}",
                it.reference["namespace"].as_str().unwrap(),
                it.reference["name"].as_str().unwrap(),
                reasons.join(" ")
            )
        });
        lines.collect::<Vec<_>>()
    };
    set(&mut world, &tls("one", "wellKnownCACertificates: System"));
    assert_eq!(said(&world, "one"), ["a/wp Accepted ResolvedRefs"]);
    set(
        &mut world,
        &tls(
            "two",
            "caCertificateRefs: [{group: '', kind: Pod, name: x}]",
        ),
    );
    assert_eq!(said(&world, "two"), ["a/wp Conflicted InvalidKind"]);
    gone(&mut world, Kind::BackendTlsPolicy, "a", "one");
    assert_eq!(
        said(&world, "two"),
        ["a/wp NoValidCACertificate InvalidKind"]
    );
    let made = towards(&world, &format!("a/wp/backendtlspolicy/a/two/a/{WEB}:0"));
    assert!(made.tls.unwrap().invalid.contains("only a ConfigMap"));
    set(&mut world, &service("a", "web", ""));
    assert_eq!(said(&world, "two"), [""; 0]);
}

#[test]
fn endpoints_are_ranked_by_what_proxies_know_of_them() {
    use api::waypoint::locality::likeness::By;
    let mut world = world();
    set(
        &mut world,
        &rule(
            "a",
            "r",
            "{host: web, trafficPolicy: {loadBalancer: {localityLbSetting: {failoverPriority: [topology.istio.io/network, topology.kubernetes.io/zone=b, team, kubernetes.io/hostname]}}}}",
        ),
    );
    let ranked = |world: &World| {
        let made = towards(world, &format!("a/wp/destinationrule/a/r/a/{WEB}:0"));
        made.load_balancer.unwrap().locality.unwrap().priority
    };
    let all = ranked(&world);
    let by: Vec<By> = all.iter().map(|it| it.by()).collect();
    assert_eq!(by, [By::Network, By::Zone, By::Workloads, By::Node]);
    assert_eq!(all[1].value.as_deref(), Some("b"));
    // Nothing of it is without effect.
    let key = ObjectKey::new(Kind::DestinationRule, "a", "r");
    assert!(world.status(&key).is_none_or(|it| it.conditions.is_empty()));
}

#[test]
fn endpoints_are_near_by_labels_that_the_waypoint_s_own_pods_have_or_that_are_named() {
    let mut world = world();
    let spec = "{host: web, trafficPolicy: {loadBalancer: {localityLbSetting: {failoverPriority: [team, tier=gold]}}}}";
    set(
        &mut world,
        &[
            rule("a", "r", spec),
            pod("one", "team: carts, tier: gold"),
            pod("two", "team: carts"),
            pod("three", "tier: gold"),
        ]
        .concat(),
    );
    let near = |world: &World| {
        let made = towards(world, &format!("a/wp/destinationrule/a/r/a/{WEB}:0"));
        let locality = made.load_balancer.unwrap().locality.unwrap();
        let uids = locality.priority.into_iter().map(|it| {
            let uids = it.workloads.unwrap_or_default().uids;
            let names = uids
                .iter()
                .map(|it| it.rsplit('/').next().unwrap().to_owned());
            names.collect::<Vec<_>>().join(",")
        });
        uids.collect::<Vec<_>>().join(" | ")
    };
    // A waypoint of which nothing is known has no label, and is like those that have none.
    assert_eq!(near(&world), "three | one,three");
    let own = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: wp-1, namespace: a, labels: {{gateway.networking.k8s.io/gateway-name: wp{labels}}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.0.2.9}}\n---\n"
        )
    };
    set(&mut world, &own(", team: carts"));
    assert_eq!(near(&world), "one,two | one,three");
    let changed = set(&mut world, &pod("three", "tier: gold, team: carts"));
    assert_eq!(near(&world), "one,three,two | one,three");
    let told: Vec<_> = changed.resources.iter().map(|it| &**it).collect();
    assert!(
        told.contains(&&*format!("a/wp/destinationrule/a/r/a/{WEB}:0")),
        "{told:?}"
    );
    set(&mut world, &own(", team: other"));
    assert_eq!(near(&world), " | one,three");
    gone(&mut world, Kind::Pod, "a", "wp-1");
    gone(&mut world, Kind::Pod, "a", "one");
    assert_eq!(near(&world), " | three");
}

#[test]
fn nothing_is_left_of_the_last_rule_and_its_service_that_go_together() {
    let of_web = "{host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}";
    let both = [
        ObjectKey::new(Kind::Service, "a", "web"),
        ObjectKey::new(Kind::DestinationRule, "a", "r"),
    ];
    for backwards in [false, true] {
        let mut world = world();
        set(&mut world, &rule("a", "r", of_web));
        let name = format!("a/wp/destinationrule/a/r/a/{WEB}:0");
        assert_eq!(names(&world), std::slice::from_ref(&name));
        let mut gone: Vec<Change> = both.iter().cloned().map(Change::Gone).collect();
        if backwards {
            gone.reverse();
        }
        let changed = world.apply(gone);
        assert_eq!(names(&world), [""; 0], "backwards: {backwards}");
        assert!(changed.resources.iter().any(|it| **it == *name));
        let again = service("a", "web", "istio.io/use-waypoint: wp");
        set(&mut world, &again);
        assert_eq!(names(&world), [""; 0], "nobody wrote a rule for it");
    }
}
