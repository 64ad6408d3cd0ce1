//! The command line: `lab demo` is the tour; `lab clean` removes what crashed labs left; `lab hold` keeps a lab for a person
//! to look around in; `lab reap` is the reaper labs start for themselves.
#![allow(clippy::print_stdout)] // a command line prints

mod demo;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Nodes and pods made of network namespaces, running the real binaries.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Two nodes, real programs, the mesh between them: a tour, then a live view until Ctrl-C.
    Demo {
        /// End after the tour.
        #[arg(long)]
        once: bool,
        /// Where the mesh's binaries are; beside this one by default.
        #[arg(long)]
        bin_dir: Option<PathBuf>,
    },
    /// Remove every lab whose owner is gone, with its logs.
    Clean,
    /// Build a lab, print its id, and hold it until a line (or the end) comes from stdin, or Ctrl-C.
    Hold {
        /// How many nodes.
        #[arg(long, default_value_t = 2)]
        nodes: usize,
        /// Nodes and pods only, no binary of the mesh.
        #[arg(long)]
        no_mesh: bool,
    },
    /// Wait for the end of a lab's owner and remove what it leaves (labs start this themselves).
    #[command(hide = true)]
    Reap {
        /// The lab.
        id: String,
    },
}

fn main() -> ExitCode {
    run(Arguments::parse().verb).unwrap_or_else(|error| {
        // Causes in one line each; where in our code they met is of no use to the reader.
        eprintln!("lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Demo { once, bin_dir } => return demo::run(once, bin_dir),
        Verb::Clean => clean()?,
        Verb::Hold { nodes, no_mesh } => hold(nodes, !no_mesh)?,
        Verb::Reap { id } => lab::reap(&id)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn clean() -> Result<()> {
    let cleaned = lab::clean(true)?;
    for removed in &cleaned.removed {
        println!("removed {removed}");
    }
    if cleaned.removed.is_empty() {
        println!("nothing to remove");
    }
    for id in &cleaned.alive {
        println!("left alone, for its owner lives: lab {id}");
    }
    Ok(())
}

fn hold(nodes: usize, mesh: bool) -> Result<()> {
    let lab = lab::Lab::builder().nodes(nodes).mesh(mesh).start()?;
    println!("{}", lab.id());
    std::io::stdin().read_line(&mut String::new())?;
    lab.stop()
}
