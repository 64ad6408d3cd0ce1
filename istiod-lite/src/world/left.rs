//! Waypoints that somebody has left, and that serve whoever left for a while yet.
//!
//! Proxies learn at slightly different times that a service names another waypoint, and clients keep connections through
//! the earlier one. So it stays in front of the service for [`LEAVING`], with all that is said of the service there (its
//! policies, its routes, its addresses, each as it is now), and is told that it goes.
//!
//! ```text
//!  named ── another is named, or none ──▶ left ── LEAVING is over, or who left is no more ──▶ forgotten
//!    ▲                                     │
//!    └────────── is named again ───────────┘
//! ```
//! Nobody leaves while things are read for the first time: what is made of a part of them was told to nobody.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use api::k8s::objects::{Kind, ObjectKey};

use super::depend::mark;
use super::{Builder, Changed, World};

/// For how long. Proxies have heard of a change within a second, a busy control plane included; the rest is for clients
/// to end what they have begun.
pub const LEAVING: Duration = Duration::from_secs(10);

/// Who has left whom.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// The time, as it was told; none while things are read for the first time.
    now: Option<Duration>,
    /// By whom each one that names a waypoint is fronted now.
    fronted: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Whom each has left, and when that is over.
    left: HashMap<ObjectKey, BTreeMap<ObjectKey, Duration>>,
    /// When to look again, and at whom; some may have come back meanwhile.
    due: BTreeSet<(Duration, ObjectKey)>,
}

impl Left {
    /// Whom an object has left.
    pub(super) fn by(&self, key: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        self.left.get(key).into_iter().flat_map(BTreeMap::keys)
    }

    /// Whether it has left that one.
    pub(super) fn has(&self, key: &ObjectKey, gateway: &ObjectKey) -> bool {
        self.by(key).any(|it| it == gateway)
    }

    /// An object is fronted by these now. One that is there no more has left nobody.
    fn note(&mut self, key: &ObjectKey, is_there: bool, now: BTreeSet<ObjectKey>) {
        if let Some(left) = self.left.get_mut(key) {
            left.retain(|gateway, _| is_there && !now.contains(gateway));
            if left.is_empty() {
                self.left.remove(key);
            }
        }
        let before = self.fronted.remove(key).unwrap_or_default();
        if let Some(at) = self.now.filter(|_| is_there) {
            let until = at + LEAVING;
            for gateway in before.difference(&now) {
                let left = self.left.entry(key.clone()).or_default();
                left.insert(gateway.clone(), until);
                self.due.insert((until, key.clone()));
            }
        }
        if !now.is_empty() {
            self.fronted.insert(key.clone(), now);
        }
    }

    /// Forgets what is over: the objects of which something was.
    fn over(&mut self, now: Duration) -> BTreeSet<ObjectKey> {
        let mut over = BTreeSet::new();
        while let Some((_, key)) = self.due.first().filter(|(until, _)| *until <= now).cloned() {
            self.due.pop_first();
            let Some(left) = self.left.get_mut(&key) else {
                continue;
            };
            let before = left.len();
            left.retain(|_, until| *until > now);
            let fewer = left.len() < before;
            if left.is_empty() {
                self.left.remove(&key);
            }
            if fewer {
                over.insert(key);
            }
        }
        over
    }
}

impl World {
    /// Time has passed, from any beginning to `now`: whoever left a waypoint long enough ago is told there no more. To be
    /// called first when everything has been read, and before each batch.
    pub fn pass(&mut self, now: Duration) -> Changed {
        self.left.now = Some(now);
        let over = self.left.over(now);
        if over.is_empty() {
            return Changed::default();
        }
        let mut dirty = BTreeSet::new();
        for key in over {
            if self.settings.auto_allow_waypoint || self.objects.is_demanded_in(&key.namespace) {
                self.touch_served(&key, &mut dirty);
            }
            mark(&mut dirty, [key]);
        }
        self.mark_referring(&mut dirty);
        self.mark_layer7(&mut dirty);
        self.rebuild(dirty)
    }

    /// When time has to pass next.
    pub fn due(&self) -> Option<Duration> {
        self.left.due.first().map(|(until, _)| *until)
    }

    /// Notes whom each of them leaves by being as it is now.
    pub(super) fn note_left(&mut self, dirty: &BTreeSet<Builder>) {
        for builder in dirty {
            if let Builder::Object(key) = builder
                && is_fronted(key.kind)
            {
                let is_there = self.objects.choice(key).is_some();
                let now = self.named_by(key);
                self.left.note(key, is_there, now);
            }
        }
    }
}

fn is_fronted(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Service | Kind::ServiceEntry | Kind::Pod | Kind::WorkloadEntry
    )
}
