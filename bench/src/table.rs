//! The run and its table: every subject does every work in turn, round by round; medians, spread,
//! and CPU per unit of work as a ratio to the peer's and to the floor's.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use lab::Place;

use crate::{
    load::Work,
    scale::{self, Scale},
    subject::{Sample, Stage, Subject},
    waypoint,
};

/// One row group of the table.
struct Task {
    name: &'static str,
    work: Work,
    connections: usize,
    /// What one unit is, and how many counted units make it.
    unit: (&'static str, f64),
}

const GIGABYTE: f64 = 1e9;

const TASKS: [Task; 11] = [
    Task {
        name: "bulk up, 1 stream",
        work: Work::Upload,
        connections: 1,
        unit: ("GB", GIGABYTE),
    },
    Task {
        name: "bulk up, 8 streams",
        work: Work::Upload,
        connections: 8,
        unit: ("GB", GIGABYTE),
    },
    Task {
        name: "bulk down, 1 stream",
        work: Work::Download,
        connections: 1,
        unit: ("GB", GIGABYTE),
    },
    Task {
        name: "bulk down, 8 streams",
        work: Work::Download,
        connections: 8,
        unit: ("GB", GIGABYTE),
    },
    Task {
        name: "64 B round trip",
        work: Work::RoundTrip,
        connections: 1,
        unit: ("op", 1.0),
    },
    Task {
        name: "64 B during a bulk up",
        work: Work::RoundTripInBulk,
        connections: 2,
        unit: ("op", 1.0),
    },
    Task {
        name: "HTTP keep-alive, 32",
        work: Work::Http,
        connections: 32,
        unit: ("op", 1.0),
    },
    Task {
        name: "new connections, 1",
        work: Work::Connect,
        connections: 1,
        unit: ("op", 1.0),
    },
    Task {
        name: "new connections, 16",
        work: Work::Connect,
        connections: 16,
        unit: ("op", 1.0),
    },
    // What a tunnel costs is this without what a connection costs.
    Task {
        name: NEW_TUNNEL,
        work: Work::Tunnel,
        connections: 1,
        unit: ("op", 1.0),
    },
    Task {
        name: "burst of 500",
        work: Work::Burst,
        connections: 500,
        unit: ("op", 1.0),
    },
];

const NEW_TUNNEL: &str = "new tunnel, connection";

/// How much of everything.
pub(crate) struct Plan<'a> {
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
    pub(crate) peer: Option<&'a Path>,
    /// The waypoint's peer.
    pub(crate) envoy: Option<&'a Path>,
    pub(crate) only: Option<&'a str>,
    /// Idle connections of the memory rows.
    pub(crate) hold: &'a [usize],
    /// Workloads of the large-mesh rows.
    pub(crate) workloads: &'a [usize],
}

impl Plan<'_> {
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.only.is_none_or(|only| row.contains(only))
    }
}

/// Runs it all and prints the tables.
pub(crate) fn run(plan: &Plan<'_>) -> Result<()> {
    if tunnels_wanted(plan) {
        tunnels(plan)?;
    }
    if waypoint::wanted(plan) {
        waypoint::run(plan)?;
    }
    large_mesh(plan)
}

fn tunnels_wanted(plan: &Plan<'_>) -> bool {
    let held = plan.hold.iter().map(|&connections| idle(connections));
    let tasks = TASKS.iter().map(|task| task.name.to_owned());
    tasks.chain(held).any(|row| plan.wants(&row))
}

#[allow(clippy::print_stdout)] // the table
fn tunnels(plan: &Plan<'_>) -> Result<()> {
    let stage = Stage::set(plan.peer, plan.wants(NEW_TUNNEL))?;
    println!(
        "medians [min..max] of {} rounds, {:?} each; CPU is that of all proxies on the way",
        plan.rounds, plan.time
    );
    println!(
        "{:<22} {:<17} {:>30} {:>9} {:>9} {:>22} {:>8} {:>8}",
        "work", "subject", "rate", "p50 µs", "p99 µs", "CPU per unit", "×floor", "×peer"
    );
    for task in TASKS.iter().filter(|task| plan.wants(task.name)) {
        rounds(&stage, task, plan)?;
    }
    memory(&stage, plan)?;
    stage.strike()
}

/// The row of that many idle connections.
fn idle(connections: usize) -> String {
    format!("{connections} idle")
}

#[allow(clippy::print_stdout)] // the table
fn rounds(stage: &Stage, task: &Task, plan: &Plan<'_>) -> Result<()> {
    let subjects = stage.subjects().iter();
    let subjects: Vec<&Subject> = subjects.filter(|it| it.takes_part_in(task.work)).collect();
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); subjects.len()];
    for round in 0..=plan.rounds {
        for (&subject, samples) in subjects.iter().zip(&mut samples) {
            let time = if round == 0 { plan.time / 4 } else { plan.time };
            let sample = subject
                .measure(task.work, task.connections, time)
                .with_context(|| format!("{}: {}", subject.name, task.name))?;
            // Round 0 warms up: tunnels, certificates, allocators.
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let cost = |name: &str| {
        let index = subjects.iter().position(|subject| subject.name == name)?;
        Some(Spread::of(samples[index].iter().map(|sample| per_unit(task, sample))).median)
    };
    for (subject, samples) in subjects.iter().zip(&samples) {
        let floor = cost("floor");
        let peer = cost(counterpart(subject.name));
        println!("{}", row(task, subject, samples, floor, peer));
    }
    Ok(())
}

/// The peer's subject that goes the same way.
fn counterpart(subject: &str) -> &'static str {
    match subject.rsplit_once(", ") {
        Some((_, "same node")) => "peer, same node",
        Some((_, "passthrough")) => "peer, passthrough",
        _ => "peer",
    }
}

/// CPU seconds per GB, or microseconds per operation; none where most of it went into something else.
fn per_unit(task: &Task, sample: &Sample) -> f64 {
    if task.work == Work::RoundTripInBulk {
        return 0.0;
    }
    let units = sample.measured.units as f64 / task.unit.1;
    let scale = if task.unit.0 == "GB" { 1.0 } else { 1e6 };
    sample.cpu * scale / units.max(f64::MIN_POSITIVE)
}

fn row(
    task: &Task,
    subject: &Subject,
    samples: &[Sample],
    floor: Option<f64>,
    peer: Option<f64>,
) -> String {
    let bulk = task.unit.0 == "GB";
    let rate = Spread::of(samples.iter().map(|sample| {
        let per_second = sample.measured.units as f64 / sample.measured.seconds;
        if bulk {
            per_second * 8.0 / 1e9
        } else {
            per_second
        }
    }));
    let cpu = Spread::of(samples.iter().map(|sample| per_unit(task, sample)));
    let time = |pick: fn(&Sample) -> f64| {
        let median = Spread::of(samples.iter().map(pick)).median;
        if bulk {
            "-".to_owned()
        } else {
            format!("{median:.0}")
        }
    };
    let ratio = |to: Option<f64>| match to {
        Some(to) if to > 0.0 && cpu.median > 0.0 => format!("{:.2}", cpu.median / to),
        _ => "-".to_owned(),
    };
    let failed: u64 = samples.iter().map(|sample| sample.measured.failed).sum();
    format!(
        "{:<22} {:<17} {:>30} {:>9} {:>9} {:>22} {:>8} {:>8}{}",
        task.name,
        subject.name,
        format!(
            "{} {}",
            rate.show(if bulk { 1 } else { 0 }),
            if bulk { "Gb/s" } else { "/s" }
        ),
        time(|sample| sample.measured.p50),
        time(|sample| sample.measured.p99),
        if cpu.median > 0.0 {
            format!(
                "{} {}",
                cpu.show(if bulk { 2 } else { 1 }),
                if bulk { "s/GB" } else { "µs" }
            )
        } else {
            "-".to_owned()
        },
        ratio(floor),
        ratio(peer),
        if failed > 0 {
            format!("  {failed} failed")
        } else {
            String::new()
        },
    )
}

#[allow(clippy::print_stdout)] // the table
fn memory(stage: &Stage, plan: &Plan<'_>) -> Result<()> {
    for &connections in plan.hold {
        let row = idle(connections);
        if !plan.wants(&row) {
            continue;
        }
        for subject in stage
            .subjects()
            .iter()
            .filter(|subject| subject.name.starts_with("ours") || subject.name.starts_with("peer"))
            .filter(|subject| subject.takes_part_in(Work::Hold))
        {
            let grown = subject
                .hold(connections)
                .with_context(|| format!("{}: {connections} idle connections", subject.name))?;
            let each: Vec<String> = grown
                .iter()
                .map(|mib| format!("{:.1}", mib * 1024.0 / connections as f64))
                .collect();
            println!(
                "{:<22} {:<17} {:>30}",
                row,
                subject.name,
                format!("{} KiB/connection", each.join(" + "))
            );
        }
    }
    Ok(())
}

#[allow(clippy::print_stdout)] // the table
fn large_mesh(plan: &Plan<'_>) -> Result<()> {
    let own = std::env::current_exe()?;
    let ours = own.with_file_name("ztunnel");
    let peer = plan.peer.map(|peer| ("peer", peer));
    let subjects: Vec<_> = [("ours", ours.as_path())].into_iter().chain(peer).collect();
    for &workloads in plan.workloads {
        let row = format!("{workloads} workloads");
        if !plan.wants(&row) {
            continue;
        }
        let mesh = scale::Mesh {
            workloads,
            endpoints: 10,
            updates: 0,
        };
        let mut runs = vec![Vec::new(); subjects.len()];
        for _ in 0..plan.rounds {
            for (runs, (name, binary)) in runs.iter_mut().zip(&subjects) {
                runs.push(alone(&own, binary, mesh).with_context(|| (*name).to_owned())?);
            }
        }
        for (runs, (name, _)) in runs.iter().zip(&subjects) {
            let of = |pick: fn(&Scale) -> f64| Spread::of(runs.iter().map(pick));
            println!(
                "{:<22} {:<17} {:>30} {:>20} {:>22}",
                row,
                name,
                format!("ready in {} s", of(|run| run.ready).show(2)),
                format!("{:.0} MiB", of(|run| run.resident).median),
                format!("CPU {} s", of(|run| run.cpu).show(2)),
            );
        }
    }
    updates(plan, &own, &subjects)
}

/// What it costs to be told of one endpoint of a service that has as many as there are.
#[allow(clippy::print_stdout)] // the table
fn updates(plan: &Plan<'_>, own: &Path, subjects: &[(&str, &Path)]) -> Result<()> {
    let mesh = scale::Mesh {
        workloads: 10_000,
        endpoints: 10_000,
        updates: 2_000,
    };
    let row = format!("1 of {} endpoints", mesh.endpoints);
    if !plan.wants(&row) {
        return Ok(());
    }
    let mut runs = vec![Vec::new(); subjects.len()];
    for _ in 0..plan.rounds {
        for (runs, (name, binary)) in runs.iter_mut().zip(subjects) {
            runs.push(alone(own, binary, mesh).with_context(|| (*name).to_owned())?);
        }
    }
    for (runs, (name, _)) in runs.iter().zip(subjects) {
        let of = |pick: fn(&Scale) -> f64| Spread::of(runs.iter().map(pick));
        println!(
            "{:<22} {:<17} {:>30} {:>20}",
            row,
            name,
            format!("CPU {} µs", of(|run| run.update * 1e6).show(0)),
            format!("{:+.1} MiB", of(|run| run.grown).median),
        );
    }
    Ok(())
}

/// One measurement, by a process of its own in a network namespace of its own.
fn alone(own: &Path, binary: &Path, mesh: scale::Mesh) -> Result<Scale> {
    let place = Place::new("scale")?;
    let mut command = Command::new(own);
    command
        .arg("scale")
        .arg(binary)
        .arg(format!("--workloads={}", mesh.workloads))
        .arg(format!("--endpoints={}", mesh.endpoints))
        .arg(format!("--updates={}", mesh.updates));
    let printed = place.run(command, b"", scale::LONGEST)?.success()?;
    Ok(serde_json::from_str(&printed)?)
}

/// Median, least and most of a handful of figures.
pub(crate) struct Spread {
    pub(crate) median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    pub(crate) fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let at = |index: usize| figures.get(index).copied().unwrap_or(f64::NAN);
        Self {
            median: at(figures.len() / 2),
            least: at(0),
            most: at(figures.len().saturating_sub(1)),
        }
    }

    pub(crate) fn show(&self, digits: usize) -> String {
        format!(
            "{:.digits$} [{:.digits$}..{:.digits$}]",
            self.median, self.least, self.most
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_middle_and_both_ends() {
        let spread = Spread::of([5.0, 1.0, 3.0].into_iter());
        assert_eq!((spread.least, spread.median, spread.most), (1.0, 3.0, 5.0));
        assert_eq!(spread.show(1), "3.0 [1.0..5.0]");
    }

    #[test]
    fn a_way_is_compared_with_the_peers_same_way() {
        assert_eq!(counterpart("ours, same node"), "peer, same node");
        assert_eq!(counterpart("ours, passthrough"), "peer, passthrough");
        assert_eq!(counterpart("ours (h2), full"), "peer");
    }

    #[test]
    fn cpu_is_seconds_per_gigabyte_and_microseconds_per_operation() {
        let sample = |units| Sample {
            measured: crate::load::Measured {
                units,
                ..Default::default()
            },
            cpu: 2.0,
        };
        assert_eq!(per_unit(&TASKS[0], &sample(4_000_000_000)), 0.5);
        assert_eq!(per_unit(&TASKS[4], &sample(100_000)), 20.0);
    }
}
