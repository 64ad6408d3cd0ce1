//! Who must see what passes: without them nothing does, and what is no request cannot be shown to them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::routes::Routes;
use super::{Authorizers, Processing, Processors};
use crate::route::Rule;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Watcher {
    /// Who must see what clients of this namespace send, and nobody else; none: what all do.
    pub(super) consumer: Option<Box<str>>,
    pub(super) name: Arc<str>,
}

/// With the ports at which they must; none = all.
pub(super) fn watchers(
    processors: &Processors,
    routes: &Routes,
    authorizers: &Authorizers,
) -> Vec<(Vec<u16>, Watcher)> {
    if let Some(name) = closed(processors.of(None)) {
        let (consumer, name) = (None, name.clone());
        return vec![(Vec::new(), Watcher { consumer, name })];
    }
    let mut found = BTreeSet::new();
    for (route, own) in processors.of_routes() {
        if let Some(name) = closed(own) {
            let rules = routes.rules_of(route);
            found.extend(rules.map(|(rule, ports)| watcher(rule, ports, name.clone())));
        }
    }
    for (rule, ports) in routes.asking() {
        let is_closed = |it: &&str| !authorizers.of(it).is_ok_and(|it| it.fail_open);
        let providers = rule.filters.authorizers().filter(is_closed);
        found.extend(providers.map(|provider| watcher(rule, ports, provider.into())));
    }
    found.into_iter().collect()
}

/// A rule of some clients says nothing of what others send.
fn watcher(rule: &Rule, ports: &[u16], name: Arc<str>) -> (Vec<u16>, Watcher) {
    let consumer = rule.consumer().map(Box::from);
    (ports.to_vec(), Watcher { consumer, name })
}

fn closed(processors: &[Processing]) -> Option<&Arc<str>> {
    let mut processors = processors.iter();
    processors.find(|one| one.is_closed()).map(Processing::name)
}
