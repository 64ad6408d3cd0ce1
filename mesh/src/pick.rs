//! Pure: which endpoint of a service a connection goes to.
//!
//! 1. the port must exist                                   (`pick`)
//! 2. among the endpoints that can be used at all           (`Asked::usable`)
//! 3. those that have most in common with the caller        (`Asked::best`)
//! 4. one is drawn, by capacity                             (`Asked::drawn`)
//! 5. or another, if the caller would rather not have it    (`Asked::pick_but`)
//!
//! Who asks why is told of each endpoint (`candidates`).

mod candidates;

use std::net::IpAddr;
use std::sync::Arc;

use crate::endpoints::{Kind, Place};
use crate::names::Network;
use crate::service::{HealthPolicy, Mode, Scope, Service};
use crate::snapshot::Snapshot;
use crate::workload::{Locality, Workload};

pub use candidates::{Candidate, Standing, candidates, waypoint_candidates};

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Its network.
    pub network: &'a Network,
    /// Where it runs.
    pub locality: &'a Locality,
    /// Its node.
    pub node: &'a str,
    /// Its cluster.
    pub cluster: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// It asked for an IPv6 address: an endpoint's IPv6 address is preferred.
    pub ipv6: bool,
}

impl<'a> Client<'a> {
    /// The caller that a workload is; `ipv6` tells which kind of address it asked for.
    pub fn of(workload: &'a Workload, ipv6: bool) -> Self {
        Self {
            network: &workload.network,
            locality: &workload.locality,
            node: &workload.node,
            cluster: &workload.cluster,
            namespace: &workload.namespace,
            ipv6,
        }
    }
}

/// Where the connection goes.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Whom it goes to.
    pub workload: Arc<Workload>,
    /// The port there.
    pub target_port: u16,
    /// The address there; `None` when it is to be resolved (`hostname`) or is reached through the
    /// gateway of its network.
    pub address: Option<IpAddr>,
}

/// Why there is nowhere to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// The service does not offer the port.
    #[error("the service has no port {0}")]
    NoPort(u16),
    /// It has no endpoint at all.
    #[error("the service has no endpoint")]
    Empty,
    /// It has endpoints, none of them healthy.
    #[error("no healthy upstream")]
    Unhealthy,
    /// It has healthy endpoints, none of which can be reached on this port from here.
    #[error("no endpoint of the service can be reached on port {0}")]
    Unusable(u16),
    /// It has usable endpoints, none of which matches every scope of a STRICT preference.
    #[error("no endpoint is close enough for the service's strict routing preference")]
    TooFar,
    /// It has none, and wants the original destination in that case.
    #[error("the service passes through to the original destination")]
    Passthrough,
}

/// Chooses an endpoint of `service` for its port `port`. `draw` is a random number.
pub fn pick(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    client: &Client<'_>,
    draw: u64,
) -> Result<Endpoint, NoEndpoint> {
    Asked::app(service, port, client)?.pick(snapshot, draw)
}

/// The same, but none that is `avoided` where another one can be had: of equal ones, and, where the service fails over,
/// of those that have less in common with the caller. Where there is no other, whom [`pick`] chooses: that all seem to
/// be in trouble is no reason to ask none.
pub fn pick_but(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    client: &Client<'_>,
    draw: u64,
    avoided: &dyn Fn(&Endpoint) -> bool,
) -> Result<Endpoint, NoEndpoint> {
    Asked::app(service, port, client)?.pick_but(snapshot, draw, avoided)
}

/// The same for a waypoint, reached at its HBONE port: the service need not offer that port where
/// the endpoint has an application tunnel, for the tunnel ends before the application's ports.
pub fn pick_waypoint(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    client: &Client<'_>,
    draw: u64,
) -> Result<Endpoint, NoEndpoint> {
    Asked::waypoint(service, port, client).pick(snapshot, draw)
}

/// [`pick_waypoint`], with the difference that [`pick_but`] makes.
pub fn pick_waypoint_but(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    client: &Client<'_>,
    draw: u64,
    avoided: &dyn Fn(&Endpoint) -> bool,
) -> Result<Endpoint, NoEndpoint> {
    Asked::waypoint(service, port, client).pick_but(snapshot, draw, avoided)
}

/// Draws for an endpoint that is not avoided: of a large service few are.
const JUMPS: u64 = 8;
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Endpoints that are looked at after that, one after the other: small services are gone through whole.
const NEIGHBOURS: u32 = 16;

/// One question.
#[derive(Clone, Copy)]
struct Asked<'a> {
    service: &'a Service,
    port: u16,
    /// The service's own answer to which port it is at an endpoint.
    target: Option<u16>,
    client: &'a Client<'a>,
    /// An application tunnel stands in for the port.
    any_port: bool,
    /// What counts as having something in common, the most important first.
    scopes: &'a [Scope],
}

impl<'a> Asked<'a> {
    fn app(service: &'a Service, port: u16, client: &'a Client<'a>) -> Result<Self, NoEndpoint> {
        service.port(port).ok_or(NoEndpoint::NoPort(port))?;
        Ok(Self {
            any_port: false,
            ..Self::waypoint(service, port, client)
        })
    }

    fn waypoint(service: &'a Service, port: u16, client: &'a Client<'a>) -> Self {
        let target = service.port(port).map(|port| port.target_port);
        Self {
            service,
            port,
            target: target.filter(|target| *target != 0),
            client,
            any_port: true,
            scopes: service.load_balancing.scopes(),
        }
    }

    fn pick(&self, snapshot: &Snapshot, draw: u64) -> Result<Endpoint, NoEndpoint> {
        let Some(slot) = snapshot.slot(&self.service.namespace, &self.service.hostname) else {
            return Err(self.none(None));
        };
        let root = slot.endpoints.root();
        let (kind, workload) = self.best(root, draw).ok_or_else(|| self.none(Some(root)))?;
        let target_port = self
            .target_port(kind)
            .ok_or(NoEndpoint::Unusable(self.port))?;
        Ok(Endpoint {
            address: self.address(workload),
            workload: workload.clone(),
            target_port,
        })
    }

    fn pick_but(
        &self,
        snapshot: &Snapshot,
        draw: u64,
        avoided: &dyn Fn(&Endpoint) -> bool,
    ) -> Result<Endpoint, NoEndpoint> {
        let first = self.pick(snapshot, draw)?;
        if !avoided(&first) {
            return Ok(first);
        }
        // STRICT means what it says, and the other modes have no scopes to give up.
        let least = match self.service.load_balancing.mode {
            Mode::Failover => 0,
            _ => self.scopes.len(),
        };
        for kept in (least..=self.scopes.len()).rev() {
            let wider = Self {
                scopes: &self.scopes[..kept],
                ..*self
            };
            if let Some(other) = wider.other(snapshot, draw, avoided) {
                return Ok(other);
            }
        }
        Ok(first)
    }

    /// One that is not avoided, if it is found in so many draws.
    fn other(
        &self,
        snapshot: &Snapshot,
        draw: u64,
        avoided: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<Endpoint> {
        // An odd factor with its bits spread: each draw is another, and none is near the one before, so that what the
        // avoided ones would have got is shared by all others.
        let far = (1..=JUMPS).map(|step| draw.wrapping_add(step.wrapping_mul(SPREAD)));
        let mut far = far.filter_map(|draw| self.pick(snapshot, draw).ok());
        if let Some(found) = far.find(|found| !avoided(found)) {
            return Some(found);
        }
        let mut near = draw;
        for _ in 0..NEIGHBOURS {
            let found = self.pick(snapshot, near).ok()?;
            if !avoided(&found) {
                return Some(found);
            }
            // As many draws as lead to it: the next one leads to its neighbour.
            near = near.wrapping_add(found.workload.capacity.max(1).into());
        }
        None
    }

    // ---- which can be used at all

    fn usable(&self, kind: &Kind) -> bool {
        (kind.healthy || self.service.load_balancing.health_policy == HealthPolicy::AllowAll)
            && self.target_port(kind).is_some()
            && self.reachable(kind)
    }

    fn target_port(&self, kind: &Kind) -> Option<u16> {
        let fallback = Some(self.port).filter(|_| self.any_port && kind.application_tunnel);
        kind.own_target(self.port).or(self.target).or(fallback)
    }

    fn reachable(&self, kind: &Kind) -> bool {
        let families = self.service.ip_families;
        kind.hostname
            || (kind.gateway && kind.network != *self.client.network)
            || (kind.ipv4 && families.accept(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)))
            || (kind.ipv6 && families.accept(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)))
    }

    /// An address of a family the service speaks, the caller's family first.
    fn address(&self, workload: &Workload) -> Option<IpAddr> {
        let mut accepted = workload
            .addresses
            .iter()
            .copied()
            .filter(|ip| self.service.ip_families.accept(*ip));
        let first = accepted.clone().next();
        accepted
            .find(|ip| ip.is_ipv6() == self.client.ipv6)
            .or(first)
    }

    // ---- which have most in common with the caller

    fn best<'p>(&self, root: &'p Place, draw: u64) -> Option<(&'p Kind, &'p Arc<Workload>)> {
        match (self.service.load_balancing.mode, self.scopes) {
            (Mode::Strict, scopes) => {
                let place = scopes
                    .iter()
                    .try_fold(root, |place, scope| place.at(self.value(*scope)))?;
                self.drawn(place, draw)
            }
            // With NETWORK first, the own network beats every other; but another network's
            // endpoints are still ranked among each other by the scopes that follow.
            (_, [Scope::Network, rest @ ..]) => {
                let near = root.at(self.client.network.as_str());
                match near.and_then(|near| self.deepest(near, rest, 0)) {
                    Some((_, place)) => self.drawn(place, draw),
                    None => self.elsewhere(root, rest, draw),
                }
            }
            (_, scopes) => self.drawn(self.deepest(root, scopes, 0)?.1, draw),
        }
    }

    /// The deepest place on the caller's path that holds something usable, and how deep it is.
    fn deepest<'p>(
        &self,
        place: &'p Place,
        scopes: &[Scope],
        depth: usize,
    ) -> Option<(usize, &'p Place)> {
        if let [scope, rest @ ..] = scopes
            && let Some(below) = place.at(self.value(*scope))
            && let Some(found) = self.deepest(below, rest, depth + 1)
        {
            return Some(found);
        }
        (self.weight(place) > 0).then_some((depth, place))
    }

    /// The best of all networks at once; they are few, and none of them is the caller's any more.
    fn elsewhere<'p>(
        &self,
        root: &'p Place,
        scopes: &[Scope],
        draw: u64,
    ) -> Option<(&'p Kind, &'p Arc<Workload>)> {
        let found = || {
            root.all_below()
                .filter_map(|network| self.deepest(network, scopes, 0))
        };
        let depth = found().map(|(depth, _)| depth).max()?;
        let best = || {
            found()
                .filter(|(found, _)| *found == depth)
                .map(|(_, place)| place)
        };
        let mut left = draw % best().map(|place| self.weight(place)).sum::<u64>().max(1);
        let place = best().find(|place| match left.checked_sub(self.weight(place)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        })?;
        self.drawn(place, left)
    }

    fn value(&self, scope: Scope) -> &str {
        match scope {
            Scope::Region => &self.client.locality.region,
            Scope::Zone => &self.client.locality.zone,
            Scope::Subzone => &self.client.locality.subzone,
            Scope::Node => self.client.node,
            Scope::Cluster => self.client.cluster,
            Scope::Network => self.client.network.as_str(),
        }
    }

    // ---- one is drawn

    fn weight(&self, place: &Place) -> u64 {
        let usable = place.kinds.iter().filter(|(kind, _)| self.usable(kind));
        usable
            .map(|(kind, crowd)| u64::from(kind.capacity) * crowd.len() as u64)
            .sum()
    }

    fn drawn<'p>(&self, place: &'p Place, draw: u64) -> Option<(&'p Kind, &'p Arc<Workload>)> {
        let mut left = draw.checked_rem(self.weight(place))?;
        for (kind, crowd) in place.kinds.iter().filter(|(kind, _)| self.usable(kind)) {
            let capacity = u64::from(kind.capacity);
            match left.checked_sub(capacity * crowd.len() as u64) {
                Some(rest) => left = rest,
                None => return Some((kind, crowd.nth((left / capacity) as usize)?)),
            }
        }
        None
    }

    // ---- why there is none

    fn none(&self, root: Option<&Place>) -> NoEndpoint {
        let any = |wanted: &dyn Fn(&Kind) -> bool| {
            root.is_some_and(|root| root.kinds.iter().any(|(kind, _)| wanted(kind)))
        };
        let counts = |kind: &Kind| {
            kind.healthy || self.service.load_balancing.health_policy == HealthPolicy::AllowAll
        };
        if self.service.load_balancing.mode == Mode::Passthrough {
            NoEndpoint::Passthrough
        } else if !any(&|_| true) {
            NoEndpoint::Empty
        } else if !any(&counts) {
            NoEndpoint::Unhealthy
        } else if !any(&|kind| self.usable(kind) && kind.capacity > 0) {
            NoEndpoint::Unusable(self.port)
        } else {
            NoEndpoint::TooFar
        }
    }
}
