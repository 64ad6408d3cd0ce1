//! "Only through my waypoint": who may connect to a workload then, as a ztunnel would judge it.

use std::time::Duration;

use api::k8s::objects::{Kind, ObjectKey};
use api::security::Authorization;
use api::workload::{Address, address};
use istiod_lite::world::{Settings, World};
use mesh::{Connection, Policy, SourceIdentity};
use prost::Message as _;

use super::{gone, set};

const ONLY: &str = "ambit.io/waypoint-only: 'true'";
const NOT: &str = "ambit.io/waypoint-only: 'false'";
const POD: &str = "Kubernetes//Pod/a/web";

fn namespace(labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{{labels}}}}}\n---\n")
}

/// A waypoint of namespace a, whose pods have its name as account.
fn gateway(name: &str, labels: &str, more: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: a, labels: {{{labels}}}{more}}}\n\
         spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n\
         status: {{addresses: [{{type: IPAddress, value: 10.0.0.9}}]}}\n---\n"
    )
}

/// A service of pods `web`, whose port is 80 and on the pods another.
fn service(name: &str, target: u16, labels: &[&str]) -> String {
    let labels = labels.join(", ");
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a, labels: {{{labels}}}}}\n\
         spec: {{clusterIP: 10.0.1.1, selector: {{app: web}}, ports: [{{port: 80, targetPort: {target}}}]}}\n---\n"
    )
}

fn pod(labels: &[&str]) -> String {
    let labels = [&["app: web"][..], labels].concat().join(", ");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: a, labels: {{{labels}}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.0.2.1}}\n---\n"
    )
}

fn entry(labels: &[&str]) -> String {
    let labels = [&["app: web"][..], labels].concat().join(", ");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: web, namespace: a, labels: {{{labels}}}}}\nspec: {{address: 10.0.2.2}}\n---\n"
    )
}

fn uses(waypoint: &str) -> String {
    format!("istio.io/use-waypoint: {waypoint}")
}

fn running(text: &str) -> World {
    running_as(Settings::default(), text)
}

fn running_as(settings: Settings, text: &str) -> World {
    let mut world = World::new(settings);
    set(&mut world, text);
    world.pass(Duration::ZERO);
    world
}

/// Those of waypoints `one` and `two`, client `phone` and `-`, who has no identity, that may connect there.
fn may(world: &World, workload: &str, port: u16) -> String {
    may_of("cluster.local", world, workload, port)
}

fn may_of(trust_domain: &str, world: &World, workload: &str, port: u16) -> String {
    let address = Address::decode(world.address(workload).unwrap().encoded.clone()).unwrap();
    let Some(address::Type::Workload(workload)) = address.r#type else {
        panic!("{workload} is no workload")
    };
    let policies = workload.authorization_policies.iter().map(|name| {
        let policy = world.authorization(name).expect("what is named is there");
        Policy::try_from(Authorization::decode(policy.encoded.clone()).unwrap()).unwrap()
    });
    let policies: Vec<Policy> = policies.collect();
    assert!(policies.iter().all(|it| it.action == mesh::Action::Deny));
    let ip = [10, 0, 9, 9].into();
    let may = |name: &&str| {
        let source = SourceIdentity {
            trust_domain,
            namespace: "a",
            service_account: name,
        };
        let connection = Connection {
            source: (*name != "-").then_some(source),
            source_ip: ip,
            destination_ip: ip,
            destination_port: port,
        };
        !policies.iter().any(|it| it.matches(&connection))
    };
    let who: Vec<&str> = ["one", "two", "phone", "-"]
        .into_iter()
        .filter(may)
        .collect();
    who.join(" ")
}

const ALL: &str = "one two phone -";

fn said(world: &World, kind: Kind, name: &str) -> Option<(bool, String, String)> {
    let status = world.status(&ObjectKey::new(kind, "a", name))?;
    let mut conditions = status.conditions.iter();
    let condition = conditions.find(|it| it.r#type == "ambit.io/WaypointOnly")?;
    Some((
        condition.status,
        condition.reason.clone(),
        condition.message.clone(),
    ))
}

fn two() -> String {
    gateway("one", "istio.io/waypoint-for: all", "")
        + &gateway("two", "istio.io/waypoint-for: all", "")
}

#[test]
fn a_service_that_demands_it_is_reached_through_its_waypoint_and_its_pods_on_other_ports_by_everybody()
 {
    let mut world =
        running(&(two() + &service("web", 8080, &[&uses("one")]) + &pod(&[]) + &entry(&[])));
    assert_eq!(may(&world, POD, 8080), ALL);
    assert_eq!(said(&world, Kind::Service, "web"), None);
    set(&mut world, &service("web", 8080, &[&uses("one"), ONLY]));
    for workload in [POD, "Kubernetes/networking.istio.io/WorkloadEntry/a/web"] {
        assert_eq!(may(&world, workload, 8080), "one");
        assert_eq!(may(&world, workload, 9090), ALL);
    }
    let (status, reason, message) = said(&world, Kind::Service, "web").unwrap();
    assert!(
        status && reason == "Enforced" && message.contains("a/one"),
        "{message}"
    );
    let changed = set(&mut world, &service("web", 8081, &[&uses("one"), ONLY]));
    assert_eq!(changed.authorizations.len(), 2);
    assert_eq!(
        (may(&world, POD, 8080), may(&world, POD, 8081)),
        (ALL.into(), "one".into())
    );
    // The label goes, or the service.
    set(&mut world, &service("web", 8081, &[&uses("one"), NOT]));
    assert_eq!(may(&world, POD, 8081), ALL);
    assert_eq!(said(&world, Kind::Service, "web"), None);
    set(&mut world, &service("web", 8081, &[&uses("one"), ONLY]));
    gone(&mut world, Kind::Service, "a", "web");
    assert_eq!(may(&world, POD, 8081), ALL);
    assert_eq!(world.authorizations().count(), 0);
}

#[test]
fn services_with_different_waypoints_let_in_each_its_own_and_on_one_port_both() {
    let mut world = running(
        &(two()
            + &service("web", 8080, &[&uses("one"), ONLY])
            + &service("db", 9090, &[&uses("two"), ONLY])
            + &pod(&[])),
    );
    let ports = |world: &World| [8080, 9090].map(|port| may(world, POD, port));
    assert_eq!(ports(&world), ["one", "two"]);
    set(&mut world, &service("db", 8080, &[&uses("two")]));
    assert_eq!(ports(&world), ["one two", ALL]);
}

#[test]
fn without_a_waypoint_nobody_may_and_the_status_says_so() {
    let mut world = running(&(service("web", 8080, &[ONLY]) + &pod(&[])));
    assert_eq!(may(&world, POD, 8080), "");
    let (status, reason, message) = said(&world, Kind::Service, "web").unwrap();
    assert!(
        !status && reason == "NoWaypoint" && message.contains("refuse"),
        "{message}"
    );
    set(&mut world, &service("web", 8080, &[&uses("one"), ONLY]));
    assert_eq!(may(&world, POD, 8080), "");
    set(&mut world, &two());
    assert_eq!(may(&world, POD, 8080), "one");
    assert!(said(&world, Kind::Service, "web").unwrap().0);
    // One that does not take the traffic of services is none.
    set(
        &mut world,
        &gateway("one", "istio.io/waypoint-for: workload", ""),
    );
    world.pass(Duration::from_secs(10));
    assert_eq!(may(&world, POD, 8080), "");
    gone(&mut world, Kind::Gateway, "a", "one");
    assert_eq!(may(&world, POD, 8080), "");
    assert_eq!(may(&world, POD, 8081), ALL);
}

#[test]
fn who_moves_to_another_waypoint_lets_the_earlier_one_in_while_it_leaves() {
    let mut world = running(&(two() + &service("web", 8080, &[&uses("one"), ONLY]) + &pod(&[])));
    set(&mut world, &service("web", 8080, &[&uses("two"), ONLY]));
    assert_eq!(may(&world, POD, 8080), "one two");
    world.pass(Duration::from_secs(10));
    assert_eq!(may(&world, POD, 8080), "two");
    assert!(
        !said(&world, Kind::Service, "web")
            .unwrap()
            .2
            .contains("a/one")
    );
    // Its pods get another account: the gateway is the same, who it is differs.
    let account = ", annotations: {gateway.istio.io/service-account: phone}";
    set(
        &mut world,
        &gateway("two", "istio.io/waypoint-for: all", account),
    );
    assert_eq!(may(&world, POD, 8080), "phone");
}

#[test]
fn a_pod_or_an_entry_that_demands_it_is_closed_on_every_port() {
    let uid = "Kubernetes/networking.istio.io/WorkloadEntry/a/web";
    for (workload, write) in [
        (POD, pod as fn(&[&str]) -> String),
        (uid, entry as fn(&[&str]) -> String),
    ] {
        let mut world = running(
            &(two() + &service("web", 8080, &[&uses("one")]) + &write(&[&uses("two"), ONLY])),
        );
        assert_eq!(may(&world, workload, 9090), "two");
        assert_eq!(
            may(&world, workload, 8080),
            "one two",
            "of its service, and its own"
        );
        set(&mut world, &write(&[ONLY]));
        world.pass(Duration::from_secs(10));
        assert_eq!(may(&world, workload, 9090), "");
        assert_eq!(may(&world, workload, 8080), "one");
        set(&mut world, &write(&[&uses("two")]));
        assert_eq!(may(&world, workload, 9090), ALL);
    }
    let world = running(&(two() + &entry(&[&uses("two"), ONLY])));
    assert!(said(&world, Kind::WorkloadEntry, "web").unwrap().0);
}

#[test]
fn a_namespace_speaks_for_its_services_and_for_who_names_a_waypoint_of_workloads() {
    let for_services = gateway("one", "istio.io/waypoint-for: service", "");
    let named = uses("one");
    let mut world =
        running(&(for_services + &service("web", 8080, &[]) + &pod(&[]) + &namespace(&named)));
    assert_eq!(may(&world, POD, 8080), ALL);
    set(&mut world, &namespace(&format!("{named}, {ONLY}")));
    let ports = |world: &World| [8080, 9090].map(|port| may(world, POD, port));
    assert_eq!(
        ports(&world),
        ["one", ALL],
        "no service is there on the other port"
    );
    set(
        &mut world,
        &gateway("one", "istio.io/waypoint-for: all", ""),
    );
    assert_eq!(ports(&world), ["one", "one"]);
    // What they say themselves goes before it.
    set(&mut world, &pod(&[NOT]));
    assert_eq!(ports(&world), [ALL, ALL]);
    set(&mut world, &service("web", 8080, &[ONLY]));
    assert_eq!(ports(&world), ["one", ALL]);
    set(&mut world, &(pod(&[]) + &service("web", 8080, &[NOT])));
    assert_eq!(ports(&world), ["one", "one"], "of the pod itself");
    set(
        &mut world,
        &gateway("one", "istio.io/waypoint-for: service", ""),
    );
    world.pass(Duration::from_secs(10));
    assert_eq!(ports(&world), [ALL, ALL]);
    set(&mut world, &service("web", 8080, &[]));
    assert_eq!(ports(&world), ["one", ALL]);
    set(&mut world, &namespace(&named));
    assert_eq!(ports(&world), [ALL, ALL]);
    assert_eq!(world.authorizations().count(), 0);
}

#[test]
fn the_pods_of_a_waypoint_are_never_closed() {
    let its = "gateway.networking.k8s.io/gateway-name: one";
    let world = running(
        &(two()
            + &namespace(&format!("{}, {ONLY}", uses("one")))
            + &service("one", 8080, &[its])
            + &service("web", 8080, &[ONLY])
            + &pod(&[its, ONLY])),
    );
    assert_eq!(may(&world, POD, 8080), ALL);
    assert_eq!(said(&world, Kind::Service, "one"), None);
}

#[test]
fn what_cannot_be_read_is_demanded_and_said() {
    let yes = "ambit.io/waypoint-only: 'yes'";
    let mut world = running(&(two() + &service("web", 8080, &[&uses("one")])));
    let remarks = set(
        &mut world,
        &(service("web", 8080, &[&uses("one"), yes]) + &pod(&[yes])),
    )
    .remarks;
    assert_eq!(may(&world, POD, 8080), "one");
    assert_eq!(may(&world, POD, 9090), "");
    let (status, reason, message) = said(&world, Kind::Service, "web").unwrap();
    assert!(
        !status && reason == "Invalid" && message.contains("\"yes\""),
        "{message}"
    );
    assert_eq!(
        remarks
            .iter()
            .filter(|(_, it)| it.contains("\"yes\""))
            .count(),
        2
    );
}

#[test]
fn a_waypoint_is_let_in_by_every_name_of_the_mesh_and_no_other() {
    let settings = Settings {
        trust_domain: "new.org".into(),
        trust_domain_aliases: vec!["old.org".into()],
        ..Settings::default()
    };
    let world = running_as(
        settings,
        &(two() + &service("web", 8080, &[&uses("one"), ONLY]) + &pod(&[])),
    );
    for domain in ["new.org", "old.org"] {
        assert_eq!(may_of(domain, &world, POD, 8080), "one");
    }
    assert_eq!(may_of("else.org", &world, POD, 8080), "");
}

#[test]
fn where_nobody_demands_it_nothing_is_made_for_it() {
    let text = two() + &service("web", 8080, &[&uses("one")]) + &pod(&[]);
    let mut world = running(&text);
    let account = ", annotations: {gateway.istio.io/service-account: phone}";
    let cost = |world: &mut World| {
        let before = world.recomputed();
        set(
            world,
            &gateway("one", "istio.io/waypoint-for: all", account),
        );
        set(world, &gateway("one", "istio.io/waypoint-for: all", ""));
        world.recomputed() - before
    };
    let unasked = cost(&mut world);
    set(&mut world, &service("web", 8080, &[&uses("one"), ONLY]));
    // The pod and the service, twice.
    assert_eq!(cost(&mut world), unasked + 4);
}
