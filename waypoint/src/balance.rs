//! Pure: which endpoint a request goes to.
//!
//! 1. the endpoints of a service, a port and a subset are put in order when they change (`view`): by how near they
//!    are (`locality`), without those that are left out (`outlier`)
//! 2. a level of nearness is drawn, nearly always the first                     (`View::level`)
//! 3. one of its endpoints is taken: in turn, by load, at random, by hash        (`table`)
//! 4. it counts as busy until the [`Choice`] goes                                (`Live`)
//!
//! What is remembered of an endpoint (how busy, how old, how good) outlives changes of the others. Time and chance
//! are arguments.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::waypoint as wire;
use arc_swap::ArcSwapOption;
use mesh::{GatewayAddress, Members, Workload};

use crate::outlier::{self, Outcome, Watch};
use crate::session;

pub mod hash;
mod locality;
mod policy;
mod table;
mod view;

pub use policy::Policy;

use view::View;

/// The endpoints of one port of a service, or of a subset of it.
#[derive(Debug)]
pub struct Group {
    port: u16,
    /// Of these workloads only, by uid.
    subset: Option<Arc<[Box<str>]>>,
    policy: Policy,
    watch: Option<Watch>,
    view: ArcSwapOption<View>,
    /// How often an endpoint was left out. Of a group and those that succeed it together: a request that began under the one may
    /// end under the other, and what is remembered of an endpoint is theirs in common.
    left_out: Arc<AtomicU64>,
    turn: AtomicUsize,
    held: Mutex<HashMap<Arc<str>, Arc<Live>>>,
}

/// What a request says about where it goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hints<'a> {
    /// Of what the policy hashes by; none: any.
    pub hash: Option<u64>,
    /// The endpoint of its session.
    pub prefer: Option<session::Endpoint>,
    /// Uids of endpoints that were tried already: others are better.
    pub avoid: &'a [Arc<str>],
    /// It came from another network and must not go to one: of two that knew of each other's endpoints none would answer.
    pub only_here: bool,
}

/// One endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// Whom it goes to.
    pub workload: Arc<Workload>,
    /// The port there.
    pub target_port: u16,
    /// The address there; `None` when it is to be resolved, or is reached through the gateway of its network.
    pub address: Option<IpAddr>,
    live: Arc<Live>,
}

/// What is remembered of an endpoint while it comes and others go.
#[derive(Debug)]
struct Live {
    busy: AtomicU32,
    /// When it came, if it came after the others.
    came: Option<Instant>,
    record: outlier::Record,
}

/// The endpoint that was chosen. It counts as busy until this goes.
#[derive(Debug)]
pub struct Choice {
    /// Which.
    pub endpoint: Arc<Endpoint>,
    group: Arc<Group>,
}

/// Why there is nowhere to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// Nothing is known of the service, or it does not offer the port.
    #[error("the service has no port {0}")]
    NoPort(u16),
    /// It has no endpoint at all.
    #[error("the service has no endpoint")]
    Empty,
    /// It has endpoints, none of them healthy, of the subset, and reachable on the port.
    #[error("no healthy upstream")]
    Unhealthy,
    /// It has usable endpoints, all of which are left out because of their errors.
    #[error("no healthy upstream: all endpoints are ejected")]
    Ejected,
    /// It has usable endpoints, none of them close enough.
    #[error("no endpoint is close enough for the service's routing preference")]
    TooFar,
    /// All of its endpoints are on other networks, and so is who asks.
    #[error(
        "the request came from another network, and the service has endpoints on other networks only"
    )]
    Abroad,
    /// The original destination is wanted.
    #[error("the service passes through to the original destination")]
    Passthrough,
}

impl Group {
    /// The endpoints of `port`, of which none is known yet; only those of `subset` (uids), if that is given.
    pub fn new(port: u16, subset: Option<Vec<String>>, policy: Policy) -> Self {
        let subset = subset.map(|uids| {
            let mut uids: Vec<Box<str>> = uids.into_iter().map(Box::from).collect();
            uids.sort_unstable();
            uids.into()
        });
        Self {
            port,
            subset,
            watch: policy.outliers.map(Watch::new),
            policy,
            view: ArcSwapOption::empty(),
            left_out: Arc::default(),
            turn: AtomicUsize::new(0),
            held: Mutex::default(),
        }
    }

    /// The same for another policy: what is remembered of endpoints goes on.
    #[must_use]
    pub fn succeeded_by(&self, subset: Option<Vec<String>>, policy: Policy) -> Self {
        let next = Self {
            left_out: self.left_out.clone(),
            ..Self::new(self.port, subset, policy)
        };
        next.turn.store(self.turn.load(Relaxed), Relaxed);
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *next.held.lock().unwrap_or_else(PoisonError::into_inner) = held.clone();
        drop(held);
        next
    }

    /// Its policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Chooses an endpoint. `members` is what the mesh has of the service now, `own` where this proxy is, `draw` a
    /// random number.
    ///
    /// # Errors
    /// Why there is none.
    pub fn choose(
        self: &Arc<Self>,
        members: &Members,
        own: &mesh::Client<'_>,
        hints: &Hints<'_>,
        draw: u64,
        now: Instant,
    ) -> Result<Choice, NoEndpoint> {
        if self.policy.passes_through {
            return Err(NoEndpoint::Passthrough);
        }
        let view = self.view(members, own, now);
        if let Some(wanted) = hints.prefer
            && let Some(found) = view.of_session(&wanted)
            && !(hints.only_here && found.gateway().is_some())
        {
            return Ok(self.chosen(found));
        }
        self.drawn(&view, hints, draw, now)
            .map(|endpoint| self.chosen(endpoint))
            .ok_or_else(|| view.none(self.port, hints.only_here))
    }

    /// Whether one of its endpoints is that of a session, and is not left out.
    pub fn has(
        &self,
        members: &Members,
        own: &mesh::Client<'_>,
        wanted: &session::Endpoint,
        now: Instant,
    ) -> bool {
        let view = self.view(members, own, now);
        !self.policy.passes_through && view.of_session(wanted).is_some()
    }

    fn chosen(self: &Arc<Self>, endpoint: &Arc<Endpoint>) -> Choice {
        endpoint.live.busy.fetch_add(1, Relaxed);
        Choice {
            endpoint: endpoint.clone(),
            group: self.clone(),
        }
    }

    /// Several draws, for one that was not tried before and is not to be spared; then any.
    fn drawn<'v>(
        &self,
        view: &'v View,
        hints: &Hints<'_>,
        draw: u64,
        now: Instant,
    ) -> Option<&'v Arc<Endpoint>> {
        let (levels, mut last) = (view.levels(hints.only_here), None);
        for attempt in 0..ATTEMPTS {
            let luck = hash::mixed(draw.wrapping_add(attempt));
            let key = hints.hash.map_or(luck, |key| match attempt {
                0 => key,
                _ => hash::mixed(key.wrapping_add(attempt)),
            });
            let level = levels.level(key)?;
            let found = level.one(&self.policy.choice, &self.turn, key, luck)?;
            if !avoided(found, hints) && self.is_warm(found, hash::mixed(luck), now) {
                return Some(found);
            }
            last = Some(found);
        }
        let untried = || levels.all().find(|found| !avoided(found, hints));
        match last {
            Some(found) if avoided(found, hints) => untried().or(last),
            _ => last,
        }
    }

    /// New endpoints get less, and more and more of it.
    fn is_warm(&self, endpoint: &Endpoint, luck: u64, now: Instant) -> bool {
        let (Some(warm_up), Some(came)) = (&self.policy.warm_up, endpoint.live.came) else {
            return true;
        };
        let share = warm_up.share(now.saturating_duration_since(came));
        ((luck >> 11) as f64) < share * (1u64 << 53) as f64
    }

    // ---- what is known of the endpoints

    fn view(&self, members: &Members, own: &mesh::Client<'_>, now: Instant) -> Arc<View> {
        let fresh = |view: &View| {
            view.members.same(members)
                && view.due.is_none_or(|due| now < due)
                && view.left_out == self.left_out.load(Acquire)
        };
        if let Some(view) = &*self.view.load()
            && fresh(view)
        {
            return view.clone();
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = self.view.load_full()
            && fresh(&view)
        {
            return view; // somebody else was faster
        }
        let view = Arc::new(self.look(&mut held, members, own, now));
        self.view.store(Some(view.clone()));
        view
    }

    fn look(
        &self,
        held: &mut HashMap<Arc<str>, Arc<Live>>,
        members: &Members,
        own: &mesh::Client<'_>,
        now: Instant,
    ) -> View {
        // Before anybody is looked at: who is left out meanwhile is seen the next time.
        let left_out = self.left_out.load(Acquire);
        let came = (!held.is_empty()).then_some(now);
        let before = std::mem::take(held);
        let mut live = |workload: &Arc<Workload>| {
            let known = before.get(&workload.uid).cloned();
            let live = known.unwrap_or_else(|| Arc::new(Live::new(came)));
            held.insert(workload.uid.clone(), live.clone());
            live
        };
        let found = view::usable(members, self.port, self.subset.as_deref(), own, &mut live);
        let watch = self.watch.as_ref();
        let mut view = View::new(members, found, own, &self.policy, watch, now);
        view.left_out = left_out;
        if came.is_some() {
            view.find_newcomers(|found| found.live.came == came);
        }
        view
    }

    /// Endpoints that have come to those that there were, for whoever connects to them ahead of requests: the nearest, so many
    /// of them, once for each thread.
    pub fn newcomers(&self, thread: usize) -> Box<[Arc<Endpoint>]> {
        let view = self.view.load();
        let view = view.as_deref();
        view.map_or(&[][..], |view| view.newcomers(thread)).into()
    }

    /// Every endpoint that could be used, and until when it is left out: for people.
    pub fn shown(&self) -> Vec<(Arc<Endpoint>, Option<Instant>)> {
        let view = self.view.load_full();
        let all = view.iter().flat_map(|view| view.usable());
        all.map(|found| (found.clone(), found.live.record.out_until()))
            .collect()
    }
}

impl Live {
    fn new(came: Option<Instant>) -> Self {
        Self {
            busy: AtomicU32::new(0),
            came,
            record: outlier::Record::default(),
        }
    }
}

impl Endpoint {
    /// The gateway of another network through which alone it is reached.
    pub fn gateway(&self) -> Option<&GatewayAddress> {
        let direct = self.address.is_some() || self.workload.hostname().is_some();
        let gateway = self.workload.network_gateway.as_deref();
        gateway.filter(|_| !direct)
    }

    /// Requests on their way to it.
    pub fn busy(&self) -> u32 {
        self.live.busy.load(Relaxed)
    }

    /// Its share relative to others.
    fn weight(&self) -> u64 {
        u64::from(self.workload.capacity)
    }
}

impl Choice {
    /// What came of the request. True if that made the endpoint be left out.
    pub fn ended(&self, outcome: Outcome, now: Instant) -> bool {
        let Some(watch) = &self.group.watch else {
            return false;
        };
        let ejected = watch.note(&self.endpoint.live.record, outcome, now);
        if ejected {
            self.group.left_out.fetch_add(1, Release);
        }
        ejected
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        self.endpoint.live.busy.fetch_sub(1, Relaxed);
    }
}

fn avoided(endpoint: &Endpoint, hints: &Hints<'_>) -> bool {
    hints.avoid.iter().any(|uid| *uid == endpoint.workload.uid)
}

/// Slow start of new endpoints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WarmUp {
    window: Duration,
    aggression: f64,
    /// Between 0 and 1.
    least: f64,
}

impl WarmUp {
    fn compile(found: &wire::LoadBalancer) -> Option<Self> {
        let aggression = found.warm_up_aggression;
        let percent = match found.warm_up_minimum {
            0 => 10,
            percent => percent.min(100),
        };
        (found.warm_up > 0).then(|| Self {
            window: Duration::from_millis(found.warm_up),
            aggression: if aggression.is_finite() && aggression > 0.0 {
                aggression
            } else {
                1.0
            },
            least: f64::from(percent) / 100.0,
        })
    }

    /// Of a full share, after that time: between 0 and 1.
    fn share(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let grown = age.as_secs_f64() / self.window.as_secs_f64();
        grown.powf(1.0 / self.aggression).max(self.least)
    }
}

/// Draws for one choice, before whatever came last will do.
const ATTEMPTS: u64 = 8;
