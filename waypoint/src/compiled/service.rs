//! All that is said of one service.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use api::waypoint as wire;
use mesh::NamespacedHost;
use wire::resource::Kind;

use super::routes::{Routes, ports};
use super::watchers::{Watcher, watchers};
use super::{Authorizers, Gateway, Limits, Processors, telemetry};
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
    watchers: ByPort<Vec<Watcher>>,
}

/// What services are compiled of.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) said: &'a Resources,
    pub(super) gateway: &'a Gateway,
    /// As they are from now on.
    pub(super) authorizers: &'a Authorizers,
    pub(super) keys: &'a KeySets,
    pub(super) collectors: &'a Collectors,
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

    /// Whether anything but policies says what becomes of requests of a client of that namespace at that port.
    pub fn is_about_requests(&self, port: u16, namespace: Option<&str>) -> bool {
        let rules = self.routes(port).concerns(namespace);
        rules || !self.limits.is_empty() || !self.tokens.is_empty()
    }

    /// Somebody who is shown all requests of a port, or of one of its rules, and without whom none passes: what is not
    /// HTTP cannot be shown to him. Rules of one namespace's clients count for those only.
    pub fn must_see(&self, port: u16, namespace: Option<&str>) -> Option<&Arc<str>> {
        let mut all = self.watchers.at(port).iter();
        let found = all.find(|it| it.consumer.is_none() || it.consumer.as_deref() == namespace);
        found.map(|it| &it.name)
    }

    /// Of one service, or of everything that is none. What is the same in `before` is used again.
    pub(super) fn compile(
        service: Option<&NamespacedHost>,
        given: &Given<'_>,
        before: &Self,
        anew: Anew<'_>,
    ) -> Self {
        let Given { said, .. } = *given;
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
        let policies = policies(&all, service, given.gateway);
        let processors = Processors::compile(&all, &with_own, said);
        let watchers = watchers(&processors, &routes, given.authorizers);
        Self {
            notes: policies.has_notes(),
            policies,
            tokens: tokens(&all, given.keys),
            telemetry: telemetry::compile(&all, said, given.collectors),
            limits: Limits::compile(&all, &with_own, said, &before.limits, Instant::now()),
            processors,
            routes,
            connections: ByPort::of(&connections, |rules: Vec<Arc<TcpRule>>| TcpTable::of(rules)),
            watchers: ByPort::of(&watchers, |all: Vec<Watcher>| all),
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
    let policy = |kind: &Kind| match kind {
        Kind::Authorization(policy) => Some(policy.clone()),
        _ => None,
    };
    let found = understood(all, policy, |policy| &mut policy.invalid);
    let found: Vec<_> = found.iter().map(|(origin, it)| (origin, it)).collect();
    let context = Context {
        trust_domain: &gateway.trust_domain,
        aliases: &gateway.trust_domain_aliases,
        service: service.map(|service| (&*service.namespace, &*service.host)),
    };
    Policies::compile(&found, &context)
}

fn tokens(all: &[&Arc<Held>], keys: &KeySets) -> Tokens {
    let policy = |kind: &Kind| match kind {
        Kind::Authentication(policy) => Some(policy.clone()),
        _ => None,
    };
    let found = understood(all, policy, |policy| &mut policy.invalid);
    let found: Vec<_> = found.iter().map(|(origin, it)| (origin, it)).collect();
    Tokens::compile(&found, keys)
}

/// Policies of a kind, and whose they are. One that was refused says why it is `invalid`, and so closes what it is for.
fn understood<T>(
    all: &[&Arc<Held>],
    policy: impl Fn(&Kind) -> Option<T>,
    invalid: impl Fn(&mut T) -> &mut String,
) -> Vec<(wire::Origin, T)> {
    let found = all.iter().filter_map(|held| {
        let mut policy = policy(held.resource.kind.as_ref()?)?;
        let invalid = invalid(&mut policy);
        if !held.good && invalid.is_empty() {
            *invalid = held.refused.as_deref().unwrap_or("unknown").to_owned();
        }
        Some((held.resource.origin.clone().unwrap_or_default(), policy))
    });
    found.collect()
}
