//! WorkloadEntries, and the inline endpoints of ServiceEntries, which are spelled alike.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::k8s::istio::{self, WorkloadEntrySpec};
use api::workload::{Locality, Workload, WorkloadStatus, WorkloadType};

use super::egress::Egress;
use super::only::Only;
use super::pod::{Tunnel, octets};
use super::udp::Udp;
use super::waypoint::Choice;
use super::{Cluster, Labels, Membership, locality, names, value};
use api::k8s::labels;

/// Where an endpoint is, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// How it is reached.
    pub address: Reach,
    /// Its ports, by the names of the service's.
    pub ports: BTreeMap<String, u32>,
    /// Its labels.
    pub labels: Labels,
    /// Its network, if it says so.
    pub network: Option<String>,
    locality: Option<Locality>,
    weight: u32,
    service_account: String,
}

/// How an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// At an address.
    Ip(IpAddr),
    /// At a name that the proxy resolves.
    Host(String),
    /// Through the gateway of its network.
    Gateway,
}

impl Endpoint {
    /// Keeps what matters.
    pub fn read(spec: &WorkloadEntrySpec) -> Self {
        Self {
            address: match spec.address.parse() {
                Ok(ip) => Reach::Ip(ip),
                Err(_) if spec.address.is_empty() => Reach::Gateway,
                Err(_) => Reach::Host(spec.address.clone()),
            },
            ports: spec.ports.clone(),
            labels: spec.labels.clone(),
            network: Some(spec.network.clone()).filter(|network| !network.is_empty()),
            locality: locality::of_text(&spec.locality),
            weight: spec.weight,
            service_account: spec.service_account.clone(),
        }
    }

    /// The account it runs as; `default` where none is named.
    pub fn account(&self) -> &str {
        match self.service_account.as_str() {
            "" => "default",
            account => account,
        }
    }

    /// The part of a workload that an endpoint decides.
    pub fn workload(&self, cluster: &Cluster, memberships: Vec<Membership>) -> Workload {
        let mut workload = Workload {
            network: self
                .network
                .clone()
                .unwrap_or_else(|| cluster.network.clone()),
            cluster_id: cluster.id.clone(),
            trust_domain: cluster.trust_domain.clone(),
            service_account: self.service_account.clone(),
            locality: self.locality.clone(),
            capacity: (self.weight > 0).then_some(self.weight),
            workload_type: WorkloadType::Pod.into(),
            services: memberships.into_iter().collect(),
            ..Workload::default()
        };
        match &self.address {
            Reach::Ip(ip) => workload.addresses = vec![octets(*ip)],
            Reach::Host(host) => workload.hostname = host.clone(),
            Reach::Gateway => {}
        }
        workload
    }
}

/// What matters of a WorkloadEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Those of the object and of the workload it describes together; the latter prevail.
    pub labels: Labels,
    /// Where it is.
    pub endpoint: Endpoint,
    /// The waypoint it names.
    pub waypoint: Choice,
    /// Whether it is reached only through its waypoints.
    pub only: Only,
    /// Whom it may call that nobody knows.
    pub egress: Egress,
    /// Whether its UDP is carried.
    pub udp: Udp,
    tunnel: Tunnel,
    /// Its machine says that it is not well, or nothing.
    pub(crate) unhealthy: bool,
}

impl WorkloadEntry {
    /// Keeps what matters.
    pub fn read(entry: &istio::WorkloadEntry) -> Self {
        let metadata = &entry.metadata;
        let mut labels = metadata.labels.clone().unwrap_or_default();
        labels.extend(entry.spec.labels.clone());
        let none = Labels::new();
        let annotations = metadata.annotations.as_ref().unwrap_or(&none);
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        Self {
            namespace: namespace.into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
            endpoint: Endpoint::read(&entry.spec),
            tunnel: Tunnel::read(&labels, annotations),
            unhealthy: is_unhealthy(entry, annotations),
            waypoint: Choice::read(&labels, annotations, namespace),
            only: Only::read(&labels),
            egress: Egress::read(&labels),
            udp: Udp::read(&labels),
            labels,
        }
    }

    /// Its xDS name.
    pub fn resource_name(&self, cluster: &Cluster) -> String {
        format!(
            "{}/networking.istio.io/WorkloadEntry/{}/{}",
            cluster.id, self.namespace, self.name
        )
    }

    /// The resource.
    pub fn workload(
        &self,
        cluster: &Cluster,
        memberships: Vec<Membership>,
        policies: Vec<String>,
    ) -> Workload {
        let workload_name = value(&self.labels, labels::WORKLOAD_NAME).unwrap_or(&self.name);
        let mut workload = Workload {
            uid: self.resource_name(cluster),
            name: self.name.to_string(),
            namespace: self.namespace.to_string(),
            canonical_name: names::canonical(&self.labels, workload_name),
            canonical_revision: names::revision(&self.labels),
            workload_name: workload_name.to_owned(),
            authorization_policies: policies,
            ..self.endpoint.workload(cluster, memberships)
        };
        self.tunnel.fill(&mut workload);
        if self.unhealthy {
            workload.status = WorkloadStatus::Unhealthy.into();
        }
        workload
    }
}

/// Whether it gets no new connections: its machine says that it is not well, has not said yet that it is, or is away.
fn is_unhealthy(entry: &istio::WorkloadEntry, annotations: &Labels) -> bool {
    let has = |key| annotations.contains_key(key);
    let away = has(labels::AUTO_REGISTRATION_GROUP) && has(labels::DISCONNECTED_AT);
    let asked = value(annotations, labels::HEALTH_CHECKS) == Some("true");
    let conditions = entry.status.iter().flat_map(|status| &status.conditions);
    let mut conditions = conditions.filter(|it| it.r#type == labels::HEALTHY);
    let well = conditions.any(|it| it.status == "True");
    has(labels::UNHEALTHY) || away || (asked && !well)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_must_say_that_it_is_well_gets_connections_only_while_it_says_so_and_is_there() {
        let asked = ("proxy.istio.io/health-checks-enabled", "true");
        let made = ("istio.io/autoRegistrationGroup", "db");
        let gone = ("istio.io/disconnectedAt", "2026-01-01T00:00:00Z");
        type Case = (
            &'static str,
            Vec<(&'static str, &'static str)>,
            Option<&'static str>,
            bool,
        );
        let cases: [Case; 9] = [
            ("nobody asks", vec![], None, true),
            (
                "nobody asks, whatever was said before",
                vec![],
                Some("False"),
                true,
            ),
            ("asked, and has not answered", vec![asked], None, false),
            ("asked, and is well", vec![asked], Some("True"), true),
            ("asked, and is not", vec![asked], Some("False"), false),
            (
                "asked, and nobody knows",
                vec![asked],
                Some("Unknown"),
                false,
            ),
            (
                "well, and went",
                vec![asked, made, gone],
                Some("True"),
                false,
            ),
            ("went", vec![made, gone], None, false),
            (
                "says why not",
                vec![("ambit.io/unhealthy", "no")],
                None,
                false,
            ),
        ];
        for (what, annotations, healthy, well) in cases {
            let annotations: Labels = annotations
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            let conditions: Vec<_> = [("istio.io/WaypointBound", "True")]
                .into_iter()
                .chain(healthy.map(|status| ("Healthy", status)))
                .map(|(r#type, status)| json!({"type": r#type, "status": status, "message": "m"}))
                .collect();
            let entry = json!({
                "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
                "metadata": {"name": "db-1", "namespace": "shop", "annotations": annotations},
                "spec": {"address": "192.0.2.1"}, "status": {"conditions": conditions, "more": 1},
            });
            let entry = serde_json::from_value(entry).unwrap();
            assert_eq!(!WorkloadEntry::read(&entry).unhealthy, well, "{what}");
        }
    }
}
