//! Requests through ztunnel, waypoint and ztunnel: what an app sees, and what comes back.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use ::http::{Method, Request, Version};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::app::{App, Heard, One, SOON, Two, get, text};
use super::shop::{Shop, in_shop};

#[test]
fn requests_of_every_kind_reach_the_apps_and_come_back_whole() {
    in_shop(|shop| {
        shop.runtime.block_on(async {
            one_connection_many_requests(shop)
                .await
                .context("HTTP/1.1")?;
            heads(shop).await.context("HEAD")?;
            two(shop).await.context("HTTP/2")?;
            both_ways_at_once(shop).await.context("a stream")?;
            large_bodies(shop).await.context("large bodies")?;
            let websocket = tokio::time::timeout(LONG, websocket(shop));
            websocket.await.context("WebSocket")?.context("WebSocket")?;
            let extended = tokio::time::timeout(LONG, extended_connect(shop));
            let extended = extended.await.context("extended CONNECT")?;
            extended.context("extended CONNECT")?;
            guessed(shop)
                .await
                .context("a port of which nothing is said")
        })?;
        said_all(shop).context("clients that have said all")?;
        asks_first(shop).context("clients that ask before they send")?;
        gone(shop).context("clients that have gone")
    });
}

/// For several steps together.
const LONG: Duration = Duration::from_secs(60);

async fn one_connection_many_requests(shop: &Shop<'_>) -> Result<()> {
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    let mut apps = std::collections::BTreeSet::new();
    for number in 0..40 {
        let path = format!("/a/{number}?q=1");
        let heard = client.get(&path).await?.is(200)?;
        ensure!(heard.saw("uri") == Some(path), "{heard:?}");
        ensure!(
            heard.saw("host").as_deref() == Some("web.shop"),
            "{heard:?}"
        );
        ensure!(heard.saw("x-request-id").is_some(), "{heard:?}");
        apps.extend(heard.saw("app"));
    }
    ensure!(apps.len() == 2, "only {apps:?}");
    // What is said of identity and between proxies is not the client's to say.
    let mut lie = get("/");
    for name in [
        "x-forwarded-client-cert",
        "x-envoy-retry-on",
        "x-istio-source",
    ] {
        lie.headers_mut().insert(name, "waypoint".parse().unwrap());
    }
    let heard = client.ask(lie).await?.is(200)?;
    ensure!(heard.saw("x-envoy-retry-on").is_none(), "{heard:?}");
    ensure!(heard.saw("x-forwarded-client-cert").is_none(), "{heard:?}");
    // One spelling of a path.
    let heard = client.get("/a//b/../c/%7Ed").await?.is(200)?;
    ensure!(heard.saw("uri").as_deref() == Some("/a/c/~d"), "{heard:?}");
    Ok(())
}

/// What is answered here is answered to HEAD without a body, over either version.
async fn heads(shop: &Shop<'_>) -> Result<()> {
    let mut unclear = get("/a%00b");
    *unclear.method_mut() = Method::HEAD;
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    let one = client.ask(unclear).await?.is(400)?;
    let mut client = Two::to(&shop.client, shop.at(80)).await?;
    let unclear = Request::head("http://web.shop/a%00b").body(Full::default())?;
    let two = client.ask(unclear).await?.is(400)?;
    for heard in [&one, &two] {
        let length = text(&heard.headers, "content-length");
        ensure!(
            length.parse::<usize>().is_ok_and(|length| length > 0),
            "{heard:?}"
        );
        ensure!(heard.body.is_empty(), "{heard:?}");
    }
    Ok(())
}

async fn two(shop: &Shop<'_>) -> Result<()> {
    let client = Two::to(&shop.client, shop.at(90)).await?;
    let asking = (0..30).map(|number| {
        let mut client = client.clone();
        async move {
            let request = Request::post("http://web.shop:90/echo")
                .version(Version::HTTP_2)
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Full::from(vec![7; number * 1000]))?;
            let heard = client.ask(request).await?.is(200)?;
            ensure!(heard.body.len() == number * 1000);
            ensure!(text(&heard.trailers, "x-bytes") == (number * 1000).to_string());
            ensure!(text(&heard.trailers, "grpc-status") == "0", "{heard:?}");
            Ok(())
        }
    });
    futures_util::future::try_join_all(asking).await?;
    Ok(())
}

/// Each message is answered before the next one is sent.
async fn both_ways_at_once(shop: &Shop<'_>) -> Result<()> {
    let tcp = TokioIo::new(super::app::connect(&shop.client, shop.at(90))?);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), tcp).await?;
    tokio::spawn(connection);
    let (say, said) = tokio::sync::mpsc::channel::<Bytes>(1);
    let frames = futures_util::stream::unfold(said, |mut said| async {
        let next = said.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(Frame::data(next)), said))
    });
    let request = Request::post("http://web.shop:90/stream")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(Box::pin(frames)))?;
    let answer = tokio::time::timeout(SOON, sender.send_request(request)).await??;
    ensure!(answer.status() == 200, "{answer:?}");
    let mut body = answer.into_body();
    for round in 0..20u8 {
        tokio::time::timeout(SOON, say.send(Bytes::from(vec![round; 10]))).await??;
        let heard = tokio::time::timeout(SOON, body.frame()).await?;
        let heard = heard.context("an end")??.into_data();
        ensure!(
            heard.is_ok_and(|heard| heard == vec![round; 10]),
            "round {round}"
        );
    }
    drop(say);
    while let Some(rest) = tokio::time::timeout(SOON, body.frame()).await? {
        ensure!(rest?.into_data().is_ok_and(|rest| rest.is_empty()));
    }
    Ok(())
}

async fn large_bodies(shop: &Shop<'_>) -> Result<()> {
    let bytes = Bytes::from(vec![42; 8 << 20]);
    let request = Request::post("/echo").header("host", "web.shop");
    let request = request.body(Full::from(bytes.clone()))?;
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    let heard = client.ask(request).await?.is(200)?;
    ensure!(heard.body == bytes, "{} bytes", heard.body.len());
    client.get("/").await?.is(200)?;
    Ok(())
}

async fn websocket(shop: &Shop<'_>) -> Result<()> {
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    let mut request = get("/upgrade");
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ] {
        request.headers_mut().insert(name, value.parse()?);
    }
    let mut answer = client.send(request).await?;
    ensure!(answer.status() == 101, "{answer:?}");
    let mut io = TokioIo::new(hyper::upgrade::on(&mut answer).await?);
    for round in 0..3u8 {
        io.write_all(&[round; 100]).await?;
        let mut back = [0; 100];
        io.read_exact(&mut back).await?;
        ensure!(back == [round; 100]);
    }
    // Whoever has said all may listen.
    io.write_all(&[9; 500]).await?;
    io.shutdown().await?;
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, io.read_to_end(&mut rest)).await??;
    ensure!(rest == [9; 500], "{} bytes", rest.len());
    // An app that refuses leaves a connection that goes on.
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    let mut refused = get("/status/403");
    refused
        .headers_mut()
        .insert("connection", "upgrade".parse()?);
    refused
        .headers_mut()
        .insert("upgrade", "websocket".parse()?);
    client.ask(refused).await?.is(403)?;
    client.get("/").await?.is(200)?;
    Ok(())
}

/// A WebSocket over HTTP/2 (RFC 8441), to an app that knows it as HTTP/1.1 has it.
async fn extended_connect(shop: &Shop<'_>) -> Result<()> {
    let tcp = TokioIo::new(super::app::connect(&shop.client, shop.at(80))?);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), tcp).await?;
    tokio::spawn(connection);
    let request = Request::connect("http://web.shop/upgrade")
        .version(Version::HTTP_2)
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(Full::<Bytes>::default())?;
    // That the other end knows of it is said with its first frame, before any answer.
    let first = Request::get("http://web.shop/").body(Full::<Bytes>::default())?;
    let first = tokio::time::timeout(SOON, sender.send_request(first)).await??;
    ensure!(first.status() == 200, "{first:?}");
    let mut answer = tokio::time::timeout(SOON, sender.send_request(request)).await??;
    ensure!(answer.status() == 200, "{answer:?}");
    let mut io = TokioIo::new(hyper::upgrade::on(&mut answer).await?);
    io.write_all(b"over two").await?;
    io.shutdown().await?;
    let mut back = Vec::new();
    tokio::time::timeout(SOON, io.read_to_end(&mut back)).await??;
    ensure!(back == b"over two", "{back:?}");
    Ok(())
}

async fn guessed(shop: &Shop<'_>) -> Result<()> {
    // One that comes so late that nobody listens any more is not read as a request, and another one is.
    let one = async || -> Result<Heard> {
        let mut one = One::to(&shop.client, shop.at(99)).await?;
        one.get("/").await
    };
    let two = async || -> Result<Heard> {
        let mut two = Two::to(&shop.client, shop.at(99)).await?;
        let request = Request::get("http://web.shop:99/").body(Full::default())?;
        two.ask(request).await
    };
    let is = |heard: &Result<Heard>, version: &str| match heard {
        Ok(heard) => heard.status == 200 && heard.saw("version").as_deref() == Some(version),
        Err(_) => false,
    };
    let begun = Instant::now();
    loop {
        let heard = [one().await, two().await];
        if is(&heard[0], "HTTP/1.1") && is(&heard[1], "HTTP/2.0") {
            return Ok(());
        }
        ensure!(begun.elapsed() < LONG, "{heard:?}");
    }
}

/// Says that, ends its direction, and reads until the other end ends as well.
fn half_closed(shop: &Shop<'_>, said: &str) -> Result<String> {
    let mut stream = shop.client.connect(shop.at(80))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(said.as_bytes())?;
    let _ = stream.shutdown(Shutdown::Write);
    rest(&mut stream)
}

/// All that comes until the other end ends.
fn rest(stream: &mut TcpStream) -> Result<String> {
    let mut heard = Vec::new();
    match stream.read_to_end(&mut heard) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(String::from_utf8_lossy(&heard).into_owned()),
    }
}

/// A client over HTTP/1.1 that has announced its last request may end its direction while the app thinks; one that has
/// not is taken for one that has closed its connection.
fn said_all(shop: &Shop<'_>) -> Result<()> {
    for (said, waits) in [
        (
            "GET /slow HTTP/1.1\r\nhost: web.shop\r\nconnection: close\r\n\r\n",
            true,
        ),
        ("GET /slow HTTP/1.0\r\nhost: web.shop\r\n\r\n", true),
        (
            "POST /slow HTTP/1.1\r\nhost: web.shop\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbody",
            true,
        ),
        ("GET /slow HTTP/1.1\r\nhost: web.shop\r\n\r\n", false),
        (
            "POST /slow HTTP/1.1\r\nhost: web.shop\r\ncontent-length: 4\r\n\r\nbody",
            false,
        ),
    ] {
        if !waits {
            // Whose end comes later than the app's answer has not gone while it thought.
            let what = format!("no answer to {said:?}");
            shop.until(&what, |shop| {
                half_closed(shop, said).is_ok_and(|heard| heard.is_empty())
            })?;
            continue;
        }
        let heard = half_closed(shop, said)?;
        let answered = heard.contains(" 200 OK\r\n") && heard.contains("app=");
        ensure!(answered, "{said:?}: {heard:?}");
    }
    Ok(())
}

/// A client that asks whether to send its body (RFC 9110 10.1.1) is told to go on by who takes it, and is not where nobody
/// wants it.
fn asks_first(shop: &Shop<'_>) -> Result<()> {
    let ask = |path: &str| -> Result<TcpStream> {
        let mut stream = shop.client.connect(shop.at(80))?;
        stream.set_read_timeout(Some(SOON))?;
        let fields =
            "host: web.shop\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: 4";
        stream.write_all(format!("POST {path} HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes())?;
        Ok(stream)
    };
    let mut wanted = ask("/echo")?;
    let mut leave = [0; 25];
    wanted.read_exact(&mut leave).context("leave to go on")?;
    let heard = String::from_utf8_lossy(&leave);
    ensure!(heard == "HTTP/1.1 100 Continue\r\n\r\n", "{heard:?}");
    wanted.write_all(b"body")?;
    let heard = rest(&mut wanted)?;
    let whole = heard.starts_with("HTTP/1.1 200 ") && heard.contains("body");
    ensure!(whole, "{heard:?}");
    let heard = rest(&mut ask("/a%00b")?)?;
    ensure!(heard.starts_with("HTTP/1.1 400 "), "{heard:?}");
    Ok(())
}

/// A client that closes its connection while the app thinks leaves nobody at work, and is told of as one that went.
fn gone(shop: &Shop<'_>) -> Result<()> {
    let pod = shop.lab.pod("shop/lone").node(0).label("app", "lone");
    let pod = pod.start()?;
    let _app = App::start(&shop.runtime, &pod, 8080)?;
    let lone = shop.lab.service_of("shop/lone", &[("http", 80, 8080)])?;
    let kept = || {
        shop.runtime.block_on(async {
            let mut one = One::to(&shop.client, lone.at(80)).await?;
            anyhow::Ok(one.get("/kept").await?.is(200)?.text())
        })
    };
    shop.until("the lone app to be served", |_| kept().is_ok())?;
    let ask = |key: &str| -> Result<()> {
        let mut stream = shop.client.connect(lone.at(80))?;
        let fields =
            format!("host: lone.shop\r\nx-slow: lone\r\nx-key: {key}\r\nx-request-id: {key}\r\n");
        stream.write_all(format!("GET /linger HTTP/1.1\r\n{fields}\r\n").as_bytes())?;
        // Mostly enough for the app to have been asked; where it is not, the next one is.
        shop.runtime
            .block_on(async { tokio::time::sleep(Duration::from_millis(300)).await });
        Ok(())
    };
    let tries = Cell::new(0);
    shop.until("the app to hear that nobody waits", |_| {
        tries.set(tries.get() + 1);
        let left = format!("left=gone-{}\n", tries.get());
        ask(&format!("gone-{}", tries.get())).is_ok()
            && (0..20).any(|_| kept().is_ok_and(|kept| (kept + "\n").contains(&left)))
    })?;
    let key = format!("gone-{}", tries.get());
    let log = shop.waypoint.pod().access_log();
    let line = log.find("who has gone", |line| line.field("request_id") == key)?;
    ensure!(line.field("flags") == "DC", "{line:?}");
    shop.until("its place to be free", |shop| {
        let metrics = shop.waypoint.pod().metrics();
        metrics.is_ok_and(|it| it.sum("ambit_requests_carried", &[]) == 0.0)
    })
}
