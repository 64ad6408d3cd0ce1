//! Measurements beside raw sockets, bare forwarders and, where one is given, a peer's ztunnel.
//!
//! `bench` makes a lab, measures every subject round by round in one run and prints medians and
//! ratios. The other verbs are the programs that run inside the lab's pods.

mod forward;
mod load;
mod process;
mod scale;

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
    verb: Verb,
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
    /// How a ztunnel takes a large mesh; run under `unshare --net`. Prints one line of JSON.
    Scale {
        /// The ztunnel.
        binary: PathBuf,
        /// How many workloads.
        #[arg(long, default_value_t = 10_000)]
        workloads: usize,
    },
}

#[allow(clippy::print_stdout)] // the measurement is what this program is for
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Serve { bind } => load::serve(bind).await,
        Verb::Load {
            work,
            to,
            connections,
            time,
        } => {
            let measured = load::run(work, to, connections, Duration::from_millis(time)).await?;
            if work != load::Work::Hold {
                println!("{}", serde_json::to_string(&measured)?);
            }
            Ok(())
        }
        Verb::Forward { listen, to } => forward::forward(listen, to).await,
        Verb::Scale { binary, workloads } => {
            println!(
                "{}",
                serde_json::to_string(&scale::measure(&binary, workloads).await?)?
            );
            Ok(())
        }
    }
}
