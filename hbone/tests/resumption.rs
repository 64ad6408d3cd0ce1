//! Tunnels to a server that was met before, as a pool makes them.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{sync::Arc, time::Duration};

use common::{Ca, Signing, identity};
use hbone::control_plane::RevocationFile;
use hbone::{
    Certificate, Certificates, CertificatesConfig, Destination, Engine, Limits, OpenError, Pool,
    PoolConfig, Revocations, TlsError, Tunnel, TunnelError,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

/// A connection that is quiet looks around as often.
const PING: Duration = Duration::from_millis(100);

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
                    ping_every: PING,
                    ..Limits::default()
                };
                // Whoever refuses us says why at the other end.
                let Ok(mut connection) = hbone::accept(socket, certificate, &limits).await else {
                    return;
                };
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
        ping_every: PING,
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
async fn who_was_revoked_meanwhile_is_refused_though_there_is_a_session() {
    for engine in [Engine::H2, Engine::Own] {
        let (ca, end) = (Arc::new(Ca::new()), CancellationToken::new());
        let certificate = ca.certificate(&identity("server"));
        let pem = certificate.chain()[0].pem.clone();
        let (address, mut resumed) = server(engine, move || certificate.clone()).await;
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("ca-crl.pem");
        let say = |text: &str| {
            let fresh = dir.path().join("fresh");
            std::fs::write(&fresh, text).unwrap();
            std::fs::rename(&fresh, &list).unwrap();
        };
        let file = RevocationFile::open(list.clone());
        let judging = CertificatesConfig {
            revocations: file.revocations(),
            ..CertificatesConfig::default()
        };
        tokio::spawn(file.follow(end.clone()));
        let clients = Certificates::new(Signing::new(&ca), judging);
        let _held = clients.hold(&identity("client"));
        let (pool, to) = (pool(&clients, engine), to(address));
        talk(&pool, &to).await;
        talk(&pool, &to).await;
        assert_eq!(resumed.recv().await, Some(false));
        assert_eq!(resumed.recv().await, Some(true));

        let server = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        say(&ca.revoking(&[server]));
        let open = async || {
            let connect = common::to("10.0.0.1:80");
            pool.open(&to, TcpStream::connect, connect).await
        };
        let is_refused = async || {
            let why = open().await.err();
            matches!(why, Some(OpenError::Tls(TlsError::Revoked)))
        };
        let mut known = false;
        for _ in 0..3000 {
            known = is_refused().await;
            if known {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(known, "the list has no effect");
        // What cannot be read takes nothing back, and neither does a file that is gone.
        say("nothing that anybody could read");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(is_refused().await);
        std::fs::remove_file(&list).unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(is_refused().await);
        end.cancel();
    }
}

#[tokio::test]
async fn who_was_revoked_has_no_more_tunnels_on_a_connection_from_before() {
    for engine in [Engine::H2, Engine::Own] {
        let (ca, revocations) = (Arc::new(Ca::new()), Arc::<Revocations>::default());
        let judging = CertificatesConfig {
            revocations: revocations.clone(),
            ..CertificatesConfig::default()
        };
        let servers = Certificates::new(Signing::new(&ca), judging);
        let own = servers.of(&identity("server")).await.unwrap();
        let (address, mut resumed) = server(engine, move || own.clone()).await;
        let clients = Certificates::new(Signing::new(&ca), CertificatesConfig::default());
        let _held = clients.hold(&identity("client"));
        let (pool, to) = (pool(&clients, engine), to(address));
        let open = async || {
            let connect = common::to("10.0.0.1:80");
            pool.open(&to, TcpStream::connect, connect).await
        };
        let mut before = open().await.unwrap();
        let ours = clients.states()[0].certificate.clone().unwrap();
        let leaf = CertificateDer::from_pem_slice(ours.chain()[0].pem.as_bytes()).unwrap();
        let list = ca.revoking(&[leaf]);
        revocations.replace(list.as_bytes()).unwrap();
        let mut refused = false;
        // One or another may be under way.
        for _ in 0..1000 {
            refused = open().await.is_err();
            if refused {
                break;
            }
        }
        assert!(refused, "{engine:?}");
        assert_eq!(resumed.recv().await, Some(false));
        assert!(
            resumed.try_recv().is_err(),
            "no other connection came to be"
        );
        assert!(common::read_to_end(&mut before).await.is_err());
    }
}

/// Tunnels are open when the file changes: of two peers one is on the new list, then both are.
#[tokio::test]
async fn the_tunnels_of_who_is_revoked_end_at_either_end_and_those_of_others_go_on() {
    for (engine, client_judges) in [
        (Engine::Own, true),
        (Engine::Own, false),
        (Engine::H2, true),
        (Engine::H2, false),
    ] {
        let (ca, end) = (Arc::new(Ca::new()), CancellationToken::new());
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("ca-crl.pem");
        let say = |text: &str| {
            let fresh = dir.path().join("fresh");
            std::fs::write(&fresh, text).unwrap();
            std::fs::rename(&fresh, &list).unwrap();
        };
        let file = RevocationFile::open(list.clone());
        let lists = file.revocations();
        tokio::spawn(file.follow(end.clone()));
        let certificates = |judging: bool| {
            let config = CertificatesConfig {
                revocations: match judging {
                    true => lists.clone(),
                    false => Arc::default(),
                },
                ..CertificatesConfig::default()
            };
            Certificates::new(Signing::new(&ca), config)
        };
        let (mut tunnels, mut leaves, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..2 {
            let (servers, clients) = (certificates(!client_judges), certificates(client_judges));
            // It is the one that is shown, as long as it is held.
            let held = clients.hold(&identity("client"));
            let theirs = servers.of(&identity("server")).await.unwrap();
            let ours = clients.of(&identity("client")).await.unwrap();
            let judged = if client_judges { &theirs } else { &ours };
            let leaf = judged.chain()[0].pem.clone();
            leaves.push(CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap());
            let (address, resumed) = server(engine, move || theirs.clone()).await;
            let (pool, connect) = (pool(&clients, engine), common::to("10.0.0.1:80"));
            let tunnel = pool.open(&to(address), TcpStream::connect, connect).await;
            tunnels.push(tunnel.unwrap());
            kept.push((pool, held, resumed));
        }
        let [mut first, mut second] = <[_; 2]>::try_from(tunnels).unwrap();
        let talks = async |tunnel: &mut Tunnel| {
            tunnel.send("hello".into()).await.unwrap();
            assert_eq!(common::read_exactly(tunnel, 5).await, b"hello");
        };
        talks(&mut first).await;
        talks(&mut second).await;
        let is_cut = async |tunnel: &mut Tunnel| {
            let why = common::read_to_end(tunnel).await.unwrap_err();
            let ours = TunnelError::Disbelieved(Box::new(TlsError::Revoked));
            assert_eq!(why == ours, client_judges, "{engine:?}: {why}");
        };
        say(&ca.revoking(&leaves[..1]));
        is_cut(&mut first).await;
        // It is judged as well: at the latest at its next PING.
        for _ in 0..5 {
            talks(&mut second).await;
            tokio::time::sleep(PING).await;
        }
        say("nothing that anybody could read");
        say(&Ca::new().revoking(&leaves));
        tokio::time::sleep(Duration::from_secs(3)).await;
        talks(&mut second).await;
        say(&ca.revoking(&leaves));
        is_cut(&mut second).await;
        end.cancel();
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
