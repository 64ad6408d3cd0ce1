//! Which gateways' proxies a change is of concern to: they are woken, the others sleep on.
//!
//! Of concern is a resource of the gateway, a service that its resources name, an endpoint of such a service, and what
//! one of its proxies asked for by name or address. So a change costs as much as there are proxies that care, not as
//! there are proxies.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh::gateway_of;
use mesh::session::Entry;
use tokio::sync::watch;

use super::Shared;

/// Which services the resources of which gateways name, and how many of them do.
#[derive(Default)]
pub(super) struct Named(HashMap<Arc<str>, BTreeMap<Arc<str>, usize>>);

impl Named {
    /// Takes note of what a resource names now and what it named before; returns its gateway.
    pub(super) fn count(
        &mut self,
        before: Option<&Entry>,
        after: Option<&Entry>,
    ) -> Option<Arc<str>> {
        let gateway: Arc<str> = gateway_of(&after.or(before)?.name)?.into();
        for service in after.iter().flat_map(|entry| &entry.services) {
            let gateways = self.0.entry(service.clone()).or_default();
            *gateways.entry(gateway.clone()).or_insert(0) += 1;
        }
        for service in before.iter().flat_map(|entry| &entry.services) {
            uncount(&mut self.0, service, &gateway);
        }
        Some(gateway)
    }

    /// The gateways that a change of an address is of concern to, because of services.
    pub(super) fn care_about(&self, entry: &Entry, into: &mut BTreeSet<Arc<str>>) {
        let services = entry.services.iter().chain([&entry.name]);
        let gateways = services.filter_map(|service| self.0.get(service));
        into.extend(gateways.flat_map(BTreeMap::keys).cloned());
    }
}

/// The proxies of gateways that listen.
#[derive(Default)]
pub(super) struct Watches(Mutex<Listening>);

#[derive(Default)]
struct Listening {
    gateways: HashMap<Arc<str>, Listeners>,
    /// Names and aliases that were asked for, and how many proxies of which gateways did.
    asked: HashMap<Arc<str>, BTreeMap<Arc<str>, usize>>,
}

struct Listeners {
    /// The last publication that was of concern.
    round: watch::Sender<u64>,
    count: usize,
}

impl Watches {
    /// Nobody listens, and nothing is remembered of those who did.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let listening = self.lock();
        listening.gateways.is_empty() && listening.asked.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Listening> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gateways that a change of an address is of concern to, because a proxy asked for it.
    pub(super) fn care_about(&self, entry: &Entry, into: &mut BTreeSet<Arc<str>>) {
        let listening = self.lock();
        if listening.asked.is_empty() {
            return;
        }
        let names = entry.aliases.iter().chain([&entry.name]);
        let gateways = names.filter_map(|name| listening.asked.get(name));
        into.extend(gateways.flat_map(BTreeMap::keys).cloned());
    }

    pub(super) fn wake(&self, gateways: &BTreeSet<Arc<str>>, round: u64) {
        let listening = self.lock();
        for gateway in gateways {
            if let Some(listeners) = listening.gateways.get(gateway) {
                listeners.round.send_replace(round);
            }
        }
    }
}

/// One proxy's ear; what it asked for is forgotten with it.
pub struct Watch {
    shared: Arc<Shared>,
    gateway: Arc<str>,
    rounds: watch::Receiver<u64>,
    asked: HashSet<Arc<str>>,
}

impl Watch {
    pub(super) fn new(shared: Arc<Shared>, gateway: Arc<str>) -> Self {
        let rounds = {
            let mut listening = shared.watches.lock();
            let listeners = listening.gateways.entry(gateway.clone());
            let listeners = listeners.or_insert_with(|| Listeners {
                round: watch::Sender::new(0),
                count: 0,
            });
            listeners.count += 1;
            listeners.round.subscribe()
        };
        Self {
            shared,
            gateway,
            rounds,
            asked: HashSet::new(),
        }
    }

    /// The proxy asks for these and no longer for those. Whether any of them is new: then a publication of this very
    /// moment may have gone by unheard.
    pub fn ask<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a str>,
        no_longer: impl IntoIterator<Item = &'a str>,
    ) -> bool {
        let mut listening = self.shared.watches.lock();
        for name in no_longer {
            if let Some(name) = self.asked.take(name) {
                uncount(&mut listening.asked, &name, &self.gateway);
            }
        }
        let mut any = false;
        for name in names {
            if self.asked.len() >= mesh::session::MOST_ASKED || self.asked.contains(name) {
                continue;
            }
            let name: Arc<str> = name.into();
            let gateways = listening.asked.entry(name.clone()).or_default();
            *gateways.entry(self.gateway.clone()).or_insert(0) += 1;
            self.asked.insert(name);
            any = true;
        }
        any
    }

    /// Returns when there is something that the holder of the catalog of round `told` may care about; also now and
    /// then without, so that nobody holds an old catalog, with everything that was in it, for long.
    pub async fn moved(&mut self, told: u64) {
        let waited = self.rounds.wait_for(|round| *round > told);
        let waited = tokio::time::timeout(CATCH_UP, waited).await;
        if waited.is_ok_and(|heard| heard.is_err()) {
            // Nobody publishes any more; what is there stays true.
            std::future::pending().await
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut listening = self.shared.watches.lock();
        for name in &self.asked {
            uncount(&mut listening.asked, name, &self.gateway);
        }
        if let Some(listeners) = listening.gateways.get_mut(&self.gateway) {
            listeners.count -= 1;
            if listeners.count == 0 {
                listening.gateways.remove(&self.gateway);
            }
        }
    }
}

fn uncount(
    counts: &mut HashMap<Arc<str>, BTreeMap<Arc<str>, usize>>,
    name: &str,
    gateway: &Arc<str>,
) {
    let Some(gateways) = counts.get_mut(name) else {
        return;
    };
    if let Some(count) = gateways.get_mut(gateway) {
        *count -= 1;
        if *count == 0 {
            gateways.remove(gateway);
        }
    }
    if gateways.is_empty() {
        counts.remove(name);
    }
}

/// A look at what changed costs what changed.
const CATCH_UP: Duration = Duration::from_secs(60);
