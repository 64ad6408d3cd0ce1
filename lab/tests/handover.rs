//! A ztunnel is replaced and every connection goes on: the successor takes them over as they are, and neither the apps nor
//! the peers notice. Each byte is checked; one that is lost, doubled or out of order fails the test.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow, ensure};
use lab::{Builder, Lab, Pod, Process, wait};
use nix::sys::signal::Signal;
use support::{SOON, Server, in_lab, round_trip, with_engines};

/// Far longer than any test: who leaves earlier has handed everything over.
const FOREVER: &str = "600s";

fn own() -> Builder {
    let builder = with_engines(Lab::builder(), ["own", "own"]);
    builder.ztunnel_env("CONNECTION_TERMINATION_DEADLINE", FOREVER)
}

/// Pods on every way through the mesh.
struct Ways {
    _servers: Vec<Server>,
    all: Vec<(&'static str, Pod, SocketAddr)>,
}

impl Ways {
    fn start(lab: &Lab) -> Result<Self> {
        lab.namespace("shop").ambient()?;
        lab.namespace("out").plain()?;
        let server = lab.pod("shop/web").node(0).service_account("web").start()?;
        let near = lab.pod("shop/near").node(0).start()?;
        let far = lab.pod("shop/far").node(1).start()?;
        let outsider = lab.pod("out/side").node(1).start()?;
        let servers = vec![Server::echo(&server, 8080)?, Server::echo(&outsider, 8080)?];
        let over_ipv6 = SocketAddr::new(server.ip6()?, 8080);
        let all = vec![
            ("through a tunnel", far.clone(), server.at(8080)),
            ("through a tunnel, IPv6", far, over_ipv6),
            ("within the node", near.clone(), server.at(8080)),
            ("in plain text", outsider.clone(), server.at(8080)),
            ("out of the mesh", near, outsider.at(8080)),
        ];
        Ok(Self {
            _servers: servers,
            all,
        })
    }
}

/// Connections that are used all the time, until [`Users::done`].
struct Users {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicUsize>,
    all: Vec<JoinHandle<Result<u64>>>,
}

impl Users {
    fn new() -> Self {
        Self {
            stop: Arc::default(),
            turns: Arc::default(),
            all: Vec::new(),
        }
    }

    fn add(
        &mut self,
        what: String,
        stream: TcpStream,
        work: impl FnOnce(TcpStream, &AtomicBool, &AtomicUsize) -> Result<u64> + Send + 'static,
    ) {
        let (stop, turns) = (self.stop.clone(), self.turns.clone());
        self.all.push(thread::spawn(move || {
            work(stream, &stop, &turns).with_context(|| what)
        }));
    }

    /// Waits until all have been at work some more times.
    fn go_on(&self) -> Result<()> {
        let before = self.turns.load(SeqCst);
        let enough = before + 20 * self.all.len();
        wait::until_true("the connections to be used", SOON, || {
            self.turns.load(SeqCst) > enough || self.all.iter().any(JoinHandle::is_finished)
        })?;
        let failed = self.all.iter().filter(|user| user.is_finished()).count();
        ensure!(
            failed == 0 || self.stop.load(SeqCst),
            "{failed} connections ended"
        );
        Ok(())
    }

    /// Ends all in order and says how many bytes each client sent.
    fn done(self) -> Result<Vec<u64>> {
        self.stop.store(true, SeqCst);
        let joined = self
            .all
            .into_iter()
            .map(|user| user.join().map_err(|_| anyhow!("a thread panicked"))?);
        let outcomes: Vec<Result<u64>> = joined.collect();
        let lost: Vec<String> = outcomes
            .iter()
            .filter_map(|outcome| outcome.as_ref().err().map(|why| format!("{why:#}")))
            .collect();
        ensure!(
            lost.is_empty(),
            "{} connections lost: {lost:#?}",
            lost.len()
        );
        outcomes.into_iter().collect()
    }
}

/// One round trip after the other.
fn chat(mut stream: TcpStream, stop: &AtomicBool, turns: &AtomicUsize) -> Result<u64> {
    stream.set_read_timeout(Some(SOON))?;
    let mut sent = 0;
    while !stop.load(SeqCst) {
        let text = format!("message after {sent} bytes");
        round_trip(&mut stream, &text)?;
        sent += text.len() as u64;
        turns.fetch_add(1, SeqCst);
    }
    stream.shutdown(Shutdown::Write)?;
    ensure!(stream.read(&mut [0])? == 0, "a surplus");
    Ok(sent)
}

/// As fast as it goes in both directions; each byte is known by its place.
fn bulk(stream: TcpStream, stop: &AtomicBool, turns: &AtomicUsize) -> Result<u64> {
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    let at = |place: u64| (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while !stop.load(SeqCst) {
                let piece: Vec<u8> = (sent..sent + 8192).map(at).collect();
                (&stream)
                    .write_all(&piece)
                    .with_context(|| format!("sending after {sent}"))?;
                sent += 8192;
            }
            stream.shutdown(Shutdown::Write)?;
            Ok(sent)
        });
        let (mut received, mut piece) = (0, [0; 16 << 10]);
        let outcome = loop {
            match (&stream).read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    let wrong = (received..)
                        .zip(&piece[..n])
                        .find(|(place, byte)| at(*place) != **byte);
                    if let Some((place, _)) = wrong {
                        break Err(anyhow!("byte {place} is another"));
                    }
                    received += n as u64;
                    turns.fetch_add(1, SeqCst);
                }
                Err(error) => {
                    break Err(anyhow!(error).context(format!("receiving after {received}")));
                }
            }
        };
        if outcome.is_err() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let sent = sending.join().unwrap();
        outcome?;
        let sent = sent?;
        ensure!(received == sent, "{received} of {sent} bytes");
        Ok(sent)
    })
}

/// Replaces a node's ztunnel; the old one must leave by itself, with nothing left to carry.
fn upgrade(lab: &Lab, node: usize) -> Result<()> {
    let old = lab.surge_ztunnel(node)?;
    leaves(&old)
}

fn leaves(old: &Process) -> Result<()> {
    old.signal(Signal::SIGTERM)?;
    let status = old.wait(SOON).context("it still has connections")?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[test]
fn no_connection_is_cut_by_an_upgrade_of_either_end_and_each_is_reported_once_and_whole() {
    in_lab(own(), |lab| {
        let ways = Ways::start(lab)?;
        let logs = support::logs_from_now(lab)?;
        let mut users = Users::new();
        let mut silent = Vec::new();
        for (name, client, to) in &ways.all {
            users.add(format!("{name}, chat"), client.connect(*to)?, chat);
            users.add(format!("{name}, bulk"), client.connect(*to)?, bulk);
            let mut idle = client.connect(*to)?;
            round_trip(&mut idle, "and then nothing for a long time")?;
            silent.push((name, idle));
        }
        for node in [0, 1, 0, 1] {
            users.go_on()?;
            upgrade(lab, node).with_context(|| format!("node {node}"))?;
            users.go_on()?;
        }
        for (name, mut idle) in silent {
            round_trip(&mut idle, "still here").with_context(|| format!("{name}, silent"))?;
        }
        let sent = users.done()?;
        all_told(&logs, &sent)
    });
}

/// Each connection has one record at each of its ends, without an error, and with all its bytes.
fn all_told(logs: &[lab::AccessLog], sent: &[u64]) -> Result<()> {
    // Two users and a silent one on each way; in plain text from or to the outside there is one end only.
    let ends = [2, 2, 2, 1, 1].map(|ends| ends * 3).iter().sum::<usize>();
    let told = |log: &lab::AccessLog| {
        let records = log.records();
        let ended = records
            .into_iter()
            .filter(|record| record.message.starts_with("connection"));
        ended.collect::<Vec<_>>()
    };
    wait::until_true("all reports", SOON, || {
        logs.iter().map(|log| told(log).len()).sum::<usize>() >= ends
    })?;
    let records: Vec<_> = logs.iter().flat_map(told).collect();
    ensure!(
        records.len() == ends,
        "{} reports: {records:#?}",
        records.len()
    );
    for record in &records {
        ensure!(record.error().is_empty(), "{record:?}");
        let (there, back) = (record.number("bytes_sent"), record.number("bytes_recv"));
        ensure!(there == back && there > 0, "{record:?}");
    }
    for bytes in sent {
        let ends = records
            .iter()
            .filter(|record| record.number("bytes_sent") == *bytes);
        ensure!(
            (1..=2).contains(&ends.count()),
            "{bytes} bytes are reported by nobody: {records:#?}"
        );
    }
    Ok(())
}
