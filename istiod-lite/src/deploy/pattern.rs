//! What every waypoint of this mesh is made after: the chart's `global.waypoint`, and who the mesh is.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// What all waypoints have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    /// As the chart has it.
    pub chart: Chart,
    /// Whose they are.
    pub mesh: Mesh,
}

/// The mesh, as its waypoints are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Namespace of the control plane.
    pub namespace: String,
    /// Trust domain of identities.
    pub trust_domain: String,
    /// Its other names, while it has several.
    pub trust_domain_aliases: Vec<String>,
    /// Name of the cluster.
    pub cluster: String,
    /// DNS domain of its services.
    pub domain: String,
    /// Name of this control plane among others.
    pub revision: String,
}

impl Mesh {
    /// All its names, with commas between them, as proxies are told of them (`AMBIT_TRUST_DOMAINS`); none where there is one.
    pub fn trust_domains(&self) -> Option<String> {
        let aliases = &self.trust_domain_aliases;
        let all = [std::slice::from_ref(&self.trust_domain), aliases].concat();
        (!aliases.is_empty()).then(|| all.join(","))
    }
}

/// `global.waypoint` of the chart and what it inherits from the chart's other values. One JSON document;
/// a name that is not known is refused, lest a wish be overheard.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Chart {
    /// The image; given apart from the rest, so that its digest can be pinned with the others'.
    #[serde(skip)]
    pub image: String,
    /// When kubelet fetches it.
    pub image_pull_policy: Option<String>,
    /// `[{name}]`: Secrets of the waypoint's namespace.
    pub image_pull_secrets: Vec<Value>,
    /// Pods of each waypoint.
    pub replicas: u32,
    /// `resources` of the container.
    pub resources: Value,
    /// `nodeSelector` of the pods.
    pub node_selector: Map<String, Value>,
    /// `tolerations` of the pods.
    pub tolerations: Vec<Value>,
    /// `affinity` of the pods.
    pub affinity: Map<String, Value>,
    /// Empty: pods prefer different nodes and zones.
    pub topology_spread_constraints: Vec<Value>,
    /// `priorityClassName` of the pods.
    pub priority_class_name: String,
    /// Seconds that requests have to end when a pod goes.
    pub termination_grace_period_seconds: u32,
    /// How many may go at a time.
    pub pod_disruption_budget: Budget,
    /// Replicas by CPU.
    pub autoscaling: Autoscaling,
    /// Of the pods.
    pub pod_annotations: BTreeMap<String, String>,
    /// Of the pods.
    pub pod_labels: BTreeMap<String, String>,
    /// Further environment.
    pub env: BTreeMap<String, Value>,
    /// Whether pods carry annotations for Prometheus.
    pub prometheus_annotations: bool,
    /// The network of this cluster.
    pub network: String,
    /// Level of the log.
    pub log_level: String,
    /// `plain` or `json`.
    pub log_format: String,
}

/// Whether waypoints have a PodDisruptionBudget.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Budget {
    /// They have.
    pub enabled: bool,
    /// A number or a percentage.
    pub max_unavailable: Value,
}

/// Whether waypoints are scaled by CPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Autoscaling {
    /// They are; `replicas` is then not said.
    pub enabled: bool,
    /// At least.
    pub min_replicas: u32,
    /// At most.
    pub max_replicas: u32,
    /// Percent of the CPU request.
    #[serde(rename = "targetCPU")]
    pub target_cpu: u32,
}

impl Default for Chart {
    fn default() -> Self {
        Self {
            image: String::new(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            replicas: 2,
            resources: Value::Null,
            node_selector: Map::new(),
            tolerations: Vec::new(),
            affinity: Map::new(),
            topology_spread_constraints: Vec::new(),
            priority_class_name: String::new(),
            termination_grace_period_seconds: 30,
            pod_disruption_budget: Budget::default(),
            autoscaling: Autoscaling::default(),
            pod_annotations: BTreeMap::new(),
            pod_labels: BTreeMap::new(),
            env: BTreeMap::new(),
            prometheus_annotations: true,
            network: String::new(),
            log_level: "info".to_owned(),
            log_format: "plain".to_owned(),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            enabled: true,
            max_unavailable: 1.into(),
        }
    }
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            enabled: false,
            min_replicas: 2,
            max_replicas: 5,
            target_cpu: 80,
        }
    }
}

impl std::str::FromStr for Chart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}
