//! Peers that behave badly or come in great numbers: nobody else notices, nothing stays behind.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    io::{ErrorKind, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Pod, wait};
use support::{Pair, SOON, Server, ends, in_lab, round_trip, talk};

#[test]
fn a_peer_that_stops_reading_holds_only_its_own_stream() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        // Accepts and never reads; the streams are kept so that they stay open.
        let kept = std::sync::Mutex::new(Vec::new());
        let _deaf = Server::start(&pair.server, 9000, move |stream| {
            kept.lock().unwrap().extend(stream.try_clone())
        })?;
        let before = resident(lab)?;
        let mut stalled = Vec::new();
        for _ in 0..8 {
            let mut stream = pair.client.connect(pair.server.at(9000))?;
            let held = fill(&mut stream)?;
            ensure!(
                held < 64 << 20,
                "{held} bytes went nowhere and were accepted"
            );
            stalled.push(stream);
        }
        // All of them share one tunnel connection with these.
        for _ in 0..20 {
            talk(&pair.client, pair.at(), &"not held back ".repeat(1_000))?;
        }
        let grown = resident(lab)?.saturating_sub(before);
        ensure!(
            grown < 256 << 20,
            "eight stalled streams cost {grown} bytes of the two ztunnels' memory"
        );
        Ok(())
    });
}

/// Writes until nothing more is taken for a second.
fn fill(stream: &mut TcpStream) -> Result<usize> {
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    let block = [0x55; 64 * 1024];
    let mut written = 0;
    loop {
        match stream.write(&block) {
            Ok(n) => written += n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(written);
            }
            Err(error) => return Err(error).context("a stalled stream must stay open"),
        }
        if written > 1 << 30 {
            return Ok(written);
        }
    }
}

fn resident(lab: &Lab) -> Result<usize> {
    let of = |node: usize| {
        Ok::<_, anyhow::Error>(lab.metrics(node)?.sum("process_resident_memory_bytes", &[]) as usize)
    };
    Ok(of(0)? + of(1)?)
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab.pod("shop/near").node(0).start()?;
        let batch = || {
            many(&pair.client, pair.at(), BATCH)?;
            many(&near, pair.at(), BATCH)
        };
        // What stays on purpose (a pooled tunnel connection, allocators' arenas) is there after the first batch.
        batch()?;
        let quiet = [quiet(lab, 0)?, quiet(lab, 1)?];
        let mut memory = quiet.map(|left| vec![left.memory]);
        for _ in 0..3 {
            batch()?;
            for node in [0, 1] {
                let now = back_to(lab, node, &quiet[node])?;
                memory[node].push(now.memory);
            }
        }
        for (node, memory) in memory.iter().enumerate() {
            let grown = || {
                memory
                    .windows(2)
                    .map(|pair| pair[1].saturating_sub(pair[0]))
            };
            let (least, most) = (grown().min(), grown().max());
            // An allocator takes and gives in steps of its own; what a leak takes, it takes in every batch.
            ensure!(
                least <= Some(256 << 10) && most <= Some(4 << 20),
                "node {node} kept memory, batch by batch: {memory:?}"
            );
        }
        Ok(())
    });
}

/// Connections of each of the two clients in a batch. All batches together stay below the half of the ports that a
/// client has towards one server: closed connections keep theirs for a minute.
const BATCH: usize = 3_400;

/// What connections might leave in a ztunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    fds: u64,
    tasks: u64,
    sockets: u64,
    memory: u64,
}

impl Left {
    fn of(lab: &Lab, node: usize) -> Result<Self> {
        let metrics = lab.metrics(node)?;
        let value = |name: &str| -> Result<u64> {
            let found = metrics.select(name, &[]).count();
            ensure!(found > 0, "no metric {name}");
            Ok(metrics.sum(name, &[]) as u64)
        };
        Ok(Self {
            fds: value("process_open_fds")?,
            tasks: value("tokio_num_alive_tasks")?,
            sockets: value("istio_tcp_sockets_open")?,
            memory: value("process_resident_memory_bytes")?,
        })
    }

    fn open(&self) -> [u64; 3] {
        [self.fds, self.tasks, self.sockets]
    }
}

/// The state once no application socket is open and nothing changes any more: the same in ten looks.
fn quiet(lab: &Lab, node: usize) -> Result<Left> {
    let (mut last, mut same) = (None, 0);
    wait::until(&format!("node {node} to come to rest"), SOON, || {
        let now = Left::of(lab, node)?;
        let open = Some(now.open());
        same = if open == last { same + 1 } else { 0 };
        last = open;
        Ok(if now.sockets == 0 && same == 9 {
            wait::Probe::Ready(now)
        } else {
            wait::Probe::NotYet(format!("{now:?}"))
        })
    })
}

/// The state once everything but the memory is as it was, exactly.
fn back_to(lab: &Lab, node: usize, before: &Left) -> Result<Left> {
    wait::until(&format!("node {node} to be as before"), SOON, || {
        let now = Left::of(lab, node)?;
        Ok(if now.open() == before.open() {
            wait::Probe::Ready(now)
        } else {
            wait::Probe::NotYet(format!("before {before:?}, now {now:?}"))
        })
    })
}

/// Opens, uses and closes connections, eight at a time.
fn many(client: &Pod, to: SocketAddr, connections: usize) -> Result<()> {
    thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                scope.spawn(move || {
                    let mine = connections / 8 + usize::from(caller < connections % 8);
                    client
                        .netns()
                        .within(|| (0..mine).try_for_each(|_| once(to)))?
                })
            })
            .collect();
        callers
            .into_iter()
            .try_for_each(|caller| caller.join().unwrap())
    })
}

fn once(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(SOON))?;
    round_trip(&mut stream, "short and sweet")
}

#[test]
fn noise_on_the_tunnel_port_is_refused_counted_and_disturbs_nobody() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        lab.namespace("old").plain()?;
        let stranger = lab.pod("old/stranger").node(1).start()?;
        let mut open = talk(&pair.client, pair.at(), "before")?;
        let log = lab.access_log(0)?.from_now();
        let tunnel = pair.server.at(15008);
        // Silence, garbage, and half a handshake, many of each.
        let silent: Vec<_> = (0..50)
            .map(|_| stranger.connect(tunnel))
            .collect::<Result<_>>()?;
        for noise in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
            &[0; 512],
        ] {
            for _ in 0..20 {
                let mut stream = stranger.connect(tunnel)?;
                stream.write_all(noise)?;
                if noise[0] != 0x16 {
                    ends(stream, SOON)?;
                }
            }
        }
        log.find("the refusals", |record| {
            record
                .field("src.addr")
                .starts_with(&stranger.ip().to_string())
                && !record.error().is_empty()
        })?;
        round_trip(&mut open, "still here")?;
        talk(&pair.client, pair.at(), "and new ones too")?;
        // A client without a certificate gets no further than the handshake.
        let at = tunnel.to_string();
        let tls = stranger.exec([
            "timeout", "20", "openssl", "s_client", "-connect", &at, "-alpn", "h2", "-ign_eof",
        ])?;
        ensure!(
            format!("{}{}", tls.stdout, tls.stderr).contains("certificate required"),
            "{tls:?}"
        );
        log.find("the missing certificate", |record| {
            record.error().to_lowercase().contains("certificate")
        })?;
        // Slow ones are not waited for forever: the handshake has a deadline.
        for stream in silent {
            ends(stream, Duration::from_secs(60))?;
        }
        Ok(())
    });
}
