//! All resources by key, and by what they are tied to. Copies share what is equal between them.

use std::sync::Arc;

use api::waypoint as wire;
use imbl::{OrdMap, OrdSet};
use mesh::{NamespacedHost, ParseError, Tie, service_of, ties};

use super::Touched;

/// A resource, and whether it can be relied on.
#[derive(Debug)]
pub struct Held {
    /// Its key.
    pub key: Arc<str>,
    /// The last good one; if there has been none, what was refused.
    pub resource: wire::Resource,
    /// Whether `resource` was understood. One that was not closes what it is for.
    pub good: bool,
    /// Why the newest one was refused, if it was.
    pub refused: Option<Box<str>>,
}

/// What a gateway stands in front of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Behind {
    /// A service.
    Service(NamespacedHost),
    /// A workload, by its uid.
    Workload(Arc<str>),
}

impl Behind {
    /// What a resource says it of, if it says that.
    fn said_by(resource: &wire::Resource) -> Option<Self> {
        let Some(wire::resource::Kind::Fronted(fronted)) = &resource.kind else {
            return None;
        };
        Some(match fronted.it.as_ref()? {
            wire::fronted::It::Service(service) => Self::Service(service_of(service)),
            wire::fronted::It::Workload(uid) => Self::Workload(uid.as_str().into()),
        })
    }
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    all: OrdMap<Arc<str>, Arc<Held>>,
    /// Pairs (what they are tied to, key), so that all of one are a range.
    tied: OrdSet<(Of, Arc<str>)>,
}

/// What resources are found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Everywhere,
    Itself,
    Refused,
    Service(NamespacedHost, What),
    Route(Arc<str>),
    Towards(NamespacedHost),
    Leads(NamespacedHost),
    Behind(Behind),
}

/// What is for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// A rule for its requests: there may be thousands.
    Rule,
    Other,
}

impl What {
    fn of(resource: &wire::Resource) -> Self {
        match resource.kind {
            Some(wire::resource::Kind::Route(_)) => Self::Rule,
            _ => Self::Other,
        }
    }
}

impl Resources {
    /// What the proxy itself is.
    pub fn gateway(&self) -> Option<&wire::Gateway> {
        let mut itself = self.of(&Of::Itself);
        itself.find_map(|held| match &held.resource.kind {
            Some(wire::resource::Kind::Gateway(gateway)) => Some(gateway),
            _ => None,
        })
    }

    /// What is said of that as something the gateway stands in front of, if it does.
    pub fn fronted(&self, behind: &Behind) -> Option<&wire::Fronted> {
        let mut said = self.of(&Of::Behind(behind.clone())).filter(|it| it.good);
        said.find_map(|held| match &held.resource.kind {
            Some(wire::resource::Kind::Fronted(fronted)) => Some(fronted),
            _ => None,
        })
    }

    /// The resource of that key.
    pub fn get(&self, key: &str) -> Option<&Arc<Held>> {
        self.all.get(key)
    }

    /// All of them, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Held>> {
        self.all.values()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Routes and policies for requests to that service, on any of its ports.
    pub fn of_service(&self, service: &NamespacedHost) -> impl Iterator<Item = &Arc<Held>> {
        self.rules(service).chain(self.besides_rules(service))
    }

    /// Rules for requests to that service, on any of its ports.
    pub fn rules(&self, service: &NamespacedHost) -> impl Iterator<Item = &Arc<Held>> {
        self.of(&Of::Service(service.clone(), What::Rule))
    }

    /// The one of that key.
    pub fn rule(&self, service: &NamespacedHost, key: &str) -> Option<&Arc<Held>> {
        let held = self.all.get(key)?;
        let of = Of::Service(service.clone(), What::Rule);
        let is_for = self.tied.contains(&(of, held.key.clone()));
        is_for.then_some(held)
    }

    /// What is for a service and is no rule for its requests.
    pub fn besides_rules(&self, service: &NamespacedHost) -> impl Iterator<Item = &Arc<Held>> {
        self.of(&Of::Service(service.clone(), What::Other))
    }

    /// Routes and policies for everything that passes through.
    pub fn everywhere(&self) -> impl Iterator<Item = &Arc<Held>> {
        self.of(&Of::Everywhere)
    }

    /// Policies for all rules of a route, by its key without a rule.
    pub fn of_route(&self, key: &str) -> impl Iterator<Item = &Arc<Held>> {
        self.of(&Of::Route(key.into()))
    }

    /// Keys of routes, without a rule, that have policies of their own.
    pub fn routes_with_policies(&self) -> impl Iterator<Item = &Arc<str>> {
        self.each_once(Of::Route("".into()), |of| match of {
            Of::Route(key) => Some(key),
            _ => None,
        })
    }

    /// How a service is called: backend policies and subsets.
    pub fn towards(&self, service: &NamespacedHost) -> impl Iterator<Item = &Arc<Held>> {
        self.of(&Of::Towards(service.clone()))
    }

    /// Those of which the newest was refused.
    pub fn refused(&self) -> impl Iterator<Item = &Arc<Held>> {
        self.of(&Of::Refused)
    }

    /// Services that routes and policies are for.
    pub fn services(&self) -> impl Iterator<Item = &NamespacedHost> {
        let from = Of::Service(NamespacedHost::new("", ""), What::Rule);
        self.each_once(from, |of| match of {
            Of::Service(service, _) => Some(service),
            _ => None,
        })
    }

    /// Services of which is said how they are called.
    pub fn called(&self) -> impl Iterator<Item = &NamespacedHost> {
        let from = Of::Towards(NamespacedHost::new("", ""));
        self.each_once(from, |of| match of {
            Of::Towards(service) => Some(service),
            _ => None,
        })
    }

    /// Of those of one kind, which `from` is the least of.
    fn each_once<'a, T: PartialEq + 'a>(
        &'a self,
        from: Of,
        which: fn(&Of) -> Option<&T>,
    ) -> impl Iterator<Item = &'a T> {
        let from: (Of, Arc<str>) = (from, "".into());
        let tied = self.tied.range(from..);
        let mut last = None;
        let found = tied.map_while(move |(of, _)| which(of));
        found.filter(move |one| last.replace(*one) != Some(*one))
    }

    fn of(&self, of: &Of) -> impl Iterator<Item = &Arc<Held>> + use<'_> {
        let of = of.clone();
        let from: (Of, Arc<str>) = (of.clone(), "".into());
        self.tied
            .range(from..)
            .take_while(move |(found, _)| *found == of)
            .filter_map(|(_, key)| self.all.get(key))
    }

    pub(super) fn set(&mut self, key: &str, resource: wire::Resource, touched: &mut Touched) {
        if let Some(held) = self.all.get(key)
            && held.good
            && held.resource == resource
        {
            if held.refused.is_some() {
                self.note(key, None);
            }
            return;
        }
        let held = Held {
            key: key.into(),
            resource,
            good: true,
            refused: None,
        };
        self.put(held, touched);
    }

    /// The newest one is refused: a good one that there is stays.
    pub(super) fn refuse(
        &mut self,
        key: &str,
        resource: wire::Resource,
        reason: &ParseError,
        touched: &mut Touched,
    ) {
        let reason: Box<str> = reason.to_string().into();
        if self.all.get(key).is_some_and(|held| held.good) {
            self.note(key, Some(reason));
            return;
        }
        self.put(
            Held {
                key: key.into(),
                resource,
                good: false,
                refused: Some(reason),
            },
            touched,
        );
    }

    /// Says of a good one whether a newer one was refused.
    fn note(&mut self, key: &str, refused: Option<Box<str>>) {
        let Some(held) = self.all.get(key) else {
            return;
        };
        let pair = (Of::Refused, held.key.clone());
        match &refused {
            Some(_) => self.tied.insert(pair),
            None => self.tied.remove(&pair),
        };
        let held = Held {
            key: held.key.clone(),
            resource: held.resource.clone(),
            good: held.good,
            refused,
        };
        self.all.insert(held.key.clone(), Arc::new(held));
    }

    fn put(&mut self, held: Held, touched: &mut Touched) {
        self.remove(&held.key, touched);
        for of in found_by(&held) {
            self.tied.insert((of, held.key.clone()));
        }
        let held = Arc::new(held);
        self.all.insert(held.key.clone(), held.clone());
        self.touch(&held, touched);
    }

    pub(super) fn remove(&mut self, key: &str, touched: &mut Touched) {
        let Some(held) = self.all.get(key).cloned() else {
            return;
        };
        self.touch(&held, touched);
        self.all.remove(key);
        for of in found_by(&held) {
            self.tied.remove(&(of, held.key.clone()));
        }
    }

    /// What is another because this resource is.
    fn touch(&self, held: &Held, touched: &mut Touched) {
        touched.behind.extend(Behind::said_by(&held.resource));
        ties(&held.resource, |tie| match tie {
            Tie::Gateway | Tie::Listener(_) | Tie::Named => touched.everything = true,
            Tie::Service(service) => {
                let service = service_of(service);
                if What::of(&held.resource) == What::Rule {
                    let rules = touched.rules.entry(service.clone()).or_default();
                    rules.insert(held.key.clone());
                }
                touched.services.insert(service);
            }
            Tie::Route(route) => self.touch_route(route, touched),
            Tie::Towards(service) => self.touch_service(&service_of(service), touched),
            Tie::Leads(_) | Tie::Workload(_) => {}
        });
    }

    /// All rules of a route: what they are for.
    fn touch_route(&self, route: &str, touched: &mut Touched) {
        let from: Arc<str> = route.into();
        let rules = self.all.range(from..).map(|(_, held)| held);
        let rules = rules.take_while(|held| held.key.starts_with(route));
        for rule in rules.filter(|held| is_rule_of(&held.key, route)) {
            touch_targets(rule, touched);
        }
    }

    /// A service is another, or is called otherwise: whoever leads there sees it.
    pub(super) fn touch_service(&self, service: &NamespacedHost, touched: &mut Touched) {
        touched.services.insert(service.clone());
        for held in self.of(&Of::Leads(service.clone())) {
            touch_targets(held, touched);
        }
    }
}

fn touch_targets(held: &Held, touched: &mut Touched) {
    ties(&held.resource, |tie| match tie {
        Tie::Gateway | Tie::Listener(_) | Tie::Named => touched.everything = true,
        Tie::Service(service) => {
            touched.services.insert(service_of(service));
        }
        Tie::Route(_) | Tie::Towards(_) | Tie::Leads(_) | Tie::Workload(_) => {}
    });
}

fn is_rule_of(key: &str, route: &str) -> bool {
    key.strip_prefix(route)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn found_by(held: &Held) -> Vec<Of> {
    let mut found = Vec::new();
    if held.refused.is_some() {
        found.push(Of::Refused);
    }
    found.extend(Behind::said_by(&held.resource).map(Of::Behind));
    let is_gateway = matches!(held.resource.kind, Some(wire::resource::Kind::Gateway(_)));
    ties(&held.resource, |tie| match tie {
        Tie::Gateway if is_gateway => found.push(Of::Itself),
        Tie::Gateway => found.push(Of::Everywhere),
        Tie::Service(service) => {
            found.push(Of::Service(service_of(service), What::of(&held.resource)))
        }
        Tie::Route(key) => found.push(Of::Route(key.into())),
        Tie::Towards(service) => found.push(Of::Towards(service_of(service))),
        Tie::Leads(service) => found.push(Of::Leads(service_of(service))),
        Tie::Listener(_) | Tie::Workload(_) | Tie::Named => {}
    });
    found
}
