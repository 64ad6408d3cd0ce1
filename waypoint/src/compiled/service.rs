//! All that is said of one service.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use api::waypoint as wire;
use mesh::NamespacedHost;
use wire::resource::Kind;
use wire::target::To;

use super::{Gateway, Limits, Processors, telemetry};
use crate::authenticate::{KeySets, Tokens};
use crate::authorize::{Context, Policies};
use crate::report::{Collectors, Told};
use crate::route::{Rule, Table, TcpRule, TcpTable};
use crate::state::{Held, Resources};

/// What is to be done with requests for a service.
#[derive(Debug, Default)]
pub struct Service {
    /// Who may.
    pub policies: Policies,
    /// Some policies are for the log.
    pub notes: bool,
    /// Whose tokens are good.
    pub tokens: Tokens,
    /// What is told of them.
    pub telemetry: Arc<Told>,
    /// How many may.
    pub limits: Limits,
    /// Who is shown requests and answers.
    pub processors: Processors,
    routes: ByPort<Routes>,
    connections: ByPort<TcpTable>,
    /// To be used again where a resource has stayed what it was.
    rules: HashMap<Arc<str>, (Arc<Held>, Arc<Rule>)>,
}

/// HTTP rules of one port.
#[derive(Debug, Default)]
pub struct Routes {
    /// All of them.
    pub table: Table,
    /// Some are for clients of any namespace.
    anybody: bool,
    /// Namespaces whose clients have some of their own.
    consumers: HashSet<Box<str>>,
}

impl Routes {
    /// Whether clients of a namespace are under rules here: where they are, what no rule is for is nowhere.
    pub fn concern(&self, namespace: Option<&str>) -> bool {
        self.anybody || namespace.is_some_and(|namespace| self.consumers.contains(namespace))
    }

    fn of(rules: Vec<(Arc<Rule>, Option<Box<str>>)>) -> Self {
        let consumers = rules.iter().filter_map(|(_, consumer)| consumer.clone());
        Self {
            anybody: rules.iter().any(|(_, consumer)| consumer.is_none()),
            consumers: consumers.collect(),
            table: Table::of(rules.into_iter().map(|(rule, _)| rule)),
        }
    }
}

/// Tables of a service's ports: most say nothing of ports, so one table is for all others.
#[derive(Debug, Default)]
struct ByPort<T> {
    ports: Box<[(u16, T)]>,
    others: T,
}

impl<T> ByPort<T> {
    fn at(&self, port: u16) -> &T {
        let mut own = self.ports.iter();
        own.find(|(own, _)| *own == port)
            .map_or(&self.others, |(_, table)| table)
    }

    /// `rules` with the ports that each is for; none = all.
    fn of<R: Clone>(rules: &[(Vec<u16>, R)], table: impl Fn(Vec<R>) -> T) -> Self {
        let mut named: Vec<u16> = rules.iter().flat_map(|(ports, _)| ports).copied().collect();
        named.sort_unstable();
        named.dedup();
        let of = |port: Option<u16>| {
            let fit = rules.iter().filter(|(ports, _)| {
                ports.is_empty() || port.is_some_and(|port| ports.contains(&port))
            });
            table(fit.map(|(_, rule)| rule.clone()).collect())
        };
        Self {
            ports: named
                .into_iter()
                .map(|port| (port, of(Some(port))))
                .collect(),
            others: of(None),
        }
    }
}

impl Service {
    /// HTTP rules of a port.
    pub fn routes(&self, port: u16) -> &Routes {
        self.routes.at(port)
    }

    /// Rules for connections of a port.
    pub fn connections(&self, port: u16) -> &TcpTable {
        self.connections.at(port)
    }

    /// Of one service, or of everything that is none. What is the same in `before` is used again.
    pub(super) fn compile(
        service: Option<&NamespacedHost>,
        said: &Resources,
        gateway: &Gateway,
        keys: &KeySets,
        collectors: &Collectors,
        before: &Self,
    ) -> Self {
        let own = service
            .into_iter()
            .flat_map(|service| said.of_service(service));
        let all: Vec<&Arc<Held>> = own.chain(said.everywhere()).collect();
        let mut rules = HashMap::new();
        let (mut routes, mut connections) = (Vec::new(), Vec::new());
        let none = wire::Origin::default();
        for held in &all {
            let origin = held.resource.origin.as_ref().unwrap_or(&none);
            match &held.resource.kind {
                Some(Kind::Route(route)) => {
                    let rule = before
                        .rule(held)
                        .unwrap_or_else(|| rule(held, origin, route));
                    let consumer = route.consumer_namespace.as_str();
                    let consumer = (!consumer.is_empty()).then(|| Box::from(consumer));
                    let ports = ports(&route.parents, service);
                    routes.push((ports, (rule.clone(), consumer)));
                    rules.insert(held.key.clone(), ((*held).clone(), rule));
                }
                Some(Kind::TcpRoute(route)) => {
                    let rule = Arc::new(TcpRule::understand(origin, route));
                    connections.push((ports(&route.parents, service), rule));
                }
                _ => {}
            }
        }
        let policies = policies(&all, service, gateway);
        Self {
            notes: policies.has_notes(),
            policies,
            tokens: tokens(&all, keys),
            telemetry: telemetry::compile(&all, said, collectors),
            limits: Limits::compile(&all, said, &before.limits, Instant::now()),
            processors: Processors::compile(&all, said),
            routes: ByPort::of(&routes, Routes::of),
            connections: ByPort::of(&connections, |rules: Vec<Arc<TcpRule>>| TcpTable::of(rules)),
            rules,
        }
    }

    fn rule(&self, held: &Arc<Held>) -> Option<Arc<Rule>> {
        let (known, rule) = self.rules.get(&held.key)?;
        Arc::ptr_eq(known, held).then(|| rule.clone())
    }
}

fn rule(held: &Held, origin: &wire::Origin, route: &wire::Route) -> Arc<Rule> {
    Arc::new(if held.good {
        Rule::understand(origin, route)
    } else {
        let why = held.refused.as_deref().unwrap_or("it cannot be understood");
        Rule::closed(origin, route, why)
    })
}

/// Which of the service's ports a rule is for; empty = all.
fn ports(parents: &[wire::Target], service: Option<&NamespacedHost>) -> Vec<u16> {
    let mut ports = Vec::new();
    for parent in parents {
        match &parent.to {
            Some(To::Service(to)) => {
                let ours = service.is_some_and(|own| {
                    *own.namespace == *to.namespace && *own.host == *to.hostname
                });
                match u16::try_from(to.port) {
                    Ok(0) if ours => return Vec::new(),
                    Ok(port) if ours => ports.push(port),
                    _ => {}
                }
            }
            _ => return Vec::new(),
        }
    }
    ports
}

fn policies(all: &[&Arc<Held>], service: Option<&NamespacedHost>, gateway: &Gateway) -> Policies {
    let none = wire::Origin::default();
    let found: Vec<(wire::Origin, wire::Authorization)> = all
        .iter()
        .filter_map(|held| match &held.resource.kind {
            Some(Kind::Authorization(policy)) => {
                let mut policy = policy.clone();
                if !held.good && policy.invalid.is_empty() {
                    policy.invalid = held.refused.as_deref().unwrap_or("unknown").to_owned();
                }
                let origin = held.resource.origin.as_ref().unwrap_or(&none);
                Some((origin.clone(), policy))
            }
            _ => None,
        })
        .collect();
    let found: Vec<_> = found
        .iter()
        .map(|(origin, policy)| (origin, policy))
        .collect();
    let context = Context {
        trust_domain: &gateway.trust_domain,
        aliases: &gateway.trust_domain_aliases,
        service: service.map(|service| (&*service.namespace, &*service.host)),
    };
    Policies::compile(&found, &context)
}

fn tokens(all: &[&Arc<Held>], keys: &KeySets) -> Tokens {
    let none = wire::Origin::default();
    let found: Vec<(wire::Origin, wire::Authentication)> = all
        .iter()
        .filter_map(|held| match &held.resource.kind {
            Some(Kind::Authentication(policy)) => {
                let mut policy = policy.clone();
                if !held.good && policy.invalid.is_empty() {
                    policy.invalid = held.refused.as_deref().unwrap_or("unknown").to_owned();
                }
                let origin = held.resource.origin.as_ref().unwrap_or(&none);
                Some((origin.clone(), policy))
            }
            _ => None,
        })
        .collect();
    let found: Vec<_> = found
        .iter()
        .map(|(origin, policy)| (origin, policy))
        .collect();
    Tokens::compile(&found, keys)
}
