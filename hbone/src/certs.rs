//! Certificates: one current certificate for each identity that runs on this node.
//!
//! An identity enters ([`Certificates::hold`], [`Certificates::of`]); the certificate in force leaves.
//! Each identity has one task, so that however many connections ask, one key is made and one request
//! is sent:
//!
//! ```text
//! fetch ──ok──► publish ── half of what is left, ± a tenth ──► fetch (new key)
//!   └─error─► back off (0.2 s doubling to 30 s; 1 s while a caller waits) ─┘   the old one stays
//! ```
//!
//! It lives as long as somebody holds the identity. One that nobody holds is fetched for those who
//! wait for it and forgotten with the last of them: the stragglers of a pod that has gone leave nothing.
//!
//! Roots come with certificates, so when the mesh trusts another root each is fetched anew before its time
//! ([`Certificates::renew_all`]).
//!
//! A valid certificate is never dropped because its renewal failed. An expired one is refused with
//! the reason the last renewal failed.

mod certificate;
mod end;
mod keep;
mod sign;

use std::{
    collections::HashMap,
    fmt,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, task::AbortHandle};

use self::{
    keep::{Standing, State, Wakes, keep, request},
    sign::AnySigner,
};
use crate::identity::Identity;

pub(crate) use self::end::End;
pub use self::{
    certificate::Certificate,
    sign::{SignError, Signer},
};
pub use crate::tls::{CertificateText, Revocations};

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// None was ever obtained within the time a caller may wait.
    #[error("no certificate for {identity} yet: {}", reason(last))]
    NotYet {
        /// For whom.
        identity: Identity,
        /// The last failure, if one attempt has already failed.
        last: Option<SignError>,
    },
    /// The one we had has expired and could not be renewed.
    #[error("the certificate of {identity} has expired: {}", reason(last))]
    Expired {
        /// For whom.
        identity: Identity,
        /// Why the last renewal failed.
        last: Option<SignError>,
    },
}

fn reason(last: &Option<SignError>) -> String {
    last.as_ref().map_or_else(
        || "the certificate authority has not answered".to_owned(),
        ToString::to_string,
    )
}

/// How certificates are kept.
#[derive(Debug, Clone)]
pub struct CertificatesConfig {
    /// How long a caller of [`Certificates::of`] waits for a first certificate.
    pub wait: Duration,
    /// Trust domains accepted of peers beside the certificate's own.
    pub trust_domain_aliases: Vec<String>,
    /// First pause after a failure; doubles up to `longest_pause`.
    pub first_pause: Duration,
    /// Longest pause between attempts.
    pub longest_pause: Duration,
    /// How long one attempt may take.
    pub attempt: Duration,
    /// Over how long the requests are spread that [`Certificates::renew_all`] asks for.
    pub renewals_within: Duration,
    /// Who was revoked.
    pub revocations: Arc<Revocations>,
    /// Who met within the hour goes on with the session. Otherwise each handshake shows certificates.
    pub resume_sessions: bool,
}

impl Default for CertificatesConfig {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(5),
            trust_domain_aliases: Vec::new(),
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(30),
            attempt: Duration::from_secs(10),
            // Kubelets bring a root to the nodes over a minute as it is.
            renewals_within: Duration::from_secs(30),
            revocations: Arc::default(),
            resume_sessions: true,
        }
    }
}

/// One identity as a dump shows it.
#[derive(Debug, Clone)]
pub struct CertificateState {
    /// Whose.
    pub identity: Identity,
    /// `Available`, `Initializing` or `Unavailable: <reason>`.
    pub state: String,
    /// What is in force, expired or not.
    pub certificate: Option<Arc<Certificate>>,
    /// Why the last attempt failed, if it did.
    pub last_error: Option<SignError>,
}

/// All identities of a process, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateFigures {
    /// Those whose certificate is in force.
    pub available: usize,
    /// Those that wait for the answer to their first request.
    pub initializing: usize,
    /// Those that have none to be used: no request has brought one, or it has ended.
    pub unavailable: usize,
    /// Those whose last request failed, also where an earlier certificate is in force still.
    pub failing: usize,
    /// When the first of those in force ends.
    pub first_end: Option<SystemTime>,
    /// Requests that brought a certificate, since the start.
    pub obtained: u64,
    /// Requests that brought none, since the start.
    pub failed: u64,
}

/// The certificates of this process.
pub struct Certificates {
    signer: Box<dyn AnySigner>,
    config: CertificatesConfig,
    entries: Mutex<HashMap<Identity, Arc<Entry>>>,
    obtained: AtomicU64,
    failed: AtomicU64,
    itself: Weak<Self>,
}

struct Entry {
    state: watch::Sender<State>,
    wakes: Arc<Wakes>,
    task: AbortHandle,
    holds: AtomicUsize,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps an identity's certificate renewed for as long as it lives.
#[derive(Debug)]
pub struct Hold {
    certificates: Weak<Certificates>,
    identity: Identity,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(certificates) = self.certificates.upgrade() {
            certificates.release(&self.identity);
        }
    }
}

/// An entry while a caller of [`Certificates::of`] needs it.
struct InUse<'a> {
    entry: Arc<Entry>,
    identity: Identity,
    certificates: &'a Certificates,
}

impl Deref for InUse<'_> {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        // Held: no lock. Whoever lets go of the last hold removes it.
        if self.holds.load(Ordering::Relaxed) > 0 {
            return;
        }
        let mut entries = self.certificates.lock();
        if entries.get(&self.identity).is_some_and(|entry| {
            Arc::ptr_eq(entry, &self.entry) && entry.holds.load(Ordering::Relaxed) == 0
        }) {
            entries.remove(&self.identity);
        }
    }
}

impl Certificates {
    /// An empty store. Its methods are called inside a tokio runtime, which runs the renewals.
    pub fn new(signer: impl Signer, config: CertificatesConfig) -> Arc<Self> {
        Arc::new_cyclic(|itself| Self {
            signer: Box::new(signer),
            config,
            entries: Mutex::default(),
            obtained: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            itself: itself.clone(),
        })
    }

    /// The certificate in force for `identity`; asks for it first if this is the first call. Of an
    /// identity that nobody holds it is forgotten again as soon as the last caller has it.
    ///
    /// # Errors
    /// When none is to be had within [`CertificatesConfig::wait`].
    pub async fn of(&self, identity: &Identity) -> Result<Arc<Certificate>, CertificateError> {
        let entry = self.use_for_now(identity);
        let usable = |state: &State| {
            state
                .current
                .as_ref()
                .filter(|c| !c.expired())
                .map(|c| c.certificate.clone())
        };
        if let Some(certificate) = usable(&entry.state.borrow()) {
            return Ok(certificate);
        }
        // First the receiver, by which the task sees that somebody waits.
        let mut changes = entry.state.subscribe();
        entry.wakes.hurry.notify_one();
        // The entry is held, so its sender lives and the wait ends with a value or with the deadline.
        if let Ok(Ok(state)) =
            tokio::time::timeout(self.config.wait, changes.wait_for(|s| usable(s).is_some())).await
            && let Some(certificate) = usable(&state)
        {
            return Ok(certificate);
        }
        let State {
            current,
            last_error: last,
        } = entry.state.borrow().clone();
        let identity = identity.clone();
        Err(if current.is_some() {
            CertificateError::Expired { identity, last }
        } else {
            CertificateError::NotYet { identity, last }
        })
    }

    /// Begins to fetch without waiting, and keeps the certificate renewed until every hold on it is dropped.
    pub fn hold(&self, identity: &Identity) -> Hold {
        let mut entries = self.lock();
        self.entry_in(&mut entries, identity)
            .holds
            .fetch_add(1, Ordering::Relaxed);
        Hold {
            certificates: self.itself.clone(),
            identity: identity.clone(),
        }
    }

    /// Fetches every certificate anew, each within [`CertificatesConfig::renewals_within`]: roots come with certificates,
    /// and there are others now. What is in force stays until its successor is there.
    pub fn renew_all(&self) {
        for entry in self.lock().values() {
            entry.wakes.renew.notify_one();
        }
    }

    /// Another number for each time that other certificates were revoked.
    pub(crate) fn revocations(&self) -> u64 {
        self.config.revocations.number()
    }

    /// Every identity and its state, in the order of identities: for dumps.
    pub fn states(&self) -> Vec<CertificateState> {
        let mut states: Vec<_> = self
            .lock()
            .iter()
            .map(|(identity, entry)| describe(identity, &entry.state.borrow()))
            .collect();
        states.sort_by(|a, b| a.identity.cmp(&b.identity));
        states
    }

    /// How they stand at this moment.
    pub fn figures(&self) -> CertificateFigures {
        let mut figures = CertificateFigures {
            obtained: self.obtained.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            ..CertificateFigures::default()
        };
        for entry in self.lock().values() {
            let state = entry.state.borrow();
            match state.standing() {
                Standing::Available(current) => {
                    let end = current.certificate.not_after();
                    figures.first_end = Some(figures.first_end.map_or(end, |first| first.min(end)));
                    figures.available += 1;
                }
                Standing::Initializing => figures.initializing += 1,
                Standing::Unavailable => figures.unavailable += 1,
            }
            figures.failing += usize::from(state.last_error.is_some());
        }
        figures
    }

    /// Who is believed no more, whatever certificate is shown.
    pub fn revoked(&self) -> &Arc<Revocations> {
        &self.config.revocations
    }

    fn release(&self, identity: &Identity) {
        let mut entries = self.lock();
        if entries
            .get(identity)
            .is_some_and(|e| e.holds.fetch_sub(1, Ordering::Relaxed) == 1)
        {
            entries.remove(identity);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn use_for_now(&self, identity: &Identity) -> InUse<'_> {
        InUse {
            entry: self.entry_in(&mut self.lock(), identity),
            identity: identity.clone(),
            certificates: self,
        }
    }

    fn entry_in(
        &self,
        entries: &mut HashMap<Identity, Arc<Entry>>,
        identity: &Identity,
    ) -> Arc<Entry> {
        if let Some(entry) = entries.get(identity) {
            return entry.clone();
        }
        let (state, wakes) = (
            watch::Sender::new(State::default()),
            Arc::<Wakes>::default(),
        );
        let task = tokio::spawn(keep(
            self.itself.clone(),
            identity.clone(),
            state.clone(),
            wakes.clone(),
        ))
        .abort_handle();
        let entry = Arc::new(Entry {
            state,
            wakes,
            task,
            holds: AtomicUsize::new(0),
        });
        entries.insert(identity.clone(), entry.clone());
        entry
    }

    /// One attempt, counted.
    async fn fetch(&self, identity: &Identity) -> Result<Certificate, SignError> {
        let fetched = self.ask(identity).await;
        let count = match fetched {
            Ok(_) => &self.obtained,
            Err(_) => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        fetched
    }

    /// A new key, a request, an answer that passes its checks.
    async fn ask(&self, identity: &Identity) -> Result<Certificate, SignError> {
        let (key, csr) = request(identity)?;
        let signing = tokio::time::timeout(self.config.attempt, self.signer.sign(identity, csr));
        let elements = signing.await.map_err(|_| {
            SignError::Unavailable(format!("no answer within {:?}", self.config.attempt))
        })??;
        let CertificatesConfig {
            trust_domain_aliases: aliases,
            revocations,
            ..
        } = &self.config;
        let mut certificate =
            Certificate::judging_by(revocations, identity, &key, &elements, aliases)?;
        if !self.config.resume_sessions {
            certificate.credentials.forget_sessions();
        }
        Ok(certificate)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("identities", &self.lock().len())
            .finish_non_exhaustive()
    }
}

fn describe(identity: &Identity, state: &State) -> CertificateState {
    let text = match state.standing() {
        Standing::Available(_) => "Available".to_owned(),
        Standing::Initializing => "Initializing".to_owned(),
        Standing::Unavailable => format!("Unavailable: {}", reason(&state.last_error)),
    };
    CertificateState {
        identity: identity.clone(),
        state: text,
        certificate: state.current.as_ref().map(|c| c.certificate.clone()),
        last_error: state.last_error.clone(),
    }
}
