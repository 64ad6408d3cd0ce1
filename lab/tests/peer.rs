//! Ours and another implementation's ztunnel at the two ends of one connection.
//!
//! The peer's program is not part of this project, so these tests are asked for by name:
//! `PEER_ZTUNNEL=path cargo test -p lab --test peer -- --ignored`. istiod-lite, the node agent and the CNI plugin are ours at both
//! ends; each node runs one of the two ztunnels, and every test runs with the peer as server and as client of either engine of ours.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use lab::Lab;
use support::{
    Pair, between, in_lab, logs_from_now, refused, round_trip, talk, talk_soon, with_engines,
};

/// Runs a test four times: each of our engines with the peer on the server's node (0), then on the client's (1).
fn with_the_peer_at_either_end(test: impl Fn(&Lab, Pair) -> Result<()>) {
    let peer = std::env::var("PEER_ZTUNNEL").expect("PEER_ZTUNNEL names the peer's binary");
    for (engine, node) in [("h2", 0), ("h2", 1), ("own", 0), ("own", 1)] {
        // It means nothing to the peer.
        let builder = with_engines(Lab::builder(), [engine; 2]).ztunnel_binary(node, &peer);
        in_lab(builder, |lab| {
            let pair = Pair::start(lab)?;
            talk_soon(&pair.client, pair.at())?;
            test(lab, pair).with_context(|| format!("{engine}, with the peer on node {node}"))
        });
    }
}

#[test]
#[ignore = "needs another implementation's ztunnel: PEER_ZTUNNEL=path"]
fn bytes_identities_and_addresses_arrive_in_both_families() {
    with_the_peer_at_either_end(|lab, pair| {
        let logs = logs_from_now(lab)?;
        for (to, from) in [
            (pair.server.ip(), pair.client.ip()),
            (pair.server.ip6()?, pair.client.ip6()?),
        ] {
            talk(&pair.client, SocketAddr::new(to, 8080), "who am I?")?;
            let seen = pair.echo.peers().pop().context("nobody came")?;
            ensure!(seen.ip() == from, "came from {seen}, not from {from}");
        }
        for log in &logs {
            let record = log.find("the connection", between("client", "web"))?;
            ensure!(record.field("src.identity") == pair.client.identity());
            ensure!(record.field("dst.identity") == pair.server.identity());
            ensure!(record.error().is_empty(), "{record:?}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs another implementation's ztunnel: PEER_ZTUNNEL=path"]
fn each_direction_ends_by_itself_and_nothing_is_lost() {
    with_the_peer_at_either_end(|_, pair| {
        let mut stream = pair.client.connect(pair.at())?;
        let sent = vec![0x5a_u8; 8 << 20];
        let mut writer = stream.try_clone()?;
        let copy = sent.clone();
        let sending = std::thread::spawn(move || {
            writer.write_all(&copy)?;
            writer.shutdown(Shutdown::Write)
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        sending.join().expect("the sender does not panic")?;
        ensure!(received == sent, "{} bytes came back", received.len());
        Ok(())
    });
}

#[test]
#[ignore = "needs another implementation's ztunnel: PEER_ZTUNNEL=path"]
fn a_denial_at_the_destination_is_a_refusal_at_the_source() {
    with_the_peer_at_either_end(|lab, pair| {
        lab.apply_yaml(
            "deny",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: nobody\n  namespace: shop\nspec:\n  \
             action: DENY\n  rules:\n  - from:\n    - source:\n        principals: [cluster.local/ns/shop/sa/client]\n",
        )?;
        lab.until_policy("shop/nobody", true)?;
        let logs = logs_from_now(lab)?;
        refused(&pair.client, pair.at())?;
        let record = logs[0].find("the denial", |record| record.inbound())?;
        ensure!(record.error().contains("shop/nobody"), "{record:?}");
        let record = logs[1].find("the refusal", |record| record.outbound())?;
        ensure!(record.error().contains("401"), "{record:?}");
        lab.delete_yaml("deny")?;
        lab.until_policy("shop/nobody", false)?;
        talk_soon(&pair.client, pair.at())
    });
}

#[test]
#[ignore = "needs another implementation's ztunnel: PEER_ZTUNNEL=path"]
fn hundreds_of_connections_share_tunnels() {
    with_the_peer_at_either_end(|_, pair| {
        let held = (0..300)
            .map(|n| talk(&pair.client, pair.at(), &format!("number {n}")))
            .collect::<Result<Vec<_>>>()?;
        for (n, mut stream) in held.into_iter().enumerate() {
            round_trip(&mut stream, &format!("again {n}"))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs another implementation's ztunnel: PEER_ZTUNNEL=path"]
fn a_tunnel_that_one_end_left_is_made_again_by_the_other() {
    with_the_peer_at_either_end(|lab, pair| {
        for node in [0, 1] {
            let ztunnel = lab.node(node).ztunnel()?;
            // In order, with GOAWAY; then without a word.
            ztunnel.restart()?;
            talk_soon(&pair.client, pair.at())?;
            ztunnel.kill()?;
            ztunnel.start()?;
            talk_soon(&pair.client, pair.at())?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs another implementation's ztunnel: PEER_ZTUNNEL=path"]
fn streams_that_are_cut_leave_the_others_of_their_tunnel_alone() {
    with_the_peer_at_either_end(|_, pair| {
        let mut kept = talk(&pair.client, pair.at(), "kept")?;
        for n in 0..50 {
            let mut cut = talk(&pair.client, pair.at(), "cut")?;
            // What comes back is never read: closing resets.
            cut.write_all(&vec![0x5a_u8; n << 12])?;
            drop(cut);
            round_trip(&mut kept, &format!("still here after {n}"))?;
        }
        Ok(())
    });
}
