//! `lab demo`: real programs on two nodes, and the mesh between them, told as it happens.
//!
//! `cast` (who plays) → `tour` (what is shown, chapter by chapter, each with a proof) → `watch` (the live view).
//! `layer7` is the tour's second half, behind a waypoint. `flow` turns access log records into lines, `screen` puts them on the terminal.

mod cast;
mod flow;
mod layer7;
mod screen;
mod tour;
mod watch;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use anyhow::Result;
use lab::Lab;
use nix::sys::signal::{SigSet, Signal};

use self::{cast::Cast, screen::Screen, tour::Tour};

/// Set when Ctrl-C has come: from then on failures are our own doing and nobody wants to read them.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// The tour, then the live view unless `once`. Says what failed and where the logs are.
pub(crate) fn run(once: bool, bin: Option<PathBuf>) -> Result<ExitCode> {
    leave_on_signal()?;
    let screen = Screen::new();
    match play(&screen, once, bin) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(_) if LEAVING.load(Ordering::SeqCst) => loop {
            // The signal's thread removes everything and ends the process.
            thread::park();
        },
        Err(error) => {
            screen.failure(&error);
            Ok(ExitCode::FAILURE)
        }
    }
}

fn play(screen: &Screen, once: bool, bin: Option<PathBuf>) -> Result<()> {
    let started = Instant::now();
    screen.title("Ambit: an ambient-mode service mesh, on this machine, without a cluster");
    screen.step("building two nodes out of network namespaces; starting istiod-lite, two node agents, two ztunnels");
    let mut builder = Lab::builder().nodes(2);
    if let Some(bin) = bin {
        builder = builder.bin_dir(bin);
    }
    let lab = builder.start()?;
    screen.done(&format!(
        "lab {} is up after {:.1} s; everything it writes is in {}",
        lab.id(),
        started.elapsed().as_secs_f32(),
        lab.dir().display()
    ));
    let outcome = perform(&lab, screen, once);
    if outcome.is_err() && !LEAVING.load(Ordering::SeqCst) {
        lab.keep_logs();
        screen.note(&format!(
            "the logs are in {} (remove them with `lab clean`)",
            lab.dir().display()
        ));
    }
    let removed = lab.stop();
    outcome?;
    removed?;
    screen.done(&format!(
        "everything is removed again; the whole took {:.0} s",
        started.elapsed().as_secs_f32()
    ));
    Ok(())
}

fn perform(lab: &Lab, screen: &Screen, once: bool) -> Result<()> {
    let cast = Cast::assemble(lab, screen)?;
    Tour::new(lab, &cast, screen)?.run()?;
    if once {
        Ok(())
    } else {
        watch::live(lab, &cast, screen)
    }
}

/// Ctrl-C, or a polite kill: everything is removed, then the process ends.
fn leave_on_signal() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Before any other thread exists, so that all inherit it and only ours receives.
    signals.thread_block()?;
    thread::spawn(move || {
        let _ = signals.wait();
        LEAVING.store(true, Ordering::SeqCst);
        let removed = lab::remove_all();
        Screen::new().parting(removed.is_ok());
        std::process::exit(if removed.is_ok() { 0 } else { 1 });
    });
    Ok(())
}
