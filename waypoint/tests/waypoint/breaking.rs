//! Circuit breaking: connections and requests of which a DestinationRule says how many there may be.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::http::{Request, Response};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use lab::{Pod, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::app::{Heard, One, SOON, Two, get};
use super::shop::{Shop, in_shop};

#[test]
fn requests_wait_for_connections_and_no_more_do_than_their_rule_allows() {
    in_shop(|shop| {
        let few = Few::open(shop)?;
        few.ruled("tcp: { maxConnections: 2 }, http: { http1MaxPendingRequests: 3 }")?;
        few.breaks().context("requests of HTTP/1.1")?;
        few.follows()
            .context("whoever was refused is not remembered")?;
        few.ruled("tcp: { maxConnections: 1 }, http: { http1MaxPendingRequests: 5 }")?;
        few.shares_with_others().context("WebSockets")?;
        few.ruled("tcp: { maxConnections: 1 }, http: { http1MaxPendingRequests: 1, maxConcurrentStreams: 2 }")?;
        few.breaks_together().context("calls over HTTP/2")
    });
}

#[test]
fn connections_last_and_are_used_as_long_as_their_rule_allows() {
    in_shop(|shop| {
        let few = Few::open(shop)?;
        few.ruled("tcp: { maxConnections: 50 }, http: { maxRequestsPerConnection: 1 }")?;
        few.are_used_once().context("one request for each")?;
        few.ruled("tcp: { maxConnections: 60, maxConnectionDuration: 2s }")?;
        few.grow_old().context("a longest life")?;
        few.ruled("tcp: { maxConnections: 70 }, http: { idleTimeout: 100ms }")?;
        few.are_not_kept().context("an idle time")?;
        few.ruled("tcp: { maxConnections: 80, idleTimeout: 1s }")?;
        few.bytes_end("nothing came for 1s")
            .context("silence of bytes")?;
        few.ruled("tcp: { maxConnections: 90, maxConnectionDuration: 1s }")?;
        few.bytes_end("it is 1s old").context("age of bytes")
    });
}

const PATIENCE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: patience }
spec:
  parentRefs: [{ group: '', kind: Service, name: few, port: 80 }]
  rules:
  - timeouts: { backendRequest: 2s }
    filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: { set: [{ name: x-patience, value: short }] }
    backendRefs: [{ name: few, port: 80 }]
";

#[test]
fn whoever_waits_in_vain_for_a_connection_says_nothing_about_the_endpoint() {
    in_shop(|shop| {
        let few = Few::open(shop)?;
        shop.lab.apply_yaml("patience", PATIENCE)?;
        shop.until("its route", |_| {
            let got = few.get("/");
            got.is_ok_and(|it| it.headers.contains_key("x-patience"))
        })?;
        few.ruled_and(
            "tcp: { maxConnections: 1 }, http: { http1MaxPendingRequests: 5 }",
            ", outlierDetection: { consecutive5xxErrors: 1, baseEjectionTime: 300s, maxEjectionPercent: 100 }",
        )?;
        let switched = few.switched()?;
        for _ in 0..3 {
            few.get("/")?.is(504)?;
        }
        drop(switched);
        shop.until("the only endpoint to be asked again", |_| {
            few.get("/").is_ok_and(|it| it.status == 200)
        })
    });
}

const TWICE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: twice, annotations: { ambit.io/hedge-after: 100ms } }
spec:
  parentRefs: [{ group: '', kind: Service, name: few, port: 80 }]
  rules:
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: { set: [{ name: x-twice, value: 'yes' }] }
    backendRefs: [{ name: few, port: 80 }]
";

#[test]
fn a_bad_answer_counts_where_what_was_asked_beside_waits_for_its_connection() {
    in_shop(|shop| {
        let few = Few::open(shop)?;
        shop.lab.apply_yaml("twice", TWICE)?;
        shop.until("its route", |_| {
            let got = few.get("/");
            got.is_ok_and(|it| it.headers.contains_key("x-twice"))
        })?;
        few.ruled("tcp: { maxConnections: 1 }, http: { http1MaxPendingRequests: 5 }")?;
        few.get("/fail")?.is(500)?;
        few.get("/")?.is(200)?;
        Ok(())
    });
}

/// What the app has seen.
#[derive(Default)]
struct Seen {
    open: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
    /// Requests for `/hold` that it has not answered.
    held: AtomicUsize,
    /// Connections from before there was a rule: they are shared with other services and stay for a minute.
    others: AtomicUsize,
}

impl Seen {
    /// None of those that the rule is for.
    fn has_none(&self) -> bool {
        self.open.load(SeqCst) <= self.others.load(SeqCst)
    }
}

/// A service with one endpoint: an app that answers `/hold` when it is let go, and `/fail` badly after a while, counts its
/// connections, and says over which it was asked.
struct Few<'s> {
    shop: &'s Shop<'s>,
    service: Service,
    seen: Arc<Seen>,
    /// How many rounds of `/hold` may end.
    release: watch::Sender<usize>,
    _app: Pod,
}

/// An open connection of the app's.
struct Open(Arc<Seen>);

impl Open {
    fn new(seen: &Arc<Seen>) -> (usize, Self) {
        seen.most
            .fetch_max(seen.open.fetch_add(1, SeqCst) + 1, SeqCst);
        (seen.all.fetch_add(1, SeqCst) + 1, Self(seen.clone()))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

impl<'s> Few<'s> {
    fn open(shop: &'s Shop<'s>) -> Result<Self> {
        let app = shop.lab.pod("shop/few").node(0);
        let app = app.service_account("web").label("app", "few").start()?;
        let ports = [("http", 80, 7171), ("grpc", 90, 7171), ("tcp", 70, 7272)];
        let service = shop.lab.service_for("shop/few", ("app", "few"), &ports)?;
        let (release, released) = watch::channel(0);
        let seen = Arc::<Seen>::default();
        let listeners = [app.listen(7171)?, app.listen(7272)?];
        let [requests, bytes] = listeners.map(|listener| {
            listener.set_nonblocking(true)?;
            let _in = shop.runtime.enter();
            tokio::net::TcpListener::from_std(listener)
        });
        shop.runtime.spawn(serve(requests?, seen.clone(), released));
        shop.runtime.spawn(swallow(bytes?));
        let few = Self {
            shop,
            service,
            seen,
            release,
            _app: app,
        };
        shop.until("it to be served", |_| {
            few.get("/").is_ok_and(|it| it.status == 200)
        })?;
        Ok(few)
    }

    /// Applies a rule and waits until it holds for every port.
    fn ruled(&self, pool: &str) -> Result<()> {
        self.ruled_and(pool, "")
    }

    /// The same with more than what is said of connections.
    fn ruled_and(&self, pool: &str, more: &str) -> Result<()> {
        let rule = format!(
            "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ namespace: shop, name: few }}
spec: {{ host: few, trafficPolicy: {{ connectionPool: {{ {pool} }}{more} }} }}
"
        );
        self.shop.lab.apply_yaml("few", &rule)?;
        let number = |name: &str| {
            let rest = pool.split_once(&format!("{name}: "))?.1;
            let end = rest.find(|it: char| !it.is_ascii_digit())?;
            rest[..end].parse::<u64>().ok()
        };
        let limits = ["maxConnections", "http1MaxPendingRequests"].map(number);
        self.shop.until("the rule to hold", |_| {
            self.gates().is_ok_and(|gates| {
                let held = ["connections", "pending"].map(|gate| gates[gate]["limit"].as_u64());
                self.get("/").is_ok_and(|it| it.status == 200) && held == limits
            })
        })?;
        let none = Some(0);
        self.shop.until("nobody to be there yet", |_| {
            self.gates().is_ok_and(|gates| {
                gates["requests"]["inside"].as_u64() == none
                    && gates["pending"]["inside"].as_u64() == none
            })
        })?;
        let open = self.seen.open.load(SeqCst);
        let counted = self.gates()?["connections"]["inside"].as_u64();
        let counted = usize::try_from(counted.context("no count")?)?;
        let others = open.saturating_sub(counted);
        self.seen.others.store(others, SeqCst);
        self.seen.most.store(open, SeqCst);
        Ok(())
    }

    /// Of the port for HTTP/1.1.
    fn gates(&self) -> Result<serde_json::Value> {
        let dump = self.shop.waypoint.pod().config_dump()?;
        let calls = dump["calls"].as_array().context("no calls")?;
        let few =
            |it: &&serde_json::Value| it["service"].as_str().is_some_and(|it| it.contains("few"));
        let few = calls.iter().find(few).context("not called yet")?;
        let backends = few["backends"].as_array().context("no backends")?;
        let http = backends.iter().find(|it| it["port"] == 80);
        Ok(http.context("no port 80")?["gates"].clone())
    }

    fn get(&self, path: &str) -> Result<Heard> {
        self.shop.runtime.block_on(async {
            let mut one = One::to(&self.shop.client, self.service.at(80)).await?;
            one.ask(self.request(path)).await
        })
    }

    fn request(&self, path: &str) -> Request<Full<Bytes>> {
        let mut request = get(path);
        let host = self.service.host.parse().unwrap();
        request.headers_mut().insert("host", host);
        request
    }

    /// So many requests at once for what is held.
    fn ask(&self, count: usize) -> JoinSet<Result<Heard>> {
        let mut asking = JoinSet::new();
        let _in = self.shop.runtime.enter();
        for _ in 0..count {
            let (client, to) = (&self.shop.client, self.service.at(80));
            let one = self.shop.runtime.block_on(One::to(client, to));
            let request = self.request("/hold");
            asking.spawn(async move { one?.ask(request).await });
        }
        asking
    }

    fn until(&self, what: &str, holds: impl Fn(&Seen) -> bool) -> Result<()> {
        let waited = self.shop.until(what, |_| holds(&self.seen));
        waited.with_context(|| {
            let [held, open] = [&self.seen.held, &self.seen.open].map(|it| it.load(SeqCst));
            format!("{held} held, {open} open; {:?}", self.gates())
        })
    }

    fn next(&self, asking: &mut JoinSet<Result<Heard>>, count: usize, status: u16) -> Result<()> {
        self.shop.runtime.block_on(async {
            for number in 0..count {
                let next = tokio::time::timeout(SOON, asking.join_next()).await;
                let heard = next.with_context(|| format!("{status}, number {number}"))?;
                heard.context("no more")???.is(status)?;
            }
            Ok(())
        })
    }

    /// Of ten two are on their way, three wait, and five are too many.
    fn breaks(&self) -> Result<()> {
        let mut on_their_way = self.ask(2);
        self.until("two to be on their way", |seen| seen.held.load(SeqCst) == 2)?;
        let mut asking = self.ask(8);
        self.next(&mut asking, 5, 503)?;
        let gates = self.gates()?;
        let inside = |gate: &str| gates[gate]["inside"].as_u64();
        let all = (inside("connections"), inside("pending"), inside("requests"));
        ensure!(all == (Some(2), Some(3), Some(5)), "{gates}");
        self.release.send_modify(|rounds| *rounds += 5);
        self.next(&mut on_their_way, 2, 200)?;
        self.next(&mut asking, 3, 200)?;
        let [most, others] = [&self.seen.most, &self.seen.others].map(|it| it.load(SeqCst));
        ensure!(most <= 2 + others, "{most} connections at a time");
        let log = self.shop.waypoint.pod().access_log();
        log.find("one of too many", |line| {
            line.field("flags") == "UO" && line.field("detail").contains("wait for a connection")
        })?;
        Ok(())
    }

    fn follows(&self) -> Result<()> {
        let before = self.seen.all.load(SeqCst);
        for _ in 0..20 {
            self.get("/")?.is(200)?;
        }
        let all = self.seen.all.load(SeqCst);
        ensure!(all == before, "{} more connections", all - before);
        Ok(())
    }

    /// One that speaks another protocol has the only connection until it ends: others wait for that.
    fn shares_with_others(&self) -> Result<()> {
        let switched = self.switched()?;
        let mut asking = self.ask(1);
        self.shop.until("one to wait", |_| {
            self.gates()
                .is_ok_and(|gates| gates["pending"]["inside"] == 1)
        })?;
        ensure!(self.seen.held.load(SeqCst) == 0, "it does not wait");
        let [open, others] = [&self.seen.open, &self.seen.others].map(|it| it.load(SeqCst));
        ensure!(open <= 1 + others, "{open} connections");
        drop(switched);
        self.until("it to have its turn", |seen| seen.held.load(SeqCst) == 1)?;
        self.release.send_modify(|rounds| *rounds += 1);
        self.next(&mut asking, 1, 200)
    }

    /// A connection that speaks another protocol until this is dropped.
    fn switched(&self) -> Result<hyper::upgrade::Upgraded> {
        let (client, to) = (&self.shop.client, self.service.at(80));
        self.shop.runtime.block_on(async {
            let mut one = One::to(client, to).await?;
            let mut request = self.request("/switch");
            let headers = request.headers_mut();
            headers.insert("connection", "upgrade".parse()?);
            headers.insert("upgrade", "websocket".parse()?);
            let answer = one.send(request).await?;
            ensure!(answer.status() == 101, "{answer:?}");
            Ok(hyper::upgrade::on(answer).await?)
        })
    }

    /// Of four two share the only connection, one waits, and one is too many.
    fn breaks_together(&self) -> Result<()> {
        let before = self.seen.all.load(SeqCst);
        let mut asking = JoinSet::new();
        self.shop.runtime.block_on(async {
            let two = Two::to(&self.shop.client, self.service.at(90)).await?;
            let mut ask = |two: &Two| {
                let mut two = two.clone();
                let request = Request::post(format!("http://{}/hold", self.service.host));
                let request = request.header("content-type", "application/grpc");
                let request = request.header("te", "trailers").body(Full::default());
                asking.spawn(async move { two.ask(request?).await });
            };
            ask(&two);
            self.asked(1).await?;
            ask(&two);
            self.asked(2).await?;
            for _ in 0..2 {
                ask(&two);
            }
            anyhow::Ok(())
        })?;
        let too_many = self.shop.runtime.block_on(async {
            let next = tokio::time::timeout(SOON, asking.join_next()).await;
            next.context("one is too many")?.context("no more")??
        })?;
        // As gRPC says it: unavailable.
        let said = |heard: &Heard| heard.headers.get("grpc-status").cloned();
        ensure!(
            said(&too_many).is_some_and(|code| code == "14"),
            "{too_many:?}"
        );
        let held = self.seen.held.load(SeqCst);
        ensure!(held == 2, "{held} on their way");
        self.release.send_modify(|rounds| *rounds += 3);
        self.next(&mut asking, 3, 200)?;
        let made = self.seen.all.load(SeqCst) - before;
        ensure!(made == 1, "{made} connections");
        Ok(())
    }

    async fn asked(&self, count: usize) -> Result<()> {
        let begun = Instant::now();
        while self.seen.held.load(SeqCst) != count {
            ensure!(begun.elapsed() < SOON, "not asked {count} times");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn are_used_once(&self) -> Result<()> {
        let before = self.seen.all.load(SeqCst);
        for _ in 0..5 {
            self.get("/")?.is(200)?;
        }
        let made = self.seen.all.load(SeqCst) - before;
        ensure!(made == 5, "{made} connections");
        self.until("none to be kept", Seen::has_none)
    }

    fn grow_old(&self) -> Result<()> {
        let number = || self.get("/").map(|heard| heard.text());
        let (first, begun) = (number()?, Instant::now());
        self.shop
            .until("another one", |_| number().is_ok_and(|it| it != first))?;
        let lasted = begun.elapsed();
        // It may have been there for a while, but none is given up at once.
        let again = (0..50).map(|_| number()).collect::<Result<Vec<_>>>()?;
        ensure!(
            again.windows(2).any(|pair| pair[0] == pair[1]),
            "each has its own after {lasted:?}: {again:?}"
        );
        Ok(())
    }

    fn are_not_kept(&self) -> Result<()> {
        self.get("/")?.is(200)?;
        self.until("the free ones to be closed", Seen::has_none)
    }

    /// A connection of bytes is ended, and the log says why.
    fn bytes_end(&self, why: &str) -> Result<()> {
        let (client, to) = (&self.shop.client, self.service.at(70));
        self.shop.until("bytes to be ended", |_| {
            let mut stream = client.connect(to).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            use std::io::{Read, Write};
            let said = stream.write_all(b"hello");
            let ended = said.and_then(|()| stream.read(&mut [0; 16]));
            match ended {
                Ok(0) => true,
                Ok(_) => false,
                Err(error) => !matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ),
            }
        })?;
        let log = self.shop.waypoint.pod().access_log();
        log.find(why, |line| line.field("detail").contains(why))?;
        Ok(())
    }
}

async fn serve(
    listener: tokio::net::TcpListener,
    seen: Arc<Seen>,
    released: watch::Receiver<usize>,
) {
    let answered = Arc::new(Mutex::new(0));
    while let Ok((tcp, _)) = listener.accept().await {
        let (number, open) = Open::new(&seen);
        let (seen, released, answered) = (seen.clone(), released.clone(), answered.clone());
        tokio::spawn(async move {
            let service = service_fn(|request: Request<hyper::body::Incoming>| {
                let (seen, released, answered) = (seen.clone(), released.clone(), answered.clone());
                async move {
                    let said = answer(request, &seen, released, &answered).await;
                    let said = said.unwrap_or_else(|| Response::new(format!("{number}")));
                    Ok::<_, Infallible>(said.map(|text| Full::new(Bytes::from(text))))
                }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let serving = builder.serve_connection_with_upgrades(TokioIo::new(tcp), service);
            let _ = serving.await;
            // One that speaks another protocol now is counted by whoever speaks it.
            drop(open);
        });
    }
}

/// None where the connection's number is all there is to say.
async fn answer(
    mut request: Request<hyper::body::Incoming>,
    seen: &Arc<Seen>,
    mut released: watch::Receiver<usize>,
    answered: &Mutex<usize>,
) -> Option<Response<String>> {
    match request.uri().path() {
        "/hold" => {
            seen.held.fetch_add(1, SeqCst);
            let mine = loop {
                let most = *released.borrow_and_update();
                {
                    let mut answered = answered.lock().unwrap();
                    if *answered < most {
                        *answered += 1;
                        break Ok(());
                    }
                }
                if let Err(error) = released.changed().await {
                    break Err(error);
                }
            };
            seen.held.fetch_sub(1, SeqCst);
            mine.ok()?;
            None
        }
        "/fail" => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let answer = Response::builder().status(500);
            Some(answer.body("not today".to_owned()).unwrap())
        }
        "/switch" => {
            let upgrading = hyper::upgrade::on(&mut request);
            let (_, open) = Open::new(seen);
            seen.all.fetch_sub(1, SeqCst);
            tokio::spawn(async move {
                let _open = open;
                let mut io = TokioIo::new(upgrading.await.unwrap());
                let mut bytes = [0; 64];
                while let Ok(1..) = io.read(&mut bytes).await {}
            });
            let answer = Response::builder().status(101);
            let answer = answer.header("connection", "upgrade");
            let answer = answer.header("upgrade", "websocket").body(String::new());
            Some(answer.unwrap())
        }
        _ => None,
    }
}

/// Answers the first bytes of each connection, and nothing more.
async fn swallow(listener: tokio::net::TcpListener) {
    while let Ok((mut tcp, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut bytes = [0; 64];
            while let Ok(1..) = tcp.read(&mut bytes).await {}
            let _ = tcp.shutdown().await;
        });
    }
}
