//! Policies of Gateway API towards backends: TLS, and retries and sessions. Fields that are not known are passed over, as
//! an API server's clients do.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// BackendTLSPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // as every object's
pub struct BackendTlsPolicy {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: BackendTlsPolicySpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

/// XBackendTrafficPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // as every object's
pub struct BackendTrafficPolicy {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: BackendTrafficPolicySpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

/// What a policy is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Target {
    /// Empty for a Service.
    pub group: String,
    /// Service, or another.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Name of one of its ports; all if left out.
    pub section_name: Option<String>,
}

/// `spec` of a [`BackendTlsPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTlsPolicySpec {
    /// Services that TLS is spoken to.
    pub target_refs: Vec<Target>,
    /// Whose certificate is believed.
    pub validation: Validation,
    /// It has no effect here.
    pub options: BTreeMap<String, String>,
}

/// Whose certificate is believed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Validation {
    /// ConfigMaps or Secrets with `ca.crt`; the first counts.
    pub ca_certificate_refs: Vec<CaRef>,
    /// `System`, in the place of the above.
    #[serde(rename = "wellKnownCACertificates")]
    pub well_known: Option<String>,
    /// Server name, and the name that the certificate has unless `subjectAltNames` says others.
    pub hostname: String,
    /// Names of which it must have one.
    pub subject_alt_names: Vec<SubjectAltName>,
}

/// A ConfigMap or Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CaRef {
    /// Empty.
    pub group: String,
    /// ConfigMap or Secret.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A name of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubjectAltName {
    /// Hostname or URI.
    pub r#type: String,
    /// Of type Hostname.
    pub hostname: Option<String>,
    /// Of type URI.
    pub uri: Option<String>,
}

/// `spec` of a [`BackendTrafficPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTrafficPolicySpec {
    /// Services it is for.
    pub target_refs: Vec<Target>,
    /// How many retries.
    pub retry_constraint: Option<RetryConstraint>,
    /// The same endpoint for a session.
    pub session_persistence: Option<SessionPersistence>,
}

/// How many retries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryConstraint {
    /// Of the requests.
    pub budget: Option<Budget>,
    /// Always allowed.
    pub min_retry_rate: Option<Rate>,
}

/// A share of the requests of an interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Budget {
    /// 20 if left out.
    pub percent: Option<u32>,
    /// 10s if left out.
    pub interval: Option<String>,
}

/// So many in an interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rate {
    /// 10 if left out.
    pub count: Option<u32>,
    /// 1s if left out.
    pub interval: Option<String>,
}

/// The same endpoint for a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionPersistence {
    /// Of the cookie or header.
    pub session_name: Option<String>,
    /// How long a session is good.
    pub absolute_timeout: Option<String>,
    /// How long without a request.
    pub idle_timeout: Option<String>,
    /// Cookie or Header. Cookie if left out.
    pub r#type: Option<String>,
    /// Of a cookie.
    pub cookie_config: Option<CookieConfig>,
}

/// How long a client keeps a cookie.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CookieConfig {
    /// Session or Permanent. Session if left out.
    pub lifetime_type: Option<String>,
}
