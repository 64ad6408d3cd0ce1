//! How much may be on its way at one time.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use api::waypoint as wire;
use api::waypoint::limits::Upgrade;
use waypoint::limit::Gates;

fn limited(requests: u32) -> wire::Limits {
    wire::Limits {
        requests,
        ..Default::default()
    }
}

#[test]
fn as_many_as_allowed_go_in_and_who_leaves_makes_room() {
    let gates = Gates::compile(Some(&limited(2)));
    let first = gates.requests.enter().unwrap();
    let _second = gates.requests.enter().unwrap();
    assert!(gates.requests.enter().is_none());
    assert!(gates.requests.enter().is_none());
    assert_eq!((gates.requests.inside(), gates.requests.refused()), (2, 2));
    drop(first);
    assert!(gates.requests.enter().is_some());
}

#[test]
fn without_a_limit_all_go_in_and_are_counted() {
    let gates = Gates::compile(None);
    let inside: Vec<_> = (0..5_000).map(|_| gates.pending.enter().unwrap()).collect();
    assert_eq!((inside.len(), gates.pending.inside()), (5_000, 5_000));
    assert_eq!(gates.pending.limit(), None);
}

#[test]
fn a_new_limit_counts_those_who_are_inside() {
    let gates = Gates::compile(Some(&limited(3)));
    let inside = [gates.requests.enter(), gates.requests.enter()];
    let next = gates.succeeded_by(Some(&limited(2)));
    assert!(next.requests.enter().is_none());
    drop(inside);
    assert!(next.requests.enter().is_some());
}

#[test]
fn many_at_once_never_are_more_than_allowed() {
    let gates = Gates::compile(Some(&limited(4)));
    let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    if let Some(_permit) = gates.requests.enter() {
                        most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                        inside.fetch_sub(1, SeqCst);
                    }
                }
            });
        }
    });
    assert!(most.load(SeqCst) <= 4);
    assert_eq!(gates.requests.inside(), 0);
}

#[test]
fn what_is_not_said_has_istios_defaults() {
    let each = Gates::compile(None).each;
    assert_eq!(each.connect_timeout, Duration::from_secs(10));
    assert_eq!(each.patience(), None);
    let said = wire::Limits {
        connect_timeout: 500,
        ..Default::default()
    };
    let said = Gates::compile(Some(&said)).each;
    assert_eq!(said.patience(), Some(Duration::from_millis(500)));
    assert_eq!((each.idle, each.silent, each.age), (None, None, None));
    assert_eq!((each.requests, each.streams), (None, None));
    assert_eq!((each.http2, each.keepalive), (Upgrade::AsDeclared, None));
}

#[test]
fn only_what_is_said_of_connections_gives_a_service_its_own() {
    let none = wire::Limits::default;
    for (binds, counts, limits) in [
        (false, false, none()),
        (false, false, limited(2)),
        (
            false,
            false,
            wire::Limits {
                retries: 1,
                connect_timeout: 5,
                silence: 5,
                ..none()
            },
        ),
        (
            true,
            true,
            wire::Limits {
                connections: 1,
                ..none()
            },
        ),
        (
            true,
            true,
            wire::Limits {
                pending: 1,
                ..none()
            },
        ),
        (
            true,
            false,
            wire::Limits {
                connection_idle: 1,
                ..none()
            },
        ),
        (
            true,
            false,
            wire::Limits {
                connection_age: 1,
                ..none()
            },
        ),
        (
            true,
            false,
            wire::Limits {
                requests_per_connection: 1,
                ..none()
            },
        ),
        (
            true,
            false,
            wire::Limits {
                streams: 1,
                ..none()
            },
        ),
        (
            true,
            false,
            wire::Limits {
                keepalive_time: 1,
                ..none()
            },
        ),
    ] {
        let gates = Gates::compile(Some(&limits));
        assert_eq!(
            (gates.binds(), gates.counts()),
            (binds, counts),
            "{limits:?}"
        );
    }
}

#[test]
fn the_same_gates_go_on_under_another_policy_and_others_are_others() {
    let first = Gates::compile(Some(&limited(2)));
    assert_eq!(first.succeeded_by(None).number, first.number);
    assert_ne!(Gates::compile(Some(&limited(2))).number, first.number);
}
