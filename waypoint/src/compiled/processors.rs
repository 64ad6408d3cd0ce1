//! Who is shown the requests of a service, and of each of its routes.

use std::sync::Arc;

use api::waypoint as wire;
use wire::resource::Kind;

use super::by_route::ByRoute;
use crate::process::{self, Processor};
use crate::route::Name;
use crate::state::{Held, Resources};

/// Those of one service. Where a route has some of its own, those of the service are among them.
#[derive(Debug, Default)]
pub struct Processors(ByRoute<Box<[Processing]>>);

/// One, or why requests cannot be shown to it.
#[derive(Debug, Clone)]
pub struct Processing {
    name: Arc<str>,
    processor: Result<Arc<Processor>, Box<str>>,
}

impl Processing {
    /// Whose object it is.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// It.
    ///
    /// # Errors
    /// It cannot be understood, and nothing passes without it.
    pub fn good(&self) -> Result<&Arc<Processor>, &str> {
        self.processor.as_ref().map_err(|why| &**why)
    }

    /// Whether it must be shown something, or nothing passes.
    pub fn is_closed(&self) -> bool {
        match &self.processor {
            Ok(it) => !it.fail_open && (it.modes.there.any() || it.modes.back.any()),
            Err(_) => true,
        }
    }

    /// None for one that cannot be understood and without which requests go on.
    fn compile(held: &Held) -> Option<Self> {
        let Some(Kind::Processing(wire)) = &held.resource.kind else {
            return None;
        };
        let origin = held.resource.origin.clone().unwrap_or_default();
        let processor = match held.good {
            true => Processor::compile(&origin, wire),
            false => Err(held
                .refused
                .as_deref()
                .unwrap_or("it cannot be understood")
                .to_owned()),
        };
        let open = wire.processor.as_ref().is_some_and(|it| it.fail_open);
        if processor.is_err() && open {
            return None;
        }
        Some(Self {
            name: process::name(&origin),
            processor: processor.map(Arc::new).map_err(Into::into),
        })
    }
}

impl Processors {
    /// Whether there is none for any request.
    pub fn is_empty(&self) -> bool {
        self.0.all().is_empty() && self.0.routes().next().is_none()
    }

    /// Those for requests of a rule; of no rule: those of the service. In the order in which they are shown a request.
    pub fn of(&self, rule: Option<&Name>) -> &[Processing] {
        self.0.of(rule)
    }

    /// Those for requests of each route that has some of its own, with its key.
    pub(super) fn of_routes(&self) -> impl Iterator<Item = (&str, &[Processing])> {
        self.0.routes().map(|(route, all)| (route, &**all))
    }

    /// `all`: everything that is said of the service but its rules; `routes`: those of its routes that have policies of
    /// their own.
    pub(super) fn compile(all: &[&Arc<Held>], routes: &[&str], said: &Resources) -> Self {
        let general = || all.iter().copied();
        let of_routes = routes.iter().filter_map(|route| {
            let own: Vec<_> = said.of_route(route).filter(is_processing).collect();
            (!own.is_empty()).then(|| (Box::from(*route), processors(general().chain(own))))
        });
        Self(ByRoute::new(processors(general()), of_routes))
    }
}

fn is_processing(held: &&Arc<Held>) -> bool {
    matches!(held.resource.kind, Some(Kind::Processing(_)))
}

/// Oldest first.
fn processors<'a>(all: impl Iterator<Item = &'a Arc<Held>>) -> Box<[Processing]> {
    let mut all: Vec<&Arc<Held>> = all.filter(is_processing).collect();
    all.sort_by_key(|held| {
        let created = held.resource.origin.as_ref().map_or(0, |it| it.created);
        (created, held.key.clone())
    });
    all.dedup_by(|one, other| one.key == other.key);
    all.into_iter()
        .filter_map(|held| Processing::compile(held))
        .collect()
}

/// What is wrong with it.
pub(super) fn check(origin: &wire::Origin, processing: &wire::Processing) -> Result<(), String> {
    match processing.invalid.is_empty() {
        true => Processor::compile(origin, processing).map(drop),
        // One that the control plane could not read is understood: as what refuses.
        false => Ok(()),
    }
}
