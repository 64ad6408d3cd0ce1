//! One workload, in the network namespace that this process runs in: a machine that is no pod, or a pod on a node where no
//! node proxy may run.
//!
//! 1. who it is, the operator says (`PROXY_WORKLOAD_INFO`)                          ([`prepare`])
//! 2. its listeners open before anything else is known: the packet rules lead to them already, and connections
//!    wait rather than pass by                                                      ([`crate::agent::Agent::serve_own`])
//! 3. a pod has a token of its service account, as any; a machine joins by a token that is good once, and shows the
//!    certificate it was given from then on                                         ([`join`])
//! 4. a machine says that it is there, and how its application does                  ([`presence`], [`probe`]),
//!    the latter on its discovery stream too, as Istio's agents do                   ([`crate::xds`]);
//!    a pod's applications are asked what kubelet would ask                          ([`apps`])
//!
//! Nothing of the path differs: the workload is a pod whose namespace is ours. There is no node agent, and no
//! successor that connections are handed to.

pub mod apps;
pub mod join;
pub mod presence;
pub mod probe;

use std::sync::Arc;

use hbone::CaClient;
use hbone::control_plane::{Membership, MembershipError, WORKLOAD};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Mode};
use join::{Requests, Standing};

/// It cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody said for whom it is.
    #[error("PROXY_MODE=dedicated needs PROXY_WORKLOAD_INFO=<namespace>/<name>/<service account>")]
    ForWhom,
    /// A variable that would not be heeded.
    #[error("{0} is for PROXY_MODE=dedicated")]
    NotDedicated(&'static str),
    /// Where the machine's key is kept.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// Fills in what follows from the mode: in ours, the proxy is its workload, to everybody.
///
/// # Errors
/// When the flags do not fit together, or the machine's key cannot be had.
pub fn prepare(config: &mut Config) -> Result<(), Error> {
    if config.mode == Mode::Shared {
        let stray = given(config);
        return match stray {
            true => Err(Error::NotDedicated("AMBIT_JOIN_TOKEN")),
            false => Ok(()),
        };
    }
    let workload = config.workload.clone().ok_or(Error::ForWhom)?;
    config.pod_name.clone_from(&workload.name);
    config.pod_namespace.clone_from(&workload.namespace);
    config.service_account.clone_from(&workload.service_account);
    if config.own_ip().is_loopback() {
        // Nobody said. The control plane knows it better than a default of ours.
        config.instance_ip.clear();
    }
    if given(config) {
        config.membership = Some(Membership::open(&config.membership_dir)?);
        config.health = Some(Arc::new(watch::Sender::new(probe::unknown())));
        let reference = reference(config);
        config.xds_headers.push((WORKLOAD.to_owned(), reference));
    }
    Ok(())
}

/// What the store of certificates asks with, and, where the machine has to join first, whether it has.
///
/// # Errors
/// When an address or a name is of no use.
pub fn signer(
    config: &Arc<Config>,
    end: &CancellationToken,
) -> anyhow::Result<(Requests, Option<Joined>)> {
    let channel = config.dialler().channel(
        config.ca_address(),
        config.ca_root_ca(),
        config.alt_ca_hostname.as_deref(),
    )?;
    let lifetime = config.secret_ttl;
    let client = CaClient::new(channel, &config.cluster_id, config.tokens(), lifetime)?;
    let client = client.with_headers(&config.ca_headers);
    let client = match config.mode {
        Mode::Shared => client,
        Mode::Dedicated => client.for_itself(),
    };
    let Some(membership) = config.membership.clone() else {
        return Ok((Requests::new(client, None), None));
    };
    let client = client.for_workload(&reference(config))?;
    let (standing, joined) = watch::channel(join::not_yet());
    tokio::spawn(join::run(config.clone(), membership, standing, end.clone()));
    tokio::spawn(presence::run(config.clone(), joined.clone(), end.clone()));
    Ok((Requests::new(client, Some(joined.clone())), Some(joined)))
}

/// Whether a machine has joined, as it changes.
pub type Joined = watch::Receiver<Standing>;

/// Returns when the control plane has reason to believe us: at once where nobody has to join.
pub async fn until_joined(joined: Option<Joined>) {
    if let Some(mut joined) = joined {
        // Its sender ends with the process.
        let _ = joined.wait_for(|it| *it == Standing::Joined).await;
    }
}

/// Whether this machine joins by a token. A variable that is empty is none.
fn given(config: &Config) -> bool {
    let path = config.join_token.as_deref();
    path.is_some_and(|path| !path.as_os_str().is_empty())
}

fn reference(config: &Config) -> String {
    format!("{}/{}", config.pod_namespace, config.pod_name)
}
