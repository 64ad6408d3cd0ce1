//! Key sets that are fetched: one each in a process, however many policies name it.
//!
//! ```text
//!  of(place) ─▶ task: fetch ─▶ keys ─── 20 min, or a key nobody knows (at most every 30 s) ──▶ fetch …
//!                       └─ failed ─── 1 s … 60 s ──▶ fetch …     keys older than 1 h are dropped
//! ```
//!
//! A request waits only for the first fetch, or for one that its unknown key brought about; while fetching fails and
//! there are no keys, it is refused at once. There are never other keys than the issuer's. The task ends with the
//! last policy that holds the set.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::Uri;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use super::fetch::Fetch;
use super::guard::may_be_asked;
use super::keys::{KeyError, Keys};
use super::seen::Seen;
use super::token::Fault;
use crate::route::ServiceName;

/// Between fetches that succeed, as Istio has it.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// After a first failure; doubles.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest between failures.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// How long keys are believed when they cannot be fetched again: then an issuer that took one back is obeyed.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// Between fetches that unknown keys bring about: anybody can make those up.
const BETWEEN_UNKNOWN: Duration = Duration::from_secs(30);
/// One fetch.
const WITHIN: Duration = Duration::from_secs(10);

/// All key sets of a process. Cheap to clone.
#[derive(Clone)]
pub struct KeySets {
    shared: Arc<Shared>,
}

struct Shared {
    /// None: nothing is ever fetched.
    fetch: Option<Arc<dyn Fetch>>,
    known: Mutex<HashMap<Where, Weak<KeySet>>>,
    /// Those that policies carry themselves, by their text: the same text is the same set, so that what was found good
    /// by it stays known when something else about its service changes.
    inline: Mutex<HashMap<Box<str>, Weak<Keys>>>,
    seen: Arc<Seen>,
}

/// Where keys are published.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Where {
    /// A key set.
    At(Box<str>),
    /// The same, of a service of the mesh.
    Of(ServiceName, Box<str>),
    /// Where the issuer's `.well-known/openid-configuration` says.
    Discovered(Box<str>),
}

/// One key set.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: ArcSwapOption<Keys>,
    /// When the last fetch ended; None before the first has.
    ended: watch::Sender<Option<Instant>>,
    /// Fetch before it is time.
    wanted: Arc<Notify>,
    _task: DropGuard,
}

impl std::fmt::Debug for KeySets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeySets")
    }
}

impl KeySets {
    /// None yet.
    pub fn new(fetch: Arc<dyn Fetch>) -> Self {
        Self::of_fetch(Some(fetch))
    }

    /// To look at policies only: nothing is fetched.
    pub(super) fn idle() -> Self {
        Self::of_fetch(None)
    }

    fn of_fetch(fetch: Option<Arc<dyn Fetch>>) -> Self {
        let shared = Shared {
            fetch,
            known: Mutex::default(),
            inline: Mutex::default(),
            seen: Arc::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What was found good.
    pub(super) fn seen(&self) -> Arc<Seen> {
        self.shared.seen.clone()
    }

    /// The set that a policy carries.
    pub(super) fn inline(&self, text: &str) -> Result<Arc<Keys>, KeyError> {
        let known = self.shared.inline.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = known.get(text).and_then(Weak::upgrade) {
            return Ok(keys);
        }
        known.retain(|_, keys| keys.strong_count() > 0);
        let keys = Arc::new(Keys::parse(text.as_bytes())?);
        known.insert(text.into(), Arc::downgrade(&keys));
        Ok(keys)
    }

    /// The set of a place; fetching begins now, if a runtime is there.
    pub(super) fn of(&self, place: Where) -> Result<Arc<KeySet>, String> {
        place.uri()?;
        let mut known = self
            .shared
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = known.get(&place).and_then(Weak::upgrade) {
            return Ok(set);
        }
        known.retain(|_, set| set.strong_count() > 0);
        let stop = CancellationToken::new();
        let set = Arc::new(KeySet {
            keys: ArcSwapOption::empty(),
            ended: watch::Sender::new(None),
            wanted: Arc::new(Notify::new()),
            _task: stop.clone().drop_guard(),
        });
        known.insert(place.clone(), Arc::downgrade(&set));
        if let (Some(fetch), Ok(runtime)) = (&self.shared.fetch, Handle::try_current()) {
            let keeper = Keeper {
                set: Arc::downgrade(&set),
                wanted: set.wanted.clone(),
                fetch: fetch.clone(),
                place,
            };
            runtime.spawn(async move { stop.run_until_cancelled(keeper.run()).await });
        }
        Ok(set)
    }
}

impl KeySet {
    /// The keys, if they are here.
    pub(super) fn keys_at_hand(&self) -> Option<Arc<Keys>> {
        self.keys.load_full()
    }

    /// The keys, once they are here.
    pub(super) async fn keys(&self, within: Duration) -> Result<Arc<Keys>, Fault> {
        if let Some(keys) = self.keys.load_full() {
            return Ok(keys);
        }
        let mut ended = self.ended.subscribe();
        let first = ended.wait_for(Option::is_some);
        let _ = timeout(within, first).await;
        self.keys.load_full().ok_or(Fault::Unfetched)
    }

    /// Keys that were fetched after these; None if there are none, or it is too early to ask again.
    pub(super) async fn newer_than(&self, keys: &Arc<Keys>, within: Duration) -> Option<Arc<Keys>> {
        let newer = || self.keys.load_full().filter(|now| !Arc::ptr_eq(now, keys));
        if let Some(newer) = newer() {
            return Some(newer);
        }
        let mut ended = self.ended.subscribe();
        let before = *ended.borrow_and_update();
        if before.is_some_and(|at| at.elapsed() < BETWEEN_UNKNOWN) {
            return None;
        }
        self.wanted.notify_one();
        let _ = timeout(within, ended.changed()).await;
        newer()
    }
}

/// What fetches one set, again and again.
struct Keeper {
    set: Weak<KeySet>,
    wanted: Arc<Notify>,
    fetch: Arc<dyn Fetch>,
    place: Where,
}

impl Keeper {
    async fn run(self) {
        let mut retry = FIRST_RETRY;
        let mut good_since = None;
        loop {
            let fetched = self.fetch().await;
            let Some(set) = self.set.upgrade() else {
                return;
            };
            let succeeded = fetched.is_ok();
            match fetched {
                Ok(keys) => {
                    debug!(place = %self.place, "keys fetched");
                    set.keys.store(Some(Arc::new(keys)));
                    good_since = Some(Instant::now());
                    retry = FIRST_RETRY;
                }
                Err(why) => {
                    warn!(place = %self.place, error = why, "keys cannot be fetched; tokens signed by new ones are refused");
                    if good_since.is_some_and(|since: Instant| since.elapsed() > KEPT) {
                        set.keys.store(None);
                    }
                }
            }
            set.ended.send_replace(Some(Instant::now()));
            drop(set);
            let pause = if succeeded { REFRESH } else { retry };
            if !succeeded {
                retry = (retry * 2).min(LAST_RETRY);
            }
            let _ = timeout(pause, self.wanted.notified()).await;
        }
    }

    async fn fetch(&self) -> Result<Keys, String> {
        let mut uri = self.place.uri()?;
        if let Where::Discovered(issuer) = &self.place {
            let document = self.fetch.fetch(uri, WITHIN).await?;
            uri = discovered(&document, issuer)?;
        }
        let document = match &self.place {
            Where::Of(service, _) => self.fetch.fetch_from(service, uri, WITHIN).await?,
            _ => self.fetch.fetch(uri, WITHIN).await?,
        };
        Keys::parse(&document).map_err(|error| error.to_string())
    }
}

/// Of an issuer's configuration: where its keys are. It must be that issuer's (OpenID Connect Discovery 4.3).
fn discovered(document: &[u8], issuer: &str) -> Result<Uri, String> {
    #[derive(Deserialize)]
    struct Configuration {
        issuer: String,
        jwks_uri: String,
    }
    let configuration: Configuration = serde_json::from_slice(document)
        .map_err(|error| format!("openid-configuration: {error}"))?;
    if configuration.issuer != issuer {
        return Err(format!(
            "openid-configuration is {}'s",
            configuration.issuer
        ));
    }
    allowed(&configuration.jwks_uri)
}

fn allowed(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{text}: {error}"))?;
    may_be_asked(&uri).map_err(|why| format!("{text}: {why}"))?;
    Ok(uri)
}

impl Where {
    fn uri(&self) -> Result<Uri, String> {
        match self {
            Self::At(uri) | Self::Of(_, uri) => allowed(uri),
            Self::Discovered(issuer) => allowed(&format!(
                "{}/.well-known/openid-configuration",
                issuer.trim_end_matches('/')
            )),
        }
    }
}

impl std::fmt::Display for Where {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(uri) => f.write_str(uri),
            Self::Of(service, uri) => write!(
                f,
                "{uri} (through the mesh, of {}/{})",
                service.namespace, service.hostname
            ),
            Self::Discovered(issuer) => write!(f, "{issuer} (discovered)"),
        }
    }
}
