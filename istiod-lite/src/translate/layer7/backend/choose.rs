//! Which DestinationRules hold for a service, as a waypoint sees it.
//!
//! A rule of the waypoint's own namespace goes before those of the service's, and those before the root
//! namespace's. Of a namespace, those of the most specific host count, oldest first.

use super::super::host;

/// A rule, as far as it must be known to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Where it is.
    pub namespace: &'a str,
    /// Its host, complete; may begin with `*`.
    pub host: &'a str,
    /// Namespaces it is for.
    pub export_to: &'a [String],
}

/// The candidates (oldest first) that hold for the service `hostname` of `service_namespace` at a waypoint of `waypoint_namespace`.
pub fn applying<'a, T>(
    candidates: &'a [(Candidate<'a>, T)],
    hostname: &str,
    service_namespace: &str,
    waypoint_namespace: &str,
    root_namespace: &str,
) -> Vec<&'a T> {
    for namespace in [waypoint_namespace, service_namespace, root_namespace] {
        let here = candidates.iter().filter(|(it, _)| {
            it.namespace == namespace
                && host::matches(it.host, hostname)
                && is_for(it.export_to, namespace, waypoint_namespace)
        });
        let here: Vec<_> = here.collect();
        let best = here.iter().map(|(it, _)| host::rank(it.host)).max();
        if best.is_some() {
            let best = here
                .into_iter()
                .filter(|(it, _)| Some(host::rank(it.host)) == best);
            return best.map(|(_, what)| what).collect();
        }
    }
    Vec::new()
}

/// Whether what is exported from `own` is for those of `namespace`.
pub fn is_for(export_to: &[String], own: &str, namespace: &str) -> bool {
    let has = |text: &str| export_to.iter().any(|it| it == text);
    export_to.is_empty() || has("*") || has(namespace) || has(".") && own == namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waypoints_namespace_goes_before_the_services_and_that_before_the_root() {
        let web = "web.shop.svc.cluster.local";
        let own = [".".to_owned()];
        let rule = |namespace, host, export_to: &'static [String]| Candidate {
            namespace,
            host,
            export_to,
        };
        let own: &'static [String] = Box::leak(Box::new(own));
        let all: &[String] = &[];
        // (rules, waypoint's namespace, the numbers of those that hold)
        let cases: &[(&[Candidate<'_>], &str, &[usize])] = &[
            (
                &[rule("shop", web, all), rule("edge", web, all)],
                "edge",
                &[1],
            ),
            (
                &[rule("shop", web, all), rule("istio-system", web, all)],
                "edge",
                &[0],
            ),
            (
                &[
                    rule("other", web, all),
                    rule("istio-system", "*.local", all),
                ],
                "edge",
                &[1],
            ),
            (
                &[rule("shop", web, own), rule("istio-system", web, all)],
                "edge",
                &[1],
            ),
            (&[rule("shop", web, own)], "shop", &[0]),
            (
                &[
                    rule("shop", "*.svc.cluster.local", all),
                    rule("shop", "*.shop.svc.cluster.local", all),
                ],
                "shop",
                &[1],
            ),
            (
                &[
                    rule("shop", "*.shop.svc.cluster.local", all),
                    rule("shop", web, all),
                    rule("shop", web, all),
                ],
                "shop",
                &[1, 2],
            ),
            (&[rule("other", web, all)], "shop", &[]),
        ];
        for (rules, waypoint, expected) in cases {
            let numbered: Vec<_> = rules.iter().copied().zip(0_usize..).collect();
            let found = applying(&numbered, web, "shop", waypoint, "istio-system");
            let found: Vec<usize> = found.into_iter().copied().collect();
            assert_eq!(found, *expected, "{rules:?} at {waypoint}");
        }
    }
}
