//! Our records under a whole connection, with a peer that does with its TLS what it likes.

use std::{sync::Arc, time::SystemTime};

use hbone::{Engine, Limits};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::TlsStream;

use crate::{
    common::{Ca, HOUR, Refusals, Server, echo, identity, raw, serve},
    stock::bytes,
};

/// A server of our engine that sends back what arrives, and a scripted client with a tunnel to it.
async fn echoed() -> (Server, raw::Raw) {
    let ca = Arc::new(Ca::new());
    let limits = Limits {
        engine: Engine::Own,
        ..Refusals::default().limits()
    };
    let server = serve(ca.certificate(&identity("server")), limits, echo).await;
    let name = identity("client").to_string();
    let badge = raw::badge(&ca, &[&name], SystemTime::now() + HOUR);
    let socket = TcpStream::connect(server.address).await.unwrap();
    let config = raw::tls_client(Some(badge), &["h2"]);
    let mut peer = raw::Raw::connect(socket, config).await.unwrap();
    peer.hello().await.unwrap();
    peer.request(1, &raw::connect_headers("10.0.0.1:80"))
        .await
        .unwrap();
    let answer = peer.until("answer", |f| f.kind == raw::HEADERS).await;
    assert_eq!(answer.status(), 200);
    (server, peer)
}

/// Changes the key that the peer sends with, and asks the server for the same.
fn change_key(peer: &mut raw::Raw) {
    let TlsStream::Client(stream) = &mut peer.io else {
        panic!("a client's connection");
    };
    stream.get_mut().1.refresh_traffic_keys().unwrap();
}

async fn say(peer: &mut raw::Raw, data: &[u8]) {
    peer.send(&raw::frame(raw::DATA, 0, 1, data)).await.unwrap();
}

/// Exactly as many bytes as are expected.
async fn hear(peer: &mut raw::Raw, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        let data = peer.until("data", |f| f.kind == raw::DATA).await;
        all.extend(data.payload);
    }
    all
}

#[tokio::test]
async fn a_tunnel_goes_on_when_its_peer_changes_keys() {
    let (_server, mut peer) = echoed().await;
    // Together less than the window that a client begins with.
    for round in 1..=5_usize {
        change_key(&mut peer);
        let data = bytes(round * 4_000);
        say(&mut peer, &data).await;
        assert_eq!(hear(&mut peer, data.len()).await, data);
    }
}

#[tokio::test]
async fn a_peer_that_asks_for_keys_and_does_not_read_loses_nothing() {
    let (_server, mut peer) = echoed().await;
    let data = bytes(1000 * 16);
    for piece in data.chunks(16) {
        change_key(&mut peer);
        say(&mut peer, piece).await;
    }
    assert_eq!(hear(&mut peer, data.len()).await, data);
}

#[tokio::test]
async fn a_record_that_is_none_ends_the_connection_and_the_peer_is_told_why() {
    for (record, alert) in [
        (&b"\x17\x03\x03\0\x11aaaaaaaaaaaaaaaaa"[..], "BadRecordMac"),
        (b"\x17\x03\x03\x50\0", "RecordOverflow"),
        (b"\x16\x03\x03\0\x04\x01\0\0\0", "UnexpectedMessage"),
        (b"\x14\x03\x03\0\x01\x01", "UnexpectedMessage"),
    ] {
        let (_server, mut peer) = echoed().await;
        let (socket, _) = peer.io.get_mut();
        socket.write_all(record).await.unwrap();
        let error = loop {
            match peer.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("closed in order after {record:02x?}"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains(alert), "{record:02x?}: {error}");
    }
}
