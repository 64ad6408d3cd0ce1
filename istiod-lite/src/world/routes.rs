//! Routes: where their references lead, for which waypoints they are, and what is said of them.
//!
//! A route of the namespace of the service it is attached to is the producer's, for everybody who
//! comes; one of another namespace is a consumer's, for clients of that namespace.

use std::collections::{BTreeMap, BTreeSet};

use api::k8s::objects::{Kind, ObjectKey};
use api::k8s::routes::{BackendRef, ParentRef};
use api::waypoint as wire;

use super::objects::Objects;
use super::references::Reference;
use super::{Output, World};
use crate::status::route::{self as status, Judged};
use crate::translate::ports::ServicePort;
use crate::translate::resource::Resource;
use crate::translate::route::{Body, Route, Rule, Unresolved, translate};

/// Where the targets of a route are, of one waypoint.
#[derive(Default)]
struct Attached {
    producer: Vec<wire::Target>,
    consumer: Vec<wire::Target>,
}

impl World {
    pub(super) fn build_route(&self, key: &ObjectKey) -> Option<Output> {
        let route = self.objects.routes.get(key)?;
        let mut attached = BTreeMap::new();
        let parents = route.spec.parents().iter();
        let judged: Vec<Judged> = parents
            .filter_map(|parent| self.judge(route, parent, &mut attached))
            .collect();
        let resolve = |reference: &BackendRef| self.backend(key, reference);
        let good = route.good.as_ref();
        let made = good.map(|it| translate(it, &route.wire_key(), &resolve));
        let said = status::route(route, made.as_ref(), &judged);
        let mut resources = Vec::new();
        for (gateway, attached) in &attached {
            let Some(made) = &made else { break };
            for (index, rule) in made.rules.iter().enumerate() {
                let told = told(route, index, rule, attached);
                resources.extend(told.iter().map(|it| Resource::waypoint(gateway, it)));
            }
            for (key, provider) in &made.providers {
                let kind = wire::resource::Kind::Provider(provider.clone());
                let resource = wire::Resource {
                    key: key.clone(),
                    origin: Some(origin(route)),
                    kind: Some(kind),
                };
                resources.push(Resource::waypoint(gateway, &resource));
            }
        }
        Some(Output {
            resources,
            remarks: route
                .faults
                .iter()
                .map(String::as_str)
                .chain(route.unhedged())
                .map(str::to_owned)
                .collect(),
            status: Some(said),
            ..Output::default()
        })
    }

    /// What there is to say of a route at one of its parents, none if it is not ours to say; and the
    /// waypoints that are concerned.
    fn judge(
        &self,
        route: &Route,
        parent: &ParentRef,
        attached: &mut BTreeMap<ObjectKey, Attached>,
    ) -> Option<Judged> {
        let key = parent_key(parent, &route.key.namespace)?;
        if key.kind == Kind::Gateway {
            return self
                .is_programmed(&key)
                .then(|| Judged::takes_no_routes(parent, &key));
        }
        let ports = match self.ports(&key) {
            None => return Some(Judged::missing(parent, &key)),
            Some(ports) => match chosen(parent, ports) {
                Err(text) => return Some(Judged::no_port(parent, &key, &text)),
                Ok(ports) => ports,
            },
        };
        let gateways = self.in_front(&key);
        for gateway in &gateways {
            let attached = attached.entry(gateway.clone()).or_default();
            let targets = if key.namespace == route.key.namespace {
                &mut attached.producer
            } else {
                &mut attached.consumer
            };
            for service in self.service_refs(&key) {
                targets.extend(ports.iter().map(|port| target(&service, *port)));
            }
        }
        let named = self.named_by(&key);
        Some(match self.objects.wanted(&key) {
            _ if !named.is_empty() => Judged::attached(parent, &named),
            None => Judged::names_no_waypoint(parent, &key),
            Some(wanted) => Judged::not_fronted(parent, &key, &wanted.gateway),
        })
    }

    /// The ports of a Service or ServiceEntry; none if it is not there.
    fn ports(&self, key: &ObjectKey) -> Option<&[ServicePort]> {
        let service = self.objects.services.get(key);
        let service = service.filter(|it| !it.is_alias).map(|it| &it.ports);
        let entry = || self.objects.service_entries.get(key).map(|it| &it.ports);
        service.or_else(entry).map(Vec::as_slice)
    }

    /// Whether all that a route does with a service's requests is to let them go on to it: that
    /// needs nobody's leave. Towards another service its clients would leave that one's policies out.
    fn goes_on(&self, route: &ObjectKey, backend: &ObjectKey) -> bool {
        let Some(route) = self.objects.routes.get(route) else {
            return false;
        };
        let mut parents = route.spec.parents().iter();
        parents.all(|it| parent_key(it, &route.key.namespace).as_ref() == Some(backend))
    }

    /// A Service by its host, others by their names.
    fn shown(&self, key: &ObjectKey) -> String {
        match key.kind {
            Kind::Service => format!("{}.{}.svc.{}", key.name, key.namespace, self.cluster.domain),
            _ => key.to_string(),
        }
    }

    /// Where a reference of an object to a backend leads.
    pub(super) fn backend(
        &self,
        from: &ObjectKey,
        reference: &BackendRef,
    ) -> Result<wire::ServiceRef, Unresolved> {
        let refused = |reason, text: String| Unresolved { reason, text };
        let key = self.permitted(from, reference)?;
        let missing = || {
            let text = format!("backend({}) not found", self.shown(&key));
            refused("BackendNotFound", text)
        };
        let ports = self.ports(&key).ok_or_else(missing)?;
        let Some(port) = reference.port else {
            let text = format!("backend {key} needs a port");
            return Err(refused("InvalidDestination", text));
        };
        let port = u32::try_from(port).unwrap_or(0);
        let served = |it: &ServicePort| it.number == port && it.transport == "TCP";
        if !ports.iter().any(served) {
            let text = format!("{key} has no port {port}");
            return Err(refused("BackendNotFound", text));
        }
        let services = self.service_refs(&key);
        let by_host = reference.kind.as_deref() == Some("Hostname");
        let mut named = services
            .iter()
            .filter(|it| by_host && it.hostname.eq_ignore_ascii_case(&reference.name));
        match named.next().or(services.first()) {
            Some(service) => Ok(wire::ServiceRef {
                port,
                ..service.clone()
            }),
            None => {
                let text = format!("{key} has no host of its own");
                Err(refused("BackendNotFound", text))
            }
        }
    }

    /// What a reference of an object means, there or not, if it may refer to it. Whoever may not does
    /// not learn whether it is there.
    fn permitted(&self, from: &ObjectKey, reference: &BackendRef) -> Result<ObjectKey, Unresolved> {
        let refuse = |reason, text: String| Err(Unresolved { reason, text });
        let name = &reference.name;
        let key = match backend_of(reference, &from.namespace) {
            Some(Reference::Object(key)) => key,
            Some(Reference::Host(host)) => {
                match self.objects.hosts.holder(&host, &from.namespace) {
                    Some(key) => key.clone(),
                    None => {
                        return refuse("BackendNotFound", format!("backend({name}) not found"));
                    }
                }
            }
            _ => {
                let group = reference.group.as_deref().unwrap_or_default();
                let kind = reference.kind.as_deref().unwrap_or("Service");
                let text = format!(
                    "{kind} {name} of group {group:?} is no backend: it may be a Service, ServiceEntry or Hostname"
                );
                return refuse("InvalidKind", text);
            }
        };
        let foreign = key.namespace != from.namespace;
        if foreign && !self.goes_on(from, &key) && !self.objects.permits(from, &key) {
            let text = format!(
                "{key} may not be referred to from namespace {}: there is no ReferenceGrant for it",
                from.namespace
            );
            return refuse("RefNotPermitted", text);
        }
        Ok(key)
    }
}

impl Objects {
    pub(super) fn link_route(&mut self, key: &ObjectKey) {
        let Some(route) = self.routes.get(key) else {
            return;
        };
        let namespace = &route.key.namespace;
        let mut references = BTreeSet::new();
        for parent in route.spec.parents() {
            references.extend(parent_key(parent, namespace).map(Reference::Object));
        }
        for backend in route.backends() {
            let Some(reference) = backend_of(backend, namespace) else {
                continue;
            };
            match &reference {
                Reference::Object(key) if key.namespace != *namespace => {
                    references.insert(Reference::Grants(key.namespace.clone()));
                }
                // Whose namespace it is may change without this object.
                Reference::Host(_) => {
                    references.insert(Reference::Grants("".into()));
                }
                _ => {}
            }
            references.insert(reference);
        }
        self.references.set(key, references);
    }

    /// Whether an object may refer to one of another namespace: that namespace says so.
    pub(super) fn permits(&self, from: &ObjectKey, to: &ObjectKey) -> bool {
        let grants = self.grants_of.get(&to.namespace).into_iter().flatten();
        let mut grants = grants.filter_map(|key| self.grants.get(key));
        grants.any(|grant| {
            let mut who = grant.from.iter();
            let mut what = grant.to.iter();
            who.any(|it| {
                it.group == group(from.kind)
                    && it.kind == from.kind.name()
                    && *it.namespace == *from.namespace
            }) && what.any(|it| {
                let core = it.group.is_empty() || it.group == "core";
                let same = it.group == group(to.kind) || (core && group(to.kind).is_empty());
                let name = it.name.as_deref().filter(|name| !name.is_empty());
                same && it.kind == to.kind.name() && name.is_none_or(|name| *name == *to.name)
            })
        })
    }
}

/// The API group of a kind.
fn group(kind: Kind) -> &'static str {
    let version = kind.api_versions().first().copied().unwrap_or_default();
    version.split_once('/').map_or("", |(group, _)| group)
}

/// What a route is attached to, there or not; none if it is of a kind that is not ours.
pub(super) fn parent_key(parent: &ParentRef, namespace: &str) -> Option<ObjectKey> {
    let namespace = parent.namespace.as_deref().unwrap_or(namespace);
    let kind = match (
        parent.group.as_deref().unwrap_or(group(Kind::Gateway)),
        parent.kind.as_deref().unwrap_or("Gateway"),
    ) {
        ("" | "core", "Service") => Kind::Service,
        ("networking.istio.io", "ServiceEntry") => Kind::ServiceEntry,
        ("gateway.networking.k8s.io", "Gateway") => Kind::Gateway,
        _ => return None,
    };
    Some(ObjectKey::new(kind, namespace, &parent.name))
}

/// What a backend is, there or not; none if nothing of that kind can be one.
fn backend_of(backend: &BackendRef, namespace: &str) -> Option<Reference> {
    let namespace = backend.namespace.as_deref().unwrap_or(namespace);
    let kind = match (
        backend.group.as_deref().unwrap_or_default(),
        backend.kind.as_deref().unwrap_or("Service"),
    ) {
        ("" | "core", "Service") => Kind::Service,
        ("networking.istio.io", "ServiceEntry") => Kind::ServiceEntry,
        ("networking.istio.io", "Hostname") => {
            return Some(Reference::Host(backend.name.to_ascii_lowercase().into()));
        }
        _ => return None,
    };
    Some(Reference::Object(ObjectKey::new(
        kind,
        namespace,
        &backend.name,
    )))
}

/// The ports that a parent means; 0 stands for all.
fn chosen(parent: &ParentRef, ports: &[ServicePort]) -> Result<Vec<u32>, String> {
    let section = parent.section_name.as_deref().filter(|it| !it.is_empty());
    if section.is_none() && parent.port.is_none() {
        return Ok(vec![0]);
    }
    let number = parent.port.map(|it| u32::try_from(it).unwrap_or(0));
    let wanted = ports.iter().filter(|port| {
        section.is_none_or(|name| port.name == name) && number.is_none_or(|it| port.number == it)
    });
    let wanted: Vec<u32> = wanted.map(|port| port.number).collect();
    if wanted.is_empty() {
        let named = section.map(|name| format!("named {name}"));
        let numbered = number.map(|number| number.to_string());
        let both: Vec<String> = named.into_iter().chain(numbered).collect();
        return Err(both.join(", "));
    }
    Ok(wanted)
}

fn target(service: &wire::ServiceRef, port: u32) -> wire::Target {
    let service = wire::ServiceRef {
        port,
        ..service.clone()
    };
    wire::Target {
        to: Some(wire::target::To::Service(service)),
    }
}

fn origin(route: &Route) -> wire::Origin {
    wire::Origin {
        kind: route.key.kind.name().to_owned(),
        namespace: route.key.namespace.to_string(),
        name: route.key.name.to_string(),
        rule: String::new(),
        created: route.created,
        index: 0,
    }
}

/// What one waypoint is told of a rule: as the producer's, as a consumer's, or as both.
fn told(route: &Route, index: usize, rule: &Rule, attached: &Attached) -> Vec<wire::Resource> {
    let both = [(&attached.producer, ""), (&attached.consumer, "/consumer")];
    let both = both.into_iter().filter(|(targets, _)| !targets.is_empty());
    let told = both.map(|(targets, suffix)| {
        let client = if suffix.is_empty() {
            String::new()
        } else {
            route.key.namespace.to_string()
        };
        let kind = match &rule.body {
            Body::Http(rule) => wire::resource::Kind::Route(wire::Route {
                parents: targets.clone(),
                // Services have names of their own.
                hostnames: Vec::new(),
                consumer_namespace: client,
                hedge: route
                    .hedge
                    .as_ref()
                    .and_then(|it| it.as_ref().ok())
                    .copied(),
                ..(**rule).clone()
            }),
            Body::Stream(rule) => wire::resource::Kind::TcpRoute(wire::TcpRoute {
                parents: targets.clone(),
                source_namespaces: Some(client)
                    .filter(|it| !it.is_empty())
                    .into_iter()
                    .collect(),
                ..rule.clone()
            }),
        };
        wire::Resource {
            key: format!("{}/{index}{suffix}", route.wire_key()),
            origin: Some(wire::Origin {
                rule: rule.name.clone().unwrap_or_else(|| index.to_string()),
                index: u32::try_from(index).unwrap_or(u32::MAX),
                ..origin(route)
            }),
            kind: Some(kind),
        }
    });
    told.collect()
}
