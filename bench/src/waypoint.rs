//! The waypoint beside the peer's: what a request costs, how long it takes, what many routes and services take.
//!
//! 1. a lab with a client, an app and the waypoints between                       (`scene`)
//! 2. the client's tunnels are opened before anything is counted                  (`ask`)
//! 3. the subjects take turns, round by round; the CPU is that of the waypoint alone
//! 4. streams of large messages, whose CPU is counted by the GB                   (`bulk`)
//! 5. labs of their own for many routes and many services, ours alone             (`many`)
//!
//! Ours has policies, metrics and its log on; the peer, an Envoy, has none of them.

mod app;
mod ask;
mod bulk;
mod many;
mod scene;
mod signer;

use std::time::Duration;

use anyhow::{Context, Result};

use self::{
    ask::{Pace, Talk},
    scene::{PATH, Scene, Subject},
};
use crate::{
    load::Measured,
    process,
    table::{Plan, Spread},
};

/// Port of tunnels in every pod of the mesh.
const HBONE: u16 = 15008;
/// What the app is called at; it only exists in CONNECTs.
const APP: u16 = 8080;
/// What the client asks ours and the peer at a time.
struct Task {
    name: &'static str,
    tunnels: usize,
    streams: usize,
}

const TASKS: [Task; 5] = [
    Task {
        name: "waypoint, 1 at a time",
        tunnels: 1,
        streams: 1,
    },
    Task {
        name: "waypoint, 32 in 32",
        tunnels: 32,
        streams: 32,
    },
    Task {
        name: "waypoint, 32 in 1",
        tunnels: 1,
        streams: 32,
    },
    Task {
        name: "waypoint, 100 in 100",
        tunnels: 100,
        streams: 100,
    },
    Task {
        name: "waypoint, 100 in 1",
        tunnels: 1,
        streams: 100,
    },
];

const IDLE: &str = "waypoint, idle";
const HALF: &str = "waypoint, half rate";
const EDITS: &str = "waypoint, 50 edits/s";
const TRACED: &str = "waypoint, traced 0 %";
/// Streams of the rows with a fixed rate.
const STREAMS: usize = 32;
/// Memory is read after this pause: allocators give back late.
const SETTLE: Duration = Duration::from_secs(3);

/// What one measurement gave.
struct Sample {
    measured: Measured,
    cpu: f64,
}

impl Sample {
    fn rate(&self) -> f64 {
        self.measured.units as f64 / self.measured.seconds
    }

    /// Microseconds of CPU for a request.
    fn each(&self) -> f64 {
        self.cpu * 1e6 / (self.measured.units as f64).max(1.0)
    }
}

/// Whether any row of this part is wanted.
pub(crate) fn wanted(plan: &Plan<'_>) -> bool {
    let tasks = TASKS.iter().map(|task| task.name);
    let others = [IDLE, HALF, EDITS, TRACED].into_iter();
    let others = others.chain(many::ROWS).chain(bulk::rows());
    tasks.chain(others).any(|row| plan.wants(row))
}

/// Runs it all and prints its part of the table.
#[allow(clippy::print_stdout)] // the table
pub(crate) fn run(plan: &Plan<'_>) -> Result<()> {
    println!(
        "{:<24} {:<12} {:>27} {:>9} {:>9} {:>26} {:>8}",
        "waypoint", "subject", "rate", "p50 µs", "p99 µs", "CPU per request", "×peer"
    );
    let scene = Scene::set(plan.envoy)?;
    idle(&scene, plan)?;
    for task in TASKS.iter().filter(|task| plan.wants(task.name)) {
        let runs = rounds(&scene, plan, task.tunnels, task.streams, None)?;
        show(task.name, &runs);
    }
    if plan.wants(HALF) || plan.wants(EDITS) {
        let most = rounds(&scene, plan, STREAMS, STREAMS, None)?;
        let through = most.iter().filter(|(subject, _)| subject.process.is_some());
        let most = through.map(|(_, samples)| Spread::of(samples.iter().map(Sample::rate)).median);
        let half = most.fold(f64::INFINITY, f64::min) / 2.0;
        if plan.wants(HALF) {
            let runs = rounds(&scene, plan, STREAMS, STREAMS, Some(half))?;
            show(HALF, &runs);
        }
        if plan.wants(EDITS) {
            many::edits(&scene, plan, half)?;
        }
    }
    if plan.wants(TRACED) {
        traced(&scene, plan)?;
    }
    bulk::run(&scene, plan)?;
    scene.strike()?;
    many::routes(plan)?;
    many::services(plan)
}

#[allow(clippy::print_stdout)] // the table
fn idle(scene: &Scene, plan: &Plan<'_>) -> Result<()> {
    if !plan.wants(IDLE) {
        return Ok(());
    }
    pause(SETTLE);
    for subject in scene.subjects()? {
        if let Some(process) = subject.process {
            let resident = process::resident(process)?;
            println!("{IDLE:<24} {:<12} {resident:>23.1} MiB", subject.name);
        }
    }
    Ok(())
}

/// Every subject in turn, round by round.
fn rounds(
    scene: &Scene,
    plan: &Plan<'_>,
    tunnels: usize,
    streams: usize,
    rate: Option<f64>,
) -> Result<Vec<(Subject, Vec<Sample>)>> {
    let mut runs = Vec::new();
    for subject in scene.subjects()? {
        let talks = scene.asker.talks(&subject.hop, tunnels, streams);
        let talks = scene.runtime.block_on(talks);
        let talks = talks.with_context(|| subject.name)?;
        runs.push((subject, talks, Vec::new()));
    }
    for round in 0..=plan.rounds {
        for (subject, talks, samples) in &mut runs {
            let time = if round == 0 { plan.time / 4 } else { plan.time };
            let pace = Pace {
                time,
                rate,
                path: PATH.to_owned(),
            };
            let sample = measure(scene, subject, talks, &pace)?;
            // Round 0 warms up: connections, allocators, caches.
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let without_talks = |(subject, _, samples)| (subject, samples);
    Ok(runs.into_iter().map(without_talks).collect())
}

/// Ours as it is, and with a collector named that gets no request's span, in turns: both sides as in the row with 32 streams.
fn traced(scene: &Scene, plan: &Plan<'_>) -> Result<()> {
    let ours = scene.ours()?;
    let talks = scene.asker.talks(&ours.hop, STREAMS, STREAMS);
    let mut talks = scene.runtime.block_on(talks)?;
    let pace = Pace {
        time: plan.time,
        rate: None,
        path: PATH.to_owned(),
    };
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..=plan.rounds {
        let still = measure(scene, &ours, &mut talks, &pace)?;
        scene.lab.apply_yaml("traced", scene::TRACED)?;
        pause(SETTLE);
        let traced = measure(scene, &ours, &mut talks, &pace)?;
        scene.lab.delete_yaml("traced")?;
        pause(SETTLE);
        if round > 0 {
            without.push(still);
            with.push(traced);
        }
    }
    let named = |name| Subject {
        name,
        ..ours.clone()
    };
    show(
        TRACED,
        &[(named("no tracing"), without), (named("tracing"), with)],
    );
    Ok(())
}

fn measure(scene: &Scene, subject: &Subject, talks: &mut Vec<Talk>, pace: &Pace) -> Result<Sample> {
    let before = subject.cpu()?;
    let measured = scene.runtime.block_on(ask::run(talks, pace))?;
    anyhow::ensure!(!talks.is_empty(), "{}: all failed", subject.name);
    let cpu = subject.cpu()? - before;
    Ok(Sample { measured, cpu })
}

#[allow(clippy::print_stdout)] // the table
fn show(name: &str, runs: &[(Subject, Vec<Sample>)]) {
    let cpu = |samples: &[Sample]| Spread::of(samples.iter().map(Sample::each));
    let peer = runs.iter().find(|(subject, _)| subject.name == "peer");
    let peer = peer.map(|(_, samples)| cpu(samples).median);
    for (subject, samples) in runs {
        let median = |pick: fn(&Sample) -> f64| Spread::of(samples.iter().map(pick)).median;
        let failed: u64 = samples.iter().map(|sample| sample.measured.failed).sum();
        let cpu = cpu(samples);
        let ratio = match peer {
            Some(peer) if subject.process.is_some() => format!("{:.2}", cpu.median / peer),
            _ => "-".to_owned(),
        };
        println!(
            "{name:<24} {:<12} {:>25}/s {:>9.0} {:>9.0} {:>23} µs {ratio:>8}{}",
            subject.name,
            Spread::of(samples.iter().map(Sample::rate)).show(0),
            median(|sample| sample.measured.p50),
            median(|sample| sample.measured.p99),
            cpu.show(1),
            match failed {
                0 => String::new(),
                failed => format!("  {failed} failed"),
            }
        );
    }
}

#[allow(clippy::disallowed_methods)] // on the bench's own thread, no runtime here
fn pause(time: Duration) {
    std::thread::sleep(time);
}
