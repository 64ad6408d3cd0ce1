//! A ztunnel is replaced and every connection goes on: the successor takes them over as they are, and neither the apps nor
//! the peers notice. Each byte is checked; one that is lost, doubled or out of order fails the test.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::{Builder, Lab, Pod, Process, wait};
use nix::sys::signal::Signal;
use support::{
    SOON, Server, in_lab, round_trip,
    users::{Users, bulk, chat},
    with_engines,
};

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
