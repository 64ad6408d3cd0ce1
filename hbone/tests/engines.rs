//! Our own engine beside `h2`: whichever stands at either end, the apps see the same.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;
#[path = "engines/short.rs"]
mod short;
#[path = "engines/turns.rs"]
mod turns;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{Ca, Client, Refusals, Served, Server, identity};
use hbone::{
    Counters, Ended, Engine, HalfEnd, Limits, PoolConfig, Request, ResponseHeaders, Tunnel,
    TunnelError,
};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinHandle,
};

const PAIRS: [(Engine, Engine); 3] = [
    (Engine::Own, Engine::Own),
    (Engine::Own, Engine::H2),
    (Engine::H2, Engine::Own),
];

/// Bytes that are on their way and do not move for so long hang. However slow the machine, some of them move in less.
const STILL: Duration = Duration::from_secs(60);

/// A client and a server of these engines.
async fn pair(
    (near, far): (Engine, Engine),
    serve: impl Fn(Request) -> Served + Clone + Send + Sync + 'static,
) -> (Client, Server) {
    let ca = Arc::new(Ca::new());
    let limits = Limits {
        engine: far,
        // Nobody is taken for dead, and no record is there that a test has not caused.
        ping_every: common::HOUR,
        ..Refusals::default().limits()
    };
    let server = common::serve(ca.certificate(&identity("server")), limits, serve).await;
    let config = PoolConfig {
        engine: near,
        ping_every: common::HOUR,
        ..PoolConfig::default()
    };
    (common::client(&ca, server.address, config), server)
}

/// Tunnels of one connection, both ends of each.
async fn tunnels(engines: (Engine, Engine), count: usize) -> Vec<(Tunnel, Tunnel)> {
    let (sender, mut far) = mpsc::channel(count);
    let serve = move |request: Request| -> Served {
        let sender = sender.clone();
        Box::pin(async move {
            let tunnel = request.accept(ResponseHeaders::default()).unwrap();
            sender.send(tunnel).await.unwrap();
        })
    };
    let (client, server) = pair(engines, serve).await;
    let mut both = Vec::new();
    for _ in 0..count {
        let near = client.open().await.unwrap();
        both.push((near, far.recv().await.unwrap()));
    }
    std::mem::forget((client, server)); // for as long as the tunnels
    both
}

/// Bytes that tell a place from any other.
fn pattern(from: usize, len: usize) -> Bytes {
    (from..from + len)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect()
}

/// What one end does: these pieces, then an end or a reset.
#[derive(Debug, Clone)]
struct Says {
    pieces: Vec<usize>,
    ends: bool,
}

/// Says it; the writer stays, unless it is to be reset.
async fn say(mut writer: hbone::Writer, says: Says) -> Option<hbone::Writer> {
    let mut sent = 0;
    for piece in says.pieces {
        if writer.send(pattern(sent, piece)).await.is_err() {
            return None; // the other end has reset
        }
        sent += piece;
    }
    if says.ends {
        let _ = writer.shutdown();
        return Some(writer);
    }
    writer.reset();
    None
}

/// Hears what the other says; the end, or the error.
async fn hear(mut reader: hbone::Reader) -> (usize, Result<(), TunnelError>) {
    let mut heard = 0;
    loop {
        let chunk = tokio::time::timeout(STILL, reader.recv()).await;
        let Some(chunk) = chunk.expect("a stream hangs") else {
            return (heard, Ok(()));
        };
        match chunk {
            Ok(chunk) => {
                assert!(!chunk.is_empty());
                assert!(
                    chunk == pattern(heard, chunk.len()),
                    "other bytes at {heard}"
                );
                heard += chunk.len();
            }
            Err(error) => return (heard, Err(error)),
        }
    }
}

async fn check_stream(near: Tunnel, far: Tunnel, there: Says, back: Says) {
    let ((near_reader, near_writer), (far_reader, far_writer)) = (near.split(), far.split());
    let (_near, _far, at_far, at_near) = tokio::join!(
        say(near_writer, there.clone()),
        say(far_writer, back.clone()),
        hear(far_reader),
        hear(near_reader)
    );
    for (says, (heard, end), other) in [(&there, at_far, &back), (&back, at_near, &there)] {
        let said: usize = says.pieces.iter().sum();
        assert!(heard <= said);
        match end {
            Ok(()) => assert!(says.ends && heard == said, "{heard} of {said}"),
            Err(TunnelError::Reset(_)) => assert!(!says.ends || !other.ends),
            // The end at which it was reset.
            Err(TunnelError::Ended | TunnelError::ConnectionLost(_)) => assert!(!other.ends),
            Err(why @ TunnelError::Disbelieved(_)) => panic!("nobody is revoked: {why}"),
        }
        if says.ends && other.ends {
            assert_eq!(heard, said, "two that end in order hear each other out");
        }
    }
}

fn says() -> impl Strategy<Value = Says> {
    let piece = prop_oneof![1usize..10, 16_300usize..16_500, 1usize..300_000];
    let pieces = prop::collection::vec(piece, 0..8);
    (pieces, prop::bool::weighted(0.8)).prop_map(|(pieces, ends)| Says { pieces, ends })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn streams_carry_what_was_said_between_any_two_engines(
        streams in prop::collection::vec((says(), says()), 1..12),
        pair in 0usize..PAIRS.len(),
        threads in 1usize..3,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            let tunnels = tunnels(PAIRS[pair], streams.len()).await;
            for ((near, far), (there, back)) in tunnels.into_iter().zip(streams) {
                tasks.spawn(check_stream(near, far, there, back));
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
        });
    }
}

#[tokio::test]
async fn a_small_message_passes_a_stream_that_is_full() {
    for engines in PAIRS {
        let mut both = tunnels(engines, 2).await;
        let (mut chatty, mut chatty_far) = both.pop().unwrap();
        let (mut bulk, _unread) = both.pop().unwrap();
        let bulk =
            tokio::spawn(async move { while bulk.send(pattern(0, 1 << 20)).await.is_ok() {} });
        for n in 0..50u32 {
            chatty
                .send(Bytes::copy_from_slice(&n.to_be_bytes()))
                .await
                .unwrap();
            assert_eq!(
                common::read_exactly(&mut chatty_far, 4).await,
                n.to_be_bytes()
            );
        }
        bulk.abort();
    }
}

#[tokio::test]
async fn a_large_transfer_arrives_between_any_two_engines() {
    for engines in PAIRS {
        let (near, far) = tunnels(engines, 1).await.pop().unwrap();
        let says = Says {
            pieces: vec![3_000_000; 8],
            ends: true,
        };
        let back = Says {
            pieces: vec![70_000; 100],
            ends: true,
        };
        check_stream(near, far, says, back).await;
    }
}

/// A connection that is full at once.
fn narrow(address: SocketAddr) -> Dialling {
    Box::pin(async move {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_send_buffer_size(4 << 10)?;
        socket.set_recv_buffer_size(4 << 10)?;
        socket.connect(address).await
    })
}

#[tokio::test]
async fn streams_that_share_a_narrow_socket_all_arrive() {
    for engines in PAIRS {
        let (client, _server) = pair(engines, common::echo).await;
        let (destination, to) = (&client.destination, common::to("10.0.0.1:80"));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..12 {
            let tunnel = client.pool.open(destination, narrow, to.clone()).await;
            let (reader, mut writer) = tunnel.unwrap().split();
            tasks.spawn(async move {
                let (said, heard) = tokio::join!(
                    async {
                        for at in 0..10 {
                            let piece = pattern(at * 40_000, 40_000);
                            writer.send(piece).await.unwrap();
                        }
                        writer.shutdown()
                    },
                    hear(reader)
                );
                assert_eq!((said, heard), (Ok(()), (400_000, Ok(()))), "stream {n}");
            });
        }
        assert_eq!(client.pool.stats().connections, 1);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
}

#[tokio::test]
async fn streams_that_are_full_take_turns() {
    const STREAMS: usize = 4;
    for far in [Engine::Own, Engine::H2] {
        let heard: [Arc<AtomicUsize>; STREAMS] = Default::default();
        let (counts, next) = (heard.clone(), Arc::new(AtomicUsize::new(0)));
        let serve = move |request: Request| -> Served {
            let count = counts[next.fetch_add(1, Ordering::Relaxed)].clone();
            Box::pin(async move {
                let mut tunnel = request.accept(ResponseHeaders::default()).unwrap();
                while let Some(Ok(chunk)) = tunnel.recv().await {
                    count.fetch_add(chunk.len(), Ordering::Relaxed);
                }
            })
        };
        let (client, _server) = pair((Engine::Own, far), serve).await;
        let mut apps = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let to = common::to("10.0.0.1:80");
            let tunnel = client.pool.open(&client.destination, narrow, to).await;
            let (mut app, _, _) = copied(tunnel.unwrap()).await;
            apps.spawn(async move { while app.write_all(&[7; 64 << 10]).await.is_ok() {} });
        }
        let now = || heard.each_ref().map(|n| n.load(Ordering::Relaxed));
        let before = now();
        let since = || std::array::from_fn::<_, STREAMS, _>(|n| now()[n] - before[n]);
        let all = || since().iter().sum::<usize>();
        let alike = || since().iter().all(|n| *n > all() / STREAMS / 2);
        // One may be ahead of the others for as long as its window is ahead of theirs.
        common::eventually("all of them move", || {
            all() > 48 << 20 || (all() > 12 << 20 && alike())
        })
        .await;
        assert!(alike(), "{far:?}: {:?}", since());
    }
}

/// Two apps' sockets joined by proxies of these engines, with the copies between.
struct Apps {
    near: TcpStream,
    far: TcpStream,
    copies: [JoinHandle<Ended>; 2],
    /// Of the near and of the far proxy.
    counters: [Arc<Counters>; 2],
}

async fn apps(engines: (Engine, Engine)) -> Apps {
    let (near_tunnel, far_tunnel) = tunnels(engines, 1).await.pop().unwrap();
    let (near, near_copy, near_counters) = copied(near_tunnel).await;
    let (far, far_copy, far_counters) = copied(far_tunnel).await;
    Apps {
        near,
        far,
        copies: [near_copy, far_copy],
        counters: [near_counters, far_counters],
    }
}

async fn copied(tunnel: Tunnel) -> (TcpStream, JoinHandle<Ended>, Arc<Counters>) {
    let (app, socket) = common::socket_pair().await;
    let counters = Arc::new(Counters::default());
    let count = counters.clone();
    let copy = tokio::spawn(async move { hbone::both_ways(socket, tunnel, &*count).await });
    (app, copy, counters)
}

/// Reads to the end in pieces of all sizes, and now and then lets the others go on for a while.
async fn hear_slowly(mut app: OwnedReadHalf) -> usize {
    let (mut heard, mut size) = (0, 1);
    let mut buffer = vec![0; 70_000];
    loop {
        size = size * 3 % buffer.len() + 1;
        let n = app.read(&mut buffer[..size]).await.unwrap();
        if n == 0 {
            return heard;
        }
        assert!(buffer[..n] == pattern(heard, n), "other bytes at {heard}");
        heard += n;
        for _ in 0..size % 7 {
            tokio::task::yield_now().await;
        }
    }
}

async fn say_slowly(mut app: OwnedWriteHalf, total: usize) {
    let (mut said, mut size) = (0, 1);
    while said < total {
        size = (size * 5 % 200_000 + 1).min(total - said);
        app.write_all(&pattern(said, size)).await.unwrap();
        said += size;
    }
    app.shutdown().await.unwrap();
}

/// On two threads: the driver and the copy of a stream write to the same socket, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apps_that_read_and_write_as_they_like_hear_each_other_out() {
    for engines in PAIRS {
        let (there, back) = (9_000_000, 5_000_000);
        let apps = apps(engines).await;
        let (near_read, near_write) = apps.near.into_split();
        let (far_read, far_write) = apps.far.into_split();
        let ((), (), at_far, at_near) = tokio::join!(
            say_slowly(near_write, there),
            say_slowly(far_write, back),
            hear_slowly(far_read),
            hear_slowly(near_read)
        );
        assert_eq!((at_far, at_near), (there, back), "{engines:?}");
        for copy in apps.copies {
            assert!(copy.await.unwrap().clean());
        }
        let moved = apps.counters.map(|c| {
            let [sent, received] = [&c.sent, &*c.received].map(|n| n.load(Ordering::Relaxed));
            (sent as usize, received as usize)
        });
        assert_eq!(moved, [(there, back), (back, there)]);
    }
}

#[tokio::test]
async fn bytes_are_counted_as_they_pass() {
    for engines in PAIRS {
        let mut apps = apps(engines).await;
        for n in 1..=5u64 {
            apps.near.write_all(&[1; 64]).await.unwrap();
            apps.far.read_exact(&mut [0; 64]).await.unwrap();
            let counters = [&apps.counters[0].sent, &*apps.counters[1].received];
            common::eventually("both proxies have counted", || {
                counters.map(|c| c.load(Ordering::Relaxed)) == [64 * n; 2]
            })
            .await;
        }
    }
}

#[tokio::test]
async fn an_app_that_ends_is_heard_though_the_other_gives_no_credit() {
    for engines in PAIRS {
        let window = common::first_window(engines.1);
        let (tunnel, mut far) = tunnels(engines, 1).await.pop().unwrap();
        let (mut near, copy, counters) = copied(tunnel).await;
        near.write_all(&pattern(0, window)).await.unwrap();
        common::eventually("the window is used up", || {
            counters.sent.load(Ordering::Relaxed) == window as u64
        })
        .await;
        // Not one byte has been read, and yet both can end.
        near.shutdown().await.unwrap();
        far.shutdown().unwrap();
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
        let ended = tokio::time::timeout(STILL, copy).await;
        assert!(ended.expect("it waits for credit").unwrap().clean());
        assert_eq!(common::read_to_end(&mut far).await.unwrap().len(), window);
    }
}

#[tokio::test]
async fn an_app_that_resets_without_credit_is_noticed() {
    for engines in PAIRS {
        let (tunnel, mut far) = tunnels(engines, 1).await.pop().unwrap();
        let (mut near, copy, counters) = copied(tunnel).await;
        let window = common::first_window(engines.1);
        near.write_all(&vec![0; window]).await.unwrap();
        common::eventually("the window is used up", || {
            counters.sent.load(Ordering::Relaxed) == window as u64
        })
        .await;
        near.set_zero_linger().unwrap();
        drop(near);
        let ended = tokio::time::timeout(STILL, copy).await;
        let ended = ended.expect("it waits for credit").unwrap();
        assert!(matches!(ended.sent, HalfEnd::Socket(_)), "{ended:?}");
        common::read_to_end(&mut far).await.unwrap_err();
    }
}

type Dialling = std::pin::Pin<Box<dyn Future<Output = std::io::Result<TcpStream>> + Send>>;
