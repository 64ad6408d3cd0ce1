//! Which waypoints stand in front of what, and what each is told of itself.
//!
//! A waypoint is told of everything that names it, is let in and is of its kind of traffic, ready or
//! not: it must know its work before it can be ready.

use std::collections::BTreeSet;
use std::time::Duration;

use api::k8s::objects::{Kind, ObjectKey};
use api::waypoint as wire;

use super::waypoints::traffic_of;
use super::{LEAVING, Output, World};
use crate::translate::gateway::Controller;
use crate::translate::resource::Resource;
use crate::translate::waypoint::{Standing, Traffic};

impl World {
    /// The Gateways of ours that are concerned by what is attached to an object: those in front of
    /// a Service, ServiceEntry, WorkloadEntry or Pod, those that it has just left, a Gateway itself, all of a
    /// GatewayClass.
    pub(super) fn in_front(&self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        let mut gateways = self.named_by(key);
        let left = self.left.by(key).filter(|it| self.is_programmed(it));
        gateways.extend(left.cloned());
        gateways
    }

    /// The same without those that it has left.
    pub(super) fn named_by(&self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        let mut gateways: BTreeSet<ObjectKey> = match key.kind {
            Kind::Gateway => [key.clone()].into(),
            Kind::GatewayClass => {
                let gateways = self.objects.gateways_of_class.get(&key.name);
                gateways.cloned().unwrap_or_default()
            }
            _ => {
                let wanted = self.objects.wanted(key);
                let gateways = wanted.iter().flat_map(|it| it.gateways());
                let fronting = gateways.filter(|gateway| self.fronts(gateway, key));
                fronting.cloned().collect()
            }
        };
        gateways.retain(|gateway| self.is_programmed(gateway));
        gateways
    }

    /// Every Gateway of ours in a namespace; with the empty name, in all.
    pub(super) fn programmed_in(&self, namespace: &str) -> impl Iterator<Item = &ObjectKey> {
        let gateways = self.objects.gateways.keys();
        gateways.filter(move |gateway| {
            (namespace.is_empty() || *gateway.namespace == *namespace)
                && self.is_programmed(gateway)
        })
    }

    /// Whether it is there, and we tell it what to do.
    pub(super) fn is_programmed(&self, gateway: &ObjectKey) -> bool {
        let found = self.objects.gateways.get(gateway);
        found.is_some_and(|it| self.objects.controller(it) == Controller::Mesh)
    }

    fn fronts(&self, gateway: &ObjectKey, key: &ObjectKey) -> bool {
        let Some(standing) = self.objects.standings.get(gateway) else {
            return false;
        };
        standing.takes(traffic_of(key.kind)) == Some(true) && self.admits(standing, gateway, key)
    }

    /// A Service, or what is left to a ServiceEntry of its hosts, as proxies are told it; all ports. Of an entry that nobody is told,
    /// there is nothing.
    pub(super) fn service_refs(&self, key: &ObjectKey) -> Vec<wire::ServiceRef> {
        let named = |hostname: &String| wire::ServiceRef {
            namespace: key.namespace.to_string(),
            hostname: hostname.clone(),
            port: 0,
        };
        if let Some(service) = self.objects.services.get(key) {
            let alias = service.is_alias;
            return (!alias)
                .then(|| named(&service.hostname))
                .into_iter()
                .collect();
        }
        let entry = self.objects.service_entries.get(key);
        let hosts = entry.into_iter().flat_map(|entry| &entry.hosts);
        let known = &self.objects.hosts;
        let asked = |host: &&String| known.entries(host).any(|entry| entry == key);
        let left = hosts.filter(|host| asked(host) && known.rival(host, key).is_none());
        left.map(named).collect()
    }

    /// What the Gateways in front of a Service or ServiceEntry are told because of that.
    pub(super) fn fronted_services(&self, key: &ObjectKey) -> Vec<Resource> {
        let gateways = self.in_front(key);
        if gateways.is_empty() {
            return Vec::new();
        }
        let services = self.service_refs(key).into_iter();
        let told = services.flat_map(|it| {
            let place = format!("service/{}/{}", it.namespace, it.hostname);
            self.fronted(key, &gateways, &place, wire::fronted::It::Service(it))
        });
        told.collect()
    }

    /// The same of a Pod or WorkloadEntry.
    pub(super) fn fronted_workload(&self, key: &ObjectKey, uid: &str) -> Vec<Resource> {
        let gateways = self.in_front(key);
        if gateways.is_empty() {
            return Vec::new();
        }
        let it = wire::fronted::It::Workload(uid.to_owned());
        self.fronted(key, &gateways, &format!("workload/{uid}"), it)
    }

    fn fronted(
        &self,
        key: &ObjectKey,
        gateways: &BTreeSet<ObjectKey>,
        place: &str,
        it: wire::fronted::It,
    ) -> Vec<Resource> {
        let (left, staying): (BTreeSet<_>, BTreeSet<_>) = gateways
            .iter()
            .cloned()
            .partition(|gateway| self.left.has(key, gateway));
        let told = |leaving: Duration, it| wire::Resource {
            key: format!("fronted/{place}"),
            origin: Some(wire::Origin {
                kind: key.kind.name().into(),
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                ..wire::Origin::default()
            }),
            kind: Some(wire::resource::Kind::Fronted(wire::Fronted {
                it: Some(it),
                leaving: u64::try_from(leaving.as_millis()).unwrap_or(u64::MAX),
            })),
        };
        let mut resources = Vec::new();
        if !left.is_empty() {
            resources = Resource::waypoints(&left, &told(LEAVING, it.clone()));
        }
        resources.extend(Resource::waypoints(&staying, &told(Duration::ZERO, it)));
        resources
    }

    /// What a waypoint is told of itself.
    pub(super) fn build_waypoint(&self, key: &ObjectKey) -> Option<Output> {
        if !self.is_programmed(key) {
            return None;
        }
        let gateway = self.objects.gateways.get(key)?;
        let standing = self.objects.standings.get(key)?;
        let told = wire::Gateway {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            class: gateway.class.to_string(),
            trust_domain: self.settings.trust_domain.clone(),
            trust_domain_aliases: self.settings.trust_domain_aliases.clone(),
            root_namespace: self.settings.root_namespace.clone(),
            network: self.cluster.network.clone(),
            cluster: self.settings.cluster_id.clone(),
            forward_client_cert: gateway.client_cert.into(),
            workloads: takes_workloads(standing),
        };
        let resource = wire::Resource {
            key: format!("gateway/{}/{}", key.namespace, key.name),
            origin: Some(wire::Origin {
                kind: Kind::Gateway.name().into(),
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                ..wire::Origin::default()
            }),
            kind: Some(wire::resource::Kind::Gateway(told)),
        };
        let mut resources = self.providers(key);
        resources.push(Resource::waypoint(key, &resource));
        Some(Output {
            resources,
            ..Output::default()
        })
    }
}

fn takes_workloads(standing: &Standing) -> bool {
    standing.takes(Traffic::Workload) == Some(true)
}
