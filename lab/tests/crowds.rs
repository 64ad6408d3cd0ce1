//! Thousands of connections, and what must not follow from their number.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use anyhow::{Context, Result, ensure};
use lab::{Lab, Pod, wait};
use support::{
    Pair, Server, crossing,
    crowd::{Holder, many},
    ends, in_lab,
    left::{Left, back_to, down_to, quiet},
    talk_soon,
};

#[test]
fn a_killed_ztunnel_takes_only_what_it_carried_and_everybody_is_told() {
    crossing(Lab::builder(), |lab, pairs| killed_under(lab, &pairs, 500));
}

/// `cargo test -p lab --test crowds five_thousand -- --ignored`, two minutes.
#[test]
#[ignore = "holds 5,000 connections for two minutes; 500 of them in the test above"]
fn a_ztunnel_is_killed_under_five_thousand_connections() {
    crossing(Lab::builder(), |lab, pairs| {
        killed_under(lab, &pairs, 2_500)
    });
}

/// Each node's ztunnel is killed once while it carries `each` connections in either direction.
fn killed_under(lab: &Lab, pairs: &[Pair; 2], each: usize) -> Result<()> {
    let holders = [
        Holder::start(&pairs[0].server, 9000)?,
        Holder::start(&pairs[1].server, 9000)?,
    ];
    let crowds = || -> Result<Vec<_>> {
        let both = holders.iter().zip(pairs);
        both.map(|(holder, pair)| holder.crowd(&pair.client, each))
            .collect()
    };
    for victim in [0, 1] {
        let survivor = 1 - victim;
        for pair in pairs {
            talk_soon(&pair.client, pair.at())?;
        }
        let before = quiet(lab, survivor)?;
        let crowds = crowds().context("a crowd")?;
        wait::until("all of them to be carried", support::SOON, || {
            let carried = Left::of(lab, survivor)?.sockets;
            Ok(if carried == 2 * each as u64 {
                wait::Probe::Ready(())
            } else {
                wait::Probe::NotYet(format!("it carries {carried}"))
            })
        })?;
        lab.node(victim).ztunnel()?.kill()?;
        // The apps at both ends, on both nodes, without a word sent.
        for stream in crowds.into_iter().flatten() {
            ends(stream, support::SOON)?;
        }
        for holder in &holders {
            ensure!(holder.let_go()? == each);
        }
        down_to(lab, survivor, &before)?;
        lab.node(victim).ztunnel()?.start()?;
    }
    // All come back at once, and each is served.
    for pair in pairs {
        talk_soon(&pair.client, pair.at())?;
    }
    crowds().context("the crowd that returns").map(drop)
}

/// `cargo test -p lab --test crowds two_hundred_thousand -- --ignored --nocapture`, some ten minutes.
#[test]
#[ignore = "200,000 connections take ten minutes; 10,000 are in load.rs"]
#[allow(clippy::print_stdout)] // how it went is what it is run for
fn two_hundred_thousand_connections_leave_nothing_behind() {
    in_lab(
        support::with_engines(Lab::builder(), ["own", "h2"]),
        |lab| {
            let pair = Pair::start(lab)?;
            let store = Pair::between(lab, ("near", 0), ("store", 1))?;
            let second = Server::echo(&pair.server, 8081)?;
            let third = Server::echo(&store.server, 8081)?;
            // Closed connections keep their ports for a minute: each of these ways has ports of its own.
            let ways: [(&Pod, _); 6] = [
                (&pair.client, pair.server.at(8080)),
                (&pair.client, pair.server.at(8081)),
                (&store.client, pair.server.at(8080)),
                (&store.client, pair.server.at(8081)),
                (&store.client, store.server.at(8080)),
                (&store.client, store.server.at(8081)),
            ];
            let batch = || {
                ways.iter()
                    .try_for_each(|(client, to)| many(client, *to, 1_700))
            };
            batch()?;
            let before = [quiet(lab, 0)?, quiet(lab, 1)?];
            let mut memory = before.map(|left| vec![left.memory]);
            for _ in 1..20 {
                batch()?;
                for node in [0, 1] {
                    memory[node].push(back_to(lab, node, &before[node])?.memory);
                }
                println!("resident after 10,200 more: {memory:?}");
            }
            drop((second, third));
            for memory in &memory {
                // An allocator reaches its height in the first batches; what leaks grows in the last ones too.
                let grown = memory[19].saturating_sub(memory[9]);
                ensure!(
                    grown < 4 << 20,
                    "{grown} bytes in the second half: {memory:?}"
                );
            }
            Ok(())
        },
    );
}
