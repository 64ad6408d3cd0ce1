//! Hours, in a moment: connections of clients on a simulated clock.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2 as client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt;

use super::linger::{HEAD as WHOLE_HEAD, UNREAD};
use super::stalled::SHUT;
use super::*;
use crate::load::Load;

type Asking = client::SendRequest<BoxBody<Bytes, Infallible>>;

/// A body that comes as it is said.
fn spoken() -> (mpsc::Sender<Bytes>, BoxBody<Bytes, Infallible>) {
    let (say, said) = mpsc::channel::<Bytes>(1);
    let frames = tokio_stream::wrappers::ReceiverStream::new(said);
    let frames = frames.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    (say, BodyExt::boxed(StreamBody::new(frames)))
}

fn load() -> Load {
    let config = <crate::config::Config as clap::Parser>::try_parse_from(["waypoint"]).unwrap();
    Load::new(&config)
}

fn refused(load: &Load) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(Box::new(load.clone()));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

/// HTTP/2 as it arrives in a tunnel; each request is answered with its own body, frame by frame.
fn echo_two(stream: DuplexStream, load: Load) {
    let service = service_fn(|request: Request<Incoming>| async {
        let body = request.into_body();
        hand(!body.is_end_stream());
        Ok::<_, Infallible>(Response::new(Asked(body)))
    });
    let drain = ops::drain::Drain::new();
    let stream = Linger::two(stream, drain, load.clone());
    tokio::spawn(two(Streams(load)).serve_connection(TokioIo::new(stream), service));
}

async fn asking(stream: DuplexStream, window: u32) -> Asking {
    let (asking, connection) = client::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    asking
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_hours_goes_on_with_a_message_now_and_then() {
    let load = load();
    let (near, far) = duplex(64 << 10);
    echo_two(far, load.clone());
    let mut asking = asking(near, 64 << 10).await;
    let (say, said) = spoken();
    let request = Request::post("http://web/stream").body(said).unwrap();
    let mut answer = asking.send_request(request).await.unwrap().into_body();
    let begun = Instant::now();
    for round in 0..24u8 {
        sleep(Duration::from_secs(1800)).await;
        say.send(Bytes::from(vec![round; 100])).await.unwrap();
        let heard = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(heard, vec![round; 100]);
    }
    assert!(begun.elapsed() >= Duration::from_secs(12 * 3600));
    drop(say);
    while let Some(rest) = answer.frame().await {
        assert!(rest.unwrap().into_data().is_ok_and(|rest| rest.is_empty()));
    }
    assert!(!refused(&load).contains("reason="));
}

/// An app that gives back what a WebSocket says, over HTTP/1.1.
fn chatting(stream: DuplexStream) {
    let service = service_fn(|mut request: Request<Incoming>| async move {
        let switching = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(TokioIo::new(switching.await.unwrap()));
            tokio::io::copy(&mut from, &mut to).await.unwrap();
            to.shutdown().await.unwrap();
        });
        Ok::<_, Infallible>(switching_protocols())
    });
    let serving = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::spawn(serving);
}

fn switching_protocols() -> Response<http_body_util::Empty<Bytes>> {
    Response::builder()
        .status(101)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .body(http_body_util::Empty::new())
        .unwrap()
}

/// A WebSocket to an app of its own, joined with who asks for it.
async fn joined(mut request: Request<Incoming>) {
    let client = hyper::upgrade::on(&mut request);
    let (near, far) = duplex(64 << 10);
    chatting(far);
    let (mut asking, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near))
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    let asked = Request::get("/chat")
        .header("host", "web")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .body(http_body_util::Empty::<Bytes>::new())
        .unwrap();
    let mut answer = asking.send_request(asked).await.unwrap();
    let endpoint = hyper::upgrade::on(&mut answer).await.unwrap();
    tokio::spawn(async move { crate::call::join(client.await.unwrap(), endpoint).await });
}

/// Says something every half an hour, twelve hours long, and hears it; then ends.
async fn chats_for_hours(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let begun = Instant::now();
    for round in 0..24u8 {
        sleep(Duration::from_secs(1800)).await;
        stream.write_all(&[round; 100]).await.unwrap();
        let mut heard = [0; 100];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, [round; 100]);
    }
    assert!(begun.elapsed() >= Duration::from_secs(12 * 3600));
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"");
}

#[tokio::test(start_paused = true)]
async fn a_websocket_of_hours_goes_on_with_a_message_now_and_then() {
    let load = load();
    let (mut near, far) = duplex(64 << 10);
    let turns = Arc::new(Turns::default());
    let linger = Linger::one(far, ops::drain::Drain::new(), load.clone(), turns.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (serving, turns) = (turns.begin(&request), turns.clone());
        async move {
            joined(request).await;
            turns.switch();
            let last = |body| Last {
                body,
                _serving: serving,
            };
            Ok::<_, Infallible>(switching_protocols().map(last))
        }
    });
    let serving = async move {
        let io = TokioIo::new(linger);
        one().serve_connection(io, service).with_upgrades().await
    };
    tokio::spawn(serving);
    near.write_all(
        b"GET /chat HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )
    .await
    .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(near.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    chats_for_hours(near).await;
    assert!(!refused(&load).contains("reason="), "{}", refused(&load));
}

#[tokio::test(start_paused = true)]
async fn a_websocket_of_hours_over_http_2_goes_on_as_well() {
    let load = load();
    let (near, far) = duplex(64 << 10);
    let service = service_fn(|request: Request<Incoming>| async {
        joined(request).await;
        let answer = Response::new(http_body_util::Empty::<Bytes>::new());
        hand(!answer.body().is_end_stream());
        Ok::<_, Infallible>(answer.map(Asked))
    });
    let stream = Linger::two(far, ops::drain::Drain::new(), load.clone());
    let streams = Streams(load.clone());
    tokio::spawn(two(streams).serve_connection(TokioIo::new(stream), service));
    let mut asking = asking(near, 64 << 10).await;
    // That the other end knows of it is said with its first frame.
    sleep(Duration::from_secs(1)).await;
    let request = Request::connect("http://web/chat")
        .version(http::Version::HTTP_2)
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .body(BoxBody::default())
        .unwrap();
    let mut answer = asking.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let stream = hyper::upgrade::on(&mut answer).await.unwrap();
    chats_for_hours(TokioIo::new(stream)).await;
    assert!(!refused(&load).contains("reason="), "{}", refused(&load));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_takes_is_given_up_and_its_neighbours_are_not() {
    let load = load();
    let (near, far) = duplex(64 << 10);
    echo_two(far, load.clone());
    let mut asking = asking(near, 1000).await;
    // An answer far larger than its window, of which nothing is read.
    let frames = futures_util::stream::iter(
        (0..100).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[7; 1000])))),
    );
    let large = Request::post("http://web/large")
        .body(BodyExt::boxed(StreamBody::new(frames)))
        .unwrap();
    let mut unread = asking.send_request(large).await.unwrap().into_body();
    // Beside it one that waits for the app, and says something at the end.
    let (say, said) = spoken();
    let quiet = Request::post("http://web/quiet").body(said).unwrap();
    let mut quiet = asking.send_request(quiet).await.unwrap().into_body();
    sleep(SHUT + Duration::from_secs(60)).await;
    let mut taken = 0;
    let cut = loop {
        match unread.frame().await {
            Some(Ok(frame)) => taken += frame.into_data().map_or(0, |data| data.len()),
            Some(Err(error)) => break error,
            None => panic!("all of it came"),
        }
    };
    assert!(taken < 100_000, "{cut}");
    say.send(Bytes::from_static(b"still there")).await.unwrap();
    let heard = quiet.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(heard, "still there");
    assert!(
        refused(&load).contains("reason=\"unread_answer\"} 1"),
        "{}",
        refused(&load)
    );
}

/// HTTP/1.1 as it arrives in a tunnel, answered with so many bytes.
fn serve_one(stream: DuplexStream, bytes: usize, load: Load) {
    let turns = Arc::new(Turns::default());
    let linger = Linger::one(stream, ops::drain::Drain::new(), load, turns.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let serving = turns.begin(&request);
        async move {
            let body = Full::new(Bytes::from(vec![b'x'; bytes]));
            let body = Last {
                body,
                _serving: serving,
            };
            Ok::<_, Infallible>(Response::new(body))
        }
    });
    tokio::spawn(async move {
        let _ = one().serve_connection(TokioIo::new(linger), service).await;
    });
}

async fn until_closed(stream: &mut DuplexStream) -> Duration {
    let begun = Instant::now();
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard).await;
    begun.elapsed()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_head_that_is_begun_must_end_and_a_client_between_two_requests_may_wait() {
    let load = load();
    // Drop by drop.
    let (near, far) = duplex(64 << 10);
    serve_one(far, 2, load.clone());
    let (mut reading, mut writing) = tokio::io::split(near);
    let drops = tokio::spawn(async move {
        for byte in GET.iter().cycle() {
            if *byte != b'\n' && writing.write_all(&[*byte]).await.is_err() {
                return;
            }
            sleep(Duration::from_secs(10)).await;
        }
    });
    let (begun, mut heard) = (Instant::now(), Vec::new());
    let _ = reading.read_to_end(&mut heard).await;
    assert!(
        begun.elapsed() <= WHOLE_HEAD + Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    drops.abort();
    assert!(refused(&load).contains("reason=\"slow_head\"} 1"));
    // Four minutes between two requests.
    let (mut near, far) = duplex(64 << 10);
    serve_one(far, 2, load.clone());
    for _ in 0..3 {
        near.write_all(GET).await.unwrap();
        let mut heard = [0; 16];
        near.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"HTTP/1.1 200 OK\r");
        let mut rest = [0; 4096];
        let _ = near.read(&mut rest).await.unwrap();
        sleep(Duration::from_secs(240)).await;
    }
    // And no more than five.
    assert!(until_closed(&mut near).await <= HEAD);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
    let load = load();
    let (mut near, far) = duplex(1000);
    serve_one(far, 100_000, load.clone());
    near.write_all(GET).await.unwrap();
    sleep(UNREAD + Duration::from_secs(1)).await;
    let mut heard = Vec::new();
    let _ = near.read_to_end(&mut heard).await;
    assert!(heard.len() < 10_000, "{}", heard.len());
    assert!(refused(&load).contains("reason=\"unread_answer\"} 1"));

    let (mut near, far) = duplex(1000);
    serve_one(far, 10_000, load.clone());
    near.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut heard = 0;
    loop {
        sleep(UNREAD / 2).await;
        let mut part = [0; 500];
        match near.read(&mut part).await.unwrap() {
            0 => break,
            n => heard += n,
        }
    }
    assert!(heard > 10_000, "{heard}");
}

/// A client's end of a tunnel that is reset when it is told to be.
struct Resettable {
    stream: DuplexStream,
    reset: Option<oneshot::Receiver<()>>,
}

impl AsyncRead for Resettable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(reset) = &mut self.reset
            && Pin::new(reset).poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, out)
    }
}

impl AsyncWrite for Resettable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// HTTP/1.1, answered by an app that thinks for a minute and says which path it was asked; the requests that it is
/// thinking about.
fn thinking(stream: DuplexStream, reset: Option<oneshot::Receiver<()>>) -> Arc<()> {
    let thinking_of = Arc::new(());
    let turns = Arc::new(Turns::default());
    let stream = Resettable { stream, reset };
    let linger = Linger::one(stream, ops::drain::Drain::new(), load(), turns.clone());
    let counted = thinking_of.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (serving, counted) = (turns.begin(&request), counted.clone());
        async move {
            sleep(Duration::from_secs(60)).await;
            drop(counted);
            let body = Full::new(Bytes::from(request.uri().path().to_owned()));
            let body = Last {
                body,
                _serving: serving,
            };
            Ok::<_, Infallible>(Response::new(body))
        }
    });
    tokio::spawn(async move {
        let _ = one().serve_connection(TokioIo::new(linger), service).await;
    });
    thinking_of
}

/// Beside the one that counts, and the service's own.
fn thought_of(thinking: &Arc<()>) -> usize {
    Arc::strong_count(thinking).saturating_sub(2)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_resets_while_the_app_thinks_ends_its_request() {
    let (mut near, far) = duplex(64 << 10);
    let (reset, told) = oneshot::channel();
    let thinking = thinking(far, Some(told));
    near.write_all(GET).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(thought_of(&thinking), 1);
    reset.send(()).unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        Arc::strong_count(&thinking),
        1,
        "the connection is served no more"
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ends_a_connection_that_it_wanted_to_keep_has_gone() {
    for said in [
        "GET / HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: web\r\nconnection: keep-alive\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\n\r\nbody",
    ] {
        let (mut near, far) = duplex(64 << 10);
        let thinking = thinking(far, None);
        near.write_all(said.as_bytes()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(thought_of(&thinking), 1, "{said}");
        near.shutdown().await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(
            Arc::strong_count(&thinking),
            1,
            "{said}: it is served still"
        );
        let mut heard = String::new();
        let _ = near.read_to_string(&mut heard).await;
        assert_eq!(heard, "", "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_announced_its_last_request_may_end_and_gets_the_answer() {
    for said in [
        "GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: web\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: web\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbody",
    ] {
        let (mut near, far) = duplex(64 << 10);
        let thinking = thinking(far, None);
        near.write_all(said.as_bytes()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        near.shutdown().await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(thought_of(&thinking), 1, "{said}");
        let mut heard = String::new();
        near.read_to_string(&mut heard).await.unwrap();
        assert!(heard.contains(" 200 OK\r"), "{said}: {heard}");
        assert!(heard.ends_with("\r\n\r\n/"), "{said}: {heard}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_the_app_thinks_is_the_next_request() {
    let (mut near, far) = duplex(64 << 10);
    let _thinking = thinking(far, None);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n");
    near.write_all(get("/one").as_bytes()).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    // In pieces, the first of one byte.
    let two = get("/two");
    for piece in [&two[..1], &two[1..9], &two[9..]] {
        near.write_all(piece.as_bytes()).await.unwrap();
        sleep(Duration::from_secs(5)).await;
    }
    let more = get("/three") + "GET /four HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
    near.write_all(more.as_bytes()).await.unwrap();
    let mut heard = String::new();
    near.read_to_string(&mut heard).await.unwrap();
    let answers: Vec<&str> = heard.split("HTTP/1.1 200 OK\r\n").skip(1).collect();
    assert_eq!(answers.len(), 4, "{heard}");
    for (answer, path) in answers.iter().zip(["/one", "/two", "/three", "/four"]) {
        assert!(answer.ends_with(path), "{heard}");
    }
}
