//! Who must be made anew when an object comes, changes or goes.
//!
//! Each object is asked twice, before and after: who depended on what it was, and who depends on
//! what it is. The answers come from indexes; none looks at everybody, unless everybody depends.

use std::collections::{BTreeSet, HashMap};

use api::k8s::objects::{Kind, Object, ObjectKey, ObjectMeta};
use api::security::Action;

use super::objects::{Namespace, Node};
use super::{Builder, World};
use crate::translate::Labels;
use crate::translate::credential::Credential;
use crate::translate::egress::Egress;
use crate::translate::endpoint_slice::EndpointSlice;
use crate::translate::gateway::{Class, Gateway};
use crate::translate::only::Only;
use crate::translate::peer_authentication::PeerAuthentication;
use crate::translate::pod::Pod;
use crate::translate::policy::Policy;
use crate::translate::route::{Route, Spec};
use crate::translate::service::Service;
use crate::translate::service_entry::ServiceEntry;
use crate::translate::workload_entry::WorkloadEntry;

/// Puts a fact into its table, between taking the old and entering the new into the indexes. Does
/// nothing if the fact is the same.
macro_rules! replace {
    ($world:ident, $dirty:ident, $table:ident, $key:ident, $new:expr) => {{
        let new = $new;
        if differs(&$world.objects.$table, &$key, &new) {
            $world.leave(&$key, $dirty);
            match new {
                Some(new) => $world.objects.$table.insert($key.clone(), new),
                None => $world.objects.$table.remove(&$key),
            };
            $world.enter(&$key, $dirty);
        }
    }};
}

fn differs<T: PartialEq>(table: &HashMap<ObjectKey, T>, key: &ObjectKey, new: &Option<T>) -> bool {
    table.get(key) != new.as_ref()
}

impl World {
    pub(super) fn set(&mut self, object: &Object, dirty: &mut BTreeSet<Builder>) {
        let key = object.key();
        match object {
            Object::Namespace(it) => {
                self.set_namespace(&key, Some(Namespace::read(it, &self.settings)), dirty)
            }
            Object::Node(it) => replace!(self, dirty, nodes, key, Some(Node::read(it))),
            Object::Pod(it) => replace!(self, dirty, pods, key, Some(Pod::read(it))),
            Object::WorkloadEntry(it) => replace!(
                self,
                dirty,
                workload_entries,
                key,
                Some(WorkloadEntry::read(it))
            ),
            Object::Service(it) => replace!(
                self,
                dirty,
                services,
                key,
                Some(Service::read(
                    it,
                    &self.cluster.domain,
                    &self.settings.scopes
                ))
            ),
            Object::EndpointSlice(it) => {
                replace!(self, dirty, slices, key, Some(EndpointSlice::read(it)))
            }
            Object::ServiceEntry(it) => replace!(
                self,
                dirty,
                service_entries,
                key,
                Some(ServiceEntry::read(it))
            ),
            Object::AuthorizationPolicy(it) => {
                let policy = Policy::read(it, &self.reading);
                self.put_policy(&key, Some(policy), dirty);
            }
            Object::PeerAuthentication(it) => {
                replace!(self, dirty, peers, key, Some(PeerAuthentication::read(it)))
            }
            Object::Gateway(it) => {
                replace!(self, dirty, gateways, key, Some(Gateway::read(it)))
            }
            Object::GatewayClass(it) => self.set_class(&key, Some(Class::read(it)), dirty),
            Object::HttpRoute(it) => self.set_route(&key, &it.metadata, Spec::http(it), dirty),
            Object::GrpcRoute(it) => self.set_route(&key, &it.metadata, Spec::grpc(it), dirty),
            Object::TcpRoute(it) => self.set_route(&key, &it.metadata, Spec::tcp(it), dirty),
            Object::TlsRoute(it) => self.set_route(&key, &it.metadata, Spec::tls(it), dirty),
            Object::ReferenceGrant(it) => {
                replace!(self, dirty, grants, key, Some(it.spec.clone()))
            }
            Object::Secret(it) => self.put_credential(&key, Some(Credential::of_secret(it)), dirty),
            Object::ConfigMap(it) => {
                self.put_credential(&key, Some(Credential::of_config_map(it)), dirty)
            }
            _ => self.set_layer7(object, dirty),
        }
    }

    pub(super) fn remove(&mut self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        let key = key.clone();
        match key.kind {
            Kind::Namespace => self.set_namespace(&key, None, dirty),
            Kind::Node => replace!(self, dirty, nodes, key, None),
            Kind::Pod => replace!(self, dirty, pods, key, None),
            Kind::WorkloadEntry => replace!(self, dirty, workload_entries, key, None),
            Kind::Service => replace!(self, dirty, services, key, None),
            Kind::EndpointSlice => replace!(self, dirty, slices, key, None),
            Kind::ServiceEntry => replace!(self, dirty, service_entries, key, None),
            Kind::AuthorizationPolicy => replace!(self, dirty, policies, key, None),
            Kind::PeerAuthentication => replace!(self, dirty, peers, key, None),
            Kind::Gateway => replace!(self, dirty, gateways, key, None),
            Kind::GatewayClass => self.set_class(&key, None, dirty),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                replace!(self, dirty, routes, key, None)
            }
            Kind::ReferenceGrant => replace!(self, dirty, grants, key, None),
            Kind::Secret | Kind::ConfigMap => self.put_credential(&key, None, dirty),
            _ => self.put_layer7(&key, None, dirty),
        }
    }

    pub(super) fn put_policy(
        &mut self,
        key: &ObjectKey,
        policy: Option<Policy>,
        dirty: &mut BTreeSet<Builder>,
    ) {
        let key = key.clone();
        replace!(self, dirty, policies, key, policy);
    }

    fn set_route(
        &mut self,
        key: &ObjectKey,
        metadata: &ObjectMeta,
        spec: Spec,
        dirty: &mut BTreeSet<Builder>,
    ) {
        let key = key.clone();
        let route = Route::read(metadata, spec, self.objects.routes.get(&key));
        replace!(self, dirty, routes, key, Some(route));
    }

    pub(super) fn put_peer(
        &mut self,
        key: &ObjectKey,
        peer: Option<PeerAuthentication>,
        dirty: &mut BTreeSet<Builder>,
    ) {
        let key = key.clone();
        replace!(self, dirty, peers, key, peer);
    }

    pub(super) fn leave(&mut self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        self.touch(key, dirty);
        self.objects.gateways_behind(key, &mut self.moved);
        self.objects.unlink(key);
    }

    pub(super) fn enter(&mut self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        self.objects.link(key);
        self.objects.gateways_behind(key, &mut self.moved);
        self.touch(key, dirty);
    }

    /// A class speaks for its Gateways where they do not, and says who looks after them.
    fn set_class(&mut self, key: &ObjectKey, new: Option<Class>, dirty: &mut BTreeSet<Builder>) {
        if !differs(&self.objects.classes, key, &new) {
            return;
        }
        let gateways = self.objects.gateways_of_class.get(&key.name).cloned();
        let gateways = gateways.unwrap_or_default();
        for gateway in &gateways {
            self.leave(gateway, dirty);
        }
        match new {
            Some(new) => self.objects.classes.insert(key.clone(), new),
            None => self.objects.classes.remove(key),
        };
        for gateway in &gateways {
            self.enter(gateway, dirty);
        }
        mark(dirty, [key.clone()]);
    }

    /// A namespace decides for the services in it how near and how visible they are and whether they are GLOBAL, for all in it
    /// which waypoint they name, and the root namespace on which network everything is.
    fn set_namespace(
        &mut self,
        key: &ObjectKey,
        new: Option<Namespace>,
        dirty: &mut BTreeSet<Builder>,
    ) {
        if !differs(&self.objects.namespaces, key, &new) {
            return;
        }
        let members = self.members_moved(key, new.as_ref());
        for member in &members {
            self.leave(member, dirty);
        }
        match new {
            Some(new) => self.objects.namespaces.insert(key.clone(), new),
            None => self.objects.namespaces.remove(key),
        };
        for member in &members {
            self.enter(member, dirty);
        }
        let network = self
            .objects
            .namespace(&self.settings.root_namespace)
            .network;
        if network != self.cluster.network {
            self.cluster.network = network;
            self.touch_all_addresses(dirty);
        }
    }

    /// Those in a namespace for whom it makes a difference that it changes.
    fn members_moved(&self, key: &ObjectKey, new: Option<&Namespace>) -> BTreeSet<ObjectKey> {
        let unsaid = Namespace::default();
        let before = self.objects.namespaces.get(key).unwrap_or(&unsaid);
        let now = new.unwrap_or(&unsaid);
        let of = |index: &HashMap<_, BTreeSet<ObjectKey>>| {
            index.get(&key.name).cloned().unwrap_or_default()
        };
        let mut members = BTreeSet::new();
        if before.waypoint != now.waypoint {
            let all = self.objects.workloads.all(&key.name);
            members.extend(all.filter(|it| self.objects.inherits(it)).cloned());
            let served = of(&self.objects.served);
            members.extend(served.into_iter().filter(|it| self.objects.inherits(it)));
        }
        if before.only != now.only {
            let all = self.objects.workloads.all(&key.name).cloned();
            let all = all.chain(of(&self.objects.served));
            members.extend(all.filter(|it| *self.objects.own_only(it) == Only::Unsaid));
        }
        if before.egress != now.egress {
            let all = self.objects.workloads.all(&key.name);
            let unsaid = all.filter(|it| *self.objects.own_egress(it) == Egress::Unsaid);
            members.extend(unsaid.cloned());
        }
        if before.udp != now.udp {
            let all = self.objects.workloads.all(&key.name);
            let unsaid = all.filter(|it| self.objects.own_udp(it).is_none());
            members.extend(unsaid.cloned());
        }
        if (before.visibility, before.distribution, before.ingress)
            != (now.visibility, now.distribution, now.ingress)
        {
            members.extend(of(&self.objects.served));
        }
        if before.unready != now.unready {
            members.extend(of(&self.objects.naming));
        } else if before.labels != now.labels {
            let naming = of(&self.objects.naming);
            members.extend(
                naming
                    .into_iter()
                    .filter(|it| self.objects.names_foreigner(it)),
            );
        }
        let (old, served) = (self.objects.namespaces.get(key), of(&self.objects.served));
        let moves = |it: &ObjectKey| self.scope_in(it, old) != self.scope_in(it, new);
        members.extend(served.into_iter().filter(moves));
        members
    }

    fn touch_all_addresses(&self, dirty: &mut BTreeSet<Builder>) {
        let objects = &self.objects;
        let services = objects
            .services
            .keys()
            .chain(objects.slices.keys())
            .chain(objects.service_entries.keys())
            .chain(objects.gateways.keys());
        mark(
            dirty,
            objects
                .pods
                .keys()
                .chain(objects.workload_entries.keys())
                .chain(services)
                .cloned(),
        );
        // It is told the network.
        let gateways = objects.gateways.keys().cloned();
        dirty.extend(gateways.map(Builder::Waypoint));
    }

    /// Marks who depends on an object as it is now.
    fn touch(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        match key.kind {
            Kind::Pod | Kind::WorkloadEntry | Kind::EndpointSlice => {
                mark(dirty, [key.clone()]);
                self.touch_labelled(key, dirty);
                self.touch_vouching(key, dirty);
            }
            Kind::Node => {
                let pods = self
                    .objects
                    .pods_of_node
                    .get(&key.name)
                    .into_iter()
                    .flatten();
                mark(dirty, pods.cloned());
            }
            Kind::Service => self.touch_service(key, dirty),
            Kind::ServiceEntry => self.touch_service_entry(key, dirty),
            Kind::AuthorizationPolicy => self.touch_policy(key, dirty),
            Kind::PeerAuthentication => self.touch_peer(key, dirty),
            Kind::Gateway => self.touch_gateway(key, dirty),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                mark(dirty, [key.clone()]);
                self.touch_led_to(key, dirty);
            }
            Kind::ReferenceGrant => self.touch_grants(&key.namespace, dirty),
            Kind::Secret | Kind::ConfigMap => self.touch_credential(key, dirty),
            _ => self.touch_layer7(key, dirty),
        }
    }

    /// Its pods, and if it is the door of a network the other doors and who is behind them. Who
    /// names it as a waypoint is told by how it stands.
    fn touch_gateway(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        mark(dirty, [key.clone()]);
        mark(dirty, self.objects.pods_of(key));
        self.touch_programmed(key, dirty);
        let gateway = self.objects.gateways.get(key);
        let Some(network) = gateway.and_then(|it| self.objects.door_of(it)) else {
            return;
        };
        let doors = self.objects.doors.get(network).into_iter();
        let abroad = self.objects.abroad.get(network).into_iter();
        mark(dirty, doors.chain(abroad).flatten().cloned());
    }

    /// The services that vouch for a WorkloadEntry because it is on another network.
    fn touch_vouching(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        let entry = self.objects.workload_entries.get(key);
        let Some(entry) = entry.filter(|it| it.endpoint.network.is_some()) else {
            return;
        };
        let selectors = &self.objects.service_selectors;
        let selecting = selectors.selecting(&key.namespace, &entry.labels);
        mark(dirty, selecting.into_iter().cloned());
    }

    /// Those who serve a Service or ServiceEntry.
    pub(super) fn touch_served(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        let service = self.objects.services.get(key).map(|it| &it.selector);
        let entry = self.objects.service_entries.get(key).map(|it| &it.selector);
        if let Some(selector) = service.or(entry) {
            self.touch_selected(&key.namespace, selector.as_ref(), dirty);
        }
    }

    fn touch_service(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        let slices = self
            .objects
            .slices_of_service
            .get(key)
            .into_iter()
            .flatten();
        mark(dirty, slices.cloned().chain([key.clone()]));
        let Some(service) = self.objects.services.get(key) else {
            return;
        };
        self.touch_host(&service.hostname, dirty);
        self.touch_selected(&key.namespace, service.selector.as_ref(), dirty);
        self.touch_claimants(&service.hostname, &key.namespace, dirty);
        // Who claims an address of its stands for its own hosts no more, or does again.
        let claimants = service.vips.iter();
        let claimants = claimants.filter_map(|vip| self.objects.claimed.get(vip));
        mark(dirty, claimants.flatten().cloned());
    }

    fn touch_service_entry(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        mark(dirty, [key.clone()]);
        let Some(entry) = self.objects.service_entries.get(key) else {
            return;
        };
        for host in &entry.hosts {
            self.touch_host(host, dirty);
        }
        self.touch_selected(&key.namespace, entry.selector.as_ref(), dirty);
        for host in &entry.hosts {
            self.touch_claimants(host, &key.namespace, dirty);
        }
    }

    /// Entries that ask for the same host: anywhere one may now stand for it, or stand no more; in
    /// the same namespace one may now have it, and with it its workloads.
    fn touch_claimants(&self, host: &str, namespace: &str, dirty: &mut BTreeSet<Builder>) {
        for claimant in self.objects.hosts.entries(host) {
            mark(dirty, [claimant.clone()]);
            if &*claimant.namespace == namespace
                && let Some(entry) = self.objects.service_entries.get(claimant)
            {
                self.touch_selected(namespace, entry.selector.as_ref(), dirty);
            }
        }
    }

    fn touch_selected(
        &self,
        namespace: &str,
        selector: Option<&Labels>,
        dirty: &mut BTreeSet<Builder>,
    ) {
        let Some(selector) = selector else { return };
        let mut selected = BTreeSet::new();
        self.objects
            .workloads
            .selected(namespace, selector, &mut selected);
        mark(dirty, selected);
    }

    fn touch_policy(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        mark(dirty, [key.clone()]);
        let Some(policy) = self.objects.policies.get(key) else {
            return;
        };
        let Some(authorization) = &policy.authorization else {
            return;
        };
        let everybody = Labels::new();
        let general = self.settings.auto_allow_waypoint && authorization.action() == Action::Allow;
        // Where one ALLOW applies, waypoints must be allowed too.
        let Some(selector) = policy.selector.as_ref().or(general.then_some(&everybody)) else {
            return;
        };
        if *key.namespace == *self.settings.root_namespace {
            let mut selected = BTreeSet::new();
            self.objects
                .workloads
                .selected_anywhere(selector, &mut selected);
            mark(dirty, selected);
        } else {
            self.touch_selected(&key.namespace, Some(selector), dirty);
        }
    }

    fn touch_peer(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        mark(dirty, [key.clone()]);
        dirty.insert(Builder::Strict);
        let Some(peer) = self.objects.peers.get(key) else {
            return;
        };
        let everybody = Labels::new();
        match &peer.selector {
            Some(selector) => self.touch_selected(&key.namespace, Some(selector), dirty),
            // The mesh's, and it may be inherited everywhere.
            None if *key.namespace == *self.settings.root_namespace => {
                let mut selected = BTreeSet::new();
                self.objects
                    .workloads
                    .selected_anywhere(&everybody, &mut selected);
                mark(dirty, selected);
                mark(dirty, self.objects.peer_selectors.all().cloned());
            }
            None => {
                self.touch_selected(&key.namespace, Some(&everybody), dirty);
                mark(
                    dirty,
                    self.objects.peer_selectors.of(&key.namespace).cloned(),
                );
            }
        }
    }
}

pub(super) fn mark(dirty: &mut BTreeSet<Builder>, keys: impl IntoIterator<Item = ObjectKey>) {
    dirty.extend(keys.into_iter().map(Builder::Object));
}
