//! How an update becomes the next snapshot: O(changed), never O(mesh).
//!
//! An [`Update`] enters; each resource is decoded, parsed and put in the place of what had its
//! name; what cannot be parsed is handed back by name and leaves the last good one where it was.
//! The workloads of a mesh that has none are only gathered (`first.rs`).

use std::sync::Arc;

use api::workload as wire;
use ipnet::IpNet;

use super::{Gathered, Payload, Step, Update};
use crate::claims::{ByIp, Claims, claim, disclaim};
use crate::egress::EgressMode;
use crate::endpoints::Endpoints;
use crate::names::{Interner, NamespacedHost};
use crate::parse::{ParseError, Rejected};
use crate::policy::{Policy, PolicyScope, without_unknown_texts};
use crate::service::Service;
use crate::snapshot::{Plane, Policies, Slot, Snapshot, host_key};
use crate::workload::brief::Brief;
use crate::workload::{Membership, Tunnel, Workload};

/// What an update did.
#[derive(Debug, Default)]
pub(crate) struct Effect {
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) changed: bool,
    /// The policies of some workload may be others now, or whom it may call.
    pub(crate) policies_changed: bool,
}

impl Snapshot {
    /// Workloads go to `gathered` where there is one: then they are in no place until [`Snapshot::settle`], which
    /// is before anything is removed.
    pub(crate) fn apply(
        &mut self,
        update: Update,
        names: &mut Interner,
        gathered: &mut Option<Gathered>,
    ) -> Effect {
        let mut effect = Effect::default();
        for (name, payload) in update.authorizations.set {
            let understood = payload.is_understood();
            let parsed = payload.decode().and_then(|mut message| {
                if !understood {
                    without_unknown_texts(&mut message);
                }
                Policy::parse(name.clone(), message, names)
            });
            match parsed {
                Ok(policy) if understood => self.set_policy(policy, &mut effect),
                Ok(policy) => self.set_policy(policy.not_fully_read(), &mut effect),
                Err(reason) => effect.rejected.push(Rejected { name, reason }),
            }
        }
        for (name, payload) in update.addresses.set {
            if let Payload::Bytes(encoded) = &payload
                && let Ok(brief) = Brief::read_address(encoded)
                && *brief.uid == *name
            {
                let workload = Workload::keep(name, brief, names);
                self.take_workload(workload, gathered, &mut effect);
            } else if let Err(reason) = payload
                .decode()
                .and_then(|message| self.set_address(&name, message, names, gathered, &mut effect))
            {
                effect.rejected.push(Rejected { name, reason });
            }
        }
        if update.step != Step::Part || !update.addresses.removed.is_empty() {
            self.settle(gathered.take().unwrap_or_default());
        }
        for name in update.addresses.removed {
            self.remove_address(&name, &mut effect);
        }
        for name in update.authorizations.removed {
            self.remove_policy(&name, &mut effect);
        }
        effect
    }

    fn set_address(
        &mut self,
        name: &Arc<str>,
        message: wire::Address,
        names: &mut Interner,
        gathered: &mut Option<Gathered>,
        effect: &mut Effect,
    ) -> Result<(), ParseError> {
        match message
            .r#type
            .ok_or(ParseError::Missing("workload or service"))?
        {
            wire::address::Type::Workload(message) => {
                let workload = Workload::parse(name.clone(), &message, names)?;
                self.take_workload(workload, gathered, effect);
            }
            wire::address::Type::Service(message) => {
                let service = Service::parse(message, names)?;
                if NamespacedHost::split(name) != Some((&service.namespace, &service.hostname)) {
                    return Err(ParseError::NameMismatch(service.key().to_string()));
                }
                self.set_service(service, effect);
            }
        }
        Ok(())
    }

    fn remove_address(&mut self, name: &str, effect: &mut Effect) {
        if let Some(workload) = self.workload(name).cloned() {
            effect.policies_changed |= !workload.authorization_policies.is_empty();
            self.unlink_workload(&workload);
            effect.changed = true;
        } else if let Some((namespace, host)) = NamespacedHost::split(name)
            && let Some(service) = self.service(namespace, host).cloned()
        {
            self.unlink_service(&service);
            effect.changed = true;
        }
    }

    // ---- workloads

    fn take_workload(
        &mut self,
        workload: Workload,
        gathered: &mut Option<Gathered>,
        effect: &mut Effect,
    ) {
        match gathered {
            Some(gathered) => {
                effect.policies_changed = effect.policies_changed || self.is_news(&workload);
                gathered.add(workload, effect);
            }
            None => self.set_workload(workload, effect),
        }
    }

    /// Whether it concerns those who judge that this workload comes. It may have been here before, and its connections, or
    /// who looks after its datagrams, may have waited for it: what is said of it now, and the policies that apply, may be
    /// others than when it went.
    fn is_news(&self, workload: &Workload) -> bool {
        !workload.authorization_policies.is_empty()
            || workload.udp
            || workload.egress.mode != EgressMode::Allow
            || self.policies_of(workload).known().next().is_some()
    }

    fn set_workload(&mut self, workload: Workload, effect: &mut Effect) {
        let before = self.workload(&workload.uid).cloned();
        if before.as_deref() == Some(&workload) {
            return;
        }
        effect.policies_changed |= before.as_ref().map_or_else(
            || self.is_news(&workload),
            |before| {
                before.authorization_policies != workload.authorization_policies
                    || before.namespace != workload.namespace
                    || before.egress != workload.egress
                    || before.udp != workload.udp
            },
        );
        if let Some(before) = before {
            self.make_way(&before, &workload);
        }
        self.link_workload(Arc::new(workload));
        effect.changed = true;
    }

    /// Takes a version out of where the next one will not take its place by itself.
    fn make_way(&mut self, before: &Workload, next: &Workload) {
        if (&before.namespace, before.name()) != (&next.namespace, next.name()) {
            self.pods.remove(before);
        }
        self.unlink_addresses(before);
        self.unlink_endpoints(before);
    }

    fn link_workload(&mut self, workload: Arc<Workload>) {
        self.pods.insert(workload.clone());
        if !workload.addresses.is_empty() {
            let plane = self.planes.entry(workload.network.clone()).or_default();
            let holders = plane.holders(workload.host_network);
            for ip in workload.addresses.iter() {
                holders.claim(*ip, workload.clone(), better_holder);
            }
        }
        self.claim_name(&workload);
        for member in &workload.services {
            self.with_endpoints(member, |endpoints| {
                endpoints.insert(&workload, &member.ports)
            });
        }
        self.workloads.insert(workload);
    }

    fn unlink_workload(&mut self, workload: &Workload) {
        self.pods.remove(workload);
        self.unlink_addresses(workload);
        self.unlink_endpoints(workload);
        self.workloads.remove(workload);
    }

    pub(super) fn claim_name(&mut self, workload: &Arc<Workload>) {
        if let Some(host) = workload.hostname() {
            let first = |a: &Workload, b: &Workload| a.uid < b.uid;
            claim(&mut self.named, host_key(host), workload.clone(), first);
        }
    }

    fn unlink_addresses(&mut self, workload: &Workload) {
        let gone = |held: &Workload| held.uid == workload.uid;
        if let Some(host) = workload.hostname() {
            disclaim(&mut self.named, &host_key(host), gone);
        }
        if let Some(plane) = self.planes.get_mut(&workload.network) {
            let holders = plane.holders(workload.host_network);
            for ip in workload.addresses.iter() {
                holders.disclaim(*ip, gone);
            }
            if plane.is_empty() {
                self.planes.remove(&workload.network);
            }
        }
    }

    fn unlink_endpoints(&mut self, workload: &Workload) {
        for member in &workload.services {
            self.with_endpoints(member, |endpoints| {
                endpoints.remove(workload, &member.ports)
            });
        }
    }

    pub(super) fn with_endpoints(
        &mut self,
        member: &Membership,
        change: impl FnOnce(&mut Endpoints),
    ) {
        let NamespacedHost { namespace, host } = &member.service;
        self.with_slot(namespace, host, |slot| change(&mut slot.endpoints));
    }

    // ---- services

    fn set_service(&mut self, service: Service, effect: &mut Effect) {
        let before = self.service(&service.namespace, &service.hostname).cloned();
        if before.as_deref() == Some(&service) {
            return;
        }
        if let Some(before) = before {
            self.unlink_vips(&before);
        }
        let service = Arc::new(service);
        for vip in &service.vips {
            let plane = self.planes.entry(vip.network.clone()).or_default();
            plane.claim(vip.address.net(), service.clone());
        }
        self.with_slot(&service.namespace, &service.hostname, |slot| {
            slot.endpoints.group_by(service.load_balancing.scopes());
            slot.service = Some(service.clone());
        });
        effect.changed = true;
    }

    fn unlink_service(&mut self, service: &Service) {
        self.unlink_vips(service);
        self.with_slot(&service.namespace, &service.hostname, |slot| {
            slot.endpoints.group_by(&[]);
            slot.service = None;
        });
    }

    fn unlink_vips(&mut self, service: &Service) {
        for vip in &service.vips {
            if let Some(plane) = self.planes.get_mut(&vip.network) {
                plane.disclaim(vip.address.net(), service);
                if plane.is_empty() {
                    self.planes.remove(&vip.network);
                }
            }
        }
    }

    /// Changes a slot, which comes into being for it and goes when nothing is left in it.
    fn with_slot(&mut self, namespace: &Arc<str>, host: &Arc<str>, change: impl FnOnce(&mut Slot)) {
        let key = host_key(host);
        let this = |slot: &Slot| slot.namespace == *namespace && slot.host == *host;
        if let Some(slot) = self
            .hosts
            .get_mut(&key)
            .and_then(|slots| slots.find_mut(this))
        {
            change(slot);
            if slot.is_empty() {
                disclaim(&mut self.hosts, &key, this);
            }
            return;
        }
        let mut slot = Slot {
            namespace: namespace.clone(),
            host: host.clone(),
            service: None,
            endpoints: Endpoints::default(),
        };
        change(&mut slot);
        if !slot.is_empty() {
            let by_name = |a: &Slot, b: &Slot| (&a.namespace, &a.host) < (&b.namespace, &b.host);
            claim(&mut self.hosts, key, Arc::new(slot), by_name);
        }
    }

    // ---- policies

    fn set_policy(&mut self, policy: Policy, effect: &mut Effect) {
        if self
            .policies
            .get(&policy.key)
            .is_some_and(|before| **before == policy)
        {
            return;
        }
        self.remove_policy(&policy.key.clone(), effect);
        let policy = Arc::new(policy);
        let key = policy.key.clone();
        match policy.scope {
            PolicyScope::Global => {
                self.global_policies.insert(key.clone(), policy.clone());
            }
            PolicyScope::Namespace => {
                let namespace = self
                    .namespace_policies
                    .entry(policy.namespace.clone())
                    .or_default();
                namespace.insert(key.clone(), policy.clone());
            }
            PolicyScope::WorkloadSelector => {}
        }
        self.policies.insert(key, policy);
        effect.changed = true;
        effect.policies_changed = true;
    }

    fn remove_policy(&mut self, key: &str, effect: &mut Effect) {
        let Some(policy) = self.policies.remove(key) else {
            return;
        };
        self.global_policies.remove(key);
        if let Some(namespace) = self.namespace_policies.get_mut(&policy.namespace) {
            namespace.remove(key);
            if Policies::is_empty(namespace) {
                self.namespace_policies.remove(&policy.namespace);
            }
        }
        effect.changed = true;
        effect.policies_changed = true;
    }
}

impl Plane {
    fn is_empty(&self) -> bool {
        self.workloads.is_empty()
            && self.on_nodes.is_empty()
            && self.vips.is_empty()
            && self.ranges.is_empty()
    }

    /// Where the workloads with an address of their own are, or those with their node's.
    pub(super) fn holders(&mut self, host_network: bool) -> &mut ByIp<Workload> {
        match host_network {
            true => &mut self.on_nodes,
            false => &mut self.workloads,
        }
    }

    fn claim(&mut self, net: IpNet, service: Arc<Service>) {
        // A service that names one address twice claims it once.
        let new = |held: Option<&Claims<Service>>| {
            !held.is_some_and(|held| {
                held.as_slice()
                    .iter()
                    .any(|held| same_service(held, &service))
            })
        };
        if net.prefix_len() == net.max_prefix_len() {
            if new(self.vips.get(net.addr())) {
                self.vips.claim(net.addr(), service, service_by_name);
            }
        } else if new(self.ranges.get(&net)) {
            if !self.ranges.contains_key(&net) {
                *self.lengths(net).entry(net.prefix_len()).or_insert(0) += 1;
            }
            claim(&mut self.ranges, net, service, service_by_name);
        }
    }

    fn disclaim(&mut self, net: IpNet, service: &Service) {
        let gone = |held: &Service| same_service(held, service);
        if net.prefix_len() == net.max_prefix_len() {
            return self.vips.disclaim(net.addr(), gone);
        }
        let known = self.ranges.contains_key(&net);
        disclaim(&mut self.ranges, &net, gone);
        if known && !self.ranges.contains_key(&net) {
            let length = net.prefix_len();
            let lengths = self.lengths(net);
            let left = lengths.get(&length).map_or(0, |count| count - 1);
            lengths.remove(&length);
            if left > 0 {
                lengths.insert(length, left);
            }
        }
    }

    fn lengths(&mut self, net: IpNet) -> &mut imbl::OrdMap<u8, usize> {
        match net {
            IpNet::V4(_) => &mut self.lengths_v4,
            IpNet::V6(_) => &mut self.lengths_v6,
        }
    }
}

fn same_service(a: &Service, b: &Service) -> bool {
    a.namespace == b.namespace && a.hostname == b.hostname
}

fn service_by_name(a: &Service, b: &Service) -> bool {
    (&a.namespace, &a.hostname) < (&b.namespace, &b.hostname)
}

/// An address that a pod has is the pod's, whatever anybody wrote who may write entries; of several (a pod's IP used again) it belongs to
/// the one that works. The uid makes the answer the same on every node, whatever the order of arrival.
pub(super) fn better_holder(a: &Workload, b: &Workload) -> bool {
    let rank = |of: &Workload| {
        let works = (!of.healthy, of.tunnel != Tunnel::Hbone);
        (!is_pod(&of.uid), works)
    };
    (rank(a), &a.uid) < (rank(b), &b.uid)
}

/// `cluster//Pod/namespace/name`: nobody writes a pod's uid but who runs pods. Those of entries name their group between the first two slashes.
fn is_pod(uid: &str) -> bool {
    let mut parts = uid.split('/').skip(1);
    (parts.next(), parts.next()) == (Some(""), Some("Pod"))
}
