//! What a ztunnel does when what it lives on runs out: descriptors, memory. (A reader of its log: F5 in `defects.rs`.)

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Pod, Process, wait};
use support::{
    Pair, SOON, crossing,
    crowd::{Holder, fill},
    in_lab, refused_until, round_trip, talk,
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
            // With patience for all that follows.
            let waits = || -> Result<TcpStream> {
                let mut stream = leaving.client.connect_within(leaving.at(), SOON * 3)??;
                round_trip(&mut stream, "waiting")?;
                Ok(stream)
            };
            thread::scope(|scope| -> Result<()> {
                let calls: Vec<_> = (0..MANY).map(|_| scope.spawn(waits)).collect();
                wait::until_true("it to run out", SOON, || shortages(&ztunnel) > told_before)?;
                for stream in &mut open {
                    round_trip(stream, "meanwhile")?;
                }
                // The tunnel is there, but nothing to reach the app with. Connections of the round before may still be ending,
                // and who is told that there is nothing lets go of what he had.
                let (client, to) = (&arriving.client, arriving.at());
                refused_until(client, to, &log, "the refusal", |record| {
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

/// Memory that a ztunnel may take on beyond what it has at rest, in bytes.
const ROOM: u64 = 16 << 20;

/// So many of a crowd's connections are refused before it comes no more.
const REFUSALS: usize = 10;

/// As a container's limit does it: the kernel ends whoever has more.
#[test]
fn a_ztunnel_whose_container_is_too_small_refuses_the_newest_serves_the_rest_and_is_not_ended() {
    let unbounded = [
        "AMBIT_MAX_CONNECTIONS",
        "AMBIT_MAX_CONNECTIONS_PER_WORKLOAD",
    ];
    let builder = unbounded.into_iter().fold(Lab::builder(), |lab, bound| {
        lab.ztunnel_env(bound, "1000000")
    });
    in_lab(builder, |lab| {
        let pair = Pair::start(lab)?;
        let holder = Holder::start(&pair.server, 9000)?;
        drop(holder.crowd(&pair.client, 50)?);
        holder.let_go()?;
        let ztunnel = lab.node(1).ztunnel()?;
        // In whole pages, as the kernel counts.
        let most = ((resident(&ztunnel.process()?)? + ROOM) / 9 * 10) >> 20 << 20;
        let Some(group) = Group::if_possible(&format!("ambit-t-{}", lab.id()), most)? else {
            return Ok(());
        };
        ztunnel.terminate(SOON)?;
        group.within(|| ztunnel.launch())?;
        ztunnel.until_ready()?;
        let process = ztunnel.process()?;
        let bound = lab.metrics(1)?.sum("ambit_limit", &[("what", "memory")]);
        ensure!(bound as u64 == most / 10 * 9, "{bound} of {most}");

        let mut open = talk_until(&pair.client, pair.at())?;
        let log = lab.access_log(1)?.from_now();
        let (mut crowd, mut refusals) = (Vec::new(), Vec::new());
        while refusals.len() < REFUSALS {
            match holder.crowd(&pair.client, 20) {
                Ok(more) => crowd.extend(more),
                Err(refusal) => {
                    refusals.push(refusal);
                    // Until memory has been measured again, and shows that there is room or not.
                    #[allow(clippy::disallowed_methods)]
                    // a test's own thread, and no event tells of a measurement
                    thread::sleep(Duration::from_millis(500));
                }
            }
            ensure!(crowd.len() < 50_000, "nobody is refused");
        }
        let record = log.find("the refusal", |record| {
            record.outbound() && record.error().contains("refused: ztunnel has")
        })?;
        ensure!(
            record
                .error()
                .contains("bytes of memory, more than it takes on"),
            "{refusals:?}: {record:?}"
        );
        ensure!(crowd.len() > 50, "only {} were served", crowd.len());
        // Whoever comes does no harm, and whoever is there is served.
        for _ in 0..200 {
            let _ = talk(&pair.client, pair.at(), "anyone?");
        }
        round_trip(&mut open, "meanwhile")?;
        let memory = [("what", "memory")];
        let refused = lab.metrics(1)?.sum("ambit_overload_refused_total", &memory);
        ensure!(refused >= REFUSALS as f64, "{refused}");

        drop(crowd);
        holder.let_go()?;
        talk_until(&pair.client, pair.at())?;
        round_trip(&mut open, "after")?;
        group.no_kill()?;
        ensure!(
            lab.node(1).ztunnel()?.process()?.pid() == process.pid() && ztunnel.running(),
            "it was ended"
        );
        Ok(())
    });
}

/// [`talk`] as soon as that is possible.
fn talk_until(client: &Pod, to: SocketAddr) -> Result<TcpStream> {
    wait::until("a connection", SOON, || {
        Ok(match talk(client, to, "let me in") {
            Ok(stream) => wait::Probe::Ready(stream),
            Err(error) => wait::Probe::NotYet(format!("{error:#}")),
        })
    })
}

/// In bytes.
fn resident(process: &Process) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.context("its memory")?.parse::<u64>()? << 10)
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
            group.no_kill()
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
    /// [`Group::limited`]; none, and a word about it, where this machine's kernel or the container we are in has no such groups.
    fn if_possible(name: &str, bytes: u64) -> Result<Option<Self>> {
        match Self::limited(name, bytes) {
            Ok(group) => Ok(Some(group)),
            Err(error) => {
                eprintln!("skipped, no memory control group can be made here: {error:#}");
                Ok(None)
            }
        }
    }

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
        // From here on it is removed again, also where it cannot be limited.
        let group = Self { dir, unified };
        let file = if unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        group.write(file, &bytes.to_string())?;
        Ok(group)
    }

    /// What `work` starts is in the group from its first moment, as a container's program is.
    fn within<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (home, ourselves) = (
            self.dir.with_file_name("cgroup.procs"),
            std::process::id().to_string(),
        );
        self.write("cgroup.procs", &ourselves)?;
        let done = work();
        fs::write(home, ourselves).context("back to where we were")?;
        done
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
        // Only a group with nobody in it can be removed.
        let inside = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        let above = self.dir.with_file_name("cgroup.procs");
        for pid in inside.lines() {
            let _ = fs::write(&above, pid);
        }
        let _ = fs::remove_dir(&self.dir);
    }
}
