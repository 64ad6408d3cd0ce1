//! Makes the resources of one object, from it and from what it depends on.

use std::net::IpAddr;

use api::k8s::labels;
use api::k8s::objects::{Kind, ObjectKey};

use super::addresses::{Addresses, Holder};
use super::{Builder, Output, World};
use crate::translate::peer_authentication::{self, Demand};
use crate::translate::resource::Resource;
use crate::translate::service_entry::{Host, ServiceEntry, Visibility};
use crate::translate::{Labels, Membership, ports};

impl World {
    pub(super) fn build(&mut self, builder: &Builder) -> Output {
        self.recomputed += 1;
        match builder {
            Builder::Strict => self.build_strict(),
            Builder::Object(key) => match key.kind {
                Kind::Pod => self.build_pod(key),
                Kind::WorkloadEntry => self.build_workload_entry(key),
                Kind::EndpointSlice => self.build_slice(key),
                Kind::Service => self.build_service(key),
                Kind::ServiceEntry => self.build_service_entry(key),
                Kind::AuthorizationPolicy => self.build_policy(key),
                Kind::PeerAuthentication => self.build_peer(key),
                Kind::Namespace
                | Kind::Node
                | Kind::ServiceAccount
                | Kind::Gateway
                | Kind::GatewayClass => None,
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
        let memberships = self.memberships(key, &pod.labels, |service| {
            ports::on_pod(service, &pod.ports)
        });
        let workload = pod.workload(
            &self.cluster,
            locality,
            memberships,
            self.policies_of(key, &pod.labels),
        )?;
        Some(Output {
            addresses: vec![Resource::workload(workload)],
            ..Output::default()
        })
    }

    fn build_workload_entry(&self, key: &ObjectKey) -> Option<Output> {
        let entry = self.objects.workload_entries.get(key)?;
        let memberships = self.memberships(key, &entry.labels, |service| {
            ports::on_endpoint(service, &entry.endpoint.ports)
        });
        let workload = entry.workload(
            &self.cluster,
            memberships,
            self.policies_of(key, &entry.labels),
        );
        Some(Output {
            addresses: vec![Resource::workload(workload)],
            ..Output::default()
        })
    }

    /// The services that a workload's labels make it serve.
    fn memberships(
        &self,
        workload: &ObjectKey,
        labels: &Labels,
        on: impl Fn(&[ports::ServicePort]) -> api::workload::PortList,
    ) -> Vec<Membership> {
        let mut memberships = Vec::new();
        for key in self
            .objects
            .service_selectors
            .selecting(&workload.namespace, labels)
        {
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

    /// The policies that a workload must name: sorted, the one for all who are strict last.
    fn policies_of(&self, workload: &ObjectKey, labels: &Labels) -> Vec<String> {
        let root = self.settings.root_namespace.as_str();
        let own = self
            .objects
            .policy_selectors
            .selecting(&workload.namespace, labels);
        let mesh = if *workload.namespace == *root {
            Default::default()
        } else {
            self.objects.policy_selectors.selecting(root, labels)
        };
        let selecting = own
            .into_iter()
            .chain(mesh)
            .filter_map(|key| self.objects.policies.get(key)?.resource_name());
        let mut names: Vec<String> = selecting.collect();

        let peers = self
            .objects
            .peer_selectors
            .selecting(&workload.namespace, labels);
        let peers = peers
            .into_iter()
            .filter_map(|key| Some((self.objects.peers.get(key)?, key)));
        let inherited = self.objects.is_strict(&workload.namespace, root);
        let oldest = peers
            .min_by_key(|(peer, key)| (peer.created, *key))
            .map(|(peer, _)| (peer, peer.demand(inherited)));
        let everywhere = match oldest {
            Some((peer, Demand::ByPort(_))) => {
                names.push(peer.resource_name());
                false
            }
            Some((_, demand)) => demand == Demand::Everywhere,
            None => inherited,
        };
        names.sort_unstable();
        if everywhere {
            names.push(peer_authentication::strict_name(root));
        }
        names
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
        let resource = service.resource(&self.cluster, namespace.distribution)?;
        let waypoint = service.waypoint.as_ref().or(namespace.waypoint.as_ref());
        Some(Output {
            addresses: vec![Resource::service(&resource)],
            remarks: unknown_waypoint(waypoint).into_iter().collect(),
            ..Output::default()
        })
    }

    fn build_service_entry(&mut self, key: &ObjectKey) -> Option<Output> {
        self.automatic.release(key);
        let namespace = self.objects.namespace(&key.namespace);
        let entry = self
            .objects
            .service_entries
            .get(key)
            .filter(|_| namespace.visibility != Visibility::None)?;
        let mut remarks = Vec::new();
        let mut hosts = Vec::new();
        for name in &entry.hosts {
            if let Some(rival) = self.objects.hosts.rival(name, key) {
                remarks.push(format!("host {name} is left to {rival}"));
                continue;
            }
            let canonical = self.objects.hosts.is_canonical(name, key);
            let automatic = automatic(&mut self.automatic, key, entry, name);
            if automatic.is_none() {
                remarks.push(format!("no automatic address is left for {name}"));
            }
            hosts.push(Host {
                name: name.clone(),
                canonical,
                automatic: automatic.unwrap_or_default(),
            });
        }
        let services = entry.services(
            &self.cluster,
            &hosts,
            namespace.visibility,
            namespace.distribution,
        );
        let (workloads, left_out) = entry.workloads(&self.cluster, &hosts);
        remarks.extend(left_out);
        remarks.extend(unknown_waypoint(
            entry.waypoint.as_ref().or(namespace.waypoint.as_ref()),
        ));
        let addresses = services
            .iter()
            .map(Resource::service)
            .chain(workloads.into_iter().map(Resource::workload));
        Some(Output {
            addresses: addresses.collect(),
            remarks,
            ..Output::default()
        })
    }

    fn build_policy(&self, key: &ObjectKey) -> Option<Output> {
        let policy = self.objects.policies.get(key)?;
        let authorizations = policy
            .authorization
            .iter()
            .map(Resource::authorization)
            .collect();
        Some(Output {
            authorizations,
            remarks: policy.remarks.clone(),
            ..Output::default()
        })
    }

    fn build_peer(&self, key: &ObjectKey) -> Option<Output> {
        let peer = self.objects.peers.get(key)?;
        peer.selector.as_ref()?;
        let inherited = self
            .objects
            .is_strict(&key.namespace, &self.settings.root_namespace);
        let Demand::ByPort(groups) = peer.demand(inherited) else {
            return None;
        };
        Some(Output {
            authorizations: vec![Resource::authorization(&peer.authorization(groups))],
            ..Output::default()
        })
    }

    /// There as soon as any PeerAuthentication is, needed or not: a workload may then come to need
    /// it at any time, and it must not arrive after the workload.
    fn build_strict(&self) -> Output {
        let policy = peer_authentication::strict_authorization(&self.settings.root_namespace);
        let authorizations =
            (!self.objects.peers.is_empty()).then(|| Resource::authorization(&policy));
        Output {
            authorizations: authorizations.into_iter().collect(),
            ..Output::default()
        }
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

/// Gateways are not read yet, so a waypoint that is named is one that nobody knows.
fn unknown_waypoint(name: Option<&String>) -> Option<String> {
    let name = name.filter(|name| *name != labels::NONE)?;
    Some(format!(
        "waypoint {name} is not known: connections go without it"
    ))
}
