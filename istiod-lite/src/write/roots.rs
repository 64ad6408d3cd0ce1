//! Every namespace has the roots of the mesh: ConfigMap `istio-ca-root-cert`, and beside it
//! `istio-ca-crl` with what was revoked.
//!
//! 1. namespaces and the ConfigMaps of these two names are followed
//! 2. which of them are not as they should be is kept purely               ([`Spread`])
//! 3. each of those is applied, some at a time, again after a failure      ([`Queue`])
//!
//! A ConfigMap is told by its content whether it is right, so one that was tampered with is put
//! right as one that is missing, and one that is right is never written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::pin;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt as _};
use tokio::time::Instant;

use super::queue::{Quarrels, Queue, until};
use super::{CRL_NAME, Ground, ROOTS_KEY, ROOTS_NAME, said};
use crate::cluster::watch::{config, steady};

/// Istio's field manager is `pilot-discovery`; ours says whose hand it was.
const MANAGER: &str = "ambit-root-certificates";
const CRL_KEY: &str = "ca-crl.pem";
/// As Istio leaves them out: nothing runs in them.
const LEFT_OUT: [&str; 2] = ["kube-public", "kube-node-lease"];
const LABEL: (&str, &str) = ("istio.io/config", "true");
/// So many at a time: a change of roots in a cluster of thousands of namespaces must not be the
/// API server's only work.
const AT_A_TIME: usize = 16;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Which {
    Roots,
    Revoked,
}

impl Which {
    const BOTH: [Self; 2] = [Self::Roots, Self::Revoked];

    fn name(self) -> &'static str {
        match self {
            Self::Roots => ROOTS_NAME,
            Self::Revoked => CRL_NAME,
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Roots => ROOTS_KEY,
            Self::Revoked => CRL_KEY,
        }
    }
}

/// One ConfigMap: which, and in which namespace.
type Place = (Which, String);

/// Runs while we lead.
pub(super) async fn write(ground: Ground) {
    let mut signer = ground.authority.changed();
    let client = || ground.connection.watching.clone();
    let namespaces = watcher::watcher(Api::<PartialObjectMeta<Namespace>>::all(client()), config());
    let mut namespaces = pin!(steady(namespaces, &ground.health, "namespaces"));
    let maps = Which::BOTH.map(|which| {
        let named = config().fields(&format!("metadata.name={}", which.name()));
        let maps = watcher::watcher(Api::<ConfigMap>::all(client()), named);
        let heard = steady(maps, &ground.health, "configmaps");
        heard.map(move |event| (which, event)).boxed()
    });
    let mut maps = futures_util::stream::select_all(maps);
    let mut spread = Spread::new(texts(&ground));
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < AT_A_TIME
            && let Some(place) = spread.next(Instant::now())
        {
            let text = spread.wanted(place.0).to_owned();
            running.push(apply(&ground, place, text));
        }
        tokio::select! {
            Some(event) = namespaces.next() => spread.namespace(event),
            Some((which, event)) = maps.next() => spread.map(which, event),
            Some((place, outcome)) = running.next() => spread.applied(&place, outcome, &ground),
            Ok(()) = signer.changed() => spread.want(texts(&ground)),
            () = until(spread.due()) => {}
        }
    }
}

fn texts(ground: &Ground) -> [String; 2] {
    [ground.authority.roots(), ground.authority.crl()]
}

/// What is where, and what is to be written. Pure but for the clock.
struct Spread {
    wanted: [String; 2],
    /// Those that live.
    namespaces: HashSet<String>,
    /// The text each ConfigMap has, where it is not the wanted one; the wanted one is kept once.
    maps: HashMap<Place, Content>,
    /// Lists that are being read, and what they held so far.
    listing: BTreeMap<Listing, HashSet<String>>,
    /// Lists that were read to the end at least once: before that nothing is known to be missing.
    listed: HashSet<Listing>,
    queue: Queue<Place>,
    quarrels: Quarrels<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Listing {
    Namespaces,
    Maps(Which),
}

#[derive(Debug, PartialEq)]
enum Content {
    Right,
    Wrong,
}

/// What became of a write.
#[derive(Debug)]
enum Outcome {
    Written,
    /// The namespace is on its way out.
    Leaving,
    Failed(kube::Error),
}

impl Spread {
    fn new(wanted: [String; 2]) -> Self {
        Self {
            wanted,
            namespaces: HashSet::new(),
            maps: HashMap::new(),
            listing: BTreeMap::new(),
            listed: HashSet::new(),
            queue: Queue::default(),
            quarrels: Quarrels::default(),
        }
    }

    fn wanted(&self, which: Which) -> &str {
        match which {
            Which::Roots => &self.wanted[0],
            Which::Revoked => &self.wanted[1],
        }
    }

    /// Other texts from now on: all ConfigMaps of the other text are wrong.
    fn want(&mut self, wanted: [String; 2]) {
        let before = std::mem::replace(&mut self.wanted, wanted);
        for (which, before) in Which::BOTH.into_iter().zip(before) {
            if self.wanted(which) != before {
                self.maps.retain(|(of, _), _| *of != which);
            }
        }
        self.look_everywhere();
    }

    fn namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) {
        match event {
            Event::Init => drop(self.listing.insert(Listing::Namespaces, HashSet::new())),
            Event::InitApply(namespace) => {
                let name = namespace.name_any();
                if let Some(list) = self.listing.get_mut(&Listing::Namespaces) {
                    list.insert(name);
                }
                self.lives(&namespace);
            }
            Event::InitDone => {
                let list = self
                    .listing
                    .remove(&Listing::Namespaces)
                    .unwrap_or_default();
                self.listed.insert(Listing::Namespaces);
                let gone: Vec<_> = self.namespaces.difference(&list).cloned().collect();
                gone.iter().for_each(|name| self.left(name));
                self.look_everywhere();
            }
            Event::Apply(namespace) => self.lives(&namespace),
            Event::Delete(namespace) => self.left(&namespace.name_any()),
        }
    }

    fn lives(&mut self, namespace: &PartialObjectMeta<Namespace>) {
        let name = namespace.name_any();
        if namespace.metadata.deletion_timestamp.is_some() {
            self.left(&name);
        } else if !LEFT_OUT.contains(&name.as_str()) {
            self.namespaces.insert(name.clone());
            for which in Which::BOTH {
                self.look((which, name.clone()));
            }
        }
    }

    fn left(&mut self, name: &str) {
        self.namespaces.remove(name);
        for which in Which::BOTH {
            let place = (which, name.to_owned());
            self.maps.remove(&place);
            self.quarrels.forget(&place);
            self.queue.forget(&place);
        }
    }

    fn map(&mut self, which: Which, event: Event<ConfigMap>) {
        let listing = Listing::Maps(which);
        match event {
            Event::Init => drop(self.listing.insert(listing, HashSet::new())),
            Event::InitApply(map) => {
                let namespace = map.namespace().unwrap_or_default();
                if let Some(list) = self.listing.get_mut(&listing) {
                    list.insert(namespace);
                }
                self.is(which, &map);
            }
            Event::InitDone => {
                let list = self.listing.remove(&listing).unwrap_or_default();
                self.listed.insert(listing);
                self.maps
                    .retain(|(of, at), _| *of != which || list.contains(at));
                self.look_everywhere();
            }
            Event::Apply(map) => self.is(which, &map),
            Event::Delete(map) => {
                let place = (which, map.namespace().unwrap_or_default());
                self.maps.remove(&place);
                self.look(place);
            }
        }
    }

    fn is(&mut self, which: Which, map: &ConfigMap) {
        let text = map.data.as_ref().and_then(|data| data.get(which.key()));
        let (key, value) = LABEL;
        let labelled = map.labels().get(key).is_some_and(|label| label == value);
        let right = labelled && text.is_some_and(|text| text == self.wanted(which));
        let content = if right {
            Content::Right
        } else {
            Content::Wrong
        };
        let place = (which, map.namespace().unwrap_or_default());
        self.maps.insert(place.clone(), content);
        self.look(place);
    }

    fn look_everywhere(&mut self) {
        let names: Vec<_> = self.namespaces.iter().cloned().collect();
        for name in names {
            for which in Which::BOTH {
                self.look((which, name.clone()));
            }
        }
    }

    /// Queues a place that is not right, once everything is known.
    fn look(&mut self, place: Place) {
        let known = [Listing::Namespaces, Listing::Maps(place.0)];
        let known = known.iter().all(|list| self.listed.contains(list));
        let right = self.maps.get(&place) == Some(&Content::Right);
        if known && !right && self.namespaces.contains(&place.1) {
            self.queue.add(place, Instant::now());
        }
    }

    /// The next place to write to.
    fn next(&mut self, now: Instant) -> Option<Place> {
        while let Some(place) = self.queue.take(now) {
            let right = self.maps.get(&place) == Some(&Content::Right);
            if !right && self.namespaces.contains(&place.1) {
                return Some(place);
            }
            self.queue.done(&place);
        }
        None
    }

    fn due(&self) -> Option<Instant> {
        self.queue.due()
    }

    fn applied(&mut self, place: &Place, outcome: Outcome, ground: &Ground) {
        let (which, namespace) = place;
        match outcome {
            Outcome::Written => {
                ground.metrics.wrote("roots", true);
                tracing::debug!(namespace, name = which.name(), "written");
                let now = Instant::now();
                if self.quarrels.wrote(place, now) {
                    self.queue.failed(place, now);
                } else {
                    self.queue.done(place);
                }
            }
            // It will be heard of as deleted; until then nothing can be written into it.
            Outcome::Leaving => self.queue.done(place),
            Outcome::Failed(error) => {
                ground.metrics.wrote("roots", false);
                let error = said(&error);
                tracing::warn!(
                    namespace,
                    name = which.name(),
                    error,
                    "not written; tried again"
                );
                self.queue.failed(place, Instant::now());
            }
        }
    }
}

/// Writes one ConfigMap: made or put right in one request, whatever it was.
async fn apply(ground: &Ground, place: Place, text: String) -> (Place, Outcome) {
    let (which, namespace) = &place;
    let maps = Api::<ConfigMap>::namespaced(ground.connection.client.clone(), namespace);
    let (key, value) = LABEL;
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(which.name().to_owned()),
            namespace: Some(namespace.clone()),
            labels: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(which.key().to_owned(), text)])),
        ..ConfigMap::default()
    };
    let ours = PatchParams::apply(MANAGER).force();
    let mut applied = maps.patch(which.name(), &ours, &Patch::Apply(&map)).await;
    if matches!(&applied, Err(kube::Error::Api(status)) if status.code == 422) {
        // Somebody made it immutable.
        applied = match maps.delete(which.name(), &DeleteParams::default()).await {
            Ok(_) => maps.patch(which.name(), &ours, &Patch::Apply(&map)).await,
            Err(error) => Err(error),
        };
    }
    let outcome = match applied {
        Ok(_) => Outcome::Written,
        Err(error) if is_leaving(&error) => Outcome::Leaving,
        Err(error) => Outcome::Failed(error),
    };
    (place, outcome)
}

/// Nothing is made in a namespace that is being deleted (403 with this cause), or that is gone.
fn is_leaving(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 404
        || causes
            .into_iter()
            .any(|cause| cause.reason == "NamespaceTerminating")
}
