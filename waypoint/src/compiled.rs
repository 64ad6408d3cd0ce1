//! What a request sees of all that the control plane has said: compiled when it arrives, never per request.
//!
//! What touches a service becomes one [`Service`]: its rules, who may, whose tokens are good. An edit makes anew only
//! the services that it touches, and of their rules only those that are others.

mod authorizers;
mod by_route;
mod fronts;
mod limits;
mod processors;
mod routes;
mod service;
mod telemetry;
mod towards;
mod watchers;

use std::collections::BTreeSet;
use std::sync::Arc;

use api::waypoint as wire;
use mesh::NamespacedHost;
use wire::resource::Kind;

pub use self::authorizers::{Authorizers, Counters, Named};
pub use self::fronts::{Front, Fronts};
pub use self::limits::Limits;
pub use self::processors::{Processing, Processors};
pub use self::service::Service;
use self::service::{Anew, Given};
pub use self::towards::{Backend, Called, Calls, NoSubset, Towards};
use crate::authenticate::{KeySets, Tokens};
use crate::authorize::{Context, Policies};
use crate::report::Collectors;
use crate::route::{Rule, TcpRule};
use crate::state::{Compile, Resources, View};

/// All of it.
#[derive(Debug, Default)]
pub struct Config {
    /// What this proxy is.
    pub gateway: Gateway,
    /// What this proxy stands in front of.
    pub fronts: Fronts,
    /// How services are called.
    pub calls: Calls,
    /// Who is asked.
    pub authorizers: Arc<Authorizers>,
    /// Who counts for all proxies together.
    pub counters: Arc<Counters>,
    services: imbl::HashMap<NamespacedHost, Arc<Service>>,
    /// A service of which nothing is said but what is said of all.
    any: Arc<Service>,
}

/// What this proxy is.
#[derive(Debug, Clone, Default)]
pub struct Gateway {
    /// Of the mesh.
    pub trust_domain: String,
    /// Its other names.
    pub trust_domain_aliases: Vec<String>,
    /// What apps learn of clients' identities.
    pub forward_client_cert: wire::ForwardClientCert,
}

impl Config {
    /// What is to be done with requests for a service.
    pub fn service(&self, service: &NamespacedHost) -> &Arc<Service> {
        self.services.get(service).unwrap_or(&self.any)
    }

    /// What is to be done with requests for whatever is no service.
    pub fn other(&self) -> &Arc<Service> {
        &self.any
    }

    /// All services of which something is said.
    pub fn services(&self) -> impl Iterator<Item = (&NamespacedHost, &Arc<Service>)> {
        self.services.iter()
    }
}

/// Makes it.
pub struct Compiler {
    /// Keys by which tokens are judged.
    keys: KeySets,
    /// Who gets reports.
    collectors: Collectors,
}

impl Compiler {
    /// With keys that are fetched when a policy names them.
    pub fn new(keys: KeySets) -> Self {
        Self {
            keys,
            collectors: Collectors::default(),
        }
    }

    /// With collectors that somebody sends to.
    pub fn reporting(mut self, collectors: Collectors) -> Self {
        self.collectors = collectors;
        self
    }
}

impl Compile for Compiler {
    type Config = Config;

    fn check(&mut self, resource: &wire::Resource) -> Result<(), String> {
        let origin = resource.origin.clone().unwrap_or_default();
        match &resource.kind {
            Some(Kind::Route(route)) => Rule::compile(&origin, route).map(drop),
            Some(Kind::TcpRoute(route)) => TcpRule::compile(&origin, route).map(drop),
            Some(Kind::Authorization(policy)) => {
                let policies = Policies::compile(&[(&origin, policy)], &Context::default());
                // One that the control plane could not read denies, which is understood.
                let complaint = policies.complaints().next();
                match complaint.filter(|_| policy.invalid.is_empty()) {
                    Some((_, why)) => Err(why.to_owned()),
                    None => Ok(()),
                }
            }
            Some(Kind::Authentication(policy)) => Tokens::check_policy(policy),
            Some(Kind::BackendPolicy(policy)) => towards::check(policy),
            Some(Kind::RateLimit(limit)) => limits::check(limit),
            Some(Kind::Processing(processing)) => processors::check(&origin, processing),
            Some(Kind::Provider(provider)) => {
                authorizers::check(provider)?;
                telemetry::check(provider)
            }
            Some(Kind::Telemetry(telemetry)) => telemetry::check_said(telemetry),
            _ => Ok(()),
        }
    }

    fn compile(&mut self, before: &Config, view: &View<'_>) -> Config {
        let said = view.resources;
        let gateway = if view.touched.everything {
            said.gateway().map(Gateway::of).unwrap_or_default()
        } else {
            before.gateway.clone()
        };
        // Providers belong to no service: when one of them changes, everything is touched.
        let (authorizers, counters) = match view.touched.everything {
            true => (
                Arc::new(Authorizers::of_all(said)),
                Arc::new(Counters::of_all(said)),
            ),
            false => (before.authorizers.clone(), before.counters.clone()),
        };
        let given = Given {
            said,
            gateway: &gateway,
            authorizers: &authorizers,
            keys: &self.keys,
            collectors: &self.collectors,
        };
        let make = |service: Option<&NamespacedHost>, before: &Arc<Service>, anew: Anew<'_>| {
            Arc::new(Service::compile(service, &given, before, anew))
        };
        let (any, mut services) = if view.touched.everything {
            let any = make(None, &before.any, Anew::All);
            (any, imbl::HashMap::new())
        } else {
            (before.any.clone(), before.services.clone())
        };
        // To look for them is to walk over every rule there is.
        let all = view.touched.everything.then(|| said.services());
        let all = all.into_iter().flatten();
        let alike = are_alike(said);
        let no_rules = BTreeSet::new();
        for service in all.chain(&view.touched.services) {
            if alike && said.of_service(service).next().is_none() {
                services.remove(service);
                continue;
            }
            let made = match before.services.get(service) {
                Some(held) if !view.touched.everything => {
                    let rules = view.touched.rules.get(service).unwrap_or(&no_rules);
                    make(Some(service), held, Anew::Some(rules))
                }
                held => make(Some(service), held.unwrap_or(&before.any), Anew::All),
            };
            services.insert(service.clone(), made);
        }
        let touched = &view.touched.services;
        let touched = (!view.touched.everything).then(|| touched.iter());
        Config {
            fronts: before.fronts.next(view),
            calls: before.calls.compile(said, touched),
            authorizers,
            counters,
            gateway,
            services,
            any,
        }
    }
}

/// Whether services of which nothing is said are one like the other: nothing that is said of all counts each for
/// itself, or asks which it is. Of ten thousand services most are then one.
fn are_alike(said: &Resources) -> bool {
    said.everywhere().all(|held| {
        let kind = held.resource.kind.as_ref();
        matches!(kind, Some(Kind::Telemetry(_) | Kind::Authentication(_)))
    })
}

impl Gateway {
    fn of(wire: &wire::Gateway) -> Self {
        Self {
            trust_domain: wire.trust_domain.clone(),
            trust_domain_aliases: wire.trust_domain_aliases.clone(),
            forward_client_cert: wire.forward_client_cert(),
        }
    }
}
