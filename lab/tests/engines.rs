//! What carries a tunnel is each node's own affair: either engine at either end, and the connections between them are
//! the same. A choice of what the other files show in full with the engine that is the default.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
};

use anyhow::{Context, Result, ensure};
use lab::Lab;
use nix::sys::signal::Signal;
use support::{
    Pair, SOON, between,
    calls::{calls_more, while_calling},
    ends, in_lab, logs_from_now, refused, round_trip, talk, talk_soon, with_engines,
};

/// On the server's node (0) and on the client's.
const PAIRS: [[&str; 2]; 3] = [["h2", "h2"], ["own", "h2"], ["h2", "own"]];

#[test]
fn a_connection_is_the_same_whatever_carries_it() {
    for engines in PAIRS {
        in_lab(with_engines(Lab::builder(), engines), |lab| {
            let pair = Pair::start(lab)?;
            for (node, engine) in engines.iter().enumerate() {
                let dump = lab.node(node).config_dump()?;
                ensure!(dump["config"]["engine"] == *engine, "{}", dump["config"]);
            }
            encrypted_reported_and_from_the_clients_address(lab, &pair)
                .and_then(|()| whole_in_both_directions(&pair))
                .and_then(|()| many_at_once(&pair))
                .and_then(|()| denied_and_allowed_again(lab, &pair))
                .with_context(|| format!("{engines:?}"))
        });
    }
}

fn encrypted_reported_and_from_the_clients_address(lab: &Lab, pair: &Pair) -> Result<()> {
    let logs = logs_from_now(lab)?;
    let capture = lab.capture(0)?;
    for (to, from) in [
        (pair.server.ip(), pair.client.ip()),
        (pair.server.ip6()?, pair.client.ip6()?),
    ] {
        drop(talk(&pair.client, SocketAddr::new(to, 8080), "who-am-I?")?);
        let seen = pair.echo.peers().pop().context("nobody came")?;
        ensure!(seen.ip() == from, "came from {seen}, not from {from}");
    }
    let seen = capture.stop()?;
    ensure!(seen.count("tcp port 15008")? > 0 && !seen.shows("who-am-I?"));
    for log in &logs {
        let record = log.find("the connection", between("client", "web"))?;
        ensure!(record.field("src.identity") == pair.client.identity());
        ensure!(record.field("dst.identity") == pair.server.identity());
        let bytes = (record.number("bytes_sent"), record.number("bytes_recv"));
        ensure!(bytes == (9, 9) && record.error().is_empty(), "{record:?}");
    }
    Ok(())
}

/// The client ends its direction before the answer has come, and all of it comes.
fn whole_in_both_directions(pair: &Pair) -> Result<()> {
    let sent: Vec<u8> = (0..16 << 20)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut stream = pair.client.connect(pair.at())?;
    let (mut writer, copy) = (stream.try_clone()?, sent.clone());
    let sending = thread::spawn(move || {
        writer.write_all(&copy)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    sending.join().unwrap()?;
    ensure!(back == sent, "{} of {} bytes", back.len(), sent.len());
    Ok(())
}

/// More than one tunnel carries.
fn many_at_once(pair: &Pair) -> Result<()> {
    let held = (0..150)
        .map(|n| talk(&pair.client, pair.at(), &format!("number {n}")))
        .collect::<Result<Vec<TcpStream>>>()?;
    for (n, mut stream) in held.into_iter().enumerate() {
        round_trip(&mut stream, &format!("again {n}"))?;
    }
    Ok(())
}

fn denied_and_allowed_again(lab: &Lab, pair: &Pair) -> Result<()> {
    let open = talk(&pair.client, pair.at(), "before the denial")?;
    lab.apply_yaml(
        "deny",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: nobody\n  namespace: shop\nspec:\n  \
         action: DENY\n  rules:\n  - from:\n    - source:\n        principals: [cluster.local/ns/shop/sa/client]\n",
    )?;
    ends(open, SOON)?;
    let logs = logs_from_now(lab)?;
    refused(&pair.client, pair.at())?;
    // The one that was cut had carried something.
    for (log, reason) in [(&logs[0], "shop/nobody"), (&logs[1], "401")] {
        let record = log.find("the denial", |record| record.number("bytes_sent") == 0)?;
        ensure!(record.error().contains(reason), "{record:?}");
    }
    lab.delete_yaml("deny")?;
    lab.until_policy("shop/nobody", false)?;
    talk_soon(&pair.client, pair.at())
}

/// As when an operator changes his mind, node by node: there is always a tunnel between the two.
#[test]
fn a_ztunnel_of_the_other_engine_takes_over_without_a_lost_connection() {
    in_lab(with_engines(Lab::builder(), ["h2", "own"]), |lab| {
        while_calling(lab, |ways| {
            for (node, engine) in [(0, "own"), (1, "h2")] {
                let mut open = talk(&ways[0].client, ways[0].to, "before")?;
                lab.node(node).set_ztunnel_env("AMBIT_ENGINE", engine)?;
                let old = lab.surge_ztunnel(node)?;
                let dump = lab.node(node).config_dump()?;
                ensure!(dump["config"]["engine"] == engine, "{}", dump["config"]);
                calls_more(ways)?;
                old.signal(Signal::SIGTERM)?;
                round_trip(&mut open, "while the old one drains")?;
                drop(open);
                old.wait(SOON)?;
                calls_more(ways)?;
            }
            Ok(())
        })
    });
}
