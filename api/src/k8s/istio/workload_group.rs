//! `networking.istio.io` WorkloadGroup: what the WorkloadEntries of machines that come and go are made from.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Unread, WorkloadEntrySpec};

/// A group of machines that are alike.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct WorkloadGroup {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: WorkloadGroupSpec,
    #[serde(skip_serializing)]
    pub status: Unread,
}

/// `spec` of a [`WorkloadGroup`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WorkloadGroupSpec {
    /// Labels and annotations of the entries.
    #[serde(skip_serializing_if = "GroupMetadata::is_empty")]
    pub metadata: GroupMetadata,
    /// What the entries are made from; their address is the machine's.
    pub template: WorkloadEntrySpec,
    /// How a machine's proxy finds out whether its application is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

/// Labels and annotations of entries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct GroupMetadata {
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl GroupMetadata {
    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }
}

/// A question that is asked on the machine again and again. One of the kinds is named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Probe {
    /// Seconds before the first time.
    pub initial_delay_seconds: u32,
    /// Seconds until it has failed; 1 where nothing is said.
    pub timeout_seconds: u32,
    /// Seconds from one time to the next; 10 where nothing is said.
    pub period_seconds: u32,
    /// Times in a row after which all is well; 1 where nothing is said.
    pub success_threshold: u32,
    /// Times in a row after which it is not; 3 where nothing is said.
    pub failure_threshold: u32,
    /// A request that is answered by 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGet>,
    /// A port that accepts connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpSocket>,
    /// A command that ends with 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<Exec>,
}

/// A request of a probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpGet {
    /// Path; `/` where nothing is said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Port.
    pub port: u32,
    /// An address of the machine itself; its loopback where nothing is said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// `HTTP`. Others are refused: the application is asked in the clear, on its own machine.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub scheme: String,
    /// Headers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http_headers: Vec<HttpHeader>,
}

/// A header of a probe's request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpHeader {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// A port of a probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TcpSocket {
    /// An address of the machine itself; its loopback where nothing is said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Port.
    pub port: u32,
}

/// A command of a probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Exec {
    /// The program and what it is told.
    pub command: Vec<String>,
}
