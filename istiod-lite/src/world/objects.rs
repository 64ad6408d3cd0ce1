//! What is kept of every object, and the indexes over it.
//!
//! `link` and `unlink` are each other's opposite: whoever replaces an object unlinks the old one
//! first, so that no index outlives what it was made from.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use api::k8s::labels;
use api::k8s::objects::{self as k8s, Kind, ObjectKey};
use api::k8s::routes::ReferenceGrantSpec;
use api::security::{Action, Authorization};
use api::workload::Locality;
use k8s_openapi::jiff::Timestamp;

use super::Settings;
use super::hosts::Hosts;
use super::index::{Labelled, Selectors};
use super::layer7;
use super::references::{Reference, References};
use crate::translate::balance::Distribution;
use crate::translate::credential::Credential;
use crate::translate::egress::Egress;
use crate::translate::endpoint_slice::EndpointSlice;
use crate::translate::gateway::{Class, Controller, Gateway};
use crate::translate::only::Only;
use crate::translate::peer_authentication::PeerAuthentication;
use crate::translate::pod::Pod;
use crate::translate::policy::Policy;
use crate::translate::route::Route;
use crate::translate::service::{self, Service};
use crate::translate::service_entry::{ServiceEntry, Visibility};
use crate::translate::udp::Udp;
use crate::translate::waypoint::{Choice, Standing, Unready};
use crate::translate::workload_entry::WorkloadEntry;
use crate::translate::{Labels, locality};

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
    pub(super) gateways: HashMap<ObjectKey, Gateway>,
    pub(super) classes: HashMap<ObjectKey, Class>,
    /// HTTPRoutes, GRPCRoutes, TCPRoutes and TLSRoutes.
    pub(super) routes: HashMap<ObjectKey, Route>,
    pub(super) grants: HashMap<ObjectKey, ReferenceGrantSpec>,
    /// Secrets and ConfigMaps.
    pub(super) credentials: HashMap<ObjectKey, Credential>,

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
    /// Services by the addresses that the cluster gave them.
    pub(super) given: HashMap<IpAddr, BTreeSet<ObjectKey>>,
    /// ServiceEntries by the addresses that they claim, ranges apart.
    pub(super) claimed: HashMap<IpAddr, BTreeSet<ObjectKey>>,

    /// Gateways as those see them who name them, kept by `gateways`.
    pub(super) standings: HashMap<ObjectKey, Standing>,
    pub(super) gateways_of_class: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    /// Who names a Gateway as waypoint, the Gateway there or not.
    pub(super) named: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Those of a namespace who name a waypoint.
    pub(super) naming: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    /// Those of a namespace that demand to be reached only through their waypoints.
    pub(super) demanding: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    /// Gateways that are the doors of a network.
    pub(super) doors: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    /// Who is, or has endpoints, on a network of another name.
    pub(super) abroad: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    /// Policies of layer 7.
    pub(super) layer7: layer7::Table,
    /// Who refers to what, of those that only refer.
    pub(super) references: References,
    /// ReferenceGrants by their namespace.
    pub(super) grants_of: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    /// ALLOW policies without a selector, but for rehearsals.
    pub(super) general_allows: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
}

/// What matters of a Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Namespace {
    pub(super) network: String,
    pub(super) visibility: Visibility,
    pub(super) distribution: Option<Distribution>,
    pub(super) waypoint: Choice,
    pub(super) only: Only,
    pub(super) egress: Egress,
    pub(super) udp: Udp,
    pub(super) unready: Option<Unready>,
    pub(super) ingress: Option<bool>,
    /// What other namespaces' listeners may select it by.
    pub(super) labels: Labels,
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
            waypoint: Choice::read(
                labels,
                annotations,
                namespace.metadata.name.as_deref().unwrap_or_default(),
            ),
            only: Only::read(labels),
            egress: Egress::read(labels),
            udp: Udp::read(labels),
            unready: Unready::read(labels),
            ingress: service::ingress(labels),
            labels: labels.clone(),
        }
    }
}

/// What matters of a Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Node {
    pub(super) locality: Option<Locality>,
}

impl Node {
    pub(super) fn read(node: &k8s::Node) -> Self {
        Self {
            locality: locality::of_node(node),
        }
    }
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
                self.link_choice(key);
                self.link_demand(key);
                let Some(pod) = self.pods.get(key) else {
                    return;
                };
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
                self.link_choice(key);
                self.link_demand(key);
                self.link_abroad(key);
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
                for vip in &service.vips {
                    enter(&mut self.given, vip, key);
                }
                if let Some(selector) = &service.selector {
                    self.service_selectors.insert(key, selector);
                }
                self.link_choice(key);
                self.link_demand(key);
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
            Kind::AuthorizationPolicy => self.link_policy(key),
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
            Kind::Gateway => self.link_gateway(key),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                self.link_route(key);
            }
            Kind::ReferenceGrant => {
                if self.grants.contains_key(key) {
                    enter(&mut self.grants_of, &key.namespace, key);
                }
            }
            _ => self.link_layer7(key),
        }
    }

    fn link_policy(&mut self, key: &ObjectKey) {
        let Some(policy) = self.policies.get(key) else {
            return;
        };
        let targets = Reference::of_targets(&policy.targets);
        self.references.set(key, targets);
        let Some(authorization) = &policy.authorization else {
            return;
        };
        match &policy.selector {
            Some(selector) => self.policy_selectors.insert(key, selector),
            None if applies_as_allow(authorization) => {
                enter(&mut self.general_allows, &key.namespace, key);
            }
            None => {}
        }
    }

    fn link_gateway(&mut self, key: &ObjectKey) {
        let Some(gateway) = self.gateways.get(key) else {
            return;
        };
        enter(&mut self.gateways_of_class, &gateway.class, key);
        if let Some(network) = self.door_of(gateway) {
            enter(&mut self.doors, &network.into(), key);
        }
    }

    /// The network that a Gateway is the door of.
    pub(super) fn door_of<'a>(&self, gateway: &'a Gateway) -> Option<&'a str> {
        let unmanaged = self.controller(gateway) == Controller::Unmanaged;
        gateway.network.as_deref().filter(|_| unmanaged)
    }

    /// Who looks after a Gateway.
    pub(super) fn controller(&self, gateway: &Gateway) -> Controller {
        let class = ObjectKey::new(Kind::GatewayClass, "", &gateway.class);
        Controller::of(&gateway.class, self.classes.get(&class))
    }

    fn networks(&self, key: &ObjectKey) -> Vec<Arc<str>> {
        let entry = self.workload_entries.get(key);
        let of_entry = entry.and_then(|it| it.endpoint.network.as_deref());
        let service = self.service_entries.get(key);
        let of_service = service.into_iter().flat_map(ServiceEntry::networks);
        of_entry
            .into_iter()
            .chain(of_service)
            .map(Arc::from)
            .collect()
    }

    fn link_abroad(&mut self, key: &ObjectKey) {
        for network in self.networks(key) {
            enter(&mut self.abroad, &network, key);
        }
    }

    fn unlink_abroad(&mut self, key: &ObjectKey) {
        for network in self.networks(key) {
            leave(&mut self.abroad, &network, key);
        }
    }

    fn link_service_entry(&mut self, key: &ObjectKey) {
        let visibility = self.namespace(&key.namespace).visibility;
        enter(&mut self.served, &key.namespace, key);
        self.link_choice(key);
        self.link_demand(key);
        self.link_abroad(key);
        let Some(entry) = self.service_entries.get(key) else {
            return;
        };
        if visibility == Visibility::None {
            return;
        }
        for vip in entry.single_addresses() {
            enter(&mut self.claimed, &vip, key);
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
                self.unlink_choice(key);
                leave(&mut self.demanding, &key.namespace, key);
                if let Some(pod) = self.pods.get(key) {
                    leave(&mut self.pods_of_node, &pod.node, key);
                }
            }
            Kind::WorkloadEntry => {
                self.workloads.remove(key);
                self.unlink_choice(key);
                leave(&mut self.demanding, &key.namespace, key);
                self.unlink_abroad(key);
            }
            Kind::Service => {
                self.service_selectors.remove(key);
                self.unlink_choice(key);
                leave(&mut self.demanding, &key.namespace, key);
                leave(&mut self.served, &key.namespace, key);
                if let Some(service) = self.services.get(key) {
                    self.hosts.remove_service(&service.hostname, key);
                    for vip in &service.vips {
                        leave(&mut self.given, vip, key);
                    }
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
                self.unlink_choice(key);
                leave(&mut self.demanding, &key.namespace, key);
                self.unlink_abroad(key);
                leave(&mut self.served, &key.namespace, key);
                if let Some(entry) = self.service_entries.get(key) {
                    for vip in entry.single_addresses() {
                        leave(&mut self.claimed, &vip, key);
                    }
                    for host in &entry.hosts {
                        self.hosts.remove_entry(host, entry.created, key);
                    }
                }
            }
            Kind::AuthorizationPolicy => {
                self.policy_selectors.remove(key);
                leave(&mut self.general_allows, &key.namespace, key);
                self.references.clear(key);
            }
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
            Kind::Gateway => {
                if let Some(gateway) = self.gateways.get(key).cloned() {
                    leave(&mut self.gateways_of_class, &gateway.class, key);
                    if let Some(network) = self.door_of(&gateway) {
                        leave(&mut self.doors, network, key);
                    }
                }
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                self.references.clear(key);
            }
            Kind::ReferenceGrant => leave(&mut self.grants_of, &key.namespace, key),
            _ => self.unlink_layer7(key),
        }
    }

    /// The Service, of whichever namespace, to which the cluster gave an address that this entry claims.
    pub(super) fn robbed_by(&self, entry: &ServiceEntry) -> Option<(IpAddr, &ObjectKey)> {
        let given = |vip: IpAddr| Some((vip, self.given.get(&vip)?.first()?));
        entry.single_addresses().find_map(given)
    }

    /// The Service that a slice belongs to, there or not.
    pub(super) fn service_of(&self, slice: &ObjectKey) -> Option<ObjectKey> {
        let service = self.slices.get(slice)?.service.as_ref()?;
        Some(ObjectKey::new(Kind::Service, &slice.namespace, service))
    }
}

/// Whether a policy denies whom it does not allow: one that is rehearsed only does not.
pub(super) fn applies_as_allow(authorization: &Authorization) -> bool {
    authorization.action() == Action::Allow && !authorization.dry_run
}

pub(super) fn enter<K: Clone + Eq + Hash>(
    index: &mut HashMap<K, BTreeSet<ObjectKey>>,
    under: &K,
    key: &ObjectKey,
) {
    index.entry(under.clone()).or_default().insert(key.clone());
}

pub(super) fn leave<K, Q>(index: &mut HashMap<K, BTreeSet<ObjectKey>>, under: &Q, key: &ObjectKey)
where
    K: Borrow<Q> + Eq + Hash,
    Q: Eq + Hash + ?Sized,
{
    if let Some(keys) = index.get_mut(under) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(under);
        }
    }
}
