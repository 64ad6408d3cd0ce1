//! How a ztunnel goes: asked politely, with work to finish, without, and with a successor.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lab::{Lab, wait};
use nix::sys::signal::Signal;
use support::{Pair, SOON, ends, in_lab, round_trip, talk};

#[test]
fn sigterm_lets_open_connections_finish_until_the_deadline() {
    in_lab(
        Lab::builder().ztunnel_env("CONNECTION_TERMINATION_DEADLINE", "20s"),
        |lab| {
            let pair = Pair::start(lab)?;
            let mut open = talk(&pair.client, pair.at(), "before")?;
            let ztunnel = lab.node(0).ztunnel()?.process()?;
            let asked = Instant::now();
            ztunnel.signal(Signal::SIGTERM)?;
            round_trip(&mut open, "during the drain")?;
            ensure!(ztunnel.running(), "it left although a connection was open");
            ends(open, SOON)?;
            ensure!(
                asked.elapsed() > Duration::from_secs(19),
                "the connection was cut after {:?}",
                asked.elapsed()
            );
            let status = ztunnel.wait(SOON)?;
            ensure!(status.success(), "{status}");
            Ok(())
        },
    );
}

#[test]
fn an_idle_ztunnel_leaves_at_once_when_asked() {
    // Far longer than this test waits.
    let builder = Lab::builder().ztunnel_env("CONNECTION_TERMINATION_DEADLINE", "600s");
    in_lab(builder, |lab| {
        let pair = Pair::start(lab)?;
        drop(talk(&pair.client, pair.at(), "done")?);
        let status = lab.node(0).ztunnel()?.terminate(SOON)?;
        ensure!(status.success(), "{status}");
        Ok(())
    });
}

#[test]
fn a_second_ztunnel_takes_over_without_a_refused_connection() {
    in_lab(
        Lab::builder().ztunnel_env("CONNECTION_TERMINATION_DEADLINE", "20s"),
        |lab| {
            let pair = Pair::start(lab)?;
            let mut open = talk(&pair.client, pair.at(), "on the old one")?;
            let (stop, done) = (
                Arc::new(AtomicBool::new(false)),
                Arc::new(AtomicUsize::new(0)),
            );
            let callers = {
                let (client, at, stop, done) =
                    (pair.client.clone(), pair.at(), stop.clone(), done.clone());
                thread::spawn(move || -> Result<()> {
                    while !stop.load(Ordering::SeqCst) {
                        talk(&client, at, "a call in the middle of the change")?;
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                })
            };
            wait::until_true("calls before", SOON, || done.load(Ordering::SeqCst) > 20)?;
            let old = lab.surge_ztunnel(0)?;
            old.signal(Signal::SIGTERM)?;
            round_trip(&mut open, "the old one drains")?;
            let status = old.wait(SOON)?;
            let so_far = done.load(Ordering::SeqCst);
            wait::until_true("calls after", SOON, || {
                done.load(Ordering::SeqCst) > so_far + 20 || callers.is_finished()
            })?;
            stop.store(true, Ordering::SeqCst);
            callers.join().unwrap()?;
            ensure!(status.success(), "{status}");
            Ok(())
        },
    );
}
