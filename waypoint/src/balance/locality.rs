//! How near endpoints are to this proxy.

use std::collections::{BTreeMap, HashSet};

use api::waypoint as wire;
use mesh::workload::Locality;
use mesh::{LoadBalancing, Mode, Scope, Workload};

/// What somebody asked for beside the service's own preference, in whose place it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nearness {
    disabled: bool,
    distribute: Vec<(Pattern, Vec<(Pattern, u32)>)>,
    failover: BTreeMap<Box<str>, Box<str>>,
    priority: Box<[Likeness]>,
}

/// Something that an endpoint has in common with this proxy, or has not.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Likeness {
    Of(Scope),
    /// Where the endpoint is, wherever this proxy is.
    At(Scope, Box<str>),
    /// Endpoints by uid: whom the control plane found to be like this proxy.
    Among(HashSet<Box<str>>),
}

impl Likeness {
    fn compile(found: &wire::locality::Likeness) -> Result<Self, String> {
        use wire::locality::likeness::By;
        let by = By::try_from(found.by);
        let scope = match by.map_err(|_| format!("likeness {} is not known", found.by))? {
            By::Workloads => {
                let uids = found.workloads.iter().flat_map(|it| &it.uids);
                return Ok(Self::Among(uids.map(|uid| uid.as_str().into()).collect()));
            }
            By::Region => Scope::Region,
            By::Zone => Scope::Zone,
            By::Subzone => Scope::Subzone,
            By::Node => Scope::Node,
            By::Network => Scope::Network,
            By::Cluster => Scope::Cluster,
        };
        Ok(match &found.value {
            Some(value) => Self::At(scope, value.as_str().into()),
            None => Self::Of(scope),
        })
    }

    fn holds(&self, own: &mesh::Client<'_>, endpoint: &Workload) -> bool {
        match self {
            Self::Of(scope) => has_in_common(*scope, own, endpoint),
            Self::At(scope, value) => is_at(*scope, value, endpoint),
            Self::Among(uids) => uids.contains(&*endpoint.uid),
        }
    }
}

/// `region/zone/subzone`, shorter for all below, `*` for any.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern(Vec<Box<str>>);

impl Pattern {
    fn new(text: &str) -> Self {
        Self(text.split('/').map(Box::from).collect())
    }

    fn matches(&self, locality: &Locality) -> bool {
        let parts = [&locality.region, &locality.zone, &locality.subzone];
        let mut pairs = self.0.iter().zip(parts);
        self.0.len() <= 3 && pairs.all(|(wanted, part)| **wanted == *"*" || **wanted == **part)
    }

    /// How many parts it names: the more, the better it matches.
    fn named(&self) -> usize {
        self.0.iter().filter(|part| ***part != *"*").count()
    }
}

/// Where an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Rank {
    /// The lower the nearer.
    Near(u8),
    /// One of those that share this part of all requests: percent, and number of the share.
    Share(u16, u32),
}

impl Nearness {
    pub(super) fn compile(found: &wire::Locality) -> Result<Self, String> {
        let shares = |to: &BTreeMap<String, u32>| {
            let pair = |(to, share): (&String, &u32)| (Pattern::new(to), *share);
            to.iter().map(pair).collect()
        };
        let priority = found.priority.iter().map(Likeness::compile);
        Ok(Self {
            disabled: found.disabled,
            distribute: found
                .distribute
                .iter()
                .map(|found| (Pattern::new(&found.from), shares(&found.to)))
                .collect(),
            failover: found
                .failover
                .iter()
                .map(|found| (Box::from(&*found.from), Box::from(&*found.to)))
                .collect(),
            priority: priority.collect::<Result<_, String>>()?,
        })
    }
}

/// Where the endpoint stands for this proxy; none: it may not be used from here.
pub(super) fn rank(
    asked: Option<&Nearness>,
    service: &LoadBalancing,
    own: &mesh::Client<'_>,
    endpoint: &Workload,
) -> Option<Rank> {
    if service.mode == Mode::Strict {
        let all = service.routing_preference.iter();
        let mut all = all.map(|scope| has_in_common(*scope, own, endpoint));
        return all.all(|same| same).then_some(Rank::Near(0));
    }
    match asked {
        Some(asked) if asked.disabled => Some(Rank::Near(0)),
        Some(asked) => asked.rank(own, endpoint),
        None => Some(Rank::Near(preference(service.scopes(), own, endpoint))),
    }
}

impl Nearness {
    fn rank(&self, client: &mesh::Client<'_>, endpoint: &Workload) -> Option<Rank> {
        let (own, other) = (client.locality, &endpoint.locality);
        let from = self.distribute.iter().find(|(from, _)| from.matches(own));
        if let Some((_, to)) = from {
            let shares = to.iter().enumerate();
            let fitting = shares.filter(|(_, (to, share))| *share > 0 && to.matches(other));
            let (at, (_, share)) = fitting.max_by_key(|(_, (to, _))| to.named())?;
            return Some(Rank::Share(at as u16, *share));
        }
        if !self.priority.is_empty() {
            let common = self.priority.iter();
            let common = common.take_while(|it| it.holds(client, endpoint)).count();
            let apart = self.priority.len() - common;
            return Some(Rank::Near(u8::try_from(apart).unwrap_or(u8::MAX)));
        }
        if own.region.is_empty() {
            return Some(Rank::Near(0)); // nobody is nearer than others to one who knows not where he is
        }
        Some(Rank::Near(match own.region == other.region {
            true if own.zone != other.zone => 2,
            true if own.subzone != other.subzone => 1,
            true => 0,
            false => match self.failover.get(&*own.region) {
                Some(to) if **to != *other.region => 4,
                _ => 3,
            },
        }))
    }
}

/// By the service's own preference: how many scopes, from the first, are not the same. The own network goes before
/// all others, but endpoints of others are ranked among each other by the scopes that follow.
fn preference(scopes: &[Scope], own: &mesh::Client<'_>, endpoint: &Workload) -> u8 {
    let (network, rest) = match scopes {
        [Scope::Network, rest @ ..] => (has_in_common(Scope::Network, own, endpoint), rest),
        _ => (true, scopes),
    };
    let same = rest
        .iter()
        .map(|scope| has_in_common(*scope, own, endpoint));
    let same = same.take_while(|same| *same).count();
    let apart = u8::try_from(rest.len() - same).unwrap_or(u8::MAX / 2);
    if network {
        apart
    } else {
        apart.saturating_add(u8::MAX / 2)
    }
}

fn has_in_common(scope: Scope, own: &mesh::Client<'_>, other: &Workload) -> bool {
    match scope {
        Scope::Region => own.locality.region == other.locality.region,
        Scope::Zone => own.locality.zone == other.locality.zone,
        Scope::Subzone => own.locality.subzone == other.locality.subzone,
        Scope::Node => *own.node == *other.node,
        Scope::Cluster => *own.cluster == *other.cluster,
        Scope::Network => *own.network == other.network,
    }
}

fn is_at(scope: Scope, value: &str, endpoint: &Workload) -> bool {
    let place = &endpoint.locality;
    let found: &str = match scope {
        Scope::Region => &place.region,
        Scope::Zone => &place.zone,
        Scope::Subzone => &place.subzone,
        Scope::Node => &endpoint.node,
        Scope::Cluster => &endpoint.cluster,
        Scope::Network => endpoint.network.as_str(),
    };
    found == value
}
