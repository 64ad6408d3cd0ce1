//! HTTP rules of one service, by port. A copy shares what is equal: one rule that is another costs what it says, however
//! many others there are.

use std::sync::Arc;

use api::waypoint as wire;
use mesh::NamespacedHost;
use wire::resource::Kind;
use wire::target::To;

use crate::route::{Rule, Table};
use crate::state::Held;

/// All of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Routes {
    /// Of ports that rules name.
    ports: Vec<Port>,
    /// Of all other ports.
    others: Table,
    /// By key: to be taken out again, and to be used again where a resource has stayed what it was.
    made: imbl::OrdMap<Arc<str>, Arc<Made>>,
    /// Those of them with filters that ask somebody.
    asking: imbl::OrdMap<Arc<str>, Arc<Made>>,
}

#[derive(Debug, Clone)]
struct Port {
    number: u16,
    /// How many name it.
    named: usize,
    /// Those, and those for all ports.
    table: Table,
}

#[derive(Debug)]
struct Made {
    held: Arc<Held>,
    rule: Arc<Rule>,
    /// None: it is for all.
    ports: Vec<u16>,
}

impl Routes {
    /// Rules of a port.
    pub(super) fn at(&self, port: u16) -> &Table {
        let mut own = self.ports.iter();
        own.find(|own| own.number == port)
            .map_or(&self.others, |own| &own.table)
    }

    /// Whether a route has rules here, by its key without them.
    pub(super) fn has(&self, route: &str) -> bool {
        self.rules_of(route).next().is_some()
    }

    /// The rules of a route, by its key without them, and the ports of each; none = all.
    pub(super) fn rules_of(&self, route: &str) -> impl Iterator<Item = (&Rule, &[u16])> {
        let from: Arc<str> = format!("{route}/").into();
        let behind = self.made.range(from.clone()..);
        let own = behind.take_while(move |(key, _)| key.starts_with(&*from));
        let own = own.map(|(_, made)| made).chain(self.made.get(route));
        own.map(|made| (&*made.rule, &*made.ports))
    }

    /// Rules with filters that ask somebody, and the ports of each; none = all.
    pub(super) fn asking(&self) -> impl Iterator<Item = (&Rule, &[u16])> {
        let all = self.asking.values();
        all.map(|made| (&*made.rule, &*made.ports))
    }

    /// In the place of what that key had: a rule; nothing, where there is none any more. What is known in `before` is not
    /// compiled again.
    pub(super) fn set(
        &mut self,
        key: &Arc<str>,
        held: Option<&Arc<Held>>,
        service: Option<&NamespacedHost>,
        before: &Self,
    ) {
        if let Some(made) = self.made.remove(key) {
            self.take_out(&made);
            self.asking.remove(key);
        }
        let made = held.and_then(|held| {
            let known = before.made.get(key);
            let known = known.filter(|made| Arc::ptr_eq(&made.held, held));
            known
                .cloned()
                .or_else(|| Made::of(held, service).map(Arc::new))
        });
        if let Some(made) = made {
            self.put_in(&made);
            if made.rule.filters.authorizers().next().is_some() {
                self.asking.insert(key.clone(), made.clone());
            }
            self.made.insert(key.clone(), made);
        }
    }

    fn put_in(&mut self, made: &Made) {
        if made.ports.is_empty() {
            let ports = self.ports.iter_mut().map(|port| &mut port.table);
            let tables = ports.chain([&mut self.others]);
            tables.for_each(|table| table.insert(made.rule.clone()));
        }
        for number in &made.ports {
            let known = self.ports.iter().position(|port| port.number == *number);
            let at = known.unwrap_or_else(|| {
                self.ports.push(Port {
                    number: *number,
                    named: 0,
                    table: self.others.clone(),
                });
                self.ports.len() - 1
            });
            let port = &mut self.ports[at];
            port.named += 1;
            port.table.insert(made.rule.clone());
        }
    }

    fn take_out(&mut self, made: &Made) {
        if made.ports.is_empty() {
            let ports = self.ports.iter_mut().map(|port| &mut port.table);
            let tables = ports.chain([&mut self.others]);
            tables.for_each(|table| table.remove(&made.rule));
        }
        for port in &mut self.ports {
            if made.ports.contains(&port.number) {
                port.named -= 1;
                port.table.remove(&made.rule);
            }
        }
        self.ports.retain(|port| port.named > 0);
    }
}

impl Made {
    /// None of what is no rule.
    fn of(held: &Arc<Held>, service: Option<&NamespacedHost>) -> Option<Self> {
        let Some(Kind::Route(route)) = &held.resource.kind else {
            return None;
        };
        let none = wire::Origin::default();
        let origin = held.resource.origin.as_ref().unwrap_or(&none);
        let rule = if held.good {
            Rule::understand(origin, route)
        } else {
            let why = held.refused.as_deref().unwrap_or("it cannot be understood");
            Rule::closed(origin, route, why)
        };
        Some(Self {
            held: held.clone(),
            rule: Arc::new(rule),
            ports: ports(&route.parents, service),
        })
    }
}

/// Which of the service's ports a rule is for; empty = all.
pub(super) fn ports(parents: &[wire::Target], service: Option<&NamespacedHost>) -> Vec<u16> {
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
    ports.sort_unstable();
    ports.dedup();
    ports
}
