//! What an edit of one route costs a waypoint: `cargo run --release -p waypoint --example edits [routes…]`.
//!
//! For each number of routes of one service: what they hold, and what one edit takes of the thread that compiles it, in
//! time and allocations; then what letting go of the version before takes, which a request may have to do, and a look-up.
//! Measurements, not tests.

#![allow(clippy::print_stdout, clippy::unwrap_used)] // a program for a person at a terminal
#![allow(unsafe_code)] // a counting allocator is the only witness of what is held

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use api::waypoint as wire;
use http::{HeaderMap, Method};
use mesh::{Mesh, NamespacedHost, Payload, Update};
use prost::Message;
use waypoint::asked::{self, Asked};
use waypoint::authenticate::{Http, KeySets};
use waypoint::client::Client;
use waypoint::compiled::{Compiler, Config};
use waypoint::state::{Keeper, State};
use wire::resource::Kind;
use wire::target::To;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MADE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system allocator as it came; counting touches only statics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MADE.fetch_add(1, Relaxed);
        HELD.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above; `pointer` came from `System.alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const EDITS: usize = 500;
const LOOKS: usize = 20_000;

fn main() {
    let asked: Vec<usize> = std::env::args()
        .skip(1)
        .map(|it| it.parse().unwrap())
        .collect();
    let asked = if asked.is_empty() {
        vec![1, 100, 5_000, 50_000]
    } else {
        asked
    };
    for routes in asked {
        run(routes);
    }
}

fn run(routes: usize) {
    let before = HELD.load(Relaxed);
    let (_, writer) = Mesh::new();
    let state = State::new(Config::default());
    let compiler = Compiler::new(KeySets::new(Arc::new(Http::new(None))));
    let mut keeper = Keeper::new("shop/way", state.clone(), writer, compiler);
    let mut all = Update::default();
    for number in 0..routes {
        all.resources.set.push(route(number, 0));
    }
    let began = Instant::now();
    assert!(keeper.apply(all).is_empty());
    println!(
        "{routes} routes: {} bytes each, all of them in {:.1} ms",
        (HELD.load(Relaxed) - before) / routes,
        began.elapsed().as_secs_f64() * 1e3
    );
    let (mut edits, mut drops, mut made) = (Vec::new(), Vec::new(), 0);
    for edit in 1..=EDITS {
        let mut update = Update::default();
        update.resources.set.push(route(edit * 7919 % routes, edit));
        let old = state.load_full();
        let (began, before) = (Instant::now(), MADE.load(Relaxed));
        keeper.apply(update);
        edits.push(began.elapsed());
        made += MADE.load(Relaxed) - before;
        let began = Instant::now();
        drop(old);
        drops.push(began.elapsed());
    }
    show("an edit", &mut edits);
    show("letting go of the version before", &mut drops);
    println!("    {} allocations an edit", made / EDITS);
    let (config, service) = (state.load_full(), service());
    let (headers, client) = (HeaderMap::new(), client());
    let path = format!("/route-{}", routes / 2);
    let mut looks: Vec<_> = (0..LOOKS)
        .map(|_| {
            let began = Instant::now();
            let asked = Asked {
                method: &Method::GET,
                scheme: "http",
                host: "web.shop",
                authority: "web.shop",
                path: &path,
                query: None,
                headers: &headers,
                port: 80,
                destination: ([10, 96, 0, 1], 80).into(),
                sni: None,
                client: &client,
                remote: asked::remote(client.address.ip(), &headers, 0),
                claims: None,
            };
            black_box(config.service(&service).routes(80).find(&asked));
            began.elapsed()
        })
        .collect();
    show("a look-up", &mut looks);
}

fn show(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times[index.min(times.len() - 1)].as_secs_f64() * 1e6
    };
    println!("    {what}: p50 {:.1} µs, p99 {:.1} µs", at(0.5), at(0.99));
}

fn service() -> NamespacedHost {
    NamespacedHost::new("shop", "web.shop")
}

fn route(number: usize, edit: usize) -> (Arc<str>, Payload<wire::Resource>) {
    let service = wire::ServiceRef {
        namespace: "shop".to_owned(),
        hostname: "web.shop".to_owned(),
        port: 80,
    };
    let path = wire::PathMatch {
        r#match: Some(wire::path_match::Match::Prefix(format!("/route-{number}"))),
        ..Default::default()
    };
    let matches = wire::Match {
        path: Some(path),
        ..Default::default()
    };
    let backend = wire::Backend {
        to: Some(wire::backend::To::Service(service.clone())),
        weight: 1,
        ..Default::default()
    };
    let resource = wire::Resource {
        key: format!("httproute/shop/route-{number}/0"),
        origin: Some(wire::Origin {
            kind: "HTTPRoute".to_owned(),
            namespace: "shop".to_owned(),
            name: format!("route-{number}"),
            rule: edit.to_string(),
            ..Default::default()
        }),
        kind: Some(Kind::Route(wire::Route {
            parents: vec![wire::Target {
                to: Some(To::Service(service)),
            }],
            matches: vec![matches],
            backends: vec![backend],
            ..Default::default()
        })),
    };
    let name = format!("shop/way/{}", resource.key).into();
    (name, Payload::Bytes(resource.encode_to_vec().into()))
}

fn client() -> Client {
    Client {
        identity: None,
        address: ([10, 0, 0, 1], 1).into(),
        peer: [10, 0, 0, 1].into(),
        workload: None,
        said: Default::default(),
    }
}
