//! What the way of bytes through two proxies costs, in figures that a busy machine does not spoil: CPU,
//! system calls and sleeps of the two proxies for each unit of work.
//!
//! ```text
//! path ENGINE WORK UNITS [wait]
//!     ENGINE: own | h2
//!     WORK: bulk (MiB) | trips (64 bytes) | short (connections) | beside (trips while a bulk goes on)
//! ```
//!
//! App, proxy, proxy and server are one thread each, joined by loopback. With `wait` it names the two
//! proxies' threads and goes on at the end of its input, so that `strace -c -p` or `perf record -t` can be
//! put to them first.

#![allow(clippy::unwrap_used, clippy::panic)] // a tool for developers may stop at the first surprise
#![allow(clippy::print_stdout)] // its figures are what it is for
#![allow(clippy::disallowed_methods)] // the thread that waits has no runtime

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    env, fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use common::{Ca, identity};
use hbone::{Counters, Engine, Limits, PoolConfig, Request, ResponseHeaders, both_ways};

/// Bytes of one round trip.
const MESSAGE: usize = 64;
/// Bytes of one write of a bulk transfer.
const PIECE: usize = 256 << 10;

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let [engine, work, units, ..] = &words[..] else {
        println!("path own|h2 bulk|trips|short|beside UNITS [wait]");
        return;
    };
    let engine = match engine.as_str() {
        "own" => Engine::Own,
        _ => Engine::H2,
    };
    let units: usize = units.parse().unwrap();
    let (app, proxies) = path(engine);
    // What all share is made before anything is counted: certificates, the tunnel's connection.
    drop(trips(app, 1));
    if words.get(3).is_some() {
        println!("{} {}", proxies[0], proxies[1]);
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }
    let (before, since) = (proxies.map(spent), Instant::now());
    match work.as_str() {
        "bulk" => bulk(app, units),
        "trips" => drop(trips(app, units)),
        "beside" => beside(app, units),
        _ => (0..units).for_each(|_| drop(trips(app, 1))),
    }
    let took = since.elapsed();
    thread::sleep(Duration::from_millis(20)); // what comes after the last byte counts too
    let after = proxies.map(spent);
    let per = |n: u64| n as f64 / units as f64;
    let cpu: Vec<f64> = (0..2)
        .map(|i| per(after[i].0 - before[i].0) / 1e3)
        .collect();
    let sleeps: Vec<f64> = (0..2).map(|i| per(after[i].1 - before[i].1)).collect();
    println!(
        "{engine:?} {work}: {:.2} us of CPU a unit (near {:.2}, far {:.2}), sleeps {:.2} and {:.2}, {:.2} us each",
        cpu[0] + cpu[1],
        cpu[0],
        cpu[1],
        sleeps[0],
        sleeps[1],
        took.as_secs_f64() * 1e6 / units as f64
    );
}

/// Nanoseconds of CPU and voluntary sleeps of a thread so far.
fn spent(thread: i32) -> (u64, u64) {
    let place = format!("/proc/self/task/{thread}");
    let cpu = fs::read_to_string(format!("{place}/schedstat")).unwrap();
    let status = fs::read_to_string(format!("{place}/status")).unwrap();
    let sleeps = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    (
        cpu.split(' ').next().unwrap().parse().unwrap(),
        sleeps.unwrap().trim().parse().unwrap(),
    )
}

/// Where an app connects, and the proxies' threads.
fn path(engine: Engine) -> (SocketAddr, [i32; 2]) {
    let ca = Arc::new(Ca::new());
    let server = server();
    let (far_ca, (sender, far)) = (ca.clone(), mpsc::channel());
    let near = sender.clone();
    let of_far = proxy(move || async move {
        let limits = Limits {
            engine,
            ..Limits::default()
        };
        let certificate = far_ca.certificate(&identity("server"));
        let served = common::serve(certificate, limits, move |r| relay(r, server)).await;
        sender.send(served.address).unwrap();
        std::future::pending::<()>().await;
    });
    let far = (far.recv().unwrap(), far);
    let of_near = proxy(move || async move {
        let config = PoolConfig {
            engine,
            ..PoolConfig::default()
        };
        let client = Arc::new(common::client(&ca, far.0, config));
        let (listener, address) = common::listen().await;
        near.send(address).unwrap();
        while let Ok((app, _)) = listener.accept().await {
            let client = client.clone();
            tokio::spawn(async move {
                let (to, connect) = (&client.destination, common::to("10.0.0.1:80"));
                let dial = tokio::net::TcpStream::connect;
                let tunnel = client.pool.open_for(&app, to, dial, connect).await.unwrap();
                both_ways(app, tunnel, &Counters::default()).await
            });
        }
    });
    (far.1.recv().unwrap(), [of_near, of_far])
}

fn relay(request: Request, server: SocketAddr) -> common::Served {
    Box::pin(async move {
        let app = tokio::net::TcpStream::connect(server).await.unwrap();
        let tunnel = request.accept(ResponseHeaders::default()).unwrap();
        both_ways(app, tunnel, &Counters::default()).await;
    })
}

/// A thread with a runtime of its own; says which.
fn proxy<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) -> i32 {
    let (sender, id) = mpsc::channel();
    thread::spawn(move || {
        sender.send(nix::unistd::gettid().as_raw()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work());
    });
    id.recv().unwrap()
}

/// Sends back messages; of what is longer it sends one at the end.
fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for app in listener.incoming() {
            thread::spawn(move || echo(app.unwrap()));
        }
    });
    address
}

fn echo(mut app: TcpStream) {
    app.set_nodelay(true).unwrap();
    let (mut buffer, mut large) = (vec![0; PIECE], false);
    while let Ok(n) = app.read(&mut buffer) {
        large |= n > MESSAGE;
        if n == 0 {
            let _ = app.write_all(&buffer[..if large { MESSAGE } else { 0 }]);
            return;
        }
        if !large {
            let _ = app.write_all(&buffer[..n]);
        }
    }
}

/// How long each took.
fn trips(to: SocketAddr, count: usize) -> Vec<Duration> {
    let mut app = TcpStream::connect(to).unwrap();
    app.set_nodelay(true).unwrap();
    let mut message = [7; MESSAGE];
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let since = Instant::now();
        app.write_all(&message).unwrap();
        app.read_exact(&mut message).unwrap();
        took.push(since.elapsed());
    }
    app.shutdown(Shutdown::Write).unwrap();
    assert_eq!(app.read(&mut message).unwrap(), 0);
    took
}

/// Round trips on one connection while another of the same tunnel carries as much as it can.
fn beside(to: SocketAddr, count: usize) {
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let other = thread::spawn(move || {
        let mut megabytes = 0;
        while !stop.load(Ordering::Relaxed) {
            bulk(to, 64);
            megabytes += 64;
        }
        megabytes
    });
    let mut took = trips(to, count);
    done.store(true, Ordering::Relaxed);
    took.sort_unstable();
    let at = |hundredth: usize| took[(count - 1) * hundredth / 100].as_secs_f64() * 1e6;
    let (p50, p99) = (at(50), at(99));
    println!(
        "p50 {p50:.0} us, p99 {p99:.0} us, beside {} MiB",
        other.join().unwrap()
    );
}

fn bulk(to: SocketAddr, megabytes: usize) {
    let mut app = TcpStream::connect(to).unwrap();
    let piece = vec![7; PIECE];
    for _ in 0..megabytes * (1 << 20) / PIECE {
        app.write_all(&piece).unwrap();
    }
    app.shutdown(Shutdown::Write).unwrap();
    app.read_exact(&mut [0; MESSAGE]).unwrap();
}
