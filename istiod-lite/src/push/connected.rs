//! The proxies that are connected, and what each was sent and took: `/debug/syncz`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hbone::Identity;
use serde::{Serialize, Serializer};

use super::node::Proxy;

/// All of them.
#[derive(Default)]
pub struct Connected(Mutex<List>);

#[derive(Default)]
struct List {
    next: u64,
    proxies: BTreeMap<u64, Arc<Mutex<ProxyState>>>,
}

/// One proxy.
#[derive(Debug, Clone, Serialize)]
pub struct ProxyState {
    /// `<pod>.<namespace>`
    pub proxy: String,
    /// `ztunnel`, `waypoint` …
    pub proxy_type: String,
    /// As it says.
    pub cluster_id: String,
    /// As it says.
    pub istio_version: String,
    /// The whole node id.
    pub id: String,
    /// Proven by its token.
    pub identity: String,
    /// Where it connects from.
    pub address: Option<SocketAddr>,
    /// Seconds since 1970.
    pub connected_at: u64,
    /// By type URL.
    pub types: BTreeMap<String, Sync>,
}

/// How far a proxy is with one type.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sync {
    /// Nonce of the last response.
    pub nonce_sent: String,
    /// Catalog version of the last response.
    pub version_sent: String,
    /// Nonce of the last response it took.
    pub nonce_acked: String,
    /// Catalog version of the last response it took.
    pub version_acked: String,
    /// `SYNCED` (took the last), `PENDING` (did not answer yet), `REJECTED`.
    pub state: &'static str,
    /// Its last refusal, in its words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// Seconds from the last response to its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    #[serde(skip)]
    sent_at: Option<Instant>,
}

/// A proxy's place in the list, for as long as it is connected.
pub(super) struct Place {
    list: Arc<Connected>,
    number: u64,
    state: Arc<Mutex<ProxyState>>,
}

/// What an answer of a client was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// To the last response.
    Current,
    /// To one before it.
    Stale,
}

/// As [`Connected::list`], one at a time.
impl Serialize for Connected {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let proxies: Vec<_> = lock(&self.0).proxies.values().cloned().collect();
        out.collect_seq(proxies.iter().map(|proxy| lock(proxy).clone()))
    }
}

impl Connected {
    /// All proxies, oldest connection first.
    pub fn list(&self) -> Vec<ProxyState> {
        let proxies: Vec<_> = lock(&self.0).proxies.values().cloned().collect();
        proxies.iter().map(|proxy| lock(proxy).clone()).collect()
    }

    /// How many.
    pub fn len(&self) -> usize {
        lock(&self.0).proxies.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn enter(
        self: &Arc<Self>,
        proxy: Proxy,
        identity: &Identity,
        address: Option<SocketAddr>,
    ) -> Place {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let state = Arc::new(Mutex::new(ProxyState {
            proxy: proxy.name,
            proxy_type: proxy.kind.into(),
            cluster_id: proxy.cluster,
            istio_version: proxy.version,
            id: proxy.id,
            identity: identity.to_string(),
            address,
            connected_at: now.unwrap_or_default().as_secs(),
            types: BTreeMap::new(),
        }));
        let mut list = lock(&self.0);
        list.next += 1;
        let number = list.next;
        list.proxies.insert(number, state.clone());
        Place {
            list: self.clone(),
            number,
            state,
        }
    }
}

impl Place {
    pub(super) fn sent(&self, type_url: &str, nonce: &str, version: &str) {
        let mut state = lock(&self.state);
        let sync = state.types.entry(type_url.into()).or_default();
        sync.nonce_sent = nonce.into();
        sync.version_sent = version.into();
        sync.state = "PENDING";
        sync.sent_at = Some(Instant::now());
    }

    /// An ACK, or with `refusal` a NACK, of a type that is served.
    pub(super) fn answered(&self, type_url: &str, nonce: &str, refusal: Option<&str>) -> Answered {
        let mut state = lock(&self.state);
        let sync = state.types.entry(type_url.into()).or_default();
        if let Some(refusal) = refusal {
            sync.rejected = Some(refusal.into());
        }
        if sync.nonce_sent != nonce {
            return Answered::Stale;
        }
        sync.seconds = sync.sent_at.map(|sent| sent.elapsed().as_secs_f64());
        if refusal.is_some() {
            sync.state = "REJECTED";
        } else {
            sync.state = "SYNCED";
            sync.rejected = None;
            sync.nonce_acked = nonce.into();
            sync.version_acked = sync.version_sent.clone();
        }
        Answered::Current
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.list.0).proxies.remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
