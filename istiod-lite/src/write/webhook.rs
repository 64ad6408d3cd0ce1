//! API servers verify our webhook by the roots in its configuration: here they are kept current.
//!
//! 1. the ValidatingWebhookConfiguration and the MutatingWebhookConfiguration of the chart are followed
//! 2. which of its webhooks are ours and have other roots is found purely   ([`outdated`])
//! 3. their `caBundle` is patched, also when our roots change: all of them, so that a rotation
//!    never leaves a moment in which the webhook cannot be verified
//!
//! `failurePolicy` is the chart's to choose, and is `Fail` from the beginning: until the roots are
//! in, or while no replica answers, policies are refused rather than taken unseen, and pods that ask
//! for a proxy rather than made without. (Istio begins with `Ignore` for policies and changes it when
//! its webhook was seen to answer.)

use std::pin::pin;

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::queue::{Quarrels, Queue, until};
use super::{Ground, follow, said};

const MANAGER: &str = "ambit-webhook";

/// Either kind of configuration.
trait Configuration:
    kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static
{
    /// As rights have it.
    const RESOURCE: &'static str;

    /// Its webhooks by their names, and how each is called.
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)>;
}

impl Configuration for ValidatingWebhookConfiguration {
    const RESOURCE: &'static str = "validatingwebhookconfigurations.admissionregistration.k8s.io";

    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        let all = self.webhooks.iter().flatten();
        all.map(|it| (it.name.as_str(), &it.client_config))
            .collect()
    }
}

impl Configuration for MutatingWebhookConfiguration {
    const RESOURCE: &'static str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";

    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        let all = self.webhooks.iter().flatten();
        all.map(|it| (it.name.as_str(), &it.client_config))
            .collect()
    }
}

/// Runs while we lead.
pub(super) async fn write(ground: Ground) {
    let flags = &ground.flags;
    tokio::join!(
        keep::<ValidatingWebhookConfiguration>(&ground, &flags.validation_webhook),
        keep::<MutatingWebhookConfiguration>(&ground, &flags.injection_webhook),
    );
}

/// Keeps the configuration of that name, if it is one.
async fn keep<K: Configuration>(ground: &Ground, name: &str) {
    if name.is_empty() {
        return;
    }
    let mut signer = ground.authority.changed();
    let watched = Api::<K>::all(ground.connection.watching.clone());
    let mut versions = pin!(follow::object(watched, name, &ground.health, K::RESOURCE));
    let mut current = None;
    let (mut queue, mut quarrels) = (Queue::default(), Quarrels::default());
    loop {
        let now = Instant::now();
        if queue.take(now).is_some() {
            match put_right(ground, name, current.as_ref()).await {
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
async fn put_right<K: Configuration>(
    ground: &Ground,
    name: &str,
    current: Option<&K>,
) -> Result<bool, kube::Error> {
    let Some(current) = current else {
        return Ok(false);
    };
    let roots = ground.authority.roots();
    let webhooks = outdated(&current.webhooks(), &ground.namespace, roots.as_bytes());
    if webhooks.is_empty() {
        return Ok(false);
    }
    // A list of named items: only these, and of these only this.
    let patch = json!({ "webhooks": webhooks });
    let ours = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let all = Api::<K>::all(ground.connection.client.clone());
    all.patch(name, &ours, &Patch::Strategic(&patch)).await?;
    ground.metrics.wrote("webhook", true);
    tracing::info!(name, webhooks = webhooks.len(), "caBundle written");
    Ok(true)
}

/// What to patch: the webhooks that are served in our namespace, with the roots they should have.
fn outdated(
    webhooks: &[(&str, &WebhookClientConfig)],
    namespace: &str,
    roots: &[u8],
) -> Vec<Value> {
    let ours = webhooks.iter().filter(|(_, config)| {
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
    ours.map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": roots}}))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched<K: Configuration>(webhooks: &Value) -> Vec<Value> {
        let current: K = serde_json::from_value(json!({ "webhooks": webhooks })).unwrap();
        outdated(&current.webhooks(), "istio-system", b"roots")
    }

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
        let current = json!([
            webhook("empty", "istio-system", None),
            webhook("old", "istio-system", Some("b2xk")),
            webhook("right", "istio-system", Some("cm9vdHM=")),
            webhook("theirs", "other", None),
            elsewhere,
        ]);
        let expected = [
            json!({"name": "empty", "clientConfig": {"caBundle": "cm9vdHM="}}),
            json!({"name": "old", "clientConfig": {"caBundle": "cm9vdHM="}}),
        ];
        assert_eq!(
            patched::<ValidatingWebhookConfiguration>(&current),
            expected
        );
        assert_eq!(patched::<MutatingWebhookConfiguration>(&current), expected);
    }
}
