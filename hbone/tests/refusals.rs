//! What a peer may not do: each is refused by name, counted, and disturbs nobody else.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use common::{Ca, HOUR, Refusals, Server, Signing, identity, raw, raw::Raw};
use hbone::{
    AcceptError, Alert, Certificate, Certificates, CertificatesConfig, ConnectionError, Incoming,
    OpenError, Pool, PoolConfig, Refusal, Revocations, TlsError,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const CALM: u32 = 11; // ENHANCE_YOUR_CALM

fn soon() -> SystemTime {
    SystemTime::now() + HOUR
}

/// The error our server gives for a client of this badge.
async fn refused(ca: &Arc<Ca>, badge: Option<raw::Badge>) -> (TlsError, Vec<Refusal>) {
    refused_by(ca.certificate(&identity("server")), badge).await
}

async fn refused_by(
    server: Arc<Certificate>,
    badge: Option<raw::Badge>,
) -> (TlsError, Vec<Refusal>) {
    let (near, far) = common::socket_pair().await;
    let refusals = Refusals::default();
    let limits = refusals.limits();
    let client = tokio::spawn(async move {
        if let Ok(mut peer) = Raw::connect(near, raw::tls_client(badge, &["h2"])).await {
            let _ = peer.hello().await;
            let _ = peer.next().await;
        }
    });
    let outcome = hbone::accept(far, server, &limits).await;
    client.await.unwrap();
    match outcome {
        Err(AcceptError::Tls(error)) => (error, refusals.seen()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_client_whose_certificate_was_revoked_is_refused_by_name() {
    let ca = Arc::new(Ca::new());
    let revocations = Arc::<Revocations>::default();
    let judging = CertificatesConfig {
        revocations: revocations.clone(),
        ..CertificatesConfig::default()
    };
    let servers = Certificates::new(Signing::new(&ca), judging);
    let server = servers.of(&identity("server")).await.unwrap();
    let badge = raw::badge(&ca, &[CLIENT], soon());
    let list = ca.revoking(&badge.chain);
    revocations.replace(list.as_bytes()).unwrap();
    let (error, counted) = refused_by(server.clone(), Some(badge)).await;
    assert!(matches!(error, TlsError::Revoked), "{error}");
    assert_eq!(counted, [Refusal::Tls]);

    // An authority below the root was revoked, and with it whoever it signed for.
    let below = ca.constrained(Vec::new());
    let mut badge = raw::badge(&below, &[CLIENT], soon());
    let authority = CertificateDer::from_pem_slice(below.root().as_bytes()).unwrap();
    badge.chain.push(authority.clone());
    let list = ca.revoking(&[authority]);
    revocations.replace(list.as_bytes()).unwrap();
    let (error, _) = refused_by(server, Some(badge)).await;
    assert!(matches!(error, TlsError::Revoked), "{error}");
}

/// TLS 1.3 has the client done before the server has looked at its certificate. A reset would take the reason away from whoever sees
/// nothing else, and from those who carry its bytes.
#[tokio::test]
async fn a_refused_client_that_has_asked_for_a_tunnel_already_hears_why_and_no_reset() {
    let ca = Ca::new();
    let (near, far) = common::socket_pair().await;
    let stranger = raw::badge(&Ca::new(), &[CLIENT], soon());
    let client = tokio::spawn(async move {
        let mut peer = hasty(near, stranger).await;
        let why = peer.next().await.unwrap_err();
        let end = peer.io.get_mut().0.read(&mut [0]).await;
        (why, end.map_err(|error| error.kind()))
    });
    let limits = Refusals::default().limits();
    let refused = hbone::accept(far, ca.certificate(&identity("server")), &limits).await;
    assert!(
        matches!(refused, Err(AcceptError::Tls(TlsError::UnknownCa(_)))),
        "{refused:?}"
    );
    let (why, end) = client.await.unwrap();
    // The two authorities have one name.
    let alert = rustls::AlertDescription::DecryptError;
    let told = why.get_ref().and_then(|why| why.downcast_ref());
    assert_eq!(told, Some(&rustls::Error::AlertReceived(alert)), "{why}");
    assert_eq!(end, Ok(0), "its end, and not a reset");
}

#[tokio::test]
async fn a_refused_client_that_stays_holds_up_nobody_and_is_let_go() {
    let ca = Ca::new();
    let (near, far) = common::socket_pair().await;
    let stranger = raw::badge(&Ca::new(), &[CLIENT], soon());
    let client = tokio::spawn(hasty(near, stranger));
    let limits = Refusals::default().limits();
    let refused = hbone::accept(far, ca.certificate(&identity("server")), &limits).await;
    assert!(refused.is_err(), "{refused:?}");
    let mut stays = client.await.unwrap();
    let let_go = async {
        while stays.io.get_mut().0.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let patience = Duration::from_secs(30);
    let let_go = tokio::time::timeout(patience, let_go).await;
    let_go.expect("its socket is held for as long as it likes");
}

/// A client that says what it wants with its certificate, and more than can be read with it.
async fn hasty(socket: TcpStream, badge: raw::Badge) -> Raw {
    let config = raw::tls_client(Some(badge), &["h2"]);
    let mut peer = Raw::connect(socket, config).await.unwrap();
    peer.hello().await.unwrap();
    let wanted = raw::connect_headers("10.0.0.1:80");
    peer.request(1, &wanted).await.unwrap();
    let more = raw::frame(raw::DATA, 0, 1, &[0; 16 << 10]);
    peer.send(&more).await.unwrap();
    peer
}

#[tokio::test]
async fn a_client_whose_certificate_is_refused_knows_that_and_does_not_come_again_with_it() {
    let ca = Arc::new(Ca::new());
    let certificates = Certificates::new(Signing::new(&ca), CertificatesConfig::default());
    let _held = certificates.hold(&identity("client"));
    let own = certificates.of(&identity("client")).await.unwrap();
    let own = CertificateDer::from_pem_slice(own.chain()[0].pem.as_bytes()).unwrap();
    let revocations = Arc::<Revocations>::default();
    let list = ca.revoking(&[own]);
    revocations.replace(list.as_bytes()).unwrap();
    let judging = CertificatesConfig {
        revocations,
        ..CertificatesConfig::default()
    };
    let servers = Certificates::new(Signing::new(&ca), judging);
    let server = servers.of(&identity("server")).await.unwrap();
    let limits = Refusals::default().limits();
    let server = common::serve(server, limits, common::echo).await;
    let config = PoolConfig {
        engine: common::engine(),
        ..PoolConfig::default()
    };
    let client = common::Client {
        destination: common::client(&ca, server.address, PoolConfig::default()).destination,
        pool: Pool::new(certificates, config),
    };
    let error = client.open().await.unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Tls(TlsError::Alert(Alert::CERTIFICATE_REVOKED))
        ),
        "{error:?}"
    );
    let words = "the peer refused our handshake: certificate revoked";
    assert_eq!(error.to_string(), words);
    assert_eq!(server.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn clients_without_an_acceptable_certificate_are_refused_by_name() {
    let ca = Arc::new(Ca::new());
    let (error, counted) = refused(&ca, None).await;
    assert!(matches!(error, TlsError::NoCertificate), "{error}");
    assert_eq!(counted, [Refusal::Tls]);

    let (error, _) = refused(&ca, Some(raw::badge(&Ca::new(), &[CLIENT], soon()))).await;
    assert!(matches!(error, TlsError::UnknownCa(_)), "{error}");

    let (error, _) = refused(
        &ca,
        Some(raw::badge(&ca, &[CLIENT], SystemTime::now() - HOUR)),
    )
    .await;
    assert!(matches!(error, TlsError::Expired(_)), "{error}");

    let (error, _) = refused(
        &ca,
        Some(raw::badge(
            &ca,
            &["spiffe://other.domain/ns/a/sa/b"],
            soon(),
        )),
    )
    .await;
    assert!(
        matches!(&error, TlsError::TrustDomain(who) if who.trust_domain() == "other.domain"),
        "{error}"
    );

    for names in [
        &["https://example.com/"][..],
        &[][..],
        &[CLIENT, "spiffe://cluster.local/ns/default/sa/admin"][..],
        &["spiffe://cluster.local/ns/default/sa/"][..],
        // What ends at a NUL for whoever reads it in C is another's name.
        &["spiffe://cluster.local/ns/default/sa/admin\0.evil"][..],
        &["spiffe://cluster.local\0.evil/ns/default/sa/admin"][..],
        &["\0spiffe://cluster.local/ns/default/sa/admin"][..],
    ] {
        let (error, _) = refused(&ca, Some(raw::badge(&ca, names, soon()))).await;
        assert!(
            matches!(error, TlsError::NotSpiffe(_)),
            "{names:?}: {error}"
        );
    }
}

/// RFC 5280 4.2.1.10: an authority that may name only what is of one host has named something else.
#[tokio::test]
async fn a_name_beyond_the_constraints_of_its_authority_is_refused() {
    let ca = Arc::new(Ca::new());
    // [0] permitted, [1] excluded: one subtree, [6] a URI's host.
    for (kind, host, what) in [
        (0xa0, "other.domain", "permitted elsewhere"),
        (0xa1, "cluster.local", "excluded here"),
    ] {
        let name = der(0x86, host.as_bytes());
        let constraints = der(0x30, &der(kind, &der(0x30, &name)));
        let under = ca.constrained(constraints);
        let badge = badge_under(&under);
        let (error, counted) = refused(&ca, Some(badge)).await;
        assert!(
            !matches!(error, TlsError::NoCertificate | TlsError::Expired(_)),
            "{what}: {error}"
        );
        assert_eq!(counted, [Refusal::Tls], "{what}");
    }
    // Without any, the same chain is good.
    let under = ca.constrained(Vec::new());
    let badge = badge_under(&under);
    let (near, far) = common::socket_pair().await;
    let limits = Refusals::default().limits();
    let client = tokio::spawn(async move {
        let mut peer = Raw::connect(near, raw::tls_client(Some(badge), &["h2"])).await;
        let _ = peer.as_mut().unwrap().hello().await;
        peer
    });
    let accepted = hbone::accept(far, ca.certificate(&identity("server")), &limits).await;
    assert!(accepted.is_ok(), "{:?}", accepted.err());
    client.abort();
}

/// A client's badge of an authority below another one, whose certificate goes with it.
fn badge_under(ca: &Ca) -> raw::Badge {
    let mut badge = raw::badge(ca, &[CLIENT], soon());
    let above = CertificateDer::from_pem_slice(ca.root().as_bytes());
    badge.chain.push(above.unwrap());
    badge
}

/// An element of DER that is shorter than 128 bytes.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, content.len() as u8], content].concat()
}

#[tokio::test]
async fn a_trust_domain_alias_is_accepted() {
    let ca = Arc::new(Ca::new());
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = ca.leaf(
        &["spiffe://cluster.local/ns/default/sa/server"],
        &key,
        soon(),
    );
    let aliases = ["old.domain".to_owned()];
    let certificate = Certificate::new(
        &identity("server"),
        &key.serialize_der(),
        &[leaf, ca.root()],
        &aliases,
    )
    .unwrap();
    let (near, far) = common::socket_pair().await;
    let badge = raw::badge(&ca, &["spiffe://old.domain/ns/a/sa/b"], soon());
    let client = tokio::spawn(async move {
        let mut peer = Raw::connect(near, raw::tls_client(Some(badge), &["h2"]))
            .await
            .unwrap();
        peer.hello().await.unwrap();
        peer
    });
    let connection = hbone::accept(far, Arc::new(certificate), &Refusals::default().limits())
        .await
        .unwrap();
    assert_eq!(
        connection.peer().to_string(),
        "spiffe://old.domain/ns/a/sa/b"
    );
    drop(client.await);
}

#[tokio::test]
async fn servers_without_an_acceptable_certificate_are_refused_by_name() {
    let ca = Arc::new(Ca::new());
    for (name, badge, expected) in [
        (
            "unknown CA",
            raw::badge(
                &Ca::new(),
                &["spiffe://cluster.local/ns/default/sa/server"],
                soon(),
            ),
            "tls",
        ),
        (
            "expired",
            raw::badge(
                &ca,
                &["spiffe://cluster.local/ns/default/sa/server"],
                SystemTime::now() - HOUR,
            ),
            "tls",
        ),
        (
            "wrong SAN",
            raw::badge(&ca, &["spiffe://cluster.local/ns/default/sa/other"], soon()),
            "identity_mismatch",
        ),
        (
            "no identity",
            raw::badge(&ca, &["https://example.com/"], soon()),
            "tls",
        ),
    ] {
        let (listener, address) = common::listen().await;
        // Trusts our client, so that only the server's certificate is wrong.
        let config = raw::tls_server(&ca, badge);
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let _ = Raw::accept(socket, config).await;
        });
        let client = common::client(&ca, address, PoolConfig::default());
        let error = client.open().await.unwrap_err();
        assert_eq!(error.name(), expected, "{name}: {error}");
    }
}

#[tokio::test]
async fn a_slow_handshake_ends_at_its_deadline() {
    let ca = Ca::new();
    let (near, far) = common::socket_pair().await;
    let refusals = Refusals::default();
    let limits = hbone::Limits {
        handshake: Duration::from_millis(50),
        ..refusals.limits()
    };
    let error = hbone::accept(far, ca.certificate(&identity("server")), &limits)
        .await
        .unwrap_err();
    assert!(matches!(error, AcceptError::Slow(_)), "{error}");
    assert_eq!(refusals.seen(), [Refusal::SlowHandshake]);
    drop(near);

    // TLS in time, but no HTTP/2 preface.
    let (near, far) = common::socket_pair().await;
    let badge = raw::badge(&ca, &[CLIENT], soon());
    let client =
        tokio::spawn(
            async move { Raw::connect(near, raw::tls_client(Some(badge), &["h2"])).await },
        );
    let error = hbone::accept(far, ca.certificate(&identity("server")), &limits)
        .await
        .unwrap_err();
    assert!(matches!(error, AcceptError::Slow(_)), "{error}");
    drop(client.await);
}

#[tokio::test]
async fn another_protocol_inside_tls_is_refused_as_that() {
    let ca = Ca::new();
    for said in [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nTM\r\n\r\n",
    ] {
        let (near, far) = common::socket_pair().await;
        let refusals = Refusals::default();
        let badge = raw::badge(&ca, &[CLIENT], soon());
        let client = tokio::spawn(async move {
            let config = raw::tls_client(Some(badge), &["h2"]);
            let mut peer = Raw::connect(near, config).await.unwrap();
            peer.send(said).await.unwrap();
            peer
        });
        let limits = refusals.limits();
        let error = hbone::accept(far, ca.certificate(&identity("server")), &limits)
            .await
            .unwrap_err();
        assert!(matches!(error, AcceptError::Preface(_)), "{error}");
        assert_eq!(refusals.seen(), [Refusal::Preface]);
        drop(client.await);
    }
}

#[tokio::test]
async fn a_silent_server_ends_at_the_deadline_of_its_stage() {
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let config = PoolConfig {
        handshake: Duration::from_millis(50),
        ..PoolConfig::default()
    };
    let client = common::client(&ca, address, config);
    for _ in 0..2 {
        assert!(matches!(
            client.open().await,
            Err(OpenError::HandshakeTimeout(_))
        ));
    }
    drop(listener);
    // Bound, and not listened on: nobody else is there.
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nowhere = nobody.local_addr().unwrap();
    let client = common::client(&ca, nowhere, PoolConfig::default());
    assert!(matches!(client.open().await, Err(OpenError::Dial { .. })));

    let never = |_| std::future::pending::<std::io::Result<TcpStream>>();
    let config = PoolConfig {
        dial: Duration::from_millis(50),
        ..PoolConfig::default()
    };
    let client = common::client(&ca, address, config);
    let error = client
        .pool
        .open(&client.destination, never, common::to("10.0.0.1:80"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("NetworkPolicy"), "{error}");
}

#[tokio::test]
async fn a_server_that_allows_no_streams_is_given_up_and_leaves_no_connection_behind() {
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let name = "spiffe://cluster.local/ns/default/sa/server";
    let config = raw::tls_server(&ca, raw::badge(&ca, &[name], soon()));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let config = config.clone();
            tokio::spawn(async move {
                let mut peer = Raw::accept(socket, config).await.unwrap();
                let none = raw::frame(raw::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]);
                peer.send(&none).await.unwrap();
                while let Ok(Some(_)) = peer.next().await {}
            });
        }
    });
    let config = PoolConfig {
        answer: Duration::from_millis(800),
        ..PoolConfig::default()
    };
    let client = common::client(&ca, address, config);
    for _ in 0..4 {
        let error = client.open().await.unwrap_err();
        assert!(matches!(error, OpenError::AnswerTimeout(_)), "{error}");
    }
    // On a busy machine one may be given up before it has said so.
    let left = client.pool.stats().connections;
    assert!(left <= 1, "{left} connections are left");
}

#[tokio::test]
async fn a_server_that_is_cut_off_is_told_by_what_it_did() {
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let name = "spiffe://cluster.local/ns/default/sa/server";
    let config = raw::tls_server(&ca, raw::badge(&ca, &[name], soon()));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let mut peer = Raw::accept(socket, config.clone()).await.unwrap();
            peer.send(&raw::frame(raw::SETTINGS, 0, 0, &[]))
                .await
                .unwrap();
            peer.until("a request", |f| f.kind == raw::HEADERS).await;
            let pings = raw::frame(raw::PING, 0, 0, &[0; 8]).repeat(100);
            while peer.send(&pings).await.is_ok() {}
        }
    });
    let client = common::client(&ca, address, PoolConfig::default());
    let error = client.open().await.unwrap_err();
    assert!(error.to_string().contains("ping_flood"), "{error}");
}

struct Attacked {
    server: Server,
    peer: Raw,
    refusals: Refusals,
    ca: Arc<Ca>,
}

/// A server, and a client that is about to misbehave.
async fn attacked() -> Attacked {
    let ca = Arc::new(Ca::new());
    let refusals = Refusals::default();
    let server = common::serve(
        ca.certificate(&identity("server")),
        refusals.limits(),
        common::echo,
    )
    .await;
    let socket = TcpStream::connect(server.address).await.unwrap();
    let badge = raw::badge(&ca, &[CLIENT], soon());
    let mut peer = Raw::connect(socket, raw::tls_client(Some(badge), &["h2"]))
        .await
        .unwrap();
    peer.hello().await.unwrap();
    Attacked {
        server,
        peer,
        refusals,
        ca,
    }
}

impl Attacked {
    /// Sends the same bytes over and over until the server hangs up; says what it was told.
    async fn flood(&mut self, bytes: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
        for n in 0..2_000 {
            let batch: Vec<u8> = (0..16).flat_map(|i| bytes(n * 16 + i)).collect();
            let sent = tokio::time::timeout(Duration::from_secs(60), self.peer.send(&batch)).await;
            if sent.expect("it neither reads nor hangs up").is_err() {
                break;
            }
        }
        self.peer.goodbye().await
    }

    /// The server works for others.
    async fn others_are_served(&self) {
        let client = common::client(&self.ca, self.server.address, PoolConfig::default());
        let mut tunnel = client.open().await.unwrap();
        tunnel.send("still here".into()).await.unwrap();
        assert_eq!(common::read_exactly(&mut tunnel, 10).await, b"still here");
    }

    async fn counted(&self, wanted: Refusal) {
        let refusals = self.refusals.clone();
        common::eventually(wanted.name(), || refusals.seen().contains(&wanted)).await;
    }
}

#[tokio::test]
async fn a_ping_flood_is_cut_off() {
    let mut attacked = attacked().await;
    let code = attacked
        .flood(|n| raw::frame(raw::PING, 0, 0, &u64::from(n).to_be_bytes()))
        .await;
    assert!(code.is_none() || code == Some(CALM), "{code:?}");
    attacked.counted(Refusal::PingFlood).await;
    attacked.others_are_served().await;
}

#[tokio::test]
async fn a_settings_flood_is_cut_off() {
    let mut attacked = attacked().await;
    attacked
        .flood(|_| raw::frame(raw::SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]))
        .await;
    attacked.counted(Refusal::SettingsFlood).await;
    attacked.others_are_served().await;
}

#[tokio::test]
async fn a_flood_of_frames_without_use_is_cut_off() {
    let mut attacked = attacked().await;
    attacked
        .flood(|_| raw::frame(0xbb, 0, 0, b"whatever"))
        .await;
    attacked.counted(Refusal::IdleFrameFlood).await;
    attacked.others_are_served().await;
}

#[tokio::test]
async fn a_flood_of_empty_data_is_cut_off() {
    let mut attacked = attacked().await;
    attacked
        .peer
        .request(1, &raw::connect_headers("10.0.0.1:80"))
        .await
        .unwrap();
    attacked.flood(|_| raw::frame(raw::DATA, 0, 1, &[])).await;
    attacked.counted(Refusal::EmptyDataFlood).await;
    attacked.others_are_served().await;
}

#[tokio::test]
async fn rapid_reset_is_cut_off() {
    let mut attacked = attacked().await;
    attacked
        .flood(|n| {
            let mut bytes = raw::frame(
                raw::HEADERS,
                raw::END_HEADERS,
                n * 2 + 1,
                &raw::block(&raw::connect_headers("10.0.0.1:80")),
            );
            bytes.extend(raw::frame(
                raw::RST_STREAM,
                0,
                n * 2 + 1,
                &8u32.to_be_bytes(),
            ));
            bytes
        })
        .await;
    let refusals = attacked.refusals.clone();
    common::eventually("a cut", || {
        refusals
            .seen()
            .iter()
            .any(|r| matches!(r, Refusal::ResetFlood | Refusal::Excess))
    })
    .await;
    attacked.others_are_served().await;
}

#[tokio::test]
async fn a_header_block_without_end_is_cut_off() {
    let mut attacked = attacked().await;
    attacked
        .peer
        .send(&raw::frame(
            raw::HEADERS,
            0,
            1,
            &raw::block(&raw::connect_headers("10.0.0.1:80")),
        ))
        .await
        .unwrap();
    let code = attacked
        .flood(|_| {
            raw::frame(
                raw::CONTINUATION,
                0,
                1,
                &raw::block(&[("x-filler", "x".repeat(120).as_str())]),
            )
        })
        .await;
    assert!(code.is_none() || code == Some(CALM), "{code:?}");
    attacked.counted(Refusal::Excess).await;
    attacked.others_are_served().await;
}

#[tokio::test]
async fn a_header_list_beyond_the_limit_is_refused_and_the_connection_goes_on() {
    let mut attacked = attacked().await;
    attacked
        .peer
        .until("our SETTINGS acknowledged", |f| {
            f.kind == raw::SETTINGS && f.flags == 0
        })
        .await;
    let filler = "x".repeat(120);
    let mut headers = raw::connect_headers("10.0.0.1:80");
    headers.extend(std::iter::repeat_n(("x-filler", filler.as_str()), 600)); // 600 * (8 + 120 + 32) > 64 KiB
    let block = raw::block(&headers);
    for (i, piece) in block.chunks(16 << 10).enumerate() {
        let kind = if i == 0 {
            raw::HEADERS
        } else {
            raw::CONTINUATION
        };
        let flags = if (i + 1) * (16 << 10) >= block.len() {
            raw::END_HEADERS
        } else {
            0
        };
        attacked
            .peer
            .send(&raw::frame(kind, flags, 1, piece))
            .await
            .unwrap();
    }
    let answer = attacked.peer.until("431", |f| f.kind == raw::HEADERS).await;
    assert_eq!(answer.status(), 431);
    attacked.counted(Refusal::MalformedStream).await;
    attacked
        .peer
        .request(3, &raw::connect_headers("10.0.0.1:80"))
        .await
        .unwrap();
    let answer = attacked
        .peer
        .until("200", |f| f.kind == raw::HEADERS && f.stream == 3)
        .await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_the_others_stay() {
    let mut attacked = attacked().await;
    for n in 0..201 {
        attacked
            .peer
            .request(n * 2 + 1, &raw::connect_headers("10.0.0.1:80"))
            .await
            .unwrap();
    }
    let refused = attacked
        .peer
        .until("a refusal", |f| f.kind == raw::RST_STREAM)
        .await;
    assert_eq!(
        (refused.stream, refused.code()),
        (401, 7),
        "REFUSED_STREAM for the 201st"
    );
    attacked.counted(Refusal::SurplusStream).await;
    attacked
        .peer
        .send(&raw::frame(raw::DATA, 0, 1, b"hello"))
        .await
        .unwrap();
    let echo = attacked
        .peer
        .until("an echo", |f| f.kind == raw::DATA)
        .await;
    assert_eq!((echo.stream, echo.payload.as_slice()), (1, &b"hello"[..]));
}

#[tokio::test]
async fn what_is_no_connect_is_answered_and_counted() {
    let mut attacked = attacked().await;
    attacked
        .peer
        .request(
            1,
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/"),
                (":authority", "10.0.0.1:80"),
            ],
        )
        .await
        .unwrap();
    assert_eq!(
        attacked
            .peer
            .until("400", |f| f.kind == raw::HEADERS)
            .await
            .status(),
        400
    );
    for (n, authority) in ["10.0.0.1", "10.0.0.1:0", "010.0.0.1:80", "user@10.0.0.1:80"]
        .into_iter()
        .enumerate()
    {
        let stream = 3 + 2 * n as u32;
        attacked
            .peer
            .request(stream, &raw::connect_headers(authority))
            .await
            .unwrap();
        let answer = attacked
            .peer
            .until("400", |f| f.kind == raw::HEADERS && f.stream == stream)
            .await;
        assert_eq!(answer.status(), 400, "{authority}");
    }
    // What is no request at all is reset by the engine, and counted all the same.
    attacked
        .peer
        .request(11, &raw::connect_headers("not an authority"))
        .await
        .unwrap();
    let reset = attacked
        .peer
        .until("PROTOCOL_ERROR", |f| {
            f.kind == raw::RST_STREAM && f.stream == 11
        })
        .await;
    assert_eq!(reset.code(), 1);
    attacked.counted(Refusal::MalformedStream).await;
    let seen = attacked.refusals.seen();
    assert_eq!(seen[0], Refusal::NotConnect);
    assert_eq!(seen[1..5], [Refusal::Authority; 4]);
    assert_eq!(seen[5..], [Refusal::MalformedStream]);
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_told_in_the_peers_own_words() {
    let ca = Ca::new();
    let (near, far) = common::socket_pair().await;
    let badge = raw::badge(&ca, &[CLIENT], soon());
    let long = format!("{}:x", "a".repeat(100));
    let client = tokio::spawn(async move {
        let mut peer = Raw::connect(near, raw::tls_client(Some(badge), &["h2"]))
            .await
            .unwrap();
        peer.hello().await.unwrap();
        let get = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/"),
            (":authority", "10.0.0.1:80"),
        ];
        peer.request(1, &get).await.unwrap();
        peer.request(3, &raw::connect_headers("10.0.0.1"))
            .await
            .unwrap();
        peer.request(5, &[(":method", "CONNECT")]).await.unwrap();
        peer.request(7, &raw::connect_headers(&long)).await.unwrap();
        peer.request(9, &raw::connect_headers("10.0.0.1:80"))
            .await
            .unwrap();
        peer // stays open until all is read
    });
    let limits = Refusals::default().limits();
    let mut connection = hbone::accept(far, ca.certificate(&identity("server")), &limits)
        .await
        .unwrap();
    for said in [
        "expected method CONNECT, got GET".to_owned(),
        "no valid authority pseudo header: 10.0.0.1".to_owned(),
        "no valid authority pseudo header: ".to_owned(),
        format!("no valid authority pseudo header: {}", "a".repeat(80)),
    ] {
        match connection.next().await {
            Some(Ok(Incoming::Refused(why))) => assert_eq!(why.to_string(), said),
            other => panic!("{other:?}"),
        }
    }
    let request = common::request(&mut connection).await;
    assert_eq!(request.authority.to_string(), "10.0.0.1:80");
    drop(client.await);
}

#[tokio::test]
async fn a_peer_that_does_not_answer_pings_is_given_up() {
    let ca = Ca::new();
    let (near, far) = common::socket_pair().await;
    let refusals = Refusals::default();
    let limits = hbone::Limits {
        ping_every: Duration::from_millis(20),
        ping_answer: Duration::from_millis(50),
        ..refusals.limits()
    };
    let badge = raw::badge(&ca, &[CLIENT], soon());
    let client = tokio::spawn(async move {
        let mut peer = Raw::connect(near, raw::tls_client(Some(badge), &["h2"]))
            .await
            .unwrap();
        peer.hello().await.unwrap();
        peer // and never reads again
    });
    let mut connection = hbone::accept(far, ca.certificate(&identity("server")), &limits)
        .await
        .unwrap();
    let end = connection.next().await;
    assert!(
        matches!(end, Some(Err(ConnectionError::Unresponsive))),
        "{end:?}"
    );
    assert!(connection.next().await.is_none());
    assert_eq!(refusals.seen(), [Refusal::Unresponsive]);
    drop(client.await);
}
