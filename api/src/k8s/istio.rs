//! Istio's custom resources, as far as the mesh reads them.
//!
//! Everything but a status refuses fields it does not know: a mistyped field of a policy must be a
//! fault that someone sees, never a policy that means something else. From the specs, and the
//! comments on their fields, [`super::crd`] makes the definitions that an API server is given.

pub mod destination_rule;
pub mod request_authentication;
pub mod telemetry;
pub mod virtual_service;
pub mod workload_group;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `networking.istio.io` ServiceEntry: a service that Kubernetes does not know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct ServiceEntry {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: ServiceEntrySpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ServiceEntryStatus>,
}

/// `spec` of a [`ServiceEntry`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ServiceEntrySpec {
    /// DNS names of the service; `*.example.com` with resolution NONE or DYNAMIC_DNS.
    pub hosts: Vec<String>,
    /// Virtual addresses; blocks with resolution NONE or STATIC. Without any, one is given automatically.
    pub addresses: Vec<String>,
    /// Ports of the service.
    pub ports: Vec<ServicePort>,
    /// Whether the endpoints belong to the mesh. MESH_EXTERNAL if left out.
    pub location: Location,
    /// How the endpoints are found. NONE if left out: the address that the client dialled.
    pub resolution: Resolution,
    /// Where the service runs; not together with `workloadSelector`.
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Pods and WorkloadEntries of this namespace that are the endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    /// Namespaces that shall see it. Read by sidecars; in ambient it has no effect.
    pub export_to: Vec<String>,
    /// Names that the endpoints' certificates may carry.
    pub subject_alt_names: Vec<String>,
}

/// One port of a [`ServiceEntry`]. Numbers are wider than a port, so that a number out of range
/// is reported as such ([`super::check`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ServicePort {
    /// 1 to 65535.
    pub number: u32,
    /// HTTP, HTTPS, GRPC, HTTP2, TCP, TLS, UDP, MONGO, REDIS, MYSQL. TCP if left out.
    pub protocol: String,
    /// Its name, once per entry.
    pub name: String,
    /// Port at the endpoints; `number` if left out.
    #[serde(skip_serializing_if = "is_zero")]
    pub target_port: u32,
}

/// Whether the endpoints of a [`ServiceEntry`] belong to the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names say it
pub enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

/// How the endpoints of a [`ServiceEntry`] are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// The address the client asked for.
    #[default]
    None,
    /// The endpoints or the selector.
    Static,
    /// DNS at connection time, every answer an endpoint.
    Dns,
    /// DNS at connection time, one answer at a time.
    DnsRoundRobin,
    /// DNS of the name that the request carries; for wildcard hosts.
    DynamicDns,
}

/// `status` of a [`ServiceEntry`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntryStatus {
    /// Addresses given automatically.
    pub addresses: Vec<ServiceEntryAddress>,
}

/// One automatic address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntryAddress {
    /// An IP.
    pub value: String,
    /// The host it stands for.
    pub host: String,
}

/// `networking.istio.io` WorkloadEntry: a workload that is not a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct WorkloadEntry {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: WorkloadEntrySpec,
    #[serde(skip_serializing)]
    pub status: Option<WorkloadEntryStatus>,
}

/// `status` of a [`WorkloadEntry`], as far as anybody reads it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntryStatus {
    /// What is said of it.
    pub conditions: Vec<WorkloadEntryCondition>,
}

/// One condition of a [`WorkloadEntry`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntryCondition {
    /// `Healthy`: whether its machine says that it is well.
    pub r#type: String,
    /// True or False.
    pub status: String,
}

/// `spec` of a [`WorkloadEntry`], also an inline endpoint of a [`ServiceEntry`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WorkloadEntrySpec {
    /// IP address or DNS name; may be left out only with `network`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Port at this workload, by name of the service's port.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u32>,
    /// Labels, for selectors.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Network it is in; reached through that network's gateway.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// `region/zone/subzone`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub locality: String,
    /// Share of the load beside other endpoints.
    #[serde(skip_serializing_if = "is_zero")]
    pub weight: u32,
    /// Account it proves to be, in its own namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_account: String,
}

/// Selector of a [`ServiceEntry`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WorkloadSelector {
    /// All must be on the workload.
    pub labels: BTreeMap<String, String>,
}

/// Selector of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PolicySelector {
    /// All must be on the workload.
    pub match_labels: BTreeMap<String, String>,
}

/// `security.istio.io` AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct AuthorizationPolicy {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: AuthorizationPolicySpec,
    #[serde(skip_serializing)]
    pub status: Unread,
}

/// `spec` of an [`AuthorizationPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// Workloads of this namespace (in the root namespace: of all) that it holds for; all of them if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<PolicySelector>,
    /// The same as one entry of `targetRefs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Gateways, waypoints or services that it holds for; enforced by a waypoint.
    pub target_refs: Vec<TargetRef>,
    /// Matches when one of them matches. Without rules nothing matches: ALLOW then allows nobody.
    pub rules: Vec<Rule>,
    /// What is done with what matches. ALLOW if left out.
    pub action: Action,
    /// Who is asked, for action CUSTOM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
}

/// What an [`AuthorizationPolicy`] does with a connection that it matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names say it
pub enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

/// External authoriser of a CUSTOM policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Provider {
    /// Its name in the mesh configuration.
    pub name: String,
}

/// What a policy is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TargetRef {
    /// API group; empty for a Service.
    pub group: String,
    /// Gateway, GatewayClass, Service or ServiceEntry.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Left out: a target is in the policy's own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// One rule: matches when one of `from`, one of `to` and all of `when` match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// One of them must match; everybody if left out.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<From>,
    /// One of them must match; everything if left out.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
    /// All of them must match.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
}

/// One entry of [`Rule::from`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct From {
    /// All its fields must match.
    pub source: Source,
}

/// One entry of [`Rule::to`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct To {
    /// All its fields must match.
    pub operation: Operation,
}

/// Who calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Source {
    /// `cluster.local/ns/NAMESPACE/sa/ACCOUNT`, without `spiffe://`; `*`, a leading or a trailing `*`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    /// None of these.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
    /// Issuer and subject of a JWT; only at a waypoint.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub request_principals: Vec<String>,
    /// None of these; only at a waypoint.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_request_principals: Vec<String>,
    /// Namespaces of the caller's identity.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// None of these.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    /// Addresses or blocks of the connection's source.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<String>,
    /// None of these.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<String>,
    /// Addresses or blocks of the original client (X-Forwarded-For); only at a waypoint.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub remote_ip_blocks: Vec<String>,
    /// None of these; only at a waypoint.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_remote_ip_blocks: Vec<String>,
    /// `account` of this namespace, or `namespace/account`; not together with principals or namespaces.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// None of these.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<String>,
}

/// What is called.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Operation {
    /// HTTP Host; only at a waypoint.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// None of these; only at a waypoint.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<String>,
    /// Port numbers at the workload, as texts.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// None of these.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<String>,
    /// HTTP methods; only at a waypoint.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// None of these; only at a waypoint.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<String>,
    /// HTTP paths; only at a waypoint.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// None of these; only at a waypoint.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<String>,
}

/// One entry of [`Rule::when`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Condition {
    /// source.ip, source.namespace, source.principal, destination.ip, destination.port; others only at a waypoint.
    pub key: String,
    /// One of these.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// None of these.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
}

/// `security.istio.io` PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct PeerAuthentication {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: PeerAuthenticationSpec,
    #[serde(skip_serializing)]
    pub status: Unread,
}

/// `spec` of a [`PeerAuthentication`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    /// Workloads of this namespace; all of them if left out, and in the root namespace all of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<PolicySelector>,
    /// Whether plain text is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// Keys are port numbers.
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

/// Whether plain text is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MutualTls {
    /// The mode.
    pub mode: Mode,
}

/// Mode of a [`MutualTls`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names say it
pub enum Mode {
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// A list that, if it is written at all, has an element. An empty list in a policy reads like
/// "nobody" but would mean "no restriction".
fn some<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    let list = Vec::<T>::deserialize(deserializer)?;
    if list.is_empty() {
        return Err(serde::de::Error::custom(super::check::words::EMPTY_LIST));
    }
    Ok(list)
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A status nobody here reads: anything may be in it, nothing of it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unread;

impl<'de> Deserialize<'de> for Unread {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}
