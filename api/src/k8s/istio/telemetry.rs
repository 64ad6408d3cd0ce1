//! Telemetry: what is reported of requests.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PolicySelector, TargetRef, Unread};

/// `telemetry.istio.io` Telemetry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct Telemetry {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: TelemetrySpec,
    #[serde(skip_serializing)]
    pub status: Unread,
}

/// `spec` of a [`Telemetry`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TelemetrySpec {
    /// Workloads that it holds for. A waypoint is named with `targetRefs`.
    pub selector: Option<PolicySelector>,
    /// The same as one entry of `targetRefs`.
    pub target_ref: Option<TargetRef>,
    /// Waypoints or services. Without them: all waypoints of the namespace, and in the root namespace of the mesh.
    pub target_refs: Vec<TargetRef>,
    /// Spans.
    pub tracing: Vec<Tracing>,
    /// Labels of metrics.
    pub metrics: Vec<Metrics>,
    /// Lines of the access log.
    pub access_logging: Vec<AccessLogging>,
}

/// A provider of the mesh configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ProviderRef {
    /// Its name there.
    pub name: String,
}

/// Which direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names say it
pub enum Mode {
    #[default]
    ClientAndServer,
    Client,
    Server,
}

/// Which direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ModeMatch {
    /// A waypoint is a server.
    pub mode: Mode,
}

/// Spans.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Tracing {
    /// Which direction.
    #[serde(rename = "match")]
    pub matches: Option<ModeMatch>,
    /// Who gets them.
    pub providers: Vec<ProviderRef>,
    /// Of requests that come without a decision.
    pub random_sampling_percentage: Option<f64>,
    /// No spans.
    pub disable_span_reporting: Option<bool>,
    /// Further attributes.
    pub custom_tags: BTreeMap<String, CustomTag>,
    /// It has no effect here: the trace decides.
    pub use_request_id_for_trace_sampling: Option<bool>,
    /// It has no effect here.
    pub enable_istio_tags: Option<bool>,
    /// It has no effect here.
    pub disable_context_propagation: Option<bool>,
}

/// An attribute of spans: one of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CustomTag {
    /// This text.
    pub literal: Option<Literal>,
    /// A variable of the proxy's environment. It has no effect here.
    pub environment: Option<NamedTag>,
    /// A header of the request.
    pub header: Option<NamedTag>,
    /// A text with `%FIELDS%`.
    pub formatter: Option<Literal>,
}

/// A text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Literal {
    /// The text.
    pub value: String,
}

/// Something that has a name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NamedTag {
    /// Its name.
    pub name: String,
    /// Where there is none.
    pub default_value: String,
}

/// Labels of metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Metrics {
    /// Who gets them; `prometheus` is the only one here.
    pub providers: Vec<ProviderRef>,
    /// In this order.
    pub overrides: Vec<MetricsOverride>,
    /// It has no effect here.
    pub reporting_interval: Option<String>,
}

/// A change of some metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MetricsOverride {
    /// Which; all if left out.
    #[serde(rename = "match")]
    pub matches: Option<MetricMatch>,
    /// Not counted.
    pub disabled: Option<bool>,
    /// By label.
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

/// Which metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MetricMatch {
    /// REQUEST_COUNT, REQUEST_DURATION, REQUEST_SIZE, RESPONSE_SIZE, TCP_OPENED_CONNECTIONS, TCP_CLOSED_CONNECTIONS, TCP_SENT_BYTES, TCP_RECEIVED_BYTES, GRPC_REQUEST_MESSAGES, GRPC_RESPONSE_MESSAGES, ALL_METRICS.
    pub metric: Option<String>,
    /// By its name.
    pub custom_metric: Option<String>,
    /// Which direction.
    pub mode: Option<Mode>,
}

/// A change of a label.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TagOverride {
    /// UPSERT if left out.
    pub operation: TagOperation,
    /// CEL.
    pub value: String,
}

/// What is done with a label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names say it
pub enum TagOperation {
    #[default]
    Upsert,
    Remove,
}

/// Lines of the access log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AccessLogging {
    /// Which direction.
    #[serde(rename = "match")]
    pub matches: Option<ModeMatch>,
    /// Who gets them.
    pub providers: Vec<ProviderRef>,
    /// None.
    pub disabled: Option<bool>,
    /// Which.
    pub filter: Option<LogFilter>,
}

/// Which requests have a line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LogFilter {
    /// CEL.
    pub expression: String,
}
