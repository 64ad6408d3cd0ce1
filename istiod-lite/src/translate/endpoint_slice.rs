//! EndpointSlices of Services without a selector: endpoints outside the cluster.
//!
//! Where a Service has a selector, its endpoints are found through that, without the detour over
//! the slices that Kubernetes writes.

use std::net::IpAddr;
use std::sync::Arc;

use api::k8s::labels;
use api::k8s::objects;
use api::workload::{NetworkMode, Workload, WorkloadStatus};

use super::Cluster;
use super::pod::octets;
use super::ports;
use super::service::Service;

/// What matters of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The name of its Service, in the same namespace.
    pub service: Option<Arc<str>>,
    ports: Vec<(String, u32)>,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    addresses: Vec<IpAddr>,
    ready: bool,
}

impl EndpointSlice {
    /// Keeps what matters: an endpoint that is a pod is not ours to describe.
    pub fn read(slice: &objects::EndpointSlice) -> Self {
        let metadata = &slice.metadata;
        let is_pod = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
            endpoint
                .target_ref
                .as_ref()
                .and_then(|target| target.kind.as_deref())
                == Some("Pod")
        };
        let endpoints = slice
            .endpoints
            .iter()
            .flatten()
            .filter(|endpoint| !is_pod(endpoint))
            .map(|endpoint| Endpoint {
                addresses: endpoint
                    .addresses
                    .iter()
                    .filter_map(|address| address.parse().ok())
                    .collect(),
                // Unsaid means ready.
                ready: endpoint
                    .conditions
                    .as_ref()
                    .and_then(|conditions| conditions.ready)
                    .unwrap_or(true),
            });
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some((
                port.name.clone().unwrap_or_default(),
                u32::try_from(port.port?).ok()?,
            ))
        });
        Self {
            namespace: metadata.namespace.as_deref().unwrap_or("default").into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
            service: metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(labels::SERVICE_NAME))
                .map(|name| name.as_str().into()),
            ports: ports.collect(),
            endpoints: endpoints
                .filter(|endpoint| !endpoint.addresses.is_empty())
                .collect(),
        }
    }

    /// The resources, given the slice's Service.
    pub fn workloads(&self, cluster: &Cluster, service: &Service) -> Vec<Workload> {
        if service.selector.is_some() || service.is_alias {
            return Vec::new();
        }
        let ports = ports::on_slice(&service.ports, &self.ports);
        let workload = |endpoint: &Endpoint| Workload {
            uid: format!(
                "{}/discovery.k8s.io/EndpointSlice/{}/{}/{}",
                cluster.id, self.namespace, self.name, endpoint.addresses[0]
            ),
            name: self.name.to_string(),
            namespace: self.namespace.to_string(),
            addresses: endpoint.addresses.iter().copied().map(octets).collect(),
            network: cluster.network.clone(),
            cluster_id: cluster.id.clone(),
            trust_domain: cluster.trust_domain.clone(),
            network_mode: NetworkMode::HostNetwork.into(),
            status: if endpoint.ready {
                WorkloadStatus::Healthy
            } else {
                WorkloadStatus::Unhealthy
            }
            .into(),
            services: [(service.resource_name(), ports.clone())].into(),
            ..Workload::default()
        };
        self.endpoints.iter().map(workload).collect()
    }
}
