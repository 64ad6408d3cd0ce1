//! Processors that say too much, nothing, or something late; that are several; that die on the way.

use std::convert::Infallible;
use std::time::Instant;

use ::http::{HeaderMap, Request};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::clerk::Clerk;
use super::{ask, request};
use crate::app::{Heard, One, SOON, connect, get, text};
use crate::shop::{Shop, in_shop};

#[test]
fn what_a_processor_fails_in_harms_as_its_object_says() {
    in_shop(|shop| {
        let _clerk = Clerk::start(shop)?;
        shop.lab.apply_yaml("faults", &objects())?;
        shop.until("all processors to be in force", |shop| {
            let heard = shop.runtime.block_on(ask(shop, "/last", "deny", ""));
            heard.is_ok_and(|heard| heard.status == 451)
        })?;
        shop.runtime.block_on(async {
            wrong(shop)
                .await
                .context("answers that cannot be followed")?;
            replaced(shop).await.context("other bodies")?;
            longer(shop).await.context("more time")?;
            chains(shop).await.context("several")?;
            deaths(shop).await.context("death on the way")?;
            trailers(shop).await.context("trailers of requests")?;
            sockets(shop).await.context("WebSocket")
        })
    });
}

/// A route to a path of the app's, and processors of it: name, port, and the rest.
fn route(name: &str, path: &str, processors: &[(&str, u16, &str)]) -> String {
    let filters = match path {
        "" => String::new(),
        path => format!(
            "
    filters: [{{ type: URLRewrite, urlRewrite: {{ path: {{ type: ReplaceFullPath, replaceFullPath: {path} }} }} }}]"
        ),
    };
    let mut all = format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ namespace: shop, name: {name} }}
spec:
  parentRefs: [{{ group: '', kind: Service, name: web, port: 80 }}]
  rules:
  - matches: [{{ path: {{ type: PathPrefix, value: /{name} }} }}]{filters}
    backendRefs: [{{ name: web, port: 80 }}]
"
    );
    for (processor, port, more) in processors {
        all += &format!(
            "---
apiVersion: ambit.io/v1alpha1
kind: ExternalProcessor
metadata: {{ namespace: shop, name: {processor} }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name} }}]
  backendRef: {{ name: clerk, port: {port} }}
  {more}
"
        );
    }
    all
}

fn objects() -> String {
    let shown = |body: &str, trailers: bool| {
        format!("timeout: 20s\n  request: {{ body: {body}, trailers: {trailers} }}")
    };
    let pieces = "timeout: 20s
  request: { body: Streamed }
  response: { body: Streamed }";
    let mut all = [
        route("closed", "/echo", &[("closed", 9000, "timeout: 20s")]),
        route(
            "open",
            "/echo",
            &[("open", 9000, "timeout: 20s\n  onFailure: Allow")],
        ),
        route(
            "longer",
            "",
            &[("longer", 9000, "timeout: 300ms\n  longestTimeout: 2s")],
        ),
        route("short", "", &[("short", 9000, "timeout: 300ms")]),
        route(
            "chain",
            "",
            &[
                ("chain-a", 9000, "timeout: 20s"),
                ("chain-b", 9001, "timeout: 20s"),
            ],
        ),
        route(
            "lenient",
            "",
            &[
                ("lenient-a", 9000, "timeout: 20s"),
                ("lenient-b", 9001, "timeout: 20s\n  onFailure: Allow"),
            ],
        ),
        route("pieces-closed", "/echo", &[("pieces-closed", 9000, pieces)]),
        route(
            "pieces-open",
            "/echo",
            &[(
                "pieces-open",
                9000,
                &format!("{pieces}\n  onFailure: Allow"),
            )],
        ),
        route("socket", "/upgrade", &[("socket", 9000, "timeout: 20s")]),
        route(
            "there-socket",
            "/upgrade",
            &[("there-socket", 9000, &shown("Streamed", false))],
        ),
        route(
            "back-socket",
            "/upgrade",
            &[(
                "back-socket",
                9000,
                "timeout: 20s\n  response: { body: Streamed }",
            )],
        ),
    ]
    .concat();
    for body in ["None", "Buffered", "Streamed", "FullDuplexStreamed"] {
        let name = format!("trailers-{}", body.to_lowercase());
        all += &route(&name, "/echo", &[(&name, 9000, &shown(body, true))]);
    }
    all += &route(
        "unseen",
        "/echo",
        &[("unseen", 9000, &shown("Streamed", false))],
    );
    all + &route("last", "", &[("last", 9000, "timeout: 20s")])
}

/// A request in pieces, over HTTP/2 to an app that is spoken to in HTTP/2; a word is said when the one before has gone.
async fn said(shop: &Shop<'_>, path: &str, wish: &str, pieces: &[&'static str]) -> Result<Heard> {
    let tcp = TokioIo::new(connect(&shop.client, shop.at(80))?);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), tcp).await?;
    tokio::spawn(connection);
    let (say, frames) = mpsc::channel(1);
    let pieces = pieces.to_vec();
    tokio::spawn(async move {
        for piece in pieces {
            let piece = Frame::data(Bytes::from_static(piece.as_bytes()));
            if say.send(Ok::<_, Infallible>(piece)).await.is_err() {
                return;
            }
            tokio::time::sleep(SOON / 100).await;
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-mine", "1".parse().expect("a value"));
        let _ = say.send(Ok(Frame::trailers(trailers))).await;
    });
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(frames));
    let mut asking = Request::post(format!("http://web.shop{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if !wish.is_empty() {
        asking = asking.header("x-do", wish);
    }
    let answer = sender.send_request(asking.body(body)?);
    Heard::of(tokio::time::timeout(SOON, answer).await??).await
}

async fn wrong(shop: &Shop<'_>) -> Result<()> {
    for wish in ["big", "nothing", "bad"] {
        let log = shop.waypoint.pod().access_log().from_now();
        ask(shop, "/closed", wish, "text").await?.is(500)?;
        let line = log.find("its line", |line| line.field("code") == "500")?;
        let why = match wish {
            "big" => "too large",
            "nothing" => "says nothing",
            _ => "cannot be written",
        };
        ensure!(line.field("detail").contains(why), "{wish}: {line:?}");
        let heard = ask(shop, "/open", wish, "text").await?.is(200)?;
        ensure!(heard.text() == "text", "{wish}: {heard:?}");
    }
    Ok(())
}

async fn replaced(shop: &Shop<'_>) -> Result<()> {
    for body in ["", "a body that was there"] {
        let heard = ask(shop, "/closed", "replace", body).await?.is(200)?;
        ensure!(heard.text() == "replaced", "{heard:?}");
        let heard = ask(shop, "/closed", "replace-back", body).await?.is(200)?;
        ensure!(heard.text() == "for you", "{heard:?}");
        ensure!(text(&heard.headers, "x-replaced") == "1", "{heard:?}");
    }
    // What came with pieces is not shown any more.
    let heard = said(shop, "/pieces-closed", "replace", &["one ", "two"]).await?;
    let heard = heard.is(200)?;
    ensure!(heard.text() == "replaced", "{heard:?}");
    Ok(())
}

async fn longer(shop: &Shop<'_>) -> Result<()> {
    // On a busy machine the word that it takes longer may itself come too late; not each time.
    let mut statuses = Vec::new();
    while statuses.last() != Some(&200) && statuses.len() < TIMES {
        let heard = ask(shop, "/longer", "longer=1900,700", "").await?;
        statuses.push(heard.status);
    }
    ensure!(statuses.last() == Some(&200), "{statuses:?}");
    ask(shop, "/short", "longer=1900,700", "").await?.is(504)?;
    // As long as it may, however long it asks for: with all of that it would have answered.
    let mut took: Vec<u128> = Vec::new();
    while took.last().is_none_or(|took| *took < 1_900) && took.len() < TIMES {
        let begun = Instant::now();
        ask(shop, "/longer", "longer=600000,15000", "")
            .await?
            .is(504)?;
        took.push(begun.elapsed().as_millis());
    }
    ensure!(took.last() >= Some(&1_900), "{took:?} ms");
    Ok(())
}

async fn chains(shop: &Shop<'_>) -> Result<()> {
    // There in the order of their names, as they are of one age; back the last of them first.
    let heard = ask(shop, "/chain", "order", "").await?.is(200)?;
    ensure!(
        heard.saw("x-order").as_deref() == Some("onetwo"),
        "{heard:?}"
    );
    ensure!(text(&heard.headers, "x-order") == "twoone", "{heard:?}");
    ask(shop, "/chain", "break-two", "").await?.is(500)?;
    let heard = ask(shop, "/lenient", "break-two", "").await?.is(200)?;
    ensure!(heard.saw("x-order").as_deref() == Some("one"), "{heard:?}");
    Ok(())
}

async fn deaths(shop: &Shop<'_>) -> Result<()> {
    let words = &["some ", "words ", "more"];
    let heard = said(shop, "/pieces-open", "", words).await?.is(200)?;
    ensure!(heard.text().starts_with("SOME WORDS MORE"), "{heard:?}");
    // What it has had is as it has made it, and the rest as it came.
    let heard = said(shop, "/pieces-open", "die", words).await?.is(200)?;
    ensure!(heard.text().starts_with("SOME words more"), "{heard:?}");
    // Half of a body reaches no app as a whole one.
    let heard = said(shop, "/pieces-closed", "die", words).await?;
    ensure!(
        text(&heard.headers, "grpc-status") != "0" && heard.body.is_empty(),
        "{heard:?}"
    );

    let heard = said(shop, "/pieces-open", "die-back", words)
        .await?
        .is(200)?;
    ensure!(heard.text() == "SOME WORDS MORE", "{heard:?}");
    let broken = said(shop, "/pieces-closed", "die-back", words).await;
    ensure!(
        broken.is_err(),
        "a half answer that looks whole: {broken:?}"
    );
    Ok(())
}

async fn trailers(shop: &Shop<'_>) -> Result<()> {
    for (mode, expected) in [
        ("trailers-none", "2"),
        ("trailers-buffered", "2"),
        ("trailers-streamed", "2"),
        ("trailers-fullduplexstreamed", "2"),
        ("unseen", "1"),
    ] {
        let heard = said(shop, &format!("/{mode}"), "", &["one ", "two"])
            .await?
            .is(200)?;
        ensure!(text(&heard.trailers, "x-bytes") == "7", "{mode}: {heard:?}");
        ensure!(
            text(&heard.trailers, "x-trailers") == expected,
            "{mode}: {heard:?}"
        );
    }
    Ok(())
}

/// Its head may be shown; what follows a switch of protocols is no body.
async fn sockets(shop: &Shop<'_>) -> Result<()> {
    let upgrade = |path: &str| -> Result<Request<Full<Bytes>>> {
        let mut request = get(path);
        for (name, value) in [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            request.headers_mut().insert(name, value.parse()?);
        }
        Ok(request)
    };
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    let mut answer = client.send(upgrade("/socket")?).await?;
    ensure!(answer.status() == 101, "{answer:?}");
    ensure!(text(answer.headers(), "x-back") == "1", "{answer:?}");
    let upgraded = tokio::time::timeout(SOON, hyper::upgrade::on(&mut answer)).await??;
    let mut io = TokioIo::new(upgraded);
    io.write_all(b"through").await?;
    let mut back = [0; 7];
    tokio::time::timeout(SOON, io.read_exact(&mut back)).await??;
    ensure!(&back == b"through");
    for path in ["/there-socket", "/back-socket"] {
        let mut client = One::to(&shop.client, shop.at(80)).await?;
        client.ask(upgrade(path)?).await?.is(500)?;
        // One that switches nothing is shown there as any.
        ask(shop, path, "deny", "").await?.is(451)?;
    }
    let plain = request("/last", "", "");
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    client.ask(plain).await?.is(200)?;
    Ok(())
}

/// So often is asked what a busy machine may be late for.
const TIMES: usize = 20;
