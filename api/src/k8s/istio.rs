//! Istio's custom resources, as far as the mesh reads them.
//!
//! The specs refuse fields they do not know: a mistyped field of a policy must be a fault that
//! someone sees, never a policy that means something else. Statuses accept anything.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// `networking.istio.io` ServiceEntry: a service that Kubernetes does not know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // field by field Istio's
pub struct ServiceEntry {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: ServiceEntrySpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ServiceEntryStatus>,
}

/// `spec` of a [`ServiceEntry`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // field by field Istio's
pub struct ServiceEntrySpec {
    pub hosts: Vec<String>,
    pub addresses: Vec<String>,
    pub ports: Vec<ServicePort>,
    pub location: Location,
    pub resolution: Resolution,
    pub endpoints: Vec<WorkloadEntrySpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    pub export_to: Vec<String>,
    pub subject_alt_names: Vec<String>,
}

/// One port of a [`ServiceEntry`]. Numbers are wider than a port, so that a number out of range
/// is reported as such ([`super::check`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // field by field Istio's
pub struct ServicePort {
    pub number: u32,
    pub protocol: String,
    pub name: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub target_port: u32,
}

/// Whether the endpoints of a [`ServiceEntry`] belong to the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names say it
pub enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

/// How the endpoints of a [`ServiceEntry`] are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // field by field Istio's
pub struct WorkloadEntry {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: WorkloadEntrySpec,
}

/// `spec` of a [`WorkloadEntry`], also an inline endpoint of a [`ServiceEntry`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // field by field Istio's
pub struct WorkloadEntrySpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub locality: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub weight: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_account: String,
}

/// Selector of a [`ServiceEntry`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WorkloadSelector {
    /// All must be on the workload.
    pub labels: BTreeMap<String, String>,
}

/// Selector of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PolicySelector {
    /// All must be on the workload.
    pub match_labels: BTreeMap<String, String>,
}

/// `security.istio.io` AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // field by field Istio's
pub struct AuthorizationPolicy {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: AuthorizationPolicySpec,
}

/// `spec` of an [`AuthorizationPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // field by field Istio's
pub struct AuthorizationPolicySpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<PolicySelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    pub target_refs: Vec<TargetRef>,
    pub rules: Vec<Rule>,
    pub action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
}

/// What an [`AuthorizationPolicy`] does with a connection that it matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Provider {
    /// Its name in the mesh configuration.
    pub name: String,
}

/// What a policy is attached to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // field by field Istio's
pub struct TargetRef {
    pub group: String,
    pub kind: String,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// One rule: matches when one of `from`, one of `to` and all of `when` match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // field by field Istio's
pub struct Rule {
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<From>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
}

/// One entry of [`Rule::from`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct From {
    /// All its fields must match.
    pub source: Source,
}

/// One entry of [`Rule::to`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct To {
    /// All its fields must match.
    pub operation: Operation,
}

/// Who calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // field by field Istio's
pub struct Source {
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub request_principals: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_request_principals: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub remote_ip_blocks: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_remote_ip_blocks: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<String>,
}

/// What is called.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // field by field Istio's
pub struct Operation {
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<String>,
}

/// One entry of [`Rule::when`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // field by field Istio's
pub struct Condition {
    pub key: String,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
}

/// `security.istio.io` PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // field by field Istio's
pub struct PeerAuthentication {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: PeerAuthenticationSpec,
}

/// `spec` of a [`PeerAuthentication`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // field by field Istio's
pub struct PeerAuthenticationSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<PolicySelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// Keys are port numbers.
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

/// Whether plain text is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MutualTls {
    /// The mode.
    pub mode: Mode,
}

/// Mode of a [`MutualTls`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
        return Err(serde::de::Error::custom(
            "an empty list would restrict nothing: leave the field out",
        ));
    }
    Ok(list)
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
