//! Every recorded exchange of a scripted client with Istio's ztunnel (`testdata/inbound.json`), played
//! against `accept`: the same TLS facts or the same alert, the same SETTINGS and window, and on the
//! stream the same answer, data, end and reset. What differs on purpose is in `testdata/DEVIATIONS.md`.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use common::{Ca, HOUR, Refusals, Served, identity, raw, raw::Raw};
use hbone::{Authority, Request, ResponseHeaders, Status};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream};

/// The recorded pod: its address, what ztunnel keeps for itself, what nobody listens on, what policy denies.
const POD: &str = "10.99.0.3";

/// Decides as the recorded node did. Which requests reach this at all is what is tested.
fn as_recorded(request: Request) -> Served {
    Box::pin(async move {
        let status = match &request.authority {
            Authority::Ip(to) if to.ip() != POD.parse::<IpAddr>().unwrap() => {
                Some(Status::BadRequest)
            }
            Authority::Ip(to) if [15001, 15006, 15008, 4444].contains(&to.port()) => {
                Some(Status::Unavailable)
            }
            Authority::Ip(to) if to.port() == 9999 => Some(Status::Denied),
            Authority::Ip(_) => None,
            Authority::Host(..) => Some(Status::Unavailable),
        };
        match status {
            Some(status) => request.refuse(status),
            None => {
                let headers = ResponseHeaders {
                    baggage: Some("k8s.namespace.name=default".into()),
                };
                common::echo_tunnel(request.accept(headers).unwrap()).await;
            }
        }
    })
}

struct Played {
    tls: Value,
    events: Vec<Value>,
}

#[tokio::test]
async fn every_recorded_case_is_answered_as_recorded() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../testdata/inbound.json")).unwrap();
    assert_eq!(cases.len(), 24);
    for case in cases {
        let name = case["case"].as_str().unwrap().to_owned();
        match play(&case, &name).await {
            Ok(played) => {
                assert!(
                    case.get("error").is_none(),
                    "{name}: recorded {}, ours went on",
                    case["error"]
                );
                check_tls(&case["tls"], &played.tls, &name);
                check_events(case["events"].as_array().unwrap(), &played.events, &name);
            }
            Err(error) => {
                let recorded = case["error"]
                    .as_str()
                    .unwrap_or_else(|| panic!("{name}: ours failed: {error}"));
                assert_eq!(
                    alert_of_recording(recorded),
                    alert_of_ours(&error),
                    "{name}: {recorded} / {error}"
                );
            }
        }
    }
}

/// One case against a fresh server.
async fn play(case: &Value, name: &str) -> Result<Played, String> {
    let ca = Ca::new();
    let mut limits = Refusals::default().limits();
    if name.contains("silence") {
        assert_eq!(
            limits.ping_every,
            Duration::from_secs(10),
            "as recorded: a PING after 10 s"
        );
        limits.ping_every = Duration::from_millis(50);
    }
    let server = common::serve(ca.certificate(&identity("server")), limits, as_recorded).await;
    let socket = TcpStream::connect(server.address).await.unwrap();
    if name == "TLS 1.2 only" {
        return Err(tls12_alert(socket).await);
    }
    let soon = SystemTime::now() + HOUR;
    let client = "spiffe://cluster.local/ns/default/sa/client";
    let badge = match name {
        "no client certificate" => None,
        // Same name, other key: as recorded.
        "certificate of an unknown CA" => Some(raw::badge(&Ca::new(), &[client], soon)),
        "expired certificate" => Some(raw::badge(&ca, &[client], SystemTime::now() - HOUR)),
        "other trust domain" => Some(raw::badge(
            &ca,
            &["spiffe://other.domain/ns/default/sa/client"],
            soon,
        )),
        "identity that is not SPIFFE" => {
            Some(raw::badge(&ca, &["https://example.com/client"], soon))
        }
        _ => Some(raw::badge(&ca, &[client], soon)),
    };
    let alpn: &[&str] = match name {
        "no ALPN" => &[],
        "ALPN http/1.1" => &["http/1.1"],
        _ => &["h2"],
    };
    let mut peer = Raw::connect(socket, raw::tls_client(badge, alpn))
        .await
        .map_err(|e| e.to_string())?;
    let tls = tls_facts(&peer);
    let events = exchange(&mut peer, case).await.map_err(|e| e.to_string())?;
    Ok(Played { tls, events })
}

/// Says what the recorded client said, and writes down what comes back in the recording's words.
async fn exchange(peer: &mut Raw, case: &Value) -> std::io::Result<Vec<Value>> {
    peer.hello().await?;
    let recorded = case["events"].as_array().cloned().unwrap_or_default();
    let sends_data = recorded.iter().any(|e| e["event"] == "DataReceived");
    let ends = case["case"].as_str().unwrap().contains("end of stream");
    if let Some(headers) = case["request_headers"].as_array() {
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|h| (h[0].as_str().unwrap(), h[1].as_str().unwrap()))
            .collect();
        peer.request(1, &headers).await?;
    }
    let mut events = Vec::new();
    while events.len() < recorded.len().max(1) {
        let next = tokio::time::timeout(Duration::from_secs(5), peer.next()).await;
        let Some(frame) = next.expect("an event was recorded that never came")? else {
            break;
        };
        if frame.kind == raw::HEADERS && sends_data {
            let (flags, text) = (if ends { raw::END_STREAM } else { 0 }, b"hello");
            peer.send(&raw::frame(raw::DATA, flags, 1, text)).await?;
        }
        events.extend(in_recorded_words(&frame));
    }
    // Nothing more may come than was recorded.
    let more = tokio::time::timeout(Duration::from_millis(30), peer.next()).await;
    if let Ok(Ok(Some(frame))) = more
        && frame.kind != raw::PING
    {
        events.extend(in_recorded_words(&frame));
    }
    Ok(events)
}

fn in_recorded_words(frame: &raw::Frame) -> Vec<Value> {
    let stream = frame.stream;
    let mut events = match frame.kind {
        raw::SETTINGS if frame.flags & raw::ACK != 0 => {
            vec![json!({"event": "SettingsAcknowledged"})]
        }
        raw::SETTINGS => {
            vec![json!({"event": "RemoteSettingsChanged", "settings": frame.settings()})]
        }
        raw::WINDOW_UPDATE => {
            vec![json!({"event": "WindowUpdated", "stream_id": stream, "delta": frame.code()})]
        }
        raw::HEADERS => vec![
            json!({"event": "ResponseReceived", "stream_id": stream, "status": frame.status().to_string()}),
        ],
        raw::DATA => {
            let text = String::from_utf8(frame.payload.clone()).unwrap();
            vec![
                json!({"event": "DataReceived", "stream_id": stream, "flow_controlled_length": text.len(), "data": text}),
            ]
        }
        raw::RST_STREAM => {
            vec![json!({"event": "StreamReset", "stream_id": stream, "error_code": frame.code()})]
        }
        raw::PING => vec![json!({"event": "PingReceived"})],
        other => panic!("frame of kind {other}"),
    };
    if frame.ends_stream() {
        events.push(json!({"event": "StreamEnded", "stream_id": stream}));
    }
    events
}

/// Connection events may interleave with stream events differently; within each kind the order counts.
fn check_events(recorded: &[Value], ours: &[Value], name: &str) {
    let connection = |e: &&Value| e.get("stream_id").is_none_or(|id| id == 0);
    let in_our_words = |e: &Value| match e["event"].as_str().unwrap() {
        "ResponseReceived" => {
            json!({"event": "ResponseReceived", "stream_id": e["stream_id"], "status": e["headers"][0][1]})
        }
        "SettingsAcknowledged" => json!({"event": "SettingsAcknowledged"}),
        _ => e.clone(),
    };
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    let text = |e: &Value| e.to_string();
    assert_eq!(
        sorted(ours.iter().filter(connection).map(text).collect()),
        sorted(
            recorded
                .iter()
                .filter(connection)
                .map(|e| text(&in_our_words(e)))
                .collect()
        ),
        "{name}: the connection"
    );
    assert_eq!(
        ours.iter()
            .filter(|e| !connection(e))
            .map(text)
            .collect::<Vec<_>>(),
        recorded
            .iter()
            .filter(|e| !connection(e))
            .map(|e| text(&in_our_words(e)))
            .collect::<Vec<_>>(),
        "{name}: the stream"
    );
}

fn tls_facts(peer: &Raw) -> Value {
    let (_, tls) = peer.io.get_ref();
    let cipher = tls
        .negotiated_cipher_suite()
        .unwrap()
        .suite()
        .as_str()
        .unwrap()
        .replace("TLS13_", "TLS_");
    assert_eq!(
        tls.negotiated_key_exchange_group().unwrap().name().as_str(),
        Some("X25519MLKEM768")
    );
    json!({
        "version": if tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3) { "TLSv1.3" } else { "other" },
        "cipher": cipher,
        "alpn": tls.alpn_protocol().map(|p| String::from_utf8(p.to_vec()).unwrap()),
    })
}

fn check_tls(recorded: &Value, ours: &Value, name: &str) {
    for fact in ["version", "cipher", "alpn"] {
        assert_eq!(ours[fact], recorded[fact], "{name}: {fact}");
    }
}

/// `[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] …` or `[SSL] tlsv1 alert no application protocol`.
fn alert_of_recording(error: &str) -> String {
    let error = error.to_ascii_lowercase().replace('_', " ");
    let (_, after) = error.split_once("alert ").unwrap();
    after
        .split([']', '('])
        .next()
        .unwrap()
        .trim()
        .replace(' ', "")
}

/// `received fatal alert: CertificateRequired`, in whatever case the library likes.
fn alert_of_ours(error: &str) -> String {
    let error = error.to_ascii_lowercase();
    let (_, after) = error
        .split_once("alert: ")
        .unwrap_or_else(|| panic!("no alert in {error}"));
    after
        .split([' ', '('])
        .next()
        .unwrap()
        .replace('_', "")
        .to_owned()
}

/// A ClientHello of TLS 1.2, written by hand: our TLS library cannot speak it.
async fn tls12_alert(mut socket: TcpStream) -> String {
    use tokio::io::AsyncWriteExt;
    let mut hello = vec![3, 3];
    hello.extend([7; 32]); // random
    hello.push(0); // no session
    hello.extend([0, 2, 0xc0, 0x2b]); // ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    hello.extend([1, 0]); // no compression
    let extensions: &[u8] = &[0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3]; // P-256, ECDSA-SHA256
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut handshake = vec![1];
    handshake.extend(&(hello.len() as u32).to_be_bytes()[1..]);
    handshake.extend(&hello);
    let mut record = vec![22, 3, 1];
    record.extend((handshake.len() as u16).to_be_bytes());
    record.extend(&handshake);
    socket.write_all(&record).await.unwrap();
    let mut alert = [0; 7];
    socket.read_exact(&mut alert).await.unwrap();
    assert_eq!((alert[0], alert[5]), (21, 2), "a fatal alert");
    assert_eq!(alert[6], 70, "protocol_version");
    "alert: protocolversion".into()
}

#[tokio::test]
async fn an_accepted_tunnel_says_the_baggage_it_was_given() {
    // The recording's response headers beyond the status, read by a real HTTP/2 client.
    let ca = Ca::new();
    let server = common::serve(
        ca.certificate(&identity("server")),
        Refusals::default().limits(),
        as_recorded,
    )
    .await;
    let socket = TcpStream::connect(server.address).await.unwrap();
    let badge = raw::badge(
        &ca,
        &["spiffe://cluster.local/ns/default/sa/client"],
        SystemTime::now() + HOUR,
    );
    let peer = Raw::connect(socket, raw::tls_client(Some(badge), &["h2"]))
        .await
        .unwrap();
    let (mut send, connection) = h2::client::handshake(peer.io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::connect("10.99.0.3:9000").body(()).unwrap();
    let (response, _stream) = send.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers().len(), 1);
    assert_eq!(response.headers()["baggage"], "k8s.namespace.name=default");
}

#[tokio::test]
async fn the_handshake_proves_the_client_to_the_server() {
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let limits = Refusals::default().limits();
    let certificate = ca.certificate(&identity("server"));
    let accepting = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        hbone::accept(socket, certificate, &limits).await.unwrap()
    });
    let client = common::client(&ca, address, hbone::PoolConfig::default());
    let opening = tokio::spawn(async move { client.open().await });
    let connection = accepting.await.unwrap();
    assert_eq!(*connection.peer(), identity("client"));
    assert_eq!(connection.session().group, "X25519MLKEM768");
    assert_eq!(connection.session().cipher, "TLS13_AES_256_GCM_SHA384");
    opening.abort();
}
