//! Beside the `h2` crate, in both roles: the same bytes arrive, whatever the pieces, windows, resets and
//! goings away.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use bytes::Bytes;
use hbone::{
    ResponseHeaders,
    frames::{Code, Event, Method, Mux, Settings, StreamId},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    task::JoinHandle,
};

use super::support::{hand_over, to};

/// A sequence of numbers that looks random and is the same in each run.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let n = self.roll(most);
        let mut seed = self.roll(256) as u8;
        let next = || {
            seed = seed.wrapping_mul(5).wrapping_add(1);
            seed
        };
        std::iter::repeat_with(next).take(n).collect()
    }
}

/// One stream as we see it: what is to be sent, what came, how it ended.
#[derive(Debug, Default)]
struct Tunnel {
    out: VecDeque<u8>,
    end: bool,
    sent_end: bool,
    answered: Option<u16>,
    received: Vec<u8>,
    ended: bool,
    reset: Option<Code>,
}

/// A [`Mux`] on a pipe, driven one step after the other.
struct Driver {
    mux: Mux,
    tunnels: BTreeMap<u32, Tunnel>,
    dice: Dice,
    out: mpsc::UnboundedSender<Vec<u8>>,
    io: tokio::io::ReadHalf<DuplexStream>,
    writing: JoinHandle<()>,
    went: Option<Code>,
    /// What was received is sent back.
    echo: bool,
    /// Its state is handed over again and again.
    moves: bool,
}

impl Driver {
    fn new(mux: Mux, io: DuplexStream, echo: bool, dice: Dice) -> Self {
        let (io, mut writer) = tokio::io::split(io);
        let (out, mut pieces) = mpsc::unbounded_channel::<Vec<u8>>();
        let writing = tokio::spawn(async move {
            while let Some(piece) = pieces.recv().await {
                if writer.write_all(&piece).await.is_err() {
                    return;
                }
            }
            let _ = writer.shutdown().await;
        });
        Self {
            mux,
            tunnels: BTreeMap::new(),
            dice,
            out,
            io,
            writing,
            went: None,
            echo,
            moves: false,
        }
    }

    fn moving(mut self, moves: bool) -> Self {
        self.moves = moves;
        self
    }

    fn hand_over(&mut self) {
        if self.moves && self.dice.roll(3) == 0 {
            assert!(hand_over(&mut self.mux), "it is not over");
        }
    }

    /// Sends all that may be sent.
    fn send(&mut self) {
        let ids: Vec<u32> = self.tunnels.keys().copied().collect();
        for id in ids {
            while self.send_some(id) {}
        }
        self.hand_over();
        while let Some(stream) = self.mux.ready() {
            while self.send_some(stream.0) {}
        }
        self.hand_over();
        let control = std::mem::take(self.mux.out());
        let _ = self.out.send(control);
    }

    fn send_some(&mut self, id: u32) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(&id) else {
            return false;
        };
        let stream = StreamId(id);
        if tunnel.sent_end || tunnel.reset.is_some() || (self.echo && tunnel.answered.is_none()) {
            return false;
        }
        let n = tunnel
            .out
            .len()
            .min(self.mux.room(stream))
            .min(self.dice.roll(40_000) + 1);
        let end = tunnel.end && n == tunnel.out.len();
        if n == 0 && !end {
            if !tunnel.out.is_empty() {
                self.mux.wait(stream);
            }
            return false;
        }
        // The stream may have been reset meanwhile; the event is still to come then.
        let mut piece = std::mem::take(self.mux.out());
        let Some(head) = self.mux.data(stream, n, end) else {
            let _ = self.out.send(piece);
            return false;
        };
        piece.extend_from_slice(&head);
        piece.extend(tunnel.out.drain(..n));
        tunnel.sent_end = end;
        self.out.send(piece).is_ok()
    }

    /// Reads once and acts upon it. False at the end of the connection.
    async fn receive(&mut self) -> bool {
        let mut buffer = vec![0; 1 + self.dice.roll(60_000)];
        let Ok(n @ 1..) = self.io.read(&mut buffer).await else {
            return false;
        };
        let mut bytes = &buffer[..n];
        while !bytes.is_empty() {
            let taken = self
                .mux
                .take(bytes, Instant::now())
                .expect("h2 keeps to the rules");
            if let Some(event) = taken.event {
                self.act(event, bytes);
            }
            bytes = &bytes[taken.used..];
            self.hand_over();
        }
        true
    }

    fn act(&mut self, event: Event, bytes: &[u8]) {
        match event {
            Event::Request { stream, head, end } => {
                assert_eq!(head.method, Method::Connect);
                let status = if &*head.authority == "refused:1" {
                    503
                } else {
                    200
                };
                let said = ResponseHeaders {
                    baggage: Some(head.authority.into()),
                };
                self.mux
                    .respond(stream, status, &said, status != 200)
                    .unwrap();
                let tunnel = self.tunnels.entry(stream.0).or_default();
                tunnel.answered = Some(status);
                tunnel.ended = end;
                tunnel.end = end;
                tunnel.sent_end = status != 200;
            }
            Event::Response { stream, head, end } => {
                let tunnel = self.tunnels.get_mut(&stream.0).unwrap();
                tunnel.answered = Some(head.status);
                tunnel.ended = end;
            }
            Event::Data { stream, range, end } => {
                let bytes = &bytes[range];
                let tunnel = self.tunnels.get_mut(&stream.0).unwrap();
                assert!(!tunnel.ended);
                tunnel.received.extend_from_slice(bytes);
                tunnel.ended = end;
                if self.echo {
                    tunnel.out.extend(bytes);
                    tunnel.end = end;
                }
                self.mux.consumed(stream, bytes.len());
            }
            Event::Reset { stream, code, ours } => {
                assert!(!ours, "h2 gives no reason to reset");
                self.tunnels.get_mut(&stream.0).unwrap().reset = Some(code);
            }
            Event::GoAway { code, .. } => self.went = Some(code),
            Event::Capacity { .. } | Event::SettingsAcknowledged | Event::Pong { .. } => {}
            Event::Refused { stream, kind } => panic!("{stream} was refused: {kind:?}"),
        }
    }

    /// Everything but the first part of the connection's life: until its end.
    async fn run(mut self) -> Self {
        loop {
            self.send();
            if (self.mux.done() && self.idle()) || !self.receive().await {
                let (nobody, _) = mpsc::unbounded_channel();
                drop(std::mem::replace(&mut self.out, nobody));
                (&mut self.writing).await.unwrap();
                return self;
            }
        }
    }

    fn idle(&self) -> bool {
        self.tunnels
            .values()
            .all(|t| t.sent_end || t.reset.is_some())
    }
}

fn request(authority: &str) -> http::Request<()> {
    let mut request = http::Request::new(());
    *request.method_mut() = http::Method::CONNECT;
    *request.uri_mut() = authority.parse().unwrap();
    let value = "a=1,b=".to_owned() + &"x".repeat(100);
    request
        .headers_mut()
        .insert("baggage", value.parse().unwrap());
    request
}

/// Sends all of `bytes` as fast as credit comes.
async fn send_all(stream: &mut h2::SendStream<Bytes>, mut bytes: Bytes, dice: &mut Dice) {
    while !bytes.is_empty() {
        let wanted = bytes.len().min(1 + dice.roll(50_000));
        stream.reserve_capacity(wanted);
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx))
            .await
            .unwrap()
            .unwrap();
        stream
            .send_data(bytes.split_to(room.min(bytes.len())), false)
            .unwrap();
    }
}

async fn receive_all(stream: &mut h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

/// What one stream of an `h2` client does: everything back, refused, or given up in the middle.
async fn h2_stream(mut send: h2::client::SendRequest<Bytes>, n: usize, mut dice: Dice) {
    let authority = if n % 7 == 6 {
        "refused:1"
    } else {
        "10.0.0.1:80"
    };
    send = send.ready().await.unwrap();
    let (answer, mut out) = send.send_request(request(authority), false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()["baggage"], authority);
    if n % 7 == 6 {
        assert_eq!(answer.status(), 503);
        return;
    }
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    let bytes = Bytes::from(dice.bytes(1 << 20));
    if n % 7 == 5 {
        send_all(&mut out, bytes.slice(..bytes.len() / 2), &mut dice).await;
        out.send_reset(h2::Reason::CANCEL);
        return;
    }
    let sending = async {
        send_all(&mut out, bytes.clone(), &mut dice).await;
        out.send_data(Bytes::new(), true).unwrap();
    };
    let ((), received) = tokio::join!(sending, receive_all(&mut body));
    assert!(
        received.unwrap() == bytes,
        "stream {n}: other bytes came back"
    );
}

async fn our_server_serves_h2(seed: u64, builder: h2::client::Builder, moves: bool) {
    let (near, far) = tokio::io::duplex(50_000);
    let dice = Dice(seed);
    let server = Driver::new(Mux::server(&small()), far, true, dice.clone()).moving(moves);
    let server = tokio::spawn(server.run());
    let (send, connection) = builder.handshake::<_, Bytes>(near).await.unwrap();
    let connection = tokio::spawn(connection);
    let streams = (0..20).map(|n| tokio::spawn(h2_stream(send.clone(), n, Dice(seed + n as u64))));
    let streams: Vec<_> = streams.collect();
    drop(send);
    for stream in streams {
        stream.await.unwrap();
    }
    connection.await.unwrap().unwrap();
    let server = server.await.unwrap();
    assert_eq!(server.went, Some(Code::NO_ERROR), "h2 says goodbye");
    assert_eq!(server.tunnels.len(), 20);
    let resets: Vec<_> = server.tunnels.values().filter_map(|t| t.reset).collect();
    assert!(
        resets.iter().all(|code| *code == Code::CANCEL),
        "{resets:?}"
    );
}

/// Windows that are used up many times.
fn small() -> Settings {
    Settings {
        stream_window: 100_000,
        grown_stream_window: 100_000,
        connection_window: 300_000,
        frame: 20_000,
        ..Settings::server()
    }
}

/// A client with small windows of its own, and large frames.
fn narrow_client() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(70_000)
        .initial_connection_window_size(90_000)
        .max_frame_size(1 << 20)
        .header_table_size(0)
        .enable_push(false);
    builder
}

#[tokio::test]
async fn our_server_serves_an_h2_client() {
    for seed in 1..4 {
        our_server_serves_h2(seed, h2::client::Builder::new(), false).await;
        our_server_serves_h2(seed, narrow_client(), false).await;
    }
}

#[tokio::test]
async fn an_h2_client_does_not_notice_that_our_server_is_handed_over() {
    our_server_serves_h2(4, h2::client::Builder::new(), true).await;
    our_server_serves_h2(5, narrow_client(), true).await;
}

/// An `h2` server that sends everything back; streams to port 2 are reset after their first bytes, to
/// port 3 refused.
async fn h2_server(io: DuplexStream, builder: h2::server::Builder, drain_after: usize) {
    let mut connection = builder.handshake::<_, Bytes>(io).await.unwrap();
    let mut served = 0;
    while let Some(next) = connection.accept().await {
        let (request, mut respond) = next.unwrap();
        assert_eq!(request.method(), http::Method::CONNECT);
        assert_eq!(request.headers()["baggage"], "a=1");
        let port = request.uri().port_u16().unwrap();
        served += 1;
        if served == drain_after {
            connection.graceful_shutdown();
        }
        tokio::spawn(async move {
            let mut answer = http::Response::new(());
            if port == 3 {
                *answer.status_mut() = http::StatusCode::UNAUTHORIZED;
                respond.send_response(answer, true).unwrap();
                return;
            }
            let mut body = request.into_body();
            let mut out = respond.send_response(answer, false).unwrap();
            let mut dice = Dice(served as u64);
            while let Some(chunk) = body.data().await {
                let chunk = chunk.unwrap();
                if port == 2 {
                    out.send_reset(h2::Reason::INTERNAL_ERROR);
                    return;
                }
                send_all(&mut out, chunk.clone(), &mut dice).await;
                body.flow_control().release_capacity(chunk.len()).unwrap();
            }
            out.send_data(Bytes::new(), true).unwrap();
        });
    }
}

async fn h2_serves_our_client(
    seed: u64,
    builder: h2::server::Builder,
    drain_after: usize,
    moves: bool,
) {
    let (near, far) = tokio::io::duplex(50_000);
    let server = tokio::spawn(h2_server(far, builder, drain_after));
    let mut dice = Dice(seed);
    let settings = Settings {
        header_list: 16 << 10,
        ..small()
    };
    let client = Driver::new(Mux::client(&settings), near, false, dice.clone());
    let mut client = client.moving(moves);
    let mut wanted = BTreeMap::new();
    for n in 0..20 {
        let port = match n % 7 {
            5 => 2,
            6 => 3,
            _ => 1,
        };
        let mut ask = to(&format!("10.0.0.1:{port}"));
        ask.baggage = Some("a=1".into());
        let stream = client.mux.open(&ask).unwrap();
        let bytes = dice.bytes(1 << 20);
        let tunnel = client.tunnels.entry(stream.0).or_default();
        tunnel.out.extend(&bytes);
        tunnel.end = true;
        wanted.insert(stream.0, (port, bytes));
    }
    let over =
        |t: &Tunnel| t.reset.is_some() || (t.ended && (t.sent_end || t.answered != Some(200)));
    loop {
        client.send();
        if client.tunnels.values().all(over) {
            break;
        }
        assert!(client.receive().await, "ended too soon: {:?}", client.went);
    }
    client.mux.go_away(Code::NO_ERROR);
    let ids: Vec<_> = client.tunnels.keys().copied().collect();
    ids.iter()
        .for_each(|id| client.mux.reset(StreamId(*id), Code::CANCEL));
    assert!(client.mux.done());
    client.tunnels.values_mut().for_each(|t| t.sent_end = true);
    let client = client.run().await;
    drop(client.io);
    server.await.unwrap();
    for (id, tunnel) in client.tunnels {
        let (port, bytes) = &wanted[&id];
        match port {
            1 => assert!(tunnel.received == *bytes && tunnel.reset.is_none(), "{id}"),
            2 => assert!(tunnel.reset == Some(Code::INTERNAL_ERROR) || bytes.is_empty()),
            _ => assert_eq!(tunnel.answered, Some(401)),
        }
    }
}

/// A server with small windows of its own.
fn narrow_server() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(70_000)
        .initial_connection_window_size(90_000)
        .max_frame_size(1 << 20)
        .max_header_list_size(16 << 10);
    builder
}

#[tokio::test]
async fn an_h2_server_serves_our_client() {
    for seed in 1..4 {
        h2_serves_our_client(seed, h2::server::Builder::new(), 0, false).await;
        h2_serves_our_client(seed, narrow_server(), 0, false).await;
    }
}

#[tokio::test]
async fn an_h2_server_does_not_notice_that_our_client_is_handed_over() {
    h2_serves_our_client(4, h2::server::Builder::new(), 0, true).await;
    h2_serves_our_client(5, narrow_server(), 0, true).await;
    h2_serves_our_client(6, narrow_server(), 10, true).await;
}

#[tokio::test]
async fn an_h2_server_that_goes_away_finishes_what_it_has() {
    for seed in 1..4 {
        h2_serves_our_client(seed, h2::server::Builder::new(), 10, false).await;
    }
}

#[tokio::test]
async fn our_server_goes_away_and_finishes_what_it_has() {
    let (near, far) = tokio::io::duplex(50_000);
    let mut server = Driver::new(Mux::server(&small()), far, true, Dice(1));
    let (send, connection) = h2::client::handshake(near).await.unwrap();
    let connection = tokio::spawn(connection);
    let stream = tokio::spawn(h2_stream(send.clone(), 0, Dice(5)));
    while server.tunnels.is_empty() {
        server.send();
        assert!(server.receive().await);
    }
    server.mux.go_away(Code::NO_ERROR);
    let server = server.run().await;
    assert!(server.mux.done());
    stream.await.unwrap();
    connection.await.unwrap().unwrap();
    assert!(send.ready().await.is_err(), "no more streams");
}
