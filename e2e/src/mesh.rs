//! The parts of the mesh: logs, metrics, restarts.

use std::{fmt::Debug, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, StatefulSet},
        core::v1::Pod as PodObject,
    },
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{LogParams, Patch, PatchParams},
    core::NamespaceResourceScope,
};
use lab::{AccessRecord, Metrics};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{
    cluster::Cluster,
    wait::{eventually, until_within},
};

/// Where the mesh is installed.
pub const SYSTEM: &str = "istio-system";

/// A part of the mesh by the label its pods carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The control plane.
    Istiod,
    /// The node proxy.
    Ztunnel,
    /// The node agent.
    Agent,
}

impl Part {
    /// All parts.
    pub const ALL: [Self; 3] = [Self::Istiod, Self::Ztunnel, Self::Agent];

    /// What selects its pods.
    pub fn labels(self) -> &'static str {
        match self {
            Self::Istiod => "app=istiod",
            Self::Ztunnel => "app=ztunnel",
            Self::Agent => "k8s-app=istio-cni-node",
        }
    }

    /// The name of its Deployment or DaemonSet.
    pub fn name(self) -> &'static str {
        match self {
            Self::Istiod => "istiod",
            Self::Ztunnel => "ztunnel",
            Self::Agent => "istio-cni-node",
        }
    }

    /// The port where its metrics are.
    pub fn metrics(self) -> u16 {
        match self {
            Self::Istiod | Self::Agent => 15014,
            Self::Ztunnel => 15020,
        }
    }
}

/// The mesh of the cluster.
pub struct Mesh {
    cluster: Cluster,
}

/// What replaces its pods one by one.
pub trait Rolls:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + Debug
    + Send
    + DeserializeOwned
    + 'static
{
    /// Whether all pods are of the newest template and ready.
    fn rolled_out(&self) -> bool;
}

impl Rolls for Deployment {
    fn rolled_out(&self) -> bool {
        let (Some(spec), Some(status)) = (&self.spec, &self.status) else {
            return false;
        };
        let wanted = spec.replicas.unwrap_or(1);
        status.observed_generation == self.metadata.generation
            && status.updated_replicas.unwrap_or(0) == wanted
            && status.replicas.unwrap_or(0) == wanted
            && status.available_replicas.unwrap_or(0) == wanted
    }
}

impl Rolls for DaemonSet {
    fn rolled_out(&self) -> bool {
        let Some(status) = &self.status else {
            return false;
        };
        let wanted = status.desired_number_scheduled;
        status.observed_generation == self.metadata.generation
            && status.updated_number_scheduled.unwrap_or(0) == wanted
            && status.number_available.unwrap_or(0) == wanted
            && status.number_unavailable.unwrap_or(0) == 0
    }
}

impl Rolls for StatefulSet {
    fn rolled_out(&self) -> bool {
        let (Some(spec), Some(status)) = (&self.spec, &self.status) else {
            return false;
        };
        let wanted = spec.replicas.unwrap_or(1);
        status.observed_generation == self.metadata.generation
            && status.ready_replicas.unwrap_or(0) == wanted
            && status.updated_replicas.unwrap_or(0) == wanted
    }
}

impl Mesh {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// The pods of a part.
    pub async fn pods(&self, part: Part) -> Result<Vec<PodObject>> {
        self.cluster.pods(SYSTEM, part.labels()).await
    }

    /// Those that are not on their way out: a replaced ztunnel drains for half a minute.
    pub async fn staying(&self, part: Part) -> Result<Vec<PodObject>> {
        let mut pods = self.pods(part).await?;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(pods)
    }

    /// The running pod of a DaemonSet's part on a node.
    pub async fn pod_on(&self, part: Part, node: &str) -> Result<PodObject> {
        let pods = self.staying(part).await?;
        pods.into_iter()
            .find(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node))
            .with_context(|| format!("no {} on {node}", part.name()))
    }

    /// What a pod of the mesh has logged since.
    pub async fn log(&self, pod: &str, since: Option<Timestamp>) -> Result<String> {
        let api: Api<PodObject> = Api::namespaced(self.cluster.client.clone(), SYSTEM);
        // The client rounds to seconds, up as well as down: what was said in that second is not to be lost.
        let since = since.map(|time| time - SignedDuration::from_millis(500));
        Ok(api
            .logs(
                pod,
                &LogParams {
                    since_time: since,
                    ..Default::default()
                },
            )
            .await?)
    }

    /// Connections that the ztunnel of a node has reported since.
    pub async fn access(&self, node: &str, since: Timestamp) -> Result<Vec<AccessRecord>> {
        let pod = self.pod_on(Part::Ztunnel, node).await?.name_any();
        Ok(self
            .log(&pod, Some(since))
            .await?
            .lines()
            .filter_map(AccessRecord::parse)
            .collect())
    }

    /// Waits until the ztunnel of a node has reported a connection like this one.
    pub async fn reported(
        &self,
        node: &str,
        since: Timestamp,
        what: &str,
        like: impl Fn(&AccessRecord) -> bool,
    ) -> Result<AccessRecord> {
        eventually(&format!("ztunnel of {node} reports {what}"), || async {
            let records = self.access(node, since).await?;
            let count = records.len();
            records
                .into_iter()
                .find(|record| like(record))
                .with_context(|| format!("{count} other connections"))
        })
        .await
    }

    /// Metrics of a pod, through the API server.
    pub async fn metrics(&self, pod: &str, part: Part) -> Result<Metrics> {
        Ok(Metrics::parse(
            &self.page(pod, part.metrics(), "metrics").await?,
        ))
    }

    /// A page that a pod of the mesh serves, through the API server.
    pub async fn page(&self, pod: &str, port: u16, path: &str) -> Result<String> {
        let request = http::Request::get(format!(
            "/api/v1/namespaces/{SYSTEM}/pods/{pod}:{port}/proxy/{path}"
        ))
        .body(Vec::new())?;
        Ok(self.cluster.client.request_text(request).await?)
    }

    /// Replaces a part's pods as `kubectl rollout restart` does; waits until it is done.
    pub async fn restart(&self, part: Part) -> Result<()> {
        match part {
            Part::Istiod => self.restart_in::<Deployment>(SYSTEM, part.name()).await,
            Part::Ztunnel | Part::Agent => self.restart_in::<DaemonSet>(SYSTEM, part.name()).await,
        }
    }

    /// The same for anything that rolls.
    pub async fn restart_in<K: Rolls>(&self, namespace: &str, name: &str) -> Result<()> {
        let api: Api<K> = Api::namespaced(self.cluster.client.clone(), namespace);
        let patch = json!({ "spec": { "template": { "metadata": { "annotations": { "e2e/restarted": Timestamp::now().to_string() } } } } });
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        self.rolled_out_in::<K>(namespace, name).await
    }

    /// Waits until all pods are new and ready.
    pub async fn rolled_out_in<K: Rolls>(&self, namespace: &str, name: &str) -> Result<()> {
        let api: Api<K> = Api::namespaced(self.cluster.client.clone(), namespace);
        until_within(
            Duration::from_secs(180),
            &api,
            name,
            "rolled out",
            |object: Option<&K>| object.is_some_and(Rolls::rolled_out),
        )
        .await?;
        Ok(())
    }

    /// Sets how many replicas the control plane has, and waits until it is so.
    pub async fn scale_istiod(&self, replicas: u32) -> Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.cluster.client.clone(), SYSTEM);
        api.patch(
            "istiod",
            &PatchParams::default(),
            &Patch::Merge(json!({ "spec": { "replicas": replicas } })),
        )
        .await?;
        self.rolled_out_in::<Deployment>(SYSTEM, "istiod").await?;
        eventually("pods of istiod come and go", || async {
            let pods = self.pods(Part::Istiod).await?;
            ensure!(pods.len() == replicas as usize, "{} pods", pods.len());
            Ok(())
        })
        .await
    }

    /// Waits until every part is ready everywhere; a part that is not installed will not be.
    pub async fn well(&self) -> Result<()> {
        let client = &self.cluster.client;
        let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), SYSTEM);
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), SYSTEM);
        let istiod = deployments.get("istiod").await.context("istiod")?;
        ensure!(
            istiod.spec.and_then(|spec| spec.replicas) != Some(0),
            "istiod has no replicas"
        );
        let ways = [Part::Ztunnel.name(), Part::Agent.name()];
        for name in ways {
            daemons.get(name).await.context(name)?;
        }
        self.rolled_out_in::<Deployment>(SYSTEM, "istiod").await?;
        for name in ways {
            self.rolled_out_in::<DaemonSet>(SYSTEM, name).await?;
            // Only now does the status speak of the present specification.
            let status = daemons.get(name).await?.status.unwrap_or_default();
            ensure!(status.desired_number_scheduled > 0, "{name} is on no node");
        }
        Ok(())
    }

    /// Sets environment variables of a part's container; waits for the new pods. `None` removes.
    pub async fn environment(&self, part: Part, variables: &[(&str, Option<&str>)]) -> Result<()> {
        let container = match part {
            Part::Istiod => "discovery",
            Part::Ztunnel => "istio-proxy",
            Part::Agent => "install-cni",
        };
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| match value {
                Some(value) => json!({ "name": name, "value": value }),
                None => json!({ "name": name, "$patch": "delete" }),
            })
            .collect();
        let patch = json!({ "spec": { "template": { "spec": { "containers": [{ "name": container, "env": variables }] } } } });
        let parameters = PatchParams::default();
        match part {
            Part::Istiod => {
                let api: Api<Deployment> = Api::namespaced(self.cluster.client.clone(), SYSTEM);
                api.patch(part.name(), &parameters, &Patch::Strategic(patch))
                    .await?;
                self.rolled_out_in::<Deployment>(SYSTEM, part.name()).await
            }
            Part::Ztunnel | Part::Agent => {
                let api: Api<DaemonSet> = Api::namespaced(self.cluster.client.clone(), SYSTEM);
                api.patch(part.name(), &parameters, &Patch::Strategic(patch))
                    .await?;
                self.rolled_out_in::<DaemonSet>(SYSTEM, part.name()).await
            }
        }
    }

    /// The mesh's own complaint in a log, if there is one.
    pub async fn no_panic_since(&self, since: Timestamp) -> Result<()> {
        for part in Part::ALL {
            for pod in self.pods(part).await? {
                let log = self
                    .log(&pod.name_any(), Some(since))
                    .await
                    .unwrap_or_default();
                if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                    bail!("{} panicked: {line}", pod.name_any());
                }
            }
        }
        Ok(())
    }
}
