//! RequestAuthentication: which tokens of requests are good.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PolicySelector, TargetRef, Unread};

/// `security.istio.io` RequestAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct RequestAuthentication {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: RequestAuthenticationSpec,
    #[serde(skip_serializing)]
    pub status: Unread,
}

/// `spec` of a [`RequestAuthentication`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RequestAuthenticationSpec {
    /// Workloads that it holds for. A waypoint is named with `targetRefs`; node proxies read no tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<PolicySelector>,
    /// The same as one entry of `targetRefs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Gateways, waypoints or services that it holds for; enforced by a waypoint.
    pub target_refs: Vec<TargetRef>,
    /// A token is good if one of them says so. A request without a token passes: an AuthorizationPolicy asks for one.
    pub jwt_rules: Vec<JwtRule>,
}

/// An issuer, and what its tokens must be like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct JwtRule {
    /// `iss` of its tokens.
    pub issuer: String,
    /// One of them must be among the token's; any if left out.
    pub audiences: Vec<String>,
    /// Where its keys are fetched.
    pub jwks_uri: String,
    /// Its keys (a JWKS), here.
    pub jwks: String,
    /// Headers that carry the token; `Authorization: Bearer` if nothing is named.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that carry the token.
    pub from_params: Vec<String>,
    /// Cookies that carry the token.
    pub from_cookies: Vec<String>,
    /// Header to the app that gets the payload, base64url.
    pub output_payload_to_header: String,
    /// Whether the app gets the token too.
    pub forward_original_token: bool,
    /// Claims that the app gets as headers.
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// Claims whose text is a list, parted at spaces; beside `scope` and `permission`.
    pub space_delimited_claims: Vec<String>,
    /// How long fetching the keys may take. 5s if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// A header that carries a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct JwtHeader {
    /// Of the header.
    pub name: String,
    /// What stands before the token, like `Bearer ` with its space.
    pub prefix: String,
}

/// A claim that becomes a header.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClaimToHeader {
    /// Of the header.
    pub header: String,
    /// Of the claim; `a.b` is b within a.
    pub claim: String,
}
