//! `ambit enroll` and `ambit unenroll`: a label, and waiting until it has become true.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use api::k8s::labels;
use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::Outcome;
use crate::cluster::{Access, is_missing};
use crate::membership::{self, Membership};
use crate::network_policy::in_the_way;
use crate::output::say;
use crate::parts::FIELD_MANAGER;
use crate::status::{NamespaceFacts, namespace_facts};

/// Flags of `enroll`.
#[derive(Debug, Args)]
pub(crate) struct Enroll {
    /// The namespace.
    namespace: String,
    /// How long its running pods may take, seconds; 0 does not wait.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    /// Enrol although a NetworkPolicy would block the tunnel, or sidecars are injected.
    #[arg(long)]
    force: bool,
}

/// Flags of `unenroll`.
#[derive(Debug, Args)]
pub(crate) struct Unenroll {
    /// The namespace.
    namespace: String,
    /// How long its running pods may take, seconds; 0 does not wait.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

impl Enroll {
    pub(crate) async fn run(&self, access: &Access) -> anyhow::Result<Outcome> {
        let client = access.connect().await?;
        let name = self.namespace.as_str();
        if name == access.system || name == "kube-system" {
            bail!("{name} carries the mesh or the cluster itself; its pods are never captured");
        }
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = find(&namespaces, name).await?;
        let obstacles = self.obstacles(&client, &namespace).await?;
        for obstacle in &obstacles {
            say(&format!("! {obstacle}"));
        }
        if !obstacles.is_empty() && !self.force {
            bail!("{name} was left as it is; mend that, or --force");
        }
        label(&namespaces, name, json!(labels::AMBIENT)).await?;
        let membership = membership::find(&client, &access.system).await?;
        settle(&client, &membership, name, self.timeout, |facts| {
            (
                facts.waiting.clone(),
                format!(
                    "{} pods of {name} are in the mesh, {} stay outside",
                    facts.captured, facts.outside
                ),
            )
        })
        .await
    }

    async fn obstacles(
        &self,
        client: &Client,
        namespace: &Namespace,
    ) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        let injected = namespace
            .labels()
            .get("istio-injection")
            .is_some_and(|value| value == "enabled");
        if injected {
            found.push("label istio-injection=enabled puts sidecars into new pods, which keeps them out of ambient mode".to_owned());
        }
        let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), &self.namespace);
        let policies = policies
            .list(&ListParams::default())
            .await
            .context("cannot list NetworkPolicies")?;
        found.extend(
            in_the_way(&policies.items)
                .iter()
                .map(|policy| policy.reason()),
        );
        Ok(found)
    }
}

impl Unenroll {
    pub(crate) async fn run(&self, access: &Access) -> anyhow::Result<Outcome> {
        let client = access.connect().await?;
        let name = self.namespace.as_str();
        let namespaces: Api<Namespace> = Api::all(client.clone());
        find(&namespaces, name).await?;
        label(&namespaces, name, Value::Null).await?;
        let membership = membership::find(&client, &access.system).await?;
        settle(&client, &membership, name, self.timeout, |facts| {
            (
                facts.lingering.clone(),
                format!(
                    "the pods of {name} are out of the mesh; {} are in it by their own label",
                    facts.captured
                ),
            )
        })
        .await
    }
}

async fn find(namespaces: &Api<Namespace>, name: &str) -> anyhow::Result<Namespace> {
    match namespaces.get(name).await {
        Err(error) if is_missing(&error) => bail!("there is no namespace {name}"),
        found => found.with_context(|| format!("cannot read namespace {name}")),
    }
}

async fn label(namespaces: &Api<Namespace>, name: &str, value: Value) -> anyhow::Result<()> {
    let patch = json!({ "metadata": { "labels": { labels::DATAPLANE_MODE: value } } });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    let patched = namespaces.patch(name, &params, &Patch::Merge(&patch)).await;
    patched
        .map(drop)
        .with_context(|| format!("cannot label namespace {name}"))
}

/// Waits until no pod is left in the first half of what `view` makes of the namespace.
async fn settle(
    client: &Client,
    membership: &Membership,
    name: &str,
    timeout: u64,
    view: impl Fn(&NamespaceFacts) -> (Vec<String>, String),
) -> anyhow::Result<Outcome> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client.clone(), name);
    let begun = Instant::now();
    let mut said = usize::MAX;
    loop {
        let namespace = namespaces.get(name).await?;
        let found = pods.list(&ListParams::default()).await?.items;
        let facts = namespace_facts(membership, &namespace, &found);
        let (left, done) = view(&facts);
        if left.is_empty() {
            say(&done);
            return Ok(Outcome::Well);
        }
        if timeout == 0 {
            say(&format!("labelled; {} pods to go", left.len()));
            return Ok(Outcome::Well);
        }
        if begun.elapsed() >= Duration::from_secs(timeout) {
            say(&format!(
                "! {} pods did not follow within {timeout} s: {}; ambit status says more",
                left.len(),
                left.join(", ")
            ));
            return Ok(Outcome::Wrong);
        }
        if said != left.len() {
            said = left.len();
            say(&format!("  {said} pods to go"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_waits_for_a_node_is_waited_for_by_nobody() {
        let pod = |name: &str, node: Value| -> Pod {
            let spec = json!({ "nodeName": node, "containers": [] });
            let pod = json!({ "metadata": { "name": name }, "spec": spec, "status": { "phase": "Pending" } });
            serde_json::from_value(pod).unwrap()
        };
        let labels = json!({ (labels::DATAPLANE_MODE): labels::AMBIENT });
        let namespace = json!({ "metadata": { "name": "shop", "labels": labels } });
        let namespace = serde_json::from_value(namespace).unwrap();
        let pods = [pod("starts", json!("n1")), pod("waits", Value::Null)];
        let facts = namespace_facts(&Membership::default(), &namespace, &pods);
        assert_eq!(facts.waiting, ["starts"]);
        assert_eq!(facts.outside, 0);
    }
}
