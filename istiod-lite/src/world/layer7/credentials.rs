//! Secrets and ConfigMaps: told to the waypoints whose policies name them, and to no others.
//!
//! A Secret is named by an object of its own namespace only; what is told of it is what that object needs. What a
//! DestinationRule names may have its roots in a Secret beside it, its companion: to waypoints both are one.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use api::k8s::objects::{Kind, ObjectKey};
use api::waypoint as wire;
use wire::resource::Kind as Told;

use crate::translate::credential::{Credential, Use, companion, wire_key};
use crate::translate::layer7::{Layer7, Spec};
use crate::translate::resource::Resource;
use crate::world::depend::mark;
use crate::world::references::Reference;
use crate::world::{Builder, Output, World};

impl World {
    /// The Secrets and ConfigMaps that policies name: all that need be read. A companion need not be while there are
    /// roots where they were looked for first.
    pub fn wanted_credentials(&self) -> BTreeSet<ObjectKey> {
        let table = &self.objects.layer7;
        let named = table.credentials().cloned();
        let bare = table.completed().filter(|it| !self.has_authority(it));
        named.chain(bare.filter_map(companion)).collect()
    }

    fn has_authority(&self, key: &ObjectKey) -> bool {
        let found = self.objects.credentials.get(key);
        found.is_some_and(Credential::has_authority)
    }

    /// A Secret or ConfigMap, with the roots of its companion where it has none.
    fn credential(&self, key: &ObjectKey) -> Option<Cow<'_, Credential>> {
        let own = self.objects.credentials.get(key);
        if own.is_some_and(Credential::has_authority) || !self.objects.layer7.is_completed(key) {
            return own.map(Cow::Borrowed);
        }
        match companion(key).and_then(|it| self.objects.credentials.get(&it)) {
            Some(companion) => {
                let own = own.cloned().unwrap_or_default();
                Some(Cow::Owned(own.with_authority_of(companion)))
            }
            None => own.map(Cow::Borrowed),
        }
    }

    pub(in crate::world) fn put_credential(
        &mut self,
        key: &ObjectKey,
        new: Option<Credential>,
        dirty: &mut BTreeSet<Builder>,
    ) {
        if self.objects.credentials.get(key) == new.as_ref() {
            return;
        }
        self.leave(key, dirty);
        match new {
            Some(new) => self.objects.credentials.insert(key.clone(), new),
            None => self.objects.credentials.remove(key),
        };
        self.enter(key, dirty);
    }

    /// What waypoints are told of a Secret or ConfigMap.
    pub(in crate::world) fn build_credential(&self, key: &ObjectKey) -> Option<Output> {
        let credential = self.credential(key)?;
        let mut needed: BTreeMap<ObjectKey, Use> = BTreeMap::new();
        for policy in self.objects.layer7.naming(key) {
            let Some(r#use) = policy.credentials.get(key) else {
                continue;
            };
            for gateway in self.told_of_policy(policy, *r#use) {
                let held = needed.entry(gateway).or_insert(*r#use);
                *held = (*held).max(*r#use);
            }
        }
        let useful = needed
            .into_iter()
            .filter(|(_, r#use)| credential.lacks(*r#use).is_none());
        let resources = useful.map(|(gateway, r#use)| {
            let resource = wire::Resource {
                key: wire_key(key),
                origin: Some(wire::Origin {
                    kind: key.kind.name().to_owned(),
                    namespace: key.namespace.to_string(),
                    name: key.name.to_string(),
                    ..wire::Origin::default()
                }),
                kind: Some(Told::Secret(credential.told(r#use))),
            };
            Resource::waypoint(&gateway, &resource)
        });
        Some(Output {
            resources: resources.collect(),
            ..Output::default()
        })
    }

    /// The waypoints at which a policy towards services is in force, and that may have what it needs for that.
    pub(super) fn told_of_policy(&self, policy: &Layer7, r#use: Use) -> BTreeSet<ObjectKey> {
        match &*policy.spec {
            Spec::Destination(_) => {
                let hosts = policy.hosts.iter();
                let services = hosts.flat_map(|host| self.objects.hosts.having(host));
                services
                    .flat_map(|it| self.holding_at(it, policy, r#use))
                    .collect()
            }
            Spec::BackendTls(_) => {
                let services = policy.targets.iter().filter_map(|it| it.object.as_ref());
                services.flat_map(|it| self.reaching(it)).collect()
            }
            _ => BTreeSet::new(),
        }
    }

    /// The waypoints that send to a service and for which that DestinationRule holds. Whoever may write routes elsewhere
    /// gets no key by leading one there: only those that are trusted with it, and those of the key's own namespace.
    fn holding_at(&self, service: &ObjectKey, policy: &Layer7, r#use: Use) -> Vec<ObjectKey> {
        let refs = self.service_refs(service);
        let trusted = (r#use == Use::Certificate).then(|| self.trusted_with(service));
        let mut gateways = Vec::new();
        for gateway in self.reaching(service) {
            let own = gateway.namespace == policy.key.namespace;
            if !own && trusted.as_ref().is_some_and(|it| !it.contains(&gateway)) {
                continue;
            }
            let holds = refs.iter().any(|it| {
                let rules = self.objects.layer7.rules_for(&it.hostname);
                let holding = self.holding(&gateway, it, &rules);
                holding.iter().any(|rule| rule.key == policy.key)
            });
            if holds {
                gateways.push(gateway);
            }
        }
        gateways
    }

    /// Why a Secret or ConfigMap is of no use for that; none if it is.
    pub(super) fn lacks(&self, key: &ObjectKey, r#use: Use) -> Option<String> {
        let why = match self.credential(key) {
            Some(credential) => credential.lacks(r#use)?,
            None => match self.refused.get(key) {
                Some(reasons) => reasons.join("; "),
                None => "is not there".to_owned(),
            },
        };
        Some(format!("{key} {why}"))
    }

    /// What is wrong with what a policy names.
    pub(super) fn lacking(&self, policy: &Layer7) -> Vec<String> {
        let named = policy.credentials.iter();
        named
            .filter_map(|(key, r#use)| self.lacks(key, *r#use))
            .map(|why| format!("{why}: connections that need it are refused"))
            .collect()
    }

    /// The roots of several, as one.
    pub(super) fn authorities(&self, keys: &[ObjectKey]) -> wire::Secret {
        let found = keys
            .iter()
            .filter_map(|it| self.objects.credentials.get(it));
        Credential::authorities(found)
    }

    /// Marks whoever says something of a Secret or ConfigMap.
    pub(in crate::world) fn touch_credential(
        &self,
        key: &ObjectKey,
        dirty: &mut BTreeSet<Builder>,
    ) {
        mark(dirty, [key.clone()]);
        let table = &self.objects.layer7;
        for policy in table.naming(key).chain(table.completing(key)) {
            self.touch_layer7(&policy.key, dirty);
        }
    }

    /// Marks what DestinationRules for a host name: once nobody has it, no service is left that would say who was told.
    pub(in crate::world) fn touch_named(&self, host: &str, dirty: &mut BTreeSet<Builder>) {
        let table = &self.objects.layer7;
        if table.credentials().next().is_none() {
            return;
        }
        let rules = table.rules_for(host).into_iter();
        mark(dirty, rules.flat_map(|it| it.credentials.keys().cloned()));
    }

    /// Marks what is named by policies for the services of which is said anew what is done towards them.
    pub(super) fn mark_credentials(&self, dirty: &mut BTreeSet<Builder>) {
        if self.objects.layer7.credentials().next().is_none() {
            return;
        }
        let mut named = BTreeSet::new();
        for builder in dirty.iter() {
            let Builder::Towards(service) = builder else {
                continue;
            };
            let refs = self.service_refs(service);
            let rules = refs
                .iter()
                .flat_map(|it| self.objects.layer7.rules_for(&it.hostname));
            let itself = Reference::Object(service.clone());
            let attached = self.objects.references.to(&itself);
            let attached = attached.filter_map(|it| self.objects.layer7.get(it));
            let policies = rules.chain(attached);
            named.extend(policies.flat_map(|it| it.credentials.keys().cloned()));
        }
        mark(dirty, named);
    }
}

/// Whether it is of a kind of which nothing is said in a status: it is somebody else's.
pub(in crate::world) fn is_credential(key: &ObjectKey) -> bool {
    matches!(key.kind, Kind::Secret | Kind::ConfigMap)
}
