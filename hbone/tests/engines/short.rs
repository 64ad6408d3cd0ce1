//! What of a short connection leaves together, and what must not be lost or said twice by it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use hbone::{Counters, Engine, HalfEnd, OpenError, PoolConfig, Tunnel, both_ways};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::common::{
    self, Ca, Client, HOUR,
    raw::{self, Frame, Raw},
};

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
const REFUSED_STREAM: u32 = 7;

/// A pool of our own engine, and a server that answers frame by frame.
struct Scripted {
    ca: Arc<Ca>,
    listener: TcpListener,
    client: Arc<Client>,
    dialled: Arc<AtomicUsize>,
}

type Opening = JoinHandle<Result<Tunnel, OpenError>>;

impl Scripted {
    async fn new() -> Self {
        let ca = Arc::new(Ca::new());
        let (listener, address) = common::listen().await;
        let config = PoolConfig {
            engine: Engine::Own,
            ..PoolConfig::default()
        };
        Self {
            client: Arc::new(common::client(&ca, address, config)),
            ca,
            listener,
            dialled: Arc::default(),
        }
    }

    async fn accept(&self) -> Raw {
        let (socket, _) = self.listener.accept().await.unwrap();
        let badge = raw::badge(&self.ca, &[SERVER], SystemTime::now() + HOUR);
        let tls = raw::tls_server(&self.ca, badge);
        let mut peer = Raw::accept(socket, tls).await.unwrap();
        let settings = raw::frame(raw::SETTINGS, 0, 0, &[]);
        peer.send(&settings).await.unwrap();
        peer
    }

    /// A tunnel is asked for, for an app's socket.
    fn open(&self, app: &Arc<TcpStream>) -> Opening {
        let (client, dialled, app) = (self.client.clone(), self.dialled.clone(), app.clone());
        tokio::spawn(async move {
            let dial = |to| {
                dialled.fetch_add(1, Ordering::SeqCst);
                TcpStream::connect(to)
            };
            let connect = common::to("10.0.0.1:80");
            let opened = client
                .pool
                .open_for(&app, &client.destination, dial, connect);
            opened.await
        })
    }

    /// A connection with one tunnel, of an app that has said nothing, and the peer of it.
    async fn begun(&self) -> (Tunnel, Raw) {
        let silent = common::socket_pair().await;
        let opening = self.open(&Arc::new(silent.1));
        let mut peer = self.accept().await;
        let asked = peer.until("a request", is_request).await;
        peer.send(&granted(asked.stream)).await.unwrap();
        (opening.await.unwrap().unwrap(), peer)
    }

    /// A tunnel is asked for together with what its app has said: both ends of that one, and the stream. A peer that has been silent
    /// for a moment is told nothing, and a moment passes soon where others want the processor: then another is asked for.
    async fn asked_with_hello(&self, peer: &mut Raw) -> (TcpStream, Arc<TcpStream>, Opening, u32) {
        let ping = raw::frame(raw::PING, 0, 0, b"anything");
        for _ in 0..100 {
            let (app, ours) = app().await;
            peer.send(&ping).await.unwrap();
            peer.until("an answer", is_answer).await;
            let opening = self.open(&ours);
            let asked = peer.until("a request", is_request).await.stream;
            peer.send(&ping).await.unwrap();
            let next = peer
                .until("the next frame", |f| f.stream == asked || is_answer(f))
                .await;
            if next.stream == asked {
                assert_eq!((next.kind, next.flags), (raw::DATA, 0));
                assert_eq!(&next.payload[..], b"hello");
                peer.until("an answer", is_answer).await;
                return (app, ours, opening, asked);
            }
            opening.abort();
            let _ = opening.await;
        }
        panic!("what the app says first never goes along");
    }
}

fn is_request(frame: &Frame) -> bool {
    frame.kind == raw::HEADERS
}

/// To a PING.
fn is_answer(frame: &Frame) -> bool {
    (frame.kind, frame.flags) == (raw::PING, raw::ACK)
}

fn granted(stream: u32) -> Vec<u8> {
    raw::frame(raw::HEADERS, raw::END_HEADERS, stream, &[0x88])
}

/// An app's end that has said hello, and ours of it.
async fn app() -> (TcpStream, Arc<TcpStream>) {
    let (mut app, ours) = common::socket_pair().await;
    app.write_all(b"hello").await.unwrap();
    ours.readable().await.unwrap();
    (app, Arc::new(ours))
}

/// Waits until we have heard that the app is done, in order or not.
async fn closed(ours: &TcpStream) {
    let ready = || ours.ready(tokio::io::Interest::READABLE);
    let closing = async {
        while !ready().await.unwrap().is_read_closed() {
            tokio::task::yield_now().await;
        }
    };
    let closing = tokio::time::timeout(Duration::from_secs(60), closing).await;
    closing.expect("the app's end never came");
}

/// The next request and the frame behind it, which came without an answer.
async fn asked_with_hello(peer: &mut Raw) -> u32 {
    let asked = peer.until("a request", is_request).await;
    let first = peer.until("what the app said", |f| f.stream != 0).await;
    assert_eq!((first.kind, first.flags), (raw::DATA, 0));
    assert_eq!(
        (first.stream, &first.payload[..]),
        (asked.stream, &b"hello"[..])
    );
    asked.stream
}

fn copy(ours: Arc<TcpStream>, tunnel: Tunnel) -> (JoinHandle<hbone::Ended>, Arc<Counters>) {
    let (ours, counters) = (
        Arc::into_inner(ours).unwrap(),
        Arc::new(Counters::default()),
    );
    let counting = counters.clone();
    let copying = tokio::spawn(async move { both_ways(ours, tunnel, &*counting).await });
    (copying, counters)
}

#[tokio::test]
async fn what_an_app_says_first_leaves_with_its_request_and_is_counted() {
    let scripted = Scripted::new().await;
    let (_kept, mut peer) = scripted.begun().await;
    let (mut app, ours, opening, stream) = scripted.asked_with_hello(&mut peer).await;
    peer.send(&granted(stream)).await.unwrap();
    let (copying, counters) = copy(ours, opening.await.unwrap().unwrap());
    app.write_all(b"more").await.unwrap();
    app.shutdown().await.unwrap();
    let mut more = Vec::new();
    let mut ended = false;
    while !ended {
        let frame = peer.until("the rest", |f| f.kind == raw::DATA).await;
        ended = frame.ends_stream();
        more.extend(frame.payload);
    }
    assert_eq!(more, b"more", "each byte once");
    let answer = raw::frame(raw::DATA, raw::END_STREAM, stream, b"answer");
    peer.send(&answer).await.unwrap();
    let mut heard = Vec::new();
    app.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"answer");
    assert!(copying.await.unwrap().clean());
    assert_eq!(counters.moved(), (9, 6));
}

#[tokio::test]
async fn a_new_connection_is_told_nothing_before_it_has_answered() {
    let scripted = Scripted::new().await;
    let (_app, ours) = app().await;
    let opening = scripted.open(&ours);
    let mut peer = scripted.accept().await;
    let asked = peer.until("a request", is_request).await;
    peer.send(&raw::frame(raw::PING, 0, 0, b"anything"))
        .await
        .unwrap();
    let next = peer
        .until("the next frame", |f| f.kind != raw::SETTINGS)
        .await;
    assert_eq!(next.kind, raw::PING, "no bytes");
    peer.send(&granted(asked.stream)).await.unwrap();
    let (_copying, _) = copy(ours, opening.await.unwrap().unwrap());
    let hello = peer
        .until("what the app said", |f| f.kind == raw::DATA)
        .await;
    assert_eq!(hello.payload, b"hello");
}

#[tokio::test]
async fn a_peer_that_has_been_silent_is_told_nothing_before_it_answers() {
    let scripted = Scripted::new().await;
    let (_kept, mut peer) = scripted.begun().await;
    tokio::time::sleep(Duration::from_millis(1050)).await; // it is the silence that is meant
    let (_app, ours) = app().await;
    let opening = scripted.open(&ours);
    let asked = peer.until("a request", is_request).await;
    peer.send(&raw::frame(raw::PING, 0, 0, b"anything"))
        .await
        .unwrap();
    let next = peer
        .until("the next frame", |f| f.kind != raw::SETTINGS)
        .await;
    assert_eq!(next.kind, raw::PING, "no bytes");
    peer.send(&granted(asked.stream)).await.unwrap();
    assert!(opening.await.unwrap().is_ok());
}

#[tokio::test]
async fn what_the_peer_has_not_looked_at_is_said_again_and_arrives_once() {
    let scripted = Scripted::new().await;
    let (_kept, mut peer) = scripted.begun().await;
    let (_app, _ours, opening, stream) = scripted.asked_with_hello(&mut peer).await;
    let refused = raw::frame(raw::RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes());
    peer.send(&refused).await.unwrap();
    let again = asked_with_hello(&mut peer).await;
    assert_ne!(again, stream);
    peer.send(&granted(again)).await.unwrap();
    assert!(opening.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_peer_that_goes_away_unseen_is_left_for_another_and_that_one_hears_it_all() {
    let scripted = Scripted::new().await;
    let (_kept, mut peer) = scripted.begun().await;
    let (_app, _ours, opening, _) = scripted.asked_with_hello(&mut peer).await;
    let last_seen = [&1u32.to_be_bytes()[..], &[0; 4]].concat();
    peer.send(&raw::frame(raw::GOAWAY, 0, 0, &last_seen))
        .await
        .unwrap();
    let mut other = scripted.accept().await;
    let asked = other.until("a request", is_request).await;
    other.send(&granted(asked.stream)).await.unwrap();
    let hello = other
        .until("what the app said", |f| f.kind == raw::DATA)
        .await;
    assert_eq!(
        (hello.stream, &hello.payload[..]),
        (asked.stream, &b"hello"[..])
    );
    assert_eq!(opening.await.unwrap().unwrap().stream(), asked.stream);
    assert_eq!(scripted.dialled.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_the_peer_may_have_acted_upon_is_never_said_again() {
    let scripted = Scripted::new().await;
    let (_kept, mut peer) = scripted.begun().await;
    let (_app, _ours, opening, _) = scripted.asked_with_hello(&mut peer).await;
    drop(peer);
    let lost = opening.await.unwrap().unwrap_err();
    assert!(matches!(lost, OpenError::ConnectionLost(_)), "{lost}");
    assert_eq!(scripted.dialled.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn without_a_byte_on_its_way_a_request_is_made_again_elsewhere() {
    let scripted = Scripted::new().await;
    let (_kept, mut peer) = scripted.begun().await;
    let silent = common::socket_pair().await;
    let opening = scripted.open(&Arc::new(silent.1));
    peer.until("a request", is_request).await;
    drop(peer);
    let mut other = scripted.accept().await;
    let asked = other.until("a request", is_request).await;
    other.send(&granted(asked.stream)).await.unwrap();
    assert!(opening.await.unwrap().is_ok());
}

#[tokio::test]
async fn an_apps_last_bytes_take_its_end_along() {
    let scripted = Scripted::new().await;
    let (tunnel, mut peer) = scripted.begun().await;
    let (mut app, ours) = app().await;
    app.shutdown().await.unwrap();
    // Both are there before anybody looks.
    closed(&ours).await;
    let (copying, counters) = copy(ours, tunnel);
    let data = peer.until("data", |f| f.kind == raw::DATA).await;
    assert_eq!(
        (&data.payload[..], data.ends_stream()),
        (&b"hello"[..], true)
    );
    let end = raw::frame(raw::DATA, raw::END_STREAM, data.stream, &[]);
    peer.send(&end).await.unwrap();
    assert_eq!(
        app.read(&mut [0]).await.unwrap(),
        0,
        "the end, though nobody says it by itself"
    );
    assert!(copying.await.unwrap().clean());
    assert_eq!(counters.moved(), (5, 0));
}

#[tokio::test]
async fn a_reset_behind_the_last_bytes_is_no_end() {
    let scripted = Scripted::new().await;
    let (tunnel, mut peer) = scripted.begun().await;
    let (app, ours) = app().await;
    app.set_zero_linger().unwrap();
    drop(app);
    closed(&ours).await;
    let (copying, _) = copy(ours, tunnel);
    loop {
        let frame = peer.until("a reset", |f| f.stream != 0).await;
        assert!(!frame.ends_stream(), "cut-off data looks complete");
        if frame.kind == raw::RST_STREAM {
            break;
        }
    }
    let ended = copying.await.unwrap();
    assert!(matches!(ended.sent, HalfEnd::Socket(_)), "{ended:?}");
}

#[tokio::test]
async fn an_app_that_has_failed_gets_no_tunnel() {
    let scripted = Scripted::new().await;
    let (_kept, _peer) = scripted.begun().await;
    let (app, ours) = common::socket_pair().await;
    app.set_zero_linger().unwrap();
    drop(app);
    closed(&ours).await;
    let lost = scripted.open(&Arc::new(ours)).await.unwrap().unwrap_err();
    assert!(
        lost.to_string().contains("the app's connection broke"),
        "{lost}"
    );
}
