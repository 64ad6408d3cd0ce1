//! Which rule is for a connection that nobody looks into.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::waypoint as wire;

use super::backends::Backends;
use super::hosts::{Host, Hosts};
use super::predicate::Clients;
use super::rule::Name;
use crate::client::Client;

/// What is done with connections that match.
#[derive(Debug, Clone)]
pub struct TcpRule {
    /// Who wrote it.
    pub name: Name,
    /// Where it leads.
    pub backends: Backends,
    /// Why it could not be understood: what it matches is closed.
    pub broken: Option<Box<str>>,
    hosts: Box<[Host]>,
    namespaces: Box<[Box<str>]>,
    clients: Option<Clients>,
    created: i64,
    index: u32,
}

/// All rules of one service's port, or of one listener.
#[derive(Debug, Clone, Default)]
pub struct TcpTable {
    rules: Hosts<Vec<Arc<TcpRule>>>,
    /// One of them is for clients of any namespace.
    for_all: bool,
    /// Others are for those of these.
    namespaces: BTreeSet<Box<str>>,
}

impl TcpRule {
    /// What is wrong with it, or the rule.
    pub fn compile(origin: &wire::Origin, wire: &wire::TcpRoute) -> Result<Self, String> {
        let hosts = wire.sni.iter().map(|host| Host::compile(host));
        Ok(Self {
            hosts: hosts.collect::<Result<_, _>>()?,
            backends: Backends::compile(&wire.backends)?,
            ..Self::closed(origin, wire, None)
        })
    }

    fn closed(origin: &wire::Origin, wire: &wire::TcpRoute, why: Option<&str>) -> Self {
        let hosts = wire.sni.iter().map(|host| Host::compile(host));
        let namespaces = wire.source_namespaces.iter();
        Self {
            name: Name::of(origin),
            backends: Backends::default(),
            broken: why.map(Box::from),
            hosts: hosts.filter_map(Result::ok).collect(),
            namespaces: namespaces.map(|one| one.as_str().into()).collect(),
            clients: Clients::compile(&wire.source_workloads),
            created: origin.created,
            index: origin.index,
        }
    }

    /// It, or one that closes what it is for.
    pub fn understand(origin: &wire::Origin, wire: &wire::TcpRoute) -> Self {
        Self::compile(origin, wire).unwrap_or_else(|why| Self::closed(origin, wire, Some(&why)))
    }
}

impl TcpTable {
    /// Of messages, in any order.
    pub fn compile(rules: &[(&wire::Origin, &wire::TcpRoute)]) -> Self {
        let rules = rules.iter();
        Self::of(rules.map(|(origin, wire)| Arc::new(TcpRule::understand(origin, wire))))
    }

    /// Of rules that are compiled already, in any order.
    pub fn of(rules: impl IntoIterator<Item = Arc<TcpRule>>) -> Self {
        let mut ordered: Vec<_> = rules.into_iter().collect();
        ordered.sort_by(|a, b| a.place().cmp(&b.place()));
        let for_all = ordered.iter().any(|rule| rule.namespaces.is_empty());
        let namespaces = ordered
            .iter()
            .flat_map(|rule| rule.namespaces.iter().cloned());
        let namespaces = namespaces.collect();
        let mut rules: Hosts<Vec<Arc<TcpRule>>> = Hosts::default();
        for rule in ordered {
            for host in &rule.hosts {
                rules.entry(Some(host)).push(rule.clone());
            }
            if rule.hosts.is_empty() {
                rules.entry(None).push(rule);
            }
        }
        Self {
            rules,
            for_all,
            namespaces,
        }
    }

    /// Whether clients of a namespace are under rules here: where they are, what no rule is for is nowhere. Others are as if
    /// there was none: a route of one namespace's clients says nothing of another's.
    pub fn concerns(&self, namespace: Option<&str>) -> bool {
        let named = |namespace: &str| self.namespaces.contains(namespace);
        self.for_all || namespace.is_some_and(named)
    }

    /// The rule for a connection: by the server's name it asks for, then the older object.
    pub fn find(&self, sni: Option<&str>, client: &Client) -> Option<&Arc<TcpRule>> {
        let fits = |rule: &&'_ Arc<TcpRule>| rule.is_for(client);
        match sni {
            Some(name) => self.rules.of(name).flatten().find(fits),
            None => self.rules.of_all()?.iter().find(fits),
        }
    }
}

impl TcpRule {
    fn place(&self) -> (i64, &str, &str, u32) {
        let Name {
            namespace, name, ..
        } = &self.name;
        (self.created, namespace, name, self.index)
    }

    fn is_for(&self, client: &Client) -> bool {
        let named = |is: &str| self.namespaces.iter().any(|one| **one == *is);
        (self.namespaces.is_empty() || client.namespace().is_some_and(named))
            && self.clients.as_ref().is_none_or(|it| it.have(client))
    }
}
