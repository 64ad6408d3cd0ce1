//! Who has a host name.
//!
//! In a namespace: the Kubernetes Service of that name, else the oldest ServiceEntry that asks for
//! it. In the mesh, for callers whose own namespace has none: the Kubernetes Service, else the
//! oldest ServiceEntry that everybody may see. Of equally old ones the first by name.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use api::k8s::objects::ObjectKey;
use k8s_openapi::jiff::Timestamp;

use crate::translate::layer7::host;
use crate::translate::service_entry::Visibility;

/// Claims by host.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    claims: HashMap<String, Claims>,
}

#[derive(Debug, Default)]
struct Claims {
    services: BTreeSet<ObjectKey>,
    entries: BTreeMap<(Option<Timestamp>, ObjectKey), Visibility>,
}

impl Hosts {
    pub(super) fn insert_service(&mut self, host: &str, service: &ObjectKey) {
        self.claims
            .entry(host.to_owned())
            .or_default()
            .services
            .insert(service.clone());
    }

    pub(super) fn insert_entry(
        &mut self,
        host: &str,
        created: Option<Timestamp>,
        entry: &ObjectKey,
        visibility: Visibility,
    ) {
        self.claims
            .entry(host.to_owned())
            .or_default()
            .entries
            .insert((created, entry.clone()), visibility);
    }

    pub(super) fn remove_service(&mut self, host: &str, service: &ObjectKey) {
        self.change(host, |claims| {
            claims.services.remove(service);
        });
    }

    pub(super) fn remove_entry(
        &mut self,
        host: &str,
        created: Option<Timestamp>,
        entry: &ObjectKey,
    ) {
        self.change(host, |claims| {
            claims.entries.remove(&(created, entry.clone()));
        });
    }

    fn change(&mut self, host: &str, change: impl FnOnce(&mut Claims)) {
        if let Some(claims) = self.claims.get_mut(host) {
            change(claims);
            if claims.services.is_empty() && claims.entries.is_empty() {
                self.claims.remove(host);
            }
        }
    }

    /// What keeps an entry from having a host in its namespace; nothing if it has it.
    pub(super) fn rival(&self, host: &str, entry: &ObjectKey) -> Option<&ObjectKey> {
        let claims = self.claims.get(host)?;
        let here = |key: &&ObjectKey| key.namespace == entry.namespace;
        let service = claims.services.iter().find(here);
        service
            .or_else(|| claims.entries.keys().map(|(_, key)| key).find(here))
            .filter(|winner| *winner != entry)
    }

    /// Whether an entry that has the host in its namespace stands for it in the mesh.
    pub(super) fn is_canonical(&self, host: &str, entry: &ObjectKey) -> bool {
        let Some(claims) = self.claims.get(host) else {
            return false;
        };
        let oldest = claims
            .entries
            .iter()
            .find(|(_, visibility)| **visibility == Visibility::Public);
        claims.services.is_empty() && oldest.is_some_and(|((_, key), _)| key == entry)
    }

    /// Who has a host as those of a namespace see it.
    pub(super) fn holder(&self, host: &str, namespace: &str) -> Option<&ObjectKey> {
        let claims = self.claims.get(host)?;
        let here = |key: &&ObjectKey| *key.namespace == *namespace;
        let own = claims.services.iter().find(here);
        let own = own.or_else(|| claims.entries.keys().map(|(_, key)| key).find(here));
        let public = || {
            let mut entries = claims.entries.iter();
            let oldest = entries.find(|(_, visibility)| **visibility == Visibility::Public)?;
            Some(&oldest.0.1)
        };
        own.or_else(|| claims.services.first()).or_else(public)
    }

    /// Whoever asks for a host, that may begin with `*`.
    pub(super) fn having<'a>(&'a self, pattern: &'a str) -> impl Iterator<Item = &'a ObjectKey> {
        let exact = self
            .claims
            .get(pattern)
            .filter(|_| !pattern.starts_with('*'));
        let is_meant = |(host, _): &(&String, &Claims)| host::matches(pattern, host);
        let wild = self.claims.iter().filter(|_| pattern.starts_with('*'));
        let wild = wild.filter(is_meant).map(|(_, claims)| claims);
        exact.into_iter().chain(wild).flat_map(|claims| {
            let entries = claims.entries.keys().map(|(_, key)| key);
            claims.services.iter().chain(entries)
        })
    }

    /// The entries that ask for a host.
    pub(super) fn entries(&self, host: &str) -> impl Iterator<Item = &ObjectKey> {
        self.claims
            .get(host)
            .into_iter()
            .flat_map(|claims| claims.entries.keys().map(|(_, key)| key))
    }
}

#[cfg(test)]
mod tests {
    use api::k8s::objects::{Kind, ObjectKey};
    use k8s_openapi::jiff::Timestamp;

    use super::{Hosts, Visibility};

    fn entry(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey::new(Kind::ServiceEntry, namespace, name)
    }

    fn at(second: i64) -> Option<Timestamp> {
        Timestamp::from_second(second).ok()
    }

    #[test]
    fn the_oldest_entry_of_a_namespace_has_the_host_and_the_oldest_visible_one_stands_for_it() {
        let mut hosts = Hosts::default();
        let (young, old, hidden, elsewhere) = (
            entry("a", "young"),
            entry("a", "zz-old"),
            entry("b", "hidden"),
            entry("c", "late"),
        );
        hosts.insert_entry("h", at(2), &young, Visibility::Public);
        hosts.insert_entry("h", at(1), &old, Visibility::Public);
        hosts.insert_entry("h", at(0), &hidden, Visibility::Namespace);
        hosts.insert_entry("h", at(9), &elsewhere, Visibility::Public);
        assert_eq!(hosts.rival("h", &young), Some(&old));
        assert_eq!(
            [&old, &hidden, &elsewhere].map(|key| hosts.rival("h", key)),
            [None; 3]
        );
        assert_eq!(
            [&old, &hidden, &elsewhere].map(|key| hosts.is_canonical("h", key)),
            [true, false, false]
        );
        hosts.remove_entry("h", at(1), &old);
        assert_eq!(hosts.rival("h", &young), None);
        assert!(hosts.is_canonical("h", &young));
    }

    #[test]
    fn whoever_is_nearest_has_a_host() {
        let mut hosts = Hosts::default();
        let (hidden, public) = (entry("a", "x"), entry("b", "x"));
        let service = ObjectKey::new(Kind::Service, "c", "web");
        let seen =
            |hosts: &Hosts| ["a", "b", "d"].map(|namespace| hosts.holder("h", namespace).cloned());
        hosts.insert_entry("h", at(1), &hidden, Visibility::Namespace);
        assert_eq!(seen(&hosts), [Some(hidden.clone()), None, None]);
        hosts.insert_entry("h", at(2), &public, Visibility::Public);
        let own = Some(public.clone());
        assert_eq!(
            seen(&hosts),
            [Some(hidden.clone()), own.clone(), own.clone()]
        );
        hosts.insert_service("h", &service);
        assert_eq!(seen(&hosts), [Some(hidden), own, Some(service)]);
    }

    #[test]
    fn a_kubernetes_service_comes_before_any_entry() {
        let mut hosts = Hosts::default();
        let (here, there) = (entry("a", "x"), entry("b", "x"));
        let service = ObjectKey::new(Kind::Service, "a", "web");
        hosts.insert_entry("h", at(1), &here, Visibility::Public);
        hosts.insert_entry("h", at(1), &there, Visibility::Public);
        hosts.insert_service("h", &service);
        assert_eq!(hosts.rival("h", &here), Some(&service));
        assert_eq!(hosts.rival("h", &there), None);
        assert!(!hosts.is_canonical("h", &there));
        hosts.remove_service("h", &service);
        assert!(hosts.is_canonical("h", &here));
    }
}
