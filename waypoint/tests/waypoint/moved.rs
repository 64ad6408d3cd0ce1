//! A service is given another waypoint while it is used: no request is lost over it, whatever its clients keep open. What
//! is served no more is refused, also over what was let in before.

use std::convert::Infallible;
use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use ::http::Request;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lab::{Pod, WaypointPod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use super::app::{One, SOON, connect, get};
use super::shop::{Shop, in_shop};

#[test]
fn no_request_is_lost_when_a_service_is_given_another_waypoint() {
    in_shop(|shop| {
        for app in &shop.apps {
            echo(app)?;
        }
        let second = shop.lab.waypoint("shop/new", 1)?;
        let load = Load::begin(shop);
        load.more(shop, "before")?;
        // Its client keeps it, and never hears of waypoints.
        let mut kept = shop.client.connect(shop.at(70))?;
        goes_on(&mut kept)?;

        let first = shop.waypoint.pod();
        let change = |waypoint: &str, pod: &WaypointPod| -> Result<()> {
            let before = served(pod)?;
            shop.lab.namespace("shop").behind(waypoint)?;
            shop.until("requests through the other one", |_| {
                served(pod).is_ok_and(|now| now > before + 50.0)
            })
        };
        let gone = Instant::now();
        change("new", second.pod())?;
        change("way", first)?;
        let in_time = gone.elapsed() < LEAVING;
        load.more(shop, "there and back")?;
        let went_on = goes_on(&mut kept);
        if in_time {
            went_on.context("where it has come back to, what was begun goes on")?;
        } else if went_on.is_err() {
            // On a machine that took so long for it, its time was up.
            kept = shop.client.connect(shop.at(70))?;
            goes_on(&mut kept)?;
        }
        let gone = Instant::now();
        change("new", second.pod())?;
        let went_on = goes_on(&mut kept);
        if gone.elapsed() < LEAVING {
            went_on.context("for a while")?;
        }
        load.more(shop, "there")?;
        ends(&mut kept)?;
        shop.until("nothing to be left at the first one", |shop| {
            let dump = shop.waypoint.pod().config_dump();
            dump.is_ok_and(|dump| !dump.to_string().contains("fronted/service/shop/web"))
        })?;
        // What was answered last is counted when its client has gone on.
        load.more(shop, "with nothing left there")?;
        let last = served(first)?;
        load.more(shop, "after")?;
        load.end(shop)?;
        ensure!(served(first)? <= last, "the first one is asked");
        Ok(())
    });
}

#[test]
fn a_kept_connection_is_worth_nothing_when_its_service_is_behind_the_waypoint_no_more() {
    in_shop(|shop| {
        // The waypoint knows its endpoints for as long as a route leads there, and judges nobody who asks for it.
        shop.lab.apply_yaml("aside", ASIDE)?;
        shop.lab.apply_yaml("brief", BRIEF)?;
        let brief: SocketAddr = ([10, 96, 200, 1], 80).into();
        shop.until("the service to be served", |shop| {
            let got = shop.runtime.block_on(async {
                let mut one = One::to(&shop.client, brief).await?;
                one.get("/").await?.is(200)
            });
            got.is_ok()
        })?;
        let mut kept = shop.runtime.block_on(async {
            let mut one = One::to(&shop.client, brief).await?;
            one.get("/").await?.is(200)?;
            anyhow::Ok(one)
        })?;
        let dump = |shop: &Shop<'_>| shop.waypoint.pod().config_dump();
        let fronted = "fronted/service/shop/brief.shop.svc.cluster.local";

        let deleted = Instant::now();
        shop.lab.delete_yaml("brief")?;
        shop.until("it to be gone", |shop| {
            dump(shop).is_ok_and(|dump| !dump.to_string().contains(fronted))
        })?;
        let bare = BRIEF.replace("labels: {}", "labels: { istio.io/use-waypoint: none }");
        shop.lab.apply_yaml("brief", &bare)?;
        shop.until("the route to lead there again", |shop| {
            let got = shop.runtime.block_on(shop.get("/aside"));
            got.is_ok_and(|heard| heard.status == 200)
        })?;
        let heard = match shop.runtime.block_on(kept.get("/")) {
            // On a machine that took so long for it, its time was up: what has ended is worth nothing either.
            Err(_) if deleted.elapsed() >= LEAVING / 2 => return Ok(()),
            heard => heard?.is(503)?,
        };
        ensure!(heard.saw("app").is_none(), "{heard:?}");
        ensure!(
            heard
                .headers
                .get("connection")
                .is_some_and(|it| it == "close"),
            "{heard:?}"
        );
        Ok(())
    });
}

const BRIEF: &str = "
apiVersion: v1
kind: Service
metadata: { namespace: shop, name: brief, labels: {} }
spec: { clusterIP: 10.96.200.1, selector: { app: web }, ports: [{ name: http, port: 80, targetPort: 8080 }] }
";

const ASIDE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: aside }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
  - matches: [{ path: { type: PathPrefix, value: /aside } }]
    backendRefs: [{ name: brief, port: 80 }]
  - backendRefs: [{ name: web, port: 80 }]
";

/// Clients of all kinds that keep what they have until they are told to go.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<Client>,
}

struct Client {
    name: &'static str,
    done: Arc<AtomicUsize>,
    task: JoinHandle<Result<()>>,
}

impl Load {
    fn begin(shop: &Shop<'_>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        let mut client = |name, run: fn(Pod, SocketAddr, Round) -> Running, port| {
            let done = Arc::new(AtomicUsize::new(0));
            let round = Round {
                stop: stop.clone(),
                done: done.clone(),
            };
            let running = run(shop.client.clone(), shop.at(port), round);
            clients.push(Client {
                name,
                done,
                task: shop.runtime.spawn(running),
            });
        };
        for _ in 0..2 {
            client(
                "HTTP/1.1",
                |pod, to, round| Box::pin(one(pod, to, round)),
                80,
            );
            client("HTTP/2", |pod, to, round| Box::pin(two(pod, to, round)), 80);
        }
        client(
            "a gRPC stream",
            |pod, to, round| Box::pin(streams(pod, to, round)),
            90,
        );
        client(
            "bytes",
            |pod, to, round| Box::pin(bytes(pod, to, round)),
            70,
        );
        Self { stop, clients }
    }

    /// Waits until each has done some more.
    fn more(&self, shop: &Shop<'_>, when: &str) -> Result<()> {
        for client in &self.clients {
            let before = client.done.load(SeqCst);
            let more = if client.name.starts_with("HTTP") {
                50
            } else {
                2
            };
            let some = shop.until(client.name, |_| {
                client.task.is_finished() || client.done.load(SeqCst) >= before + more
            });
            some.with_context(|| format!("{when}: {}", client.name))?;
        }
        Ok(())
    }

    fn end(self, shop: &Shop<'_>) -> Result<()> {
        self.stop.store(true, SeqCst);
        for client in self.clients {
            let task = client.task;
            let ended = async { tokio::time::timeout(LONG, task).await };
            let ended = shop.runtime.block_on(ended);
            let ended = ended.with_context(|| format!("{} does not end", client.name))??;
            let done = client.done.load(SeqCst);
            ended.with_context(|| format!("{} was lost after {done}", client.name))?;
        }
        Ok(())
    }
}

type Running = std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>>;

struct Round {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
}

impl Round {
    async fn next(&self) -> bool {
        self.done.fetch_add(1, SeqCst);
        tokio::time::sleep(PACE).await;
        !self.stop.load(SeqCst)
    }
}

async fn one(pod: Pod, to: SocketAddr, round: Round) -> Result<()> {
    let mut kept: Option<One> = None;
    loop {
        let mut one = match kept.take() {
            Some(one) => one,
            None => One::to(&pod, to).await?,
        };
        let heard = one.get("/").await?.is(200)?;
        if heard
            .headers
            .get("connection")
            .is_none_or(|said| said != "close")
        {
            kept = Some(one);
        }
        if !round.next().await {
            return Ok(());
        }
    }
}

/// Over HTTP/2 a request that was not sent, because its connection goes, is sent over another.
async fn two(pod: Pod, to: SocketAddr, round: Round) -> Result<()> {
    let mut kept = None;
    loop {
        let mut sender = match kept.take() {
            Some(sender) => sender,
            None => {
                let tcp = TokioIo::new(connect(&pod, to)?);
                let (sender, connection) = http2::handshake(TokioExecutor::new(), tcp).await?;
                tokio::spawn(connection);
                sender
            }
        };
        let mut request = get("http://web.shop/");
        request.headers_mut().remove("host");
        let sending: Result<_, _> =
            tokio::time::timeout(SOON, sender.try_send_request(request)).await?;
        match sending {
            Ok(answer) => {
                ensure!(answer.status() == 200, "{answer:?}");
                answer.into_body().collect().await?;
                kept = Some(sender);
            }
            Err(mut lost) => match lost.take_message() {
                Some(_unsent) => continue,
                None => {
                    again(lost.into_error())?;
                    continue;
                }
            },
        }
        if !round.next().await {
            return Ok(());
        }
    }
}

/// A request that was on its way when its connection was ended in good order has a stream beyond the last that counts: the other
/// end has not seen it, and it is sent again (RFC 9113, 6.8). hyper's client gives it back only where it was not written yet.
fn again(lost: hyper::Error) -> Result<()> {
    let told = std::error::Error::source(&lost).and_then(|it| it.downcast_ref::<h2::Error>());
    if told.is_some_and(|it| it.is_go_away() && it.reason() == Some(h2::Reason::NO_ERROR)) {
        return Ok(());
    }
    Err(lost.into())
}

/// Streams of a second each, both ways.
async fn streams(pod: Pod, to: SocketAddr, round: Round) -> Result<()> {
    let mut kept: Option<http2::SendRequest<_>> = None;
    loop {
        let mut sender = match kept.take() {
            Some(sender) if !sender.is_closed() => sender,
            _ => {
                let tcp = TokioIo::new(connect(&pod, to)?);
                let (sender, connection) = http2::handshake(TokioExecutor::new(), tcp).await?;
                tokio::spawn(connection);
                sender
            }
        };
        let (say, said) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
        let request = Request::post("http://web.shop/stream")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(ReceiverStream::new(said)))?;
        let answer = match sender.try_send_request(request).await {
            Ok(answer) => answer,
            Err(mut lost) => match lost.take_message() {
                Some(_unsent) => continue,
                None => {
                    again(lost.into_error())?;
                    continue;
                }
            },
        };
        ensure!(answer.status() == 200, "{answer:?}");
        let mut body = answer.into_body();
        for word in 0..50_u8 {
            say.send(Ok(Frame::data(Bytes::from(vec![word; 3]))))
                .await?;
            let mut heard = Vec::new();
            while heard.len() < 3 {
                let frame = tokio::time::timeout(SOON, body.frame()).await?;
                let frame = frame.context("the stream ended")??;
                heard.extend(frame.into_data().unwrap_or_default());
            }
            ensure!(heard == [word; 3], "{heard:?}");
            tokio::time::sleep(PACE).await;
        }
        drop(say);
        body.collect().await?;
        kept = Some(sender);
        if !round.next().await {
            return Ok(());
        }
    }
}

/// Connections of a second each.
async fn bytes(pod: Pod, to: SocketAddr, round: Round) -> Result<()> {
    loop {
        let mut stream = connect(&pod, to)?;
        for word in 0..50_u8 {
            stream.write_all(&[word; 3]).await?;
            let mut heard = [0; 3];
            tokio::time::timeout(SOON, stream.read_exact(&mut heard)).await??;
            ensure!(heard == [word; 3], "{heard:?}");
            tokio::time::sleep(PACE).await;
        }
        stream.shutdown().await?;
        ensure!(stream.read(&mut [0]).await? == 0);
        if !round.next().await {
            return Ok(());
        }
    }
}

const PACE: Duration = Duration::from_millis(20);
/// How long what was begun goes on at a waypoint that a service has left; half of it, where nothing is asked.
const LEAVING: Duration = Duration::from_secs(10);
/// For a client to end what it is at.
const LONG: Duration = Duration::from_secs(60);

/// Requests that a waypoint has answered.
fn served(waypoint: &WaypointPod) -> Result<f64> {
    Ok(waypoint.metrics()?.sum("istio_requests_total", &[]))
}

fn echo(pod: &Pod) -> Result<()> {
    let listener = pod.listen(7070)?;
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut answers = stream.try_clone()?;
                std::io::copy(&mut &stream, &mut answers)?;
                answers.shutdown(std::net::Shutdown::Write)
            });
        }
    });
    Ok(())
}

/// After a while, without a word of ours.
fn ends(stream: &mut std::net::TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(LONG))?;
    match stream.read(&mut [0]) {
        Ok(1..) => bail!("it says something"),
        Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("it goes on"),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn goes_on(stream: &mut std::net::TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"hello")?;
    let mut back = [0; 5];
    stream.read_exact(&mut back)?;
    if &back != b"hello" {
        bail!("{back:?}");
    }
    Ok(())
}
