//! Makes the resources of one object, from it and from what it depends on.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::k8s::objects::{Kind, ObjectKey};

use super::addresses::{Addresses, Holder};
use super::{Automatic, Builder, Output, World};
use crate::status::{self, Desired};
use crate::translate::gateway::Controller;
use crate::translate::resource::Resource;
use crate::translate::scope::{self, Scope};
use crate::translate::service_entry::{Host, ServiceEntry, Visibility};
use crate::translate::waypoint::Bound;
use crate::translate::workload_entry::Endpoint;
use crate::translate::{Labels, Membership, ports, waypoint};

impl World {
    pub(super) fn build(&mut self, builder: &Builder) -> Output {
        self.recomputed += 1;
        match builder {
            Builder::Strict => self.build_strict(),
            Builder::Waypoint(key) => self.build_waypoint(key).unwrap_or_default(),
            Builder::Towards(key) => self.build_towards(key),
            Builder::Object(key) => match key.kind {
                Kind::Pod => self.build_pod(key),
                Kind::WorkloadEntry => self.build_workload_entry(key),
                Kind::EndpointSlice => self.build_slice(key),
                Kind::Service => self.build_service(key),
                Kind::ServiceEntry => self.build_service_entry(key),
                Kind::AuthorizationPolicy => self.build_policy(key),
                Kind::PeerAuthentication => self.build_peer(key),
                Kind::Gateway => self.build_gateway(key),
                Kind::GatewayClass => self.build_class(key),
                Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                    self.build_route(key)
                }
                Kind::Secret | Kind::ConfigMap => self.build_credential(key),
                _ => self.build_layer7(key),
            }
            .unwrap_or_default(),
        }
    }

    fn build_pod(&self, key: &ObjectKey) -> Option<Output> {
        let pod = self.objects.pods.get(key)?;
        let node = ObjectKey::new(Kind::Node, "", &pod.node);
        let locality = self
            .objects
            .nodes
            .get(&node)
            .and_then(|node| node.locality.as_ref());
        let on = |service: &[ports::ServicePort]| ports::on_pod(service, &pod.ports);
        let memberships = self.memberships(key, &pod.labels, &self.cluster.network, on);
        let only = self.only_through(key, &pod.labels, on);
        let mut workload = pod.workload(
            &self.cluster,
            locality,
            memberships,
            self.policies_of(key, &pod.labels, only.as_ref()),
        )?;
        if let Some(bound) = self.bound(key) {
            bound.fill_workload(&mut workload);
        }
        workload.extensions.extend(self.egress(key));
        workload.extensions.extend(self.udp(key));
        if let Some(gateway) = &pod.gateway {
            let gateway = ObjectKey::new(Kind::Gateway, &key.namespace, gateway);
            workload.application_tunnel = self.objects.binding(&gateway);
        }
        let mut output = Output {
            resources: self.fronted_workload(key, &workload.uid),
            addresses: vec![Resource::workload(workload)],
            ..Output::default()
        };
        self.add_only(key, only.as_ref(), &mut output);
        output.remarks.extend(pod.egress.fault());
        output.remarks.extend(pod.udp.fault());
        Some(output)
    }

    fn build_workload_entry(&self, key: &ObjectKey) -> Option<Output> {
        let entry = self.objects.workload_entries.get(key)?;
        let on =
            |service: &[ports::ServicePort]| ports::on_endpoint(service, &entry.endpoint.ports);
        let network = entry.endpoint.network.as_deref().unwrap_or_default();
        let memberships = self.memberships(key, &entry.labels, network, on);
        let only = self.only_through(key, &entry.labels, on);
        let mut workload = entry.workload(
            &self.cluster,
            memberships,
            self.policies_of(key, &entry.labels, only.as_ref()),
        );
        workload.network_gateway = self.way_to(&workload.network);
        workload.extensions.extend(self.egress(key));
        workload.extensions.extend(self.udp(key));
        let bound = self.bound(key);
        let conditions = bound
            .iter()
            .map(|bound| status::waypoint::bound(bound, None))
            .chain(self.only_condition(key));
        let status = some(said(conditions));
        if let Some(bound) = bound {
            bound.fill_workload(&mut workload);
        }
        let mut output = Output {
            resources: self.fronted_workload(key, &workload.uid),
            addresses: vec![Resource::workload(workload)],
            status,
            ..Output::default()
        };
        self.add_only(key, only.as_ref(), &mut output);
        output
            .remarks
            .extend(self.kept_apart(key, &entry.labels, network));
        output.remarks.extend(entry.egress.fault());
        output.remarks.extend(entry.udp.fault());
        Some(output)
    }

    /// The way to a network that is not ours.
    fn way_to(&self, network: &str) -> Option<api::workload::GatewayAddress> {
        let abroad = self.is_abroad(network);
        let root = &self.settings.root_namespace;
        abroad.then(|| self.objects.door(network, root)).flatten()
    }

    pub(super) fn is_abroad(&self, network: &str) -> bool {
        !network.is_empty() && network != self.cluster.network
    }

    /// Who may answer for a service on other networks. A gateway chooses there, and clients believe only whom the
    /// service vouches for, so a GLOBAL one does for every endpoint that we know of: those that it selects, and its own.
    fn vouched(
        &self,
        key: &ObjectKey,
        selector: Option<&Labels>,
        own: &[Endpoint],
    ) -> BTreeSet<String> {
        if self.scope(key) == Scope::Local {
            return BTreeSet::new();
        }
        let mut selected = BTreeSet::new();
        let mut networks = self.objects.abroad.keys();
        if let Some(selector) = selector.filter(|_| networks.any(|it| self.is_abroad(it))) {
            let workloads = &self.objects.workloads;
            workloads.selected(&key.namespace, selector, &mut selected);
        }
        let entries = &self.objects.workload_entries;
        let selected = selected.iter().filter_map(|it| entries.get(it));
        let endpoints = selected.map(|it| &it.endpoint).chain(own);
        let abroad =
            endpoints.filter(|it| it.network.as_deref().is_some_and(|it| self.is_abroad(it)));
        let domain = &self.settings.trust_domain;
        let name = |endpoint: &Endpoint| {
            let account = endpoint.account();
            format!("spiffe://{domain}/ns/{}/sa/{account}", key.namespace)
        };
        abroad.map(name).collect()
    }

    /// The services that a workload's labels make it serve; on another network than ours, GLOBAL ones only.
    fn memberships(
        &self,
        workload: &ObjectKey,
        labels: &Labels,
        network: &str,
        on: impl Fn(&[ports::ServicePort]) -> api::workload::PortList,
    ) -> Vec<Membership> {
        let mut memberships = Vec::new();
        let abroad = self.is_abroad(network);
        for key in self
            .objects
            .service_selectors
            .selecting(&workload.namespace, labels)
        {
            if abroad && self.scope(key) == Scope::Local {
                continue;
            }
            if let Some(service) = self.objects.services.get(key) {
                memberships.push((service.resource_name(), on(&service.ports)));
            } else if let Some(entry) = self.objects.service_entries.get(key) {
                let hosts = entry
                    .hosts
                    .iter()
                    .filter(|host| self.objects.hosts.rival(host, key).is_none());
                memberships.extend(hosts.map(|host| (entry.resource_name(host), on(&entry.ports))));
            }
        }
        memberships
    }

    fn build_slice(&self, key: &ObjectKey) -> Option<Output> {
        let slice = self.objects.slices.get(key)?;
        let service = self.objects.services.get(&self.objects.service_of(key)?)?;
        let mut output = Output::default();
        for workload in slice.workloads(&self.cluster, service) {
            // An address listed twice is one workload; the first mention counts.
            let resource = Resource::workload(workload);
            if !output
                .addresses
                .iter()
                .any(|before| before.name == resource.name)
            {
                output.addresses.push(resource);
            }
        }
        Some(output)
    }

    fn build_service(&self, key: &ObjectKey) -> Option<Output> {
        let service = self.objects.services.get(key)?;
        let namespace = self.objects.namespace(&key.namespace);
        let mut resource = service.resource(&self.cluster, namespace.distribution)?;
        let vouched = self.vouched(key, service.selector.as_ref(), &[]);
        resource.subject_alt_names.extend(vouched);
        resource.extensions.extend(self.global(key));
        let ingress = service.ingress.or(namespace.ingress);
        let bound = self.bound(key);
        let conditions = bound
            .iter()
            .map(|bound| status::waypoint::bound(bound, ingress))
            .chain(self.only_condition(key));
        let status = some(said(conditions));
        let remarks = bound.as_ref().and_then(unbound);
        let remarks = remarks.into_iter().chain(service.only.fault()).collect();
        if let Some(bound) = bound {
            bound.fill_service(ingress == Some(true), &mut resource);
        }
        Some(Output {
            addresses: vec![Resource::service(&resource)],
            resources: self.fronted_services(key),
            remarks,
            status,
            ..Output::default()
        })
    }

    fn build_service_entry(&mut self, key: &ObjectKey) -> Option<Output> {
        self.automatic.release(key);
        let namespace = self.objects.namespace(&key.namespace);
        let bound = self.bound(key);
        let entry = self.objects.service_entries.get(key)?;
        let ingress = entry.ingress.or(namespace.ingress);
        let mut conditions = Vec::new();
        if !self.settings.service_entry_visibility.is_empty() {
            conditions.push(status::waypoint::visibility(namespace.visibility));
        }
        if entry.is_for_some && namespace.visibility == Visibility::Public {
            conditions.push(status::waypoint::seen_by_all());
        }
        if namespace.visibility == Visibility::None {
            return Some(Output {
                status: Some(said(conditions)),
                ..Output::default()
            });
        }
        conditions.extend(
            bound
                .iter()
                .map(|bound| status::waypoint::bound(bound, ingress)),
        );
        conditions.extend(self.only_condition(key));
        let usable = bound.as_ref().is_some_and(|bound| bound.problem.is_none());
        if !usable && entry.hosts.iter().any(|host| host.starts_with('*')) {
            conditions.push(status::waypoint::wildcard());
        }
        let mut remarks: Vec<String> = entry.only.fault().into_iter().collect();
        // Who may write entries of one namespace does not say for all others where the addresses of Services lead.
        let robbed = self.objects.robbed_by(entry);
        remarks.extend(robbed.map(|(address, service)| {
            format!("address {address} is that of {service}, whom callers of other namespaces mean")
        }));
        let mut hosts = Vec::new();
        for name in &entry.hosts {
            if let Some(rival) = self.objects.hosts.rival(name, key) {
                remarks.push(format!("host {name} is left to {rival}"));
                continue;
            }
            let canonical = robbed.is_none() && self.objects.hosts.is_canonical(name, key);
            let automatic = match self.settings.automatic_addresses {
                Automatic::Allocated => automatic(&mut self.automatic, key, entry, name),
                Automatic::FromStatus => Some(entry.given_to(name)),
            };
            if automatic.is_none() {
                remarks.push(format!("no automatic address is left for {name}"));
            }
            hosts.push(Host {
                name: name.clone(),
                canonical,
                automatic: automatic.unwrap_or_default(),
            });
        }
        let mut services = entry.services(
            &self.cluster,
            &hosts,
            namespace.visibility,
            namespace.distribution,
        );
        let vouched = self.vouched(key, entry.selector.as_ref(), entry.endpoints());
        for service in &mut services {
            let names = &mut service.subject_alt_names;
            let new = vouched.iter().filter(|name| !names.contains(name));
            let new: Vec<String> = new.cloned().collect();
            names.extend(new);
            service.extensions.extend(self.global(key));
        }
        let (mut workloads, left_out) = entry.workloads(&self.cluster, &hosts);
        remarks.extend(left_out);
        let (is_local, mut apart) = (self.scope(key) == Scope::Local, BTreeSet::new());
        for workload in &mut workloads {
            workload.network_gateway = self.way_to(&workload.network);
            if is_local && self.is_abroad(&workload.network) {
                workload.services.clear();
                apart.insert(workload.network.clone());
            }
        }
        let apart = apart.iter();
        remarks.extend(apart.map(|network| scope::kept_apart(key, network)));
        remarks.extend(bound.as_ref().and_then(unbound));
        if let Some(bound) = bound {
            for service in &mut services {
                bound.clone().fill_service(ingress == Some(true), service);
            }
        }
        let addresses = services
            .iter()
            .map(Resource::service)
            .chain(workloads.into_iter().map(Resource::workload));
        Some(Output {
            addresses: addresses.collect(),
            resources: self.fronted_services(key),
            remarks,
            status: Some(said(conditions)),
            ..Output::default()
        })
    }

    fn build_gateway(&self, key: &ObjectKey) -> Option<Output> {
        let gateway = self.objects.gateways.get(key)?;
        let controller = self.objects.controller(gateway);
        let places = self
            .objects
            .standings
            .get(key)
            .map(|it| it.places.as_slice());
        let places = places.unwrap_or_default();
        // What an east-west gateway leads on arrives with the client's own identity.
        let stands_between = controller != Controller::EastWest;
        let allowing = self.settings.auto_allow_waypoint && stands_between && !places.is_empty();
        let domain = &self.settings.trust_domain;
        let authorization = allowing.then(|| waypoint::allow(key, domain, &gateway.account));
        let unknown = controller == Controller::Other;
        let remark = unknown.then(|| {
            format!(
                "nobody here looks after Gateways of class {}: this one is left alone",
                gateway.class
            )
        });
        Some(Output {
            addresses: self
                .doors(key)
                .into_iter()
                .map(|door| {
                    Resource::workload(api::workload::Workload {
                        trust_domain: self.cluster.trust_domain.clone(),
                        ..door
                    })
                })
                .collect(),
            authorizations: authorization.iter().map(Resource::authorization).collect(),
            remarks: remark.into_iter().collect(),
            status: status::gateway::gateway(gateway, controller, places),
            ..Output::default()
        })
    }

    fn build_class(&self, key: &ObjectKey) -> Option<Output> {
        let class = self.objects.classes.get(key)?;
        Some(Output {
            status: status::gateway::class(&key.name, class),
            ..Output::default()
        })
    }
}

/// The automatic addresses of a host: empty if it wants none, none if none is left.
fn automatic(
    table: &mut Addresses,
    key: &ObjectKey,
    entry: &ServiceEntry,
    host: &str,
) -> Option<Vec<IpAddr>> {
    if !entry.wants_addresses(host) {
        return Some(Vec::new());
    }
    let given: Vec<IpAddr> = entry
        .given
        .iter()
        .filter(|(name, _)| name == host)
        .map(|(_, address)| *address)
        .collect();
    let holder = Holder {
        namespace: key.namespace.to_string(),
        host: host.to_owned(),
    };
    table.take(holder, key, &given).map(Vec::from)
}

/// A status of nothing but conditions.
fn said(conditions: impl IntoIterator<Item = status::Condition>) -> Desired {
    Desired {
        conditions: conditions.into_iter().collect(),
        ..Desired::default()
    }
}

fn some(said: Desired) -> Option<Desired> {
    (!said.conditions.is_empty()).then_some(said)
}

/// What there is to say aloud about a waypoint that is not used.
fn unbound(bound: &Bound) -> Option<String> {
    bound.problem.as_ref()?;
    Some(status::waypoint::bound(bound, None).message)
}
