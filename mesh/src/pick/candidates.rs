//! Every endpoint of a service, and what stands in the way of those that a caller is not sent to: for whoever asks why.
//!
//! Costs what the service has, and is for people's questions; connections are decided by [`super::pick`], which must
//! choose one of those that are [`Standing::Eligible`] here.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Asked, Client, NoEndpoint};
use crate::endpoints::Kind;
use crate::service::{HealthPolicy, Mode, Scope, Service};
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// An endpoint of a service, as a caller sees it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Which.
    pub workload: Arc<Workload>,
    /// The port there, if anybody says which.
    pub target_port: Option<u16>,
    /// The address there; see [`super::Endpoint::address`].
    pub address: Option<IpAddr>,
    /// Whether it can be chosen.
    pub standing: Standing,
}

/// Whether an endpoint can be chosen, and if not, why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It is one of those that are drawn from.
    Eligible,
    /// It could be, but others have more in common with the caller, or the service is strict about that.
    TooFar,
    /// It is not ready.
    Unhealthy,
    /// Neither it nor the service says which port it is there.
    NoTargetPort,
    /// It has no address of a family that the service speaks.
    Unreachable,
    /// Its share is 0.
    NoCapacity,
}

/// The endpoints of `service` for its port `port`, those that can be chosen first.
///
/// # Errors
/// When the service does not offer the port.
pub fn candidates(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    client: &Client<'_>,
) -> Result<Vec<Candidate>, NoEndpoint> {
    Ok(Asked::app(service, port, client)?.candidates(snapshot))
}

/// The same for a waypoint, as [`super::pick_waypoint`] is.
pub fn waypoint_candidates(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    client: &Client<'_>,
) -> Vec<Candidate> {
    Asked::waypoint(service, port, client).candidates(snapshot)
}

/// How much an endpoint has in common with the caller: whether it is on its network, where that comes first, and how
/// many of the other scopes are the same before one differs.
type Rank = (bool, usize);

impl Asked<'_> {
    fn candidates(&self, snapshot: &Snapshot) -> Vec<Candidate> {
        let Some(slot) = snapshot.slot(&self.service.namespace, &self.service.hostname) else {
            return Vec::new();
        };
        let can_be = |kind: &Kind| self.usable(kind) && kind.capacity > 0;
        let of_use = slot.endpoints.iter().filter(|(kind, _)| can_be(kind));
        let best = of_use.map(|(_, workload)| self.rank(workload)).max();
        let standing = |kind: &Kind, workload: &Workload| {
            if !kind.healthy && self.service.load_balancing.health_policy != HealthPolicy::AllowAll
            {
                Standing::Unhealthy
            } else if self.target_port(kind).is_none() {
                Standing::NoTargetPort
            } else if !self.reachable(kind) {
                Standing::Unreachable
            } else if kind.capacity == 0 {
                Standing::NoCapacity
            } else if self.is_near_enough(workload, best) {
                Standing::Eligible
            } else {
                Standing::TooFar
            }
        };
        let mut found: Vec<_> = slot
            .endpoints
            .iter()
            .map(|(kind, workload)| Candidate {
                target_port: self.target_port(kind),
                address: self.address(workload),
                standing: standing(kind, workload),
                workload: workload.clone(),
            })
            .collect();
        found.sort_by(|a, b| (a.standing, &a.workload.uid).cmp(&(b.standing, &b.workload.uid)));
        found
    }

    fn is_near_enough(&self, workload: &Workload, best: Option<Rank>) -> bool {
        match self.service.load_balancing.mode {
            Mode::Strict => self
                .scopes
                .iter()
                .all(|scope| self.is_same(*scope, workload)),
            _ => Some(self.rank(workload)) == best,
        }
    }

    fn rank(&self, workload: &Workload) -> Rank {
        let in_common = |scopes: &[Scope]| {
            let same = scopes
                .iter()
                .take_while(|scope| self.is_same(**scope, workload));
            same.count()
        };
        match self.scopes {
            [Scope::Network, rest @ ..] => {
                (self.is_same(Scope::Network, workload), in_common(rest))
            }
            scopes => (true, in_common(scopes)),
        }
    }

    fn is_same(&self, scope: Scope, workload: &Workload) -> bool {
        self.value(scope) == &**scope.value(workload)
    }
}
