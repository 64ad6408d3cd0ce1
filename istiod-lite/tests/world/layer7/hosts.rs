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
