//! How services are called: all that is said towards each, put together once for each port and subset.
//!
//! Policies are laid one over the other, the weaker first: for all ports and no subset, for the port, for the subset,
//! for the subset and the port; at last, in the same order, those of the client's namespace. Each field of a policy
//! that is set stands in the place of what was below. Of equals the older wins.
//!
//! What is remembered of endpoints and what is on its way goes on when a policy is another.

use std::collections::HashMap;
use std::sync::Arc;

use api::waypoint as wire;
use arc_swap::ArcSwap;
use mesh::NamespacedHost;
use wire::resource::Kind;

use crate::balance::{Group, Policy};
use crate::limit::Gates;
use crate::retry::Budget;
use crate::session::Session;
use crate::state::{Held, Resources};
use crate::upstream::Tls;

/// How all services are called.
#[derive(Debug, Default)]
pub struct Calls {
    /// Those of which something is said.
    said: imbl::HashMap<NamespacedHost, Arc<Towards>>,
    /// The others, made when they are first called. Shared by all versions.
    others: Arc<ArcSwap<imbl::HashMap<NamespacedHost, Arc<Towards>>>>,
}

/// How one service is called.
#[derive(Debug, Default)]
pub struct Towards {
    /// The weaker first.
    policies: Box<[Arc<Held>]>,
    subsets: HashMap<Box<str>, Vec<String>>,
    /// Keys and roots that policies name.
    secrets: HashMap<String, Arc<Held>>,
    backends: ArcSwap<imbl::HashMap<Key, Arc<Backend>>>,
}

/// One port of a service, or of a subset of it, as it is called.
#[derive(Debug)]
pub struct Backend {
    /// Its endpoints.
    pub group: Arc<Group>,
    /// How much may be on its way to it.
    pub gates: Arc<Gates>,
    /// Whether TLS is spoken to it, and how.
    pub tls: Option<wire::ClientTls>,
    /// The same, ready to be spoken.
    pub secured: Option<Arc<Tls>>,
    /// PROXY protocol to be spoken to it: 0 none, 1, 2.
    pub proxy_protocol: u32,
    /// How clients stay with an endpoint.
    pub session: Option<Session>,
    /// How many of its requests may be retries.
    pub budget: Option<Arc<Budget>>,
    /// Why it cannot be called, if something said of it cannot be understood: 503.
    pub broken: Option<String>,
    merged: wire::BackendPolicy,
    subset: Option<Vec<String>>,
}

/// A subset that is nowhere described: 503.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the service has no subset {0}")]
pub struct NoSubset(pub String);

/// Port, subset, and what is known of it.
pub type Called = (u16, Box<str>, Arc<Backend>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    port: u16,
    /// "" = all of the service.
    subset: Box<str>,
    /// Client's namespace, if it has policies of its own.
    consumer: Option<Box<str>>,
}

impl Calls {
    /// How a service is called.
    pub fn towards(&self, service: &NamespacedHost) -> Arc<Towards> {
        if let Some(found) = self.said.get(service) {
            return found.clone();
        }
        if let Some(found) = self.others.load().get(service) {
            return found.clone();
        }
        let fresh = Arc::new(Towards::default());
        let all = self.others.rcu(|others| {
            let mut others = imbl::HashMap::clone(others);
            if others.len() >= MOST {
                others.clear(); // what is remembered is a help, and nothing else
            }
            others.entry(service.clone()).or_insert(fresh.clone());
            others
        });
        all.get(service).cloned().unwrap_or(fresh)
    }

    /// All that were called.
    pub fn shown(&self) -> Vec<(NamespacedHost, Vec<Called>)> {
        let others = self.others.load_full();
        let fresh = others
            .iter()
            .filter(|(name, _)| !self.said.contains_key(*name));
        let all = self.said.iter().chain(fresh);
        all.map(|(name, towards)| {
            let backends = towards.backends.load_full();
            let backends = backends.iter();
            let of = |(key, backend): (&Key, &Arc<Backend>)| {
                (key.port, key.subset.clone(), backend.clone())
            };
            (name.clone(), backends.map(of).collect())
        })
        .collect()
    }

    /// The next version: `touched` are made anew, all of them if that is None.
    pub(super) fn compile<'a>(
        &self,
        said: &Resources,
        touched: Option<impl Iterator<Item = &'a NamespacedHost>>,
    ) -> Self {
        let mut next = Self {
            said: imbl::HashMap::new(),
            others: self.others.clone(),
        };
        let make = |service: &NamespacedHost, into: &mut imbl::HashMap<_, Arc<Towards>>| {
            let held = self.said.get(service).cloned();
            let held = held.or_else(|| self.others.load().get(service).cloned());
            let towards = Towards::compile(said, service, held.as_deref());
            if let Some(towards) = towards {
                into.insert(service.clone(), Arc::new(towards));
            } else if let Some(before) = into.remove(service) {
                before.lift();
            }
        };
        match touched {
            Some(touched) => {
                next.said = self.said.clone();
                touched.for_each(|service| make(service, &mut next.said));
            }
            None => {
                for service in said.called() {
                    make(service, &mut next.said);
                }
                let before = self.said.iter();
                let gone = before.filter(|(name, _)| !next.said.contains_key(*name));
                gone.for_each(|(_, towards)| towards.lift());
            }
        }
        next
    }
}

impl Towards {
    /// None if nothing is said.
    fn compile(said: &Resources, service: &NamespacedHost, before: Option<&Self>) -> Option<Self> {
        let (mut policies, mut subsets) = (Vec::new(), HashMap::new());
        let mut secrets = HashMap::new();
        for held in said.towards(service) {
            match &held.resource.kind {
                Some(Kind::BackendPolicy(policy)) => {
                    let tls = policy.tls.iter();
                    for key in tls.flat_map(|tls| [&tls.ca, &tls.certificate]) {
                        let secret = said.get(key).filter(|secret| secret.good);
                        secrets.extend(secret.map(|secret| (key.clone(), secret.clone())));
                    }
                    policies.push(held.clone());
                }
                Some(Kind::Subset(subset)) => {
                    subsets.insert(Box::from(&*subset.name), subset.workloads.clone());
                }
                _ => {}
            }
        }
        if policies.is_empty() && subsets.is_empty() {
            return None;
        }
        // Of equals the last one stays: the oldest.
        policies.sort_by_cached_key(|held| {
            let origin = held.resource.origin.clone().unwrap_or_default();
            std::cmp::Reverse((
                origin.created,
                origin.namespace,
                origin.name,
                held.key.clone(),
            ))
        });
        let next = Self {
            policies: policies.into(),
            subsets,
            secrets,
            backends: ArcSwap::default(),
        };
        let old = before.map(|before| before.backends.load_full());
        let kept = old
            .iter()
            .flat_map(|old| old.iter())
            .filter_map(|(key, old)| match next.make(key, Some(old)) {
                Ok(backend) => Some((key.clone(), backend)),
                Err(NoSubset(_)) => {
                    old.gates.lift();
                    None
                }
            });
        next.backends.store(Arc::new(kept.collect()));
        Some(next)
    }

    /// Nothing is said of it any more. Its gates may be those of the version from before anything was, which is used again, and
    /// requests may wait at them.
    fn lift(&self) {
        for backend in self.backends.load().values() {
            backend.gates.lift();
        }
    }

    /// One port of it, and of the subset if that is not "", for a client of that namespace.
    ///
    /// # Errors
    /// When there is no such subset.
    pub fn backend(
        &self,
        port: u16,
        subset: &str,
        client: Option<&str>,
    ) -> Result<Arc<Backend>, NoSubset> {
        let consumer = client.filter(|client| self.has_consumer(client));
        let key = Key {
            port,
            subset: subset.into(),
            consumer: consumer.map(Box::from),
        };
        if let Some(found) = self.backends.load().get(&key) {
            return Ok(found.clone());
        }
        let fresh = self.make(&key, None)?;
        let all = self.backends.rcu(|backends| {
            let mut backends = imbl::HashMap::clone(backends);
            if backends.len() < MOST {
                backends.entry(key.clone()).or_insert(fresh.clone());
            }
            backends
        });
        Ok(all.get(&key).cloned().unwrap_or(fresh))
    }

    fn has_consumer(&self, client: &str) -> bool {
        let mut policies = self.policies.iter().filter_map(|held| policy(held));
        policies.any(|policy| policy.consumer_namespace == client)
    }

    fn make(&self, key: &Key, before: Option<&Arc<Backend>>) -> Result<Arc<Backend>, NoSubset> {
        let subset = match &*key.subset {
            "" => None,
            name => {
                let found = self.subsets.get(name).cloned();
                Some(found.ok_or_else(|| NoSubset(name.to_owned()))?)
            }
        };
        let (merged, broken) = self.merged(key);
        let secured = self.secured(merged.tls.as_ref());
        let number = secured
            .as_ref()
            .ok()
            .and_then(|tls| Some(tls.as_ref()?.number()));
        if let Some(before) = before
            && before.merged == merged
            && before.secured.as_ref().map(|tls| tls.number()) == number
            && before.subset == subset
            && before.broken.is_some() == broken.is_some()
        {
            return Ok(before.clone());
        }
        let before = before.map(|before| &**before);
        let (secured, broken) = match secured {
            Ok(secured) => (secured, broken),
            Err(why) => (None, broken.or(Some(why))),
        };
        let mut backend = Backend::new(key.port, merged, subset, broken, before);
        backend.secured = secured.map(Arc::new);
        Ok(Arc::new(backend))
    }

    fn secured(&self, tls: Option<&wire::ClientTls>) -> Result<Option<Tls>, String> {
        let secret = |key: &str| match &self.secrets.get(key)?.resource.kind {
            Some(Kind::Secret(secret)) => Some(secret),
            _ => None,
        };
        tls.map_or(Ok(None), |tls| Tls::compile(tls, secret))
    }

    /// All that is said for it in one, and what of it cannot be understood.
    fn merged(&self, key: &Key) -> (wire::BackendPolicy, Option<String>) {
        let mut merged = wire::BackendPolicy::default();
        let mut broken = None;
        for (consumer, subset, port) in LAYERS {
            let fits = |policy: &wire::BackendPolicy| {
                let wanted = if port { u32::from(key.port) } else { 0 };
                policy.service.as_ref().map_or(0, |to| to.port) == wanted
                    && *policy.subset == *(if subset { &*key.subset } else { "" })
                    && match &key.consumer {
                        Some(namespace) if consumer => policy.consumer_namespace == **namespace,
                        _ => !consumer && policy.consumer_namespace.is_empty(),
                    }
            };
            if subset && key.subset.is_empty() {
                continue; // the same as without
            }
            let policies = self.policies.iter();
            let fitting = policies
                .filter_map(|held| Some((held, policy(held).filter(|policy| fits(policy))?)));
            for (held, policy) in fitting {
                if !held.good {
                    broken = Some(held.refused.as_deref().unwrap_or("unknown").to_owned());
                }
                lay(policy, &mut merged);
            }
        }
        (merged, broken)
    }
}

/// Which policies, from the weakest on: of the client's namespace, for the subset, for the port.
const LAYERS: [(bool, bool, bool); 8] = [
    (false, false, false),
    (false, false, true),
    (false, true, false),
    (false, true, true),
    (true, false, false),
    (true, false, true),
    (true, true, false),
    (true, true, true),
];

fn policy(held: &Held) -> Option<&wire::BackendPolicy> {
    match &held.resource.kind {
        Some(Kind::BackendPolicy(policy)) => Some(policy),
        _ => None,
    }
}

/// Every field that is set stands in the place of what was there.
fn lay(policy: &wire::BackendPolicy, over: &mut wire::BackendPolicy) {
    fn one<T: Clone>(from: &Option<T>, over: &mut Option<T>) {
        if from.is_some() {
            over.clone_from(from);
        }
    }
    one(&policy.load_balancer, &mut over.load_balancer);
    one(&policy.limits, &mut over.limits);
    one(&policy.outliers, &mut over.outliers);
    one(&policy.tls, &mut over.tls);
    one(&policy.retry_budget, &mut over.retry_budget);
    one(&policy.session, &mut over.session);
    if policy.proxy_protocol != 0 {
        over.proxy_protocol = policy.proxy_protocol;
    }
}

impl Backend {
    fn new(
        port: u16,
        merged: wire::BackendPolicy,
        subset: Option<Vec<String>>,
        broken: Option<String>,
        before: Option<&Self>,
    ) -> Self {
        let (policy, session) = (Policy::compile(&merged), session(&merged));
        let broken = broken.or_else(|| policy.as_ref().err().cloned());
        let broken = broken.or_else(|| session.as_ref().err().cloned());
        let policy = policy.unwrap_or_default();
        let limits = merged.limits.as_ref();
        let same_budget = before.filter(|before| before.merged.retry_budget == merged.retry_budget);
        Self {
            group: Arc::new(match before {
                Some(before) => before.group.succeeded_by(subset.clone(), policy),
                None => Group::new(port, subset.clone(), policy),
            }),
            gates: Arc::new(match before {
                Some(before) => before.gates.succeeded_by(limits),
                None => Gates::compile(limits),
            }),
            tls: merged.tls.clone(),
            secured: None,
            proxy_protocol: merged.proxy_protocol,
            session: session.ok().flatten(),
            budget: match same_budget {
                Some(before) => before.budget.clone(),
                None => merged
                    .retry_budget
                    .as_ref()
                    .map(Budget::compile)
                    .map(Arc::new),
            },
            broken,
            merged,
            subset,
        }
    }
}

fn session(merged: &wire::BackendPolicy) -> Result<Option<Session>, String> {
    merged.session.as_ref().map(Session::compile).transpose()
}

/// Whether a policy can be understood, by itself.
///
/// # Errors
/// Why not, for the person who wrote it.
pub(super) fn check(found: &wire::BackendPolicy) -> Result<(), String> {
    Policy::compile(found)?;
    session(found)?;
    match found.proxy_protocol {
        0..=2 => Ok(()),
        version => Err(format!("PROXY protocol {version} is not known")),
    }
}

/// Services that are called without anything being said of them; ports and subsets of one service.
const MOST: usize = 10_000;
