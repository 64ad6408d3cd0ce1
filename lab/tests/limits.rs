//! What a ztunnel does when what it lives on runs out: descriptors, memory. (A reader of its log: F5 in `defects.rs`.)

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Process, wait};
use support::{
    Pair, SOON, crossing,
    crowd::{Holder, fill},
    refused, round_trip, talk,
};

/// Connections that want to leave while there is room for a third of them.
const MANY: usize = 60;

#[test]
fn without_descriptors_connections_wait_or_learn_why_and_open_ones_go_on() {
    crossing(Lab::builder(), |lab, pairs| {
        for node in [0, 1] {
            let (arriving, leaving) = (&pairs[node], &pairs[1 - node]);
            let mut open = [
                talk(&arriving.client, arriving.at(), "before")?,
                talk(&leaving.client, leaving.at(), "before")?,
            ];
            let ztunnel = lab.node(node).ztunnel()?.process()?;
            let log = lab.access_log(node)?.from_now();
            let told_before = shortages(&ztunnel);
            allow_descriptors(&ztunnel, descriptors(&ztunnel)? + MANY / 3)?;
            thread::scope(|scope| -> Result<()> {
                let calls: Vec<_> = (0..MANY)
                    .map(|_| scope.spawn(|| talk(&leaving.client, leaving.at(), "waiting")))
                    .collect();
                wait::until_true("it to run out", SOON, || shortages(&ztunnel) > told_before)?;
                for stream in &mut open {
                    round_trip(stream, "meanwhile")?;
                }
                // The tunnel is there, but nothing to reach the app with.
                refused(&arriving.client, arriving.at())?;
                // Connections of the round before may still be ending.
                log.find("the refusal", |record| {
                    record.inbound() && record.error().contains("Too many open files")
                })?;
                allow_descriptors(&ztunnel, 20_000)?;
                // Whoever waited is served: nobody was lost.
                for call in calls {
                    drop(call.join().unwrap()?);
                }
                Ok(())
            })?;
            talk(&arriving.client, arriving.at(), "as if nothing had been")?;
        }
        Ok(())
    });
}

/// How often it has said that it cannot take connections.
fn shortages(ztunnel: &Process) -> usize {
    ztunnel.log().matches("cannot accept connections").count()
}

fn descriptors(process: &Process) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", process.pid()))?.count())
}

/// From now on, whatever it has open.
fn allow_descriptors(process: &Process, most: usize) -> Result<()> {
    let mut command = Command::new("prlimit");
    command.arg(format!("--pid={}", process.pid()));
    command.arg(format!("--nofile={most}:"));
    let ended = command.status().context("prlimit, of util-linux")?;
    ensure!(ended.success(), "{command:?}: {ended}");
    Ok(())
}

/// Memory that two ztunnels (debug builds) with some pods are allowed, in bytes.
const ALLOWED: u64 = 512 << 20;

/// `cargo test -p lab --test limits memory -- --ignored`: needs a kernel and a place in it where groups of processes
/// can be limited, which not every container is.
#[test]
#[ignore = "needs the right to make a memory control group, which a container may lack"]
fn hundreds_of_streams_that_nobody_reads_do_not_cost_a_ztunnel_its_memory() {
    for node in [0, 1] {
        crossing(Lab::builder(), |lab, pairs| {
            let group = Group::limited(&format!("ambit-t-{}", lab.id()), ALLOWED)?;
            group.take(&lab.node(node).ztunnel()?.process()?)?;
            let mut kept = Vec::new();
            for pair in &pairs {
                talk(&pair.client, pair.at(), "before")?;
                kept.push(unread(pair, 200)?);
            }
            for pair in &pairs {
                for _ in 0..20 {
                    talk(&pair.client, pair.at(), "and yet")?;
                }
            }
            ensure!(lab.node(node).ztunnel()?.running(), "it was killed");
            group.no_kill()?;
            // A group with nobody in it can be removed.
            lab.node(node).ztunnel()?.kill()
        });
    }
}

/// Streams of one pair whose server reads nothing, each as full as it gets.
fn unread(pair: &Pair, count: usize) -> Result<(Holder, Vec<TcpStream>)> {
    let holder = Holder::start(&pair.server, 9000)?;
    let mut streams = holder.crowd(&pair.client, count)?;
    thread::scope(|scope| {
        let all: Vec<_> = streams
            .iter_mut()
            .map(|stream| scope.spawn(|| fill(stream)))
            .collect();
        all.into_iter()
            .try_for_each(|one| one.join().unwrap().map(drop))
    })?;
    Ok((holder, streams))
}

/// A control group with a limit of memory, of whichever version this machine has; gone when dropped.
struct Group {
    dir: PathBuf,
    unified: bool,
}

impl Group {
    fn limited(name: &str, bytes: u64) -> Result<Self> {
        let all = Path::new("/sys/fs/cgroup");
        let unified = !all.join("memory").exists();
        // Below the group that we are in, where processes may stand beside groups; that is so in version 1 only.
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let ours = groups.lines().find_map(|line| line.split_once(":memory:/"));
        let dir = match ours {
            Some((_, ours)) => all.join("memory").join(ours).join(name),
            None => all.join(name),
        };
        fs::create_dir(&dir).with_context(|| format!("{}", dir.display()))?;
        let group = Self { dir, unified };
        let file = if unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        group.write(file, &bytes.to_string())?;
        Ok(group)
    }

    /// What it has already allocated stays with where it was.
    fn take(&self, process: &Process) -> Result<()> {
        self.write("cgroup.procs", &process.pid().to_string())
    }

    fn no_kill(&self) -> Result<()> {
        let file = if self.unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let told = fs::read_to_string(self.dir.join(file))?;
        ensure!(told.lines().any(|line| line == "oom_kill 0"), "{told}");
        Ok(())
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let file = self.dir.join(file);
        fs::write(&file, text).with_context(|| format!("{text} to {}", file.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}
