//! What an idle connection costs: the heap of both proxies, by counting every allocation.

#![allow(unsafe_code)] // a counting allocator cannot be written without; it only forwards
#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicIsize, Ordering},
    },
};

use bytes::Bytes;
use common::{Ca, Refusals, Served, identity};
use hbone::{Counters, PoolConfig, Request, ResponseHeaders, both_ways};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting has no effect on memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CONNECTIONS: usize = 500;

/// The app sockets are made first, so that only what the proxies hold is counted.
async fn sockets() -> Vec<(TcpStream, TcpStream)> {
    let mut all = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        all.push(common::socket_pair().await);
    }
    all
}

#[tokio::test]
async fn an_idle_connection_stays_within_its_budget() {
    let ca = Arc::new(Ca::new());
    let (sender, mut receiver) = mpsc::channel(1);
    let serve = move |request: Request| -> Served {
        let sender = sender.clone();
        Box::pin(async move {
            sender
                .send(request.accept(ResponseHeaders::default()).unwrap())
                .await
                .unwrap()
        })
    };
    let server = common::serve(
        ca.certificate(&identity("server")),
        Refusals::default().limits(),
        serve,
    )
    .await;
    let client = common::client(&ca, server.address, PoolConfig::default());
    // The first tunnel brings what all share: certificate, configuration, connection.
    let first = client.open().await.unwrap();
    let first_far = receiver.recv().await.unwrap();

    let (near, far) = (sockets().await, sockets().await);
    let (mut apps, mut far_apps) = (
        Vec::with_capacity(CONNECTIONS),
        Vec::with_capacity(CONNECTIONS),
    );
    let mut copies = Vec::with_capacity(2 * CONNECTIONS);
    let before = LIVE.load(Ordering::Relaxed);
    for ((app, socket), (far_socket, far_app)) in near.into_iter().zip(far) {
        let tunnel = client.open().await.unwrap();
        let far_tunnel = receiver.recv().await.unwrap();
        copies.push(tokio::spawn(async move {
            both_ways(socket, tunnel, &Counters::default()).await
        }));
        copies.push(tokio::spawn(async move {
            both_ways(far_socket, far_tunnel, &Counters::default()).await
        }));
        apps.push(app);
        far_apps.push(far_app);
    }
    // Each carries something, large then small, so that buffers have grown and must have shrunk.
    let large = Bytes::from(vec![1; 200_000]);
    let mut sink = vec![0; large.len()];
    for (app, far_app) in apps.iter_mut().zip(&mut far_apps) {
        for message in [&large[..], b"small"] {
            let (sent, read) = tokio::join!(
                app.write_all(message),
                far_app.read_exact(&mut sink[..message.len()])
            );
            sent.unwrap();
            read.unwrap();
            let (sent, read) = tokio::join!(
                far_app.write_all(message),
                app.read_exact(&mut sink[..message.len()])
            );
            sent.unwrap();
            read.unwrap();
        }
    }
    common::eventually("every connection is within 6 KiB on each side", || {
        let each = (LIVE.load(Ordering::Relaxed) - before) / (2 * CONNECTIONS as isize);
        each <= 6 << 10
    })
    .await;
    let each = (LIVE.load(Ordering::Relaxed) - before) / (2 * CONNECTIONS as isize);
    println!("{each} bytes of heap for each idle connection and side");
    drop((first, first_far, apps, far_apps));
    for copy in copies {
        copy.await.unwrap();
    }
}
