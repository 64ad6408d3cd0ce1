//! Peers that behave badly or come in great numbers: nobody else notices, nothing stays behind.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{io::Write, time::Duration};

use anyhow::{Result, ensure};
use lab::Lab;
use support::{
    Pair, SOON, Server,
    crowd::{fill, many},
    ends, in_lab,
    left::{down_to, quiet},
    round_trip, talk,
};

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
                let now = down_to(lab, node, &quiet[node])?;
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
            // An allocator takes and gives in steps of its own, up to two huge pages for each thread that carries traffic;
            // what a leak takes, it takes in every batch.
            ensure!(
                least <= Some(256 << 10) && most <= Some(8 << 20),
                "node {node} kept memory, batch by batch: {memory:?}"
            );
        }
        Ok(())
    });
}

/// Connections of each of the two clients in a batch. All batches together stay below the half of the ports that a
/// client has towards one server: closed connections keep theirs for a minute.
const BATCH: usize = 3_400;

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
            "timeout", "50", "openssl", "s_client", "-connect", &at, "-alpn", "h2", "-ign_eof",
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
