//! The cluster: its API server, its nodes, any object as YAML.
//!
//! Objects are applied server-side under one field manager; kinds are looked up once.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::{Event, Namespace, Node as NodeObject, Pod as PodObject};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    },
    discovery::{ApiCapabilities, Scope, pinned_kind},
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::{mesh::Mesh, node::Node, wait};

/// Who wrote what the tests write.
pub const MANAGER: &str = "ambit-e2e";

/// A connection to the cluster of the current kubeconfig.
#[derive(Clone)]
pub struct Cluster {
    /// For requests that have no word here.
    pub client: Client,
    /// Image of clients and servers.
    pub apps: Arc<str>,
    workers: Arc<[Node]>,
    kinds: Arc<Mutex<HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)>>>,
}

impl Cluster {
    /// Connects, and puts a shell on every worker.
    pub async fn connect(apps: String) -> Result<Self> {
        let client = Client::try_default()
            .await
            .context("no cluster: e2e/run up")?;
        let mut cluster = Self {
            client,
            apps: apps.into(),
            workers: Arc::new([]),
            kinds: Arc::default(),
        };
        let nodes: Api<NodeObject> = Api::all(cluster.client.clone());
        let workers = nodes
            .list(&ListParams::default().labels("!node-role.kubernetes.io/control-plane"))
            .await?;
        ensure!(
            workers.items.len() >= 2,
            "tests across nodes need two workers"
        );
        cluster.namespace(crate::node::NAMESPACE, &[]).await?;
        cluster.workers =
            try_join_all(workers.items.iter().map(|node| Node::enter(&cluster, node)))
                .await?
                .into();
        Ok(cluster)
    }

    /// A worker, by number.
    pub fn worker(&self, index: usize) -> &Node {
        &self.workers[index % self.workers.len()]
    }

    /// All workers.
    pub fn workers(&self) -> &[Node] {
        &self.workers
    }

    /// The worker of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.workers
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("no worker is called {name}"))
    }

    /// The mesh that is installed.
    pub fn mesh(&self) -> Mesh {
        Mesh::new(self.clone())
    }

    /// A namespace with these labels (a label without value is removed).
    pub async fn namespace(&self, name: &str, labels: &[(&str, Option<&str>)]) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let labels: Value = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let object =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        api.patch(name, &PatchParams::apply(MANAGER), &Patch::Apply(object))
            .await?;
        api.patch(
            name,
            &PatchParams::default(),
            &Patch::Merge(json!({ "metadata": { "labels": labels } })),
        )
        .await?;
        Ok(())
    }

    /// Applies every object of a YAML text; those without a namespace go into `namespace`.
    pub async fn apply(&self, namespace: &str, yaml: &str) -> Result<()> {
        for object in documents(yaml)? {
            self.apply_object(namespace, object).await?;
        }
        Ok(())
    }

    /// Applies one object.
    pub async fn apply_object(&self, namespace: &str, object: Value) -> Result<DynamicObject> {
        let (api, name) = self.api_of(namespace, &object).await?;
        api.patch(
            &name,
            &PatchParams::apply(MANAGER).force(),
            &Patch::Apply(&object),
        )
        .await
        .with_context(|| format!("applying {} {name}", object["kind"]))
    }

    /// Deletes every object of a YAML text and waits until they are gone.
    pub async fn delete(&self, namespace: &str, yaml: &str) -> Result<()> {
        for object in documents(yaml)? {
            let (api, name) = self.api_of(namespace, &object).await?;
            let uid = api
                .get(&name)
                .await?
                .uid()
                .context("an object without a uid")?;
            api.delete(&name, &DeleteParams::default()).await?;
            wait::until(
                &api,
                &name,
                "gone",
                kube::runtime::conditions::is_deleted(&uid),
            )
            .await?;
        }
        Ok(())
    }

    /// An object as the API server has it: `security.istio.io/v1`, `AuthorizationPolicy`, its name.
    pub async fn object(
        &self,
        namespace: &str,
        version: &str,
        kind: &str,
        name: &str,
    ) -> Result<DynamicObject> {
        let object = json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name } });
        let (api, name) = self.api_of(namespace, &object).await?;
        Ok(api.get(&name).await?)
    }

    async fn api_of(
        &self,
        namespace: &str,
        object: &Value,
    ) -> Result<(Api<DynamicObject>, String)> {
        let (version, kind) = (
            object["apiVersion"].as_str().unwrap_or_default(),
            object["kind"].as_str().unwrap_or_default(),
        );
        let name = object["metadata"]["name"]
            .as_str()
            .with_context(|| format!("{kind} without a name"))?
            .to_owned();
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let mut kinds = self.kinds.lock().await;
        if !kinds.contains_key(&gvk) {
            let found = pinned_kind(&self.client, &gvk)
                .await
                .with_context(|| format!("the cluster has no kind {kind} of {group}/{version}"))?;
            kinds.insert(gvk.clone(), found);
        }
        let (resource, capabilities) = &kinds[&gvk];
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or(namespace);
        let api = match capabilities.scope {
            Scope::Cluster => Api::all_with(self.client.clone(), resource),
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), namespace, resource),
        };
        Ok((api, name))
    }

    /// A condition in the status of an object, as soon as there is one.
    pub async fn condition(
        &self,
        namespace: &str,
        (version, kind): (&str, &str),
        name: &str,
        condition: &str,
    ) -> Result<Value> {
        wait::eventually(
            &format!("{kind} {name} has a condition {condition}"),
            || async {
                let object = self.object(namespace, version, kind, name).await?;
                let conditions = object.data["status"]["conditions"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                conditions
                    .into_iter()
                    .find(|found| found["type"] == condition)
                    .with_context(|| format!("its status: {}", object.data["status"]))
            },
        )
        .await
    }

    /// What has happened in a namespace, a line each: object, reason, message.
    pub async fn events(&self, namespace: &str) -> Result<Vec<String>> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let events = api.list(&ListParams::default()).await?.items.into_iter();
        Ok(events
            .map(|event| {
                let object = event.involved_object.name.unwrap_or_default();
                format!(
                    "{object} {}: {}",
                    event.reason.unwrap_or_default(),
                    event.message.unwrap_or_default()
                )
            })
            .collect())
    }

    /// The pods of a namespace that carry these labels (`app=web,tier!=db`).
    pub async fn pods(&self, namespace: &str, labels: &str) -> Result<Vec<PodObject>> {
        let api: Api<PodObject> = Api::namespaced(self.client.clone(), namespace);
        Ok(api.list(&ListParams::default().labels(labels)).await?.items)
    }
}

fn documents(yaml: &str) -> Result<Vec<Value>> {
    yaml.split("\n---")
        .filter(|text| !text.trim().is_empty())
        .map(|text| {
            serde_saphyr::from_str(text).with_context(|| format!("in the test's YAML:\n{text}"))
        })
        .collect()
}
