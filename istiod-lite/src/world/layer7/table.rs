//! What is kept of policies of layer 7, the indexes over them, and who must be made anew when they change.
//!
//! Most only refer, and are made anew when what they refer to changes ([`References`]). What is done towards a
//! service is made for that service: anew when it changes, or a DestinationRule for it, and when a route begins or ends
//! to lead there.
//!
//! [`References`]: super::super::references::References

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use api::k8s::aim::Aim;
use api::k8s::istio::destination_rule::DestinationRuleSpec;
use api::k8s::labels::GATEWAY_NAME;
use api::k8s::objects::{Kind, Object, ObjectKey};

use crate::translate::layer7::{Layer7, Spec, backend, host, virtual_service};
use crate::translate::{Labels, credential};
use crate::world::depend::mark;
use crate::world::objects::{Objects, enter, leave};
use crate::world::references::Reference;
use crate::world::{Builder, World};

/// Policies of layer 7.
#[derive(Debug, Default)]
pub(in crate::world) struct Table {
    all: HashMap<ObjectKey, Layer7>,
    /// DestinationRules by their host, which may begin with `*`.
    rules_of_host: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    /// VirtualServices and DestinationRules with a host that begins with `*`.
    wild: BTreeSet<ObjectKey>,
    /// Policies towards services.
    towards: BTreeSet<ObjectKey>,
    /// Policies by the Secrets and ConfigMaps that they name.
    naming: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// DestinationRules by the Secrets that they name, and by the companions of those.
    completed: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    completing: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// VirtualServices that ask for labels of clients, under the first label of each set.
    asking: HashMap<(String, String), BTreeSet<ObjectKey>>,
}

impl Table {
    pub(in crate::world) fn get(&self, key: &ObjectKey) -> Option<&Layer7> {
        self.all.get(key)
    }

    /// The Secrets and ConfigMaps that are named.
    pub(super) fn credentials(&self) -> impl Iterator<Item = &ObjectKey> {
        self.naming.keys()
    }

    /// The policies that name one.
    pub(super) fn naming(&self, credential: &ObjectKey) -> impl Iterator<Item = &Layer7> {
        let policies = self.naming.get(credential).into_iter().flatten();
        policies.filter_map(|key| self.get(key))
    }

    /// The Secrets whose roots may be in another one.
    pub(super) fn completed(&self) -> impl Iterator<Item = &ObjectKey> {
        self.completed.keys()
    }

    pub(super) fn is_completed(&self, credential: &ObjectKey) -> bool {
        self.completed.contains_key(credential)
    }

    /// The policies that name one whose roots may be in this one.
    pub(super) fn completing(&self, companion: &ObjectKey) -> impl Iterator<Item = &Layer7> {
        let policies = self.completing.get(companion).into_iter().flatten();
        policies.filter_map(|key| self.get(key))
    }

    /// Objects that name providers: who gets reports, and who counts.
    pub(super) fn naming_providers(&self) -> impl Iterator<Item = &ObjectKey> {
        let naming = self.all.iter().filter(|(_, it)| match &*it.spec {
            Spec::Telemetry(_) => true,
            Spec::RateLimit(it) | Spec::Quota(it) => it.global.is_some(),
            _ => false,
        });
        naming.map(|(key, _)| key)
    }

    /// Whether some DestinationRule compares labels with those of a waypoint's pods.
    fn compares_labels(&self) -> bool {
        let mut policies = self.towards.iter().filter_map(|key| self.get(key));
        policies.any(|it| matches!(&*it.spec, Spec::Destination(it) if backend::compares(it)))
    }

    /// Whether nothing is said about what is done towards any service.
    pub(super) fn says_nothing_towards(&self) -> bool {
        self.towards.is_empty()
    }

    /// The DestinationRules that may hold for a host, oldest first.
    pub(super) fn rules_for(&self, hostname: &str) -> Vec<&Layer7> {
        let exact = self.rules_of_host.get(hostname).into_iter().flatten();
        let is_rule = |key: &&ObjectKey| key.kind == Kind::DestinationRule;
        let wild = self.wild.iter().filter(is_rule);
        let all: BTreeSet<&ObjectKey> = exact.chain(wild).collect();
        let mut rules: Vec<&Layer7> = all.into_iter().filter_map(|key| self.get(key)).collect();
        rules.retain(|it| {
            it.hosts
                .iter()
                .any(|pattern| host::matches(pattern, hostname))
        });
        rules.sort_by_key(|it| (it.created, it.key.clone()));
        rules
    }
}

impl Objects {
    pub(in crate::world) fn link_layer7(&mut self, key: &ObjectKey) {
        let Some(policy) = self.layer7.get(key) else {
            return;
        };
        let mut references: Vec<Reference> = Reference::of_targets(&policy.targets).collect();
        let is_wild = policy.hosts.iter().any(|it| it.starts_with('*'));
        let is_towards = matches!(
            &*policy.spec,
            Spec::Destination(_) | Spec::BackendTls(_) | Spec::BackendTraffic(_)
        );
        if let Spec::Processor(it) = &*policy.spec {
            let asked = ObjectKey::new(Kind::Service, &key.namespace, &it.backend_ref.name);
            references.push(Reference::Object(asked));
        }
        let everywhere = match &*policy.spec {
            Spec::Virtual(_) => {
                let hosts = policy.hosts.iter().chain(&policy.destinations);
                let hosts = hosts.filter(|it| !it.starts_with('*'));
                references.extend(hosts.map(|it| Reference::Host(it.as_str().into())));
                false
            }
            Spec::Authentication(_) => {
                let hosts = policy.destinations.iter();
                references.extend(hosts.map(|it| Reference::Host(it.as_str().into())));
                false
            }
            Spec::Telemetry(_) => policy.targets.is_empty(),
            _ => false,
        };
        if everywhere {
            references.push(Reference::Gateways("".into()));
        }
        let rules: Vec<Arc<str>> = match &*policy.spec {
            Spec::Destination(_) => policy.hosts.iter().map(|it| it.as_str().into()).collect(),
            _ => Vec::new(),
        };
        let named: Vec<ObjectKey> = policy.credentials.keys().cloned().collect();
        let asked = asked_labels(&policy.spec);
        let completed = completed(policy);
        for host in &rules {
            enter(&mut self.layer7.rules_of_host, host, key);
        }
        for credential in &named {
            enter(&mut self.layer7.naming, credential, key);
        }
        for (credential, companion) in &completed {
            enter(&mut self.layer7.completed, credential, key);
            enter(&mut self.layer7.completing, companion, key);
        }
        for label in asked {
            enter(&mut self.layer7.asking, &label, key);
        }
        if is_wild {
            self.layer7.wild.insert(key.clone());
        }
        if is_towards {
            self.layer7.towards.insert(key.clone());
        }
        self.references.set(key, references);
    }

    pub(in crate::world) fn unlink_layer7(&mut self, key: &ObjectKey) {
        self.references.clear(key);
        self.layer7.wild.remove(key);
        self.layer7.towards.remove(key);
        let hosts = self.layer7.get(key).map(|it| it.hosts.clone());
        for host in hosts.into_iter().flatten() {
            leave(&mut self.layer7.rules_of_host, host.as_str(), key);
        }
        let named = self.layer7.get(key).map(|it| it.credentials.clone());
        for credential in named.into_iter().flatten().map(|(it, _)| it) {
            leave(&mut self.layer7.naming, &credential, key);
        }
        let completed = self.layer7.get(key).map(completed);
        for (credential, companion) in completed.into_iter().flatten() {
            leave(&mut self.layer7.completed, &credential, key);
            leave(&mut self.layer7.completing, &companion, key);
        }
        let spec = self.layer7.get(key).map(|it| it.spec.clone());
        for label in spec.iter().flat_map(|it| asked_labels(it)) {
            leave(&mut self.layer7.asking, &label, key);
        }
    }
}

/// The Secrets that a DestinationRule names, each with its companion.
fn completed(policy: &Layer7) -> Vec<(ObjectKey, ObjectKey)> {
    let rule = matches!(&*policy.spec, Spec::Destination(_));
    let named = policy.credentials.keys().filter(|_| rule);
    let pair = |key: &ObjectKey| Some((key.clone(), credential::companion(key)?));
    named.filter_map(pair).collect()
}

/// The first of each set of labels that a policy asks clients for.
fn asked_labels(spec: &Spec) -> Vec<(String, String)> {
    let Spec::Virtual(spec) = spec else {
        return Vec::new();
    };
    let first = |it: &Labels| it.first_key_value().map(|(k, v)| (k.clone(), v.clone()));
    virtual_service::asked(spec).filter_map(first).collect()
}

impl World {
    /// An object of layer 7 as it is now.
    pub(in crate::world) fn set_layer7(&mut self, object: &Object, dirty: &mut BTreeSet<Builder>) {
        let read = Layer7::read(object, &self.reading, &self.cluster.domain);
        if let Some(read) = read {
            self.put_layer7(&object.key(), Some(read), dirty);
        }
    }

    pub(in crate::world) fn put_layer7(
        &mut self,
        key: &ObjectKey,
        new: Option<Layer7>,
        dirty: &mut BTreeSet<Builder>,
    ) {
        if self.objects.layer7.get(key) == new.as_ref() {
            return;
        }
        self.leave(key, dirty);
        match new {
            Some(new) => self.objects.layer7.all.insert(key.clone(), new),
            None => self.objects.layer7.all.remove(key),
        };
        self.enter(key, dirty);
    }

    /// Marks who depends on a policy of layer 7 as it is now: itself, and the services towards which it says what
    /// is done.
    pub(in crate::world) fn touch_layer7(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        let Some(policy) = self.objects.layer7.get(key) else {
            return;
        };
        mark(dirty, [key.clone()]);
        mark(dirty, policy.credentials.keys().cloned());
        match &*policy.spec {
            Spec::Destination(_) => {
                for host in &policy.hosts {
                    mark_towards(dirty, self.objects.hosts.having(host).cloned());
                }
            }
            Spec::BackendTls(_) | Spec::BackendTraffic(_) => {
                let targets = policy.targets.iter();
                mark_towards(dirty, targets.filter_map(|it| it.object.clone()));
            }
            Spec::Virtual(_) => self.touch_led_to(key, dirty),
            _ => {}
        }
    }

    /// Marks the services that an object leads to, if something may be said about what is done towards them.
    pub(in crate::world) fn touch_led_to(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        if self.objects.layer7.says_nothing_towards() {
            return;
        }
        for reference in self.objects.references.of(key) {
            match reference {
                Reference::Object(it) if is_service(it) => mark_towards(dirty, [it.clone()]),
                Reference::Host(host) => {
                    mark_towards(dirty, self.objects.hosts.having(host).cloned());
                }
                _ => {}
            }
        }
    }

    /// Marks the services that a workload serves, if they tell workloads apart by labels, those that compare labels with
    /// its own if it is a waypoint's, and who asks for its labels of clients.
    pub(in crate::world) fn touch_labelled(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        let pod = self.objects.pods.get(key).map(|it| &it.labels);
        let entry = self.objects.workload_entries.get(key).map(|it| &it.labels);
        let Some(labels) = pod.or(entry) else { return };
        let asking = &self.objects.layer7.asking;
        if !asking.is_empty() {
            let labels = labels.iter().map(|(k, v)| (k.clone(), v.clone()));
            let asking = labels.filter_map(|it| asking.get(&it)).flatten();
            mark(dirty, asking.cloned());
        }
        if self.objects.layer7.says_nothing_towards() {
            return;
        }
        let services = self
            .objects
            .service_selectors
            .selecting(&key.namespace, labels);
        let divided = services.into_iter();
        let divided = divided.filter(|it| self.has_rule(it, backend::tells_apart));
        mark_towards(dirty, divided.cloned());
        if labels.contains_key(GATEWAY_NAME) && self.objects.layer7.compares_labels() {
            let (services, entries) = (&self.objects.services, &self.objects.service_entries);
            let all = services.keys().chain(entries.keys());
            let comparing = all.filter(|it| self.has_rule(it, backend::compares));
            mark_towards(dirty, comparing.cloned());
        }
    }

    /// Whether such a rule may hold for a service.
    fn has_rule(&self, service: &ObjectKey, is_one: fn(&DestinationRuleSpec) -> bool) -> bool {
        let mut services = self.service_refs(service).into_iter();
        services.any(|it| {
            let mut rules = self.objects.layer7.rules_for(&it.hostname).into_iter();
            rules.any(|rule| matches!(&*rule.spec, Spec::Destination(it) if is_one(it)))
        })
    }

    /// What follows from who is dirty already, the others' references followed: VirtualServices of hosts that begin
    /// with `*`, what is attached to routes, and the services that routes lead to.
    pub(in crate::world) fn mark_layer7(&self, dirty: &mut BTreeSet<Builder>) {
        let keys: Vec<ObjectKey> = dirty
            .iter()
            .filter_map(|builder| match builder {
                Builder::Object(key) => Some(key.clone()),
                _ => None,
            })
            .collect();
        if keys.iter().any(is_service) {
            let wild = self.objects.layer7.wild.iter();
            let wild = wild.filter(|it| it.kind == Kind::VirtualService);
            mark(dirty, wild.cloned());
        }
        let towards = !self.objects.layer7.says_nothing_towards();
        // What was said while there was something to say goes with the last of it.
        let was_said = |it: &ObjectKey| self.made.contains_key(&Builder::Towards(it.clone()));
        let services = keys.iter().filter(|it| is_service(it));
        let services = services.filter(|it| towards || was_said(it));
        mark_towards(dirty, services.cloned());
        for key in &keys {
            self.touch_having_host(key, dirty);
            if is_route(key) {
                self.touch_referring(&Reference::Object(key.clone()), dirty);
            }
        }
        let routes = dirty.iter().filter_map(|builder| match builder {
            Builder::Object(key) if is_route(key) => Some(key.clone()),
            _ => None,
        });
        for key in routes.collect::<Vec<_>>() {
            self.touch_led_to(&key, dirty);
        }
        self.mark_saying_towards(dirty);
        self.mark_credentials(dirty);
    }

    /// Policies of Gateway API say where they are in force.
    fn mark_saying_towards(&self, dirty: &mut BTreeSet<Builder>) {
        let services = dirty.iter().filter_map(|builder| match builder {
            Builder::Towards(key) => Some(Reference::Object(key.clone())),
            _ => None,
        });
        for service in services.collect::<Vec<_>>() {
            let attached = self.objects.references.to(&service);
            let saying = attached.filter(|it| self.objects.layer7.towards.contains(*it));
            mark(dirty, saying.cloned());
        }
    }

    /// Who refers to a service by its host: also where it stands matters to it.
    fn touch_having_host(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        if let Some(service) = self.objects.services.get(key) {
            self.touch_host(&service.hostname, dirty);
        } else if let Some(entry) = self.objects.service_entries.get(key) {
            for host in &entry.hosts {
                self.touch_host(host, dirty);
            }
        }
    }

    /// Puts what refuses into the place of a RequestAuthentication or a limit that cannot be read.
    pub(in crate::world) fn close_layer7(
        &mut self,
        key: &ObjectKey,
        aim: &Aim,
        why: &str,
        dirty: &mut BTreeSet<Builder>,
    ) {
        let closed = Layer7::closed(key, aim, why, &self.reading);
        self.put_layer7(key, Some(closed), dirty);
    }
}

fn mark_towards(dirty: &mut BTreeSet<Builder>, services: impl IntoIterator<Item = ObjectKey>) {
    dirty.extend(services.into_iter().map(Builder::Towards));
}

fn is_service(key: &ObjectKey) -> bool {
    matches!(key.kind, Kind::Service | Kind::ServiceEntry)
}

fn is_route(key: &ObjectKey) -> bool {
    matches!(
        key.kind,
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute | Kind::VirtualService
    )
}
