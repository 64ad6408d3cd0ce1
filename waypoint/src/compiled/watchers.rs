//! Who must see what passes: without them nothing does, and what is no request cannot be shown to them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::routes::Routes;
use super::{Authorizers, Processing, Processors};

/// Their names, with the ports at which they must; none = all.
pub(super) fn watchers(
    processors: &Processors,
    routes: &Routes,
    authorizers: &Authorizers,
) -> Vec<(Vec<u16>, Arc<str>)> {
    if let Some(name) = closed(processors.of(None)) {
        return vec![(Vec::new(), name.clone())];
    }
    let mut found = BTreeSet::new();
    for (route, own) in processors.of_routes() {
        if let Some(name) = closed(own) {
            let ports = routes.ports_of(route);
            found.extend(ports.map(|ports| (ports.to_vec(), name.clone())));
        }
    }
    for (rule, ports) in routes.asking() {
        let is_closed = |it: &&str| !authorizers.of(it).is_ok_and(|it| it.fail_open);
        let providers = rule.filters.authorizers().filter(is_closed);
        found.extend(providers.map(|provider| (ports.to_vec(), provider.into())));
    }
    found.into_iter().collect()
}

fn closed(processors: &[Processing]) -> Option<&Arc<str>> {
    let mut processors = processors.iter();
    processors.find(|one| one.is_closed()).map(Processing::name)
}
