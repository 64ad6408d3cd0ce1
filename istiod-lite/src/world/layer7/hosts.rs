//! VirtualServices: for which services of which waypoints they are.
//!
//! A waypoint takes those of its own namespace and those of the service's, if they are exported to it: nobody else
//! may say where requests to a service go.

use std::collections::{BTreeMap, BTreeSet};

use api::k8s::istio::virtual_service::VirtualServiceSpec;
use api::k8s::objects::ObjectKey;
use api::waypoint as wire;
use wire::resource::Kind as Told;

use super::shown;
use crate::status::{Condition, Desired};
use crate::translate::Labels;
use crate::translate::layer7::backend::choose::is_for;
use crate::translate::layer7::virtual_service::{Found, Place, is_for_the_mesh, routes};
use crate::translate::layer7::{Layer7, host};
use crate::translate::resource::Resource;
use crate::world::{Output, World};

/// The services, by the Gateway in front of them.
type Parents = BTreeMap<ObjectKey, Vec<wire::ServiceRef>>;

impl World {
    pub(super) fn virtual_service(&self, policy: &Layer7, spec: &VirtualServiceSpec) -> Output {
        let parents = self.parents_of(policy, spec);
        let namespace = &policy.key.namespace;
        let find = |host: &str| self.found_host(host, namespace);
        let having = |labels: &Labels, namespace: Option<&str>| self.having(labels, namespace);
        let mut resources = Vec::new();
        let mut remarks = Vec::new();
        for (gateway, services) in &parents {
            let made = routes(
                spec,
                &Place {
                    namespace,
                    domain: &self.cluster.domain,
                    parents: services,
                    find: &find,
                    having: &having,
                },
            );
            remarks = made.remarks;
            let http = made.http.into_iter();
            let http = http.map(|it| (it.rule, it.index, Told::Route(it.route)));
            let tcp = made.tcp.into_iter();
            let tcp = tcp.map(|it| (it.rule, it.index, Told::TcpRoute(it.route)));
            for (rule, index, told) in http.chain(tcp) {
                let resource = policy.resource(&rule, index, told);
                resources.push(Resource::waypoint(gateway, &resource));
            }
        }
        let status = (!parents.is_empty()).then(|| said(policy, &parents, &remarks));
        Output {
            resources,
            remarks,
            status,
            ..Output::default()
        }
    }

    /// The Gateways that a VirtualService is for.
    pub(super) fn gateways_of_hosts(
        &self,
        policy: &Layer7,
        spec: &VirtualServiceSpec,
    ) -> BTreeSet<ObjectKey> {
        self.parents_of(policy, spec).into_keys().collect()
    }

    fn parents_of(&self, policy: &Layer7, spec: &VirtualServiceSpec) -> Parents {
        let mut parents = Parents::new();
        if !is_for_the_mesh(spec) {
            return parents;
        }
        let own = &policy.key.namespace;
        let mut services = BTreeSet::new();
        for pattern in &policy.hosts {
            if pattern.starts_with('*') {
                services.extend(self.objects.hosts.having(pattern));
            } else {
                services.extend(self.objects.hosts.holder(pattern, own));
            }
        }
        for service in services {
            for gateway in self.in_front(service) {
                let may = service.namespace == *own || gateway.namespace == *own;
                if !may || !is_for(&spec.export_to, own, &gateway.namespace) {
                    continue;
                }
                let refs = self.service_refs(service).into_iter();
                let meant = |it: &wire::ServiceRef| {
                    policy
                        .hosts
                        .iter()
                        .any(|pattern| host::matches(pattern, &it.hostname))
                };
                let refs: Vec<_> = refs.filter(meant).collect();
                if !refs.is_empty() {
                    parents.entry(gateway).or_default().extend(refs);
                }
            }
        }
        parents
    }

    /// The workloads that have these labels, in a namespace or in all, by uid, sorted.
    fn having(&self, labels: &Labels, namespace: Option<&str>) -> Vec<String> {
        let (workloads, mut found) = (&self.objects.workloads, BTreeSet::new());
        match namespace {
            Some(namespace) => workloads.selected(namespace, labels, &mut found),
            None => workloads.selected_anywhere(labels, &mut found),
        }
        let mut uids: Vec<String> = found.iter().filter_map(|it| self.uid_of(it)).collect();
        uids.sort_unstable();
        uids
    }

    /// The service that has a host, as those of a namespace see it.
    pub(super) fn found_host(&self, host: &str, namespace: &str) -> Option<Found> {
        let key = self.objects.hosts.holder(host, namespace)?;
        let service = self.objects.services.get(key).map(|it| &it.ports);
        let entry = || self.objects.service_entries.get(key).map(|it| &it.ports);
        let ports = service.or_else(entry)?.iter();
        Some(Found {
            namespace: key.namespace.to_string(),
            ports: ports.map(|it| it.number).collect(),
        })
    }
}

fn said(policy: &Layer7, parents: &Parents, remarks: &[String]) -> Desired {
    let gateways: Vec<String> = parents.keys().map(shown).collect();
    let routed = format!("routes requests at {}", gateways.join(", "));
    let (status, reason, message) = match remarks {
        [] => (true, "Accepted", routed),
        remarks => (
            false,
            "PartiallyInvalid",
            format!("{routed}; {}", remarks.join("; ")),
        ),
    };
    Desired {
        generation: policy.generation,
        conditions: vec![Condition {
            r#type: "ambit.io/Accepted",
            status,
            reason: reason.to_owned(),
            message,
        }],
        ..Desired::default()
    }
}
