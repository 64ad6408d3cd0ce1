//! Tunnels to a server that was met before, as a pool makes them.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{sync::Arc, time::Duration};

use common::{Ca, Signing, identity};
use hbone::{
    Certificate, Certificates, CertificatesConfig, Destination, Engine, Limits, Pool, PoolConfig,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

/// A server that echoes and tells of each connection whether it was resumed, as whoever `of` says.
async fn server<F>(engine: Engine, of: F) -> (std::net::SocketAddr, mpsc::UnboundedReceiver<bool>)
where
    F: Fn() -> Arc<Certificate> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (certificate, sender) = (of(), sender.clone());
            tokio::spawn(async move {
                let limits = Limits {
                    engine,
                    ..Limits::default()
                };
                let mut connection = hbone::accept(socket, certificate, &limits).await.unwrap();
                assert_eq!(*connection.peer(), identity("client"));
                sender.send(connection.session().resumed).unwrap();
                common::drive(&mut connection, common::echo).await;
            });
        }
    });
    (address, receiver)
}

fn pool(certificates: &Arc<Certificates>, engine: Engine) -> Arc<Pool> {
    let config = PoolConfig {
        engine,
        release: Duration::from_millis(40),
        ..PoolConfig::default()
    };
    Pool::new(certificates.clone(), config)
}

fn to(address: std::net::SocketAddr) -> Destination {
    Destination {
        address,
        source_ip: "127.0.0.1".parse().unwrap(),
        source: identity("client"),
        expected: vec![identity("server")],
    }
}

/// A tunnel that carries something, and the end of its connection.
async fn talk(pool: &Pool, to: &Destination) {
    let connect = common::to("10.0.0.1:80");
    let mut tunnel = pool.open(to, TcpStream::connect, connect).await.unwrap();
    tunnel.send("hello".into()).await.unwrap();
    assert_eq!(common::read_exactly(&mut tunnel, 5).await, b"hello");
    drop(tunnel);
    common::eventually("the pool lets go", || pool.stats().connections == 0).await;
}

#[tokio::test]
async fn a_connection_that_was_released_is_resumed_when_it_is_needed_again() {
    for ours in [Engine::H2, Engine::Own] {
        for theirs in [Engine::H2, Engine::Own] {
            let ca = Arc::new(Ca::new());
            let certificate = ca.certificate(&identity("server"));
            let (address, mut resumed) = server(theirs, move || certificate.clone()).await;
            let certificates = Certificates::new(Signing::new(&ca), CertificatesConfig::default());
            let _held = certificates.hold(&identity("client"));
            let pool = pool(&certificates, ours);
            for round in 0..4 {
                talk(&pool, &to(address)).await;
                let again = resumed.recv().await.unwrap();
                assert_eq!(again, round > 0, "{ours:?} {theirs:?} {round}");
            }
            // Another pool of the same identity goes on with it too: it is no other client.
            talk(&self::pool(&certificates, ours), &to(address)).await;
            assert!(resumed.recv().await.unwrap());
        }
    }
}

#[tokio::test]
async fn a_renewed_certificate_on_either_side_is_shown_in_full() {
    for engine in [Engine::H2, Engine::Own] {
        let ca = Arc::new(Ca::new());
        let soon = CertificatesConfig {
            renewals_within: Duration::ZERO,
            ..CertificatesConfig::default()
        };
        let servers = Certificates::new(Signing::new(&ca), soon.clone());
        let _server = servers.hold(&identity("server"));
        servers.of(&identity("server")).await.unwrap();
        let current = {
            let servers = servers.clone();
            move || servers.states()[0].certificate.clone().unwrap()
        };
        let (address, mut resumed) = server(engine, current).await;
        let clients = Certificates::new(Signing::new(&ca), soon);
        let _client = clients.hold(&identity("client"));
        let pool = pool(&clients, engine);
        let to = to(address);
        let mut met_again = async |times: usize| {
            let mut all = Vec::new();
            for _ in 0..times {
                talk(&pool, &to).await;
                all.push(resumed.recv().await.unwrap());
            }
            all
        };
        assert_eq!(met_again(2).await, [false, true]);

        for (whose, certificates) in [("the client's", &clients), ("the server's", &servers)] {
            let current = || certificates.states()[0].certificate.clone().unwrap();
            let before = current();
            certificates.renew_all();
            common::eventually("another is there", || !Arc::ptr_eq(&current(), &before)).await;
            assert_eq!(met_again(2).await, [false, true], "{whose}");
        }
    }
}
