//! A ztunnel is replaced and every connection goes on: the successor takes them over as they are, and neither the apps nor
//! the peers notice. Each byte is checked; one that is lost, doubled or out of order fails the test.
//!
//! | module | what happens |
//! |---|---|
//! | here | all goes well |
//! | `faults` | one thing goes wrong, at each of the steps |
//! | `kills` | either side is killed, at any moment, under traffic |
//! | `crowd` | a thousand connections |
//! | `judged` | policies change after it |

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod crowd;
mod faults;
mod judged;
mod kills;
#[path = "../support/mod.rs"]
mod support;
mod ways;

use anyhow::{Context, Result, ensure};
use lab::{Lab, Process, wait};
use nix::sys::signal::Signal;
use support::{Pair, SOON, in_lab, round_trip, talk, users::Users};
use ways::{Ways, own};

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
        ways.use_all(&mut users)?;
        let mut silent = ways.silent()?;
        for node in [0, 1, 0, 1] {
            users.go_on()?;
            upgrade(lab, node).with_context(|| format!("node {node}"))?;
            users.go_on()?;
        }
        silent.are_whole("still here")?;
        drop(silent);
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
        // Two who were used as often as each other have sent the same number.
        let users = sent.iter().filter(|other| *other == bytes).count();
        let ends = records
            .iter()
            .filter(|record| record.number("bytes_sent") == *bytes);
        ensure!(
            (users..=2 * users).contains(&ends.count()),
            "{bytes} bytes, sent by {users}, are not reported by as many: {records:#?}"
        );
    }
    Ok(())
}

/// Neither end needs another tunnel: the successor opens its streams on the one that it took over, or takes them from it.
#[test]
fn a_tunnel_that_was_handed_over_takes_new_connections_at_either_end() {
    in_lab(own().ztunnel_env("ZTUNNEL_WORKER_THREADS", "1"), |lab| {
        let pair = Pair::start(lab)?;
        let mut open = vec![talk(&pair.client, pair.at(), "the first")?];
        for node in [1, 0, 1] {
            upgrade(lab, node)?;
            open.push(talk(&pair.client, pair.at(), "one more")?);
            for stream in &mut open {
                round_trip(stream, "still here")?;
            }
            // The elder's were given away one by one, and this one has taken the tunnel whole.
            wait::until("all in one tunnel that was taken", SOON, || {
                let taken = lab
                    .metrics(node)?
                    .sum("ambit_handovers_total", &[("outcome", "taken")]);
                let opened = lab.metrics(1)?;
                let (tunnels, streams) = (
                    opened.sum("ambit_pool_connections", &[]),
                    opened.sum("ambit_pool_streams", &[]),
                );
                let so = (taken, tunnels, streams) == (1.0, 1.0, open.len() as f64);
                Ok(if so {
                    wait::Probe::Ready(())
                } else {
                    wait::Probe::NotYet(format!(
                        "{taken} hand-overs, {streams} streams in {tunnels} tunnels"
                    ))
                })
            })?;
        }
        Ok(())
    });
}
