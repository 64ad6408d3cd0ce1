//! The limits on requests for a service, and for each of its routes.

use std::sync::Arc;
use std::time::Instant;

use api::waypoint as wire;
use wire::resource::Kind;

use super::by_route::ByRoute;
use crate::limit::Limiter;
use crate::route::Name;
use crate::state::{Held, Resources};

/// The limits of one service. Where a route has some of its own, those of the service are among them.
#[derive(Debug, Default)]
pub struct Limits(ByRoute<Limiter>);

impl Limits {
    /// Whether there is none for any request.
    pub fn is_empty(&self) -> bool {
        self.0.all().is_empty() && self.0.routes().next().is_none()
    }

    /// Those for requests of a rule; of no rule: those of the service.
    pub fn of(&self, rule: Option<&Name>) -> &Limiter {
        self.0.of(rule)
    }

    /// `all`: everything that is said of the service but its rules; `routes`: those of its routes that have policies of
    /// their own. Counts of `before` go on.
    pub(super) fn compile(
        all: &[&Arc<Held>],
        routes: &[&str],
        said: &Resources,
        before: &Self,
        now: Instant,
    ) -> Self {
        // One may name the gateway, the service and its routes, all at once: a request is one request.
        let mut once: Vec<&Arc<Held>> = Vec::new();
        for held in all.iter().copied().filter(|held| limit(held).is_some()) {
            if !once.iter().any(|it| Arc::ptr_eq(it, held)) {
                once.push(held);
            }
        }
        let general = limiter(once.iter().copied(), before.0.all(), now);
        let of_routes = routes.iter().filter_map(|route| {
            let own: Vec<_> = said
                .of_route(route)
                .filter(|held| limit(held).is_some())
                .filter(|held| !once.iter().any(|it| Arc::ptr_eq(it, held)))
                .collect();
            let old = before.0.own(route).unwrap_or(before.0.all());
            (!own.is_empty()).then(|| {
                // The service's are the very same ones: what passes by a route counts for all.
                let limiter = general.and(limiter(own.into_iter(), old, now));
                (Box::from(*route), limiter)
            })
        });
        let of_routes: Vec<_> = of_routes.collect();
        Self(ByRoute::new(general, of_routes.into_iter()))
    }
}

fn limit(held: &Held) -> Option<&wire::RateLimit> {
    match &held.resource.kind {
        Some(Kind::RateLimit(limit)) => Some(limit),
        _ => None,
    }
}

fn limiter<'a>(
    all: impl Iterator<Item = &'a Arc<Held>>,
    before: &Limiter,
    now: Instant,
) -> Limiter {
    let found: Vec<(wire::Origin, wire::RateLimit)> = all
        .filter_map(|held| {
            let origin = held.resource.origin.clone().unwrap_or_default();
            Some((origin, understood(held, limit(held)?)?))
        })
        .collect();
    let found: Vec<_> = found
        .iter()
        .map(|(origin, limit)| (origin, limit))
        .collect();
    Limiter::compile(&found, Some(before), now).unwrap_or_default()
}

/// One that cannot be understood lets all pass or none, as it says of failures.
fn understood(held: &Held, limit: &wire::RateLimit) -> Option<wire::RateLimit> {
    if held.good && check(limit).is_ok() {
        return Some(limit.clone());
    }
    (!limit.fail_open).then(|| wire::RateLimit {
        window: 1_000,
        ..Default::default()
    })
}

/// Whether a limit can be understood, by itself.
///
/// # Errors
/// Why not, for the person who wrote it.
pub(super) fn check(limit: &wire::RateLimit) -> Result<(), String> {
    let one = [(&wire::Origin::default(), limit)];
    Limiter::compile(&one, None, Instant::now()).map(drop)
}
