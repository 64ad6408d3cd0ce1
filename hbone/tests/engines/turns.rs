//! A thread that writes by turns: what is said leaves later and together, and is heard as it was said.
//!
//! Every test of whole tunnels once more on such threads (`common::by_turns` goes by the name of this module), and what is
//! theirs alone.

#![allow(
    clippy::duplicate_mod,
    reason = "each of these is a test of its own elsewhere, with its own `common`"
)]

#[path = "../pool.rs"]
mod pool;
#[path = "../refusals.rs"]
mod refusals;
#[path = "../tunnels.rs"]
mod tunnels;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hbone::{Engine, Request, ResponseHeaders, Tunnel};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::{Builder, Runtime},
    sync::mpsc,
    task::JoinSet,
};

use crate::{
    Says, check_stream,
    common::{self, Client, Served, Server},
    pair, pattern, tunnels as tunnels_of,
};

const PAIRS: [(Engine, Engine); 3] = crate::PAIRS;

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A client, a server whose tunnels arrive at the test, and how many records have gone from the one to the other.
struct Counted {
    client: Client,
    _server: Server,
    far: mpsc::Receiver<Tunnel>,
    records: Arc<AtomicUsize>,
}

impl Counted {
    async fn new() -> Self {
        let (sender, far) = mpsc::channel(1);
        let serve = move |request: Request| -> Served {
            let sender = sender.clone();
            Box::pin(async move {
                let tunnel = request.accept(ResponseHeaders::default()).unwrap();
                sender.send(tunnel).await.unwrap();
            })
        };
        let (mut client, server) = pair((Engine::Own, Engine::Own), serve).await;
        let (between, records) = counting(server.address).await;
        client.destination.address = between;
        Self {
            client,
            _server: server,
            far,
            records,
        }
    }

    /// Both ends of one more.
    async fn tunnel(&mut self) -> (Tunnel, Tunnel) {
        let near = self.client.open().await.unwrap();
        (near, self.far.recv().await.unwrap())
    }

    /// As many as there are when nothing has come in some looks: one may find that nobody had his turn meanwhile.
    async fn records(&self) -> usize {
        let (mut last, mut same) = (self.records.load(Ordering::Relaxed), 0);
        while same < 4 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = self.records.load(Ordering::Relaxed);
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        last
    }
}

/// Stands between a client and a server, and counts the records that the client sends.
async fn counting(server: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let (listener, address) = common::listen().await;
    let records = Arc::new(AtomicUsize::new(0));
    let count = records.clone();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(server).await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let mut record = vec![0; 5];
        while from_client.read_exact(&mut record[..5]).await.is_ok() {
            let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
            record.resize(5 + length, 0);
            from_client.read_exact(&mut record[5..]).await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            to_server.write_all(&record).await.unwrap();
        }
    });
    (address, records)
}

#[tokio::test]
async fn what_many_streams_say_in_one_turn_is_one_record() {
    const STREAMS: usize = 32;
    for (by_turns, expected) in [(false, STREAMS), (true, 1)] {
        if by_turns {
            hbone::write_by_turns();
        }
        let mut counted = Counted::new().await;
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for _ in 0..STREAMS {
            let (one, other) = counted.tunnel().await;
            near.push(one);
            far.push(other);
        }
        let before = counted.records().await;
        let mut saying = JoinSet::new();
        for mut tunnel in near {
            saying.spawn(async move {
                tunnel.send(pattern(0, 100)).await.unwrap();
                tunnel
            });
        }
        let _near = saying.join_all().await;
        for tunnel in &mut far {
            assert_eq!(common::read_exactly(tunnel, 100).await, pattern(0, 100));
        }
        let records = counted.records().await - before;
        assert_eq!(records, expected, "by turns: {by_turns}");
    }
}

/// One thread says something and ends at once, with its runtime: another hears it.
#[test]
fn what_was_said_leaves_though_the_thread_ends() {
    let (near_runtime, far_runtime) = (one_thread(), one_thread());
    let (sender, mut far) = mpsc::channel(1);
    let serve = move |request: Request| -> Served {
        let sender = sender.clone();
        Box::pin(async move {
            let tunnel = request.accept(ResponseHeaders::default()).unwrap();
            sender.send(tunnel).await.unwrap();
        })
    };
    let (client, _server) = far_runtime.block_on(pair((Engine::Own, Engine::Own), serve));
    let near = std::thread::spawn(move || {
        let mut near = near_runtime.block_on(async {
            hbone::write_by_turns();
            let mut tunnel = client.open().await.unwrap();
            // All that the peer says has been read: a socket closed before that is reset.
            let last = tokio::time::timeout(Duration::from_secs(60), tunnel.recv()).await;
            assert_eq!(last.unwrap().unwrap().unwrap(), "the last");
            tokio::time::sleep(Duration::from_secs(1)).await;
            tunnel
        });
        near_runtime.block_on(async {
            near.send(Bytes::from_static(b"last words")).await.unwrap();
        });
        drop(near_runtime);
        drop((near, client));
    });
    let heard = far_runtime.block_on(async {
        let far = tokio::time::timeout(Duration::from_secs(60), far.recv()).await;
        let mut far = far.expect("no tunnel came").unwrap();
        far.send("the last".into()).await.unwrap();
        let mut heard = Vec::new();
        while let Some(Ok(chunk)) = far.recv().await {
            heard.extend_from_slice(&chunk);
        }
        heard
    });
    near.join().unwrap();
    assert_eq!(heard, b"last words");
}

#[tokio::test]
async fn who_says_something_and_goes_is_heard() {
    hbone::write_by_turns();
    for engines in PAIRS {
        let (near, mut far) = tunnels_of(engines, 1).await.pop().unwrap();
        let (reader, mut writer) = near.split();
        writer
            .send(Bytes::from_static(b"last words"))
            .await
            .unwrap();
        writer.shutdown().unwrap();
        drop(writer);
        far.shutdown().unwrap();
        let heard = common::read_to_end(&mut far).await.unwrap();
        assert_eq!(heard, b"last words", "{engines:?}");
        drop(reader);
    }
}

fn says() -> impl Strategy<Value = Says> {
    let piece = prop_oneof![
        6 => 1usize..2_000,
        3 => 3_900usize..4_300,
        2 => 16_300usize..16_500,
        1 => 60_000usize..70_000,
        1 => 1usize..300_000,
    ];
    let pieces = prop::collection::vec(piece, 0..12);
    (pieces, prop::bool::weighted(0.8)).prop_map(|(pieces, ends)| Says { pieces, ends })
}

/// More of them: `TURNS_CASES=1000 cargo test -p hbone --test engines turns`.
fn cases() -> u32 {
    let asked = std::env::var("TURNS_CASES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(16)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 40, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn streams_carry_what_was_said_by_turns(
        streams in prop::collection::vec((says(), says()), 1..24), pair in 0usize..PAIRS.len(),
    ) {
        one_thread().block_on(async {
            hbone::write_by_turns();
            let mut tasks = JoinSet::new();
            let tunnels = tunnels_of(PAIRS[pair], streams.len()).await;
            for ((near, far), (there, back)) in tunnels.into_iter().zip(streams) {
                tasks.spawn(check_stream(near, far, there, back));
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
        });
    }
}
