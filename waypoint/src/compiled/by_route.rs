//! What is said of a service's requests, where it is something else for those of some of its routes.

use std::cmp::Ordering;

use crate::route::Name;

/// One for each route that has its own, and one for all else.
#[derive(Debug, Default)]
pub(super) struct ByRoute<T> {
    all: T,
    /// By the routes' keys, in their order: services may have thousands of them, and each request looks for its own.
    routes: Box<[(Box<str>, T)]>,
}

impl<T> ByRoute<T> {
    /// `routes`: with the key of each, without a rule.
    pub(super) fn new(all: T, routes: impl Iterator<Item = (Box<str>, T)>) -> Self {
        let mut routes: Box<[_]> = routes.collect();
        routes.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Self { all, routes }
    }

    /// What is for requests of no route of its own.
    pub(super) fn all(&self) -> &T {
        &self.all
    }

    /// What is for requests of a rule; of no rule: of the service.
    pub(super) fn of(&self, rule: Option<&Name>) -> &T {
        rule.and_then(|rule| self.find(|key| compare(key, rule)))
            .unwrap_or(&self.all)
    }

    /// What the route of this key has of its own.
    pub(super) fn own(&self, route: &str) -> Option<&T> {
        self.find(|key| key.cmp(route))
    }

    /// Those that have their own.
    pub(super) fn routes(&self) -> impl Iterator<Item = (&str, &T)> {
        self.routes.iter().map(|(key, own)| (&**key, own))
    }

    fn find(&self, compare: impl Fn(&str) -> Ordering) -> Option<&T> {
        let at = self.routes.binary_search_by(|(key, _)| compare(key));
        at.ok().map(|at| &self.routes[at].1)
    }
}

/// A route's key beside that of a rule's route: keys have kinds in lower case.
fn compare(key: &str, rule: &Name) -> Ordering {
    let kind = rule.kind.bytes().map(|byte| byte.to_ascii_lowercase());
    let rest = [&rule.namespace, &rule.name];
    let rest = rest
        .into_iter()
        .flat_map(|part| [b'/'].into_iter().chain(part.bytes()));
    key.bytes().cmp(kind.chain(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_has_what_its_route_has_and_else_what_the_service_has() {
        let keys = [
            "virtualservice/shop/web",
            "httproute/shop/web",
            "httproute/shop/web-2",
            "httproute/b/web",
            "grpcroute/shop/web",
        ];
        let routes = keys
            .iter()
            .enumerate()
            .map(|(at, key)| (Box::from(*key), at));
        let by_route = ByRoute::new(99, routes);
        let of = |kind: &str, namespace: &str, name: &str| {
            *by_route.of(Some(&Name {
                kind: kind.into(),
                namespace: namespace.into(),
                name: name.into(),
                rule: "0".into(),
            }))
        };
        assert_eq!(of("VirtualService", "shop", "web"), 0);
        assert_eq!(of("HTTPRoute", "shop", "web"), 1);
        assert_eq!(of("HTTPRoute", "shop", "web-2"), 2);
        assert_eq!(of("HTTPRoute", "b", "web"), 3);
        assert_eq!(of("GRPCRoute", "shop", "web"), 4);
        for other in ["we", "web-", "web-3", ""] {
            assert_eq!(of("HTTPRoute", "shop", other), 99, "{other}");
        }
        assert_eq!(of("TCPRoute", "shop", "web"), 99);
        assert_eq!(*by_route.of(None), 99);
        assert_eq!(by_route.own("httproute/b/web"), Some(&3));
        assert_eq!(by_route.own("httproute/b"), None);
        assert_eq!(by_route.routes().count(), keys.len());
    }
}
