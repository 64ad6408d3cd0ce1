//! A ztunnel is replaced as its DaemonSet replaces it, while connections are made all the time: each is counted, and
//! not one may be lost.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use anyhow::ensure;
use lab::{Lab, wait};
use nix::sys::signal::Signal;
use support::{
    SOON,
    calls::{calls_more, while_calling},
    in_lab,
};

/// Times each node's ztunnel is replaced.
const ROUNDS: usize = 3;

#[test]
fn new_connections_on_every_way_survive_the_replacement_of_either_ztunnel() {
    in_lab(Lab::builder(), |lab| {
        while_calling(lab, |ways| {
            for node in (0..ROUNDS).flat_map(|_| [0, 1]) {
                let old = lab.surge_ztunnel(node)?;
                calls_more(ways)?;
                old.signal(Signal::SIGTERM)?;
                calls_more(ways)?;
                old.wait(SOON)?;
                calls_more(ways)?;
            }
            Ok(())
        })
    });
}

/// It does not ask for the node's pods before it knows who they are.
#[test]
fn a_successor_without_a_control_plane_takes_nothing_from_its_elder() {
    in_lab(Lab::builder(), |lab| {
        while_calling(lab, |ways| {
            lab.control_plane()?.kill()?;
            let old = lab.begin_surge(0)?;
            let new = lab.node(0).ztunnel()?.process()?;
            let told = |text: &str| new.log().matches(text).count();
            wait::until_true("the successor to start", SOON, || told("starting") == 2)?;
            calls_more(ways)?;
            ensure!(told("the node's pods are known") == 1, "it took the pods");
            lab.control_plane()?.start()?;
            lab.node(0).ztunnel()?.until_ready()?;
            old.signal(Signal::SIGTERM)?;
            old.wait(SOON)?;
            calls_more(ways)
        })
    });
}
