//! Either ztunnel is killed at any moment of a hand-over while all connections are used: what it had dies with it, what the
//! other had goes on, and nobody is told a byte twice, or one that was not sent.
//!
//! The long one: `cargo test -p lab --test handover -- --ignored --nocapture kills`

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Process};
use nix::sys::signal::Signal;

use crate::{
    support::{SOON, in_lab, users::Users},
    ways::{Ways, own},
};

/// Connections used at a time, at least: a chat and a bulk on each way.
const USERS: usize = 10;
/// The last moment, in powers of two of a tenth of a millisecond: by then a hand-over is mostly over (1.6 s).
const LAST: f64 = 14.0;

#[test]
fn whoever_is_killed_in_a_hand_over_nobody_hears_other_bytes_than_were_sent() {
    kills(4);
}

#[test]
#[ignore = "minutes, and two busy cores; the one above does a few of them"]
fn whoever_is_killed_in_a_hand_over_however_often_nobody_hears_other_bytes_than_were_sent() {
    kills(40);
}

#[allow(clippy::print_stdout)] // the figures are what the test is about
fn kills(rounds: usize) {
    in_lab(own(), |lab| {
        let ways = Ways::start(lab)?;
        let mut elders = [process(lab, 0)?, process(lab, 1)?];
        let (mut users, mut cuts, mut chance) = (Users::new(), 0, Chance::new());
        for round in 0..rounds {
            while users.len() < USERS {
                ways.use_all(&mut users)?;
            }
            cuts += users.survive()?;
            // Each of the four in turn.
            let (node, elder_dies) = (round % 2, round / 2 % 2 == round % 2);
            let moment = Duration::from_secs_f64(1e-4 * (LAST * chance.next()).exp2());
            let what = format!(
                "round {round}: {} of node {node} killed {moment:?} after SIGTERM",
                if elder_dies { "elder" } else { "successor" },
            );
            let elder = &mut elders[node];
            let cut = kill_one(lab, node, elder, elder_dies, moment)
                .and_then(|()| users.survive())
                .with_context(|| what.clone())?;
            println!("{what}: {cut} cut at once, {} went on", users.len());
            cuts += cut;
            ways.are_open().context(what)?;
        }
        cuts += users.done_or_cut()?;
        println!("{rounds} kills, {cuts} connections cut");
        nothing_was_sealed_twice(lab)
    });
}

/// Of two that hand over, one dies, and the other is the node's.
fn kill_one(
    lab: &Lab,
    node: usize,
    elder: &mut Process,
    elder_dies: bool,
    moment: Duration,
) -> Result<()> {
    lab.surge_ztunnel(node)?;
    let successor = process(lab, node)?;
    elder.signal(Signal::SIGTERM)?;
    thread::park_timeout(moment);
    if elder_dies {
        elder.kill();
        *elder = successor;
        return Ok(());
    }
    successor.kill();
    // The elder has left its ports, or is about to; and it has connections that are to go to the next one.
    lab.surge_ztunnel(node)?;
    elder.wait(SOON).context("it still has connections")?;
    *elder = process(lab, node)?;
    Ok(())
}

fn process(lab: &Lab, node: usize) -> Result<Process> {
    lab.node(node).ztunnel()?.process()
}

/// Two that go on with one tunnel use numbers twice that may be used once: the peer cuts it off, and says why.
fn nothing_was_sealed_twice(lab: &Lab) -> Result<()> {
    for node in [0, 1] {
        let log = process(lab, node)?.log();
        for telling in [
            "a record was altered, repeated, lost or reordered",
            "violated HTTP/2",
            "whose a connection is cannot be known",
            "could not be gone on with",
        ] {
            let line = log.lines().find(|line| line.contains(telling));
            ensure!(line.is_none(), "node {node}: {line:?}");
        }
    }
    Ok(())
}

/// Another one each time; a failure says what it did.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self(now.map_or(1, |now| now.as_nanos() as u64))
    }

    /// From 0 to 1.
    fn next(&mut self) -> f64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut n = self.0;
        n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((n ^ (n >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
