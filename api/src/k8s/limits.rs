//! Our own policies (`ambit.io`): how many requests may pass.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::istio::virtual_service::StringMatch;
use super::istio::{TargetRef, Unread};

/// `ambit.io` RateLimitPolicy: so many requests in each second, minute …
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct RateLimitPolicy {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: LimitSpec,
    #[serde(skip_serializing)]
    pub status: Unread,
}

/// `ambit.io` QuotaPolicy: a budget that is there again when its window begins anew.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct QuotaPolicy {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: LimitSpec,
    #[serde(skip_serializing)]
    pub status: Unread,
}

/// `spec` of a [`RateLimitPolicy`] or [`QuotaPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LimitSpec {
    /// Services, Gateways or HTTPRoutes of this namespace whose requests are counted.
    pub target_refs: Vec<TargetRef>,
    /// A request must be within all of them.
    pub limits: Vec<Limit>,
    /// Count at a rate limit service, for all proxies together. Each proxy counts for itself if left out.
    pub global: Option<Global>,
}

/// So many requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Limit {
    /// In the status and in answers; its number if left out.
    pub name: String,
    /// In each window.
    pub requests: u64,
    /// Like 1s, 1m, 24h.
    pub window: String,
    /// At once, at most; `requests` if left out.
    pub burst: Option<u64>,
    /// Each combination of their values is counted by itself; all together if left out.
    pub keys: Vec<Key>,
    /// Which requests; all if left out.
    pub when: Option<When>,
}

/// What is counted apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Key {
    /// A property of the request.
    pub by: By,
    /// Of the header or claim; the text itself if `by` is Fixed.
    pub name: String,
    /// How the rate limit service calls it; a word for the property if left out.
    pub descriptor: Option<String>,
}

/// A property of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)] // the names say it
pub enum By {
    #[default]
    Fixed,
    Identity,
    Namespace,
    Address,
    Header,
    Claim,
    Path,
    Method,
}

/// Which requests: all of it must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct When {
    /// Path; a prefix is of whole segments.
    pub path: Option<StringMatch>,
    /// Method.
    pub method: Option<StringMatch>,
    /// Headers.
    pub headers: BTreeMap<String, StringMatch>,
}

/// A rate limit service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Global {
    /// Name of an extension provider of the mesh (envoyRateLimit…).
    pub provider: String,
    /// As the service's configuration calls it; `namespace/name` if left out.
    pub domain: String,
    /// What becomes of requests while the service does not answer. Deny if left out.
    pub on_failure: OnFailure,
    /// Who says how many: Policy, what stands here is told to the service (windows of 1s, 1m, 1h or 24h); Service, its own configuration
    /// of the domain, by the descriptors of the keys. Policy if left out.
    pub limits_from: LimitsFrom,
}

/// Who says how many requests may pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)] // the names say it
pub enum LimitsFrom {
    #[default]
    Policy,
    Service,
}

/// What becomes of requests while nobody counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)] // the names say it
pub enum OnFailure {
    #[default]
    Deny,
    Allow,
}
