//! API servers verify our webhook by the roots in its configuration: here they are kept current.
//!
//! 1. the ValidatingWebhookConfiguration of the chart is followed
//! 2. which of its webhooks are ours and have other roots is found purely   ([`outdated`])
//! 3. their `caBundle` is patched, also when our roots change: all of them, so that a rotation
//!    never leaves a moment in which the webhook cannot be verified
//!
//! `failurePolicy` is the chart's to choose, and is `Fail` from the beginning: until the roots are
//! in, or while no replica answers, policies are refused rather than taken unseen. (Istio begins with
//! `Ignore` and changes it when its webhook was seen to answer.)

use std::pin::pin;

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::queue::{Quarrels, Queue, until};
use super::{Ground, follow, said};

const MANAGER: &str = "ambit-webhook";

/// Runs while we lead.
pub(super) async fn write(ground: Ground) {
    let name = ground.flags.validation_webhook.as_str();
    let mut signer = ground.authority.changed();
    let watched = Api::<ValidatingWebhookConfiguration>::all(ground.connection.watching.clone());
    let resource = "validatingwebhookconfigurations.admissionregistration.k8s.io";
    let mut versions = pin!(follow::object(watched, name, &ground.health, resource));
    let mut current = None;
    let (mut queue, mut quarrels) = (Queue::default(), Quarrels::default());
    loop {
        let now = Instant::now();
        if queue.take(now).is_some() {
            match put_right(&ground, current.as_ref()).await {
                Ok(false) => queue.done(&()),
                Ok(true) if quarrels.wrote(&(), now) => queue.failed(&(), now),
                Ok(true) => queue.done(&()),
                Err(error) => {
                    ground.metrics.wrote("webhook", false);
                    tracing::warn!(
                        name,
                        error = said(&error),
                        "caBundle not written; tried again"
                    );
                    queue.failed(&(), now);
                }
            }
        }
        tokio::select! {
            Some(version) = versions.next() => current = version,
            Ok(()) = signer.changed() => {}
            () = until(queue.due()) => continue,
        }
        queue.add((), Instant::now());
    }
}

/// Whether something had to be written.
async fn put_right(
    ground: &Ground,
    current: Option<&ValidatingWebhookConfiguration>,
) -> Result<bool, kube::Error> {
    let Some(current) = current else {
        return Ok(false);
    };
    let roots = ground.authority.roots();
    let webhooks = outdated(current, &ground.namespace, roots.as_bytes());
    if webhooks.is_empty() {
        return Ok(false);
    }
    // A list of named items: only these, and of these only this.
    let patch = json!({ "webhooks": webhooks });
    let ours = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let name = ground.flags.validation_webhook.as_str();
    let all = Api::<ValidatingWebhookConfiguration>::all(ground.connection.client.clone());
    all.patch(name, &ours, &Patch::Strategic(&patch)).await?;
    ground.metrics.wrote("webhook", true);
    tracing::info!(name, webhooks = webhooks.len(), "caBundle written");
    Ok(true)
}

/// What to patch: the webhooks that are served in our namespace, with the roots they should have.
fn outdated(current: &ValidatingWebhookConfiguration, namespace: &str, roots: &[u8]) -> Vec<Value> {
    let webhooks = current.webhooks.iter().flatten();
    let ours = webhooks.filter(|webhook| {
        let config = &webhook.client_config;
        let here = config
            .service
            .as_ref()
            .is_some_and(|service| service.namespace == namespace);
        here && config
            .ca_bundle
            .as_ref()
            .is_none_or(|bundle| bundle.0 != roots)
    });
    let roots = ByteString(roots.to_vec());
    ours.map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": roots}}))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_webhooks_with_other_roots_are_patched() {
        let webhook = |name: &str, namespace: &str, bundle: Option<&str>| {
            json!({
                "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {
                    "service": {"name": "istiod", "namespace": namespace},
                    "caBundle": bundle,
                },
            })
        };
        let elsewhere = json!({
            "name": "by-url", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"url": "https://example.com"},
        });
        // "cm9vdHM=" is "roots".
        let current = json!({"webhooks": [
            webhook("empty", "istio-system", None),
            webhook("old", "istio-system", Some("b2xk")),
            webhook("right", "istio-system", Some("cm9vdHM=")),
            webhook("theirs", "other", None),
            elsewhere,
        ]});
        let current = serde_json::from_value(current).unwrap();
        let patched = outdated(&current, "istio-system", b"roots");
        assert_eq!(
            patched,
            [
                json!({"name": "empty", "clientConfig": {"caBundle": "cm9vdHM="}}),
                json!({"name": "old", "clientConfig": {"caBundle": "cm9vdHM="}}),
            ]
        );
    }
}
