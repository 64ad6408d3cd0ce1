//! What is done towards a service, told to every waypoint that may send there: the ones in front of it, and those
//! whose routes lead to it.
//!
//! 1. which waypoints                                                 ([`World::reaching`])
//! 2. the DestinationRules that hold, as each waypoint's namespace sees it
//! 3. over them what policies of Gateway API say: TLS, retries, sessions
//! 4. the workloads of each subset, by uid

use std::collections::{BTreeMap, BTreeSet};

use api::k8s::backends::{BackendTlsPolicySpec, CaRef};
use api::k8s::objects::{Kind, ObjectKey};
use api::waypoint as wire;
use serde_json::json;
use wire::resource::Kind as Told;

use crate::status::{Condition, Desired, Parent};
use crate::translate::Labels;
use crate::translate::credential::{self, Use};
use crate::translate::layer7::backend::choose::{Candidate, applying};
use crate::translate::layer7::backend::{self, Alike, Policy, Whole};
use crate::translate::layer7::gateway_backend::{self, Authorities, NoCa};
use crate::translate::layer7::{Layer7, Spec};
use crate::translate::resource::Resource;
use crate::world::references::Reference;
use crate::world::{Output, World};

/// What policies of Gateway API say, for a port (0: all that are not named).
#[derive(Default)]
struct Over<'a> {
    tls: Vec<(u32, wire::ClientTls, &'a Layer7)>,
    traffic: Option<(Option<wire::RetryBudget>, Option<wire::Session>, &'a Layer7)>,
}

impl World {
    /// What waypoints are told to do towards a Service or ServiceEntry.
    pub(in crate::world) fn build_towards(&self, key: &ObjectKey) -> Output {
        let mut resources = Vec::new();
        if self.objects.layer7.says_nothing_towards() {
            return Output::default();
        }
        let services = self.service_refs(key);
        let over = self.over(key);
        for gateway in self.reaching(key) {
            for service in &services {
                let rules = self.objects.layer7.rules_for(&service.hostname);
                self.told_towards(key, &gateway, service, &rules, &over, &mut resources);
            }
        }
        Output {
            resources,
            ..Output::default()
        }
    }

    /// The waypoints that may send to a service.
    pub(super) fn reaching(&self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        self.led_to(key, &|_| true)
    }

    /// Those of them that may have keys for it: it is behind them, or a route leads there that may. A VirtualService needs
    /// nobody's leave to send elsewhere, so of those only the ones of its own namespace count.
    pub(super) fn trusted_with(&self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        self.led_to(key, &|from| {
            let is_route = self.objects.routes.contains_key(from);
            from.namespace == key.namespace || is_route && self.objects.permits(from, key)
        })
    }

    /// The waypoints in front of a service, and of those who lead to it those that count.
    fn led_to(&self, key: &ObjectKey, counts: &dyn Fn(&ObjectKey) -> bool) -> BTreeSet<ObjectKey> {
        let mut gateways = self.in_front(key);
        let hosts = self.service_refs(key).into_iter();
        let hosts = hosts.map(|it| Reference::Host(it.hostname.into()));
        for reference in hosts.chain([Reference::Object(key.clone())]) {
            for from in self.objects.references.to(&reference) {
                if !counts(from) {
                    continue;
                }
                if let Some(policy) = self.objects.layer7.get(from) {
                    if let Spec::Virtual(spec) = &*policy.spec {
                        gateways.extend(self.gateways_of_hosts(policy, spec));
                    }
                } else {
                    gateways.extend(self.gateways_of_route(from));
                }
            }
        }
        gateways
    }

    fn told_towards(
        &self,
        key: &ObjectKey,
        gateway: &ObjectKey,
        service: &wire::ServiceRef,
        rules: &[&Layer7],
        over: &Over<'_>,
        resources: &mut Vec<Resource>,
    ) {
        let holding = self.holding(gateway, service, rules);
        let specs = holding.iter().filter_map(|rule| match &*rule.spec {
            Spec::Destination(spec) => Some(&**spec),
            _ => None,
        });
        let whole = Whole::of(specs);
        let namespace = holding.first().map_or("", |it| &*it.key.namespace);
        let alike = |label: &str, value: Option<&str>| self.alike(key, gateway, label, value);
        let mut policies = whole.policies(namespace, &alike);
        lay_over(&whole, namespace, &alike, over, &mut policies);
        let first = holding.first().copied();
        let tls = over.tls.first().map(|(_, _, it)| *it);
        let Some(source) = first.or(tls).or(over.traffic.as_ref().map(|it| it.2)) else {
            return;
        };
        let mut tell = |rule: &str, told| {
            let place = format!("{}/{}", service.namespace, service.hostname);
            let resource = source.resource(&format!("{place}{rule}"), 0, told);
            resources.push(Resource::waypoint(gateway, &resource));
        };
        for policy in policies {
            let rule = rule(policy.port, &policy.subset);
            let service = wire::ServiceRef {
                port: policy.port,
                ..service.clone()
            };
            let told = wire::BackendPolicy {
                service: Some(service),
                subset: policy.subset,
                ..policy.policy
            };
            tell(&rule, Told::BackendPolicy(told));
        }
        for subset in whole.subsets() {
            let told = wire::Subset {
                service: Some(service.clone()),
                name: subset.name.clone(),
                workloads: self.workloads_with(key, &subset.labels),
            };
            tell(&format!("/subset/{}", subset.name), Told::Subset(told));
        }
    }

    /// The DestinationRules that hold for a service at a waypoint, oldest first.
    pub(super) fn holding<'a>(
        &self,
        gateway: &ObjectKey,
        service: &wire::ServiceRef,
        rules: &[&'a Layer7],
    ) -> Vec<&'a Layer7> {
        let candidate = |rule: &&'a Layer7| match &*rule.spec {
            Spec::Destination(spec) => Some((
                Candidate {
                    namespace: &rule.key.namespace,
                    host: rule.hosts.first()?,
                    export_to: &spec.export_to,
                },
                *rule,
            )),
            _ => None,
        };
        let candidates: Vec<(Candidate<'a>, &'a Layer7)> =
            rules.iter().filter_map(candidate).collect();
        let holding = applying(
            &candidates,
            &service.hostname,
            &service.namespace,
            &gateway.namespace,
            &self.settings.root_namespace,
        );
        holding.into_iter().copied().collect()
    }

    /// The workloads of a service that have these labels, by uid, sorted.
    fn workloads_with(&self, key: &ObjectKey, labels: &Labels) -> Vec<String> {
        self.workloads_that(key, labels, |_| true)
    }

    /// Those that have a label as the pods of a waypoint have it, or with that value. Who has it not is like who has it
    /// without a value, as Istio has it.
    fn alike(
        &self,
        key: &ObjectKey,
        gateway: &ObjectKey,
        label: &str,
        value: Option<&str>,
    ) -> Vec<String> {
        let value = value.unwrap_or_else(|| self.own_label(gateway, label));
        if !value.is_empty() {
            let labels = Labels::from([(label.to_owned(), value.to_owned())]);
            return self.workloads_with(key, &labels);
        }
        self.workloads_that(key, &Labels::new(), |labels| {
            labels.get(label).is_none_or(String::is_empty)
        })
    }

    /// A label's value of a waypoint's pods. While they are replaced some have it otherwise; then the first by name
    /// decides for all.
    fn own_label(&self, gateway: &ObjectKey, label: &str) -> &str {
        let pods = self.objects.pods_of(gateway);
        let mut pods = pods.iter().filter_map(|it| self.objects.pods.get(it));
        let value = pods.next().and_then(|it| it.labels.get(label));
        value.map_or("", String::as_str)
    }

    /// Those that have `labels`, and whose labels fit.
    fn workloads_that(
        &self,
        key: &ObjectKey,
        labels: &Labels,
        fit: impl Fn(&Labels) -> bool,
    ) -> Vec<String> {
        let service = self.objects.services.get(key).map(|it| &it.selector);
        let entry = self.objects.service_entries.get(key);
        let selector = service.or(entry.map(|it| &it.selector));
        let has_all = |own: &Labels| {
            let mut wanted = labels.iter();
            wanted.all(|(label, value)| own.get(label) == Some(value)) && fit(own)
        };
        let mut uids = entry.map_or_else(Vec::new, |it| it.endpoints_with(&self.cluster, has_all));
        let mut selected = BTreeSet::new();
        if let Some(Some(selector)) = selector {
            let mut both = selector.clone();
            let contradicts = labels.iter().any(|(label, value)| {
                let other = both.insert(label.clone(), value.clone());
                other.is_some_and(|other| other != *value)
            });
            if !contradicts {
                let workloads = &self.objects.workloads;
                workloads.selected(&key.namespace, &both, &mut selected);
            }
        }
        selected.retain(|it| {
            let pod = self.objects.pods.get(it).map(|it| &it.labels);
            let entry = self.objects.workload_entries.get(it).map(|it| &it.labels);
            pod.or(entry).is_some_and(&fit)
        });
        uids.extend(selected.iter().filter_map(|it| self.uid_of(it)));
        uids.sort_unstable();
        uids
    }

    /// The uid of a Pod that has an address, or of a WorkloadEntry.
    pub(super) fn uid_of(&self, key: &ObjectKey) -> Option<String> {
        match key.kind {
            Kind::Pod => {
                let pod = self.objects.pods.get(key)?;
                pod.has_address().then(|| pod.resource_name(&self.cluster))
            }
            _ => {
                let entry = self.objects.workload_entries.get(key)?;
                Some(entry.resource_name(&self.cluster))
            }
        }
    }

    /// What policies of Gateway API say about a service; of two that say the same the older counts.
    fn over(&self, key: &ObjectKey) -> Over<'_> {
        let mut over = Over::default();
        let itself = Reference::Object(key.clone());
        let attached = self.objects.references.to(&itself);
        let policies = attached.filter_map(|it| self.objects.layer7.get(it));
        let mut policies: Vec<&Layer7> = policies.collect();
        policies.sort_by_key(|it| (it.created, it.key.clone()));
        for policy in policies {
            match &*policy.spec {
                Spec::BackendTls(spec) => {
                    let tls = match self.believed(policy, spec) {
                        Ok(all) => gateway_backend::tls(spec, all.wire_key(&own_key(policy))),
                        Err(why) => gateway_backend::no_tls(&why),
                    };
                    // Others of its targets may have the same name, and be of another kind.
                    let targets = policy.targets.iter().zip(&spec.target_refs);
                    let here = targets.filter(|(it, _)| it.object.as_ref() == Some(key));
                    for (_, target) in here {
                        let port = self.port_named(key, target.section_name.as_deref());
                        let taken = |port: u32| over.tls.iter().any(|(it, _, _)| *it == port);
                        if let Some(port) = port.filter(|it| !taken(*it)) {
                            over.tls.push((port, tls.clone(), policy));
                        }
                    }
                }
                Spec::BackendTraffic(spec) if over.traffic.is_none() => {
                    let traffic = gateway_backend::traffic(spec).ok();
                    over.traffic = traffic.map(|(budget, session)| (budget, session, policy));
                }
                _ => {}
            }
        }
        over
    }

    /// The number of a port, 0 if none is named; none if there is none of that name.
    fn port_named(&self, key: &ObjectKey, name: Option<&str>) -> Option<u32> {
        let Some(name) = name else { return Some(0) };
        let service = self.objects.services.get(key).map(|it| &it.ports);
        let entry = || self.objects.service_entries.get(key).map(|it| &it.ports);
        let mut ports = service.or_else(entry)?.iter();
        ports.find(|it| it.name == name).map(|it| it.number)
    }

    /// Whom a policy believes.
    fn believed(&self, policy: &Layer7, spec: &BackendTlsPolicySpec) -> Result<Authorities, NoCa> {
        gateway_backend::authorities(spec, &|it: &CaRef| {
            let key = credential::authority(it, &policy.key.namespace)?;
            Some(match self.lacks(&key, Use::Authority) {
                None => Ok(key),
                Some(text) => Err(NoCa {
                    reason: "InvalidCACertificateRef",
                    text,
                }),
            })
        })
    }

    /// The roots of several objects that a policy believes, told as one where it is in force.
    fn told_authorities(&self, policy: &Layer7) -> Vec<Resource> {
        let Spec::BackendTls(spec) = &*policy.spec else {
            return Vec::new();
        };
        let Ok(all) = self.believed(policy, spec) else {
            return Vec::new();
        };
        if all.found.len() < 2 {
            return Vec::new();
        }
        let resource = wire::Resource {
            key: all.wire_key(&own_key(policy)),
            kind: Some(Told::Secret(self.authorities(&all.found))),
            ..policy.resource("", 0, Told::Secret(wire::Secret::default()))
        };
        Resource::waypoints(&self.told_of_policy(policy, Use::Authority), &resource)
    }

    /// What became of a policy of Gateway API at each waypoint that may send to what it is for.
    fn said_of_ancestors(&self, policy: &Layer7) -> Desired {
        let mut ancestors: BTreeMap<ObjectKey, Vec<Condition>> = BTreeMap::new();
        for (at, target) in policy.targets.iter().enumerate() {
            let Some(service) = &target.object else {
                continue;
            };
            let conditions = self.conditions_of(policy, at, service);
            for gateway in self.reaching(service) {
                ancestors
                    .entry(gateway)
                    .and_modify(|said| add_up(said, &conditions))
                    .or_insert_with(|| conditions.clone());
            }
        }
        let parent = |(gateway, conditions): (ObjectKey, _)| Parent {
            reference: json!({
                "group": "gateway.networking.k8s.io",
                "kind": "Gateway",
                "namespace": &*gateway.namespace,
                "name": &*gateway.name,
            }),
            controller: "istio.io/mesh-controller",
            conditions,
        };
        Desired {
            generation: policy.generation,
            parents: ancestors
                .into_iter()
                .map(parent)
                .take(MOST_ANCESTORS)
                .collect(),
            ..Desired::default()
        }
    }

    fn conditions_of(&self, policy: &Layer7, at: usize, service: &ObjectKey) -> Vec<Condition> {
        let condition = |r#type, found: Result<(), (&str, String)>, good: &str| Condition {
            r#type,
            status: found.is_ok(),
            reason: found.as_ref().err().map_or(good, |it| it.0).to_owned(),
            message: found.err().map_or_else(|| "in force".to_owned(), |it| it.1),
        };
        let older = self.same_before(policy, at, service);
        let older = older.map(|it| {
            (
                "Conflicted",
                format!("{} is older and says the same of {service}", it.key),
            )
        });
        match &*policy.spec {
            Spec::BackendTls(spec) => {
                let named = section(policy, at);
                let nowhere = named.filter(|it| self.port_named(service, Some(*it)).is_none());
                let nowhere = nowhere.map(|name| {
                    let text =
                        format!("{service} has no port named {name}: no TLS because of this");
                    ("TargetNotFound", text)
                });
                let believed = self.believed(policy, spec);
                let refused = believed.as_ref().err();
                let refused = refused.map(|it| ("NoValidCACertificate", it.text.clone()));
                let resolved = match believed {
                    Err(it) => Err((it.reason, it.text)),
                    Ok(all) => unused(all.missing).map_or(Ok(()), Err),
                };
                vec![
                    condition(
                        "Accepted",
                        nowhere.or(older).or(refused).map_or(Ok(()), Err),
                        "Accepted",
                    ),
                    condition("ResolvedRefs", resolved, "ResolvedRefs"),
                ]
            }
            Spec::BackendTraffic(spec) => {
                let invalid = gateway_backend::traffic(spec).err();
                let invalid = invalid.map(|why| ("Invalid", why));
                vec![condition(
                    "Accepted",
                    older.or(invalid).map_or(Ok(()), Err),
                    "Accepted",
                )]
            }
            _ => Vec::new(),
        }
    }

    /// An older policy of that kind for the same service, and the same port of it.
    fn same_before(&self, policy: &Layer7, at: usize, service: &ObjectKey) -> Option<&Layer7> {
        let itself = Reference::Object(service.clone());
        let others = self.objects.references.to(&itself);
        let others = others.filter_map(|it| self.objects.layer7.get(it));
        let older = others.filter(|it| {
            it.key.kind == policy.key.kind && (it.created, &it.key) < (policy.created, &policy.key)
        });
        let section = section(policy, at);
        let mut same = older.filter(|it| {
            let mut targets = it.targets.iter().enumerate();
            targets.any(|(at, to)| {
                to.object.as_ref() == Some(service) && self::section(it, at) == section
            })
        });
        same.next()
    }

    /// What is said of a policy towards services; it is told with each of them.
    pub(super) fn backend_policy(&self, policy: &Layer7) -> Output {
        let faults = match &*policy.spec {
            Spec::Destination(spec) => {
                let mut faults = backend::faults(spec);
                faults.extend(self.lacking(policy));
                faults
            }
            Spec::BackendTls(spec) => match self.believed(policy, spec) {
                Err(it) => vec![it.text],
                Ok(all) => all.missing.into_iter().map(|it| it.text).collect(),
            },
            Spec::BackendTraffic(spec) => {
                gateway_backend::traffic(spec).err().into_iter().collect()
            }
            _ => Vec::new(),
        };
        let said = match &*policy.spec {
            Spec::Destination(_) => Desired {
                generation: policy.generation,
                conditions: partly(&faults).into_iter().collect(),
                ..Desired::default()
            },
            _ => self.said_of_ancestors(policy),
        };
        Output {
            resources: self.told_authorities(policy),
            remarks: faults,
            status: Some(said),
            ..Output::default()
        }
    }
}

/// To what is said of one target, what is said of another behind the same waypoint: all that is not in force.
fn add_up(said: &mut [Condition], other: &[Condition]) {
    for (own, other) in said.iter_mut().zip(other) {
        if other.status || own.message == other.message {
            continue;
        }
        if own.status {
            own.clone_from(other);
        } else {
            own.message += "; ";
            own.message += &other.message;
        }
    }
}

/// Under what a policy tells what is its own.
fn own_key(policy: &Layer7) -> String {
    let kind = policy.key.kind.name().to_ascii_lowercase();
    format!("{kind}/{}", super::shown(&policy.key))
}

/// Those of several authorities that cannot be used, while others can.
fn unused(missing: Vec<NoCa>) -> Option<(&'static str, String)> {
    let reason = missing.first()?.reason;
    let texts: Vec<String> = missing.into_iter().map(|it| it.text).collect();
    Some((
        reason,
        format!("{}; the others are in force", texts.join("; ")),
    ))
}

/// Only what has no effect is said: most DestinationRules are also for others.
fn partly(faults: &[String]) -> Option<Condition> {
    (!faults.is_empty()).then(|| Condition {
        r#type: "ambit.io/Accepted",
        status: false,
        reason: "PartiallyInvalid".to_owned(),
        message: faults.join("; "),
    })
}

/// The name of a policy among those of its object for a service.
fn rule(port: u32, subset: &str) -> String {
    let mut rule = format!(":{port}");
    if !subset.is_empty() {
        rule.push('/');
        rule.push_str(subset);
    }
    rule
}

/// What policies of Gateway API say goes over what DestinationRules do.
fn lay_over(
    whole: &Whole<'_>,
    namespace: &str,
    alike: &Alike<'_>,
    over: &Over<'_>,
    policies: &mut Vec<Policy>,
) {
    let said = over.tls.iter().map(|(port, _, _)| *port);
    let all = over.traffic.iter().map(|_| 0);
    for port in said.chain(all) {
        whole.fill(port, namespace, alike, policies);
    }
    for policy in policies {
        let named = |port: u32| over.tls.iter().find(|(it, _, _)| *it == port);
        if let Some((_, tls, _)) = named(policy.port).or(named(0)) {
            policy.policy.tls = Some(tls.clone());
        }
        if let Some((budget, session, _)) = &over.traffic {
            let own = &mut policy.policy;
            own.retry_budget = budget.or(own.retry_budget);
            own.session = session.clone().or(own.session.take());
        }
    }
}

/// The port that the target of that number names.
fn section(policy: &Layer7, at: usize) -> Option<&str> {
    let targets = match &*policy.spec {
        Spec::BackendTls(it) => &it.target_refs,
        Spec::BackendTraffic(it) => &it.target_refs,
        _ => return None,
    };
    targets.get(at)?.section_name.as_deref()
}

/// More have no room in a status.
const MOST_ANCESTORS: usize = 16;
