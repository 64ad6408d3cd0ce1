//! Two proxies with tunnels between them, apps at both ends, and what becomes of either proxy.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hbone::{
    Connection, ConnectionError, Counters, Ended, Engine, Incoming, Limits, Pool, PoolConfig,
    Request, ResponseHeaders, TcpPair, both_ways,
    handover::{Freezer, Frozen, NotFrozen, Resumed, Taken, Thawed},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

use crate::common::{self, Ca, Client, identity};

/// Longer than anything takes, shorter than anybody waits.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// What becomes of something frozen.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Decision {
    /// Another goes on with it.
    Hand,
    /// It was read by another, who went away.
    TakeBack,
    /// It came to another cut off.
    CutOff,
}

/// How a copy ended, at whichever owner.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) stream: u32,
    pub(crate) ended: Ended,
    pub(crate) moved: (u64, u64),
}

/// One proxy, whoever owns it now.
#[derive(Clone)]
pub(crate) struct Side(Arc<Inner>);

struct Inner {
    limits: Limits,
    freezer: Mutex<Option<Freezer>>,
    finished: mpsc::UnboundedSender<Finished>,
    /// Requests, for tests that answer themselves.
    requests: Mutex<Option<mpsc::UnboundedSender<Request>>>,
    apps: mpsc::UnboundedSender<TcpStream>,
    /// What connections that were dialled join.
    pool: Mutex<Option<Arc<Pool>>>,
    /// Connections that ended by themselves.
    over: AtomicUsize,
    copies: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

pub(crate) struct World {
    pub(crate) near: Side,
    pub(crate) far: Side,
    pub(crate) near_finished: Endings,
    pub(crate) far_finished: Endings,
    pub(crate) client: Client,
    /// Of the far end, in the order in which they were reached.
    pub(crate) apps: Apps,
}

type Endings = mpsc::UnboundedReceiver<Finished>;
type Apps = mpsc::UnboundedReceiver<TcpStream>;

fn side(limits: Limits) -> (Side, Endings, Apps) {
    let (finished, all) = mpsc::unbounded_channel();
    let (apps, sockets) = mpsc::unbounded_channel();
    let side = Side(Arc::new(Inner {
        limits,
        freezer: Mutex::default(),
        finished,
        requests: Mutex::default(),
        apps,
        pool: Mutex::default(),
        over: AtomicUsize::new(0),
        copies: Mutex::default(),
    }));
    (side, all, sockets)
}

/// A proxy that accepts one connection, how its copies end, its apps, and where it is reached.
pub(crate) async fn server(ca: &Ca, limits: Limits) -> (Side, Endings, Apps, SocketAddr) {
    let (side, finished, apps) = side(limits);
    let (listener, address) = common::listen().await;
    let (certificate, serving) = (ca.certificate(&identity("server")), side.clone());
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let accepted = hbone::accept(socket, certificate, &serving.0.limits).await;
        serving.serve(accepted.unwrap()).await;
    });
    (side, finished, apps, address)
}

impl World {
    pub(crate) async fn new(near: Engine, far: Engine) -> Self {
        Self::with(near, far, Limits::default()).await
    }

    /// `limits` but for the engines.
    pub(crate) async fn with(near: Engine, far: Engine, limits: Limits) -> Self {
        let ca = Arc::new(Ca::new());
        let limits = Limits {
            engine: far,
            ..limits
        };
        let client = |address, config| common::client(&ca, address, config);
        Self::between(&ca, limits, near, client).await
    }

    /// `limits` with the far engine; `client` makes the near one's pool.
    pub(crate) async fn between(
        ca: &Ca,
        limits: Limits,
        near: Engine,
        client: impl FnOnce(SocketAddr, PoolConfig) -> Client,
    ) -> Self {
        let (near_side, near_finished, _) = side(limits.clone());
        let (far_side, far_finished, apps, address) = server(ca, limits).await;
        let config = PoolConfig {
            engine: near,
            ..PoolConfig::default()
        };
        Self {
            client: client(address, config),
            near: near_side,
            far: far_side,
            near_finished,
            far_finished,
            apps,
        }
    }

    /// One more tunnel, and the apps at both ends.
    pub(crate) async fn tunnel(&mut self) -> (TcpStream, TcpStream) {
        let tunnel = self.client.open().await.unwrap();
        if let Ok(freezer) = tunnel.freezer() {
            *self.near.0.freezer.lock().unwrap() = Some(freezer);
        }
        let (app, socket) = common::socket_pair().await;
        let (stream, side) = (tunnel.stream(), self.near.clone());
        self.near.spawn(async move {
            let counters = Counters::default();
            let ended = both_ways(socket, tunnel, &counters).await;
            side.finished(stream, ended, &counters);
        });
        let far = tokio::time::timeout(LONG, self.apps.recv()).await;
        (app, far.expect("no app was reached").unwrap())
    }

    pub(crate) async fn tunnels(&mut self, count: usize) -> Vec<(TcpStream, TcpStream)> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(self.tunnel().await);
        }
        all
    }
}

impl Side {
    /// Drives a connection and copies its tunnels, until it ends or goes elsewhere.
    async fn serve(self, mut connection: Connection) {
        if let Ok(freezer) = connection.freezer() {
            *self.0.freezer.lock().unwrap() = Some(freezer);
        }
        while let Some(incoming) = connection.next().await {
            match incoming {
                Ok(Incoming::Request(request)) => self.asked(request).await,
                Ok(Incoming::Refused(why)) => panic!("{why}"),
                Err(ConnectionError::HandedOver) => return,
                Err(_) => break,
            }
        }
        self.0.over.fetch_add(1, Ordering::SeqCst);
    }

    async fn asked(&self, request: Request) {
        let waiting = self.0.requests.lock().unwrap().clone();
        match waiting {
            Some(requests) => requests.send(request).unwrap(),
            None => self.answer(request).await,
        }
    }

    pub(crate) async fn answer(&self, request: Request) {
        let tunnel = request.accept(ResponseHeaders::default()).unwrap();
        let (app, socket) = common::socket_pair().await;
        self.0.apps.send(app).unwrap();
        let (stream, side) = (tunnel.stream(), self.clone());
        self.spawn(async move {
            let counters = Counters::default();
            let ended = both_ways(socket, tunnel, &counters).await;
            side.finished(stream, ended, &counters);
        });
    }

    /// Connections that were dialled join `pool`.
    pub(crate) fn join(&self, pool: &Arc<Pool>) {
        *self.0.pool.lock().unwrap() = Some(pool.clone());
    }

    /// Requests are left to the test.
    pub(crate) fn hold_requests(&self) -> mpsc::UnboundedReceiver<Request> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.0.requests.lock().unwrap() = Some(sender);
        receiver
    }

    pub(crate) fn freezer(&self) -> Freezer {
        self.0.freezer.lock().unwrap().clone().unwrap()
    }

    pub(crate) fn over(&self) -> usize {
        self.0.over.load(Ordering::SeqCst)
    }

    /// Every copy is cancelled, as when a pod goes.
    pub(crate) async fn cancel_copies(&self) {
        let copies: Vec<_> = self.0.copies.lock().unwrap().drain(..).collect();
        for copy in copies {
            copy.abort();
            let _ = copy.await;
        }
    }

    /// Freezes what there is and decides. False when it has ended.
    pub(crate) async fn becomes(&self, decision: Decision) -> bool {
        let frozen = match self.freezer().freeze(LONG).await {
            Ok(frozen) => frozen,
            Err(NotFrozen::Over) => return false,
            Err(other) => panic!("{other}"),
        };
        decide(frozen, decision, |taken| {
            let thawed = taken.thaw(&self.0.limits).unwrap();
            self.run(thawed);
        });
        true
    }

    /// Runs what has been thawed.
    pub(crate) fn run(&self, thawed: Thawed) {
        let tunnels = match thawed {
            Thawed::Accepted(connection, tunnels) => {
                *self.0.freezer.lock().unwrap() = Some(connection.freezer().unwrap());
                tokio::spawn(self.clone().serve(connection));
                tunnels
            }
            Thawed::Dialled(connection, tunnels) => {
                *self.0.freezer.lock().unwrap() = Some(connection.freezer());
                let (side, pool) = (self.clone(), self.0.pool.lock().unwrap().clone());
                tokio::spawn(async move {
                    match pool {
                        Some(pool) => connection.join(&pool).await,
                        None => connection.run().await,
                    }
                    side.0.over.fetch_add(1, Ordering::SeqCst);
                });
                tunnels
            }
            Thawed::Pair(_) => panic!("a connection was frozen"),
        };
        tunnels.into_iter().for_each(|tunnel| self.resume(tunnel));
    }

    fn resume(&self, tunnel: Resumed) {
        let (stream, side) = (tunnel.stream(), self.clone());
        self.spawn(async move {
            let (sent, received) = tunnel.moved();
            let counters = Counters::of(sent, received);
            let ended = tunnel.both_ways(&counters).await;
            side.finished(stream, ended, &counters);
        });
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.copies.lock().unwrap().push(tokio::spawn(work));
    }

    fn finished(&self, stream: u32, ended: Ended, counters: &Counters) {
        if !ended.handed_over() {
            let moved = counters.moved();
            let _ = self.0.finished.send(Finished {
                stream,
                ended,
                moved,
            });
        }
    }
}

/// What another process would be given.
pub(crate) fn sent(frozen: &Frozen) -> (Vec<u8>, Vec<OwnedFd>) {
    let descriptors = frozen.descriptors().iter();
    let descriptors = descriptors.map(|fd| fd.try_clone().unwrap()).collect();
    (frozen.bytes().to_vec(), descriptors)
}

/// Decides; `go_on` gets what another has taken.
pub(crate) fn decide(frozen: Frozen, decision: Decision, go_on: impl FnOnce(Taken)) {
    let (mut bytes, descriptors) = sent(&frozen);
    if let Decision::CutOff = decision {
        bytes.pop();
        Taken::read(bytes, descriptors).unwrap_err();
        return frozen.take_back();
    }
    let taken = Taken::read(bytes, descriptors).unwrap();
    assert_eq!(taken.kind(), frozen.kind());
    let streams: Vec<_> = taken.tunnels().iter().map(|t| t.stream).collect();
    assert_eq!(streams, frozen.streams());
    match decision {
        Decision::Hand => {
            frozen.forget();
            go_on(taken);
        }
        _ => {
            drop(taken);
            frozen.take_back();
        }
    }
}

/// Two sockets that are copied to each other, whoever does.
pub(crate) struct Joined {
    pub(crate) near: TcpStream,
    pub(crate) far: TcpStream,
    pub(crate) copying: Copying,
}

#[derive(Clone)]
pub(crate) struct Copying {
    freezer: Arc<Mutex<Freezer>>,
    finished: mpsc::UnboundedSender<Finished>,
}

pub(crate) async fn joined() -> (Joined, Endings) {
    let (near, a) = common::socket_pair().await;
    let (b, far) = common::socket_pair().await;
    let pair = TcpPair::new(a, b);
    let (finished, receiver) = mpsc::unbounded_channel();
    let copying = Copying {
        freezer: Arc::new(Mutex::new(pair.freezer())),
        finished,
    };
    copying.run(pair);
    (Joined { near, far, copying }, receiver)
}

impl Copying {
    pub(crate) fn run(&self, pair: TcpPair) {
        *self.freezer.lock().unwrap() = pair.freezer();
        let finished = self.finished.clone();
        tokio::spawn(async move {
            let (sent, received) = pair.moved();
            let counters = Counters::of(sent, received);
            let ended = pair.both_ways(&counters).await;
            if !ended.handed_over() {
                let moved = counters.moved();
                let _ = finished.send(Finished {
                    stream: 0,
                    ended,
                    moved,
                });
            }
        });
    }

    pub(crate) fn freezer(&self) -> Freezer {
        self.freezer.lock().unwrap().clone()
    }

    /// As [`Side::becomes`].
    pub(crate) async fn becomes(&self, decision: Decision) -> bool {
        let frozen = match self.freezer().freeze(LONG).await {
            Ok(frozen) => frozen,
            Err(NotFrozen::Over) => return false,
            Err(other) => panic!("{other}"),
        };
        decide(frozen, decision, |taken| {
            let Ok(Thawed::Pair(pair)) = taken.thaw(&Limits::default()) else {
                panic!("a pair was frozen")
            };
            self.run(pair);
        });
        true
    }
}

/// Bytes that tell a place from any other.
pub(crate) fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect()
}

/// What an app says: pieces, and a pause behind some; then the end.
#[derive(Debug, Clone)]
pub(crate) struct Says {
    pub(crate) pieces: Vec<(usize, bool)>,
    /// It ends in order; otherwise it resets.
    pub(crate) ends: bool,
}

impl Says {
    pub(crate) fn bulk(bytes: usize) -> Self {
        Self {
            pieces: vec![(50_000, false); bytes / 50_000],
            ends: true,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.pieces.iter().map(|(size, _)| size).sum()
    }
}

/// Says it. Gives the writing half back if it ended in order.
pub(crate) async fn say(mut app: OwnedWriteHalf, says: Says) -> Option<OwnedWriteHalf> {
    let mut said = 0;
    for (size, pause) in says.pieces {
        if app.write_all(&pattern(said, size)).await.is_err() {
            return None; // the other end has reset
        }
        said += size;
        if pause {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    if !says.ends {
        app.as_ref().set_zero_linger().unwrap();
        app.forget();
        return None;
    }
    let _ = app.shutdown().await;
    Some(app)
}

/// Hears what the other says, in order; how many bytes, and whether they ended in order.
pub(crate) async fn hear(mut app: OwnedReadHalf, slowly: bool) -> (usize, bool) {
    let mut piece = vec![0; if slowly { 3000 } else { 100_000 }];
    let mut heard = 0;
    loop {
        match app.read(&mut piece).await {
            Ok(0) => return (heard, true),
            Ok(n) => {
                assert!(piece[..n] == pattern(heard, n), "at {heard}");
                heard += n;
            }
            Err(_) => return (heard, false),
        }
        if slowly && heard % 7 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
