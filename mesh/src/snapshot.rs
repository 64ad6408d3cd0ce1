//! The whole mesh at one moment: immutable, cheap to clone, every lookup O(1) or O(log n).
//!
//! A snapshot is published whole and never changes, so a connection that loads one at its start
//! decides everything from the same state, and no lookup waits for a writer. The next snapshot
//! shares all but the changed parts with it (`change.rs` makes it).

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use imbl::{HashMap, OrdMap};
use ipnet::IpNet;

use crate::claims::{ByIp, Claims};
use crate::crowd::{ByPod, ByUid, Crowd};
use crate::endpoints::Endpoints;
use crate::names::{NamespacedHost, Network};
use crate::policy::Policy;
use crate::service::{HealthPolicy, Service};
use crate::workload::Workload;

/// The mesh at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(crate) workloads: Crowd<ByUid>,
    pub(crate) pods: Crowd<ByPod>,
    pub(crate) planes: HashMap<Network, Plane>,
    pub(crate) hosts: OrdMap<u64, Claims<Slot>>, // by `host_key`
    /// Those that are known by a host name instead of addresses, by its `host_key`.
    pub(crate) named: OrdMap<u64, Claims<Workload>>,
    pub(crate) policies: HashMap<Arc<str>, Arc<Policy>>,
    pub(crate) global_policies: Policies,
    pub(crate) namespace_policies: HashMap<Arc<str>, Policies>,
}

/// Policies in the order of their names, so that the first match is the same everywhere.
pub(crate) type Policies = OrdMap<Arc<str>, Arc<Policy>>;

/// Who holds which address on one network.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plane {
    pub(crate) workloads: ByIp<Workload>,
    /// Those on their node's network: which addresses are nodes'.
    pub(crate) on_nodes: ByIp<Workload>,
    pub(crate) vips: ByIp<Service>,
    pub(crate) ranges: OrdMap<IpNet, Claims<Service>>,
    /// How many ranges there are of each prefix length; lookups try only those, longest first.
    pub(crate) lengths_v4: OrdMap<u8, usize>,
    pub(crate) lengths_v6: OrdMap<u8, usize>,
}

/// A service and its endpoints; either may be known before the other.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) namespace: Arc<str>,
    pub(crate) host: Arc<str>,
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) endpoints: Endpoints,
}

/// What is another of a service than in an earlier snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceChange {
    /// Which.
    pub service: NamespacedHost,
    /// The service: it came, went, or says something else.
    pub itself: bool,
    /// One of its endpoints did.
    pub endpoints: bool,
}

impl Plane {
    /// Who claims ranges with this address in them, longest first.
    fn range_of(&self, ip: IpAddr) -> impl Iterator<Item = &Claims<Service>> {
        let lengths = match ip {
            IpAddr::V4(_) => &self.lengths_v4,
            IpAddr::V6(_) => &self.lengths_v6,
        };
        lengths.keys().rev().filter_map(move |length| {
            let range = IpNet::new(ip, *length).ok()?.trunc();
            self.ranges.get(&range)
        })
    }
}

impl Slot {
    pub(crate) fn is_empty(&self) -> bool {
        self.service.is_none() && self.endpoints.is_empty()
    }
}

impl Snapshot {
    /// The workload of that uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.of_uid(uid)
    }

    /// The workload that holds an address. Of several that claim it: a healthy one before others,
    /// then one in the mesh, then the lowest uid. Host network addresses are nobody's.
    pub fn workload_at(&self, network: &Network, ip: IpAddr) -> Option<&Arc<Workload>> {
        Some(self.planes.get(network)?.workloads.get(ip)?.first())
    }

    /// Whether an address is anybody's: of a service, visible or not, a workload, or a node.
    pub fn is_anybody_at(&self, network: &Network, ip: IpAddr) -> bool {
        let Some(plane) = self.planes.get(network) else {
            return false;
        };
        plane.workloads.get(ip).is_some()
            || plane.vips.get(ip).is_some()
            || plane.on_nodes.get(ip).is_some()
            || plane.range_of(ip).next().is_some()
    }

    /// Whether an address is that of a node on which some workload has its host's network.
    pub fn is_node(&self, network: &Network, ip: IpAddr) -> bool {
        let plane = self.planes.get(network);
        plane.is_some_and(|plane| plane.on_nodes.get(ip).is_some())
    }

    /// The workload of a pod that the node agent named.
    pub fn workload_of_pod(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
        node: &str,
    ) -> Option<&Arc<Workload>> {
        self.pods.of_pod(namespace, name, |found| {
            found.identity_parts().2 == service_account && (node.is_empty() || *found.node == *node)
        })
    }

    /// The workload of that namespace that is known by a host name; of several, the one with the lowest uid.
    pub fn workload_named(&self, namespace: &str, host: &str) -> Option<&Arc<Workload>> {
        let claims = self.named.get(&host_key(host))?.as_slice();
        claims.iter().find(|found| {
            let own = found.hostname();
            *found.namespace == *namespace && own.is_some_and(|own| own.eq_ignore_ascii_case(host))
        })
    }

    /// The service of that namespace and host.
    pub fn service(&self, namespace: &str, host: &str) -> Option<&Arc<Service>> {
        self.slot(namespace, host)?.service.as_ref()
    }

    /// The service that a caller means by an address: the exact address, else the longest range;
    /// of several, the caller's own namespace, then canonical, then by name.
    pub fn service_at(
        &self,
        network: &Network,
        ip: IpAddr,
        caller_namespace: &str,
    ) -> Option<&Arc<Service>> {
        let plane = self.planes.get(network)?;
        if let Some(found) = plane
            .vips
            .get(ip)
            .and_then(|claims| preferred(claims.as_slice(), caller_namespace))
        {
            return Some(found);
        }
        plane
            .range_of(ip)
            .find_map(|claims| preferred(claims.as_slice(), caller_namespace))
    }

    /// Every service of that host, whatever its namespace; case does not matter.
    pub fn services_named<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a Arc<Service>> {
        let slots = self
            .hosts
            .get(&host_key(host))
            .map_or(&[][..], Claims::as_slice);
        let named = slots
            .iter()
            .filter(move |slot| slot.host.eq_ignore_ascii_case(host));
        named.filter_map(|slot| slot.service.as_ref())
    }

    /// The service that a caller means by a host: its own namespace, then canonical, then by name.
    pub fn service_for_host(&self, host: &str, caller_namespace: &str) -> Option<&Arc<Service>> {
        choose(self.services_named(host), caller_namespace)
    }

    /// The endpoints that count for the service's health policy, whatever their capacity.
    pub fn endpoints(&self, service: &Service) -> impl Iterator<Item = &Arc<Workload>> {
        let all = service.load_balancing.health_policy == HealthPolicy::AllowAll;
        let slot = self.slot(&service.namespace, &service.hostname);
        let endpoints = slot.into_iter().flat_map(|slot| slot.endpoints.iter());
        endpoints
            .filter(move |(kind, _)| all || kind.healthy)
            .map(|(_, workload)| workload)
    }

    /// Whether nothing is known, and no index remembers anything.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty()
            && self.pods.is_empty()
            && self.planes.is_empty()
            && self.hosts.is_empty()
            && self.named.is_empty()
            && self.policies.is_empty()
            && self.global_policies.is_empty()
            && self.namespace_policies.is_empty()
    }

    pub(crate) fn has_no_workload(&self) -> bool {
        self.workloads.is_empty()
    }

    /// Every workload, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.hosts
            .values()
            .flat_map(Claims::as_slice)
            .filter_map(|slot| slot.service.as_ref())
    }

    /// The services that are others than in `older`, or have other endpoints. Costs what changed, not
    /// what there is.
    pub fn services_since(&self, older: &Self) -> Vec<ServiceChange> {
        let mut changes = Vec::new();
        for item in older.hosts.diff(&self.hosts) {
            let (before, after) = match item {
                DiffItem::Add(_, after) => (&[][..], after.as_slice()),
                DiffItem::Remove(_, before) => (before.as_slice(), &[][..]),
                DiffItem::Update { old, new } => (old.1.as_slice(), new.1.as_slice()),
            };
            for slot in before
                .iter()
                .filter(|slot| same_slot(after, slot).is_none())
            {
                changes.extend(difference(Some(slot), None));
            }
            for slot in after {
                changes.extend(difference(same_slot(before, slot), Some(slot)));
            }
        }
        changes
    }

    /// Every policy, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// The policy of that `namespace/name`.
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// The policies that apply to a workload.
    pub fn policies_of<'a>(&'a self, workload: &'a Workload) -> Applicable<'a> {
        Applicable {
            snapshot: self,
            namespace: self.namespace_policies.get(&*workload.namespace),
            named: &workload.authorization_policies,
        }
    }

    pub(crate) fn slot(&self, namespace: &str, host: &str) -> Option<&Slot> {
        let slots = self.hosts.get(&host_key(host))?.as_slice();
        slots
            .iter()
            .find(|slot| *slot.namespace == *namespace && *slot.host == *host)
            .map(|slot| &**slot)
    }
}

fn same_slot<'a>(slots: &'a [Arc<Slot>], of: &Slot) -> Option<&'a Arc<Slot>> {
    let same = |slot: &&Arc<Slot>| slot.namespace == of.namespace && slot.host == of.host;
    slots.iter().find(same)
}

fn difference(before: Option<&Arc<Slot>>, after: Option<&Arc<Slot>>) -> Option<ServiceChange> {
    if let (Some(before), Some(after)) = (before, after)
        && Arc::ptr_eq(before, after)
    {
        return None;
    }
    let slot = after.or(before)?;
    let service = |slot: Option<&Arc<Slot>>| slot.and_then(|slot| slot.service.clone());
    let itself = service(before) != service(after);
    // A copy of a slot is made to change it: if it is not the service that changed, endpoints did.
    let is_empty = |slot: Option<&Arc<Slot>>| slot.is_none_or(|slot| slot.endpoints.is_empty());
    let endpoints = !(itself && is_empty(before) && is_empty(after));
    let service = NamespacedHost::new(slot.namespace.clone(), slot.host.clone());
    Some(ServiceChange {
        service,
        itself,
        endpoints,
    })
}

/// The policies that apply to one workload: global ones, its namespace's, and those it names.
#[derive(Debug, Clone, Copy)]
pub struct Applicable<'a> {
    snapshot: &'a Snapshot,
    namespace: Option<&'a Policies>,
    named: &'a [Arc<str>],
}

impl<'a> Applicable<'a> {
    /// The policies that are known, each once.
    pub fn known(&self) -> impl Iterator<Item = &'a Arc<Policy>> + use<'a> {
        let namespace = self.namespace.into_iter().flat_map(OrdMap::values);
        let snapshot = self.snapshot;
        // A named policy of a wider scope has been counted with that scope already, unless it is
        // of another namespace: a reference is a reference.
        let counted = self.namespace;
        let named = self
            .named
            .iter()
            .filter_map(move |name| snapshot.policies.get(&**name))
            .filter(move |policy| {
                !snapshot.global_policies.contains_key(&policy.key)
                    && !counted.is_some_and(|counted| counted.contains_key(&policy.key))
            });
        snapshot
            .global_policies
            .values()
            .chain(namespace)
            .chain(named)
    }

    /// Names that the workload refers to and nobody has sent.
    pub fn unknown(&self) -> impl Iterator<Item = &'a Arc<str>> + use<'a> {
        let snapshot = self.snapshot;
        self.named
            .iter()
            .filter(move |name| !snapshot.policies.contains_key(&***name))
    }
}

fn preferred<'a>(found: &'a [Arc<Service>], caller_namespace: &str) -> Option<&'a Arc<Service>> {
    choose(found.iter(), caller_namespace)
}

fn choose<'a>(
    found: impl Iterator<Item = &'a Arc<Service>>,
    caller_namespace: &str,
) -> Option<&'a Arc<Service>> {
    let visible = found.filter(|service| service.visible_from(caller_namespace));
    let rank =
        |service: &&Arc<Service>| (*service.namespace != *caller_namespace, !service.canonical);
    visible.min_by_key(rank) // the first of equals, and claims are ordered by name
}

/// Host names do not differ by case; nearly all are in lower case and cost nothing to compare.
pub(crate) fn host_key(host: &str) -> u64 {
    let folded = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    };
    let mut hasher = DefaultHasher::new();
    folded.hash(&mut hasher);
    hasher.finish()
}
