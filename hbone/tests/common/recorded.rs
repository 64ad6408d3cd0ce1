//! A recorded exchange (`testdata/inbound.json`), played by a scripted client on a socket that leads
//! to the server under test, and what comes back compared with what came back then.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{
    Ca,
    raw::{self, Raw},
};

const HOUR: Duration = Duration::from_secs(3600);

/// All cases, in the order in which they were recorded.
pub fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("../../testdata/inbound.json")).unwrap()
}

/// The case in which nothing is said for longer than it takes until a PING.
pub fn is_silence(case: &Value) -> bool {
    name(case).contains("silence")
}

pub fn name(case: &Value) -> &str {
    case["case"].as_str().unwrap()
}

/// What came back.
pub struct Played {
    tls: Value,
    events: Vec<Value>,
}

/// Plays one case; the error is that of the handshake.
pub async fn play(case: &Value, ca: &Ca, socket: TcpStream) -> Result<Played, String> {
    let name = name(case);
    if name == "TLS 1.2 only" {
        return Err(tls12_alert(socket).await);
    }
    let soon = SystemTime::now() + HOUR;
    let client = "spiffe://cluster.local/ns/default/sa/client";
    let badge = match name {
        "no client certificate" => None,
        // Same name, other key: as recorded.
        "certificate of an unknown CA" => Some(raw::badge(&Ca::new(), &[client], soon)),
        "expired certificate" => Some(raw::badge(ca, &[client], SystemTime::now() - HOUR)),
        "other trust domain" => Some(raw::badge(
            ca,
            &["spiffe://other.domain/ns/default/sa/client"],
            soon,
        )),
        "identity that is not SPIFFE" => {
            Some(raw::badge(ca, &["https://example.com/client"], soon))
        }
        _ => Some(raw::badge(ca, &[client], soon)),
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

/// Fails unless what came back is what was recorded.
pub fn check(case: &Value, outcome: Result<Played, String>) {
    let name = name(case);
    match outcome {
        Ok(played) => {
            assert!(
                case.get("error").is_none(),
                "{name}: recorded {}, ours went on",
                case["error"]
            );
            check_tls(&case["tls"], &played.tls, name);
            check_events(case["events"].as_array().unwrap(), &played.events, name);
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

/// Says what the recorded client said, and writes down what comes back in the recording's words.
async fn exchange(peer: &mut Raw, case: &Value) -> std::io::Result<Vec<Value>> {
    if let Err(hung_up) = speak(peer, case).await {
        // The far end was faster; what it said before it hung up is still to be read.
        peer.next().await?;
        return Err(hung_up);
    }
    let recorded = case["events"].as_array().cloned().unwrap_or_default();
    let sends_data = recorded.iter().any(|e| e["event"] == "DataReceived");
    let ends = name(case).contains("end of stream");
    let mut events = Vec::new();
    while events.len() < recorded.len().max(1) {
        let next = tokio::time::timeout(Duration::from_secs(60), peer.next()).await;
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

async fn speak(peer: &mut Raw, case: &Value) -> std::io::Result<()> {
    peer.hello().await?;
    let Some(headers) = case["request_headers"].as_array() else {
        return Ok(());
    };
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|h| (h[0].as_str().unwrap(), h[1].as_str().unwrap()))
        .collect();
    peer.request(1, &headers).await
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
            let received = |text: &str| json!({"event": "DataReceived", "stream_id": stream, "flow_controlled_length": text.len(), "data": text});
            // Our own engine ends with the last bytes what the recorded peer ended with a frame of its own.
            let apart = frame.ends_stream() && !text.is_empty();
            let end = apart.then(|| received(""));
            [received(&text)].into_iter().chain(end).collect()
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
    let as_recorded = |e: &Value| {
        let mut event = e.clone();
        if let Some(settings) = event.get_mut("settings") {
            // Our own engine announces two things otherwise on purpose (`testdata/DEVIATIONS.md`).
            let settings = settings.as_object_mut().unwrap();
            if let Some(table) = settings.remove("HEADER_TABLE_SIZE") {
                let first = settings.insert("INITIAL_WINDOW_SIZE".into(), (4 << 20).into());
                assert_eq!((table, first), (0.into(), Some((512 << 10).into())));
            }
        }
        event.to_string()
    };
    assert_eq!(
        sorted(ours.iter().filter(connection).map(as_recorded).collect()),
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
