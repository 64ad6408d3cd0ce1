//! Our handshake beside that of `tokio-rustls`, with peers of every kind: what each side makes of the
//! other is the same.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use rustls::sign::CertifiedKey;
use tokio::io::{DuplexStream, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::{
    client::Connect,
    gauge::Gauge,
    incoming::ResponseHeaders,
    own,
    request::Authority,
    tls::{
        client_config,
        fixture::{CLIENT, Ca, Clock, SERVER, identity},
        server_config,
        verify::ExpectedServer,
    },
};

fn soon() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

fn past() -> SystemTime {
    SystemTime::now() - Duration::from_secs(3600)
}

fn server(ca: &Ca, badge: &Arc<CertifiedKey>) -> Arc<ServerConfig> {
    server_config(badge, ca.verifier(), Clock::new()).unwrap()
}

fn client(ca: &Ca, badge: &Arc<CertifiedKey>, expected: &str) -> Arc<ClientConfig> {
    let verifier = ExpectedServer::new(ca.roots(), Arc::new([identity(expected)]));
    client_config(badge, Arc::new(verifier), Clock::new()).unwrap()
}

/// How a handshake ended for one side. The time in the text of an expiry is left out.
fn told(outcome: Result<Session, TlsError>) -> String {
    match outcome {
        Err(TlsError::Expired(_)) => "Expired".into(),
        Err(error) => format!("{error:?}"),
        Ok(session) => format!("{session:?}"),
    }
}

/// How the handshake and the first read after it end for a peer that is `tokio-rustls`.
async fn peer_told<T>(
    handshake: impl Future<Output = io::Result<T>>,
    state: impl Fn(&T) -> Result<Session, TlsError>,
) -> String
where
    T: AsyncRead + Unpin,
{
    let lost = |error: &io::Error| TlsError::from_io(error);
    match handshake.await {
        Err(error) => told(Err(lost(&error))),
        Ok(mut stream) => match stream.read(&mut [0]).await {
            // Nobody says goodbye in these tests.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => told(Err(lost(&error))),
            _ => told(state(&stream)),
        },
    }
}

async fn stock_accept(mut io: DuplexStream, config: &Arc<ServerConfig>) -> String {
    let accepted = TlsAcceptor::from(config.clone()).accept(&mut io).await;
    told(match accepted {
        Ok(stream) => session(stream.get_ref().1),
        Err(error) => Err(TlsError::from_io(&error)),
    })
}

async fn own_accept(mut io: DuplexStream, config: &Arc<ServerConfig>) -> String {
    told(accept(&mut io, config).await.map(|ours| ours.session))
}

fn nobody() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

async fn stock_connect(mut io: DuplexStream, config: &Arc<ClientConfig>) -> String {
    let connector = TlsConnector::from(config.clone());
    told(match connector.connect(nobody(), &mut io).await {
        Ok(stream) => session(stream.get_ref().1),
        Err(error) => Err(TlsError::from_io(&error)),
    })
}

async fn own_connect(mut io: DuplexStream, config: &Arc<ClientConfig>) -> String {
    told(connect(&mut io, config).await.map(|ours| ours.session))
}

fn pipe() -> (DuplexStream, DuplexStream) {
    tokio::io::duplex(1 << 16)
}

#[tokio::test]
async fn a_server_tells_clients_apart_as_before() {
    let (ca, other) = (Ca::new(), Ca::new());
    let ours = server(&ca, &ca.badge(&[SERVER], soon()));
    let good = ca.badge(&[CLIENT], soon());
    let mut shy = Arc::unwrap_or_clone(client(&ca, &good, SERVER));
    shy.client_auth_cert_resolver = Arc::new(NoBadge);
    for (expected, config) in [
        ("Session", client(&ca, &good, SERVER)),
        (
            "UnknownCa",
            client(&ca, &other.badge(&[CLIENT], soon()), SERVER),
        ),
        ("Expired", client(&ca, &ca.badge(&[CLIENT], past()), SERVER)),
        ("NoCertificate", Arc::new(shy)),
        ("NotSpiffe", client(&ca, &ca.badge(&[], soon()), SERVER)),
        (
            "NotSpiffe",
            client(&ca, &ca.badge(&[CLIENT, SERVER], soon()), SERVER),
        ),
        (
            "TrustDomain",
            client(&ca, &ca.badge(&["spiffe://else/ns/a/sa/b"], soon()), SERVER),
        ),
        // It is the client who refuses.
        ("Alert", client(&ca, &good, CLIENT)),
        ("Alert", client(&other, &good, SERVER)),
    ] {
        let mut seen = Vec::new();
        for own in [false, true] {
            let (near, far) = pipe();
            let connector = TlsConnector::from(config.clone());
            let peer = peer_told(connector.connect(nobody(), far), |stream| {
                session(stream.get_ref().1)
            });
            seen.push(if own {
                tokio::join!(own_accept(near, &ours), peer)
            } else {
                tokio::join!(stock_accept(near, &ours), peer)
            });
        }
        assert!(seen[0].0.starts_with(expected), "{expected}: {seen:?}");
        assert_eq!(seen[0], seen[1]);
    }
}

#[tokio::test]
async fn a_client_tells_servers_apart_as_before() {
    let (ca, other) = (Ca::new(), Ca::new());
    let ours = client(&ca, &ca.badge(&[CLIENT], soon()), SERVER);
    for (expected, config) in [
        ("Session", server(&ca, &ca.badge(&[SERVER], soon()))),
        (
            "IdentityMismatch",
            server(&ca, &ca.badge(&[CLIENT], soon())),
        ),
        ("NotSpiffe", server(&ca, &ca.badge(&[], soon()))),
        ("UnknownCa", server(&ca, &other.badge(&[SERVER], soon()))),
        ("Expired", server(&ca, &ca.badge(&[SERVER], past()))),
        // It is the server who refuses, and this client does not know yet.
        ("Session", server(&other, &ca.badge(&[SERVER], soon()))),
    ] {
        let mut seen = Vec::new();
        for own in [false, true] {
            let (near, far) = pipe();
            let acceptor = TlsAcceptor::from(config.clone());
            let peer = peer_told(acceptor.accept(far), |stream| session(stream.get_ref().1));
            seen.push(if own {
                tokio::join!(own_connect(near, &ours), peer)
            } else {
                tokio::join!(stock_connect(near, &ours), peer)
            });
        }
        assert!(seen[0].0.starts_with(expected), "{expected}: {seen:?}");
        assert_eq!(seen[0], seen[1]);
    }
}

#[tokio::test]
async fn what_is_no_handshake_is_refused_as_before() {
    let ca = Ca::new();
    let as_server = server(&ca, &ca.badge(&[SERVER], soon()));
    let as_client = client(&ca, &ca.badge(&[CLIENT], soon()), SERVER);
    for said in [
        &b""[..],
        b"\x16",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\0\x04\x01\0\0\0",
        b"\x16\x03\x01\0\x04\x02\0\0\0",
        b"\x15\x03\x01\0\x02\x02\x28",
        b"\x15\x03\x03\0\x02\x01\0",
        b"\x17\x03\x03\0\x02hi",
        b"\x14\x03\x03\0\x01\x01",
    ] {
        let mut seen = Vec::new();
        for (own, serving) in [(false, true), (true, true), (false, false), (true, false)] {
            let (near, mut far) = pipe();
            far.write_all(said).await.unwrap();
            // The peer goes on listening, and has nothing more to say.
            far.shutdown().await.unwrap();
            let outcome = match (own, serving) {
                (false, true) => stock_accept(near, &as_server).await,
                (true, true) => own_accept(near, &as_server).await,
                (false, false) => stock_connect(near, &as_client).await,
                (true, false) => own_connect(near, &as_client).await,
            };
            let mut answer = Vec::new();
            far.read_to_end(&mut answer).await.unwrap();
            // A ClientHello is never the same twice; what follows it is.
            if !serving {
                let hello = next_record(&answer, 0).unwrap();
                answer.drain(..hello);
            }
            seen.push((outcome, answer));
        }
        assert_eq!(seen[0], seen[1], "as a server, told {said:02x?}");
        assert_eq!(seen[2], seen[3], "as a client, told {said:02x?}");
    }
}

/// A client that has no certificate.
#[derive(Debug)]
struct NoBadge;

impl rustls::client::ResolvesClientCert for NoBadge {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Counts writes.
struct Counted(DuplexStream, Arc<AtomicUsize>);

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn what_each_side_says_last_leaves_with_its_first_frames() {
    let ca = Ca::new();
    let ours = server(&ca, &ca.badge(&[SERVER], soon()));
    let theirs = client(&ca, &ca.badge(&[CLIENT], soon()), SERVER);
    let (near, far) = pipe();
    let writes: [Arc<AtomicUsize>; 2] = Default::default();
    let [at_near, at_far] = [&writes[0], &writes[1]];
    let (mut near, mut far) = (Counted(near, at_near.clone()), Counted(far, at_far.clone()));
    let serving = async {
        let config = ServerConfig::clone(&ours);
        let established = accept_as(&mut far, config, session).await.unwrap();
        let shared = own::Shared::server(far, established, Gauge::new());
        let driver = own::Driver(shared.clone());
        poll_fn(|cx| shared.poll_greeted(cx)).await.unwrap();
        let asked = poll_fn(|cx| shared.poll_drive(cx)).await.unwrap();
        assert_eq!(at_near.load(Ordering::SeqCst), 2, "hello, and all the rest");
        let (receiving, mut sending) = own::halves(&shared, asked.stream);
        let answer = sending.respond(200, &ResponseHeaders::default(), false);
        answer.unwrap();
        (driver, receiving, sending)
    };
    let asking = async {
        let config = ClientConfig::clone(&theirs);
        let established = connect_as(&mut near, config, true, session).await.unwrap();
        let shared = own::Shared::client(near, established, Gauge::new());
        let connect = Connect::to("10.0.0.1:80".parse::<Authority>().unwrap());
        // The request is there before the connection is driven, as it is for whoever had it made.
        tokio::select! {
            biased;
            asked = own::ask(&shared, &connect, None, &[]) => asked.map_err(|_| "no answer").unwrap().0,
            _ = poll_fn(|cx| shared.poll_drive(cx)) => panic!("over"),
        }
    };
    let (status, _served) = tokio::join!(asking, serving);
    assert_eq!(status, 200);
    assert_eq!(
        at_far.load(Ordering::SeqCst),
        2,
        "its flight, and all the rest"
    );
}
