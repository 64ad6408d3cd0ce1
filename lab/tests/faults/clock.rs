//! Nodes whose clocks disagree. Certificates are valid from two minutes before they are signed, and renewed at half of their life:
//! so much a node may be behind, or ahead, without anybody noticing. Beyond that connections fail at both ends, say why, and come
//! back with the clock.

use std::{
    fs::File,
    io::Write,
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use lab::{AccessLog, AccessRecord, Builder, Lab, Pod, wait};

use crate::{
    support::{Pair, SOON, Server, in_lab, refused, refused_until, round_trip, talk, talk_soon},
    until_metric,
};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;

/// The clock of a program that is started with it: the kernel's, and so many seconds more.
struct Clock {
    dir: tempfile::TempDir,
    ahead: File,
}

/// Comes before the C library: every program asks it for the time.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long *ahead;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY | O_CLOEXEC);
    void *shown = file < 0 ? MAP_FAILED : mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (shown == MAP_FAILED) abort();
    close(file);
    ahead = shown;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME && ahead) now->tv_sec += *ahead;
    return failed;
}
"#;

impl Clock {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ahead = File::create(dir.path().join("ahead"))?;
        let clock = Self { dir, ahead };
        clock.set(0)?;
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-x", "c", "-", "-o"])
            .arg(clock.library());
        let mut compiler = cc.stdin(Stdio::piped()).spawn().context("cc")?;
        let mut source = compiler.stdin.take().context("a pipe")?;
        source.write_all(LIBRARY.as_bytes())?;
        drop(source);
        ensure!(compiler.wait()?.success(), "cc failed");
        Ok(clock)
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("clock.so")
    }

    /// The ztunnel of a node goes by it.
    fn on(&self, node: usize, builder: Builder) -> Builder {
        let (library, ahead) = (self.library(), self.dir.path().join("ahead"));
        builder
            .ztunnel_env_on(node, "LD_PRELOAD", &library.display().to_string())
            .ztunnel_env_on(node, "CLOCK_AHEAD", &ahead.display().to_string())
    }

    /// Negative: it is behind. Takes effect at once.
    fn set(&self, seconds: i64) -> Result<()> {
        // In place: whoever has it mapped must never see it empty.
        self.ahead.write_all_at(&seconds.to_ne_bytes(), 0)?;
        Ok(())
    }
}

/// A pod with a certificate and tunnels of its own, and a server in it.
fn newcomer(lab: &Lab, name: &str, node: usize) -> Result<(Pod, Server)> {
    let pod = lab.pod(&format!("shop/{name}")).node(node);
    let pod = pod.service_account(name).start()?;
    let echo = Server::echo(&pod, 8080)?;
    Ok((pod, echo))
}

/// Calls until a node's ztunnel says all of these words of a connection of `client` that failed.
fn refused_in_words(
    client: &Pod,
    to: SocketAddr,
    log: &AccessLog,
    here: fn(&AccessRecord) -> bool,
    words: &[&str],
) -> Result<()> {
    let from = format!("{}:", client.ip());
    let fits = |it: &AccessRecord| {
        here(it)
            && it.field("src.addr").starts_with(&from)
            && words.iter().all(|word| it.error().contains(*word))
    };
    refused_until(client, to, log, &format!("{words:?}"), fits).map(drop)
}

#[test]
fn clocks_that_differ_by_less_than_certificates_allow_are_not_noticed() {
    let clock = Clock::new().unwrap_or_else(|error| panic!("{error:#}"));
    clock.set(-90).unwrap();
    in_lab(clock.on(1, Lab::builder()), |lab| {
        let there = Pair::start(lab)?;
        let back = Pair::between(lab, ("shopper", 0), ("store", 1))?;
        for (round, ahead) in [-90, 10 * HOUR].into_iter().enumerate() {
            clock.set(ahead)?;
            let (far, _far) = newcomer(lab, &format!("far-{round}"), 1)?;
            let (near, _near) = newcomer(lab, &format!("near-{round}"), 0)?;
            for (from, to) in [
                (&there.client, there.at()),
                (&back.client, back.at()),
                (&far, there.at()),
                (&near, back.at()),
                (&far, near.at(8080)),
                (&near, far.at(8080)),
            ] {
                talk(from, to, "by another clock")
                    .with_context(|| format!("{ahead} seconds ahead"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_node_whose_clock_is_wrong_by_more_says_why_and_so_does_the_other_end_until_it_is_right_again()
{
    let clock = Clock::new().unwrap_or_else(|error| panic!("{error:#}"));
    in_lab(clock.on(1, Lab::builder()), |lab| {
        let pair = Pair::start(lab)?;
        let store = Pair::between(lab, ("shopper", 0), ("store", 1))?;
        let mut open = talk(&pair.client, pair.at(), "before")?;

        // 1. Ten minutes behind: what is signed now is not valid there yet.
        clock.set(-10 * MINUTE)?;
        round_trip(&mut open, "what is open goes on")?;
        let (near, _near) = newcomer(lab, "near", 0)?;
        let logs = [lab.access_log(0)?.from_now(), lab.access_log(1)?.from_now()];
        refused_in_words(
            &near,
            store.at(),
            &logs[1],
            AccessRecord::inbound,
            &[
                "expired or not valid yet",
                "in future",
                "compare the clocks of both ends",
            ],
        )?;
        // Where the end of the connection overtakes what is said of it, that is all there is.
        let told = "certificate expired or not valid yet by its clock";
        wait::until("the other end to be told", SOON, || {
            refused(&near, store.at())?;
            let errors = logs[0]
                .records()
                .into_iter()
                .map(|it| it.error().to_owned());
            let errors: Vec<_> = errors.filter(|it| !it.is_empty()).collect();
            Ok(if errors.iter().any(|it| it.contains(told)) {
                wait::Probe::Ready(())
            } else {
                wait::Probe::NotYet(format!("{errors:#?}"))
            })
        })?;
        until_metric(
            lab,
            &[1],
            "ambit_tunnel_refusals_total",
            &[("reason", "tls")],
            |it| it > 0.0,
        )?;

        // A pod of that node gets no certificate that it could use.
        let (far, _far) = newcomer(lab, "far", 1)?;
        refused_in_words(
            &far,
            pair.at(),
            &logs[1],
            AccessRecord::outbound,
            &[
                "no certificate for",
                "is not valid before",
                "compare this node's clock with that of the certificate authority",
            ],
        )?;
        until_metric(lab, &[1], "ambit_certificates_failing", &[], |it| it > 0.0)?;

        // 2. A day ahead: what the node has is over, and so is what it is given.
        clock.set(25 * HOUR)?;
        refused_in_words(
            &pair.client,
            pair.at(),
            &logs[1],
            AccessRecord::outbound,
            &["has expired", "ended on", "compare this node's clock"],
        )?;
        until_metric(
            lab,
            &[1],
            "ambit_certificates",
            &[("state", "unavailable")],
            |it| it > 0.0,
        )?;
        round_trip(&mut open, "what is open still goes on")?;

        // 3. The right time: all of it comes back by itself.
        clock.set(0)?;
        for (from, to) in [
            (&pair.client, pair.at()),
            (&far, pair.at()),
            (&near, store.at()),
            (&store.client, store.at()),
        ] {
            talk_soon(from, to)?;
        }
        until_metric(
            lab,
            &[1],
            "ambit_certificates",
            &[("state", "unavailable")],
            |it| it == 0.0,
        )?;
        round_trip(&mut open, "after")
    });
}

#[test]
fn a_ztunnel_that_starts_by_a_clock_that_is_behind_is_not_ready_says_why_and_begins_when_it_is_right()
 {
    let clock = Clock::new().unwrap_or_else(|error| panic!("{error:#}"));
    in_lab(clock.on(1, Lab::builder()), |lab| {
        let pair = Pair::start(lab)?;
        let ztunnel = lab.node(1).ztunnel()?;
        ztunnel.terminate(SOON)?;
        clock.set(-10 * MINUTE)?;
        let before = ztunnel.process()?.log().len();
        ztunnel.launch()?;
        // The control plane's own certificate is as young as the lab.
        let process = ztunnel.process()?;
        wait::until("the reason in its log", SOON, || {
            let log = process.log();
            let said = log.get(before..).unwrap_or_default();
            Ok(if said.contains("certificate not valid yet") {
                wait::Probe::Ready(())
            } else {
                wait::Probe::NotYet(said.to_owned())
            })
        })?;
        ensure!(!ztunnel.is_ready());
        clock.set(0)?;
        ztunnel.until_ready()?;
        talk_soon(&pair.client, pair.at())
    });
}
