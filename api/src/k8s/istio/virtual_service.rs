//! VirtualService: where requests and connections for a host go.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Unread;
use super::destination_rule::PortSelector;

/// `networking.istio.io` VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct VirtualService {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: VirtualServiceSpec,
    #[serde(skip_serializing)]
    pub status: Unread,
}

/// `spec` of a [`VirtualService`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct VirtualServiceSpec {
    /// Names of services; a short name is in its namespace.
    pub hosts: Vec<String>,
    /// `mesh`, or Gateways. `mesh` if left out.
    pub gateways: Vec<String>,
    /// Requests; the first that matches counts.
    pub http: Vec<HttpRoute>,
    /// TLS that is passed on.
    pub tls: Vec<TlsRoute>,
    /// Connections.
    pub tcp: Vec<TcpRoute>,
    /// Namespaces that it is for: `.` its own, `*` all. All if left out.
    pub export_to: Vec<String>,
}

/// What becomes of requests that match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpRoute {
    /// For logs.
    pub name: String,
    /// One of them must match; everything if left out.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Where to, by weight.
    pub route: Vec<HttpDestination>,
    /// Answer with another address.
    pub redirect: Option<Redirect>,
    /// Answer with this.
    pub direct_response: Option<DirectResponse>,
    /// Another VirtualService goes on. It has no effect here.
    pub delegate: Option<Delegate>,
    /// Change path or host.
    pub rewrite: Option<Rewrite>,
    /// From the request's arrival to the end of the answer; none if left out.
    pub timeout: Option<String>,
    /// Try again.
    pub retries: Option<Retries>,
    /// Fail on purpose.
    pub fault: Option<Fault>,
    /// A copy goes there.
    pub mirror: Option<Destination>,
    /// Copies go there.
    pub mirrors: Vec<MirrorPolicy>,
    /// The old way to write `mirrorPercentage`.
    pub mirror_percent: Option<u32>,
    /// Of the requests; all if left out.
    pub mirror_percentage: Option<Percent>,
    /// Requests of pages from elsewhere.
    pub cors_policy: Option<CorsPolicy>,
    /// Change headers.
    pub headers: Option<Headers>,
}

/// What a request must be like: all of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpMatch {
    /// For logs.
    pub name: String,
    /// Path.
    pub uri: Option<StringMatch>,
    /// http or https.
    pub scheme: Option<StringMatch>,
    /// Method.
    pub method: Option<StringMatch>,
    /// Host.
    pub authority: Option<StringMatch>,
    /// Headers; an empty match asks for presence.
    pub headers: BTreeMap<String, StringMatch>,
    /// Of the service.
    pub port: Option<u32>,
    /// Of the client's workload.
    pub source_labels: BTreeMap<String, String>,
    /// As those of the whole.
    pub gateways: Vec<String>,
    /// Query parameters.
    pub query_params: BTreeMap<String, StringMatch>,
    /// Of the path.
    pub ignore_uri_case: bool,
    /// Headers that must not match.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Of the client.
    pub source_namespace: Option<String>,
    /// It has no effect here.
    pub stat_prefix: Option<String>,
}

/// A text that matches: one of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct StringMatch {
    /// All of it.
    pub exact: Option<String>,
    /// Its beginning.
    pub prefix: Option<String>,
    /// RE2, all of it.
    pub regex: Option<String>,
}

/// One of several destinations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpDestination {
    /// Where to.
    pub destination: Destination,
    /// Its share beside the others.
    pub weight: Option<u32>,
    /// Change headers.
    pub headers: Option<Headers>,
}

/// Where to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Destination {
    /// Name of a service; a short name is in the VirtualService's namespace.
    pub host: String,
    /// Of a DestinationRule.
    pub subset: Option<String>,
    /// Of the service; may be left out if it has only one.
    pub port: Option<PortSelector>,
}

/// Answer with another address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Redirect {
    /// In the place of the path.
    pub uri: Option<String>,
    /// In the place of the host.
    pub authority: Option<String>,
    /// In the place of the port.
    pub port: Option<u32>,
    /// Which port if none is named.
    pub derive_port: Option<DerivePort>,
    /// In the place of http or https.
    pub scheme: Option<String>,
    /// 301 if left out.
    pub redirect_code: Option<u32>,
}

/// Which port a redirect names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DerivePort {
    /// 80 or 443.
    #[default]
    FromProtocolDefault,
    /// The request's.
    FromRequestPort,
}

/// Answer with this.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DirectResponse {
    /// HTTP.
    pub status: u32,
    /// None if left out.
    pub body: Option<ResponseBody>,
}

/// A body: one of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ResponseBody {
    /// Text.
    pub string: Option<String>,
    /// Base64.
    pub bytes: Option<String>,
}

/// Another VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: Option<String>,
}

/// Change path or host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Rewrite {
    /// In the place of the path, or of the prefix that matched.
    pub uri: Option<String>,
    /// In the place of the host.
    pub authority: Option<String>,
    /// Change what matches in the path.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// Change what matches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RegexRewrite {
    /// RE2.
    #[serde(rename = "match")]
    pub matches: String,
    /// With `\1` to `\9`.
    pub rewrite: String,
}

/// Try again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Retries {
    /// Beyond the first try; 0 never.
    pub attempts: u32,
    /// Each try.
    pub per_try_timeout: Option<String>,
    /// 5xx, gateway-error, reset, connect-failure, retriable-4xx, refused-stream, names of gRPC codes, HTTP codes; parted by commas.
    pub retry_on: Option<String>,
    /// To other localities as well.
    pub retry_remote_localities: Option<bool>,
    /// Prefer one not tried yet. True if left out.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// Before the first retry; doubles. 25ms if left out.
    pub backoff: Option<String>,
}

/// Fail on purpose.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Fault {
    /// Wait before going on.
    pub delay: Option<FaultDelay>,
    /// Answer with an error.
    pub abort: Option<FaultAbort>,
}

/// Wait before going on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FaultDelay {
    /// The old way to write `percentage`.
    pub percent: Option<u32>,
    /// How long.
    pub fixed_delay: Option<String>,
    /// It was never supported anywhere.
    pub exponential_delay: Option<String>,
    /// Of the requests.
    pub percentage: Option<Percent>,
}

/// Answer with an error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FaultAbort {
    /// HTTP.
    pub http_status: Option<u32>,
    /// Name or number of a gRPC code.
    pub grpc_status: Option<String>,
    /// It was never supported anywhere.
    pub http2_error: Option<String>,
    /// Of the requests.
    pub percentage: Option<Percent>,
}

/// A share of the requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Percent {
    /// 0 to 100.
    pub value: f64,
}

/// A copy goes there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MirrorPolicy {
    /// Where to.
    pub destination: Destination,
    /// Of the requests; all if left out.
    pub percentage: Option<Percent>,
}

/// Requests of pages from elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CorsPolicy {
    /// The old way to write `allowOrigins`.
    pub allow_origin: Vec<String>,
    /// Who may.
    pub allow_origins: Vec<StringMatch>,
    /// What.
    pub allow_methods: Vec<String>,
    /// With which headers.
    pub allow_headers: Vec<String>,
    /// Which headers of the answer the page may read.
    pub expose_headers: Vec<String>,
    /// How long this may be remembered.
    pub max_age: Option<String>,
    /// Whether with cookies.
    pub allow_credentials: Option<bool>,
    /// What becomes of preflights of others.
    pub unmatched_preflights: Option<UnmatchedPreflights>,
}

/// What becomes of preflights of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UnmatchedPreflights {
    /// The app answers.
    #[default]
    Unspecified,
    /// The app answers.
    Forward,
    /// They are answered without leave.
    Ignore,
}

/// Change headers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Headers {
    /// Before the request goes on.
    pub request: Option<HeaderOperations>,
    /// Before the answer goes back.
    pub response: Option<HeaderOperations>,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HeaderOperations {
    /// In the place of what is there.
    pub set: BTreeMap<String, String>,
    /// Beside what is there.
    pub add: BTreeMap<String, String>,
    /// Taken away.
    pub remove: Vec<String>,
}

/// TLS that is passed on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TlsRoute {
    /// One of them must match.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatch>,
    /// Where to, by weight.
    pub route: Vec<RouteDestination>,
}

/// What a TLS connection must be like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TlsMatch {
    /// Server names; may begin with `*.`.
    pub sni_hosts: Vec<String>,
    /// Addresses it was made to.
    pub destination_subnets: Vec<String>,
    /// Of the service.
    pub port: Option<u32>,
    /// Of the client's workload.
    pub source_labels: BTreeMap<String, String>,
    /// As those of the whole.
    pub gateways: Vec<String>,
    /// Of the client.
    pub source_namespace: Option<String>,
}

/// Connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TcpRoute {
    /// One of them must match; everything if left out.
    #[serde(rename = "match")]
    pub matches: Vec<TcpMatch>,
    /// Where to, by weight.
    pub route: Vec<RouteDestination>,
}

/// What a connection must be like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TcpMatch {
    /// Addresses it was made to.
    pub destination_subnets: Vec<String>,
    /// Of the service.
    pub port: Option<u32>,
    /// Where it comes from.
    pub source_subnet: Option<String>,
    /// Of the client's workload.
    pub source_labels: BTreeMap<String, String>,
    /// As those of the whole.
    pub gateways: Vec<String>,
    /// Of the client.
    pub source_namespace: Option<String>,
}

/// One of several destinations of connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RouteDestination {
    /// Where to.
    pub destination: Destination,
    /// Its share beside the others.
    pub weight: Option<u32>,
}
