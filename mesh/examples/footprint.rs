//! What a mesh costs: `cargo run --release -p mesh --example footprint [workloads] [services]`.
//!
//! Prints what is held in bytes and allocations by size, the time to load all, to change one, to
//! choose an endpoint and to judge a connection. Measurements, not tests.

#![allow(clippy::print_stdout, clippy::unwrap_used)] // a program for a person at a terminal
#![allow(unsafe_code)] // a counting allocator is the only witness of what is held

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use api::{security, workload as wire};
use mesh::{Client, Connection, Mesh, Payload, SourceIdentity, Update, judge, pick};
use prost::Message;

/// Counts what is held, by sizes rounded up to 16 bytes; the last class is everything larger.
struct Counting;

const CLASSES: usize = 33;
static HELD: [AtomicUsize; CLASSES] = [const { AtomicUsize::new(0) }; CLASSES];
static BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn class(layout: Layout) -> &'static AtomicUsize {
    &HELD[layout.size().div_ceil(16).min(CLASSES - 1)]
}

// SAFETY: every call goes to the system allocator as it came; counting touches only statics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        class(layout).fetch_add(1, Relaxed);
        let bytes = BYTES.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(bytes, Relaxed);
        // SAFETY: the caller's promise is passed on unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        class(layout).fetch_sub(1, Relaxed);
        BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above; `pointer` came from `System.alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is held beyond `before`.
fn show(before: &[usize; CLASSES + 1], per: usize) {
    let held = BYTES.load(Relaxed) - before[CLASSES];
    println!(
        "held: {} KiB, {} bytes a workload, services included; at most {} KiB",
        held >> 10,
        held / per,
        PEAK.load(Relaxed) >> 10
    );
    for (class, (now, before)) in HELD.iter().zip(before).enumerate() {
        let more = now.load(Relaxed).saturating_sub(*before);
        if more > per / 100 {
            println!("  up to {:>3} bytes: {more}", class * 16);
        }
    }
}

fn now() -> [usize; CLASSES + 1] {
    let mut all = [0; CLASSES + 1];
    for (copy, held) in all.iter_mut().zip(&HELD) {
        *copy = held.load(Relaxed);
    }
    all[CLASSES] = BYTES.load(Relaxed);
    all
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|number| number.parse::<usize>().unwrap());
    let workloads = arguments.next().unwrap_or(100_000);
    let services = arguments.next().unwrap_or(10_000);
    let (mesh, mut writer) = Mesh::new();
    let empty = now();

    let started = Instant::now();
    let mut update = Update::default();
    for at in 0..services {
        let address = wire::Address {
            r#type: Some(wire::address::Type::Service(service(at, services))),
        };
        update.addresses.set.push((
            service_name(at).into(),
            Payload::Bytes(address.encode_to_vec().into()),
        ));
    }
    assert!(writer.apply(update).is_empty());
    for portion in (0..workloads).collect::<Vec<_>>().chunks(1000) {
        let mut update = Update::default();
        for at in portion {
            let message = workload(*at, services, 0);
            let name = message.uid.clone();
            let address = wire::Address {
                r#type: Some(wire::address::Type::Workload(message)),
            };
            update
                .addresses
                .set
                .push((name.into(), Payload::Bytes(address.encode_to_vec().into())));
        }
        assert!(writer.apply(update).is_empty());
    }
    let mut update = Update::default();
    update.set_policy(policy());
    writer.apply(update);
    println!(
        "loaded {workloads} workloads and {services} services in {:?}",
        started.elapsed()
    );
    show(&empty, workloads);

    const CHANGES: usize = 2000;
    let started = Instant::now();
    for at in 0..CHANGES {
        let mut update = Update::default();
        update.set_workload(workload(at * 31 % workloads, services, at + 1));
        writer.apply(update);
    }
    println!("one change: {:?}", started.elapsed() / CHANGES as u32);
    println!(
        "held after {CHANGES} changes: {} KiB",
        (BYTES.load(Relaxed) - empty[CLASSES]) >> 10
    );

    let snapshot = mesh.load_full();
    let caller = snapshot.workload(&workload(0, services, 0).uid).unwrap();
    let client = Client::of(caller, false);
    const ROUNDS: u32 = 1_000_000;
    let vip = [240, 240, 0, 1].into();
    let started = Instant::now();
    for draw in 0..ROUNDS {
        let service = snapshot
            .service_at(&caller.network, vip, &caller.namespace)
            .unwrap();
        black_box(pick(&snapshot, service, 80, &client, u64::from(draw)).unwrap());
    }
    println!(
        "look up a VIP and choose an endpoint: {:?}",
        started.elapsed() / ROUNDS
    );
    let source = SourceIdentity {
        trust_domain: "cluster.local",
        namespace: "ns-3",
        service_account: "account-7",
    };
    let connection = Connection {
        source: Some(source),
        source_ip: [10, 0, 0, 1].into(),
        destination_ip: caller.addresses[0],
        destination_port: 8080,
    };
    let started = Instant::now();
    for _ in 0..ROUNDS {
        black_box(judge(&snapshot.policies_of(caller), black_box(&connection)));
    }
    println!(
        "judge a connection by one policy: {:?}",
        started.elapsed() / ROUNDS
    );
}

fn service_name(at: usize) -> String {
    format!(
        "ns-{}/service-{at}.ns-{}.svc.cluster.local",
        at % 100,
        at % 100
    )
}

fn service(at: usize, services: usize) -> wire::Service {
    let port = wire::Port {
        service_port: 80,
        target_port: 8080,
        app_protocol: 0,
    };
    wire::Service {
        name: format!("service-{at}"),
        namespace: format!("ns-{}", at % 100),
        hostname: format!("service-{at}.ns-{}.svc.cluster.local", at % 100),
        addresses: vec![wire::NetworkAddress {
            address: vec![
                240,
                240 + (at * 256 / services.max(1) / 256) as u8,
                (at >> 8) as u8,
                at as u8,
            ]
            .into(),
            ..Default::default()
        }],
        ports: vec![port],
        canonical: true,
        ..Default::default()
    }
}

fn workload(at: usize, services: usize, version: usize) -> wire::Workload {
    let (of, namespace) = (at % services, at % services % 100);
    let name = format!("service-{of}-7d9c5b8f66-{at:05x}");
    wire::Workload {
        uid: format!("Kubernetes//Pod/ns-{namespace}/{name}"),
        name,
        namespace: format!("ns-{namespace}"),
        addresses: vec![vec![10, (at >> 16) as u8, (at >> 8) as u8, at as u8].into()],
        tunnel_protocol: 1,
        service_account: format!("account-{}", of % 50),
        node: format!("node-{}", at % 1000),
        canonical_name: format!("service-{of}"),
        canonical_revision: format!("v{version}"),
        workload_type: 2,
        workload_name: format!("service-{of}"),
        cluster_id: "Kubernetes".to_owned(),
        services: [(
            service_name(of),
            wire::PortList {
                ports: vec![wire::Port {
                    service_port: 80,
                    target_port: 8080,
                    app_protocol: 0,
                }],
            },
        )]
        .into(),
        locality: Some(wire::Locality {
            region: "region".to_owned(),
            zone: format!("zone-{}", at % 3),
            subzone: String::new(),
        }),
        ..Default::default()
    }
}

fn policy() -> security::Authorization {
    use security::string_match::MatchType;
    let principal = security::StringMatch {
        match_type: Some(MatchType::Suffix("/sa/account-7".to_owned())),
    };
    let found = security::Match {
        principals: vec![principal],
        destination_ports: vec![8080],
        ..Default::default()
    };
    security::Authorization {
        name: "allow".to_owned(),
        namespace: "istio-system".to_owned(),
        groups: vec![security::Group {
            rules: vec![security::Rules {
                matches: vec![found],
            }],
        }],
        ..Default::default()
    }
}
