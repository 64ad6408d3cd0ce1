//! How a machine joins, and stays: by a token once, then by the certificate over its own key ([`Membership`]).
//!
//! ```text
//!  no certificate ── token ──▶ certificate ── half of its life, ± a tenth ──▶ renewed by itself
//!        ▲                        │ refused: taken out of the book, away for too long
//!        └── a new token lies there ◀┘
//! ```
//! The token is read each time, so an operator who puts another there need not restart anything. While it has not joined,
//! certificates for its tunnels are refused with the reason why, and connections with them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hbone::ca::TokenSource;
use hbone::control_plane::{Dialler, MachineName, Membership, token_source};
use hbone::{CaClient, Identity, SignError, Signer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::headers::random;

/// Whether the machine has joined, or why not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It may ask for certificates.
    Joined,
    /// Not yet.
    Not(SignError),
}

/// Joins, and keeps the membership current until `stop`.
pub async fn run(
    config: Arc<Config>,
    membership: Arc<Membership>,
    standing: watch::Sender<Standing>,
    stop: CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        while let Some(left) = left(&membership, &config) {
            standing.send_replace(Standing::Joined);
            if left.is_zero() {
                break;
            }
            if stop.run_until_cancelled(wait(left)).await.is_none() {
                return;
            }
        }
        let asked = stop.run_until_cancelled(ask(&config, &membership)).await;
        match asked {
            None => return,
            Some(Ok(machine)) => {
                pause = FIRST_PAUSE;
                tracing::info!(%machine, "this machine is a member of the mesh");
                standing.send_replace(Standing::Joined);
                let rest = rest(left(&membership, &config));
                if stop.run_until_cancelled(wait(rest)).await.is_none() {
                    return;
                }
            }
            Some(Err(error)) => {
                // What is kept still counts; a first one is what everything waits for.
                let repeated = matches!(&*standing.borrow(), Standing::Not(last) if *last == error);
                if !repeated {
                    tracing::error!(%error, "this machine cannot join, or not renew what it joined with");
                }
                if membership.machine().is_none() {
                    standing.send_replace(Standing::Not(error));
                }
                if stop.run_until_cancelled(wait(pause)).await.is_none() {
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// What a store of certificates asks with: nothing before the machine has joined.
pub struct Requests {
    client: CaClient,
    joined: Option<watch::Receiver<Standing>>,
}

impl Requests {
    /// By `client`, once `joined` says so; at once where nobody joins.
    pub fn new(client: CaClient, joined: Option<watch::Receiver<Standing>>) -> Self {
        Self { client, joined }
    }
}

impl Signer for Requests {
    async fn sign(&self, identity: &Identity, csr_pem: String) -> Result<Vec<String>, SignError> {
        let standing = self.joined.as_ref().map(|joined| joined.borrow().clone());
        if let Some(Standing::Not(why)) = standing {
            return Err(why);
        }
        self.client.sign(identity, csr_pem).await
    }
}

/// Before anything was tried.
pub fn not_yet() -> Standing {
    Standing::Not(SignError::Unavailable(
        "this machine has not joined yet".into(),
    ))
}

/// How long the membership may be left as it is; `None` where there is none for this workload.
fn left(membership: &Membership, config: &Config) -> Option<Duration> {
    let machine = membership.machine()?;
    if machine.namespace != config.pod_namespace || machine.name != config.pod_name {
        return None;
    }
    let (from, to) = membership.validity()?;
    let life = to.duration_since(from).unwrap_or_default();
    let half = from + life / 2;
    let left = half.duration_since(SystemTime::now()).unwrap_or_default();
    let share = 0.9 + 0.2 * (random() % 1000) as f64 / 1000.0;
    Some(left.mul_f64(share))
}

/// How long nothing is asked after an answer, of which so much is left: by a clock that is ahead by half a life it is due again
/// at once, each time.
fn rest(left: Option<Duration>) -> Duration {
    match left {
        Some(left) if !left.is_zero() => Duration::ZERO,
        _ => LONGEST_PAUSE,
    }
}

/// By the certificate if there is one; by the token if there is none, or if it is not believed any more.
async fn ask(config: &Config, membership: &Arc<Membership>) -> Result<MachineName, SignError> {
    let by_certificate = match left(membership, config) {
        Some(_) => Some(renew(config, membership).await),
        None => None,
    };
    let elements = match by_certificate {
        Some(Ok(elements)) => elements,
        Some(Err(SignError::Refused(why))) => join(config, membership)
            .await
            .map_err(|error| SignError::Refused(format!("{why}; and by the token: {error}")))?,
        Some(Err(error)) => return Err(error),
        None => join(config, membership).await?,
    };
    membership.keep(&config.pod_namespace, &config.pod_name, &elements)
}

async fn renew(config: &Config, membership: &Membership) -> Result<Vec<String>, SignError> {
    let client = client(config, &config.dialler(), config.tokens())?;
    sign(&client, config, membership).await
}

async fn join(config: &Config, membership: &Membership) -> Result<Vec<String>, SignError> {
    let Some(path) = &config.join_token else {
        return Err(SignError::Local("there is no join token".into()));
    };
    // Shows nothing: who has a certificate is asked for no token.
    let dialler = Dialler {
        membership: None,
        ..config.dialler()
    };
    let client = client(config, &dialler, token_source(path))?;
    sign(&client, config, membership).await
}

async fn sign(
    client: &CaClient,
    config: &Config,
    membership: &Membership,
) -> Result<Vec<String>, SignError> {
    // Names nobody: whose it becomes is the token's to say, or the book's.
    let nobody = Identity::new(
        "cluster.local",
        &config.pod_namespace,
        &config.service_account,
    )
    .map_err(|error| SignError::Local(error.to_string()))?;
    let signing = tokio::time::timeout(ATTEMPT, client.sign(&nobody, membership.request()?));
    signing
        .await
        .map_err(|_| SignError::Unavailable(format!("no answer within {ATTEMPT:?}")))?
}

/// Over a connection of its own: it is needed once in hours.
fn client(config: &Config, dialler: &Dialler, token: TokenSource) -> Result<CaClient, SignError> {
    let channel = dialler
        .channel(
            config.ca_address(),
            config.ca_root_ca(),
            config.alt_ca_hostname.as_deref(),
        )
        .map_err(|error| SignError::Local(error.to_string()))?;
    CaClient::new(channel, &config.cluster_id, token, config.secret_ttl)?
        .with_headers(&config.ca_headers)
        .for_itself()
        .for_workload(&super::reference(config))
}

/// A machine that sleeps comes back late: the wall clock is looked at again now and then.
async fn wait(due: Duration) {
    tokio::time::sleep(due.min(LONGEST_SLEEP)).await;
}

const ATTEMPT: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_again_as_soon_as_it_was_renewed_is_not_asked_for_without_a_pause() {
        assert_eq!(rest(Some(Duration::from_secs(1))), Duration::ZERO);
        assert_eq!(rest(Some(Duration::ZERO)), LONGEST_PAUSE);
        assert_eq!(rest(None), LONGEST_PAUSE);
    }
}
