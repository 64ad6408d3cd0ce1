//! Who must pass a waypoint does, or is refused: never goes around it by accident.

mod left;
mod life;
mod only;
mod statuses;

use api::k8s::dir::Change;
use api::k8s::objects::{Kind, Object, ObjectKey};
use api::k8s::yaml::{Parsed, parse};
use istiod_lite::world::{Changed, Settings, Unready, World};

use crate::scenario::{base, resources};

fn objects(text: &str) -> Vec<Object> {
    let parsed = parse(text).into_iter();
    parsed
        .map(|parsed| match parsed {
            Parsed::Object { object, .. } => object,
            other => panic!("{other:?} in {text}"),
        })
        .collect()
}

fn set(world: &mut World, text: &str) -> Changed {
    world.apply(objects(text).into_iter().map(Change::Set).collect())
}

fn gone(world: &mut World, kind: Kind, namespace: &str, name: &str) -> Changed {
    world.apply(vec![Change::Gone(ObjectKey::new(kind, namespace, name))])
}

/// A Gateway of the waypoint class in namespace a, ready or not.
fn gateway(labels: &str, listener: &str, ready: bool) -> String {
    let status = if ready {
        "{addresses: [{type: IPAddress, value: 10.0.0.9}]}"
    } else {
        "{}"
    };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: a, labels: {{{labels}}}}}\n\
         spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE{listener}}}]}}\nstatus: {status}\n---\n"
    )
}

/// A namespace that names the waypoint, and a service and a pod in it.
fn town(namespace: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: a{labels}}}}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}}}\nspec: {{clusterIP: 10.0.1.1, selector: {{app: web}}, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: {namespace}, labels: {{app: web}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.0.2.1}}\n---\n"
    )
}

/// Where a resource's traffic is sent: `-` on its own way, `waypoint`, or `nowhere`.
fn way(world: &World, name: &str) -> &'static str {
    let resources = resources(world);
    let resource = &resources[&("addresses", name.to_owned())];
    let kind = if name.contains("//") {
        "workload"
    } else {
        "service"
    };
    let waypoint = &resource[kind]["waypoint"];
    match waypoint["hostname"]["hostname"].as_str() {
        Some("wp.a.waypoint-unready.invalid") => {
            assert_eq!(waypoint["hboneMtlsPort"], 15008);
            "nowhere"
        }
        Some(other) => panic!("{other}"),
        None if waypoint.is_null() => "-",
        None => "waypoint",
    }
}

fn ways(world: &World, namespace: &str) -> [&'static str; 2] {
    let service = format!("{namespace}/web.{namespace}.svc.cluster.local");
    [
        way(world, &service),
        way(world, &format!("Kubernetes//Pod/{namespace}/web")),
    ]
}

#[test]
fn a_waypoint_that_cannot_be_used_refuses_whose_traffic_must_pass_it() {
    let cases = [
        ("missing", String::new(), ["nowhere", "nowhere"]),
        (
            "not ready, for services",
            gateway("", "", false),
            ["nowhere", "-"],
        ),
        (
            "not ready, for workloads",
            gateway("istio.io/waypoint-for: workload", "", false),
            ["-", "nowhere"],
        ),
        (
            "not ready, for all",
            gateway("istio.io/waypoint-for: all", "", false),
            ["nowhere", "nowhere"],
        ),
        (
            "not ready, for none",
            gateway("istio.io/waypoint-for: none", "", false),
            ["-", "-"],
        ),
        (
            "for nobody knows whom",
            gateway("istio.io/waypoint-for: everyone", "", true),
            ["nowhere", "nowhere"],
        ),
        (
            "ready, for services",
            gateway("", "", true),
            ["waypoint", "-"],
        ),
        (
            "ready, for all",
            gateway("istio.io/waypoint-for: all", "", true),
            ["waypoint", "waypoint"],
        ),
    ];
    for (what, gateway, expected) in cases {
        let mut world = World::new(Settings::default());
        set(&mut world, &(gateway + &town("a", "")));
        assert_eq!(ways(&world, "a"), expected, "{what}");

        let pass = expected.map(|way| if way == "nowhere" { "-" } else { way });
        set(&mut world, &town("a", ", ambit.io/waypoint-unready: pass"));
        assert_eq!(
            ways(&world, "a"),
            pass,
            "{what}, and the namespace lets it pass"
        );
        set(
            &mut world,
            &town("a", ", ambit.io/waypoint-unready: perhaps"),
        );
        assert_eq!(
            ways(&world, "a"),
            expected,
            "{what}, and the namespace says nothing clear"
        );
    }
}

#[test]
fn the_mesh_may_let_traffic_pass_and_a_namespace_may_not() {
    let mut world = World::new(Settings {
        waypoint_unready: Unready::Pass,
        ..Settings::default()
    });
    set(
        &mut world,
        &(town("a", "") + &town("b", ", ambit.io/waypoint-unready: refuse")),
    );
    assert_eq!(ways(&world, "a"), ["-", "-"]);
    assert_eq!(ways(&world, "b"), ["nowhere", "nowhere"]);
}

#[test]
fn a_namespace_that_is_not_let_in_is_refused_until_it_is() {
    let selecting =
        ", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: x}}}}";
    let mut world = World::new(Settings::default());
    set(&mut world, &(gateway("", "", true) + &town("b", "")));
    assert_eq!(ways(&world, "b"), ["nowhere", "-"]);
    set(&mut world, &gateway("", selecting, true));
    assert_eq!(ways(&world, "b"), ["nowhere", "-"]);
    set(&mut world, &town("b", ", team: x"));
    assert_eq!(ways(&world, "b"), ["waypoint", "-"]);
    let condition = |world: &World| {
        let key = ObjectKey::new(Kind::Service, "b", "web");
        let condition = world.status(&key).unwrap().conditions[0].clone();
        (condition.status, condition.reason, condition.message)
    };
    assert_eq!(condition(&world).1, "WaypointAccepted");
    set(&mut world, &town("b", ", team: y"));
    assert_eq!(ways(&world, "b"), ["nowhere", "-"]);
    let (bound, reason, message) = condition(&world);
    assert_eq!((bound, &*reason), (false, "AttachmentDenied"));
    assert!(message.contains("traffic is refused"), "{message}");
}

#[test]
fn who_opts_out_and_a_waypoints_own_pods_are_never_refused() {
    let mut world = World::new(Settings::default());
    let text = town("a", "").replace(
        "labels: {app: web}",
        "labels: {app: web, gateway.networking.k8s.io/gateway-name: wp}",
    );
    set(&mut world, &text);
    assert_eq!(ways(&world, "a"), ["nowhere", "-"]);
    let text = text.replace(
        "{name: web, namespace: a}",
        "{name: web, namespace: a, labels: {istio.io/use-waypoint: none}}",
    );
    set(&mut world, &text);
    assert_eq!(ways(&world, "a"), ["-", "-"]);
}

#[test]
fn a_pod_that_names_its_waypoint_itself_is_refused_like_its_namespace() {
    let mut world = World::new(Settings::default());
    let own = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: c, labels: {app: web, istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: a}}\nspec: {containers: []}\nstatus: {phase: Running, podIP: 10.0.2.1}\n";
    set(&mut world, own);
    assert_eq!(way(&world, "Kubernetes//Pod/c/web"), "nowhere");
    gone(&mut world, Kind::Pod, "c", "web");
    assert_eq!(world.addresses().count(), 0);
}

/// In a mesh of 1,000 pods in one namespace that names a waypoint, 10 services.
#[test]
fn a_waypoint_that_changes_costs_who_sees_a_difference() {
    let mut text = String::from(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: wp}}\n---\n",
    );
    for number in 0..1000 {
        text += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{number}, namespace: a, labels: {{app: a{}}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.1.{}.{}}}\n---\n",
            number % 10,
            number / 250,
            number % 250 + 1
        );
    }
    for number in 0..10 {
        text += &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: a}}\nspec: {{clusterIP: 10.2.0.{number}, selector: {{app: a{number}}}, ports: [{{port: 80}}]}}\n---\n"
        );
    }
    let mut world = World::new(Settings::default());
    let everything = set(&mut world, &text);
    assert_eq!(
        (everything.addresses.len(), world.recomputed()),
        (1010, 1010)
    );
    let namespace = |name: &str, labels: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n---\n"
        )
    };
    let pod = |ready: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: wp, namespace: a, labels: {{gateway.networking.k8s.io/gateway-name: wp}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.3.0.1, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: wp, namespace: a, labels: {gateway.networking.k8s.io/gateway-name: wp}}\nspec: {clusterIP: 10.2.1.1, ports: [{port: 15008}]}\n";
    let policy = |name: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: a}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: s1}}], rules: [{{}}]}}\n"
        )
    };
    // (what, text, things made anew, addresses changed)
    let steps = [
        ("a label nobody asks for", namespace("a", "istio.io/use-waypoint: wp, team: x"), 0, 0),
        ("another namespace", namespace("b", "istio.io/use-waypoint: wp"), 0, 0),
        // Until now it might have been for pods too.
        ("its Gateway comes, not ready, for services", gateway("", "", false), 1012, 1000),
        ("its Service comes", service.to_owned(), 1, 1),
        ("its first pod comes", pod("False"), 13, 11),
        ("the pod becomes ready", pod("True"), 1, 1),
        ("its address is reported", gateway("", "", true).replace("10.0.0.9", "10.2.1.1"), 3, 0),
        ("the namespace says what happens if it is not ready", namespace("a", "istio.io/use-waypoint: wp, team: x, ambit.io/waypoint-unready: pass"), 1010, 0),
        ("a policy is attached to a service", policy("p"), 1, 0),
        ("the service changes", "apiVersion: v1\nkind: Service\nmetadata: {name: s1, namespace: a}\nspec: {clusterIP: 10.2.0.1, selector: {app: a1}, ports: [{port: 81}]}\n".to_owned(), 102, 101),
    ];
    for (what, text, made, changed) in steps {
        let before = world.recomputed();
        let names = set(&mut world, &text);
        assert_eq!(
            (world.recomputed() - before, names.addresses.len()),
            (made, changed),
            "{what}"
        );
    }
}

#[test]
fn a_waypoint_is_allowed_only_where_others_are_not() {
    let mut world = World::new(Settings {
        auto_allow_waypoint: true,
        ..Settings::default()
    });
    let named = |world: &World| {
        let pod = resources(world)[&("addresses", "Kubernetes//Pod/a/web".to_owned())].clone();
        let names = pod["workload"]["authorizationPolicies"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        names
            .iter()
            .any(|name| name == "a/istio_allow_waypoint_a_wp")
    };
    let policy = |namespace: &str, action: &str, selector: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{action: {action}, {selector}}}\n---\n"
        )
    };
    set(&mut world, &(gateway("", "", true) + &town("a", "")));
    assert!(!named(&world), "an ALLOW would lock out everybody else");
    for (namespace, selector) in [
        ("a", ""),
        ("istio-system", ""),
        ("a", "selector: {matchLabels: {app: web}}"),
    ] {
        set(&mut world, &policy(namespace, "DENY", selector));
        assert!(!named(&world), "{namespace} {selector}");
        set(&mut world, &policy(namespace, "ALLOW", selector));
        assert!(named(&world), "{namespace} {selector}");
        gone(&mut world, Kind::AuthorizationPolicy, namespace, "p");
        assert!(!named(&world), "{namespace} {selector}");
    }
    // A waypoint of the service alone sends to its pods too.
    set(&mut world, &policy("a", "ALLOW", ""));
    let unnamed = town("a", "").replace(
        "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: a",
        "",
    );
    set(&mut world, &unnamed);
    assert!(!named(&world));
    set(
        &mut world,
        &unnamed.replace(
            "{name: web, namespace: a}\nspec: {clusterIP",
            "{name: web, namespace: a, labels: {istio.io/use-waypoint: wp}}\nspec: {clusterIP",
        ),
    );
    assert!(named(&world));
    set(&mut world, &gateway("", "", false));
    assert!(!named(&world));
    assert!(base().objects.len() > 3);
}

#[test]
fn a_waypoint_is_not_allowed_because_of_a_rehearsal_which_locks_nobody_out() {
    let mut world = World::new(Settings {
        auto_allow_waypoint: true,
        dry_run: true,
        ..Settings::default()
    });
    let named = |world: &World| {
        let pod = resources(world)[&("addresses", "Kubernetes//Pod/a/web".to_owned())].clone();
        let names = pod["workload"]["authorizationPolicies"].as_array().cloned();
        let mut names = names.unwrap_or_default().into_iter();
        names.any(|name| name == "a/istio_allow_waypoint_a_wp")
    };
    let policy = |rehearsed: bool, selector: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: a, annotations: {{istio.io/dry-run: '{rehearsed}'}}}}\n\
             spec: {{action: ALLOW, {selector}}}\n---\n"
        )
    };
    set(&mut world, &(gateway("", "", true) + &town("a", "")));
    for selector in ["", "selector: {matchLabels: {app: web}}"] {
        for rehearsed in [true, false, true] {
            set(&mut world, &policy(rehearsed, selector));
            assert_eq!(named(&world), !rehearsed, "{selector}");
        }
    }
}

#[test]
fn who_names_the_gateway_of_a_network_as_waypoint_names_no_policy_that_nobody_sends() {
    let mut world = World::new(Settings {
        auto_allow_waypoint: true,
        ..Settings::default()
    });
    let allow = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {action: ALLOW}\n---\n";
    let east_west = gateway("", "", true).replace("istio-waypoint", "istio-east-west");
    set(&mut world, &(east_west + &town("a", "") + allow));
    for ready in [gateway("", "", true), gateway("", "", false)] {
        let pod = resources(&world)[&("addresses", "Kubernetes//Pod/a/web".to_owned())].clone();
        let names = pod["workload"]["authorizationPolicies"].as_array().cloned();
        for name in names.unwrap_or_default() {
            assert!(
                world.authorization(name.as_str().unwrap()).is_some(),
                "{name}"
            );
        }
        set(&mut world, &ready);
    }
}

#[test]
fn a_waypoint_that_somebody_else_runs_is_where_its_gateway_says() {
    let mut world = World::new(Settings::default());
    let at = |address: &str| {
        let asked = format!("spec: {{addresses: [{{type: IPAddress, value: {address}}}], ");
        gateway("", "", false).replace("spec: {", &asked)
    };
    let address = |world: &World| {
        let service = "a/web.a.svc.cluster.local".to_owned();
        resources(world)[&("addresses", service)]["service"]["waypoint"]["address"].clone()
    };
    set(&mut world, &(at("10.0.0.9") + &town("a", "")));
    assert_eq!(way(&world, "a/web.a.svc.cluster.local"), "waypoint");
    let before = address(&world);
    assert!(!before.is_null());
    set(&mut world, &at("10.0.0.10"));
    let after = address(&world);
    assert!(!after.is_null() && before != after);
    set(&mut world, &gateway("", "", false));
    assert_eq!(way(&world, "a/web.a.svc.cluster.local"), "nowhere");
}

#[test]
fn who_is_handed_to_others_or_back_at_the_same_address_is_told_his_services_accordingly() {
    let mut world = World::new(Settings::default());
    let of_class = |class: &str| {
        let asked = "spec: {addresses: [{type: IPAddress, value: 10.0.0.9}], ";
        let gateway = gateway("", "", false).replace("spec: {", asked);
        gateway.replace("istio-waypoint", class)
    };
    let is_told = |world: &World| {
        let mut all = world.waypoint_resources();
        all.any(|it| &*it.name == "a/wp/fronted/service/a/web.a.svc.cluster.local")
    };
    set(&mut world, &(of_class("istio-waypoint") + &town("a", "")));
    assert!(is_told(&world));
    set(&mut world, &of_class("istio-remote"));
    assert!(!is_told(&world), "others run it now");
    set(&mut world, &of_class("istio-waypoint"));
    assert!(is_told(&world), "it is ours again");
}

#[test]
fn a_waypoint_is_allowed_where_it_sends_from_when_it_lets_that_namespace_in() {
    let allow = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: b}\nspec: {action: ALLOW}\n---\n";
    let choice = "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: a";
    // The namespace names it, or the service alone.
    let everybody = town("b", "");
    let service = everybody.replace(choice, "").replace(
        "{name: web, namespace: b}\nspec: {clusterIP",
        &format!("{{name: web, namespace: b, labels: {{{choice}}}}}\nspec: {{clusterIP"),
    );
    for text in [everybody, service] {
        let mut world = World::new(Settings {
            auto_allow_waypoint: true,
            ..Settings::default()
        });
        let named = |world: &World| {
            let pod = resources(world)[&("addresses", "Kubernetes//Pod/b/web".to_owned())].clone();
            let names = pod["workload"]["authorizationPolicies"].as_array().cloned();
            let mut names = names.unwrap_or_default().into_iter();
            names.any(|name| name == "a/istio_allow_waypoint_a_wp")
        };
        set(&mut world, &(gateway("", "", true) + &text + allow));
        assert!(!named(&world), "it does not let them in: {text}");
        let open = ", allowedRoutes: {namespaces: {from: All}}";
        set(&mut world, &gateway("", open, true));
        assert!(named(&world), "its requests would be denied: {text}");
        set(&mut world, &gateway("", "", true));
        assert!(!named(&world), "it has no business there any more: {text}");
    }
}
