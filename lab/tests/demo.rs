//! `lab demo` as a newcomer runs it: to its end, and interrupted.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::turn;

#[test]
fn the_tour_ends_well_and_proves_every_claim() {
    let _turn = turn();
    let demo = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["demo", "--once"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _bounded = bounded(&demo);
    let ran = demo.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}");
    for line in [
        "tunnelled (mTLS)",
        "joined in process",
        "explicitly denied by: shop/kiosk-keep-out",
        "✓  no payload byte can be read on the wire",
        "✓  under STRICT plain text is refused",
        "✓  a machine joins, and its token is good once",
        "egress refused by label ambit.io/egress of namespace shop: the mesh knows nobody at",
        "rule HTTPRoute/tea/canary/",
        "40 requests, after: 40 × 200",
        "flags=DI,FI",
        "nginx's own log",
        "the issuer's: 5 × 200",
        "8 requests: 5 × 200, 3 × 429",
        "policy=\"tea/kiosk-may-only-look rule 0\"",
        "✓  every request is counted, by client and status",
        "everything is removed again",
    ] {
        assert!(said.contains(line), "{line:?} is not in\n{said}");
    }
    assert!(!said.contains('\x1b'), "colours in a pipe");
    assert_gone(&said);
}

#[test]
fn an_interrupt_at_any_moment_leaves_nothing() {
    let _turn = turn();
    // While pods are being made, and in the live view.
    for moment in ["1. Real programs", "Ambit, live for"] {
        let mut demo = Command::new(env!("CARGO_BIN_EXE_lab"))
            .arg("demo")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let bounded = bounded(&demo);
        let mut lines = BufReader::new(demo.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut said = String::new();
        for line in &mut lines {
            said += &format!("{line}\n");
            if line.contains(moment) {
                break;
            }
        }
        assert!(said.contains(moment), "{said}");
        kill(
            Pid::from_raw(i32::try_from(demo.id()).unwrap()),
            Signal::SIGINT,
        )
        .unwrap();
        said.extend(lines.map(|line| format!("{line}\n")));
        assert!(demo.wait().unwrap().success(), "{said}");
        drop(bounded);
        assert!(said.contains("everything is removed again"), "{said}");
        assert_gone(&said);
    }
}

/// Far more than a demo takes.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Kills a demo that has not come to its end by then, for as long as what it gives is kept.
fn bounded(demo: &Child) -> mpsc::Sender<()> {
    let pid = Pid::from_raw(i32::try_from(demo.id()).unwrap());
    let (ended, watched) = mpsc::channel();
    thread::spawn(move || {
        if watched.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            eprintln!("the demo did not end within {LIMIT:?} and is killed");
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    ended
}

/// The lab whose id the demo told has left neither namespace nor directory. The last leftovers are the reaper's.
fn assert_gone(said: &str) {
    let (_, rest) = said.split_once("lab l").expect("the demo names its lab");
    let id = format!("l{}", rest.split(' ').next().unwrap());
    lab::wait::until("the lab to be gone", support::SOON, || {
        let names = fs::read_dir("/var/run/netns")?
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok());
        let left: Vec<String> = names.filter(|name| name.contains(&id)).collect();
        let gone = left.is_empty() && !fs::exists(format!("/run/ambit-lab/{id}"))?;
        Ok(if gone {
            lab::wait::Probe::Ready(())
        } else {
            lab::wait::Probe::NotYet(format!("{left:?}"))
        })
    })
    .unwrap();
}
