//! Who can be chosen at all, and what is said when nobody can.

use std::sync::Arc;

use api::waypoint as wire;
use api::waypoint::load_balancer::Simple;
use api::workload;
use api::workload::load_balancing::{HealthPolicy, Mode};
use waypoint::balance::{Group, Hints, NoEndpoint, Policy};

use super::shop::{Shop, by, group, pod, service, weighing};

fn refusal(shop: &mut Shop, group: &Arc<Group>) -> NoEndpoint {
    shop.ask(group, &Hints::default()).unwrap_err()
}

fn plain() -> Arc<Group> {
    group(&wire::BackendPolicy::default())
}

fn sick(name: &str) -> workload::Workload {
    workload::Workload {
        status: workload::WorkloadStatus::Unhealthy.into(),
        ..pod(name)
    }
}

#[test]
fn every_reason_is_told_apart() {
    assert_eq!(refusal(&mut Shop::new([]), &plain()), NoEndpoint::Empty);
    assert_eq!(
        refusal(&mut Shop::new([sick("a")]), &plain()),
        NoEndpoint::Unhealthy
    );
    assert_eq!(
        refusal(&mut Shop::new([weighing("a", 0)]), &plain()),
        NoEndpoint::Unhealthy
    );
    let nowhere = workload::Workload {
        addresses: Vec::new(),
        ..pod("a")
    };
    assert_eq!(
        refusal(&mut Shop::new([nowhere]), &plain()),
        NoEndpoint::Unhealthy
    );
    let other_port = Arc::new(Group::new(81, None, Policy::default()));
    assert_eq!(
        refusal(&mut Shop::new([pod("a")]), &other_port),
        NoEndpoint::NoPort(81)
    );
    let through = group(&by(Simple::Passthrough));
    assert_eq!(
        refusal(&mut Shop::new([pod("a")]), &through),
        NoEndpoint::Passthrough
    );
}

#[test]
fn a_service_that_passes_through_does_so_only_where_it_has_no_endpoint() {
    let mut through = service();
    through.load_balancing = Some(workload::LoadBalancing {
        mode: Mode::Passthrough.into(),
        ..Default::default()
    });
    let mut shop = Shop::new([]);
    shop.service(through);
    assert_eq!(refusal(&mut shop, &plain()), NoEndpoint::Passthrough);
    shop.come([pod("a")]);
    assert_eq!(shop.one(&plain()), "a");
}

#[test]
fn the_sick_are_chosen_only_where_all_count() {
    let mut shop = Shop::new([sick("a"), pod("b")]);
    let group = plain();
    assert_eq!(shop.counts(&group, 50).len(), 1);
    let mut all = service();
    all.load_balancing = Some(workload::LoadBalancing {
        health_policy: HealthPolicy::AllowAll.into(),
        ..Default::default()
    });
    shop.service(all);
    assert_eq!(shop.counts(&group, 50).len(), 2);
}

#[test]
fn a_subset_is_its_workloads_only() {
    let mut shop = Shop::new([pod("a"), pod("b"), pod("c")]);
    let subset = |uids: &[&str]| {
        let uids = uids.iter().map(|uid| (*uid).to_owned()).collect();
        Arc::new(Group::new(80, Some(uids), Policy::default()))
    };
    let some = subset(&["c", "a", "gone"]);
    assert_eq!(
        shop.counts(&some, 100).into_keys().collect::<Vec<_>>(),
        ["a", "c"]
    );
    assert_eq!(refusal(&mut shop, &subset(&[])), NoEndpoint::Unhealthy);
}

#[test]
fn an_endpoints_own_port_goes_before_the_services() {
    let own = workload::PortList {
        ports: vec![workload::Port {
            service_port: 80,
            target_port: 9090,
            ..Default::default()
        }],
    };
    let mut named = pod("named");
    named.services = [("shop/web.shop".to_owned(), own)].into();
    let mut shop = Shop::new([named, pod("plain")]);
    let group = group(&by(Simple::RoundRobin));
    for _ in 0..2 {
        let choice = shop.ask(&group, &Hints::default()).unwrap();
        let expected = if *choice.endpoint.workload.uid == *"named" {
            9090
        } else {
            8080
        };
        assert_eq!(choice.endpoint.target_port, expected);
    }
}

#[test]
fn who_was_tried_is_tried_again_only_if_there_is_nobody_else() {
    for simple in [Simple::RoundRobin, Simple::Random, Simple::LeastRequest] {
        let mut shop = Shop::new([pod("a"), pod("b"), pod("c")]);
        let group = group(&by(simple));
        let mut avoid: Vec<Arc<str>> = Vec::new();
        for left in [3, 2, 1] {
            for _ in 0..30 {
                let hints = Hints {
                    avoid: &avoid,
                    ..Default::default()
                };
                let choice = shop.ask(&group, &hints).unwrap();
                assert!(
                    !avoid.contains(&choice.endpoint.workload.uid),
                    "{left} left"
                );
            }
            let next = ["a", "b", "c"][avoid.len()];
            avoid.push(next.into());
        }
        let hints = Hints {
            avoid: &avoid,
            ..Default::default()
        };
        assert!(shop.ask(&group, &hints).is_ok());
    }
}

#[test]
fn what_nobody_knows_is_refused() {
    let unknown = |simple: i32| {
        Policy::compile(&wire::BackendPolicy {
            load_balancer: Some(wire::LoadBalancer {
                simple,
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    assert!(unknown(99).is_err());
    assert!(unknown(1).is_ok());
}
