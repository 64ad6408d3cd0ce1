//! DestinationRule: what is done towards a service, and its subsets.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PolicySelector, Unread};

/// `networking.istio.io` DestinationRule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct DestinationRule {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: DestinationRuleSpec,
    #[serde(skip_serializing)]
    pub status: Unread,
}

/// `spec` of a [`DestinationRule`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DestinationRuleSpec {
    /// Name of the service; a short name is in the rule's namespace. May begin with `*.`.
    pub host: String,
    /// For all of the service.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named parts of the service's workloads.
    pub subsets: Vec<Subset>,
    /// Namespaces whose clients it is for: `.` its own, `*` all. All if left out.
    pub export_to: Vec<String>,
    /// Workloads whose requests it is for; read by sidecars only.
    pub workload_selector: Option<PolicySelector>,
}

/// Workloads of a service with certain labels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Subset {
    /// By which routes call it.
    pub name: String,
    /// All must be on the workload.
    pub labels: BTreeMap<String, String>,
    /// Goes before the one for all of the service, field by field.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// What is done towards a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficPolicy {
    /// Which endpoint.
    pub load_balancer: Option<LoadBalancer>,
    /// How many connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// Which endpoints are left out for a while.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS that begins at the waypoint.
    pub tls: Option<ClientTls>,
    /// For one port; it inherits nothing from the above.
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// HTTP CONNECT to another proxy. It has no effect here.
    pub tunnel: Option<Tunnel>,
    /// PROXY protocol before each connection's bytes.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How many retries beside how many requests.
    pub retry_budget: Option<RetryBudget>,
}

/// What is done towards one port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PortTrafficPolicy {
    /// Of the service.
    pub port: Option<PortSelector>,
    /// Which endpoint.
    pub load_balancer: Option<LoadBalancer>,
    /// How many connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// Which endpoints are left out for a while.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS that begins at the waypoint.
    pub tls: Option<ClientTls>,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PortSelector {
    /// Its number.
    pub number: u32,
}

/// Which endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LoadBalancer {
    /// By no property of the request.
    pub simple: Option<SimpleBalancer>,
    /// The same endpoint for the same key.
    pub consistent_hash: Option<ConsistentHash>,
    /// Near and far.
    pub locality_lb_setting: Option<LocalitySetting>,
    /// The old way to write `warmup`.
    pub warmup_duration_secs: Option<String>,
    /// A new endpoint gets its share little by little.
    pub warmup: Option<Warmup>,
}

/// By no property of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names say it
pub enum SimpleBalancer {
    #[default]
    Unspecified,
    Random,
    Passthrough,
    RoundRobin,
    LeastRequest,
    LeastConn,
}

/// The same endpoint for the same key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ConsistentHash {
    /// Key: this header.
    pub http_header_name: Option<String>,
    /// Key: this cookie.
    pub http_cookie: Option<HttpCookie>,
    /// Key: the client's address.
    pub use_source_ip: Option<bool>,
    /// Key: this query parameter.
    pub http_query_parameter_name: Option<String>,
    /// Ring hash.
    pub ring_hash: Option<RingHash>,
    /// Maglev.
    pub maglev: Option<Maglev>,
    /// The old way to write `ringHash`.
    pub minimum_ring_size: Option<u64>,
}

/// A cookie that is a key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpCookie {
    /// Of the cookie.
    pub name: String,
    /// Its path.
    pub path: String,
    /// How long it is good; for the session if 0. Not made if left out.
    pub ttl: Option<String>,
    /// Further attributes.
    pub attributes: Vec<CookieAttribute>,
}

/// An attribute of a cookie.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CookieAttribute {
    /// Like `SameSite`.
    pub name: String,
    /// Like `Strict`.
    pub value: String,
}

/// Ring hash.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RingHash {
    /// Points on the ring, at least. 1024 if left out.
    pub minimum_ring_size: Option<u64>,
}

/// Maglev.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Maglev {
    /// A prime number. 65537 if left out.
    pub table_size: Option<u64>,
}

/// Near and far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LocalitySetting {
    /// Shares of the localities; not together with `failover`.
    pub distribute: Vec<Distribute>,
    /// Where to if a region has no healthy endpoint.
    pub failover: Vec<Failover>,
    /// Labels, as key or key=value, that make an endpoint near if it has the same as the waypoint, or that value. In order:
    /// the first that it has not ends the list.
    pub failover_priority: Vec<String>,
    /// False: all are equally near.
    pub enabled: Option<bool>,
}

/// Shares of the localities for clients of one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Distribute {
    /// `region/zone/subzone`, `*` allowed.
    pub from: String,
    /// Percent, by locality; together 100.
    pub to: BTreeMap<String, u32>,
}

/// Where to if a region has no healthy endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Failover {
    /// Region.
    pub from: String,
    /// Region.
    pub to: String,
}

/// A new endpoint gets its share little by little.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Warmup {
    /// For how long.
    pub duration: Option<String>,
    /// Of its share, to begin with. 10 if left out.
    pub minimum_percent: Option<f64>,
    /// How its share grows: 1 evenly, more means faster at first.
    pub aggression: Option<f64>,
}

/// How many connections and requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ConnectionPool {
    /// Of connections.
    pub tcp: Option<TcpPool>,
    /// Of requests.
    pub http: Option<HttpPool>,
}

/// Of connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TcpPool {
    /// At most so many.
    pub max_connections: Option<u32>,
    /// 10s if left out.
    pub connect_timeout: Option<String>,
    /// Probes on idle connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// A connection is closed when it is so old.
    pub max_connection_duration: Option<String>,
    /// A connection is closed when nothing was sent for so long.
    pub idle_timeout: Option<String>,
}

/// Probes on idle connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TcpKeepalive {
    /// Without an answer, before the connection is given up.
    pub probes: Option<u32>,
    /// Before the first.
    pub time: Option<String>,
    /// Between two.
    pub interval: Option<String>,
}

/// Of requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpPool {
    /// Requests that wait for a connection, at most.
    pub http1_max_pending_requests: Option<u32>,
    /// Requests at the same time, at most.
    pub http2_max_requests: Option<u32>,
    /// Then the connection is closed; 0 is no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Retries at the same time, at most.
    pub max_retries: Option<u32>,
    /// A connection is closed when it had no request for so long.
    pub idle_timeout: Option<String>,
    /// Whether HTTP/2 is spoken to apps that do not say they speak it.
    pub h2_upgrade_policy: Option<H2Upgrade>,
    /// Speak what the client spoke.
    pub use_client_protocol: Option<bool>,
    /// On one HTTP/2 connection, at most.
    pub max_concurrent_streams: Option<u32>,
}

/// Whether HTTP/2 is spoken to apps that do not say they speak it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names say it
pub enum H2Upgrade {
    #[default]
    Default,
    DoNotUpgrade,
    Upgrade,
}

/// Which endpoints are left out for a while.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct OutlierDetection {
    /// The old way to write `consecutiveGatewayErrors`.
    pub consecutive_errors: Option<u32>,
    /// Count failures to connect apart from answers.
    pub split_external_local_origin_errors: Option<bool>,
    /// Failures to connect, one after the other.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Answers 502, 503 and 504, one after the other; 0 is never.
    pub consecutive_gateway_errors: Option<u32>,
    /// Answers 5xx, one after the other. 5 if left out; 0 is never.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Between two looks. 10s if left out.
    pub interval: Option<String>,
    /// For how long, times how often already. 30s if left out.
    pub base_ejection_time: Option<String>,
    /// Of the endpoints, at most. 10 if left out.
    pub max_ejection_percent: Option<u32>,
    /// While fewer are healthy, nobody is left out.
    pub min_health_percent: Option<u32>,
}

/// TLS that begins at the waypoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClientTls {
    /// Whether, and with whose certificate.
    pub mode: TlsMode,
    /// A file in the proxy; use `credentialName`.
    pub client_certificate: Option<String>,
    /// A file in the proxy; use `credentialName`.
    pub private_key: Option<String>,
    /// A file in the proxy; use `credentialName`.
    pub ca_certificates: Option<String>,
    /// A Secret, or with `configmap://` a ConfigMap, of the rule's namespace.
    pub credential_name: Option<String>,
    /// Names of which the server must have one; `sni` if left out.
    pub subject_alt_names: Vec<String>,
    /// Server name; the request's host if left out.
    pub sni: Option<String>,
    /// Believe any certificate.
    pub insecure_skip_verify: Option<bool>,
    /// A file in the proxy. With SIMPLE and MUTUAL it is refused: connections are not made without it.
    pub ca_crl: Option<String>,
}

/// Whether, and with whose certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names say it
pub enum TlsMode {
    #[default]
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

/// HTTP CONNECT to another proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Tunnel {
    /// CONNECT or POST.
    pub protocol: Option<String>,
    /// Where to.
    pub target_host: String,
    /// Where to.
    pub target_port: u32,
}

/// PROXY protocol before each connection's bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ProxyProtocol {
    /// V1 if left out.
    pub version: ProxyVersion,
}

/// Version of the PROXY protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names say it
pub enum ProxyVersion {
    #[default]
    V1,
    V2,
}

/// How many retries beside how many requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RetryBudget {
    /// Of the requests under way. 20 if left out.
    pub percent: Option<f64>,
    /// Always allowed at the same time. 3 if left out.
    pub min_retry_concurrency: Option<u32>,
}
