//! Whose token is this? The API server knows.
//!
//! Enters: a bearer token. Leaves: the service account and the pod it is bound to.
//!
//! 1. what cannot be a service account's token is refused here: it would cost the API server as much
//!    as a good one
//! 2. an answer of the last seconds is used again, a refusal too; those who ask with the same token
//!    at the same time wait for one answer
//! 3. the API server is asked (`TokenReview`), by so many at a time; those whose token was good before
//!    do not queue behind those who come with anything
//! 4. its answer is read                                                       ([`read`], pure)
//!
//! When a control plane restarts, every proxy of the mesh comes back at once, and each asks for
//! dozens of certificates with one token: without 2 and 3 the API server would feel it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::k8s::server::Refusal;
use aws_lc_rs::digest;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{OnceCell, Semaphore};

use super::recent::Recent;
use super::trouble::{Health, request_line};
use crate::token::Named;

/// Asks the API server.
pub struct Reviewer {
    reviews: Api<TokenReview>,
    audiences: Vec<String>,
    health: Health,
    recent: Mutex<Recent<Hash, Arc<OnceCell<Answer>>>>,
    /// Tokens that were good lately.
    good: Mutex<Recent<Hash, ()>>,
    turns: Turns,
}

/// Who may ask at the same time.
struct Turns {
    proven: Semaphore,
    strangers: Semaphore,
}

/// SHA-256: the tokens themselves are not kept.
type Hash = [u8; 32];
type Answer = Result<Proven, Refused>;

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// Namespace of the account.
    pub namespace: String,
    /// The account.
    pub service_account: String,
    /// The pod the token is bound to.
    pub pod: Option<Named>,
}

/// The token is not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not even the form of one.
    #[error("it is no JWT")]
    Form,
    /// Wrong signature, expired, its pod or account deleted …
    #[error("{0}")]
    NotAuthenticated(String),
    /// Good, but meant for somebody else.
    #[error("it is for {0:?}")]
    Audience(Vec<String>),
    /// Good, but not a service account's.
    #[error("it is of {0:?}, which is not a service account")]
    Subject(String),
}

/// Nobody could say.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The API server did not.
    #[error("{0}")]
    ApiServer(String),
    /// Not in time, or too many were asking.
    #[error("no answer of the API server within {} s", ANSWER.as_secs())]
    Late,
}

impl Reviewer {
    /// Tokens must be for one of `audiences`.
    pub fn new(client: Client, audiences: Vec<String>, health: Health) -> Self {
        Self {
            reviews: Api::all(client),
            audiences,
            health,
            recent: Mutex::new(Recent::new(REMEMBERED, MOST)),
            good: Mutex::new(Recent::new(PROVEN, MOST)),
            turns: Turns {
                proven: Semaphore::new(AT_ONCE),
                strangers: Semaphore::new(AT_ONCE),
            },
        }
    }

    /// Whose token that is.
    ///
    /// # Errors
    /// Outside: nobody could say. Inside: it is not good.
    pub async fn review(&self, token: &str) -> Result<Answer, Unanswered> {
        if !is_jwt(token) {
            return Ok(Err(Refused::Form));
        }
        let hash = hash(token);
        let cell = self.cell(hash);
        let ask = cell.get_or_try_init(|| self.ask(token, hash));
        let answer = tokio::time::timeout(ANSWER, ask).await;
        answer.map_err(|_| Unanswered::Late)?.cloned()
    }

    fn cell(&self, hash: Hash) -> Arc<OnceCell<Answer>> {
        let now = Instant::now();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.get(&hash, now).unwrap_or_else(|| {
            let cell = Arc::new(OnceCell::new());
            recent.put(hash, cell.clone(), now);
            cell
        })
    }

    async fn ask(&self, token: &str, hash: Hash) -> Result<Answer, Unanswered> {
        let turns = match self.good().get(&hash, Instant::now()) {
            Some(()) => &self.turns.proven,
            None => &self.turns.strangers,
        };
        let _turn = turns.acquire().await.map_err(|_| Unanswered::Late)?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(self.audiences.clone()),
            },
            ..TokenReview::default()
        };
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| {
            let refusal = Refusal::of(&error);
            let line = request_line(&refusal, "create", RESOURCE);
            self.health.failed_to("create", RESOURCE, refusal);
            Unanswered::ApiServer(line)
        })?;
        self.health.answered(RESOURCE);
        let answer = read(answer.status.unwrap_or_default(), &self.audiences);
        if answer.is_ok() {
            self.good().put(hash, (), Instant::now());
        }
        Ok(answer)
    }

    fn good(&self) -> MutexGuard<'_, Recent<Hash, ()>> {
        self.good.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(token: &str) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

/// Three parts with dots between, of a length that headers carry.
fn is_jwt(token: &str) -> bool {
    let parts = token.split('.').filter(|part| !part.is_empty()).count();
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    parts == 3
        && token.bytes().all(letters)
        && token.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// Pure: what the API server's answer means.
fn read(status: TokenReviewStatus, audiences: &[String]) -> Answer {
    if !status.authenticated.unwrap_or(false) {
        let why = status.error.filter(|why| !why.is_empty());
        let why = why.unwrap_or_else(|| "not authenticated".into());
        return Err(Refused::NotAuthenticated(why));
    }
    // An API server that does not know of audiences names none: such a token is for itself.
    let meant = status.audiences.unwrap_or_default();
    if !meant.iter().any(|audience| audiences.contains(audience)) {
        return Err(Refused::Audience(meant));
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let Some((namespace, service_account)) = account_of(&username) else {
        return Err(Refused::Subject(username));
    };
    let extra = user.extra.unwrap_or_default();
    let extra = |key: &str| extra.get(key).and_then(|values| values.first()).cloned();
    let pod = match (extra(POD_NAME), extra(POD_UID)) {
        (Some(name), Some(uid)) => Some(Named { name, uid }),
        _ => None,
    };
    Ok(Proven {
        namespace: namespace.into(),
        service_account: service_account.into(),
        pod,
    })
}

/// Namespace and name in `system:serviceaccount:<namespace>:<name>`.
pub(crate) fn account_of(subject: &str) -> Option<(&str, &str)> {
    let (namespace, account) = subject
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    let whole = !namespace.is_empty() && !account.is_empty() && !account.contains(':');
    whole.then_some((namespace, account))
}

const RESOURCE: &str = "tokenreviews.authentication.k8s.io";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// A token that was revoked is good for so long; one that was not good yet is refused for so long.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Tokens remembered: more than the nodes of any cluster, a few hundred bytes each.
const MOST: usize = 10_000;
/// The kubelet renews a token long before.
const PROVEN: Duration = Duration::from_secs(24 * 3600);
/// Questions to the API server at the same time, of either sort.
const AT_ONCE: usize = 8;
const ANSWER: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests;
