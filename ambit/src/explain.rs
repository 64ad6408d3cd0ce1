//! `ambit explain SRC DST[:PORT]`: what becomes of a connection, asked of the proxies that would carry it.
//!
//! 1. who is meant, and on which node it runs                    ([`pods`], on a cluster)
//! 2. ask the source's ztunnel, then the waypoint, if one is in the path, then the destination's ztunnel   ([`ask`])
//! 3. what their answers come to, without asking anything        ([`story`])
//! 4. show it                                                    ([`show`])
//!
//! Nothing is worked out here that a proxy decides: each answer is that of the proxy's live state.

mod ask;
mod pods;
mod show;
mod story;

use clap::Args;

use crate::Outcome;
use crate::cluster::Access;
use crate::live::Reach;
use crate::output::{self, Format};

/// Flags of `explain`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Who calls: NAMESPACE/POD, NAMESPACE/OWNER (a Deployment, say), a pod of --namespace, or an address.
    #[arg(value_name = "SRC")]
    source: String,
    /// Whom: NAMESPACE/POD, a service's name as the caller would say it, NAMESPACE/SERVICE, or an address. The port may
    /// be left out where there is only one.
    #[arg(value_name = "DST[:PORT]")]
    destination: String,
    /// Namespace of a SRC that says none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Datagrams (UDP), not a connection.
    #[arg(long)]
    udp: bool,
    /// Of a request at a waypoint: its method.
    #[arg(long, default_value = "GET")]
    method: String,
    /// Of a request at a waypoint: its path.
    #[arg(long, default_value = "/")]
    path: String,
    /// Of a request at a waypoint: a header; may be said again.
    #[arg(long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    reach: Reach,
}

impl Explain {
    pub(crate) async fn run(&self, access: &Access) -> anyhow::Result<Outcome> {
        let proxies = self.reach.proxies(access).await?;
        let asked = ask::ask(self, &proxies).await?;
        let told = story::told(&asked);
        output::print(self.output, &told, show::text)?;
        Ok(match told.verdict {
            story::Verdict::Allowed => Outcome::Well,
            story::Verdict::Refused | story::Verdict::Unknown => Outcome::Wrong,
        })
    }
}
