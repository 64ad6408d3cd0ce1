//! Two proxies in one pod, as while a node's ztunnel is replaced: whose connections they are, and that none is lost
//! between them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lab::Place;
use tokio::net::TcpListener;

use crate::fixture::{Conversation, Fixture, eventually};
use crate::place::{HandedOver, REDIRECT, place};
use crate::process::PATIENCE;

/// Enough that no hash gives them all to one of two sockets.
const MANY: usize = 64;

/// An application's port that connections to port 80 of 10.9.8.7 are on their way to.
fn app(place: &Place) -> TcpListener {
    place.nft(REDIRECT).unwrap();
    place.ip("addr add 10.9.8.7/32 dev lo\n").unwrap();
    place
        .netns()
        .listen_on("10.9.8.7:80".parse().unwrap())
        .unwrap()
}

async fn proxy(place: &Place) -> (Fixture, Conversation) {
    let fixture = Fixture::draining("60s", |_, _| None);
    let agent = fixture.agent.accept().await;
    assert_eq!(agent.add("uid", "one", place.fd()).await, "");
    assert_eq!(agent.snapshot_sent().await, "");
    (fixture, agent)
}

async fn learn(fixture: &mut Fixture) {
    fixture.tell_of("one");
    let pod = fixture.roster.up("uid").unwrap();
    let learned = tokio::time::timeout(PATIENCE, pod.wait_known()).await;
    assert!(learned.is_ok(), "the pod is not told who it is");
}

fn connect(place: &Place) -> TcpStream {
    let connected = place.within(|| TcpStream::connect("10.9.8.7:80").unwrap());
    let stream = connected.unwrap();
    let patience = Some(PATIENCE);
    stream.set_read_timeout(patience).unwrap();
    stream
}

/// Makes `count` connections, each of which is carried to the application; the ends of both sides.
async fn carried(
    place: &Place,
    app: &TcpListener,
    count: usize,
) -> Vec<(TcpStream, tokio::net::TcpStream)> {
    let mut carried = Vec::new();
    for _ in 0..count {
        let stream = connect(place);
        let accepted = tokio::time::timeout(PATIENCE, app.accept()).await;
        carried.push((stream, accepted.unwrap().unwrap().0));
    }
    carried
}

fn open(fixture: &Fixture) -> usize {
    fixture.node.connections.open()
}

fn all_are_open(kept: &[(TcpStream, tokio::net::TcpStream)]) {
    for (client, _) in kept {
        client.set_nonblocking(true).unwrap();
        let nothing = (&*client).read(&mut [0]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_the_elders_until_it_leaves_and_then_the_successors() {
    let place = place();
    let app = app(&place);
    let (mut elder, its_agent) = proxy(&place).await;
    learn(&mut elder).await;
    let mut kept = carried(&place, &app, MANY).await;
    let (mut successor, _agent) = proxy(&place).await;
    // Whether or not it knows the pod.
    kept.extend(carried(&place, &app, MANY).await);
    learn(&mut successor).await;
    kept.extend(carried(&place, &app, MANY).await);
    assert_eq!((open(&elder), open(&successor)), (3 * MANY, 0));

    assert_eq!(its_agent.del("uid").await, "");
    // The turn is handed over by a task of its own: the first may still find the elder.
    let mut tries = 0;
    loop {
        let so_far = open(&elder);
        kept.extend(carried(&place, &app, 1).await);
        if open(&elder) == so_far {
            break;
        }
        tries += 1;
        assert!(tries < 1000, "the elder goes on");
        // Not as many as can be made: each takes four descriptors of this process.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    kept.extend(carried(&place, &app, MANY).await);
    assert!(open(&successor) >= MANY);
    all_are_open(&kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_is_taken_back_takes_nothing_along() {
    let place = place();
    let app = app(&place);
    let (mut elder, _agent) = proxy(&place).await;
    learn(&mut elder).await;
    let mut kept = carried(&place, &app, MANY).await;
    let (mut successor, its_agent) = proxy(&place).await;
    learn(&mut successor).await;
    assert_eq!(its_agent.del("uid").await, "");
    // Not as many as can be made, here too.
    let begun = Instant::now();
    while !successor.roster.list().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "it does not go");
        kept.extend(carried(&place, &app, 2).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    kept.extend(carried(&place, &app, MANY).await);
    assert_eq!(open(&elder), kept.len());
    all_are_open(&kept);
}

/// The client has its answer, its own answer to that is still on the way: the listener knows of a handshake, and its
/// end would be the connection's.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_are_under_way_when_a_proxy_leaves_become_connections() {
    let place = place();
    let app = app(&place);
    let (mut elder, its_agent) = proxy(&place).await;
    learn(&mut elder).await;
    let before = carried(&place, &app, MANY).await;
    let (mut successor, _agent) = proxy(&place).await;
    place
        .nft(
            "table inet hold {
               chain output { type filter hook output priority 0
                 meta mark & 0xfff != 0x539 tcp dport 15001 tcp flags & (syn | ack | rst) == ack drop
               }
             }",
        )
        .unwrap();
    let mut clients: Vec<_> = (0..MANY).map(|_| connect(&place)).collect();
    learn(&mut successor).await;
    assert_eq!(open(&elder), before.len(), "nothing of them has arrived");
    drop(before);
    its_agent.del("uid").await;
    place.nft("delete table inet hold").unwrap();
    // All of them, before the first is looked for: they arrive in whatever order, and one whose answer is asked for again
    // comes without a word.
    for client in &mut clients {
        client.write_all(b"hello").unwrap();
    }
    for _ in &clients {
        let accepted = tokio::time::timeout(PATIENCE, app.accept()).await;
        let (mut carried, _) = accepted.expect("a connection is lost").unwrap();
        let mut hello = [0; 5];
        let heard = tokio::io::AsyncReadExt::read_exact(&mut carried, &mut hello);
        let heard = tokio::time::timeout(PATIENCE, heard).await;
        heard.expect("nothing is carried").unwrap();
        assert_eq!(&hello, b"hello");
    }
    drop(clients);
    eventually("the elder's connections end, and it with them", || {
        elder.roster.list().is_empty()
    })
    .await;
}
