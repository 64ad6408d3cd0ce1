//! A steady stream of requests whose failures are counted one by one; nothing is ever tried again.
//!
//! 1. `--fresh` a second on connections of their own, whether or not earlier ones have been answered
//! 2. `--kept` connections with ten requests a second each; one that ends is a failure, and is opened again
//! 3. from the first answer on, once a second, the totals so far as a line of JSON: the reader knows that it runs
//! 4. a line on standard input, or its end: no new requests; those under way may finish; the totals

use std::{cell::RefCell, io::ErrorKind, rc::Rc, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Args;
use e2e::load::{Counts, Tally};
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::{JoinSet, LocalSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

#[derive(Args)]
pub(crate) struct Load {
    /// http://host:port/path
    url: Uri,
    /// Requests a second, each on a new connection.
    #[arg(long, default_value_t = 20)]
    fresh: u32,
    /// Connections that are kept, ten requests a second on each.
    #[arg(long, default_value_t = 5)]
    kept: u32,
    /// Milliseconds after which a request has failed.
    #[arg(long, default_value_t = 10_000)]
    patience: u64,
}

/// What one request met: who answered, or what happened instead.
type Outcome = Result<String, String>;

struct Target {
    authority: String,
    url: Uri,
    patience: Duration,
}

#[derive(Default)]
struct Ledger {
    counts: Counts,
    last: Option<Instant>,
}

impl Ledger {
    fn enter(&mut self, began: Instant, outcome: Outcome) {
        let now = Instant::now();
        match outcome {
            Ok(pod) => {
                self.counts.answered += 1;
                *self.counts.by.entry(pod).or_default() += 1;
                self.counts.slowest_ms = self.counts.slowest_ms.max(millis(now - began));
                let gap = self.last.map_or(Duration::ZERO, |last| now - last);
                self.counts.gap_ms = self.counts.gap_ms.max(millis(gap));
                self.last = Some(now);
            }
            Err(what) => *self.counts.failed.entry(what).or_default() += 1,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Load {
    #[allow(clippy::print_stdout)] // the totals are this program's product
    pub(crate) async fn run(self) -> Result<()> {
        let host = self.url.host().context("the URL names no host")?;
        let target = Rc::new(Target {
            authority: format!("{host}:{}", self.url.port_u16().unwrap_or(80)),
            url: self.url.clone(),
            patience: Duration::from_millis(self.patience),
        });
        let (fresh, kept) = (
            Rc::new(RefCell::new(Ledger::default())),
            Rc::new(RefCell::new(Ledger::default())),
        );
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let work = LocalSet::new();
        let mut running = JoinSet::new();
        if self.fresh > 0 {
            running.spawn_local_on(
                each_its_own(target.clone(), self.fresh, fresh.clone(), stopped.clone()),
                &work,
            );
        }
        for _ in 0..self.kept {
            running.spawn_local_on(keep(target.clone(), kept.clone(), stopped.clone()), &work);
        }
        let tally = || Tally {
            fresh: fresh.borrow().counts.clone(),
            kept: kept.borrow().counts.clone(),
        };
        work.run_until(async {
            let end = crate::told_to_end();
            tokio::pin!(end);
            let mut pace = interval(Duration::from_millis(100));
            let mut told = None;
            loop {
                tokio::select! {
                    () = &mut end => break,
                    _ = pace.tick() => {
                        let seen = tally();
                        let due = told.is_none_or(|told: Instant| told.elapsed() > Duration::from_secs(1));
                        if due && seen.answers() > 0 {
                            println!("{}", json(&seen));
                            told = Some(Instant::now());
                        }
                    }
                }
            }
            let _ = stop.send(true);
            while running.join_next().await.is_some() {}
        })
        .await;
        println!("{}", json(&tally()));
        Ok(())
    }
}

fn json(tally: &Tally) -> String {
    serde_json::to_string(tally).unwrap_or_default()
}

async fn each_its_own(
    target: Rc<Target>,
    rate: u32,
    ledger: Rc<RefCell<Ledger>>,
    mut stop: tokio::sync::watch::Receiver<bool>,
) {
    let mut pace = interval(Duration::from_secs(1) / rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            _ = pace.tick() => {
                let (target, ledger) = (target.clone(), ledger.clone());
                open.spawn_local(async move {
                    let began = Instant::now();
                    let outcome = patiently(&target, async {
                        let mut connection = connect(&target).await?;
                        ask(&target, &mut connection, true).await
                    });
                    let outcome = outcome.await;
                    ledger.borrow_mut().enter(began, outcome);
                });
            }
            _ = stop.changed() => break,
        }
    }
    while open.join_next().await.is_some() {}
}

async fn keep(
    target: Rc<Target>,
    ledger: Rc<RefCell<Ledger>>,
    stop: tokio::sync::watch::Receiver<bool>,
) {
    let mut pace = interval(Duration::from_millis(100));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection: Option<SendRequest<Empty<Bytes>>> = None;
    while !*stop.borrow() {
        pace.tick().await;
        let began = Instant::now();
        let outcome = patiently(&target, async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => connect(&target).await?,
            };
            let pod = ask(&target, &mut open, false).await?;
            // A server that closes after an answer says so in the answer; that is no failure.
            connection = open.ready().await.is_ok().then_some(open);
            Ok(pod)
        })
        .await;
        ledger.borrow_mut().enter(began, outcome);
    }
}

async fn patiently(target: &Target, work: impl Future<Output = Outcome>) -> Outcome {
    timeout(target.patience, work)
        .await
        .unwrap_or_else(|_| Err("timeout".into()))
}

async fn connect(target: &Target) -> Result<SendRequest<Empty<Bytes>>, String> {
    let stream = TcpStream::connect(&target.authority)
        .await
        .map_err(|error| name(&error))?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

async fn ask(target: &Target, connection: &mut SendRequest<Empty<Bytes>>, last: bool) -> Outcome {
    let request = Request::get(target.url.path())
        .header("host", &target.authority)
        .header("connection", if last { "close" } else { "keep-alive" })
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let response = connection
        .send_request(request)
        .await
        .map_err(|error| cause(&error))?;
    if response.status() != 200 {
        return Err(format!("status {}", response.status().as_u16()));
    }
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| cause(&error))?
        .to_bytes();
    let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    Ok(said["pod"].as_str().unwrap_or("?").to_owned())
}

fn cause(error: &hyper::Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return name(io);
        }
        source = inner.source();
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        "closed".into()
    } else {
        error.to_string()
    }
}

fn name(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".into(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset".into(),
        ErrorKind::TimedOut => "timeout".into(),
        _ => error.to_string(),
    }
}
