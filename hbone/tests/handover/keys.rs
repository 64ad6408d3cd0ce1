//! A peer that does with TLS and HTTP/2 what it likes, while the other end changes its owner.

use std::{sync::Arc, time::SystemTime};

use hbone::{Engine, Limits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

use crate::{
    common::{Ca, HOUR, identity, raw},
    world::{Decision, Side, pattern, server},
};

/// A scripted client with a tunnel, the server's side, and the app behind it.
async fn scripted() -> (raw::Raw, Side, TcpStream) {
    let ca = Arc::new(Ca::new());
    let limits = Limits {
        engine: Engine::Own,
        ..Limits::default()
    };
    let (side, _, mut apps, address) = server(&ca, limits).await;
    let name = identity("client").to_string();
    let badge = raw::badge(&ca, &[&name], SystemTime::now() + HOUR);
    let socket = TcpStream::connect(address).await.unwrap();
    let config = raw::tls_client(Some(badge), &["h2"]);
    let mut peer = raw::Raw::connect(socket, config).await.unwrap();
    peer.hello().await.unwrap();
    peer.request(1, &raw::connect_headers("10.0.0.1:80"))
        .await
        .unwrap();
    let answer = peer.until("answer", |f| f.kind == raw::HEADERS).await;
    assert_eq!(answer.status(), 200);
    (peer, side, apps.recv().await.unwrap())
}

/// Changes the key that the peer sends with, and asks for the same.
fn change_key(peer: &mut raw::Raw) {
    let TlsStream::Client(stream) = &mut peer.io else {
        panic!("a client's connection");
    };
    stream.get_mut().1.refresh_traffic_keys().unwrap();
}

async fn hear(peer: &mut raw::Raw, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        let data = peer.until("data", |f| f.kind == raw::DATA).await;
        all.extend(data.payload);
    }
    all
}

#[tokio::test]
async fn keys_change_on_either_side_of_a_change_of_owner() {
    let (mut peer, side, mut app) = scripted().await;
    for round in 0..12_usize {
        change_key(&mut peer);
        let data = pattern(round, 700);
        // A frame in pieces, each with a record of its own, and an owner of its own.
        let frame = raw::frame(raw::DATA, 0, 1, &data);
        let cuts = [0, round % 9 + 1, 9 + round * 50, frame.len()];
        for cut in cuts.windows(2) {
            peer.send(&frame[cut[0]..cut[1]]).await.unwrap();
            if round % 3 == 0 {
                tokio::task::yield_now().await;
            }
            assert!(side.becomes(Decision::Hand).await);
        }
        let mut heard = vec![0; data.len()];
        app.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, data);
        // The answer that is owed goes before what this owner says first.
        app.write_all(&data).await.unwrap();
        assert_eq!(hear(&mut peer, data.len()).await, data);
    }
}

#[tokio::test]
async fn a_peer_that_says_goodbye_is_let_go_by_the_next_owner() {
    let (mut peer, side, mut app) = scripted().await;
    // It will open no more, and then it ends its stream.
    let goaway = raw::frame(7, 0, 0, &[0; 8]);
    peer.send(&goaway).await.unwrap();
    assert!(side.becomes(Decision::Hand).await);
    app.write_all(b"still open").await.unwrap();
    assert_eq!(hear(&mut peer, 10).await, b"still open");
    assert!(side.becomes(Decision::Hand).await);
    peer.send(&raw::frame(raw::DATA, 1, 1, b"the end"))
        .await
        .unwrap();
    let mut heard = Vec::new();
    app.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"the end");
    drop(app);
    crate::common::eventually("the connection is over", || side.over() == 1).await;
}
