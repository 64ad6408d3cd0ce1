//! Pods.

use std::net::IpAddr;
use std::sync::Arc;

use api::k8s::labels;
use api::k8s::objects;
use api::workload::{
    Locality, NetworkMode, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
};
use bytes::Bytes;

use super::egress::Egress;
use super::only::Only;
use super::ports::{self, ContainerPort};
use super::udp::Udp;
use super::waypoint::Choice;
use super::{Cluster, Labels, Membership, names, value};

/// What matters of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its uid in Kubernetes.
    pub uid: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its node; empty while it has none.
    pub node: Arc<str>,
    /// The account it runs as.
    pub service_account: Arc<str>,
    /// `status.phase`.
    pub phase: Arc<str>,
    /// Its ports, by name.
    pub ports: Vec<ContainerPort>,
    /// The Gateway it is a pod of.
    pub gateway: Option<Arc<str>>,
    /// The waypoint it names; a pod of a Gateway has none.
    pub waypoint: Choice,
    /// Whether it is reached only through its waypoints; never a pod of a Gateway.
    pub only: Only,
    /// Whom it may call that nobody knows.
    pub egress: Egress,
    /// Whether its UDP is carried.
    pub udp: Udp,
    /// No node agent writes its rules: it was given a proxy when it was made, or has one of its author's.
    pub own_proxy: bool,
    addresses: Vec<IpAddr>,
    healthy: bool,
    host_network: bool,
    tunnel: Tunnel,
    workload_name: String,
}

/// Whether, and by whom, HBONE is spoken for a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    captured: bool,
    native: bool,
}

impl Tunnel {
    /// From the label of the application's owner and the annotation of the node agent.
    pub fn read(labels: &Labels, annotations: &Labels) -> Self {
        Self {
            captured: value(annotations, labels::REDIRECTION) == Some(labels::REDIRECTION_ENABLED),
            native: value(labels, labels::TUNNEL) == Some(labels::TUNNEL_HTTP),
        }
    }

    /// Writes it into a workload.
    pub fn fill(self, workload: &mut Workload) {
        let protocol = if self.captured || self.native {
            TunnelProtocol::Hbone
        } else {
            TunnelProtocol::None
        };
        workload.tunnel_protocol = protocol.into();
        workload.native_tunnel = self.native;
    }
}

impl Pod {
    /// Keeps what matters.
    pub fn read(pod: &objects::Pod) -> Self {
        let metadata = &pod.metadata;
        let labels = metadata.labels.clone().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let account = spec.and_then(|spec| {
            spec.service_account_name
                .as_deref()
                .or(spec.service_account.as_deref())
        });
        let node = spec.and_then(|spec| spec.node_name.as_deref());
        let none = Labels::new();
        let annotations = metadata.annotations.as_ref().unwrap_or(&none);
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        let gateway = value(&labels, labels::GATEWAY_NAME);
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        Self {
            namespace: namespace.into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
            uid: metadata.uid.as_deref().unwrap_or_default().into(),
            node: node.unwrap_or_default().into(),
            service_account: account
                .filter(|account| !account.is_empty())
                .unwrap_or("default")
                .into(),
            phase: phase.unwrap_or_default().into(),
            ports: ports::of_pod(pod),
            addresses: addresses(pod),
            healthy: is_ready(pod) && metadata.deletion_timestamp.is_none(),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            tunnel: Tunnel::read(&labels, annotations),
            waypoint: match gateway {
                Some(_) => Choice::Nothing,
                None => Choice::read(&labels, annotations, namespace),
            },
            only: match gateway {
                Some(_) => Only::No,
                None => Only::read(&labels),
            },
            egress: Egress::read(&labels),
            udp: Udp::read(&labels),
            own_proxy: value(annotations, labels::SIDECAR_STATUS).is_some()
                || value(&labels, labels::DATAPLANE_MODE) == Some(labels::NONE),
            gateway: gateway.map(Arc::from),
            workload_name: workload_name(pod, &labels),
            labels,
        }
    }

    /// Its xDS name.
    pub fn resource_name(&self, cluster: &Cluster) -> String {
        format!("{}//Pod/{}/{}", cluster.id, self.namespace, self.name)
    }

    /// Whether somebody can be reached there, ready or not.
    pub fn has_address(&self) -> bool {
        !self.is_over() && !self.addresses.is_empty()
    }

    /// Whether it has ended for good.
    pub fn is_over(&self) -> bool {
        matches!(&*self.phase, "Succeeded" | "Failed")
    }

    /// The resource; none for a pod that has ended, or that nobody can reach yet.
    pub fn workload(
        &self,
        cluster: &Cluster,
        locality: Option<&Locality>,
        memberships: Vec<Membership>,
        policies: Vec<String>,
    ) -> Option<Workload> {
        if !self.has_address() {
            return None;
        }
        let mode = if self.host_network {
            NetworkMode::HostNetwork
        } else {
            NetworkMode::Standard
        };
        let status = if self.healthy {
            WorkloadStatus::Healthy
        } else {
            WorkloadStatus::Unhealthy
        };
        let mut workload = Workload {
            uid: self.resource_name(cluster),
            name: self.name.to_string(),
            namespace: self.namespace.to_string(),
            addresses: self.addresses.iter().copied().map(octets).collect(),
            network: cluster.network.clone(),
            cluster_id: cluster.id.clone(),
            trust_domain: cluster.trust_domain.clone(),
            service_account: self.service_account.to_string(),
            node: self.node.to_string(),
            locality: locality.cloned(),
            canonical_name: names::canonical(&self.labels, &self.workload_name),
            canonical_revision: names::revision(&self.labels),
            workload_type: WorkloadType::Pod.into(),
            workload_name: self.workload_name.clone(),
            network_mode: mode.into(),
            status: status.into(),
            services: memberships.into_iter().collect(),
            authorization_policies: policies,
            ..Workload::default()
        };
        self.tunnel.fill(&mut workload);
        Some(workload)
    }
}

/// An address as the wire has it: 4 or 16 bytes.
pub fn octets(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
    }
}

fn addresses(pod: &objects::Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let listed: Vec<IpAddr> = status
        .pod_ips
        .iter()
        .flatten()
        .filter_map(|ip| ip.ip.parse().ok())
        .collect();
    if listed.is_empty() {
        status
            .pod_ip
            .iter()
            .filter_map(|ip| ip.parse().ok())
            .collect()
    } else {
        listed
    }
}

fn is_ready(pod: &objects::Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The name of what made the pod: of the Deployment behind a ReplicaSet, of the CronJob behind a
/// Job, else of the controller itself, else its own. A label overrides.
fn workload_name(pod: &objects::Pod, labels: &Labels) -> String {
    let own = pod.metadata.name.clone().unwrap_or_default();
    if let Some(name) = value(labels, labels::WORKLOAD_NAME) {
        return name.to_owned();
    }
    let owners = pod.metadata.owner_references.iter().flatten();
    let Some(owner) = owners
        .into_iter()
        .find(|owner| owner.controller == Some(true))
    else {
        return own;
    };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash = value(labels, labels::POD_TEMPLATE_HASH);
            let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'));
            deployment.unwrap_or(&owner.name).to_owned()
        }
        "Job" => {
            // A CronJob names its Jobs after the minute, or in old versions the second, they are for.
            let scheduled = |time: &str| {
                (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit())
            };
            match owner.name.rsplit_once('-') {
                Some((cron, time)) if scheduled(time) => cron.to_owned(),
                _ => owner.name.clone(),
            }
        }
        _ => owner.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use api::k8s::objects;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

    use super::Pod;

    fn owned(kind: &str, owner: &str, controller: bool, hash: Option<&str>) -> String {
        let reference = OwnerReference {
            kind: kind.into(),
            name: owner.into(),
            controller: Some(controller),
            ..OwnerReference::default()
        };
        let pod = objects::Pod {
            metadata: ObjectMeta {
                name: Some("pod".into()),
                labels: hash.map(|hash| [("pod-template-hash".to_owned(), hash.to_owned())].into()),
                owner_references: Some(vec![reference]),
                ..ObjectMeta::default()
            },
            ..objects::Pod::default()
        };
        Pod::read(&pod).workload_name
    }

    #[test]
    fn a_workload_is_named_after_what_made_its_pods() {
        assert_eq!(owned("ReplicaSet", "web-5c9f", true, Some("5c9f")), "web");
        assert_eq!(owned("ReplicaSet", "web-5c9f", true, None), "web-5c9f");
        assert_eq!(owned("ReplicaSet", "web-5c9f", false, Some("5c9f")), "pod");
        assert_eq!(owned("Job", "backup-28912345", true, None), "backup");
        assert_eq!(owned("Job", "backup-once", true, None), "backup-once");
        assert_eq!(owned("StatefulSet", "db", true, None), "db");
    }
}
