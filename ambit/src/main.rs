//! `ambit`: install, question and remove the mesh.
//!
//! Speaks to the cluster with the caller's kubeconfig, as kubectl does. What it finds goes to
//! standard output (a table, or `-o json|yaml`); what it is doing goes to standard error. Exit codes:
//! 0 done and well, 1 done and something is wrong with the mesh, 2 it could not be done.

mod check;
mod cluster;
mod connections;
mod dump;
mod enroll;
mod explain;
mod install;
mod live;
mod membership;
mod network_policy;
mod output;
mod parts;
mod proxy;
mod status;
mod text;
mod top;
mod vm;
mod waypoint;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// The command line of the mesh.
#[derive(Debug, Parser)]
#[command(name = "ambit", version)]
struct Cli {
    #[command(flatten)]
    access: cluster::Access,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Can this cluster carry the mesh? Changes nothing.
    Check(check::Check),
    /// Put the mesh on the cluster.
    Install(install::Install),
    /// Bring an installed mesh to this version, part by part.
    Upgrade(install::Install),
    /// Take the mesh off the cluster; pods go on talking, in the clear.
    Uninstall(install::Uninstall),
    /// Each part on each node: ready, in sync, which version, what is wrong and what to do.
    Status(status::Status),
    /// What is open now, at every node: who talks to whom, how, under which policy.
    Connections(connections::Connections),
    /// Which workloads talk, how much, and whose connections are refused.
    Top(top::Top),
    /// What becomes of a connection, and why: asked of the proxies at both ends.
    Explain(explain::Explain),
    /// Put every pod of a namespace into the mesh, running ones too.
    Enroll(enroll::Enroll),
    /// Take the pods of a namespace out of the mesh.
    Unenroll(enroll::Unenroll),
    /// Layer 7 proxies of a namespace.
    #[command(subcommand)]
    Waypoint(waypoint::Command),
    /// Machines that are no pods: tokens by which they join, and who has. Runs `istiod-lite vm` inside the control plane.
    Vm(vm::Vm),
    /// Collect what a person who helps you needs: states, logs, configuration; never a key.
    Dump(dump::Dump),
    /// Print the completion script of a shell.
    Completion {
        /// Which one.
        shell: clap_complete::Shell,
    },
}

/// How a command ended that did what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// And all is well.
    Well,
    /// And what it found is not.
    Wrong,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Wrong) => ExitCode::FAILURE,
        Err(error) => {
            output::say(&format!("ambit: {error:#}"));
            ExitCode::from(2)
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let Cli { access, command } = cli;
    match command {
        Command::Check(check) => check.run(&access).await,
        Command::Install(install) => install.run(&access, install::Mode::Install).await,
        Command::Upgrade(install) => install.run(&access, install::Mode::Upgrade).await,
        Command::Uninstall(uninstall) => uninstall.run(&access).await,
        Command::Status(status) => status.run(&access).await,
        Command::Connections(connections) => connections.run(&access).await,
        Command::Top(top) => top.run(&access).await,
        Command::Explain(explain) => explain.run(&access).await,
        Command::Enroll(enroll) => enroll.run(&access).await,
        Command::Unenroll(unenroll) => unenroll.run(&access).await,
        Command::Waypoint(command) => command.run(&access).await,
        Command::Vm(vm) => vm.run(&access).await,
        Command::Dump(dump) => dump.run(&access).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ambit", &mut script);
            output::text(&String::from_utf8_lossy(&script))?;
            Ok(Outcome::Well)
        }
    }
}
