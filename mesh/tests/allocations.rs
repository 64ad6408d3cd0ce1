//! What a connection asks of the mesh allocates nothing, and what a workload takes has a limit.

#![allow(unsafe_code)] // a counting allocator is the only witness of allocations
#![allow(clippy::unwrap_used, clippy::panic)] // in a test they are the report

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use api::{security, workload as wire};
use mesh::{Client, Connection, Mesh, Network, SourceIdentity, Update, Verdict, judge, pick};
use prost::Message;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static HELD: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system allocator as it came; counting touches no memory that
// allocates (a const-initialised thread local without a destructor).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        HELD.set(HELD.get() + layout.size() as isize);
        // SAFETY: the caller's promise is passed on unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get() - layout.size() as isize);
        // SAFETY: as above; `pointer` came from `System.alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread while `work` ran.
fn allocations<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = ALLOCATIONS.get();
    let result = work();
    (ALLOCATIONS.get() - before, result)
}

fn update() -> Update {
    let mut update = Update::default();
    let port = wire::Port {
        service_port: 80,
        target_port: 8080,
        app_protocol: 0,
    };
    for at in 0..100u8 {
        update.set_workload(wire::Workload {
            uid: format!("uid-{at}"),
            name: format!("pod-{at}"),
            namespace: "ns".to_owned(),
            node: format!("node-{at}"),
            addresses: vec![vec![10, 0, 0, at].into()],
            authorization_policies: vec!["ns/named".to_owned()],
            services: [("ns/web".to_owned(), wire::PortList { ports: vec![port] })].into(),
            locality: Some(wire::Locality {
                zone: format!("zone-{}", at % 3),
                ..Default::default()
            }),
            ..Default::default()
        });
    }
    let vip = |address: Vec<u8>, length| wire::NetworkAddress {
        address: address.into(),
        length,
        ..Default::default()
    };
    update.set_service(wire::Service {
        namespace: "ns".to_owned(),
        hostname: "web".to_owned(),
        addresses: vec![
            vip(vec![240, 0, 0, 1], None),
            vip(vec![241, 0, 0, 0], Some(8)),
        ],
        ports: vec![port],
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![6, 1, 2, 3, 4],
            mode: 2,
            health_policy: 0,
        }),
        ..Default::default()
    });
    let suffix = security::string_match::MatchType::Suffix("/sa/client".to_owned());
    let found = security::Match {
        principals: vec![security::StringMatch {
            match_type: Some(suffix),
        }],
        destination_ports: vec![8080],
        ..Default::default()
    };
    for (name, scope, action) in [
        ("global", 0, 0),
        ("namespace", 1, 0),
        ("named", 2, 0),
        ("deny", 1, 1),
    ] {
        let port = if action == 1 { 9 } else { 8080 };
        let found = security::Match {
            destination_ports: vec![port],
            ..found.clone()
        };
        update.set_policy(security::Authorization {
            name: name.to_owned(),
            namespace: "ns".to_owned(),
            scope,
            action,
            groups: vec![security::Group {
                rules: vec![security::Rules {
                    matches: vec![found],
                }],
            }],
            ..Default::default()
        });
    }
    update
}

#[test]
fn looking_up_choosing_and_allowing_allocate_nothing() {
    let (mesh, mut writer) = Mesh::new();
    assert_eq!(writer.apply(update()), []);
    let network = Network::default();
    drop(mesh.load()); // a thread's first load makes its place in arc-swap's list, once
    let (count, ()) = allocations(|| {
        let snapshot = mesh.load();
        let caller = snapshot
            .workload_at(&network, [10, 0, 0, 7].into())
            .unwrap();
        assert!(
            snapshot
                .workload_of_pod("ns", "pod-7", "default", "node-7")
                .is_some()
        );
        assert!(snapshot.service_for_host("web", "ns").is_some());
        assert!(snapshot.service("ns", "web").is_some());
        for vip in [[240, 0, 0, 1], [241, 9, 9, 9]] {
            let service = snapshot.service_at(&network, vip.into(), "ns").unwrap();
            for draw in 0..50 {
                assert!(pick(&snapshot, service, 80, &Client::of(caller, false), draw).is_ok());
            }
        }
        let source = SourceIdentity {
            trust_domain: "cluster.local",
            namespace: "a",
            service_account: "client",
        };
        let connection = Connection {
            source: Some(source),
            source_ip: [10, 0, 0, 1].into(),
            destination_ip: caller.addresses[0],
            destination_port: 8080,
        };
        let verdict = judge(&snapshot.policies_of(caller), &connection);
        assert!(matches!(verdict, Verdict::Allowed { by: Some(_) }));
    });
    assert_eq!(count, 0);
    let (count, _) = allocations(|| vec![1]);
    assert_eq!(count, 1, "the witness sees");
}

/// Replicas of 1,000 owners, ten each, as pods of a cluster look, encoded as they arrive.
fn replicas() -> Update {
    let mut update = Update::default();
    for at in 0..10_000usize {
        let (of, port) = (
            at % 1_000,
            wire::Port {
                service_port: 80,
                target_port: 8080,
                app_protocol: 0,
            },
        );
        let name = format!("service-{of}-7d9c5b8f66-{at:05x}");
        let workload = wire::Workload {
            uid: format!("Kubernetes//Pod/ns-{}/{name}", of % 100),
            name,
            namespace: format!("ns-{}", of % 100),
            addresses: vec![vec![10, 0, (at >> 8) as u8, at as u8].into()],
            tunnel_protocol: 1,
            service_account: format!("account-{}", of % 50),
            node: format!("node-{}", at % 500),
            canonical_name: format!("service-{of}"),
            workload_name: format!("service-{of}"),
            cluster_id: "Kubernetes".to_owned(),
            services: [(
                format!("ns-{}/service-{of}.svc", of % 100),
                wire::PortList { ports: vec![port] },
            )]
            .into(),
            ..Default::default()
        };
        let name = workload.uid.as_str().into();
        let address = wire::Address {
            r#type: Some(wire::address::Type::Workload(workload)),
        };
        let encoded = mesh::Payload::Bytes(address.encode_to_vec().into());
        update.addresses.set.push((name, encoded));
    }
    update
}

/// Bytes asked of the allocator, uid and endpoint included; docs/performance.md has the parts.
#[test]
fn a_workload_takes_less_than_400_bytes_and_reading_a_known_one_few_allocations() {
    let (_mesh, mut writer) = Mesh::new();
    let before = HELD.get();
    let update = replicas();
    assert_eq!(writer.apply(update), []);
    let each = (HELD.get() - before) / 10_000;
    assert!((100..400).contains(&each), "{each} bytes");
    let again = replicas();
    let (count, rejected) = allocations(|| writer.apply(again));
    assert_eq!(rejected, []);
    let each = count as f64 / 10_000.0;
    assert!(each < 4.5, "{each} allocations"); // lists of addresses, services and ports
}
