//! Our own engine beside `h2`: whichever stands at either end, the apps see the same.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{Ca, Client, Refusals, Served, Server, identity};
use hbone::{Engine, Limits, PoolConfig, Request, ResponseHeaders, Tunnel, TunnelError};
use proptest::prelude::*;
use tokio::sync::mpsc;

const PAIRS: [(Engine, Engine); 3] = [
    (Engine::Own, Engine::Own),
    (Engine::Own, Engine::H2),
    (Engine::H2, Engine::Own),
];

/// A client and a server of these engines.
async fn pair(
    (near, far): (Engine, Engine),
    serve: impl Fn(Request) -> Served + Clone + Send + Sync + 'static,
) -> (Client, Server) {
    let ca = Arc::new(Ca::new());
    let limits = Limits {
        engine: far,
        ..Refusals::default().limits()
    };
    let server = common::serve(ca.certificate(&identity("server")), limits, serve).await;
    let config = PoolConfig {
        engine: near,
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
    while let Some(chunk) = reader.recv().await {
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
    (heard, Ok(()))
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
            let work = async {
                let mut tasks = tokio::task::JoinSet::new();
                let tunnels = tunnels(PAIRS[pair], streams.len()).await;
                for ((near, far), (there, back)) in tunnels.into_iter().zip(streams) {
                    tasks.spawn(check_stream(near, far, there, back));
                }
                while let Some(done) = tasks.join_next().await {
                    done.unwrap();
                }
            };
            tokio::time::timeout(Duration::from_secs(60), work).await.expect("a stream hangs");
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
        tokio::time::timeout(Duration::from_secs(60), check_stream(near, far, says, back))
            .await
            .expect("it hangs");
    }
}

#[tokio::test]
async fn streams_that_share_a_narrow_socket_all_arrive() {
    for engines in PAIRS {
        let (client, _server) = pair(engines, common::echo).await;
        let narrow = async |address| {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.set_send_buffer_size(4 << 10)?;
            socket.set_recv_buffer_size(4 << 10)?;
            socket.connect(address).await
        };
        let (destination, to) = (&client.destination, common::to("10.0.0.1:80"));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..12 {
            let dial = |address| Box::pin(narrow(address)) as Dialling;
            let tunnel = client.pool.open(destination, dial, to.clone()).await;
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
        let all = async {
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all)
            .await
            .expect("a stream hangs");
    }
}

type Dialling =
    std::pin::Pin<Box<dyn Future<Output = std::io::Result<tokio::net::TcpStream>> + Send>>;
