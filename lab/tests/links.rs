//! Links that lose packets, are slow, are cut for a while, or lead to nobody any more.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Pod, wait};
use support::{
    SOON, Server, crossing, ends, in_lab,
    left::quiet,
    round_trip, talk,
    users::{Users, bulk},
};

/// Of a thousand packets; a link this bad is hardly used by anybody.
const LOSS: u32 = 20;

/// How long a peer counts as being there after its last word, and a little more.
const LIVELY: Duration = Duration::from_millis(500);

#[test]
fn connections_outlive_a_link_that_loses_packets_is_slow_and_is_cut_for_a_while() {
    crossing(Lab::builder(), |lab, pairs| {
        let mut open = Vec::new();
        for pair in &pairs {
            open.push(talk(&pair.client, pair.at(), "while all is well")?);
        }
        lab.slow_link(0, 200, 256 << 10)?;
        lab.lossy_link(0, LOSS)?;
        let mut bulks = Users::new();
        for pair in &pairs {
            let what = format!("bulk to {}", pair.server.name());
            bulks.add(what, pair.client.connect(pair.at())?, bulk);
        }
        for n in 0..20 {
            for stream in &mut open {
                round_trip(stream, &format!("trip {n}"))?;
            }
        }
        bulks.go_on()?;
        lab.unplug(0)?;
        for stream in &mut open {
            stream.write_all(b"said to nobody, for now")?;
        }
        // Nobody gives up, nobody is told anything, nothing gets through.
        silent_for(&open, Duration::from_secs(3))?;
        lab.replug(0)?;
        for stream in &mut open {
            let mut back = [0; 23];
            stream.read_exact(&mut back).context("after the cut")?;
            ensure!(&back == b"said to nobody, for now");
        }
        bulks.go_on().context("after the cut")?;
        lab.mend_link(0)?;
        bulks.done().map(drop)
    });
}

/// Expects that none of the streams has anything to say, or ends, in this time.
fn silent_for(streams: &[TcpStream], time: Duration) -> Result<()> {
    for stream in streams {
        stream.set_read_timeout(Some(time / streams.len() as u32))?;
        let heard = stream.peek(&mut [0]);
        ensure!(
            heard.as_ref().is_err_and(|error| matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            )),
            "{heard:?}"
        );
        stream.set_read_timeout(Some(SOON))?;
    }
    Ok(())
}

/// The other end of a pooled tunnel is gone without a word: nobody finds out before it is used.
#[test]
fn a_tunnel_to_a_ztunnel_that_died_unheard_is_made_again_and_no_connection_is_lost_by_it() {
    crossing(Lab::builder(), |lab, pairs| {
        for victim in [0, 1] {
            // The pair whose tunnel leads to the victim.
            let pair = &pairs[victim];
            drop(talk(&pair.client, pair.at(), "before")?);
            // Its kernel may say nothing for it.
            pair.server.netns().nft(MUTE)?;
            lab.node(victim).ztunnel()?.kill()?;
            let heard = Instant::now();
            wait::until_true("its sockets to be given up", SOON, || {
                no_orphans(&pair.server).is_ok_and(|none| none)
            })?;
            pair.server.netns().nft("delete table inet ambit-mute\n")?;
            lab.node(victim).ztunnel()?.start()?;
            // Within this time of its last word the peer counts as being there, and is sent the app's first bytes
            // with the request; such a request is not made again.
            wait::until_true("its word to be old", SOON, || heard.elapsed() > LIVELY)?;
            talk(&pair.client, pair.at(), "the first one after")?;
        }
        Ok(())
    });
}

/// What a pod's tunnel port would say to those it knew is dropped.
const MUTE: &str = "table inet ambit-mute {
 chain out {
  type filter hook postrouting priority 300;
  tcp sport 15008 drop
 }
}
";

/// No socket of the pod's tunnel port is left that would still say goodbye (FIN_WAIT1, LAST_ACK, CLOSING).
fn no_orphans(pod: &Pod) -> Result<bool> {
    // Not for the minutes that the kernel would try.
    pod.netns().sysctl("net/ipv4/tcp_orphan_retries", "1")?;
    let tables = pod.netns().within(|| {
        ["tcp", "tcp6"]
            .map(|table| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")))
    })?;
    let leaving = |row: &str| {
        let mut columns = row.split_ascii_whitespace().skip(1);
        let (local, state) = (columns.next(), columns.nth(1));
        local.is_some_and(|local| local.ends_with(":3AA0"))
            && matches!(state, Some("04" | "09" | "0B"))
    };
    Ok(!tables
        .iter()
        .flatten()
        .flat_map(|table| table.lines())
        .any(leaving))
}

/// Half a minute, for that is how long a tunnel's PING may go unanswered:
/// `cargo test -p lab --test links vanished -- --ignored`.
#[test]
#[ignore = "half a minute of waiting"]
fn connections_to_a_node_that_vanished_end_and_both_ends_let_go() {
    crossing(Lab::builder(), |lab, pairs| {
        let before = [quiet(lab, 0)?, quiet(lab, 1)?];
        let mut open = Vec::new();
        for pair in &pairs {
            open.push(talk(&pair.client, pair.at(), "before")?);
        }
        lab.unplug(0)?;
        for stream in open {
            ends(stream, Duration::from_secs(45))?;
        }
        for (node, before) in before.iter().enumerate() {
            support::left::down_to(lab, node, before)?;
            let records = lab.access_log(node)?.records();
            let told = records.iter().filter(|record| !record.error().is_empty());
            ensure!(told.count() >= 2, "{records:#?}");
        }
        lab.replug(0)?;
        for pair in &pairs {
            support::talk_soon(&pair.client, pair.at())?;
        }
        Ok(())
    });
}

/// A server outside of the mesh loses its power; the app waits for its answer.
#[test]
fn a_peer_outside_that_fell_silent_is_found_out_by_keepalive_and_the_app_is_told() {
    let impatient = [
        ("KEEPALIVE_TIME", "1s"),
        ("KEEPALIVE_INTERVAL", "1s"),
        ("KEEPALIVE_RETRIES", "2"),
    ];
    let builder = impatient
        .into_iter()
        .fold(Lab::builder().nodes(1), |builder, (key, value)| {
            builder.ztunnel_env(key, value)
        });
    in_lab(builder, |lab| {
        lab.namespace("shop").ambient()?;
        let client = lab.pod("shop/client").start()?;
        let listener = lab.outside().within(|| TcpListener::bind(("::", 9000)))??;
        let _outside = Server::over(listener, support::echo);
        let to = SocketAddr::new(lab.outside_addresses()[0], 9000);
        let mut kept = talk(&client, to, "before")?;
        let log = lab.access_log(0)?.from_now();
        lab.outside().nft(
            "table inet ambit-dark {\n chain in {\n  type filter hook input priority -300;\n  tcp dport 9000 drop\n }\n}\n",
        )?;
        ends(kept.try_clone()?, SOON)?;
        ensure!(
            kept.write_all(b"x").and_then(|()| kept.flush()).is_err()
                || kept.read(&mut [0]).is_err()
        );
        let record = log.find("its end", |record| {
            record.field("dst.addr") == to.to_string()
        })?;
        ensure!(record.error().contains("timed out"), "{record:?}");
        Ok(())
    });
}
