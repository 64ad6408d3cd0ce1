//! A connection that somebody has let go of ends with its last tunnel, and what that tunnel has said last may
//! still be with the kernel then.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hbone::{Counters, Ended, Engine, Limits, PoolConfig, ResponseHeaders, Tunnel, both_ways};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    common::{self, Ca, identity},
    world::{LONG, hear, pattern},
};

/// More than a slow path holds, and less than needs anybody's leave.
const SAID: usize = 60_000;
/// Bytes that a slow path holds.
const HOLDS: u32 = 8 << 10;
const OFTEN: Duration = Duration::from_millis(10);

/// One direction of a path between two proxies.
#[derive(Clone)]
struct Way {
    open: watch::Sender<bool>,
    came: Arc<AtomicUsize>,
    went: Arc<AtomicUsize>,
}

impl Way {
    fn new() -> Self {
        Self {
            open: watch::Sender::new(true),
            came: Arc::default(),
            went: Arc::default(),
        }
    }

    /// Carries what comes, while it is open, until an end; an error is one for both directions.
    async fn carry(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        let (mut piece, mut open) = ([0; 4 << 10], self.open.subscribe());
        loop {
            let n = from.read(&mut piece).await?;
            self.came.fetch_add(n, Ordering::SeqCst);
            open.wait_for(|open| *open).await.unwrap();
            if n == 0 {
                return to.shutdown().await;
            }
            to.write_all(&piece[..n]).await?;
            self.went.fetch_add(n, Ordering::SeqCst);
        }
    }

    fn set(&self, open: bool) {
        self.open.send_replace(open);
    }
}

/// A slow path from `address`, that of the listener, to a proxy; there and back.
async fn path(listener: TcpListener, proxy: SocketAddr, [there, back]: [Way; 2]) {
    let (near, _) = listener.accept().await.unwrap();
    let far = TcpSocket::new_v4().unwrap();
    far.set_recv_buffer_size(HOLDS).unwrap();
    let far = far.connect(proxy).await.unwrap();
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    // Cut, it is cut at both ends.
    let _ = tokio::try_join!(
        there.carry(from_near, to_far),
        back.carry(from_far, to_near)
    );
}

async fn slow_listener() -> (TcpListener, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(HOLDS).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An app and how the copy of its tunnel ended.
type End = (TcpStream, JoinHandle<Ended>);

async fn copied(tunnel: Tunnel) -> End {
    let (app, socket) = common::socket_pair().await;
    let copy = async move { both_ways(socket, tunnel, &Counters::default()).await };
    (app, tokio::spawn(copy))
}

/// A client's or a server's connection is let go of while it has a tunnel. The app at that end speaks last, the path
/// is slow, and its proxy is told something when it has nothing to say any more.
async fn last_words(of_client: bool) {
    let ca = Arc::new(Ca::new());
    let (listener, proxy) = common::listen().await;
    let certificate = ca.certificate(&identity("server"));
    let (reached, mut reaches) = mpsc::unbounded_channel();
    let limits = Limits {
        engine: Engine::Own,
        ping_every: if of_client { OFTEN } else { LONG },
        ping_answer: LONG,
        ..Limits::default()
    };
    let serving = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = hbone::accept(socket, certificate, &limits).await.unwrap();
        let request = common::request(&mut connection).await;
        let tunnel = request.accept(ResponseHeaders::default()).unwrap();
        reached.send(copied(tunnel).await).unwrap();
        if !of_client {
            connection.drain(LONG);
        }
        while connection.next().await.is_some() {}
    });

    let [there, back] = [Way::new(), Way::new()];
    let (listener, address) = slow_listener().await;
    tokio::spawn(path(listener, proxy, [there.clone(), back.clone()]));
    let config = PoolConfig {
        engine: Engine::Own,
        ping_every: if of_client { LONG } else { OFTEN },
        ping_answer: LONG,
        ..PoolConfig::default()
    };
    let client = common::client(&ca, address, config);
    let near = copied(client.open().await.unwrap()).await;
    let far = reaches.recv().await.unwrap();
    let ((speaks, copy), (hears, other), way, other_way) = match of_client {
        true => (near, far, there, back),
        false => (far, near, back, there),
    };
    let (mut listens, mut speaks) = speaks.into_split();
    let (mut hears, mut answers) = hears.into_split();
    // Who drains has been heard by then.
    for _ in 0..20 {
        speaks.write_all(b"ping").await.unwrap();
        hears.read_exact(&mut [0; 4]).await.unwrap();
        answers.write_all(b"pong").await.unwrap();
        listens.read_exact(&mut [0; 4]).await.unwrap();
    }
    if of_client {
        let of = &client.destination;
        client.pool.close_source(&of.source, of.source_ip);
    }
    answers.shutdown().await.unwrap();
    assert_eq!(listens.read(&mut [0]).await.unwrap(), 0);

    // A PING is on its way, and stays there.
    other_way.set(false);
    let came = other_way.came.load(Ordering::SeqCst);
    common::eventually("a PING comes", || {
        other_way.came.load(Ordering::SeqCst) > came
    })
    .await;
    way.set(false);
    speaks.write_all(&pattern(0, SAID)).await.unwrap();
    speaks.shutdown().await.unwrap();
    assert!(copy.await.unwrap().clean());
    // Time to hang up, for a proxy that would.
    tokio::time::sleep(OFTEN * 10).await;
    let went = other_way.went.load(Ordering::SeqCst);
    other_way.set(true);
    common::eventually("the PING arrives", || {
        other_way.went.load(Ordering::SeqCst) > went
    })
    .await;
    way.set(true);
    let heard = tokio::time::timeout(LONG, hear(hears, false)).await;
    assert_eq!(heard.unwrap(), (SAID, true), "of the client: {of_client}");
    assert!(other.await.unwrap().clean());
    tokio::time::timeout(LONG, serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_the_last_tunnel_of_a_client_that_lets_go_has_said_arrives() {
    last_words(true).await;
}

#[tokio::test]
async fn what_the_last_tunnel_of_a_server_that_drains_has_said_arrives() {
    last_words(false).await;
}
