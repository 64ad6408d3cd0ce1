//! Measurements beside raw sockets, bare forwarders and, where they are given, a peer's ztunnel and waypoint.
//!
//! `bench` makes a lab, measures every subject round by round in one run and prints medians and
//! ratios. The other verbs are the programs that run inside the lab's pods.

mod forward;
mod load;
mod process;
mod scale;
mod subject;
mod table;
mod tls;
mod waypoint;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "bench",
    about = "Measures the mesh beside raw sockets, bare forwarders and a peer"
)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// A peer's ztunnel to measure beside ours.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// An Envoy to measure beside our waypoint.
    #[arg(long, env = "PEER_ENVOY")]
    envoy: Option<PathBuf>,
    /// Rounds whose median is taken.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one measurement takes, in milliseconds.
    #[arg(long, default_value_t = 2000)]
    time: u64,
    /// Only the rows whose name holds this text, e.g. `bulk`, `idle` or `workloads`.
    #[arg(long)]
    only: Option<String>,
    /// Idle connections of the memory rows.
    #[arg(long, value_delimiter = ',', default_value = "1000,5000")]
    hold: Vec<usize>,
    /// Workloads of the large-mesh rows.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    workloads: Vec<usize>,
}

#[derive(Subcommand)]
enum Verb {
    /// The load generator's server.
    Serve {
        /// Where to listen.
        bind: SocketAddr,
    },
    /// The load generator's client; prints one line of JSON.
    Load {
        /// What to do.
        #[arg(value_enum)]
        work: load::Work,
        /// Where the server is.
        to: SocketAddr,
        /// Connections at a time.
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// How long, in milliseconds.
        #[arg(long, default_value_t = 2000)]
        time: u64,
    },
    /// A bare forwarder, the floor.
    Forward {
        /// Where to listen.
        listen: SocketAddr,
        /// Where to forward.
        to: SocketAddr,
    },
    /// How a ztunnel takes a large mesh; run in a namespace where nobody has its ports. Prints one line of JSON.
    Scale {
        /// The ztunnel.
        binary: PathBuf,
        /// With what.
        #[command(flatten)]
        mesh: scale::Mesh,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.verb {
        None => table::run(&table::Plan {
            rounds: arguments.rounds,
            time: Duration::from_millis(arguments.time),
            peer: arguments.peer.as_deref(),
            envoy: arguments.envoy.as_deref(),
            only: arguments.only.as_deref(),
            hold: &arguments.hold,
            workloads: &arguments.workloads,
        }),
        Some(verb) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(inside(verb)),
    }
}

/// The programs that run inside a pod or a namespace of their own.
#[allow(clippy::print_stdout)] // the measurement is what they are for
async fn inside(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Serve { bind } => load::serve(*bind).await,
        Verb::Load {
            work,
            to,
            connections,
            time,
        } => {
            let measured =
                load::run(*work, *to, *connections, Duration::from_millis(*time)).await?;
            if *work != load::Work::Hold {
                println!("{}", serde_json::to_string(&measured)?);
            }
            Ok(())
        }
        Verb::Forward { listen, to } => forward::forward(*listen, *to).await,
        Verb::Scale { binary, mesh } => {
            println!(
                "{}",
                serde_json::to_string(&scale::measure(binary, *mesh).await?)?
            );
            Ok(())
        }
    }
}
