//! Requests through ztunnel, waypoint and ztunnel: what an app sees, and what comes back.

use ::http::{Method, Request, Version};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::app::{One, Two, get, text};
use super::shop::in_shop;

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
            websocket(shop).await.context("WebSocket")?;
            extended_connect(shop).await.context("extended CONNECT")?;
            guessed(shop)
                .await
                .context("a port of which nothing is said")
        })
    });
}

async fn one_connection_many_requests(shop: &super::shop::Shop<'_>) -> Result<()> {
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
async fn heads(shop: &super::shop::Shop<'_>) -> Result<()> {
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

async fn two(shop: &super::shop::Shop<'_>) -> Result<()> {
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
async fn both_ways_at_once(shop: &super::shop::Shop<'_>) -> Result<()> {
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
    let answer = tokio::time::timeout(super::app::SOON, sender.send_request(request)).await??;
    ensure!(answer.status() == 200, "{answer:?}");
    let mut body = answer.into_body();
    for round in 0..20u8 {
        say.send(Bytes::from(vec![round; 10])).await?;
        let heard = tokio::time::timeout(super::app::SOON, body.frame()).await?;
        let heard = heard.context("an end")??.into_data();
        ensure!(
            heard.is_ok_and(|heard| heard == vec![round; 10]),
            "round {round}"
        );
    }
    drop(say);
    while let Some(rest) = body.frame().await {
        ensure!(rest?.into_data().is_ok_and(|rest| rest.is_empty()));
    }
    Ok(())
}

async fn large_bodies(shop: &super::shop::Shop<'_>) -> Result<()> {
    let bytes = Bytes::from(vec![42; 8 << 20]);
    let request = Request::post("/echo").header("host", "web.shop");
    let request = request.body(Full::from(bytes.clone()))?;
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    let heard = client.ask(request).await?.is(200)?;
    ensure!(heard.body == bytes, "{} bytes", heard.body.len());
    client.get("/").await?.is(200)?;
    Ok(())
}

async fn websocket(shop: &super::shop::Shop<'_>) -> Result<()> {
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
async fn extended_connect(shop: &super::shop::Shop<'_>) -> Result<()> {
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
    let first = tokio::time::timeout(super::app::SOON, sender.send_request(first)).await??;
    ensure!(first.status() == 200, "{first:?}");
    let mut answer = tokio::time::timeout(super::app::SOON, sender.send_request(request)).await??;
    ensure!(answer.status() == 200, "{answer:?}");
    let mut io = TokioIo::new(hyper::upgrade::on(&mut answer).await?);
    io.write_all(b"over two").await?;
    let mut back = [0; 8];
    io.read_exact(&mut back).await?;
    ensure!(&back == b"over two");
    Ok(())
}

async fn guessed(shop: &super::shop::Shop<'_>) -> Result<()> {
    let mut one = One::to(&shop.client, shop.at(99)).await?;
    let heard = one.get("/").await?.is(200)?;
    ensure!(
        heard.saw("version").as_deref() == Some("HTTP/1.1"),
        "{heard:?}"
    );
    let mut two = Two::to(&shop.client, shop.at(99)).await?;
    let request = Request::get("http://web.shop:99/").body(Full::default())?;
    let heard = two.ask(request).await?.is(200)?;
    ensure!(
        heard.saw("version").as_deref() == Some("HTTP/2.0"),
        "{heard:?}"
    );
    Ok(())
}
