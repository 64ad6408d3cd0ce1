//! Whatever changes in whatever order: what was touched is all that has to be made anew.

use api::{waypoint as wire, workload};
use mesh::{Step, Update};
use proptest::prelude::*;

use super::{
    GATEWAY, Proxy, Seen, name, named, policy, reference, resource, route, services, words,
};

#[derive(Debug, Clone)]
enum Change {
    Route(u8, u8, Vec<u8>, Vec<u8>),
    Policy(u8, u8, u8),
    Towards(u8, u8, u8),
    Provider(u8, u8),
    Gone(u8, u8),
    Service(u8, Option<u8>),
    Pod(u8, Option<Vec<u8>>),
    Publish(bool),
}

const HOSTS: [&str; 4] = ["a", "b", "c", "d"];

fn change() -> impl Strategy<Value = Change> {
    let host = || 0..4u8;
    let hosts = || prop::collection::vec(host(), 0..3);
    // One of four is bad.
    let mark = || 0..4u8;
    prop_oneof![
        4 => (0..4u8, mark(), hosts(), hosts()).prop_map(|(key, mark, parents, to)| Change::Route(key, mark, parents, to)),
        3 => (0..4u8, mark(), 0..9u8).prop_map(|(key, mark, target)| Change::Policy(key, mark, target)),
        3 => (0..4u8, mark(), host()).prop_map(|(key, mark, host)| Change::Towards(key, mark, host)),
        1 => (0..2u8, mark()).prop_map(|(key, mark)| Change::Provider(key, mark)),
        3 => (0..4u8, 0..4u8).prop_map(|(kind, key)| Change::Gone(kind, key)),
        3 => (host(), proptest::option::weighted(0.7, 0..3u8)).prop_map(|(host, ports)| Change::Service(host, ports)),
        3 => (0..4u8, proptest::option::weighted(0.7, hosts())).prop_map(|(pod, of)| Change::Pod(pod, of)),
        4 => prop::bool::weighted(0.8).prop_map(Change::Publish),
    ]
}

fn key(kind: u8, number: u8) -> String {
    match kind {
        // Two rules each of two routes.
        0 => format!("httproute/shop/r{}/{}", number / 2, number % 2),
        1 => format!("authorizationpolicy/shop/p{number}"),
        2 => format!("destinationrule/shop/d{number}"),
        _ => format!("provider/x{number}"),
    }
}

fn mark(number: u8) -> &'static str {
    ["Bad", "one", "two", "three"][usize::from(number)]
}

fn hosts(numbers: &[u8]) -> Vec<&'static str> {
    numbers
        .iter()
        .map(|number| HOSTS[usize::from(*number)])
        .collect()
}

fn said(change: &Change, update: &mut Update) {
    let found = match change {
        Change::Route(number, marked, parents, to) => {
            route(&key(0, *number), mark(*marked), &hosts(parents), &hosts(to))
        }
        Change::Policy(number, marked, target) => {
            let target = match target {
                0..=3 => wire::target::To::Service(reference(HOSTS[usize::from(*target)])),
                4 | 5 => wire::target::To::Route(format!("httproute/shop/r{}", target - 4)),
                6 => wire::target::To::Gateway(GATEWAY.to_owned()),
                _ => wire::target::To::Service(reference("elsewhere")),
            };
            policy(&key(1, *number), mark(*marked), target)
        }
        Change::Towards(number, marked, host) => {
            let policy = wire::BackendPolicy {
                service: Some(reference(HOSTS[usize::from(*host)])),
                ..Default::default()
            };
            let kind = wire::resource::Kind::BackendPolicy(policy);
            resource(&key(2, *number), mark(*marked), kind)
        }
        Change::Provider(number, marked) => {
            let kind = wire::resource::Kind::Provider(wire::Provider::default());
            resource(&key(3, *number), mark(*marked), kind)
        }
        Change::Gone(kind, number) => {
            update.resources.removed.push(name(&key(*kind, *number)));
            return;
        }
        Change::Service(host, ports) => return service(HOSTS[usize::from(*host)], *ports, update),
        Change::Pod(number, of) => return pod(*number, of.as_deref(), update),
        Change::Publish(_) => return,
    };
    update.resources.set.push(named(&found));
}

fn service(host: &str, ports: Option<u8>, update: &mut Update) {
    let Some(ports) = ports else {
        update.addresses.removed.push(format!("shop/{host}").into());
        return;
    };
    update.set_service(workload::Service {
        name: host.to_owned(),
        namespace: "shop".to_owned(),
        hostname: host.to_owned(),
        ports: (0..u32::from(ports))
            .map(|port| workload::Port {
                service_port: port + 80,
                target_port: port + 8080,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    });
}

fn pod(number: u8, of: Option<&[u8]>, update: &mut Update) {
    let uid = format!("pod{number}");
    let Some(of) = of else {
        update.addresses.removed.push(uid.into());
        return;
    };
    update.set_workload(workload::Workload {
        uid,
        services: hosts(of)
            .into_iter()
            .map(|host| (format!("shop/{host}"), workload::PortList::default()))
            .collect(),
        ..Default::default()
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_was_touched_is_all_that_has_to_be_made_anew(changes in prop::collection::vec(change(), 1..80)) {
        let mut proxy = Proxy::new();
        let mut update = Update::default();
        for change in changes {
            said(&change, &mut update);
            let Change::Publish(complete) = change else { continue };
            update.step = if complete { Step::Complete } else { Step::Part };
            proxy.keeper.apply(std::mem::take(&mut update));
            if !complete {
                continue;
            }
            let (resources, mesh) = (proxy.state.said(), proxy.mesh.load_full());
            let whole: Seen = services(&resources, &mesh)
                .into_iter()
                .map(|service| (service.clone(), words(&service, &resources, &mesh)))
                .collect();
            prop_assert_eq!(&*proxy.state.load_full(), &whole);
        }
    }
}
