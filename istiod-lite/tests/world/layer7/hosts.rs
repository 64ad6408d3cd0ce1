//! VirtualServices.

use api::k8s::objects::Kind;
use api::waypoint as wire;
use wire::resource::Kind as Told;

use super::{gone, names, policy, said, service, set, told, world};

fn virtual_service(namespace: &str, name: &str, spec: &str) -> String {
    policy(
        "VirtualService",
        "networking.istio.io/v1",
        namespace,
        name,
        spec,
    )
}

fn route(world: &istiod_lite::world::World, name: &str) -> wire::Route {
    match told(world).remove(name) {
        Some(Told::Route(it)) => it,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn each_entry_is_a_route_of_the_services_it_names() {
    let mut world = world();
    let spec = "{hosts: [web], http: [{match: [{uri: {prefix: /v2}}], rewrite: {uri: /}, route: [{destination: {host: api.b.svc.cluster.local}, weight: 20}, {destination: {host: db, port: {number: 99}}, weight: 80}]}, {route: [{destination: {host: web, subset: v1}}]}]}";
    set(&mut world, &virtual_service("a", "v", spec));
    assert_eq!(
        names(&world),
        ["a/wp/virtualservice/a/v/0", "a/wp/virtualservice/a/v/1"]
    );
    let first = route(&world, "a/wp/virtualservice/a/v/0");
    assert_eq!(
        super::targets(&first.parents),
        ["a/web.a.svc.cluster.local:0"]
    );
    assert_eq!(first.precedence(), wire::route::Precedence::Listed);
    let Some(wire::backend::To::Service(to)) = &first.backends[0].to else {
        panic!("{first:?}")
    };
    assert_eq!(
        (to.namespace.as_str(), to.port, first.backends[0].weight),
        ("b", 80, 20)
    );
    assert!(
        matches!(&first.backends[1].to, Some(wire::backend::To::Invalid(why)) if why.contains("no port 99"))
    );
    let second = route(&world, "a/wp/virtualservice/a/v/1");
    assert_eq!(
        (
            second.backends[0].subset.as_str(),
            second.backends[0].weight
        ),
        ("v1", 1)
    );
    let (status, reason, message) = said(&world, Kind::VirtualService, "a", "v");
    assert_eq!((status, reason.as_str()), (false, "PartiallyInvalid"));
    assert!(
        message.contains("routes requests at a/wp") && message.contains("no port 99"),
        "{message}"
    );
    // The port comes.
    set(
        &mut world,
        &service("a", "db", "istio.io/use-waypoint: wp").replace("port: 80", "port: 99"),
    );
    assert!(said(&world, Kind::VirtualService, "a", "v").0);
    gone(&mut world, Kind::VirtualService, "a", "v");
    assert_eq!(names(&world), [""; 0]);
}

#[test]
fn only_the_services_namespace_and_the_waypoints_say_where_its_requests_go() {
    let mut world = world();
    let spec = |hosts: &str, more: &str| {
        format!(
            "{{hosts: [{hosts}]{more}, http: [{{route: [{{destination: {{host: web.a.svc.cluster.local}}}}]}}]}}"
        )
    };
    let web = "web.a.svc.cluster.local";
    // (namespace, hosts, more, whether it is for the waypoint a/wp of web)
    let cases = [
        ("a", web, "", true),
        ("a", "'*.a.svc.cluster.local'", "", true),
        ("a", "'*'", ", gateways: [mesh, edge]", true),
        ("a", web, ", gateways: [edge]", false),
        ("c", web, "", false),
        ("a", web, ", exportTo: ['.']", true),
        ("a", web, ", exportTo: [c]", false),
        ("a", web, ", exportTo: [c, a]", true),
        ("a", web, ", exportTo: ['*']", true),
        ("a", web, ", exportTo: ['~']", false),
        ("a", "other", "", false),
    ];
    for (namespace, hosts, more, expected) in cases {
        set(
            &mut world,
            &virtual_service(namespace, "v", &spec(hosts, more)),
        );
        let found = names(&world)
            .iter()
            .any(|it| it.starts_with("a/wp/virtualservice"));
        assert_eq!(found, expected, "{namespace} {hosts} {more}");
        gone(&mut world, Kind::VirtualService, namespace, "v");
    }
    // A service that comes later, of a host with a star.
    set(
        &mut world,
        &virtual_service("a", "v", &spec("'*.a.svc.cluster.local'", "")),
    );
    set(
        &mut world,
        &service("a", "new", "istio.io/use-waypoint: wp"),
    );
    let first = route(&world, "a/wp/virtualservice/a/v/0");
    assert_eq!(first.parents.len(), 3);
}

/// A waypoint asks for its clients: what is exported is exported to its namespace, whoever wrote it and wherever.
#[test]
fn what_is_exported_is_for_waypoints_of_those_namespaces() {
    let elsewhere = "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: b";
    // (exportTo, whether it is for the service's waypoint in its own namespace, in another one)
    for (export_to, own, other) in [
        ("", true, true),
        ("exportTo: ['*'],", true, true),
        ("exportTo: ['.'],", true, false),
        ("exportTo: [a],", true, false),
        ("exportTo: [b],", false, true),
        ("exportTo: ['.', b],", true, true),
        ("exportTo: ['~'],", false, false),
    ] {
        let host = "web.a.svc.cluster.local";
        let route = format!(
            "{{{export_to} hosts: [{host}], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}"
        );
        let rule = format!(
            "{{{export_to} host: {host}, trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: 1}}}}}}}}"
        );
        let text = virtual_service("a", "v", &route)
            + &policy("DestinationRule", "networking.istio.io/v1", "a", "r", &rule);
        for (labels, gateway, expected) in [
            ("istio.io/use-waypoint: wp", "a", own),
            (elsewhere, "b", other),
        ] {
            let mut world = world();
            set(&mut world, &(service("a", "web", labels) + &text));
            for kind in ["virtualservice", "destinationrule"] {
                let told = names(&world);
                let name = format!("{gateway}/wp/{kind}/a/");
                let found = told.iter().any(|it| it.starts_with(&name));
                assert_eq!(found, expected, "{export_to} {kind} at {gateway}: {told:?}");
            }
        }
    }
}

#[test]
fn a_service_entry_that_is_to_be_seen_by_some_is_told_that_all_see_it() {
    let mut world = world();
    let entry = |to: &str| {
        let spec = format!(
            "{{hosts: [out.example], exportTo: [{to}], ports: [{{number: 80, name: http}}], resolution: DNS}}"
        );
        policy("ServiceEntry", "networking.istio.io/v1", "a", "e", &spec)
    };
    set(&mut world, &entry("'.'"));
    let (_, reason, message) = said(&world, Kind::ServiceEntry, "a", "e");
    assert_eq!(reason, "PartiallyInvalid");
    assert!(message.starts_with("exportTo has no effect"), "{message}");
    set(&mut world, &entry("'*'"));
    let key = api::k8s::objects::ObjectKey::new(Kind::ServiceEntry, "a", "e");
    assert!(world.status(&key).is_none_or(|it| it.conditions.is_empty()));
}

fn pod(namespace: &str, name: &str, labels: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
         spec: {{nodeName: n, containers: [{{name: app}}]}}\nstatus: {{phase: Running, podIP: {ip}}}\n---\n"
    )
}

#[test]
fn labels_of_clients_are_told_as_who_has_them_and_again_when_somebody_comes_or_goes() {
    let mut world = world();
    let entry = |labels: &str, more: &str| {
        format!(
            "{{match: [{{sourceLabels: {{{labels}}}{more}}}], route: [{{destination: {{host: web}}}}]}}"
        )
    };
    let spec = format!(
        "{{hosts: [web], http: [{}, {}, {{route: [{{destination: {{host: web}}}}]}}], tcp: [{}]}}",
        entry("tier: front", ""),
        entry("tier: front, track: canary", ", sourceNamespace: b"),
        entry("tier: front", ", port: 80"),
    );
    let text = pod("a", "one", "tier: front, track: canary", "10.1.0.1")
        + &pod("b", "two", "tier: front, track: canary", "10.1.0.2")
        + &pod("b", "other", "tier: back", "10.1.0.3");
    set(&mut world, &(text + &virtual_service("a", "v", &spec)));
    let clients = |world: &istiod_lite::world::World| {
        let uids = |it: &Option<wire::Workloads>| {
            let uids = it.iter().flat_map(|it| &it.uids);
            let names = uids.map(|it| it.trim_start_matches("Kubernetes//Pod/").to_owned());
            it.is_some().then(|| names.collect::<Vec<_>>())
        };
        let http = [0, 1, 2].map(|index| {
            let route = route(world, &format!("a/wp/virtualservice/a/v/{index}"));
            assert!(route.matches.iter().all(|it| it.source_labels.is_empty()));
            uids(&route.matches.first()?.source_workloads)
        });
        let tcp = match told(world).remove("a/wp/virtualservice/a/v/tcp0.0") {
            Some(Told::TcpRoute(it)) => uids(&it.source_workloads),
            other => panic!("{other:?}"),
        };
        (http, tcp)
    };
    let some = |names: &[&str]| Some(names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
    let both = some(&["a/one", "b/two"]);
    assert_eq!(
        clients(&world),
        ([both.clone(), some(&["b/two"]), None], both)
    );
    assert!(said(&world, Kind::VirtualService, "a", "v").0);

    // One more: what asks for it is told, and nothing else.
    let changed = set(&mut world, &pod("c", "three", "tier: front", "10.1.0.4"));
    let changed: Vec<&str> = changed.resources.iter().map(|it| &**it).collect();
    assert_eq!(
        changed,
        [
            "a/wp/virtualservice/a/v/0",
            "a/wp/virtualservice/a/v/tcp0.0"
        ]
    );
    let three = some(&["a/one", "b/two", "c/three"]);
    assert_eq!(clients(&world).0[0], three);

    // One loses a label, one goes, one comes whom nobody asks for.
    set(&mut world, &pod("b", "two", "tier: front", "10.1.0.2"));
    assert_eq!(clients(&world).0[1], some(&[]));
    gone(&mut world, Kind::Pod, "a", "one");
    assert_eq!(clients(&world).1, some(&["b/two", "c/three"]));
    let before = world.recomputed();
    set(&mut world, &pod("c", "four", "tier: back", "10.1.0.5"));
    assert_eq!(world.recomputed() - before, 1, "only the pod itself");

    // Who asks no longer is not made anew.
    gone(&mut world, Kind::VirtualService, "a", "v");
    let before = world.recomputed();
    set(&mut world, &pod("c", "five", "tier: front", "10.1.0.6"));
    assert_eq!(world.recomputed() - before, 1);
}
