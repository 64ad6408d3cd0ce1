//! Ends the agents of all nodes before the mesh is removed, while they still have the right to say on each pod that it
//! has left: what `helm uninstall` runs first, for it takes rights and programs away at the same moment.
//!
//! 1. the DaemonSet is deleted in the foreground: it stays, and says so, until its last pod has ended
//! 2. each agent sees that, lets the pods of its node go and takes its plugin along (`depart`)
//! 3. when the DaemonSet is gone, so are they
//!
//! A node that does not answer keeps its agent's pod for ever. It must not keep the mesh: after a while the removal
//! goes on without it, and says so.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::DeleteParams;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};

use super::cluster::{DAEMONSETS, Wish, connect, explain};

/// Settings.
#[derive(Clone, Debug, clap::Args)]
pub struct Retire {
    /// The agents' DaemonSet.
    #[arg(long, env = "DAEMONSET_NAME", default_value = "istio-cni-node")]
    daemonset_name: String,
    /// Its namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    namespace: String,
    /// How long the nodes have, seconds.
    #[arg(long, default_value_t = 90, value_name = "SECONDS")]
    patience: u64,
}

/// How the nodes were left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// Every agent has ended.
    All,
    /// Some have not, within the time they had.
    NotAll,
}

impl Retire {
    /// Deletes the DaemonSet and waits for its pods.
    ///
    /// # Errors
    /// What the API server refused, in one line with what mends it.
    pub async fn run(&self) -> Result<Retired, String> {
        let retired = self.at(connect().await?).await?;
        match retired {
            Retired::All => tracing::info!("the agents of all nodes have ended"),
            Retired::NotAll => tracing::warn!(
                "not every agent ended within {} s: is a node out of reach? Its pods keep the annotation ambient.istio.io/redirection \
                 until they are made again",
                self.patience
            ),
        }
        Ok(retired)
    }

    async fn at(&self, client: Client) -> Result<Retired, String> {
        let sets: Api<PartialObjectMeta<DaemonSet>> = Api::namespaced(client, &self.namespace);
        let name = &self.daemonset_name;
        let get = async || {
            let found = sets.get_opt(name).await;
            found.map_err(|error| explain(&error, Wish("get", DAEMONSETS)))
        };
        let Some(set) = get().await? else {
            return Ok(Retired::All);
        };
        let deleted = sets.delete(name, &DeleteParams::foreground()).await;
        if let Err(error) = deleted.map(drop)
            && !is_missing(&error)
        {
            return Err(explain(&error, Wish("delete", DAEMONSETS)));
        }
        let begun = Instant::now();
        // One of that name with another uid was made since, by somebody who wants it.
        while get()
            .await?
            .is_some_and(|now| now.metadata.uid == set.metadata.uid)
        {
            if begun.elapsed() >= Duration::from_secs(self.patience) {
                return Ok(Retired::NotAll);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(Retired::All)
    }
}

fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

const PAUSE: Duration = Duration::from_millis(500);
