//! All that is said of one service.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use api::waypoint as wire;
use mesh::NamespacedHost;
use wire::resource::Kind;

use super::routes::{Routes, ports};
use super::{Gateway, Limits, Processors, telemetry};
use crate::authenticate::{KeySets, Tokens};
use crate::authorize::{Context, Policies};
use crate::report::{Collectors, Told};
use crate::route::{Table, TcpRule, TcpTable};
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
    routes: Routes,
    connections: ByPort<TcpTable>,
}

/// Which of a service's rules to make anew.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anew<'a> {
    /// All of which the resource is another.
    All,
    /// Those of these keys.
    Some(&'a BTreeSet<Arc<str>>),
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
    pub fn routes(&self, port: u16) -> &Table {
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
        anew: Anew<'_>,
    ) -> Self {
        let routes = routes(service, said, &before.routes, anew);
        let own = service.into_iter();
        let own = own.flat_map(|service| said.besides_rules(service));
        // Rules may be many, all else is not.
        let everywhere = said.everywhere().filter(|held| !is_rule(held));
        let all: Vec<&Arc<Held>> = own.chain(everywhere).collect();
        let with_own = said.routes_with_policies().filter(|key| routes.has(key));
        let with_own: Vec<&str> = with_own.map(|key| &**key).collect();
        let mut connections = Vec::new();
        let none = wire::Origin::default();
        for held in &all {
            let origin = held.resource.origin.as_ref().unwrap_or(&none);
            if let Some(Kind::TcpRoute(route)) = &held.resource.kind {
                let rule = Arc::new(TcpRule::understand(origin, route));
                connections.push((ports(&route.parents, service), rule));
            }
        }
        let policies = policies(&all, service, gateway);
        Self {
            notes: policies.has_notes(),
            policies,
            tokens: tokens(&all, keys),
            telemetry: telemetry::compile(&all, said, collectors),
            limits: Limits::compile(&all, &with_own, said, &before.limits, Instant::now()),
            processors: Processors::compile(&all, &with_own, said),
            routes,
            connections: ByPort::of(&connections, |rules: Vec<Arc<TcpRule>>| TcpTable::of(rules)),
        }
    }
}

fn is_rule(held: &Held) -> bool {
    matches!(held.resource.kind, Some(Kind::Route(_)))
}

fn routes(
    service: Option<&NamespacedHost>,
    said: &Resources,
    before: &Routes,
    anew: Anew<'_>,
) -> Routes {
    let own = |key: &str| service.and_then(|service| said.rule(service, key));
    match anew {
        Anew::Some(keys) => {
            let mut routes = before.clone();
            for key in keys {
                routes.set(key, own(key), service, before);
            }
            routes
        }
        Anew::All => {
            let mut routes = Routes::default();
            let own = service.into_iter().flat_map(|service| said.rules(service));
            let everywhere = said.everywhere().filter(|held| is_rule(held));
            for held in own.chain(everywhere) {
                routes.set(&held.key, Some(held), service, before);
            }
            routes
        }
    }
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
