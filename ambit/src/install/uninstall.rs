//! Taking the mesh off, so that pods and nodes are left as if it had never been there.
//!
//! 1. admission, so that nothing waits for a control plane that is gone
//! 2. the node agent: told to end for good, it releases its node's pods and takes its plugin away
//! 3. node proxy and control plane: nobody's traffic passes them any more
//! 4. with `--purge`: what users and the mesh wrote — custom resources, root certificates, keys

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use api::k8s::labels;
use clap::Args;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret};
use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::core::{GroupVersionKind, PartialObjectMeta};
use kube::discovery::ApiResource;
use kube::{Api, Client, ResourceExt as _};

use super::{owner, prune};
use crate::Outcome;
use crate::cluster::{Access, is_missing};
use crate::output::say;
use crate::parts::Part;
use crate::status::is_captured;

/// Flags of `uninstall`.
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    /// Also remove custom resource definitions with all their objects, keys of the certificate
    /// authority, root certificates in every namespace, and the namespace itself.
    #[arg(long)]
    purge: bool,
    /// Do not ask before `--purge` deletes objects of users.
    #[arg(short = 'y', long)]
    yes: bool,
    /// How long each step may take, seconds.
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    timeout: u64,
}

impl Uninstall {
    pub(crate) async fn run(&self, access: &Access) -> anyhow::Result<Outcome> {
        let client = access.connect().await?;
        let system = access.system.as_str();
        let timeout = Duration::from_secs(self.timeout);
        match owner::find(&client, system).await? {
            owner::Owner::Helm { release } => {
                bail!("Helm installed this mesh: helm uninstall {release} -n {system}")
            }
            owner::Owner::Other { seen } => {
                bail!("{seen} is not of this program's making; its own installer must remove it")
            }
            owner::Owner::Applied { .. } => bail!(
                "this mesh was applied by kubectl: ambit upgrade takes it over, after that ambit uninstall removes it (kubectl delete -f of the file would take keys and everybody's policies along)"
            ),
            owner::Owner::Nobody => say("* no control plane here; removing what is left of one"),
            owner::Owner::Ours { version } => say(&format!("* removing mesh {version}")),
        }
        if self.purge && !self.yes {
            self.refuse_to_lose(&client, system).await?;
        }
        prune::ours(&client, |kind, _, _| kind.ends_with("WebhookConfiguration")).await?;
        release_nodes(&client, system, timeout).await?;
        for name in prune::ours(&client, |_, _, _| true).await? {
            say(&format!("- {name}"));
        }
        if self.purge {
            purge(&client, system).await?;
        }
        let waypoints = waypoints(&client).await?;
        if !waypoints.is_empty() {
            say(&format!(
                "! waypoints that nobody looks after any more: {}; each goes with its Gateway (kubectl delete gateway)",
                waypoints.join(", ")
            ));
        }
        let left = captured_pods(&client).await?;
        if left.is_empty() {
            say("the mesh is gone");
            return Ok(Outcome::Well);
        }
        for pod in &left {
            say(&format!(
                "! {pod} still carries the mark of a captured pod: its node's agent did not release it; delete the pod"
            ));
        }
        Ok(Outcome::Wrong)
    }

    /// Objects of users die with their definitions: that is said before, with numbers.
    async fn refuse_to_lose(&self, client: &Client, system: &str) -> anyhow::Result<()> {
        let mut lost = BTreeMap::new();
        let secrets: Api<Secret> = Api::namespaced(client.clone(), system);
        let kept = secrets.list_metadata(&ListParams::default()).await?;
        let kept = kept
            .iter()
            .filter(|secret| !secret.name_any().starts_with("sh.helm.release"));
        let count = kept.count();
        if count > 0 {
            lost.insert(format!("Secrets of namespace {system}"), count);
        }
        for definition in definitions(client).await? {
            if let Some(resource) = resource_of(&definition) {
                let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
                let count = objects
                    .list_metadata(&ListParams::default())
                    .await?
                    .items
                    .len();
                if count > 0 {
                    lost.insert(resource.kind, count);
                }
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        let counts: Vec<String> = lost
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        bail!(
            "--purge would delete {}; say --yes to lose them",
            counts.join(", ")
        )
    }
}

/// Deletes the agent's DaemonSet and waits for its pods: each releases its node as it ends. A node that is out of reach keeps its
/// pod for ever; it must not keep the mesh.
async fn release_nodes(client: &Client, system: &str, timeout: Duration) -> anyhow::Result<()> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), system);
    match sets
        .delete(Part::Agent.name(), &DeleteParams::foreground())
        .await
    {
        Ok(_) => say("* node agent: releasing the pods of each node"),
        Err(error) if is_missing(&error) => return Ok(()),
        Err(error) => return Err(error).context("cannot delete the node agent"),
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), system);
    let ours = ListParams::default().labels(Part::Agent.selector());
    let begun = Instant::now();
    loop {
        let left = pods.list(&ours).await?.items;
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > timeout {
            let nodes: Api<Node> = Api::all(client.clone());
            let nodes = nodes.list(&ListParams::default()).await;
            let nodes = nodes.context("cannot list Nodes")?.items;
            let (away, slow): (Vec<&Pod>, Vec<&Pod>) =
                left.iter().partition(|pod| is_out_of_reach(pod, &nodes));
            if let Some(first) = slow.first() {
                let names: Vec<String> = slow.iter().map(|pod| pod.name_any()).collect();
                bail!(
                    "{} did not end within {} s: kubectl -n {system} logs {} says what it waits for",
                    names.join(", "),
                    timeout.as_secs(),
                    first.name_any()
                );
            }
            for pod in away {
                say(&format!(
                    "! {} did not end within {} s, and its node {} is out of reach: going on without it",
                    pod.name_any(),
                    timeout.as_secs(),
                    node_of(pod).unwrap_or("(none)")
                ));
            }
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Whether nobody is there who could end it: its node is not Ready, or is gone.
fn is_out_of_reach(pod: &Pod, nodes: &[Node]) -> bool {
    let name = node_of(pod);
    let node = nodes.iter().find(|it| it.metadata.name.as_deref() == name);
    let status = node.and_then(|it| it.status.as_ref());
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    !conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}

async fn purge(client: &Client, system: &str) -> anyhow::Result<()> {
    let definitions_api = definition_api(client);
    for definition in definitions(client).await? {
        definitions_api
            .delete(&definition.name_any(), &DeleteParams::default())
            .await?;
        say(&format!("- {}", definition.name_any()));
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for namespace in namespaces.list_metadata(&ListParams::default()).await? {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace.name_any());
        for name in ["istio-ca-root-cert", "istio-ca-crl"] {
            gone(maps.delete(name, &DeleteParams::default()).await.map(drop))?;
        }
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), system);
    gone(
        secrets
            .delete("istio-ca-secret", &DeleteParams::default())
            .await
            .map(drop),
    )?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), system);
    for lease in leases.list(&ListParams::default()).await? {
        if lease.name_any().starts_with("istio-") {
            gone(
                leases
                    .delete(&lease.name_any(), &DeleteParams::default())
                    .await
                    .map(drop),
            )?;
        }
    }
    for class in classes(client).await? {
        say(&format!("- GatewayClass/{class}"));
    }
    gone(
        namespaces
            .delete(system, &DeleteParams::default())
            .await
            .map(drop),
    )?;
    say(&format!("- namespace {system}, keys and root certificates"));
    Ok(())
}

/// What the control plane deployed for Gateways, which are their users'.
async fn waypoints(client: &Client) -> anyhow::Result<Vec<String>> {
    let deployments: Api<Deployment> = Api::all(client.clone());
    let managed = labels::managed();
    let found = deployments
        .list_metadata(&ListParams::default().labels(&managed))
        .await?;
    let name = |it: &PartialObjectMeta<Deployment>| {
        format!("{}/{}", it.namespace().unwrap_or_default(), it.name_any())
    };
    Ok(found.iter().map(name).collect())
}

/// Removes the classes that the control plane made; one of that name that somebody else wrote stays.
async fn classes(client: &Client) -> anyhow::Result<Vec<String>> {
    let gvk = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "GatewayClass");
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk));
    let listed = match all.list(&ListParams::default()).await {
        Ok(listed) => listed,
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error).context("cannot list GatewayClasses"),
    };
    let mut removed = Vec::new();
    for class in listed.iter().filter(|class| is_made_by_us(class)) {
        let name = class.name_any();
        gone(all.delete(&name, &DeleteParams::default()).await.map(drop))?;
        removed.push(name);
    }
    Ok(removed)
}

/// Whose hand the spec is by; a status others write too.
fn is_made_by_us(class: &DynamicObject) -> bool {
    let writers = class.metadata.managed_fields.iter().flatten();
    let mut spec = writers.filter(|it| it.subresource.as_deref().unwrap_or_default().is_empty());
    spec.any(|it| it.manager.as_deref() == Some(CLASSES_MANAGER))
}

/// As which istiod-lite makes them.
const CLASSES_MANAGER: &str = "ambit-classes";

/// That it was not there is as good as that it went.
fn gone(outcome: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match outcome {
        Err(error) if is_missing(&error) => Ok(()),
        outcome => outcome,
    }
}

fn definition_api(client: &Client) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk))
}

/// The definitions that this program brought.
async fn definitions(client: &Client) -> anyhow::Result<Vec<DynamicObject>> {
    let ours = ListParams::default().labels(&format!(
        "{}={}",
        crate::parts::MANAGED_BY,
        crate::parts::OURS
    ));
    Ok(definition_api(client).list(&ours).await?.items)
}

fn resource_of(definition: &DynamicObject) -> Option<ApiResource> {
    let spec = definition.data.get("spec")?;
    let versions = spec.get("versions")?.as_array()?;
    let stored = versions.iter().find(|version| version["storage"] == true)?;
    let gvk = GroupVersionKind::gvk(
        spec.get("group")?.as_str()?,
        stored["name"].as_str()?,
        spec.pointer("/names/kind")?.as_str()?,
    );
    Some(ApiResource::from_gvk_with_plural(
        &gvk,
        spec.pointer("/names/plural")?.as_str()?,
    ))
}

async fn captured_pods(client: &Client) -> anyhow::Result<Vec<String>> {
    let pods: Api<Pod> = Api::all(client.clone());
    let pods = pods.list_metadata(&ListParams::default()).await?;
    let left = pods.iter().filter(|pod| is_captured(pod.annotations()));
    Ok(left
        .map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_node_that_is_not_ready_is_not_waited_for() {
        let node = |name: &str, ready: &str| -> Node {
            let conditions = json!([
                { "type": "MemoryPressure", "status": "False" },
                { "type": "Ready", "status": ready },
            ]);
            serde_json::from_value(json!({
                "metadata": { "name": name }, "status": { "conditions": conditions },
            }))
            .unwrap()
        };
        let nodes = [
            node("well", "True"),
            node("lost", "Unknown"),
            node("ill", "False"),
        ];
        for (name, expected) in [
            ("well", false),
            ("lost", true),
            ("ill", true),
            ("gone", true),
        ] {
            let spec = json!({ "nodeName": name, "containers": [] });
            let pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
            assert_eq!(is_out_of_reach(&pod, &nodes), expected, "{name}");
        }
    }

    #[test]
    fn only_a_class_that_the_control_plane_made_is_taken() {
        let class = |writers: serde_json::Value| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
                "metadata": {"name": "istio-waypoint", "managedFields": writers},
            }))
            .unwrap()
        };
        let made = json!({"manager": "ambit-classes", "operation": "Update"});
        let status = json!({"manager": "ambit-classes", "subresource": "status"});
        let other = json!({"manager": "pilot-discovery", "operation": "Update"});
        assert!(is_made_by_us(&class(json!([made, other]))));
        assert!(!is_made_by_us(&class(json!([other, status]))));
        assert!(!is_made_by_us(&class(json!([]))));
    }
}
