//! A connection on its way out, and where it goes: asked of the mesh as of now, and once more when somebody was of no use.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{Authority, Connect, Destination, First, Identity};
use mesh::{GatewayAddress, GatewayTarget, Service, Workload};

use super::Failed;
use crate::headers;
use crate::lookup::{LookupError, lookup};
use crate::netns;
use crate::node::Node;
use crate::on_demand::{OnDemand, Whom};
use crate::pod::Pod;
use crate::retry::{Target, Tries};
use crate::route::{self, Decision, Place, Question, Refused, Tunnel};

/// A connection on its way out: whose it is, and what its sockets say.
pub(crate) struct Leaving<'a> {
    pub(crate) node: &'a Arc<Node>,
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) identity: &'a Identity,
    pub(crate) source: Arc<Workload>,
    pub(crate) peer: SocketAddr,
    pub(crate) original: SocketAddr,
    /// It may be joined with a pod of this node in process; datagrams are not.
    pub(crate) joins: bool,
}

impl Leaving<'_> {
    /// An address of this pod that can speak to `to`: the one the app used, else another of the right family. Who lives behind
    /// an interface of the pod (`istio.io/reroute-virtual-interfaces`) uses one that the pod does not have.
    pub(crate) fn own_address(&self, to: SocketAddr) -> Option<IpAddr> {
        let used = self.peer.ip();
        let told = &self.source.addresses;
        // A pod may have more than the control plane knows of. Where that cannot be found out, to bind it says why.
        let is_own = || told.contains(&used) || self.pod.netns.has_address(used).unwrap_or(true);
        if used.is_ipv4() == to.is_ipv4() && is_own() {
            return Some(used);
        }
        told.iter().copied().find(|ip| ip.is_ipv4() == to.is_ipv4())
    }

    /// To whom a tunnel to `address` is opened, if one of those who are `expected` answers, and from where it is dialled.
    pub(crate) fn towards(
        &self,
        address: SocketAddr,
        expected: Vec<Identity>,
    ) -> (Destination, netns::From) {
        let own = self.own_address(address);
        let destination = Destination {
            address,
            source_ip: own.unwrap_or(self.peer.ip()),
            source: self.identity.clone(),
            expected: route::by_all_names(expected, &self.node.config.trust_domains),
        };
        (destination, own.map_or(netns::From::Any, netns::From::Own))
    }

    /// What is asked there: the way to `authority`, for whom, and which service was called.
    pub(crate) fn asking(&self, authority: Authority, service: Option<&Service>) -> Connect {
        let host = service.map(|service| &*service.hostname);
        let baggage = headers::baggage(&self.source);
        Connect {
            authority,
            forwarded: Some(headers::forwarded(self.peer, host)),
            baggage: Some(baggage).filter(|baggage| !baggage.is_empty()),
            traceparent: Some(headers::traceparent()),
            x_forwarded_network: None,
            source: None,
        }
    }

    /// Where it goes, by the mesh as of now; not to whom others have failed on just now, if anybody is left.
    pub(crate) async fn decide(&self) -> Result<Decision, Failed> {
        let draw = headers::random();
        match &self.node.on_demand {
            None => Ok(self.decide_by(draw)?),
            Some(on_demand) => Box::pin(self.decide_asking(on_demand, draw)).await,
        }
    }

    /// The same, where whoever is on the way may have to be asked for.
    async fn decide_asking(&self, on_demand: &OnDemand, draw: u64) -> Result<Decision, Failed> {
        let Self { node, source, .. } = self;
        on_demand.towards(node, source, self.original).await?;
        for _ in 0..GATEWAYS {
            let decided = self.decide_by(draw);
            let mut asked = false;
            for whom in [gateway(&decided).map(Whom::from), door(&decided)] {
                if let Some(whom) = whom.filter(|_| !asked) {
                    asked = on_demand.whom(node, whom).await?;
                }
            }
            if !asked {
                return Ok(decided?);
            }
        }
        Ok(self.decide_by(draw)?)
    }

    fn decide_by(&self, draw: u64) -> Result<Decision, Refused> {
        let troubled = &self.node.retries.troubled;
        let decided = match troubled.is_empty() {
            true => self.decide_but(draw, &|_, _| false),
            false => self.decide_but(draw, &|workload, port| {
                troubled.includes((workload.uid.clone(), port), self.original)
            }),
        };
        let refused = matches!(decided, Err(Refused::Egress { .. }));
        if refused || matches!(&decided, Ok(Decision::Plain(found)) if found.logged_by.is_some()) {
            let traffic = &self.node.traffic;
            traffic.to_unknown(&self.source, self.identity, refused);
        }
        decided
    }

    /// Somebody else than `target`, which has failed or says nothing, and than all who have failed before.
    pub(super) fn other(
        &self,
        tries: &Tries,
        target: Option<&Target>,
        first: &First,
    ) -> Option<Decision> {
        let target = target?;
        if !first.may_be_repeated() || !tries.may_go_on() {
            return None;
        }
        let troubled = &self.node.retries.troubled;
        let is_out =
            |target: &Target, failed: &Target| failed == target || tries.has_failed(target);
        // Rather one who is in trouble for others than none.
        [true, false].into_iter().find_map(|by_others| {
            let avoid = |workload: &Workload, port| {
                let it = (workload.uid.clone(), port);
                is_out(&it, target) || by_others && troubled.includes(it, self.original)
            };
            let decision = self.decide_but(headers::random(), &avoid).ok()?;
            let chosen = decision.target()?;
            (!is_out(&chosen, target)).then_some(decision)
        })
    }

    fn decide_but(
        &self,
        draw: u64,
        avoid: &dyn Fn(&Workload, u16) -> bool,
    ) -> Result<Decision, Refused> {
        let Self {
            node,
            source,
            original,
            ..
        } = self;
        let joinable = |workload: &Workload| {
            self.joins
                && !node.config.force_tunnel
                && node.pods.of_workload(&workload.uid).is_some()
        };
        route::decide(&Question {
            snapshot: &node.mesh.load(),
            source,
            destination: *original,
            joinable: &joinable,
            avoid,
            resolvers: &node.resolv.servers,
            draw,
        })
    }

    /// The same tunnel, to an address that was looked up if it had none.
    pub(crate) async fn located(&self, found: Tunnel) -> Result<Tunnel, LookupError> {
        let Some(name) = found.name().cloned() else {
            return Ok(found);
        };
        let place = Place::Name(name, found.address.port());
        let at = self.resolve(&place).await?;
        Ok(found.found_at(at.ip()))
    }

    pub(crate) async fn resolve(&self, place: &Place) -> Result<SocketAddr, LookupError> {
        match place {
            Place::Address(address) => Ok(*address),
            Place::Name(name, port) => {
                self.node.traffic.asked(&self.source, self.identity, name);
                lookup(name, *port, self.original.is_ipv4()).await
            }
        }
    }
}

/// The gateway through which it goes, or would go if it were known.
fn gateway(decided: &Result<Decision, Refused>) -> Option<&GatewayAddress> {
    match decided {
        Ok(Decision::Tunnel(found)) => found.beyond.as_ref()?.workload.network_gateway.as_deref(),
        Err(Refused::GatewayNotFound { gateway, .. }) => Some(gateway),
        _ => None,
    }
}

/// The gateway that is no service, if it would go through one that is not known.
fn door(decided: &Result<Decision, Refused>) -> Option<Whom<'_>> {
    let Err(Refused::GatewayNotFound {
        gateway, network, ..
    }) = decided
    else {
        return None;
    };
    match &gateway.target {
        GatewayTarget::Host(named) => Some(Whom::Door(network, &named.host, gateway.hbone_port)),
        GatewayTarget::Address(..) => None,
    }
}

/// Gateways that are asked for on the way to one destination: those of its waypoints' networks and its own.
const GATEWAYS: usize = 4;
