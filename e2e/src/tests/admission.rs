//! What the API server and the control plane refuse, in which words; and what becomes of what got past them.

use anyhow::{Context as _, Result, ensure};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, PostParams},
};
use serde_json::Value;

use super::status::finds;
use crate::{
    mesh::SYSTEM,
    place::Place,
    program::{Ended, kubectl},
    run::Test,
    wait::eventually,
};

const POLICY: (&str, &str) = ("security.istio.io/v1", "AuthorizationPolicy");
const PEER: (&str, &str) = ("security.istio.io/v1", "PeerAuthentication");

fn object(kind: &str, spec: &str) -> String {
    let group = if kind.ends_with("Entry") {
        "networking"
    } else {
        "security"
    };
    format!(
        "apiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: bad}}\nspec: {spec}\n"
    )
}

fn policy(spec: &str) -> String {
    object(POLICY.1, spec)
}

/// `kubectl apply`, as a user does it.
async fn write(shop: &Place, text: &str) -> Result<Ended> {
    kubectl(&["apply", "-n", &shop.name, "-f", "-"], text).await
}

/// A mistyped field that only the webhook knows how to name, and what it says of it.
const MISTYPED: &str = "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principal: [cluster.local/ns/a/sa/b]}}]}]}";
const MISTYPED_WORDS: &str =
    "spec.rules[0].from[0].source.principal: unknown field; did you mean principals?";

/// The same of a mode.
const MISTYPED_MODE: &str = "{selector: {matchLabels: {app: other}}, mtls: {mod: PERMISSIVE}}";

/// Each refusal names the field and what to write instead; nothing is stored, and nobody else feels it.
pub(super) async fn what_is_wrong_is_refused_by_field_with_the_remedy_and_nobody_else_feels_it(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.server("web").on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    phone.reaches("http://web/").await?;
    let load = phone.load("http://web/", &[]).await?;
    for (text, words) in [
        (policy("{rules: ["), &["YAML", "line"][..]),
        (
            policy("{action: PERHAPS}"),
            &["spec.action", "PERHAPS", "ALLOW", "DENY"],
        ),
        (policy(MISTYPED), &[MISTYPED_WORDS]),
        (
            policy("{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}"),
            &["spec.rules[0].from[0].source.ipBlocks[0]", "192.0.2.0/24"],
        ),
        (
            policy(
                "{selector: {matchLabels: {app: web}}, targetRefs: [{kind: Service, group: '', name: web}]}",
            ),
            &["selector", "targetRefs"],
        ),
        (
            object("PeerAuthentication", "{mtls: {mode: SOMETIMES}}"),
            &["spec.mtls.mode", "SOMETIMES", "STRICT"],
        ),
        (
            object(
                "PeerAuthentication",
                "{portLevelMtls: {80: {mode: STRICT}}}",
            ),
            &["spec.portLevelMtls", "spec.selector.matchLabels"],
        ),
        (
            object(
                "ServiceEntry",
                "{hosts: ['*'], ports: [{number: 80, name: http}]}",
            ),
            &["spec.hosts"],
        ),
        (
            object("WorkloadEntry", "{labels: {app: web}}"),
            &["address"],
        ),
    ] {
        let mut refused = write(&shop, &text).await?.with(1)?;
        for word in words {
            refused = refused.says(word)?;
        }
    }
    for kind in [
        "authorizationpolicies",
        "peerauthentications",
        "serviceentries",
        "workloadentries",
    ] {
        kubectl(&["get", kind, "-n", &shop.name], "")
            .await?
            .with(0)?
            .says("No resources found")?;
    }
    // What is right but does not do what it looks like is stored, with a word of warning.
    write(&shop, &policy("{action: AUDIT, rules: [{}]}"))
        .await?
        .with(0)?
        .says("Warning: ")?
        .says("AUDIT")?;
    let tally = load.tally().await?;
    test.note(tally.to_string()).await;
    ensure!(tally.failures() == 0, "{tally}");
    Ok(())
}

/// The webhook is away for a moment. What it would have refused gets in, denies whom it was to protect, and says why.
pub(super) async fn a_policy_that_got_past_the_webhook_denies_and_says_why(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.server("web").on(test.node(0)).start().await?;
    let other = shop.server("other").start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    phone.reaches("http://web/").await?;
    let outside = test
        .plain("outside")
        .await?
        .client("passer")
        .start()
        .await?;
    let open = format!("http://{}/", other.at(8080));
    outside.reaches(&open).await?;
    let bad = policy(MISTYPED);
    write(&shop, &bad).await?.with(1)?.says(MISTYPED_WORDS)?;
    let peer = object(PEER.1, MISTYPED_MODE);
    write(&shop, &peer).await?.with(1)?;
    without_webhook(test, async {
        write(&shop, &peer).await?.with(0)?;
        write(&shop, &bad).await?.with(0)
    })
    .await?;

    phone.is_refused("http://web/").await?;
    outside.is_refused(&open).await?;
    phone.reaches(&open).await?;
    let said = test
        .cluster
        .condition(&shop.name, PEER, "bad", "ambit.io/Accepted")
        .await?;
    let message = said["message"].as_str().unwrap_or_default();
    ensure!(
        said["status"] == "False" && message.contains("it means STRICT for workloads of namespace"),
        "{said}"
    );
    eventually("the status says it in the webhook's words", || async {
        let said = test
            .cluster
            .condition(&shop.name, POLICY, "bad", "ZtunnelAccepted")
            .await?;
        let message = said["message"].as_str().unwrap_or_default();
        ensure!(
            said["status"] == "False"
                && said["reason"] == "Invalid"
                && message.starts_with(MISTYPED_WORDS)
                && message.contains("denies all traffic to workloads of namespace")
                && message.ends_with("app=web"),
            "{said}"
        );
        Ok(())
    })
    .await?;
    finds(
        &format!("AuthorizationPolicy {}/bad", shop.name),
        "error",
        MISTYPED_WORDS,
    )
    .await?;

    // Mended, it is in force as it was meant.
    write(
        &shop,
        &policy(&MISTYPED.replace("principal:", "principals:")),
    )
    .await?
    .with(0)?;
    eventually("the status says that it is in force", || async {
        let said = test
            .cluster
            .condition(&shop.name, POLICY, "bad", "ZtunnelAccepted")
            .await?;
        ensure!(said["status"] == "True", "{said}");
        Ok(())
    })
    .await?;
    phone.is_refused("http://web/").await?;
    shop.remove(&policy("{}")).await?;
    phone.reaches("http://web/").await?;
    Ok(())
}

/// Takes the webhook's configuration away while `work` runs, and waits until it refuses again.
async fn without_webhook<T>(test: &Test, work: impl Future<Output = Result<T>>) -> Result<T> {
    let kind = GroupVersionKind::gvk(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
    );
    let api: Api<DynamicObject> =
        Api::all_with(test.cluster.client.clone(), &ApiResource::from_gvk(&kind));
    let name = format!("istio-validator-{SYSTEM}");
    let mut saved = api.get(&name).await?;
    let metadata = &mut saved.metadata;
    (
        metadata.resource_version,
        metadata.uid,
        metadata.managed_fields,
    ) = (None, None, None);
    // Whoever brings it back need not know the certificate: the control plane writes that.
    let hooks = saved.data["webhooks"]
        .as_array_mut()
        .context("no webhooks in it")?;
    for hook in hooks {
        hook["clientConfig"]["caBundle"] = Value::Null;
    }
    api.delete(&name, &DeleteParams::default()).await?;
    let result = async {
        let yard = test.plain("yard").await?;
        eventually("nobody is asked any more", || async {
            write(&yard, &policy(MISTYPED)).await?.with(0)
        })
        .await?;
        work.await
    };
    let result = result.await;
    api.create(&PostParams::default(), &saved).await?;
    let place = test.plain("lawn").await?;
    eventually("the webhook refuses again", || async {
        kubectl(
            &["apply", "--dry-run=server", "-n", &place.name, "-f", "-"],
            &policy(MISTYPED),
        )
        .await?
        .with(1)?
        .says(MISTYPED_WORDS)
    })
    .await?;
    result
}
