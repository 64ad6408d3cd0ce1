//! What is kept of every object, and the indexes over it.
//!
//! `link` and `unlink` are each other's opposite: whoever replaces an object unlinks the old one
//! first, so that no index outlives what it was made from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::k8s::labels;
use api::k8s::objects::{self as k8s, Kind, ObjectKey};
use api::workload::Locality;
use k8s_openapi::jiff::Timestamp;

use super::Settings;
use super::hosts::Hosts;
use super::index::{Labelled, Selectors};
use crate::translate::Labels;
use crate::translate::balance::Distribution;
use crate::translate::endpoint_slice::EndpointSlice;
use crate::translate::peer_authentication::PeerAuthentication;
use crate::translate::pod::Pod;
use crate::translate::policy::Policy;
use crate::translate::service::Service;
use crate::translate::service_entry::{ServiceEntry, Visibility};
use crate::translate::workload_entry::WorkloadEntry;

/// Everything known.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) namespaces: HashMap<ObjectKey, Namespace>,
    pub(super) nodes: HashMap<ObjectKey, Node>,
    pub(super) pods: HashMap<ObjectKey, Pod>,
    pub(super) workload_entries: HashMap<ObjectKey, WorkloadEntry>,
    pub(super) services: HashMap<ObjectKey, Service>,
    pub(super) slices: HashMap<ObjectKey, EndpointSlice>,
    pub(super) service_entries: HashMap<ObjectKey, ServiceEntry>,
    pub(super) policies: HashMap<ObjectKey, Policy>,
    pub(super) peers: HashMap<ObjectKey, PeerAuthentication>,

    /// Pods and WorkloadEntries.
    pub(super) workloads: Labelled,
    /// Services and ServiceEntries.
    pub(super) service_selectors: Selectors,
    pub(super) policy_selectors: Selectors,
    pub(super) peer_selectors: Selectors,
    /// PeerAuthentications without a selector, oldest first.
    pub(super) general_peers: HashMap<Arc<str>, BTreeSet<(Option<Timestamp>, ObjectKey)>>,
    pub(super) pods_of_node: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    pub(super) slices_of_service: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Services and ServiceEntries.
    pub(super) served: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    pub(super) hosts: Hosts,
}

/// What matters of a Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Namespace {
    pub(super) network: String,
    pub(super) visibility: Visibility,
    pub(super) distribution: Option<Distribution>,
    pub(super) waypoint: Option<String>,
}

impl Namespace {
    pub(super) fn read(namespace: &k8s::Namespace, settings: &Settings) -> Self {
        let none = Labels::new();
        let labels = namespace.metadata.labels.as_ref().unwrap_or(&none);
        let annotations = namespace.metadata.annotations.as_ref().unwrap_or(&none);
        let rules = settings.service_entry_visibility.iter();
        let has_all = |wanted: &Labels| {
            wanted
                .iter()
                .all(|(label, value)| labels.get(label) == Some(value))
        };
        Self {
            network: labels.get(labels::NETWORK).cloned().unwrap_or_default(),
            visibility: rules
                .into_iter()
                .find(|(wanted, _)| has_all(wanted))
                .map(|(_, visibility)| *visibility)
                .unwrap_or_default(),
            distribution: annotations
                .get(labels::TRAFFIC_DISTRIBUTION)
                .map(|text| Distribution::named(text)),
            waypoint: labels.get(labels::USE_WAYPOINT).cloned(),
        }
    }
}

/// What matters of a Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Node {
    pub(super) locality: Option<Locality>,
}

impl Objects {
    /// The facts of a namespace; the default ones of a namespace that has no object.
    pub(super) fn namespace(&self, name: &str) -> Namespace {
        self.namespaces
            .get(&ObjectKey::new(Kind::Namespace, "", name))
            .cloned()
            .unwrap_or_default()
    }

    /// Whether a mesh of two levels asks the workloads of a namespace for an identity.
    pub(super) fn is_strict(&self, namespace: &str, root_namespace: &str) -> bool {
        let oldest = |namespace: &str| {
            self.general_peers
                .get(namespace)
                .and_then(|peers| peers.first())
                .and_then(|(_, key)| self.peers.get(key)?.strict)
        };
        oldest(namespace)
            .or_else(|| oldest(root_namespace))
            .unwrap_or(false)
    }

    /// Enters an object into the indexes.
    pub(super) fn link(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::Pod => {
                let Some(pod) = self.pods.get(key) else {
                    return;
                };
                self.workloads.insert(key, &pod.labels);
                self.pods_of_node
                    .entry(pod.node.clone())
                    .or_default()
                    .insert(key.clone());
            }
            Kind::WorkloadEntry => {
                let Some(entry) = self.workload_entries.get(key) else {
                    return;
                };
                self.workloads.insert(key, &entry.labels);
            }
            Kind::Service => {
                let Some(service) = self.services.get(key).filter(|service| !service.is_alias)
                else {
                    return;
                };
                self.served
                    .entry(key.namespace.clone())
                    .or_default()
                    .insert(key.clone());
                self.hosts.insert_service(&service.hostname, key);
                if let Some(selector) = &service.selector {
                    self.service_selectors.insert(key, selector);
                }
            }
            Kind::EndpointSlice => {
                if let Some(service) = self.service_of(key) {
                    self.slices_of_service
                        .entry(service)
                        .or_default()
                        .insert(key.clone());
                }
            }
            Kind::ServiceEntry => self.link_service_entry(key),
            Kind::AuthorizationPolicy => {
                let Some(policy) = self
                    .policies
                    .get(key)
                    .filter(|policy| policy.authorization.is_some())
                else {
                    return;
                };
                if let Some(selector) = &policy.selector {
                    self.policy_selectors.insert(key, selector);
                }
            }
            Kind::PeerAuthentication => {
                let Some(peer) = self.peers.get(key) else {
                    return;
                };
                match &peer.selector {
                    Some(selector) => self.peer_selectors.insert(key, selector),
                    None => {
                        self.general_peers
                            .entry(key.namespace.clone())
                            .or_default()
                            .insert((peer.created, key.clone()));
                    }
                }
            }
            Kind::Namespace
            | Kind::Node
            | Kind::ServiceAccount
            | Kind::Gateway
            | Kind::GatewayClass => {}
        }
    }

    fn link_service_entry(&mut self, key: &ObjectKey) {
        let visibility = self.namespace(&key.namespace).visibility;
        let Some(entry) = self.service_entries.get(key) else {
            return;
        };
        self.served
            .entry(key.namespace.clone())
            .or_default()
            .insert(key.clone());
        if visibility == Visibility::None {
            return;
        }
        for host in &entry.hosts {
            self.hosts
                .insert_entry(host, entry.created, key, visibility);
        }
        if let Some(selector) = &entry.selector {
            self.service_selectors.insert(key, selector);
        }
    }

    /// Takes an object out of the indexes.
    pub(super) fn unlink(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::Pod => {
                self.workloads.remove(key);
                if let Some(pod) = self.pods.get(key) {
                    forget(&mut self.pods_of_node, &pod.node, key);
                }
            }
            Kind::WorkloadEntry => self.workloads.remove(key),
            Kind::Service => {
                self.service_selectors.remove(key);
                forget(&mut self.served, &key.namespace, key);
                if let Some(service) = self.services.get(key) {
                    self.hosts.remove_service(&service.hostname, key);
                }
            }
            Kind::EndpointSlice => {
                if let Some(service) = self.service_of(key)
                    && let Some(slices) = self.slices_of_service.get_mut(&service)
                {
                    slices.remove(key);
                    if slices.is_empty() {
                        self.slices_of_service.remove(&service);
                    }
                }
            }
            Kind::ServiceEntry => {
                self.service_selectors.remove(key);
                forget(&mut self.served, &key.namespace, key);
                if let Some(entry) = self.service_entries.get(key) {
                    for host in &entry.hosts {
                        self.hosts.remove_entry(host, entry.created, key);
                    }
                }
            }
            Kind::AuthorizationPolicy => self.policy_selectors.remove(key),
            Kind::PeerAuthentication => {
                self.peer_selectors.remove(key);
                if let Some(peer) = self.peers.get(key)
                    && let Some(peers) = self.general_peers.get_mut(&key.namespace)
                {
                    peers.remove(&(peer.created, key.clone()));
                    if peers.is_empty() {
                        self.general_peers.remove(&key.namespace);
                    }
                }
            }
            Kind::Namespace
            | Kind::Node
            | Kind::ServiceAccount
            | Kind::Gateway
            | Kind::GatewayClass => {}
        }
    }

    /// The Service that a slice belongs to, there or not.
    pub(super) fn service_of(&self, slice: &ObjectKey) -> Option<ObjectKey> {
        let service = self.slices.get(slice)?.service.as_ref()?;
        Some(ObjectKey::new(Kind::Service, &slice.namespace, service))
    }
}

fn forget(index: &mut HashMap<Arc<str>, BTreeSet<ObjectKey>>, under: &str, key: &ObjectKey) {
    if let Some(keys) = index.get_mut(under) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(under);
        }
    }
}
