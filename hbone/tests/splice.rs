//! Bytes between two sockets of this machine: small, large, ended, reset.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::sync::{Arc, atomic::Ordering};

use hbone::{Counters, Ended, HalfEnd, tcp_both_ways};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

struct Joined {
    near: TcpStream,
    far: TcpStream,
    copy: JoinHandle<Ended>,
    counters: Arc<Counters>,
}

async fn joined() -> Joined {
    let (near, a) = common::socket_pair().await;
    let (b, far) = common::socket_pair().await;
    let counters = Arc::new(Counters::default());
    let counting = counters.clone();
    let copy = tokio::spawn(async move { tcp_both_ways(a, b, &counting).await });
    Joined {
        near,
        far,
        copy,
        counters,
    }
}

#[tokio::test]
async fn small_messages_go_back_and_forth() {
    let Joined {
        mut near,
        mut far,
        copy,
        counters,
    } = joined().await;
    for n in 0..1000u32 {
        near.write_all(&n.to_be_bytes()).await.unwrap();
        assert_eq!(far.read_u32().await.unwrap(), n);
        far.write_all(&(n + 1).to_be_bytes()).await.unwrap();
        assert_eq!(near.read_u32().await.unwrap(), n + 1);
    }
    drop(near);
    assert_eq!(far.read(&mut [0; 10]).await.unwrap(), 0);
    drop(far);
    assert!(copy.await.unwrap().clean());
    assert_eq!(
        (
            counters.sent.load(Ordering::Relaxed),
            counters.received.load(Ordering::Relaxed)
        ),
        (4000, 4000)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_and_small_pieces_in_turn_arrive_as_sent_in_both_directions() {
    let Joined {
        near,
        far,
        copy,
        counters,
    } = joined().await;
    // Long enough to enter and leave bulk several times.
    let pieces: Vec<Vec<u8>> = (0..40)
        .map(|n: usize| {
            let size = if n % 10 < 3 { 1_500_000 } else { 100 + n };
            (0..size).map(|i| ((i * 31 + n * 7) % 251) as u8).collect()
        })
        .collect();
    let whole: Vec<u8> = pieces.concat();
    let mut ends = Vec::new();
    for socket in [near, far] {
        let (mut read, mut write) = socket.into_split();
        let (pieces, whole) = (pieces.clone(), whole.clone());
        ends.push(tokio::spawn(async move {
            for piece in &pieces {
                write.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            write.shutdown().await.unwrap();
        }));
        ends.push(tokio::spawn(async move {
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            assert!(got == whole, "{} of {}", got.len(), whole.len());
        }));
    }
    for end in ends {
        end.await.unwrap();
    }
    assert!(copy.await.unwrap().clean());
    assert_eq!(counters.sent.load(Ordering::Relaxed) as usize, whole.len());
    assert_eq!(
        counters.received.load(Ordering::Relaxed) as usize,
        whole.len()
    );
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let Joined {
        mut near,
        mut far,
        copy,
        ..
    } = joined().await;
    near.write_all(b"request").await.unwrap();
    near.shutdown().await.unwrap();
    let mut request = Vec::new();
    far.read_to_end(&mut request).await.unwrap();
    assert_eq!(request, b"request");
    far.write_all(b"answer").await.unwrap();
    drop(far);
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert!(copy.await.unwrap().clean());
}

#[tokio::test]
async fn a_reset_becomes_a_reset() {
    let Joined {
        near,
        mut far,
        copy,
        ..
    } = joined().await;
    near.set_zero_linger().unwrap();
    drop(near);
    assert_eq!(
        far.read_u8().await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert_eq!(
        copy.await.unwrap().sent,
        HalfEnd::Socket(std::io::ErrorKind::ConnectionReset)
    );
}

#[tokio::test]
async fn a_reader_that_stops_holds_the_writer_back() {
    let Joined {
        mut near,
        far,
        copy,
        counters,
    } = joined().await;
    let piece = vec![0; 1 << 20];
    let mut sent = 0;
    let limit = std::time::Duration::from_millis(300);
    while tokio::time::timeout(limit, near.write_all(&piece))
        .await
        .is_ok()
    {
        sent += piece.len();
        assert!(sent < 256 << 20, "memory grows without end");
    }
    common::eventually("bytes are moved", || {
        counters.sent.load(Ordering::Relaxed) > 0
    })
    .await;
    drop(far);
    near.set_zero_linger().unwrap();
    drop(near);
    assert!(!copy.await.unwrap().clean());
}

#[tokio::test]
async fn cancelling_resets_both_sockets() {
    let Joined {
        mut near,
        mut far,
        copy,
        ..
    } = joined().await;
    near.write_all(b"x").await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'x');
    copy.abort();
    for socket in [&mut near, &mut far] {
        assert_eq!(
            socket.read_u8().await.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset
        );
    }
}

#[tokio::test]
async fn a_bulk_ends_its_turn_after_some_megabytes_though_there_is_more() {
    const ALL: usize = 512 << 20;
    let Joined {
        near,
        far,
        copy,
        counters,
    } = joined().await;
    let blocking = |tcp: TcpStream| {
        let tcp = tcp.into_std().unwrap();
        tcp.set_nonblocking(false).unwrap();
        tcp
    };
    let (mut near, mut far) = (blocking(near), blocking(far));
    let writing = std::thread::spawn(move || {
        let piece = vec![7; 1 << 20];
        for _ in 0..ALL / piece.len() {
            std::io::Write::write_all(&mut near, &piece).unwrap();
        }
    });
    let reading = std::thread::spawn(move || {
        let mut piece = vec![0; 1 << 20];
        while std::io::Read::read(&mut far, &mut piece).unwrap() > 0 {}
    });
    let (mut before, mut longest) = (0, 0);
    while before < ALL as u64 && !copy.is_finished() {
        tokio::task::yield_now().await;
        let now = counters.sent.load(Ordering::Relaxed);
        longest = longest.max(now - before);
        before = now;
    }
    // What a pipe held, a turn, and what the last read of it may be beyond.
    assert!(longest <= 3 << 20, "{longest} bytes in one turn");
    // It is this thread that copies: who waited for the others here would keep the end from them.
    assert!(copy.await.unwrap().clean());
    writing.join().unwrap();
    reading.join().unwrap();
}
