//! The endpoints of a group at one moment, in order.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use mesh::{LoadBalancing, Members, Mode, Service, Workload};

use super::locality::{self, Rank};
use super::policy::Algorithm;
use super::table::{Maglev, Ring, Turns, Weights};
use super::{Endpoint, Live, NoEndpoint, Policy};
use crate::outlier::Watch;
use crate::session;

/// The endpoints of a group at one moment.
#[derive(Debug)]
pub(super) struct View {
    pub(super) members: Members,
    /// When somebody's time out is over.
    pub(super) due: Option<Instant>,
    /// How often somebody had been left out when it was made.
    pub(super) left_out: u64,
    levels: Levels,
    /// Those that are reached without a gateway of another network. Made when the first comes that may not go through one.
    here: OnceLock<Levels>,
    choice: Algorithm,
    usable: Vec<Arc<Endpoint>>,
    /// Those of the nearest that were not there before.
    newcomers: Box<[Arc<Endpoint>]>,
    /// Threads that know of them, a bit for each.
    greeted: AtomicU64,
    /// Made when the first request with a session comes.
    sessions: OnceLock<HashMap<session::Endpoint, Arc<Endpoint>>>,
    offers_port: bool,
    too_far: bool,
}

/// Levels of nearness, the nearest first.
#[derive(Debug)]
pub(super) struct Levels {
    all: Vec<Level>,
    /// Which level: ends of their shares, in parts of all of u64.
    shares: Vec<u64>,
}

/// Endpoints that are equally near.
#[derive(Debug)]
pub(super) struct Level {
    endpoints: Box<[Arc<Endpoint>]>,
    weights: Weights,
    table: Table,
    /// With those that are left out.
    total: usize,
}

/// What the policy's algorithm needs prepared.
#[derive(Debug)]
enum Table {
    None,
    Turns(Turns),
    Ring(Ring),
    Maglev(Maglev),
}

/// Those that can be used at all: reachable, with a share, of the subset, on this port.
pub(super) fn usable(
    members: &Members,
    port: u16,
    subset: Option<&[Box<str>]>,
    own: &mesh::Client<'_>,
    live: &mut dyn FnMut(&Arc<Workload>) -> Arc<Live>,
) -> Vec<Arc<Endpoint>> {
    let Some(service) = members.service() else {
        return Vec::new();
    };
    let key = service.key();
    let target = service.port(port).map(|port| port.target_port);
    let found = members.counting().filter_map(|workload| {
        let of_subset = |uids: &[Box<str>]| {
            let uid = &*workload.uid;
            uids.binary_search_by(|held| (**held).cmp(uid)).is_ok()
        };
        if workload.capacity == 0 || !subset.is_none_or(of_subset) {
            return None;
        }
        let mut own_ports = workload.ports_in(&key).unwrap_or_default().iter();
        let mapped = own_ports.find(|own| own.service_port == port);
        let mapped = mapped.map(|own| own.target_port);
        let target_port = mapped.filter(|port| *port != 0).or(target)?;
        let address = address(service, workload, own.ipv6);
        let elsewhere = workload.network_gateway.is_some() && workload.network != *own.network;
        if target_port == 0 || (address.is_none() && workload.hostname().is_none() && !elsewhere) {
            return None;
        }
        Some(Arc::new(Endpoint {
            address: address.filter(|_| !elsewhere),
            live: live(workload),
            workload: workload.clone(),
            target_port,
        }))
    });
    let mut found: Vec<_> = found.collect();
    // The same order everywhere: tables of two replicas are then alike.
    found.sort_unstable_by(|a, b| a.workload.uid.cmp(&b.workload.uid));
    found
}

/// An address of a family that the service speaks, the wanted family first.
fn address(service: &Service, workload: &Workload, ipv6: bool) -> Option<IpAddr> {
    let all = workload.addresses.iter().copied();
    let mut accepted = all.filter(|ip| service.ip_families.accept(*ip));
    let first = accepted.clone().next();
    accepted.find(|ip| ip.is_ipv6() == ipv6).or(first)
}

impl View {
    pub(super) fn new(
        members: &Members,
        usable: Vec<Arc<Endpoint>>,
        own: &mesh::Client<'_>,
        policy: &Policy,
        watch: Option<&Watch>,
        now: Instant,
    ) -> Self {
        let out: Vec<_> = usable
            .iter()
            .map(|found| watch.and_then(|_| found.live.record.readmit(now)))
            .collect();
        let are_out = out.iter().flatten().count();
        let given_up = watch.is_some_and(|watch| {
            watch.recount(usable.len(), are_out);
            watch.gives_up(usable.len(), are_out)
        });
        let fallback = LoadBalancing::default();
        let service = members.service();
        let balancing = service.map_or(&fallback, |service| &service.load_balancing);
        let mut ranked: BTreeMap<Rank, Standing> = BTreeMap::new();
        for (found, out) in usable.iter().zip(&out) {
            let nearness = policy.nearness.as_ref();
            if let Some(rank) = locality::rank(nearness, balancing, own, &found.workload) {
                let standing = ranked.entry(rank).or_default();
                standing.total += 1;
                if out.is_none() || given_up {
                    standing.here.push(found.clone());
                }
            }
        }
        let too_far = ranked.is_empty() && !usable.is_empty();
        Self {
            members: members.clone(),
            due: out.into_iter().flatten().min(),
            left_out: 0,
            levels: Levels::new(levels(ranked, policy.choice)),
            here: OnceLock::new(),
            choice: policy.choice,
            too_far,
            sessions: OnceLock::new(),
            offers_port: service.is_some(),
            usable,
            newcomers: Box::default(),
            greeted: AtomicU64::default(),
        }
    }

    /// Remembers those of the nearest that are new.
    pub(super) fn find_newcomers(&mut self, is_new: impl Fn(&Endpoint) -> bool) {
        let nearest = self.levels.all.first();
        let nearest = nearest.map_or(&[][..], |level| &level.endpoints);
        let new = nearest.iter().filter(|found| is_new(found));
        self.newcomers = new.take(MOST_AHEAD).cloned().collect();
    }

    /// These, if the thread has not been told of them.
    pub(super) fn newcomers(&self, thread: usize) -> &[Arc<Endpoint>] {
        let bit = 1 << (thread % 64);
        let known = |bits: u64| bits & bit != 0;
        if self.newcomers.is_empty()
            || known(self.greeted.load(Relaxed))
            || known(self.greeted.fetch_or(bit, Relaxed))
        {
            return &[];
        }
        &self.newcomers
    }

    /// All levels, or what is left of them without the gateways of other networks.
    pub(super) fn levels(&self, only_here: bool) -> &Levels {
        match only_here {
            false => &self.levels,
            true => self.here.get_or_init(|| self.levels.here(self.choice)),
        }
    }

    /// The one of that session, if it is not left out.
    pub(super) fn of_session(&self, wanted: &session::Endpoint) -> Option<&Arc<Endpoint>> {
        let service = self.members.service()?;
        let names = self.sessions.get_or_init(|| {
            let name = |found: &Arc<Endpoint>| {
                let uid = &found.workload.uid;
                let name = session::Endpoint::of(&service.namespace, &service.hostname, uid);
                (name, found.clone())
            };
            self.levels.all().map(name).collect()
        });
        names.get(wanted)
    }

    pub(super) fn usable(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.usable.iter()
    }

    /// Why there is none.
    pub(super) fn none(&self, port: u16, only_here: bool) -> NoEndpoint {
        if only_here && self.levels.all().next().is_some() {
            return NoEndpoint::Abroad;
        }
        let service = self.members.service();
        let passes = |service: &Arc<Service>| service.load_balancing.mode == Mode::Passthrough;
        if service.is_some_and(passes) {
            NoEndpoint::Passthrough
        } else if !self.offers_port || service.is_some_and(|service| service.port(port).is_none()) {
            NoEndpoint::NoPort(port)
        } else if self.members.is_empty() {
            NoEndpoint::Empty
        } else if self.usable.is_empty() {
            NoEndpoint::Unhealthy
        } else if self.too_far {
            NoEndpoint::TooFar
        } else {
            NoEndpoint::Ejected
        }
    }
}

/// Who has the same rank.
#[derive(Debug, Default)]
struct Standing {
    here: Vec<Arc<Endpoint>>,
    total: usize,
}

/// Shares of requests are one level, in which each endpoint's weight is its part of its share.
fn levels(ranked: BTreeMap<Rank, Standing>, choice: Algorithm) -> Vec<Level> {
    let mut levels = Vec::new();
    let (mut shared, mut total) = (Vec::new(), 0);
    for (rank, standing) in ranked {
        match rank {
            Rank::Near(_) => {
                let weigh = |found: Arc<Endpoint>| (found.weight(), found);
                let here = standing.here.into_iter().map(weigh).collect();
                levels.push(Level::new(here, standing.total, choice));
            }
            Rank::Share(_, share) => {
                let all: u64 = standing.here.iter().map(|found| found.weight()).sum();
                let part = |found: &Endpoint| {
                    let part = u128::from(found.weight()) * u128::from(share) * FINE;
                    ((part / u128::from(all.max(1))) as u64).max(1)
                };
                total += standing.total;
                let here = standing.here.into_iter();
                shared.extend(here.map(|found| (part(&found), found)));
            }
        }
    }
    if total > 0 {
        levels.push(Level::new(shared, total, choice));
    }
    levels
}

/// A level that has lost nobody takes all; one that has lost more than two in seven gives the rest to the next
/// (Envoy's overprovisioning factor of 1.4).
fn shares(levels: &[Level]) -> Vec<u64> {
    let mut left = 1.0_f64;
    let taken: Vec<f64> = levels
        .iter()
        .map(|level| {
            let health = level.endpoints.len() as f64 / level.total.max(1) as f64;
            let takes = (health * 1.4).min(1.0).min(left);
            left -= takes;
            takes
        })
        .collect();
    let all: f64 = taken.iter().sum();
    let mut sum = 0.0;
    taken
        .into_iter()
        .map(|takes| {
            sum += takes;
            if sum >= all {
                return u64::MAX; // also where nobody is left: then there is no level's endpoint either
            }
            (sum / all * u64::MAX as f64) as u64
        })
        .collect()
}

impl Levels {
    fn new(all: Vec<Level>) -> Self {
        Self {
            shares: shares(&all),
            all,
        }
    }

    /// The level that a random number takes.
    pub(super) fn level(&self, draw: u64) -> Option<&Level> {
        match &*self.all {
            [only] => Some(only),
            levels => {
                // Not the bits by which the endpoint is chosen.
                let draw = super::hash::mixed(draw ^ LEVELS).min(u64::MAX - 1);
                let at = self.shares.partition_point(|end| *end <= draw);
                levels.get(at)
            }
        }
    }

    /// All that are not left out, the nearest first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.all.iter().flat_map(|level| &level.endpoints)
    }

    /// Without those behind the gateway of another network. How many of a level's others are left out is not counted: it
    /// gives nothing to the next as long as it has one.
    fn here(&self, choice: Algorithm) -> Self {
        let left = self.all.iter().map(|level| {
            let weighed = level.endpoints.iter().enumerate();
            let weighed = weighed.map(|(at, found)| (level.weights.of(at), found.clone()));
            let here: Vec<_> = weighed
                .filter(|(_, found)| found.gateway().is_none())
                .collect();
            let total = here.len();
            Level::new(here, total, choice)
        });
        Self::new(left.collect())
    }
}

impl Level {
    fn new(weighted: Vec<(u64, Arc<Endpoint>)>, total: usize, choice: Algorithm) -> Self {
        let weights: Vec<u64> = weighted.iter().map(|(weight, _)| *weight).collect();
        let named = || -> Vec<(&str, u64)> {
            let all = weighted.iter();
            all.map(|(weight, found)| (&*found.workload.uid, *weight))
                .collect()
        };
        let table = match choice {
            Algorithm::RoundRobin => Table::Turns(Turns::new(&weights)),
            Algorithm::Ring(size) => Table::Ring(Ring::new(&named(), size)),
            Algorithm::Maglev(size) => Table::Maglev(Maglev::new(&named(), size)),
            Algorithm::LeastRequest | Algorithm::Random => Table::None,
        };
        Self {
            weights: Weights::new(&weights),
            endpoints: weighted.into_iter().map(|(_, found)| found).collect(),
            table,
            total,
        }
    }

    /// One of them. `key` is the request's hash, `luck` a random number.
    pub(super) fn one(
        &self,
        choice: &Algorithm,
        turn: &AtomicUsize,
        key: u64,
        luck: u64,
    ) -> Option<&Arc<Endpoint>> {
        let at = match (&self.table, choice) {
            (Table::Turns(turns), _) => turns.at(turn.fetch_add(1, Relaxed)),
            (Table::Ring(ring), _) => ring.at(key),
            (Table::Maglev(maglev), _) => maglev.at(key),
            (Table::None, Algorithm::LeastRequest) => return self.less_busy(luck),
            (Table::None, _) => self.weights.at(luck),
        };
        self.endpoints.get(at?)
    }

    /// Of two at random the one with less to do for its weight; the first if they are alike.
    fn less_busy(&self, luck: u64) -> Option<&Arc<Endpoint>> {
        let first = self.endpoints.get(self.weights.at(luck)?)?;
        let second = self
            .endpoints
            .get(self.weights.at(super::hash::mixed(luck))?)?;
        let load = |of: &Endpoint, other: &Endpoint| u64::from(of.busy()) * other.weight();
        Some(if load(second, first) < load(first, second) {
            second
        } else {
            first
        })
    }
}

/// Newcomers that each thread connects to ahead of requests, after each change.
const MOST_AHEAD: usize = 16;
/// So that shares of a percent can be parted among many.
const FINE: u128 = 1_000_000;
/// Makes the draw of a level another than that of an endpoint.
const LEVELS: u64 = 0x6c65_7665_6c73_0000;
