//! AdmissionReview, v1: what an API server asks, and what it is told.
//!
//! 1. the head alone: who asks, and is it about a kind and a change we judge   ([`Request::judged`])
//! 2. the object; the old one only where the new one is bad: what may be megabytes is not read
//!    for nothing
//! 3. the judgement is counted and written down, unless it is a rehearsal
//! 4. the answer
//!
//! A pod that is to be made goes the same way ([`inject`]): what becomes of it instead of a judgement, a patch in the answer.

use std::fmt::Write as _;

use api::k8s::crd;
use api::k8s::objects::Kind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Judge;
use super::judge::{Judgement, is_advised};
use crate::inject::{self, Injected, Injector};
use crate::metrics::{Admitted, Metrics, NotAdmitted};

/// The answer to a review; an error if it is none.
pub(super) fn answer(judge: &Judge, body: &[u8]) -> serde_json::Result<Bytes> {
    let request = head(body)?;
    let mut judgement = Judgement::default();
    if let Some(kind) = request.judged() {
        let Review::<New> { request: new, .. } = serde_json::from_slice(body)?;
        let old = || {
            let review: Option<Review<Old>> = serde_json::from_slice(body).ok();
            review.map(|review| review.request.old_object)
        };
        judgement = judge.judge(kind, request.named(new.object), old);
        if !request.dry_run {
            request.count(judge, kind, &judgement);
        }
    }
    written(Response::new(&request, judgement))
}

/// The answer to a review of a pod; an error if it is none. What is no new pod is let through.
pub(super) fn inject(
    injector: &Injector,
    metrics: &Metrics,
    body: &[u8],
) -> serde_json::Result<Bytes> {
    let request = head(body)?;
    let mut response = Response::new(&request, Judgement::default());
    if request.is_new_pod() {
        let Review::<New> { request: new, .. } = serde_json::from_slice(body)?;
        let pod = new.object;
        let injected = injector.inject(&pod);
        if !request.dry_run {
            request.count_pod(metrics, &injected);
        }
        match injected {
            Ok(Injected::Changed {
                pod: changed,
                warnings,
            }) => {
                let patch = serde_json::to_vec(&inject::patch(&pod, &changed))?;
                response.patch = Some(STANDARD.encode(patch));
                response.patch_type = Some("JSONPatch");
                response.warnings = told(&warnings);
            }
            Ok(Injected::Left(why)) if why.surprises() => {
                response.warnings = told(&[why.to_string()])
            }
            Ok(Injected::Left(_)) => {}
            Err(refused) => {
                let mistakes = vec![refused.to_string()];
                let warnings = Vec::new();
                response = Response::new(&request, Judgement { mistakes, warnings });
            }
        }
    }
    written(response)
}

/// All of a review but what it is about, if that is bearable.
fn head(body: &[u8]) -> serde_json::Result<Request> {
    let nested = body
        .iter()
        .filter(|byte| matches!(byte, b'{' | b'['))
        .count();
    if nested > MOST_NESTED {
        let why = format!("{nested} objects and lists are more than {MOST_NESTED}; split it");
        return Err(serde_json::Error::custom(why));
    }
    let review: Review<Request> = serde_json::from_slice(body)?;
    if review.api_version != VERSION {
        let why = format!("apiVersion {:?} is not {VERSION}", review.api_version);
        return Err(serde_json::Error::custom(why));
    }
    Ok(review.request)
}

fn written(response: Response<'_>) -> serde_json::Result<Bytes> {
    let answer = Answer {
        api_version: VERSION,
        kind: "AdmissionReview",
        response,
    };
    serde_json::to_vec(&answer).map(Bytes::from)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<R> {
    api_version: String,
    request: R,
}

/// All but the objects.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: GroupVersionKind,
    #[serde(default)]
    sub_resource: Option<String>,
    operation: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    user_info: UserInfo,
}

#[derive(Deserialize)]
struct GroupVersionKind {
    group: String,
    version: String,
    kind: String,
}

#[derive(Default, Deserialize)]
struct UserInfo {
    #[serde(default)]
    username: String,
}

#[derive(Deserialize)]
struct New {
    object: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Old {
    old_object: Value,
}

impl Request {
    /// The kind, if this is for us to judge: a deletion always goes through, and a status is
    /// written by ourselves.
    fn judged(&self) -> Option<Kind> {
        let changes = matches!(self.operation.as_str(), "CREATE" | "UPDATE");
        let version = format!("{}/{}", self.kind.group, self.kind.version);
        let kind: Kind = self.kind.kind.parse().ok()?;
        let known = crd::KINDS.contains(&kind) || is_advised(kind);
        let ours = known && kind.api_versions().contains(&version.as_str());
        let whole = self.sub_resource.as_deref().is_none_or(str::is_empty);
        (changes && ours && whole).then_some(kind)
    }

    /// Whether this is about a pod that is to be made.
    fn is_new_pod(&self) -> bool {
        let kind = &self.kind;
        let pod = kind.group.is_empty() && kind.version == "v1" && kind.kind == "Pod";
        let whole = self.sub_resource.as_deref().is_none_or(str::is_empty);
        self.operation == "CREATE" && pod && whole
    }

    fn count_pod(&self, metrics: &Metrics, injected: &Result<Injected, inject::Refused>) {
        metrics.injections_asked.increment();
        match injected {
            Ok(Injected::Changed { .. }) => metrics.injected.increment(),
            Ok(Injected::Left(why)) => {
                metrics.injections_left.increment();
                tracing::debug!(namespace = ?self.namespace, name = ?self.name, reason = %why, "pod left as it is");
            }
            Err(refused) => {
                metrics.injections_refused.increment();
                let reason = clipped(&refused.to_string(), MISTAKE);
                tracing::info!(kind = "Pod", namespace = ?self.namespace, name = ?self.name, user = ?self.user_info.username, ?reason, "refused");
            }
        }
    }

    /// With the name that an API server may not have given yet.
    fn named(&self, mut object: Value) -> Value {
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
            return object;
        };
        if !metadata.contains_key("name") {
            let prefix = metadata.get("generateName").and_then(Value::as_str);
            let generated = prefix.map(|prefix| format!("{prefix}0"));
            if let Some(name) = generated {
                metadata.insert("name".into(), name.into());
            }
        }
        object
    }

    /// As an ObjectKey is written.
    fn about(&self) -> String {
        let name = clipped(&self.name, NAME);
        format!(
            "{} {}/{name}",
            clipped(&self.kind.kind, NAME),
            clipped(&self.namespace, NAME)
        )
    }

    fn count(&self, judge: &Judge, kind: Kind, judgement: &Judgement) {
        let api_version = format!("{}/{}", self.kind.group, self.kind.version);
        // The labels are ours, never the caller's words: those have no end.
        let mut versions = kind.api_versions().iter();
        let known = versions.find(|known| **known == api_version);
        let Some((group, version)) = known.and_then(|known| known.split_once('/')) else {
            return;
        };
        let resource = crd::plural(kind).unwrap_or("routes");
        if judgement.mistakes.is_empty() {
            let labels = Admitted {
                group,
                version,
                resource,
            };
            judge.metrics.admitted.get_or_create(&labels).increment();
            return;
        }
        let reason = "invalid";
        let labels = NotAdmitted {
            group,
            version,
            resource,
            reason,
        };
        judge
            .metrics
            .not_admitted
            .get_or_create(&labels)
            .increment();
        // Everything is a caller's word: quoted, so that it stays one line.
        tracing::info!(
            kind = %kind,
            namespace = ?self.namespace,
            name = ?self.name,
            user = ?self.user_info.username,
            reason = ?judgement.mistakes.first().map_or_else(String::new, |it| clipped(it, MISTAKE)),
            "refused"
        );
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    message: String,
}

impl<'a> Response<'a> {
    fn new(request: &'a Request, judgement: Judgement) -> Self {
        let refused = (!judgement.mistakes.is_empty()).then(|| Status {
            code: 422,
            reason: "Invalid",
            message: message(&request.about(), &judgement.mistakes),
        });
        Self {
            uid: &request.uid,
            allowed: refused.is_none(),
            status: refused,
            patch: None,
            patch_type: None,
            warnings: told(&judgement.warnings),
        }
    }
}

fn told(warnings: &[String]) -> Vec<String> {
    let few = warnings.iter().take(MOST_WARNINGS);
    few.map(|text| clipped(text, WARNING)).collect()
}

/// One mistake is a line; several are a list, for kubectl prints it as it is, and does not say of
/// which object of a file it speaks.
fn message(about: &str, mistakes: &[String]) -> String {
    if let [only] = mistakes {
        return format!("{about}: {}", clipped(only, MISTAKE));
    }
    let mut text = format!("{about} has {} mistakes:", mistakes.len());
    for mistake in mistakes.iter().take(MOST_MISTAKES) {
        // Writing into a String does not fail.
        let _ = write!(text, "\n* {}", clipped(mistake, MISTAKE));
    }
    if mistakes.len() > MOST_MISTAKES {
        text.push_str("\n* …");
    }
    text
}

/// At most so many bytes.
fn clipped(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// Of all there are in the object, in the old one and in what kubectl notes of both: some thousand
/// sources in one policy. An object of one field takes eight bytes to write and six hundred to hold,
/// so 4 MiB of them, unread, would be what a container may have at all.
const MOST_NESTED: usize = 128 * 1024;
const VERSION: &str = "admission.k8s.io/v1";
/// An API server cuts warnings that are longer.
const WARNING: usize = 256;
const MOST_WARNINGS: usize = 12;
/// As long as a name can be.
const NAME: usize = 253;
/// A mistake quotes what was written, which may be long.
const MISTAKE: usize = 512;
const MOST_MISTAKES: usize = 20;

#[cfg(test)]
mod tests;
