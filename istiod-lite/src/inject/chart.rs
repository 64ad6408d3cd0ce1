//! What every injected proxy is made after: the chart's `sidecarInjector` and what it inherits from the chart's other values.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

/// The images; given apart from the rest, so that their digests can be pinned with the others'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// ztunnel.
    pub proxy: String,
    /// The node agent's, for its verb `capture`.
    pub capture: String,
}

/// One JSON document; a name that is not known is refused, lest a wish be overheard.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Chart {
    /// When kubelet fetches images.
    pub image_pull_policy: Option<String>,
    /// `[{name}]`: Secrets of the pod's namespace.
    pub image_pull_secrets: Vec<Value>,
    /// `resources` of both containers.
    pub resources: Value,
    /// Threads of a proxy that carry traffic.
    pub worker_threads: Value,
    /// Whether the proxy has NET_ADMIN, which kernels before 5.17 want of who marks sockets.
    pub net_admin: bool,
    /// Whether names are asked of the proxy, where the pod does not say.
    pub dns_capture: bool,
    /// Whether pods may say what of them is not captured.
    pub capture_exclusions: bool,
    /// Further environment of the proxy.
    pub env: BTreeMap<String, Value>,
    /// Whether pods carry annotations for Prometheus, where they have none.
    pub prometheus_annotations: bool,
    /// The network of this cluster.
    pub network: String,
    /// Level of the logs.
    pub log_level: String,
    /// `plain` or `json`.
    pub log_format: String,
}

impl Default for Chart {
    fn default() -> Self {
        Self {
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            resources: json!({"requests": {"cpu": "10m", "memory": "32Mi"}}),
            worker_threads: json!(2),
            net_admin: false,
            dns_capture: true,
            capture_exclusions: true,
            env: BTreeMap::new(),
            prometheus_annotations: true,
            network: String::new(),
            log_level: "info".to_owned(),
            log_format: "plain".to_owned(),
        }
    }
}

impl std::str::FromStr for Chart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}
