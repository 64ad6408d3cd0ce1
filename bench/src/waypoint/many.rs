//! Many routes, many services, many edits: what they take of ours, and how soon an edit is what clients see.

use std::{
    fmt::Write,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    APP, SETTLE, STREAMS, Sample,
    ask::{Pace, Talk},
    measure, pause,
    scene::{PATH, Scene, Subject},
    show,
};
use crate::{
    process,
    table::{Plan, Spread},
};

const ROUTES: &str = "waypoint, 5000 routes";
const SERVICES: &str = "waypoint, 10000 services";
pub(super) const ROWS: [&str; 2] = [ROUTES, SERVICES];

const MANY_ROUTES: usize = 5_000;
const MANY_SERVICES: usize = 10_000;
/// Edits whose way to the client is timed.
const TIMED: usize = 100;
/// Between edits that are timed: more than what the control plane takes for one storm.
const APART: Duration = Duration::from_millis(250);
/// An edit that is seen within this waits behind nothing.
const CALM: Duration = Duration::from_secs(1);
/// So many of them one after the other, before any is timed.
const QUIET_EDITS: usize = 3;
/// Between edits while there is load.
const EDIT_EVERY: Duration = Duration::from_millis(20);
/// Until all of many objects are in force.
const LONG: Duration = Duration::from_secs(180);

/// Ours under a fixed rate: as it is, while a route that it does not have is edited fifty times a second, and while one of its own is,
/// in turns. What the second takes is the editor's and the control plane's, who in a mesh have other processors.
#[allow(clippy::print_stdout)] // the table
pub(super) fn edits(scene: &Scene, plan: &Plan<'_>, rate: f64) -> Result<()> {
    let ours = scene.ours()?;
    let talks = scene.asker.talks(&ours.hop, STREAMS, STREAMS);
    let mut talks = scene.runtime.block_on(talks)?;
    let pace = Pace {
        time: plan.time,
        rate: Some(rate),
        path: PATH.to_owned(),
    };
    // Behind no waypoint: what is edited there is read and judged as here, and sent to nobody.
    scene
        .lab
        .service_of("elsewhere/server", &[("http", 80, APP)])?;
    let mut made = 0;
    let mut runs = [
        ("no edits", None),
        ("elsewhere", Some("elsewhere")),
        ("edits", Some("bench")),
    ]
    .map(|(name, namespace)| {
        let subject = Subject {
            name,
            ..ours.clone()
        };
        (subject, namespace, Vec::new())
    });
    for _ in 0..plan.rounds {
        for (subject, namespace, samples) in &mut runs {
            let done = AtomicBool::new(false);
            let (stop, made) = (&done, &mut made);
            let sample = std::thread::scope(|scope| {
                let editing = namespace
                    .map(|namespace| scope.spawn(move || edit_until(scene, namespace, stop, made)));
                let sample = measure(scene, subject, &mut talks, &pace);
                done.store(true, Relaxed);
                if let Some(editing) = editing {
                    editing
                        .join()
                        .map_err(|_| anyhow::anyhow!("the editor"))??;
                }
                sample
            })?;
            samples.push(sample);
        }
    }
    let runs = runs.map(|(subject, _, samples)| (subject, samples));
    show(super::EDITS, &runs);
    println!("{:<24} {made} edits", super::EDITS);
    Ok(())
}

fn edit_until(scene: &Scene, namespace: &str, done: &AtomicBool, made: &mut u64) -> Result<()> {
    while !done.load(Relaxed) {
        let began = Instant::now();
        *made += 1;
        let file = format!("edited-{namespace}");
        scene
            .lab
            .apply_yaml(&file, &route(namespace, "/bench", *made))?;
        pause(EDIT_EVERY.saturating_sub(began.elapsed()));
    }
    Ok(())
}

/// Memory, edits and lookups with [`MANY_ROUTES`] objects for one service.
#[allow(clippy::print_stdout)] // the table
pub(super) fn routes(plan: &Plan<'_>) -> Result<()> {
    if !plan.wants(ROUTES) {
        return Ok(());
    }
    let scene = Scene::set(None)?;
    let ours = scene.ours()?;
    let pid = ours.process.context("ours is a process")?;
    pause(SETTLE);
    let empty = process::resident(pid)?;
    let before = lookups(&scene, plan, &ours, PATH)?;
    let loaded = process::resident(pid)?;
    let began = Instant::now();
    let all: String = (0..MANY_ROUTES).map(numbered).collect();
    scene.lab.apply_yaml("many", &all)?;
    let last = format!("/route-{}", MANY_ROUTES - 1);
    scene.until_answered(&ours, &last, 200, LONG)?;
    let came = began.elapsed().as_secs_f64();
    pause(SETTLE);
    let full = process::resident(pid)?;
    println!(
        "{ROUTES:<24} {:<12} {full:>23.1} MiB, {:.1} without them ({empty:.1} idle); all of them in {came:.1} s",
        ours.name, loaded
    );
    let seen = timed(&scene, &ours)?;
    println!(
        "{ROUTES:<24} {:<12} an edit is seen after ms: {seen}",
        ours.name
    );
    let after = [PATH, "/route-0", &last]
        .map(|path| lookups(&scene, plan, &ours, path).map(|samples| (path.to_owned(), samples)));
    // Without them in the same process: what differs from before is the machine's and the memory's doing.
    scene.lab.delete_yaml("many")?;
    scene.until_answered(&ours, &last, 404, LONG)?;
    pause(SETTLE);
    let again = lookups(&scene, plan, &ours, PATH).map(|samples| ("1 again".to_owned(), samples));
    let one = [Ok(("1 route".to_owned(), before))];
    for row in one.into_iter().chain(after).chain([again]) {
        let (name, samples) = row?;
        let cpu = Spread::of(samples.iter().map(Sample::each));
        println!(
            "{ROUTES:<24} {name:<12} {:>23} µs CPU per request",
            cpu.show(1)
        );
    }
    scene.strike()
}

fn lookups(scene: &Scene, plan: &Plan<'_>, ours: &Subject, path: &str) -> Result<Vec<Sample>> {
    let talks = scene.asker.talks(&ours.hop, STREAMS, STREAMS);
    let mut talks: Vec<Talk> = scene.runtime.block_on(talks)?;
    let pace = Pace {
        time: plan.time,
        rate: None,
        path: path.to_owned(),
    };
    let run = |_| measure(scene, ours, &mut talks, &pace);
    (0..plan.rounds).map(run).collect()
}

/// How long edits take from the directory to an answer, in milliseconds.
fn timed(scene: &Scene, ours: &Subject) -> Result<String> {
    let mut talk = scene.runtime.block_on(scene.asker.alone(&ours.hop))?;
    let (mut took, mut calm, mut edit) = (Vec::new(), 0, 0);
    while took.len() < TIMED {
        edit += 1;
        let began = Instant::now();
        scene
            .lab
            .apply_yaml("edited", &route("bench", "/bench/edited", edit))?;
        let seen = async {
            while talk.get("/bench/edited").await?.edit != Some(edit) {}
            anyhow::Ok(())
        };
        let within = async { tokio::time::timeout(LONG, seen).await };
        let seen = scene.runtime.block_on(within);
        seen.context("an edit is never seen")??;
        // Until all is told of the many, an edit waits behind them.
        calm = if began.elapsed() < CALM { calm + 1 } else { 0 };
        if calm > QUIET_EDITS || !took.is_empty() {
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
        pause(APART);
    }
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied();
    let (p50, p99) = (at(0.5).unwrap_or(f64::NAN), at(0.99).unwrap_or(f64::NAN));
    Ok(format!("p50 {p50:.1}, p99 {p99:.1}"))
}

/// Memory and convergence with [`MANY_SERVICES`] services that the waypoint fronts.
#[allow(clippy::print_stdout)] // the table
pub(super) fn services(plan: &Plan<'_>) -> Result<()> {
    if !plan.wants(SERVICES) {
        return Ok(());
    }
    let scene = Scene::set(None)?;
    let pid = scene.ours()?.process.context("ours is a process")?;
    pause(SETTLE);
    let empty = process::resident(pid)?;
    let spent = process::cpu_seconds(pid)?;
    let began = Instant::now();
    let all: String = (0..MANY_SERVICES).map(service).collect();
    scene.lab.apply_yaml("many", &all)?;
    let last = scene.ours_at((address(MANY_SERVICES - 1), 80).into())?;
    scene.until_answered(&last, PATH, 200, LONG)?;
    let came = began.elapsed().as_secs_f64();
    let spent = process::cpu_seconds(pid)? - spent;
    pause(SETTLE);
    let full = process::resident(pid)?;
    println!(
        "{SERVICES:<24} {:<12} {full:>23.1} MiB, {empty:.1} without them; all of them in {came:.1} s, CPU {spent:.2} s",
        last.name
    );
    let mut took = Vec::new();
    // The first waits until all is told of the many.
    for number in MANY_SERVICES..MANY_SERVICES + 11 {
        let began = Instant::now();
        scene.lab.apply_yaml("one", &service(number))?;
        let new = scene.ours_at((address(number), 80).into())?;
        scene.until_answered(&new, PATH, 200, LONG)?;
        if number > MANY_SERVICES {
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
        pause(APART);
    }
    ensure!(!took.is_empty(), "no service was added");
    println!(
        "{SERVICES:<24} {:<12} one more is served after ms: {}",
        last.name,
        Spread::of(took.into_iter()).show(0)
    );
    scene.strike()
}

/// A route whose answers say which edit it is.
fn route(namespace: &str, path: &str, edit: u64) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ namespace: {namespace}, name: edited }}
spec:
  parentRefs: [{{ group: '', kind: Service, name: server, port: 80 }}]
  rules:
  - matches: [{{ path: {{ type: Exact, value: {path} }} }}]
    filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {{ set: [{{ name: x-edit, value: '{edit}' }}] }}
    backendRefs: [{{ name: server, port: 80 }}]
"
    )
}

fn numbered(number: usize) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ namespace: bench, name: route-{number} }}
spec:
  parentRefs: [{{ group: '', kind: Service, name: server, port: 80 }}]
  rules:
  - matches: [{{ path: {{ type: PathPrefix, value: /route-{number} }} }}]
    backendRefs: [{{ name: server, port: 80 }}]
"
    )
}

/// A service with a rule and an endpoint of its own; those above the last but one have the app.
fn service(number: usize) -> String {
    let mut text = format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{ namespace: bench, name: many-{number} }}
spec:
  hosts: [many-{number}.bench.example]
  addresses: ['{}']
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{ number: 80, name: http, protocol: HTTP, targetPort: 8080 }}]
",
        address(number)
    );
    let rest = if number + 1 >= MANY_SERVICES {
        writeln!(text, "  workloadSelector: {{ labels: {{ app: server }} }}")
    } else {
        let [_, _, high, low] = address(number).octets();
        writeln!(
            text,
            "  endpoints: [{{ address: 10.201.{high}.{low}, serviceAccount: many-{number} }}]"
        )
    };
    // Writing to memory does not fail.
    let _ = rest;
    text
}

fn address(number: usize) -> std::net::Ipv4Addr {
    let [high, low] = u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
    [10, 200, high, low].into()
}
