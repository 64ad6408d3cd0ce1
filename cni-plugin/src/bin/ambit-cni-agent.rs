//! `ambit-cni-agent`: the node agent, and the installation of the plugin on its host.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use cni_plugin::agent::{self, Metrics, Signs};
use cni_plugin::install::{self, Install, Watch};
use ops::log::Format;
use ops::signals::Signals;
use tokio_util::sync::CancellationToken;

/// Brings the pods of its node into the mesh.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// What is logged: a level, then `module=level` pairs, comma separated.
    #[arg(long, env = "RUST_LOG", default_value = "info", global = true)]
    log: String,
    /// `plain` or `json`.
    #[arg(long, env = "LOG_FORMAT", default_value = "plain", global = true)]
    log_format: Format,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Runs the agent (also without this word).
    Run(Box<agent::Config>),
    /// Puts the plugin onto the host, or repairs it there.
    Install(Put),
    /// Takes the plugin off the host.
    Uninstall(Install),
    /// The packet rules of the network namespace this runs in, for a machine that is no pod, or a pod that brings its own proxy.
    #[command(subcommand)]
    Capture(Capture),
    /// Ends the agents of all nodes, so that each releases its pods: the first step of removing the mesh.
    Retire(agent::Retire),
}

#[derive(Debug, clap::Subcommand)]
enum Capture {
    /// Put them in place, over earlier ones. They stay when the proxy ends: what it would carry is refused meanwhile.
    Up(agent::Own),
    /// Take them away: connections pass in the clear from now on.
    Down(agent::Own),
    /// Print what `up` would load.
    Print(agent::Own),
}

#[derive(Debug, clap::Args)]
struct Put {
    #[command(flatten)]
    install: Install,
    /// Stay, and repair whenever someone overwrites it.
    #[arg(long)]
    watch: bool,
    /// `/metrics` of an installation that stays. Default: none, for beside the agent its port is taken.
    #[arg(long, env = "INSTALL_METRICS_ADDRESS", requires = "watch")]
    install_metrics_address: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(with_verb(std::env::args_os().collect()));
    let log = match ops::log::init(&format!("{QUIET},{}", cli.log), cli.log_format) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = match cli.verb {
        Verb::Run(config) => run(*config),
        Verb::Install(put) => put.run(),
        Verb::Uninstall(install) => install.remove().map_err(Into::into),
        Verb::Retire(retire) => end_all(&retire),
        Verb::Capture(capture) => capture.run(),
    };
    if let Err(error) = &outcome {
        tracing::error!("{error:#}");
    }
    log.flush(Duration::from_secs(1));
    if outcome.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The command line with its verb, which is `run` if it has none.
fn with_verb(mut line: Vec<OsString>) -> Vec<OsString> {
    let spoken = |word: &OsString| word.to_str().is_some_and(|word| WORDS.contains(&word));
    if !line.iter().skip(1).any(spoken) {
        line.insert(line.len().min(1), "run".into());
    }
    line
}

/// Their failures are told in our words, once, with what to look at.
const QUIET: &str = "kube_client=off,kube_runtime=off";
/// With one of these nothing is to be added.
const WORDS: [&str; 10] = [
    "run",
    "capture",
    "install",
    "uninstall",
    "retire",
    "help",
    "-h",
    "--help",
    "-V",
    "--version",
];

impl Capture {
    #[allow(clippy::print_stdout)] // the script is the output
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Up(own) => runtime(1)?.block_on(own.up())?,
            Self::Down(own) => runtime(1)?.block_on(own.down())?,
            Self::Print(own) => print!("{}", own.script()?),
        }
        Ok(())
    }
}

impl Put {
    fn run(self) -> anyhow::Result<()> {
        let report = |changed: Vec<PathBuf>| {
            for file in changed {
                tracing::info!(file = %file.display(), "written");
            }
        };
        if !self.watch {
            report(self.install.apply()?);
            return Ok(());
        }
        let mut registry = registry();
        let watch = Watch {
            install: self.install,
            kubeconfig: None,
            metrics: install::Metrics::new(registry.families()),
        };
        let runtime = runtime(1)?;
        if let Some(address) = self.install_metrics_address {
            let routes = ops::admin::metrics(Arc::new(registry));
            runtime.block_on(open(address, routes, CancellationToken::new()))?;
        }
        // Nobody closes it: the process ends with its signal.
        let (stop, _open) = std::io::pipe().context("a pipe")?;
        let watched = watch.run(stop.as_fd(), |applied| match applied {
            Ok(changed) => report(changed),
            Err(error) => tracing::error!(%error, "the plugin is not installed"),
        });
        watched.context("watching the host's directories")
    }
}

/// Two threads: the owner's decisions must not wait for a scrape, and there is no more to do.
fn run(config: agent::Config) -> anyhow::Result<()> {
    runtime(2)?.block_on(serve(config))
}

/// That a node is out of reach is told, and keeps nobody from removing the mesh.
fn end_all(retire: &agent::Retire) -> anyhow::Result<()> {
    let retired = runtime(1)?.block_on(retire.run());
    retired.map(drop).map_err(anyhow::Error::msg)
}

fn runtime(threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("starting the runtime")
}

fn registry() -> ops::metrics::Registry {
    ops::metrics::Registry::new("istio-cni", env!("CARGO_PKG_VERSION"))
}

/// Serves `routes` from now on until `stop`.
async fn open(
    address: SocketAddr,
    routes: axum::Router,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = ops::admin::bind(address)
        .await
        .with_context(|| format!("binding {address}"))?;
    tokio::spawn(ops::admin::serve(listener, routes, stop));
    Ok(())
}

async fn serve(config: agent::Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut registry = registry();
    let signs = Signs {
        metrics: Metrics::new(registry.families()),
        install: install::Metrics::new(registry.families()),
        readiness: ops::ready::Readiness::new(),
    };
    // Closed from the start: an agent that is still looking for its API server is not ready.
    signs.readiness.gate("agent");
    let alive = axum::routing::get(|| async { "alive\n" });
    let health = ops::admin::readiness(signs.readiness.clone()).route("/healthz", alive);
    let doors = [
        (
            config.metrics_address,
            ops::admin::metrics(Arc::new(registry)),
        ),
        (config.readiness_address, health),
    ];
    for (address, routes) in doors {
        open(address, routes, stop.clone()).await?;
    }
    let mut signals = Signals::listen()?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        signals.next().await;
        tracing::info!("told to stop");
        stopping.cancel();
    });
    agent::run(config, signs, stop).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_agent_runs_with_or_without_its_word() {
        let node = |line: &[&str]| {
            let line = line.iter().map(OsString::from).collect();
            match Cli::try_parse_from(with_verb(line)).map(|cli| cli.verb) {
                Ok(Verb::Run(config)) => Some((config.node_name, config.config_dir)),
                _ => None,
            }
        };
        let directory = ["--config-dir", "/c", "--node-name", "n1"];
        let with = |before: &[&str]| node(&[before, &directory[..]].concat());
        let expected = Some(("n1".to_owned(), Some("/c".into())));
        assert_eq!(with(&["agent"]), expected);
        assert_eq!(with(&["agent", "run"]), expected);
        assert_eq!(with(&["agent", "--log", "debug"]), expected);
        assert_eq!(with(&["agent", "install"]), None);
        assert_eq!(
            node(&["agent", "--config-dir", "/c"]),
            None,
            "half of what it needs"
        );
        assert_eq!(
            node(&["agent", "--node-name", "n1"]),
            Some(("n1".to_owned(), None))
        );
    }
}
