//! Bytes through tunnels over real sockets: half-close, resets, back-pressure, drain, and nothing left
//! behind.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use common::{
    Ca, Client, Refusals, Served, Server, identity,
    raw::{self, Raw},
};
use hbone::{
    ConnectionError, Counters, Ended, HalfEnd, Limits, PoolConfig, Request, Reserve,
    ResponseHeaders, Status, Tunnel, TunnelError, both_ways,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

struct Pair {
    client: Client,
    server: Server,
}

async fn pair(serve: impl Fn(Request) -> Served + Clone + Send + Sync + 'static) -> Pair {
    pair_with(PoolConfig::default(), serve).await
}

async fn pair_with(
    config: PoolConfig,
    serve: impl Fn(Request) -> Served + Clone + Send + Sync + 'static,
) -> Pair {
    let ca = Arc::new(Ca::new());
    let server = common::serve(
        ca.certificate(&identity("server")),
        Refusals::default().limits(),
        serve,
    )
    .await;
    let client = common::client(&ca, server.address, config);
    Pair { client, server }
}

/// A server whose tunnels arrive at the test.
async fn handed_over(config: PoolConfig) -> (Pair, mpsc::Receiver<Tunnel>) {
    let (sender, receiver) = mpsc::channel(1000);
    let serve = move |request: Request| -> Served {
        let sender = sender.clone();
        Box::pin(async move {
            if let Ok(tunnel) = request.accept(ResponseHeaders::default()) {
                let _ = sender.send(tunnel).await;
            }
        })
    };
    (pair_with(config, serve).await, receiver)
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let (pair, mut tunnels) = handed_over(PoolConfig::default()).await;
    let mut near = pair.client.open().await.unwrap();
    let mut far = tunnels.recv().await.unwrap();
    near.send("request".into()).await.unwrap();
    near.shutdown().unwrap();
    assert_eq!(common::read_to_end(&mut far).await.unwrap(), b"request");
    far.send("answer after the end of the request".into())
        .await
        .unwrap();
    far.shutdown().unwrap();
    assert_eq!(
        common::read_to_end(&mut near).await.unwrap(),
        b"answer after the end of the request"
    );
    assert_eq!(near.send("too late".into()).await, Err(TunnelError::Ended));
}

#[tokio::test]
async fn the_server_may_end_first() {
    let (pair, mut tunnels) = handed_over(PoolConfig::default()).await;
    let mut near = pair.client.open().await.unwrap();
    let mut far = tunnels.recv().await.unwrap();
    far.send("banner".into()).await.unwrap();
    far.shutdown().unwrap();
    assert_eq!(common::read_to_end(&mut near).await.unwrap(), b"banner");
    near.send("still talking".into()).await.unwrap();
    near.shutdown().unwrap();
    assert_eq!(
        common::read_to_end(&mut far).await.unwrap(),
        b"still talking"
    );
}

#[tokio::test]
async fn a_reset_is_an_error_at_the_other_end() {
    let (pair, mut tunnels) = handed_over(PoolConfig::default()).await;
    let mut near = pair.client.open().await.unwrap();
    tunnels.recv().await.unwrap().reset();
    assert!(matches!(
        near.recv().await,
        Some(Err(TunnelError::Reset(_)))
    ));

    let near = pair.client.open().await.unwrap();
    let mut far = tunnels.recv().await.unwrap();
    drop(near);
    assert!(matches!(far.recv().await, Some(Err(TunnelError::Reset(_)))));
}

#[tokio::test]
async fn a_refusal_reaches_the_opener_with_its_status() {
    for (status, code) in [
        (Status::BadRequest, 400),
        (Status::Denied, 401),
        (Status::Unavailable, 503),
    ] {
        let refuse =
            move |request: Request| -> Served { Box::pin(async move { request.refuse(status) }) };
        let pair = pair(refuse).await;
        let error = pair.client.open().await.unwrap_err();
        assert!(
            matches!(error, hbone::OpenError::Refused(c) if c == code),
            "{error}"
        );
        assert_eq!(pair.client.pool.stats().streams, 0);
    }
}

#[tokio::test]
async fn the_server_learns_that_a_request_was_abandoned() {
    let (sender, mut abandoned) = mpsc::channel(1);
    let serve = move |mut request: Request| -> Served {
        let sender = sender.clone();
        Box::pin(async move {
            sender.send("arrived").await.unwrap();
            request.abandoned().await;
            sender.send("abandoned").await.unwrap();
        })
    };
    let pair = pair(serve).await;
    let opening = pair.client.open();
    tokio::select! {
        _ = opening => panic!("nobody answers"),
        seen = abandoned.recv() => assert_eq!(seen, Some("arrived")),
    }
    assert_eq!(abandoned.recv().await, Some("abandoned"));
}

#[tokio::test]
async fn megabytes_arrive_as_they_were_sent() {
    let pair = pair(common::echo).await;
    let tunnel = pair.client.open().await.unwrap();
    let (mut reader, mut writer) = tunnel.split();
    let sent: Bytes = (0..20_000_000u32)
        .map(|i| (i / 7 % 256) as u8)
        .collect::<Vec<_>>()
        .into();
    let expected = sent.clone();
    tokio::spawn(async move {
        writer.send(sent).await.unwrap();
        writer.shutdown().unwrap();
    });
    let mut got = Vec::new();
    while let Some(chunk) = reader.recv().await {
        got.extend_from_slice(&chunk.unwrap());
    }
    assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
}

/// Sends until the peer gives no more credit; returns how much it took. Less than a stream's window is
/// waited for patiently: only beyond it does a pause mean that there is no more to come.
async fn send_until_stalled(tunnel: &mut Tunnel) -> usize {
    let chunk = Bytes::from(vec![7; 64 << 10]);
    let mut sent = 0;
    loop {
        let patience = Duration::from_millis(if sent < window() { 60_000 } else { 200 });
        if tokio::time::timeout(patience, tunnel.send(chunk.clone()))
            .await
            .is_err()
        {
            return sent;
        }
        sent += chunk.len();
        assert!(
            sent < 64 << 20,
            "a stream that nobody reads takes everything"
        );
    }
}

/// What a stream takes that nobody reads.
fn window() -> usize {
    common::first_window(common::engine())
}

/// Streams whose windows together are far more than a connection begins with.
fn many() -> usize {
    (40 << 20) / window()
}

/// [`send_until_stalled`] on all of them at once.
async fn all_until_stalled(tunnels: Vec<Tunnel>) -> Vec<(Tunnel, usize)> {
    let sending: Vec<_> = tunnels
        .into_iter()
        .map(|mut tunnel| {
            tokio::spawn(async move {
                let sent = send_until_stalled(&mut tunnel).await;
                (tunnel, sent)
            })
        })
        .collect();
    let mut stalled = Vec::new();
    for tunnel in sending {
        stalled.push(tunnel.await.unwrap());
    }
    stalled
}

#[tokio::test]
async fn a_reader_that_stops_holds_back_only_its_own_stream() {
    let (pair, mut tunnels) = handed_over(PoolConfig::default()).await;
    let mut fine = pair.client.open().await.unwrap();
    tokio::spawn(common::echo_tunnel(tunnels.recv().await.unwrap()));
    let (mut stalled, mut unread) = (Vec::new(), Vec::new());
    for _ in 0..many() {
        // All on the first connection: this is about the receiver, not about the pool's care.
        stalled.push(pair.client.open().await.unwrap());
        unread.push(tunnels.recv().await.unwrap());
    }
    assert_eq!(pair.client.pool.stats().connections, 1);
    let mut stalled = all_until_stalled(stalled).await;
    for (_, sent) in &stalled {
        assert!(*sent >= window(), "each has its own window, {sent}");
        let most = window() + (1 << 20);
        assert!(*sent <= most, "and what waits unread is bounded, {sent}");
    }
    for n in 0..100u32 {
        fine.send(Bytes::copy_from_slice(&n.to_be_bytes()))
            .await
            .unwrap();
        assert_eq!(common::read_exactly(&mut fine, 4).await, n.to_be_bytes());
    }
    // When they read again, all of it arrives.
    let mut first = unread.remove(0);
    let (mut sender, sent) = stalled.remove(0);
    sender.shutdown().unwrap();
    let read = tokio::time::timeout(Duration::from_secs(60), async {
        let mut total = 0;
        while let Some(Ok(chunk)) = first.recv().await {
            total += chunk.len();
        }
        total
    });
    assert!(read.await.unwrap() >= sent);
}

#[tokio::test]
async fn readers_that_stop_on_our_side_do_not_freeze_what_the_server_sends() {
    let (pair, mut tunnels) = handed_over(PoolConfig::default()).await;
    let fine = pair.client.open().await.unwrap();
    let mut serving = tunnels.recv().await.unwrap();
    let (mut unread, mut sending) = (Vec::new(), Vec::new());
    for _ in 0..many() {
        unread.push(pair.client.open().await.unwrap());
        sending.push(tunnels.recv().await.unwrap());
    }
    let stalled = all_until_stalled(sending).await;
    assert!(stalled.iter().all(|(_, sent)| *sent >= window()));
    let (mut reader, _writer) = fine.split();
    for n in 0..100u32 {
        serving
            .send(Bytes::copy_from_slice(&n.to_be_bytes()))
            .await
            .unwrap();
        assert_eq!(reader.recv().await.unwrap().unwrap(), n.to_be_bytes()[..]);
    }
}

#[tokio::test]
async fn when_the_reserve_is_used_up_windows_stay_and_other_connections_go_on() {
    let (theirs, ours) = (Reserve::of(4 << 20), Reserve::of(4 << 20));
    let ca = Arc::new(Ca::new());
    let (sender, mut tunnels) = mpsc::channel(100);
    let serve = move |request: Request| -> Served {
        let sender = sender.clone();
        Box::pin(async move {
            let tunnel = request.accept(ResponseHeaders::default()).unwrap();
            sender.send(tunnel).await.unwrap();
        })
    };
    let limits = Limits {
        reserve: theirs.clone(),
        ..Limits::default()
    };
    let server = common::serve(ca.certificate(&identity("server")), limits, serve).await;
    let config = PoolConfig {
        reserve: ours.clone(),
        ..PoolConfig::default()
    };
    let client = common::client(&ca, server.address, config.clone());
    let (mut senders, mut unread) = (Vec::new(), Vec::new());
    for _ in 0..(32 << 20) / window() {
        senders.push(client.open().await.unwrap());
        unread.push(tunnels.recv().await.unwrap());
    }
    assert_eq!(client.pool.stats().connections, 1);
    common::eventually("both windows grow as far as they can", || {
        (theirs.left(), ours.left()) == (0, 0)
    })
    .await;
    // Streams whose windows are 32 MiB together are sent to, nobody reads: 20 MiB is all that leaves.
    let sending: Vec<_> = senders
        .into_iter()
        .map(|mut tunnel| {
            let sent = Arc::new(AtomicUsize::new(0));
            let count = sent.clone();
            let task = tokio::spawn(async move {
                let chunk = Bytes::from(vec![7; 64 << 10]);
                while tunnel.send(chunk.clone()).await.is_ok() {
                    count.fetch_add(chunk.len(), Ordering::SeqCst);
                }
            });
            (sent, task)
        })
        .collect();
    let total = || -> usize {
        let counts = sending.iter().map(|(sent, _)| sent.load(Ordering::SeqCst));
        counts.sum()
    };
    common::eventually("the window is used", || total() >= 19 << 20).await;

    // Another connection has its own 16 MiB and works, in both directions.
    let other = common::client(&ca, server.address, config);
    let mut near = other.open().await.unwrap();
    tokio::spawn(common::echo_tunnel(tunnels.recv().await.unwrap()));
    for _ in 0..100 {
        near.send(vec![1; 100_000].into()).await.unwrap();
        common::read_exactly(&mut near, 100_000).await;
    }
    // What the engine buffers to send (128 KiB a stream) comes on top of the window.
    assert!(total() <= 22 << 20, "{} bytes left the senders", total());

    // The reserve is whole again when the connection and all that is unread of it are gone, not before.
    for (_, task) in sending {
        task.abort();
    }
    client
        .pool
        .close_source(&client.destination.source, client.destination.source_ip);
    common::eventually("the client's part is back", || ours.left() == 4 << 20).await;
    assert_eq!(theirs.left(), 0, "bytes of it still wait for their readers");
    drop(unread);
    common::eventually("the server's part is back", || theirs.left() == 4 << 20).await;
}

#[tokio::test]
async fn small_frames_that_nobody_reads_do_not_end_the_connection() {
    let (pair, mut tunnels) = handed_over(PoolConfig::default()).await;
    let mut fine = pair.client.open().await.unwrap();
    tokio::spawn(common::echo_tunnel(tunnels.recv().await.unwrap()));
    let mut chatty = pair.client.open().await.unwrap();
    let (app, far_app) = common::socket_pair().await;
    let tunnel = tunnels.recv().await.unwrap();
    tokio::spawn(async move { both_ways(far_app, tunnel, &Counters::default()).await });
    // The app does not read while so many small frames come: more than the engine would keep one by one.
    let frames = (window() / 10).min(100_000);
    for _ in 0..frames {
        chatty
            .send(Bytes::from_static(b"0123456789"))
            .await
            .unwrap();
    }
    chatty.shutdown().unwrap();
    fine.send("alive".into()).await.unwrap();
    assert_eq!(common::read_exactly(&mut fine, 5).await, b"alive");
    let (mut app, mut all) = (app, Vec::new());
    app.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), 10 * frames);
}

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

#[tokio::test]
async fn credit_that_is_taken_back_at_once_is_no_end_of_a_byte_stream() {
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let client = common::client(&ca, address, PoolConfig::default());
    let serving = async {
        let (socket, _) = listener.accept().await.unwrap();
        let badge = raw::badge(
            &ca,
            &[&identity("server").to_string()],
            std::time::SystemTime::now() + common::HOUR,
        );
        let mut peer = Raw::accept(socket, raw::tls_server(&ca, badge))
            .await
            .unwrap();
        peer.send(&raw::frame(raw::SETTINGS, 0, 0, &[]))
            .await
            .unwrap();
        peer.until("a request", |f| f.kind == raw::HEADERS).await;
        let ok = raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &[0x88]);
        peer.send(&ok).await.unwrap();
        peer
    };
    let (tunnel, mut peer) = tokio::join!(client.open(), serving);
    let mut io = tunnel.unwrap().into_io();
    // The whole window of a stream, then one write that waits.
    io.write_all(&[0; 65_535]).await.unwrap();
    let mut write = Box::pin(io.write(b"more"));
    assert!(poll_once(&mut write).await.is_pending());
    let mut arrived = 0;
    while arrived < 65_535 {
        let data = peer.until("data", |f| f.kind == raw::DATA).await;
        arrived += data.payload.len();
    }
    // Credit for both windows, and less than nothing of it left for the stream.
    let credit = 1_000u32.to_be_bytes();
    let smaller = [&[0, 4][..], &60_000u32.to_be_bytes()].concat();
    let batch = [
        raw::frame(raw::WINDOW_UPDATE, 0, 0, &credit),
        raw::frame(raw::WINDOW_UPDATE, 0, 1, &credit),
        raw::frame(raw::SETTINGS, 0, 0, &smaller),
        raw::frame(raw::PING, 0, 0, b"all read"),
    ];
    peer.send(&batch.concat()).await.unwrap();
    let answer = |f: &raw::Frame| f.kind == raw::PING && f.payload == b"all read";
    peer.until("the answer", answer).await;
    assert!(poll_once(&mut write).await.is_pending());
    let enough = 10_000u32.to_be_bytes();
    peer.send(&raw::frame(raw::WINDOW_UPDATE, 0, 1, &enough))
        .await
        .unwrap();
    assert_eq!(write.await.unwrap(), 4);
}

/// An app on each end, with a tunnel and two copies between them.
struct Apps {
    near: TcpStream,
    far: TcpStream,
    near_copy: tokio::task::JoinHandle<Ended>,
    far_copy: tokio::task::JoinHandle<Ended>,
    near_counters: Arc<Counters>,
    _pair: Pair,
}

async fn apps() -> Apps {
    let (pair, mut tunnels) = handed_over(PoolConfig::default()).await;
    let (near, near_socket) = common::socket_pair().await;
    let (far, far_socket) = common::socket_pair().await;
    let near_tunnel = pair.client.open().await.unwrap();
    let far_tunnel = tunnels.recv().await.unwrap();
    let near_counters = Arc::new(Counters::default());
    let counters = near_counters.clone();
    let near_copy =
        tokio::spawn(async move { both_ways(near_socket, near_tunnel, &*counters).await });
    let far_copy =
        tokio::spawn(async move { both_ways(far_socket, far_tunnel, &Counters::default()).await });
    Apps {
        near,
        far,
        near_copy,
        far_copy,
        near_counters,
        _pair: pair,
    }
}

#[tokio::test]
async fn sockets_are_copied_both_ways_with_half_close_and_counted() {
    let mut apps = apps().await;
    let request = vec![1; 3_000_000];
    let sending = request.clone();
    let (mut near_read, mut near_write) = apps.near.into_split();
    tokio::spawn(async move {
        near_write.write_all(&sending).await.unwrap();
        near_write.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    apps.far.read_to_end(&mut got).await.unwrap();
    assert!(got == request);
    apps.far.write_all(b"answer").await.unwrap();
    drop(apps.far);
    let mut answer = Vec::new();
    near_read.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert!(apps.near_copy.await.unwrap().clean());
    assert!(apps.far_copy.await.unwrap().clean());
    assert_eq!(apps.near_counters.sent.load(Ordering::Relaxed), 3_000_000);
    assert_eq!(apps.near_counters.received.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn an_app_that_resets_resets_the_other_app() {
    let mut apps = apps().await;
    apps.near.write_all(b"x").await.unwrap();
    assert_eq!(apps.far.read_u8().await.unwrap(), b'x');
    apps.near.set_zero_linger().unwrap();
    drop(apps.near);
    assert_eq!(
        apps.far.read_u8().await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(matches!(
        apps.near_copy.await.unwrap().sent,
        HalfEnd::Socket(std::io::ErrorKind::ConnectionReset)
    ));
    assert!(matches!(
        apps.far_copy.await.unwrap().received,
        HalfEnd::Tunnel(TunnelError::Reset(_))
    ));
}

#[tokio::test]
async fn an_app_that_answers_and_leaves_is_heard_to_the_end() {
    // The far app answers without reading what is still coming and closes: its kernel resets. The near
    // app must still get the whole answer.
    let apps = apps().await;
    let (mut near_read, mut near_write) = apps.near.into_split();
    let sending = tokio::spawn(async move {
        let piece = vec![0; 64 << 10];
        while near_write.write_all(&piece).await.is_ok() {}
    });
    let mut far = apps.far;
    let mut some = [0; 1000];
    far.read_exact(&mut some).await.unwrap();
    far.write_all(&vec![9; 200_000]).await.unwrap();
    far.shutdown().await.unwrap();
    let mut answer = Vec::new();
    near_read.read_to_end(&mut answer).await.unwrap();
    drop(far);
    assert_eq!(answer.len(), 200_000);
    assert!(!apps.far_copy.await.unwrap().clean());
    assert!(matches!(
        apps.near_copy.await.unwrap().sent,
        HalfEnd::Tunnel(_)
    ));
    sending.await.unwrap();
}

#[tokio::test]
async fn cancelling_a_copy_resets_both_ends() {
    let mut apps = apps().await;
    apps.near.write_all(b"x").await.unwrap();
    assert_eq!(apps.far.read_u8().await.unwrap(), b'x');
    apps.near_copy.abort();
    assert_eq!(
        apps.near.read_u8().await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert_eq!(
        apps.far.read_u8().await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn a_drained_connection_finishes_its_tunnels_and_takes_no_new_ones() {
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let client = common::client(&ca, address, PoolConfig::default());
    let opening = client.open();
    let (limits, certificate) = (
        Refusals::default().limits(),
        ca.certificate(&identity("server")),
    );
    let serving = async {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = hbone::accept(socket, certificate.clone(), &limits)
            .await
            .unwrap();
        let request = common::request(&mut connection).await;
        let tunnel = request.accept(ResponseHeaders::default()).unwrap();
        tokio::spawn(common::echo_tunnel(tunnel));
        connection.drain(Duration::from_secs(30));
        let driving = tokio::spawn(async move {
            assert!(
                connection.next().await.is_none(),
                "it ends in peace when its tunnels have ended"
            );
        });
        (listener, driving)
    };
    let (tunnel, (listener, driving)) = tokio::join!(opening, serving);
    let mut tunnel = tunnel.unwrap();
    // The next tunnel needs a new connection.
    let second = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let limits = Refusals::default().limits();
        let mut connection = hbone::accept(socket, certificate, &limits).await.unwrap();
        common::drive(&mut connection, common::echo).await;
    });
    let mut other = client.open().await.unwrap();
    for tunnel in [&mut tunnel, &mut other] {
        tunnel.send("both work".into()).await.unwrap();
        assert_eq!(common::read_exactly(tunnel, 9).await, b"both work");
    }
    tunnel.shutdown().unwrap();
    assert!(common::read_to_end(&mut tunnel).await.unwrap().is_empty());
    drop(tunnel);
    driving.await.unwrap();
    second.abort();
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline() {
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let client = common::client(&ca, address, PoolConfig::default());
    let (limits, certificate) = (
        Refusals::default().limits(),
        ca.certificate(&identity("server")),
    );
    let serving = async {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = hbone::accept(socket, certificate, &limits).await.unwrap();
        let request = common::request(&mut connection).await;
        let held = request.accept(ResponseHeaders::default()).unwrap();
        connection.drain(Duration::from_secs(2)); // no sooner than the answer has been heard
        let driving = tokio::spawn(async move { connection.next().await });
        (held, driving)
    };
    let (tunnel, (held, driving)) = tokio::join!(client.open(), serving);
    let mut tunnel = tunnel.unwrap();
    let end = driving.await.unwrap();
    assert!(
        matches!(end, Some(Err(ConnectionError::DrainDeadline(1)))),
        "{end:?}"
    );
    assert!(matches!(
        tunnel.recv().await,
        Some(Err(TunnelError::ConnectionLost(_)))
    ));
    drop(held);
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_tunnels_leave_nothing_behind() {
    let pair = Arc::new(pair(common::echo).await);
    let run = async |count: usize| {
        let opened = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (pair, opened) = (pair.clone(), opened.clone());
            tasks.spawn(async move {
                while opened.fetch_add(1, Ordering::Relaxed) < count {
                    let mut tunnel = pair.client.open().await.unwrap();
                    tunnel.send("hello".into()).await.unwrap();
                    tunnel.shutdown().unwrap();
                    assert_eq!(common::read_to_end(&mut tunnel).await.unwrap(), b"hello");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    };
    run(50).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    common::eventually("the first tunnels' tasks end", || {
        pair.client.pool.stats().streams == 0
    })
    .await;
    let (tasks, files) = (metrics.num_alive_tasks(), open_files());
    run(2000).await;
    assert_eq!(pair.client.pool.stats().connections, 1);
    assert_eq!(pair.server.accepted.load(Ordering::Relaxed), 1);
    common::eventually("no task is left", || metrics.num_alive_tasks() <= tasks).await;
    // Other tests of this process open files of their own; ours would be 2,000.
    assert!(
        open_files() < files + 500,
        "{} files, {files} before",
        open_files()
    );
}
