//! Which tunnels share a connection, and when a connection leaves.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use common::{
    Ca, Client, Refusals, Served, Server, Signing, identity,
    raw::{self, Raw},
};
use hbone::datagrams::{NoWay, capsule};
use hbone::{
    Destination, Engine, Limits, OpenError, PoolConfig, PoolStats, Request, ResponseHeaders, Tunnel,
};
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet};

async fn pair(config: PoolConfig) -> (Server, Client) {
    let ca = Arc::new(Ca::new());
    let server = common::serve(
        ca.certificate(&identity("server")),
        Refusals::default().limits(),
        common::echo,
    )
    .await;
    let client = common::client(&ca, server.address, config);
    (server, client)
}

/// Opens that many tunnels at once; all must come.
async fn open_at_once(client: &Client, count: usize) -> Vec<Tunnel> {
    let mut opening = JoinSet::new();
    for _ in 0..count {
        let (pool, destination) = (client.pool.clone(), client.destination.clone());
        opening.spawn(async move {
            pool.open(&destination, TcpStream::connect, common::to("10.0.0.1:80"))
                .await
                .unwrap()
        });
    }
    opening.join_all().await
}

#[tokio::test]
async fn tunnels_opened_at_once_share_one_handshake() {
    let (server, client) = pair(PoolConfig::default()).await;
    let tunnels = open_at_once(&client, 60).await;
    assert_eq!(server.accepted.load(Ordering::SeqCst), 1);
    assert_eq!(
        client.pool.stats(),
        PoolStats {
            destinations: 1,
            connections: 1,
            streams: 60
        }
    );
    drop(tunnels);
    assert_eq!(client.pool.stats().streams, 0);
}

#[tokio::test]
async fn a_connection_that_was_there_before_any_tunnel_carries_the_first() {
    let (server, client) = pair(PoolConfig::default()).await;
    for _ in 0..2 {
        let ready = client.pool.ready(&client.destination, TcpStream::connect);
        ready.await.unwrap();
    }
    let unused = PoolStats {
        destinations: 1,
        connections: 1,
        streams: 0,
    };
    assert_eq!(client.pool.stats(), unused);
    let _tunnel = client.open().await.unwrap();
    assert_eq!(server.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_hundred_and_first_tunnel_opens_a_second_connection() {
    let (server, client) = pair(PoolConfig::default()).await;
    let hundred = open_at_once(&client, 100).await;
    assert_eq!(server.accepted.load(Ordering::SeqCst), 1);
    let mut one_more = client.open().await.unwrap();
    assert_eq!(server.accepted.load(Ordering::SeqCst), 2);
    one_more.send("works".into()).await.unwrap();
    assert_eq!(common::read_exactly(&mut one_more, 5).await, b"works");
    drop(hundred);
}

#[tokio::test]
async fn five_hundred_at_once_all_come_on_a_handful_of_connections() {
    let (server, client) = pair(PoolConfig::default()).await;
    let tunnels = open_at_once(&client, 500).await;
    let accepted = server.accepted.load(Ordering::SeqCst);
    assert!((5..=10).contains(&accepted), "{accepted} connections");
    assert_eq!(client.pool.stats().streams, 500);
    drop(tunnels);
}

#[tokio::test]
async fn sources_and_expectations_never_share_a_connection() {
    let (server, client) = pair(PoolConfig::default()).await;
    let first = client.open().await.unwrap();
    let others = [
        Destination {
            source: identity("other-client"),
            ..client.destination.clone()
        },
        Destination {
            source_ip: "127.0.0.2".parse().unwrap(),
            ..client.destination.clone()
        },
        Destination {
            expected: vec![identity("other"), identity("server")],
            ..client.destination.clone()
        },
    ];
    let mut kept = vec![first];
    for (n, destination) in others.iter().enumerate() {
        kept.push(
            client
                .pool
                .open(destination, TcpStream::connect, common::to("10.0.0.1:80"))
                .await
                .unwrap(),
        );
        assert_eq!(server.accepted.load(Ordering::SeqCst), n + 2);
    }
    let nobody = Destination {
        expected: vec![],
        ..client.destination.clone()
    };
    let error = client
        .pool
        .open(&nobody, TcpStream::connect, common::to("10.0.0.1:80"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, OpenError::IdentityMismatch(_)),
        "nobody is acceptable: {error}"
    );
}

#[tokio::test]
async fn a_broken_connection_leaves_at_once_and_the_next_tunnel_makes_another() {
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let client = common::client(&ca, address, PoolConfig::default());
    let certificate = ca.certificate(&identity("server"));
    let serving = async || {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection =
            hbone::accept(socket, certificate.clone(), &Refusals::default().limits())
                .await
                .unwrap();
        tokio::spawn(async move { common::drive(&mut connection, common::echo).await })
            .abort_handle()
    };
    let (tunnel, connection) = tokio::join!(client.open(), serving());
    let mut tunnel = tunnel.unwrap();
    connection.abort();
    assert!(matches!(tunnel.recv().await, Some(Err(_))));
    common::eventually("it leaves the pool", || {
        client.pool.stats().connections == 0
    })
    .await;
    let (tunnel, _connection) = tokio::join!(client.open(), serving());
    tunnel.unwrap();
}

#[tokio::test]
async fn a_connection_that_dies_under_a_request_is_replaced_without_the_caller_noticing() {
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let client = common::client(&ca, address, PoolConfig::default());
    let certificate = ca.certificate(&identity("server"));
    let serving = async {
        let (socket, _) = listener.accept().await.unwrap();
        let mut first = hbone::accept(socket, certificate.clone(), &Refusals::default().limits())
            .await
            .unwrap();
        let request = common::request(&mut first).await;
        // It dies with the request unanswered; nobody says anything about the request itself.
        drop(first);
        drop(request);
        let (socket, _) = listener.accept().await.unwrap();
        let mut second = hbone::accept(socket, certificate.clone(), &Refusals::default().limits())
            .await
            .unwrap();
        let request = common::request(&mut second).await;
        tokio::spawn(common::echo(request));
        tokio::spawn(async move { second.next().await.is_none() });
    };
    let (tunnel, _) = tokio::join!(client.open(), serving);
    tunnel.unwrap();
}

#[tokio::test]
async fn a_failed_dial_is_everybodys_failure_at_once() {
    let (_server, client) = pair(PoolConfig::default()).await;
    let dials = AtomicUsize::new(0);
    let gate = Semaphore::new(0);
    let dial = |_| async {
        dials.fetch_add(1, Ordering::SeqCst);
        gate.acquire().await.unwrap().forget();
        Err::<TcpStream, _>(io::Error::from(io::ErrorKind::HostUnreachable))
    };
    let open = || {
        client
            .pool
            .open(&client.destination, dial, common::to("10.0.0.1:80"))
    };
    let (a, b, c, ()) = tokio::join!(open(), open(), open(), async { gate.add_permits(1) });
    for outcome in [a, b, c] {
        match outcome.unwrap_err() {
            OpenError::Dial { error, .. } => {
                assert_eq!(error.kind(), io::ErrorKind::HostUnreachable)
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    assert_eq!(client.pool.stats(), PoolStats::default());
}

#[tokio::test]
async fn when_the_maker_gives_up_somebody_else_makes_the_connection() {
    let (_server, client) = pair(PoolConfig::default()).await;
    let never = |_| std::future::pending::<io::Result<TcpStream>>();
    let maker = client
        .pool
        .open(&client.destination, never, common::to("10.0.0.1:80"));
    let mut maker = Box::pin(maker);
    // Poll the maker until it dials, then wait behind it.
    assert!(
        tokio::time::timeout(Duration::from_millis(50), &mut maker)
            .await
            .is_err()
    );
    let waiter = client.open();
    let cancel = async { drop(maker) };
    let (tunnel, ()) = tokio::join!(waiter, cancel);
    tunnel.unwrap();
}

#[tokio::test]
async fn a_stalled_connection_gets_no_more_tunnels() {
    let ca = Arc::new(Ca::new());
    let (sender, mut unread) = tokio::sync::mpsc::channel(100);
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
    let mut senders = Vec::new();
    // 9 of 16 MiB in the end.
    let each = common::first_window(common::engine()) / 4 * 3;
    for _ in 0..(9 << 20) / each {
        senders.push(client.open().await.unwrap());
    }
    let mut kept = Vec::new();
    for tunnel in &mut senders {
        kept.push(unread.recv().await.unwrap());
        tunnel.send(Bytes::from(vec![0; each])).await.unwrap();
    }
    assert_eq!(server.accepted.load(Ordering::SeqCst), 1);
    let mut tries = 0;
    while server.accepted.load(Ordering::SeqCst) == 1 {
        // The last frames may not have left yet.
        kept.push({
            let _tunnel = client.open().await.unwrap();
            unread.recv().await.unwrap()
        });
        tries += 1;
        assert!(
            tries < 100,
            "tunnels are still put on the stalled connection"
        );
        // Longer and longer: a slow machine has much to encrypt.
        tokio::time::sleep(Duration::from_millis(5 * tries)).await;
    }
}

#[tokio::test]
async fn an_unused_connection_is_released() {
    let config = PoolConfig {
        release: Duration::from_millis(80),
        ..PoolConfig::default()
    };
    let (server, client) = pair(config).await;
    let tunnel = client.open().await.unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(client.pool.stats().connections, 1, "not while it is used");
    drop(tunnel);
    common::eventually("it is released", || {
        client.pool.stats() == PoolStats::default()
    })
    .await;
    client.open().await.unwrap();
    assert_eq!(server.accepted.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_connection_takes_no_more_tunnels_once_the_certificate_it_was_made_with_has_ended() {
    let ca = Arc::new(Ca::new());
    let server = ca.certificate(&identity("server"));
    let server = common::serve(server, Refusals::default().limits(), common::echo).await;
    let short = Signing {
        lifetime: Duration::from_secs(6),
        ..Signing::new(&ca)
    };
    let client = common::client_of(short, server.address, PoolConfig::default());
    let mut first = client.open().await.unwrap();
    let made = || server.accepted.load(Ordering::SeqCst);
    // It is busy all the time, and would be for ever.
    let mut opened = 0;
    let began = std::time::Instant::now();
    while made() == 1 {
        let mut tunnel = client.open().await.unwrap();
        tunnel.shutdown().unwrap();
        common::read_to_end(&mut tunnel).await.unwrap();
        opened += 1;
        assert!(began.elapsed() < Duration::from_secs(60), "never left");
    }
    assert!(opened > 1, "it is used as long as it is good");
    first.send(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(common::read_exactly(&mut first, 5).await, b"hello");
    drop(first);
    let open = || server.open.load(Ordering::SeqCst);
    common::eventually("the old connection ends with its last tunnel", || {
        open() == 1
    })
    .await;
}

#[tokio::test]
async fn a_source_that_is_gone_leaves_the_pool_and_its_open_tunnels_go_on() {
    let (server, client) = pair(PoolConfig::default()).await;
    let mut tunnel = client.open().await.unwrap();
    let other = Destination {
        source: identity("other-client"),
        ..client.destination.clone()
    };
    let _other = client
        .pool
        .open(&other, TcpStream::connect, common::to("10.0.0.1:80"))
        .await
        .unwrap();
    client
        .pool
        .close_source(&client.destination.source, client.destination.source_ip);
    assert_eq!(client.pool.stats().connections, 1, "the other source's");
    tunnel.send("on".into()).await.unwrap();
    assert_eq!(common::read_exactly(&mut tunnel, 2).await, b"on");
    let _new = client.open().await.unwrap();
    assert_eq!(server.accepted.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_connection_that_was_being_made_when_its_source_went_ends_with_its_tunnel() {
    let (server, client) = pair(PoolConfig::default()).await;
    let (dialled, go_on) = (Semaphore::new(0), Semaphore::new(0));
    let dial = async |address| {
        dialled.add_permits(1);
        let _go = go_on.acquire().await.unwrap();
        TcpStream::connect(address).await
    };
    let dial = |address| dial(address);
    let opening = client
        .pool
        .open(&client.destination, dial, common::to("10.0.0.1:80"));
    let closing = async {
        let _dialling = dialled.acquire().await.unwrap();
        client
            .pool
            .close_source(&client.destination.source, client.destination.source_ip);
        // A successor with the same name and address has a connection of its own.
        let successor = client.open().await.unwrap();
        go_on.add_permits(1);
        successor
    };
    let (tunnel, successor) = tokio::join!(opening, closing);
    let mut tunnel = tunnel.unwrap();
    assert_eq!(server.accepted.load(Ordering::SeqCst), 2);
    assert_eq!(
        client.pool.stats(),
        PoolStats {
            destinations: 1,
            connections: 1,
            streams: 1
        },
        "the successor's alone"
    );
    tunnel.send("asked for before".into()).await.unwrap();
    assert_eq!(
        common::read_exactly(&mut tunnel, 16).await,
        b"asked for before"
    );
    drop((tunnel, successor));
    common::eventually("one connection ends at the server", || {
        server.open.load(Ordering::SeqCst) == 1
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_inside_a_tunnel_proves_both_servers() {
    // Double HBONE: a gateway splices bytes to a server behind it, whose identity is proven inside.
    let ca = Arc::new(Ca::new());
    let inner = common::serve(
        ca.certificate(&identity("inner")),
        Refusals::default().limits(),
        common::echo,
    )
    .await;
    let inner_address = inner.address;
    let gateway = move |request: Request| -> Served {
        Box::pin(async move {
            let socket = TcpStream::connect(inner_address).await.unwrap();
            let tunnel = request.accept(ResponseHeaders::default()).unwrap();
            hbone::both_ways(socket, tunnel, &hbone::Counters::default()).await;
        })
    };
    let outer = common::serve(
        ca.certificate(&identity("server")),
        Refusals::default().limits(),
        gateway,
    )
    .await;
    let client = common::client(&ca, outer.address, PoolConfig::default());
    let certificate = ca.certificate(&identity("client"));
    let connect = common::to("server.default.svc.cluster.local:80");

    let through = client.open().await.unwrap();
    let mut tunnel = hbone::client::inside(through, &certificate, &[identity("inner")], &connect)
        .await
        .unwrap();
    let sent = vec![5; 1_000_000];
    let (mut reader, mut writer) = {
        tunnel.send("hello".into()).await.unwrap();
        assert_eq!(common::read_exactly(&mut tunnel, 5).await, b"hello");
        tunnel.split()
    };
    let sending = sent.clone();
    tokio::spawn(async move {
        writer.send(sending.into()).await.unwrap();
        writer.shutdown().unwrap();
    });
    let mut got = Vec::new();
    while let Some(chunk) = reader.recv().await {
        got.extend_from_slice(&chunk.unwrap());
    }
    assert!(got == sent);
    drop(reader);

    let through = client.open().await.unwrap();
    let wrong = hbone::client::inside(through, &certificate, &[identity("server")], &connect).await;
    assert!(matches!(wrong, Err(OpenError::IdentityMismatch(_))));
    common::eventually("outer streams are given back", || {
        client.pool.stats().streams == 0
    })
    .await;
}

#[tokio::test]
async fn datagrams_have_a_way_where_it_is_offered_and_the_request_says_where_to() {
    let ca = Arc::new(Ca::new());
    let limits = Limits {
        datagrams: true,
        ..Refusals::default().limits()
    };
    let asked = Arc::<Mutex<Vec<_>>>::default();
    let seen = asked.clone();
    let server = common::serve(
        ca.certificate(&identity("server")),
        limits,
        move |request| {
            let to = request.authority.to_string();
            seen.lock().unwrap().push((request.datagrams, to));
            common::echo(request)
        },
    )
    .await;
    let client = common::client(&ca, server.address, PoolConfig::default());
    let connect = common::to("10.0.0.1:15008");
    let to = "[2001:db8::1]:53".parse().unwrap();
    let open = client
        .pool
        .open_datagrams(&client.destination, TcpStream::connect, connect, to);
    let mut tunnel = open.await.unwrap();
    tunnel.send(capsule(b"hi")).await.unwrap();
    let back = common::read_exactly(&mut tunnel, 5).await;
    assert_eq!(back, b"\x00\x03\x00hi");
    // On the same connection.
    drop(client.open().await.unwrap());
    assert_eq!(server.accepted.load(Ordering::SeqCst), 1);
    let expected = [(true, "[2001:db8::1]:53"), (false, "10.0.0.1:80")];
    let expected = expected.map(|(datagrams, to)| (datagrams, to.to_owned()));
    assert_eq!(*asked.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_peer_that_does_not_offer_it_is_asked_for_no_way() {
    let (server, client) = pair(PoolConfig::default()).await;
    let before = client.open().await.unwrap();
    let connect = common::to("10.0.0.1:15008");
    let to = "10.0.0.1:53".parse().unwrap();
    let open = client
        .pool
        .open_datagrams(&client.destination, TcpStream::connect, connect, to);
    assert!(matches!(open.await, Err(NoWay::Unsupported)));
    // Of the connection that was there it was asked, and of a new one: it may offer it by now.
    assert_eq!(server.accepted.load(Ordering::SeqCst), 2);
    drop((before, client.open().await.unwrap()));
}

#[tokio::test]
async fn who_has_not_said_what_it_carries_is_not_taken_for_one_without_datagrams() {
    if common::engine() == Engine::H2 {
        return; // it does not tell whether the peer has said anything
    }
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let name = "spiffe://cluster.local/ns/default/sa/server";
    let badge = raw::badge(&ca, &[name], SystemTime::now() + common::HOUR);
    let config = raw::tls_server(&ca, badge);
    tokio::spawn(async move {
        let mut silent = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            // The handshake is all that it says.
            silent.push(Raw::accept(socket, config.clone()).await);
        }
    });
    let config = PoolConfig {
        answer: Duration::from_millis(50),
        ..PoolConfig::default()
    };
    let client = common::client(&ca, address, config);
    let connect = common::to("10.0.0.1:15008");
    let to = "10.0.0.1:53".parse().unwrap();
    let open = client
        .pool
        .open_datagrams(&client.destination, TcpStream::connect, connect, to);
    let opened = tokio::time::timeout(Duration::from_secs(60), open).await;
    let opened = opened.expect("it does not wait for ever");
    assert!(matches!(opened, Err(NoWay::Open(_))), "{opened:?}");
}
