//! What a new tunnel costs two proxies: TCP, TLS, HTTP/2 and a first CONNECT, until all of it is gone again.
//!
//! ```text
//! handshakes ENGINE KIND COUNT [wait]
//!     ENGINE: own | h2
//!     KIND: full | resumed
//! ```
//!
//! Client and server are a thread each, joined by loopback. With `full` each tunnel is to an address that
//! was never seen, with `resumed` all are to one; where the socket goes is the dialler's business. With
//! `wait` it names the two threads and goes on at the end of its input, so that `strace -c -p` or
//! `perf record -t` can be put to them first.

#![allow(clippy::unwrap_used, clippy::panic)] // a tool for developers may stop at the first surprise
#![allow(clippy::print_stdout)] // its figures are what it is for
#![allow(clippy::disallowed_methods)] // the thread that waits has no runtime

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    env, fs,
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use common::{Ca, Signing, identity};
use hbone::{Certificates, CertificatesConfig, Destination, Engine, Limits, Pool, PoolConfig};
use tokio::net::TcpStream;

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let [engine, kind, count, ..] = &words[..] else {
        println!("handshakes own|h2 full|resumed COUNT [wait]");
        return;
    };
    let engine = match engine.as_str() {
        "own" => Engine::Own,
        _ => Engine::H2,
    };
    let count: u32 = count.parse().unwrap();
    let ca = Arc::new(Ca::new());
    let (sender, server) = mpsc::channel();
    let authority = ca.clone();
    let far = proxy(move || async move {
        let limits = Limits {
            engine,
            ..Limits::default()
        };
        let certificate = authority.certificate(&identity("server"));
        let served = common::serve(certificate, limits, common::echo).await;
        sender.send(served.address).unwrap();
        std::future::pending::<()>().await;
    });
    let server = server.recv().unwrap();
    let (orders, mut ordered) = tokio::sync::mpsc::unbounded_channel::<u32>();
    let (sender, done) = mpsc::channel();
    let fresh = kind == "full";
    let near = proxy(move || async move {
        let certificates = Certificates::new(Signing::new(&ca), CertificatesConfig::default());
        let _held = certificates.hold(&identity("client"));
        let mut address = 0;
        while let Some(count) = ordered.recv().await {
            for _ in 0..count {
                address += u32::from(fresh);
                tunnel(&certificates, engine, server, address).await;
            }
            sender.send(()).unwrap();
        }
    });
    // What all share is made before anything is counted: certificates, configurations.
    orders.send(20).unwrap();
    done.recv().unwrap();
    if words.get(3).is_some() {
        println!("{near} {far}");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }
    let before = [near, far].map(spent);
    orders.send(count).unwrap();
    done.recv().unwrap();
    thread::sleep(Duration::from_millis(50)); // what comes after the last counts too
    let after = [near, far].map(spent);
    let [client, server] = [0, 1].map(|i| (after[i] - before[i]) as f64 / 1e3 / f64::from(count));
    println!(
        "{engine:?} {kind}: {:.0} us of CPU a tunnel (client {client:.0}, server {server:.0})",
        client + server
    );
}

/// One tunnel with one round trip, on a connection of its own.
async fn tunnel(certificates: &Arc<Certificates>, engine: Engine, to: SocketAddr, address: u32) {
    let config = PoolConfig {
        engine,
        ..PoolConfig::default()
    };
    let pool = Pool::new(certificates.clone(), config);
    let destination = Destination {
        address: (Ipv4Addr::from_bits(address), 15008).into(),
        source_ip: Ipv4Addr::LOCALHOST.into(),
        source: identity("client"),
        expected: vec![identity("server")],
    };
    let dial = |_| TcpStream::connect(to);
    let opening = pool.open(&destination, dial, common::to("10.0.0.1:80"));
    let mut tunnel = opening.await.unwrap();
    tunnel.send("hello".into()).await.unwrap();
    common::read_exactly(&mut tunnel, 5).await;
}

/// A thread with a runtime of its own; its number.
fn proxy<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) -> i32 {
    let (sender, thread) = mpsc::channel();
    thread::spawn(move || {
        sender.send(nix::unistd::gettid().as_raw()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work());
    });
    thread.recv().unwrap()
}

/// Nanoseconds of CPU of a thread so far.
fn spent(thread: i32) -> u64 {
    let cpu = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    cpu.split(' ').next().unwrap().parse().unwrap()
}
