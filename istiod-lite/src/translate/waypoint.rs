//! Waypoints: which one a service or workload names, and what comes of it.
//!
//! 1. what the labels say                        ([`Choice::read`]); a namespace speaks for what is in it
//! 2. what the Gateways so named are like        ([`Standing`])
//! 3. where traffic is sent, and why             ([`bind`])
//!
//! A waypoint that is named is there to apply policies. While it cannot be used, its traffic is sent
//! to an address that nobody can resolve, so that every proxy refuses it ([`Unready`]).

use api::k8s::labels;
use api::k8s::objects::{Kind, ObjectKey};
use api::security::string_match::MatchType;
use api::security::{Action, Authorization, Group, Match, Rules, Scope, StringMatch};
use api::workload::{GatewayAddress, Service, WeightedWaypoint, Workload};

use super::gateway::{Place, Serves};
use super::listener::{From, HBONE};
use super::{Labels, value};

/// What becomes of traffic to whom names a waypoint that is missing or not ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unready {
    /// It is refused: the waypoint's policies cannot be applied, so nobody passes without them.
    #[default]
    Refuse,
    /// It passes without the waypoint, as Istio lets it.
    Pass,
}

impl Unready {
    /// What a namespace says. What cannot be read as `pass` refuses.
    pub fn read(labels: &Labels) -> Option<Self> {
        value(labels, labels::WAYPOINT_UNREADY).map(|text| {
            if text == labels::WAYPOINT_UNREADY_PASS {
                Self::Pass
            } else {
                Self::Refuse
            }
        })
    }
}

/// What labels say about waypoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Nothing.
    #[default]
    Unsaid,
    /// There shall be none.
    Nothing,
    /// This one.
    Waypoint(Wanted),
}

/// The waypoint that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its Gateway, there or not.
    pub gateway: ObjectKey,
    /// Another one for a share of the connections.
    pub canary: Option<Canary>,
}

/// A second waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// Its Gateway, there or not.
    pub gateway: ObjectKey,
    /// Its share of 100; none if what is written is no such number.
    pub weight: Option<u32>,
}

impl Choice {
    /// Of an object, or of a namespace for what is in it.
    pub fn read(labels: &Labels, annotations: &Labels, namespace: &str) -> Self {
        let gateway = |name: &str, beside: &str| {
            ObjectKey::new(
                Kind::Gateway,
                value(labels, beside).unwrap_or(namespace),
                name,
            )
        };
        match value(labels, labels::USE_WAYPOINT) {
            None => Self::Unsaid,
            Some(labels::NONE) => Self::Nothing,
            Some(name) => Self::Waypoint(Wanted {
                gateway: gateway(name, labels::USE_WAYPOINT_NAMESPACE),
                canary: value(labels, labels::USE_WAYPOINT_CANARY).map(|name| Canary {
                    gateway: gateway(name, labels::USE_WAYPOINT_CANARY_NAMESPACE),
                    weight: weight(value(annotations, labels::USE_WAYPOINT_CANARY_WEIGHT)),
                }),
            }),
        }
    }

    /// Of something in a namespace that says `namespace`.
    pub fn or<'a>(&'a self, namespace: &'a Self) -> Option<&'a Wanted> {
        match (self, namespace) {
            (Self::Waypoint(wanted), _) | (Self::Unsaid, Self::Waypoint(wanted)) => Some(wanted),
            _ => None,
        }
    }
}

fn weight(text: Option<&str>) -> Option<u32> {
    let Some(text) = text else { return Some(0) };
    text.parse().ok().filter(|weight| *weight <= 100)
}

impl Wanted {
    /// Every Gateway it names.
    pub fn gateways(&self) -> impl Iterator<Item = &ObjectKey> {
        let canary = self.canary.iter().map(|canary| &canary.gateway);
        std::iter::once(&self.gateway).chain(canary)
    }
}

/// A Gateway as those see it who name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whose traffic it takes.
    pub serves: Serves,
    /// From which namespaces beside its own.
    pub from: From,
    /// Where it is; nowhere while it is not ready.
    pub places: Vec<Place>,
    /// Account of its pods.
    pub account: String,
    /// Whether it is ours to tell whom it fronts.
    pub programmed: bool,
}

impl Standing {
    /// Where traffic is sent: a host name rather than an address, since that does not change.
    pub fn address(&self, gateway: &ObjectKey, network: &str) -> Option<GatewayAddress> {
        let host = self
            .places
            .iter()
            .find(|place| matches!(place, Place::Host(_)));
        let place = host.or(self.places.first())?;
        Some(place.address(&gateway.namespace, network, HBONE.0.into()))
    }

    /// Whether it takes that kind of traffic; nobody knows if it says what nobody understands.
    pub fn takes(&self, traffic: Traffic) -> Option<bool> {
        match (&self.serves, traffic) {
            (Serves::Unknown(_) | Serves::OtherNetworks, _) => None,
            (Serves::All, _)
            | (Serves::Services, Traffic::Service)
            | (Serves::Workloads, Traffic::Workload) => Some(true),
            _ => Some(false),
        }
    }
}

/// What traffic goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// A service.
    Service,
    /// A workload.
    Workload,
}

impl Traffic {
    /// As in label `istio.io/waypoint-for`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
        }
    }
}

/// What came of a choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// The Gateway that was named.
    pub gateway: ObjectKey,
    /// Where traffic is sent; nowhere else if none.
    pub waypoint: Option<GatewayAddress>,
    /// Shares of the connections; none without a usable canary.
    pub weighted: Vec<WeightedWaypoint>,
    /// Why the waypoint is not used; none if it is.
    pub problem: Option<Problem>,
    /// Why the canary is not used, and which it is.
    pub canary: Option<(ObjectKey, CanaryProblem)>,
}

/// Why a waypoint is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no such Gateway.
    Missing,
    /// It has no address.
    NotReady,
    /// It does not let that namespace in.
    Denied,
    /// It is not for that traffic.
    Unsupported(Traffic),
    /// Nobody knows what it is for.
    Unknown(Traffic, String),
    /// It is the gateway of a network.
    EastWest,
}

/// Why a canary is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CanaryProblem {
    /// As with any waypoint.
    Unusable(Problem),
    /// Its weight is no number from 0 to 100.
    Weight,
    /// It is the same waypoint.
    Same,
}

/// What a choice is judged by.
pub struct Judge<'a> {
    /// The Gateway of that name; none if there is none.
    pub standing: &'a dyn Fn(&ObjectKey) -> Option<&'a Standing>,
    /// Namespace and its labels, of the one who chose.
    pub namespace: (&'a str, &'a Labels),
    /// The network of addresses.
    pub network: &'a str,
    /// What traffic goes to.
    pub traffic: Traffic,
    /// What becomes of it while the waypoint cannot be used.
    pub unready: Unready,
}

/// Where traffic is sent to whom chose `wanted`.
pub fn bind(wanted: &Wanted, judge: &Judge<'_>) -> Bound {
    let mut bound = Bound {
        gateway: wanted.gateway.clone(),
        waypoint: None,
        weighted: Vec::new(),
        problem: None,
        canary: None,
    };
    let primary = match judge.usable(&wanted.gateway) {
        Ok(address) => address,
        Err(problem) => {
            let refused = judge.unready == Unready::Refuse && judge.must_pass(&wanted.gateway);
            bound.waypoint = refused.then(|| nowhere(&wanted.gateway));
            bound.problem = Some(problem);
            return bound;
        }
    };
    if let Some(canary) = &wanted.canary {
        match judge.canary(canary, &wanted.gateway) {
            Ok((address, weight)) => {
                bound.weighted = [(primary.clone(), 100 - weight), (address, weight)]
                    .map(|(destination, weight)| WeightedWaypoint {
                        destination: Some(destination),
                        weight,
                    })
                    .into();
            }
            Err(problem) => bound.canary = Some((canary.gateway.clone(), problem)),
        }
    }
    bound.waypoint = Some(primary);
    bound
}

impl Judge<'_> {
    fn usable(&self, gateway: &ObjectKey) -> Result<GatewayAddress, Problem> {
        let standing = (self.standing)(gateway).ok_or(Problem::Missing)?;
        let address = standing
            .address(gateway, self.network)
            .ok_or(Problem::NotReady)?;
        let (namespace, labels) = self.namespace;
        if *gateway.namespace != *namespace && !standing.from.admits(labels) {
            return Err(Problem::Denied);
        }
        match (standing.takes(self.traffic), &standing.serves) {
            (Some(true), _) => Ok(address),
            (Some(false), _) => Err(Problem::Unsupported(self.traffic)),
            (None, Serves::OtherNetworks) => Err(Problem::EastWest),
            (None, Serves::Unknown(text)) => Err(Problem::Unknown(self.traffic, text.clone())),
            (None, _) => Err(Problem::Unknown(self.traffic, String::new())),
        }
    }

    fn canary(
        &self,
        canary: &Canary,
        primary: &ObjectKey,
    ) -> Result<(GatewayAddress, u32), CanaryProblem> {
        if canary.gateway == *primary {
            return Err(CanaryProblem::Same);
        }
        let address = self
            .usable(&canary.gateway)
            .map_err(CanaryProblem::Unusable)?;
        Ok((address, canary.weight.ok_or(CanaryProblem::Weight)?))
    }

    /// Whether this traffic would pass the waypoint if it were ready. Of one that is missing
    /// nobody can say that it would not.
    fn must_pass(&self, gateway: &ObjectKey) -> bool {
        let standing = (self.standing)(gateway);
        standing.is_none_or(|standing| standing.takes(self.traffic).unwrap_or(true))
    }
}

impl Bound {
    /// Whether traffic is refused because the waypoint cannot be used.
    pub fn refuses(&self) -> bool {
        self.problem.is_some() && self.waypoint.is_some()
    }

    /// Writes it into a service; `ingress`: gateways send through the waypoint as well.
    pub fn fill_service(self, ingress: bool, service: &mut Service) {
        service.ingress_use_waypoint = ingress && self.waypoint.is_some();
        service.waypoint = self.waypoint;
        service.weighted_waypoints = self.weighted;
    }

    /// Writes it into a workload.
    pub fn fill_workload(self, workload: &mut Workload) {
        workload.waypoint = self.waypoint;
    }
}

/// An address that no proxy can resolve: top-level domain `invalid` has no names (RFC 6761). It
/// says in their logs which waypoint is meant.
fn nowhere(gateway: &ObjectKey) -> GatewayAddress {
    let host = format!(
        "{}.{}.waypoint-unready.invalid",
        gateway.name, gateway.namespace
    );
    Place::Host(host).address(&gateway.namespace, "", HBONE.0.into())
}

/// The xDS name of the policy that lets a waypoint send to its workloads.
pub fn allowing(gateway: &ObjectKey) -> String {
    format!("{}/{}", gateway.namespace, allowing_name(gateway))
}

/// That policy. An ALLOW policy for a workload's clients would otherwise lock out its waypoint,
/// through which they come.
pub fn allow(gateway: &ObjectKey, trust_domain: &str, account: &str) -> Authorization {
    let principal = principal(gateway, trust_domain, account);
    let its = Match {
        principals: vec![StringMatch {
            match_type: Some(MatchType::Exact(principal)),
        }],
        ..Match::default()
    };
    Authorization {
        name: allowing_name(gateway),
        namespace: gateway.namespace.to_string(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Allow.into(),
        groups: vec![Group {
            rules: vec![Rules { matches: vec![its] }],
        }],
        ..Authorization::default()
    }
}

/// Who a waypoint is, as policies name it.
pub fn principal(gateway: &ObjectKey, trust_domain: &str, account: &str) -> String {
    format!("{trust_domain}/ns/{}/sa/{account}", gateway.namespace)
}

fn allowing_name(gateway: &ObjectKey) -> String {
    format!(
        "istio_allow_waypoint_{}_{}",
        gateway.namespace, gateway.name
    )
}
