//! `ambit-cni-agent`: the node agent, and the installation of the plugin on its host.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use cni_plugin::agent::{self, Metrics};
use cni_plugin::install::{self, Install};
use ops::log::Format;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Brings the pods of its node into the mesh.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: Option<agent::Config>,
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
    let cli = Cli::parse();
    let log = match ops::log::init(&cli.log, cli.log_format) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = match (cli.verb, cli.run) {
        (Some(Verb::Run(config)), _) => run(*config),
        (None, Some(config)) => run(config),
        (Some(Verb::Install(put)), _) => put.run(),
        (Some(Verb::Uninstall(install)), _) => install.remove().map_err(Into::into),
        (None, None) => Err(anyhow::anyhow!(
            "--config-dir and --node-name are missing; see --help"
        )),
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
        let metrics = install::Metrics::new(registry.families());
        let runtime = runtime(1)?;
        if let Some(address) = self.install_metrics_address {
            let routes = ops::admin::metrics(Arc::new(registry));
            runtime.block_on(open(address, routes, CancellationToken::new()))?;
        }
        let watched = self.install.watch(|applied| {
            metrics.note(&self.install, &applied);
            match applied {
                Ok(changed) => report(changed),
                Err(error) => tracing::error!(%error, "the plugin is not installed"),
            }
        });
        watched.context("watching the host's directories")
    }
}

/// Two threads: the owner's decisions must not wait for a scrape, and there is no more to do.
fn run(config: agent::Config) -> anyhow::Result<()> {
    runtime(2)?.block_on(serve(config))
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
    let metrics = Metrics::new(registry.families());
    let readiness = ops::ready::Readiness::new();
    let ready = readiness.gate("agent");
    let alive = axum::routing::get(|| async { "alive\n" });
    let health = ops::admin::readiness(readiness).route("/healthz", alive);
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
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; pods keep their rules");
        stopping.cancel();
    });
    agent::run(config, metrics, ready, stop).await?;
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
        let flags = ["--config-dir", "/c", "--node-name", "n1"];
        let bare = Cli::parse_from(["agent"].into_iter().chain(flags));
        assert_eq!(
            bare.run.map(|config| config.node_name),
            Some("n1".to_owned())
        );
        let spoken = Cli::parse_from(["agent", "run"].into_iter().chain(flags));
        assert!(matches!(spoken.verb, Some(Verb::Run(config)) if config.node_name == "n1"));
        assert!(
            Cli::try_parse_from(["agent", "--node-name", "n1"]).is_err(),
            "half of what it needs"
        );
    }
}
