//! `ambit`: install, question and remove the mesh.

use clap::Parser;

/// The command line of the mesh.
#[derive(Debug, Parser)]
#[command(name = "ambit", version)]
struct Cli {}

fn main() {
    Cli::parse();
}
