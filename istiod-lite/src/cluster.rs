//! Kubernetes as the source of objects, and as the judge of who calls.
//!
//! ```text
//!                  ┌─ watch (one task a kind) ─ door ─┐ bounded
//!  API server ─────┤                                  ├────────► source ─► Change, as from a directory
//!                  └─ definitions: which kinds exist ─┘           (book)
//!             ◄───── review: whose token is this                 ([`crate::authenticate`])
//!             ◄───── pods: what runs there, when the book may be late
//! ```
//!
//! | module | is |
//! |---|---|
//! | `definitions` | pure: which of our kinds the cluster has, and under which version |
//! | `door` | pure: an object of the API server becomes ours, without what nobody reads |
//! | `book` | pure: what is known, and what a list that was read anew says is gone |
//! | `trouble` | pure: what is wrong between the API server and us, said once |
//! | `watch`, `source` | the tasks, and their owner |
//! | `credentials` | Secrets and ConfigMaps, those that are named |
//! | `review`, `pods` | questions about callers, and their answers of the last seconds (`recent`) |
//! | `mesh_config` | the mesh's settings from ConfigMap `istio` |

mod book;
mod credentials;
mod definitions;
mod door;
#[cfg(test)]
mod fake;
pub mod mesh_config;
mod pods;
mod recent;
mod review;
mod source;
pub(crate) mod trouble;
pub(crate) mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::k8s::server::{Way, chain};
use kube::Client;

pub use pods::Pods;
pub(crate) use review::account_of;
pub use review::{Proven, Refused, Reviewer, Unanswered};
pub use source::{Cluster, Kinds};
pub use trouble::Health;

/// How to reach the API server.
#[derive(Clone)]
pub struct Connection {
    /// For everything but watches.
    pub client: Client,
    /// Gives up on an answer that does not go on; see [`SILENCE`].
    pub(crate) watching: Client,
}

/// We do not know how to reach the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file given.
    #[error("kubeconfig {file}: {1}", file = .0.display())]
    Kubeconfig(PathBuf, String),
    /// No file given, and this is no pod.
    #[error(
        "not in a cluster ({0}); give --kubeconfig FILE, or --config-dir DIR to run without Kubernetes"
    )]
    NotInCluster(String),
    /// Certificates or credentials that cannot be used.
    #[error("credentials for the API server {0}: {1}")]
    Credentials(String, String),
}

/// Reads the credentials; nothing is sent yet.
///
/// # Errors
/// What is wrong with them, in one line.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Connection, ConnectError> {
    let mut config = match kubeconfig {
        Some(file) => {
            let read = Way::File(file.to_owned(), None).config().await;
            read.map_err(|why| ConnectError::Kubeconfig(file.to_owned(), why))?
        }
        None => Way::Pod
            .config()
            .await
            .map_err(ConnectError::NotInCluster)?,
    };
    config.connect_timeout = Some(CONNECT);
    // Not for ever on a connection whose other end vanished, but longer than kube's own watches.
    config.read_timeout = Some(Duration::from_secs(300));
    let server = config.cluster_url.to_string();
    let failed = |error: kube::Error| ConnectError::Credentials(server.clone(), chain(&error));
    let client = Client::try_from(config.clone()).map_err(failed)?;
    config.read_timeout = Some(SILENCE);
    let watching = Client::try_from(config).map_err(failed)?;
    Ok(Connection { client, watching })
}

const CONNECT: Duration = Duration::from_secs(10);
/// A watch that is silent for longer has lost its other end.
const SILENCE: Duration = Duration::from_secs(75);
