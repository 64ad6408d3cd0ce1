//! Our own policy (`ambit.io`): who is shown requests and answers, and changes them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::istio::{TargetRef, Unread};
use super::limits::OnFailure;

/// `ambit.io` ExternalProcessor: a service that speaks Envoy's `ext_proc`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // as every object's
pub struct ExternalProcessor {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: ExternalProcessorSpec,
    #[serde(skip_serializing)]
    pub status: Unread,
}

/// `spec` of an [`ExternalProcessor`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ExternalProcessorSpec {
    /// Services, Gateways or HTTPRoutes of this namespace whose requests it is shown.
    pub target_refs: Vec<TargetRef>,
    /// The service that is asked.
    pub backend_ref: ProcessorRef,
    /// For its answer to each message; 200ms if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// The longest that it may ask for itself; it may not if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_timeout: Option<String>,
    /// What becomes of requests when it fails. Deny if left out.
    pub on_failure: OnFailure,
    /// What is answered then; 500 (504 where it took too long) if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_on_failure: Option<u32>,
    /// What it is shown of requests; their headers if left out.
    pub request: Shown,
    /// What it is shown of answers; their headers if left out.
    pub response: Shown,
    /// Whether it may ask to be shown other parts.
    pub mode_override: bool,
    /// Bytes of a body that are held for it; 1 MiB if left out, at most 16 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_bytes: Option<u32>,
    /// What it may change of headers.
    pub mutations: Mutations,
    /// What it is told of the request and its client beside that, by name or expression, like source.address.
    pub attributes: Vec<String>,
    /// What it is told of the answer beside that, with its headers, by name or expression, like response.code.
    pub response_attributes: Vec<String>,
    /// What it is told of metadata, and may say of it.
    pub metadata: Metadata,
    /// Nobody waits for it, and nothing that it says is heard. Bodies are Streamed then, or not shown.
    pub observability_mode: bool,
    /// How long it may go on with a request that has ended, in observability mode; 5s if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deferred_close_timeout: Option<String>,
}

/// What is said of a request by those who are shown it, to whoever comes after them: processors, and access logs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Metadata {
    /// Namespaces that it is told. Claims of a token are payload in envoy.filters.http.jwt_authn.
    pub accessible_namespaces: Vec<String>,
    /// Namespaces that it may write. What it says in others is not heard.
    pub writable_namespaces: Vec<String>,
}

/// What a processor may change of headers, of requests and of answers. Never what says how a message is carried, nor what
/// only proxies say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Mutations {
    /// Only those with these names, which may end in *; :path and :status are names, too. All if left out.
    pub allow: Vec<String>,
    /// None with these names, which may end in *.
    pub deny: Vec<String>,
    /// Whether it may change for whom a request is, and its method.
    pub routing: bool,
    /// Whether it fails if it changes what it may not. Such a change is left out otherwise.
    pub strict: bool,
}

/// A service of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // the names say it
pub struct ProcessorRef {
    pub name: String,
    pub port: u32,
}

/// What is shown of a request or of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Shown {
    /// Its headers; true if left out.
    pub headers: bool,
    /// How its body; None if left out.
    pub body: BodyMode,
    /// Its trailers; FullDuplexStreamed shows them anyway.
    pub trailers: bool,
}

impl Default for Shown {
    fn default() -> Self {
        Self {
            headers: true,
            body: BodyMode::None,
            trailers: false,
        }
    }
}

/// How a body is shown, in the words of Envoy's protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)] // the names say it
pub enum BodyMode {
    #[default]
    None,
    Buffered,
    BufferedPartial,
    Streamed,
    FullDuplexStreamed,
}
