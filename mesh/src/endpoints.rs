//! The endpoints of one service, grouped so that a choice costs the same for 10 and for 10,000.
//!
//! A trie over the service's routing preference: the root holds all endpoints, one level down
//! they are parted by their value of the first scope, and so on. The best rank for a caller is
//! the deepest place on the caller's own path that holds a usable endpoint, because everything a
//! place holds matches at least as many scopes as the place is deep, and nothing deeper was usable.
//!
//! Inside a place, endpoints are parted once more by [`Kind`]: everything on which "usable by
//! this caller on this port" and the weight depend. Those are a handful, so usability is asked per
//! kind and the draw inside a kind is uniform. Cost: one pointer per endpoint and level.

use std::net::IpAddr;
use std::sync::Arc;

use crate::crowd::Crowd;
use crate::names::Network;
use crate::service::{Port, Scope};
use crate::workload::Workload;

/// The endpoints of one service.
#[derive(Debug, Clone, Default)]
pub(crate) struct Endpoints {
    scopes: Box<[Scope]>,
    root: Place,
}

/// All endpoints that have the same values of the first few scopes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    pub(crate) kinds: Vec<(Kind, Crowd)>,
    deeper: Option<Box<imbl::HashMap<Arc<str>, Arc<Place>>>>,
}

/// What endpoints must have in common to be equally usable, and equally often chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) ports: Arc<[Port]>,
    pub(crate) network: Network,
    pub(crate) capacity: u32,
    pub(crate) healthy: bool,
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
    pub(crate) hostname: bool,
    pub(crate) gateway: bool,
    pub(crate) application_tunnel: bool,
}

impl Kind {
    pub(crate) fn of(workload: &Workload, ports: &Arc<[Port]>) -> Self {
        Self {
            ports: ports.clone(),
            network: workload.network.clone(),
            capacity: workload.capacity,
            healthy: workload.healthy,
            ipv4: workload.addresses.iter().any(IpAddr::is_ipv4),
            ipv6: workload.addresses.iter().any(IpAddr::is_ipv6),
            hostname: workload.hostname().is_some(),
            gateway: workload.network_gateway.is_some(),
            application_tunnel: workload.application_tunnel.is_some(),
        }
    }

    /// The endpoints' own target of a service port.
    pub(crate) fn own_target(&self, port: u16) -> Option<u16> {
        let own = self.ports.iter().find(|own| own.service_port == port)?;
        Some(own.target_port).filter(|target| *target != 0)
    }
}

impl Endpoints {
    pub(crate) fn is_empty(&self) -> bool {
        self.root.kinds.is_empty()
    }

    pub(crate) fn root(&self) -> &Place {
        &self.root
    }

    /// Every endpoint, whatever its health.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Kind, &Arc<Workload>)> {
        self.root
            .kinds
            .iter()
            .flat_map(|(kind, crowd)| crowd.iter().map(move |member| (kind, member)))
    }

    pub(crate) fn insert(&mut self, workload: &Arc<Workload>, ports: &Arc<[Port]>) {
        self.root
            .insert(&self.scopes, workload, &Kind::of(workload, ports));
    }

    /// All of them at once. They are replicas: only what is a workload's own may differ.
    pub(crate) fn insert_all(&mut self, replicas: &[Arc<Workload>], ports: &Arc<[Port]>) {
        if !self.scopes.is_empty() {
            return replicas
                .iter()
                .for_each(|workload| self.insert(workload, ports));
        }
        let alike = |a: &Arc<Workload>, b: &Arc<Workload>| {
            (a.healthy, a.capacity) == (b.healthy, b.capacity)
                && a.addresses.len() == 1
                && b.addresses.len() == 1
                && a.addresses[0].is_ipv4() == b.addresses[0].is_ipv4()
                && a.hostname().is_some() == b.hostname().is_some()
        };
        for alike in replicas.chunk_by(alike) {
            let kind = Kind::of(&alike[0], ports);
            self.root.insert_alike(alike, kind);
        }
    }

    /// `workload` is the very version that was inserted: its values lead to it.
    pub(crate) fn remove(&mut self, workload: &Workload, ports: &Arc<[Port]>) {
        self.root
            .remove(&self.scopes, workload, &Kind::of(workload, ports));
    }

    /// Groups anew when the preference is another: O(endpoints), and rare.
    pub(crate) fn group_by(&mut self, scopes: &[Scope]) {
        if *self.scopes == *scopes {
            return;
        }
        let before = std::mem::take(self);
        self.scopes = scopes.into();
        for (kind, member) in before.iter() {
            self.root.insert(&self.scopes, member, kind);
        }
    }
}

impl Place {
    /// The place one level down that has this value.
    pub(crate) fn at(&self, value: &str) -> Option<&Self> {
        self.deeper.as_ref()?.get(value).map(|place| &**place)
    }

    /// All places one level down.
    pub(crate) fn all_below(&self) -> impl Iterator<Item = &Self> {
        self.deeper
            .iter()
            .flat_map(|deeper| deeper.values())
            .map(|place| &**place)
    }

    /// Endpoints of one kind, where there are no scopes.
    fn insert_alike(&mut self, alike: &[Arc<Workload>], kind: Kind) {
        match self.kinds.iter_mut().find(|(held, _)| *held == kind) {
            Some((_, crowd)) => alike
                .iter()
                .for_each(|workload| crowd.insert(workload.clone())),
            None => {
                self.kinds.reserve_exact(1); // nearly always the only one
                self.kinds.push((kind, Crowd::of_each(alike)));
            }
        }
    }

    fn insert(&mut self, scopes: &[Scope], workload: &Arc<Workload>, kind: &Kind) {
        match self.kinds.iter_mut().find(|(held, _)| held == kind) {
            Some((_, crowd)) => crowd.insert(workload.clone()),
            None => {
                let mut crowd = Crowd::default();
                crowd.insert(workload.clone());
                self.kinds.reserve_exact(1); // nearly always the only one
                self.kinds.push((kind.clone(), crowd));
            }
        }
        if let [scope, rest @ ..] = scopes {
            let deeper = self.deeper.get_or_insert_default();
            let place = deeper.entry(scope.value(workload).clone()).or_default();
            Arc::make_mut(place).insert(rest, workload, kind);
        }
    }

    fn remove(&mut self, scopes: &[Scope], workload: &Workload, kind: &Kind) {
        let Some(at) = self.kinds.iter().position(|(held, _)| held == kind) else {
            return;
        };
        self.kinds[at].1.remove(workload);
        if self.kinds[at].1.is_empty() {
            self.kinds.swap_remove(at);
        }
        let ([scope, rest @ ..], Some(deeper)) = (scopes, &mut self.deeper) else {
            return;
        };
        let value = scope.value(workload);
        let Some(place) = deeper.get_mut(&**value) else {
            return;
        };
        Arc::make_mut(place).remove(rest, workload, kind);
        if place.kinds.is_empty() {
            deeper.remove(&**value);
        }
        if deeper.is_empty() {
            self.deeper = None;
        }
    }
}

impl Scope {
    pub(crate) fn value(self, workload: &Workload) -> &Arc<str> {
        match self {
            Self::Region => &workload.locality.region,
            Self::Zone => &workload.locality.zone,
            Self::Subzone => &workload.locality.subzone,
            Self::Node => &workload.node,
            Self::Cluster => &workload.cluster,
            Self::Network => workload.network.as_arc(),
        }
    }
}
