//! What Istio's ztunnel was recorded to send to a scripted HBONE server (`testdata/outbound-*.json`),
//! against what our pool sends to one.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use common::{Ca, Client, HOUR, raw, raw::Raw};
use hbone::{Connect, OpenError, PoolConfig, TlsError};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

struct Scripted {
    ca: Arc<Ca>,
    listener: TcpListener,
    client: Client,
}

async fn scripted(config: PoolConfig) -> Scripted {
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let client = common::client(&ca, address, config);
    Scripted {
        ca,
        listener,
        client,
    }
}

impl Scripted {
    async fn peer(&self, name: &str) -> std::io::Result<Raw> {
        let (socket, _) = self.listener.accept().await.unwrap();
        let badge = raw::badge(&self.ca, &[name], SystemTime::now() + HOUR);
        Raw::accept(socket, raw::tls_server(&self.ca, badge)).await
    }
}

/// The recorded request.
fn recorded_connect() -> Connect {
    Connect {
        authority: "10.99.0.13:9000".parse().unwrap(),
        forwarded: Some("for=\"10.99.0.2:20590\"".into()),
        baggage: Some("k8s.namespace.name=default".into()),
        traceparent: Some("00-4457833f01ca4e6dea9daad03e781fc3-ade9e90548af1801-00".into()),
        x_forwarded_network: None,
        source: None,
    }
}

fn events(file: &str) -> Vec<Value> {
    serde_json::from_str(file).unwrap()
}

fn event<'a>(events: &'a [Value], name: &str) -> &'a Value {
    events.iter().find(|e| e["event"] == name).unwrap()
}

#[tokio::test]
async fn an_accepted_tunnel_sends_what_was_recorded() {
    let recorded = events(include_str!("../testdata/outbound-accepted.json"));
    let config = PoolConfig {
        ping_every: Duration::from_millis(50),
        ..PoolConfig::default()
    };
    assert_eq!(
        PoolConfig::default().ping_every,
        Duration::from_secs(10),
        "as recorded: a PING after 10 s"
    );
    let scripted = scripted(config).await;
    let pool = scripted.client.pool.clone();
    let destination = scripted.client.destination.clone();
    let opening = tokio::spawn(async move {
        pool.open(&destination, TcpStream::connect, recorded_connect())
            .await
    });
    let mut peer = scripted.peer(SERVER).await.unwrap();

    let (_, tls) = peer.io.get_ref();
    assert_eq!(
        tls.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    assert_eq!(
        tls.negotiated_cipher_suite().unwrap().suite().as_str(),
        Some("TLS13_AES_256_GCM_SHA384")
    );
    assert_eq!(
        tls.negotiated_key_exchange_group().unwrap().name().as_str(),
        Some("X25519MLKEM768")
    );
    assert_eq!(tls.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(recorded[0]["tls"]["sni"][0], Value::Null);
    if let tokio_rustls::TlsStream::Server(stream) = &peer.io {
        assert_eq!(
            stream.get_ref().1.server_name(),
            None,
            "no SNI, as recorded"
        );
    }

    peer.send(&raw::frame(raw::SETTINGS, 0, 0, &[]))
        .await
        .unwrap();
    let settings = peer
        .until("SETTINGS", |f| f.kind == raw::SETTINGS && f.flags == 0)
        .await;
    let wanted = &event(&recorded, "RemoteSettingsChanged")["settings"];
    let settings = serde_json::to_value(settings.settings()).unwrap();
    assert_eq!(&common::as_recorded(settings), wanted);
    // The window update may come before or after the request; both come before our answer.
    let (mut window, mut headers) = (None, None);
    while window.is_none() || headers.is_none() {
        let frame = peer
            .until("the request", |f| {
                [raw::WINDOW_UPDATE, raw::HEADERS].contains(&f.kind)
            })
            .await;
        match frame.kind {
            raw::WINDOW_UPDATE => window = Some((frame.stream, frame.code())),
            _ => headers = Some(frame),
        }
    }
    let recorded_window = event(&recorded, "WindowUpdated");
    assert_eq!(
        window,
        Some((0, recorded_window["delta"].as_u64().unwrap() as u32))
    );
    let headers = headers.unwrap();
    assert_eq!((headers.stream, headers.flags), (1, raw::END_HEADERS));

    peer.send(&raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &[0x88]))
        .await
        .unwrap();
    let mut tunnel = opening.await.unwrap().unwrap();
    tunnel.send(Bytes::from_static(b"ping")).await.unwrap();
    tunnel.shutdown().unwrap();
    let data = peer.until("DATA", |f| f.kind == raw::DATA).await;
    assert_eq!((data.payload.as_slice(), data.flags), (&b"ping"[..], 0));
    let end = peer.until("the end", |f| f.kind == raw::DATA).await;
    assert_eq!(
        (end.payload.len(), end.flags),
        (0, raw::END_STREAM),
        "half close is an empty DATA frame"
    );
    peer.until("PING", |f| f.kind == raw::PING).await;
}

#[tokio::test]
async fn the_request_carries_the_recorded_headers_in_the_recorded_order() {
    let recorded = events(include_str!("../testdata/outbound-accepted.json"));
    let wanted: Vec<(String, String)> =
        serde_json::from_value(event(&recorded, "RequestReceived")["headers"].clone()).unwrap();
    let scripted = scripted(PoolConfig::default()).await;
    let pool = scripted.client.pool.clone();
    let destination = scripted.client.destination.clone();
    let opening = tokio::spawn(async move {
        pool.open(&destination, TcpStream::connect, recorded_connect())
            .await
    });
    let (socket, _) = scripted.listener.accept().await.unwrap();
    let badge = raw::badge(&scripted.ca, &[SERVER], SystemTime::now() + HOUR);
    let tls = tokio_rustls::TlsAcceptor::from(raw::tls_server(&scripted.ca, badge))
        .accept(socket)
        .await
        .unwrap();
    let mut server = h2::server::handshake(tls).await.unwrap();
    let (request, mut respond) = server.accept().await.unwrap().unwrap();
    assert_eq!(request.uri().path_and_query(), None);
    assert_eq!(request.uri().scheme(), None);
    let mut headers = vec![
        (":method".to_owned(), request.method().to_string()),
        (
            ":authority".to_owned(),
            request.uri().authority().unwrap().to_string(),
        ),
    ];
    headers.extend(
        request
            .headers()
            .iter()
            .map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())),
    );
    assert_eq!(headers, wanted);
    respond
        .send_response(http::Response::new(()), false)
        .unwrap();
    tokio::spawn(async move { while server.accept().await.is_some() {} });
    opening.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refused_tunnel_is_reset_with_cancel_and_the_connection_stays() {
    let recorded = events(include_str!("../testdata/outbound-refused.json"));
    let config = PoolConfig {
        ping_every: Duration::from_millis(50),
        ..PoolConfig::default()
    };
    let scripted = scripted(config).await;
    let pool = scripted.client.pool.clone();
    let destination = scripted.client.destination.clone();
    let opening = tokio::spawn(async move {
        pool.open(&destination, TcpStream::connect, recorded_connect())
            .await
    });
    let mut peer = scripted.peer(SERVER).await.unwrap();
    peer.send(&raw::frame(raw::SETTINGS, 0, 0, &[]))
        .await
        .unwrap();
    peer.until("the request", |f| f.kind == raw::HEADERS).await;
    // `:status 401` as a literal, stream left open by us.
    peer.send(&raw::frame(
        raw::HEADERS,
        raw::END_HEADERS,
        1,
        &[0x08, 3, b'4', b'0', b'1'],
    ))
    .await
    .unwrap();
    assert!(matches!(
        opening.await.unwrap(),
        Err(OpenError::Refused(401))
    ));
    let reset = peer.until("the reset", |f| f.kind == raw::RST_STREAM).await;
    assert_eq!(
        u64::from(reset.code()),
        event(&recorded, "StreamReset")["error_code"]
            .as_u64()
            .unwrap()
    );
    peer.until("PING on the connection that stays", |f| {
        f.kind == raw::PING && f.flags == 0
    })
    .await;
    assert_eq!(scripted.client.pool.stats().connections, 1);
}

#[tokio::test]
async fn a_server_of_another_identity_gets_the_recorded_alert_and_no_request() {
    let recorded = events(include_str!("../testdata/outbound-wrong-identity.json"));
    assert!(
        recorded[0]["error"]
            .as_str()
            .unwrap()
            .contains("ALERT_CERTIFICATE_UNKNOWN")
    );
    let scripted = scripted(PoolConfig::default()).await;
    let pool = scripted.client.pool.clone();
    let destination = scripted.client.destination.clone();
    let opening = tokio::spawn(async move {
        pool.open(&destination, TcpStream::connect, recorded_connect())
            .await
    });
    let Err(error) = scripted
        .peer("spiffe://cluster.local/ns/default/sa/somebody-else")
        .await
    else {
        panic!("the handshake went on");
    };
    assert!(error.to_string().contains("CertificateUnknown"), "{error}");
    match opening.await.unwrap() {
        Err(OpenError::IdentityMismatch(TlsError::IdentityMismatch {
            presented,
            expected,
        })) => {
            assert_eq!(presented.service_account(), "somebody-else");
            assert_eq!(expected, [common::identity("server")]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        scripted.client.pool.stats(),
        hbone::PoolStats::default(),
        "nothing stays in the pool"
    );
}
