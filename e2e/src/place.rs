//! A test's own namespace: servers, clients, policies; gone when the test is over.

use anyhow::Result;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{cluster::Cluster, node::Node, pod::Pod};

/// The label that brings a namespace or a pod into the mesh.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// A namespace.
#[derive(Clone)]
pub struct Place {
    cluster: Cluster,
    /// Its name.
    pub name: String,
}

impl Place {
    /// Makes it.
    pub async fn make(cluster: &Cluster, name: String, ambient: bool) -> Result<Self> {
        cluster
            .namespace(&name, &[(DATAPLANE_MODE, ambient.then_some("ambient"))])
            .await?;
        Ok(Self {
            cluster: cluster.clone(),
            name,
        })
    }

    /// Labels it for the mesh.
    pub async fn enrol(&self) -> Result<()> {
        self.label(DATAPLANE_MODE, Some("ambient")).await
    }

    /// Takes the label off.
    pub async fn unenrol(&self) -> Result<()> {
        self.label(DATAPLANE_MODE, None).await
    }

    /// Sets or removes a label.
    pub async fn label(&self, key: &str, value: Option<&str>) -> Result<()> {
        self.cluster.namespace(&self.name, &[(key, value)]).await
    }

    /// Applies YAML here.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        self.cluster.apply(&self.name, yaml).await
    }

    /// Deletes what YAML names here.
    pub async fn remove(&self, yaml: &str) -> Result<()> {
        self.cluster.delete(&self.name, yaml).await
    }

    /// A server of ours: HTTP and gRPC on 8080, TCP echo and datagrams on 9000; account and Service of the same name (80 and 9000).
    pub fn server(&self, name: &str) -> PodBuilder {
        let mut builder = self.pod(name, &["/opt/e2e/app", "serve"]);
        builder.container["readinessProbe"] =
            json!({ "httpGet": { "port": 8080 }, "periodSeconds": 1, "timeoutSeconds": 5 });
        builder.container["ports"] = json!([{ "containerPort": 8080 }, { "containerPort": 9000 }]);
        builder.service = Some(service(name, &[("http", 80, 8080), ("echo", 9000, 9000)]));
        builder
    }

    /// A pod to run clients in, with an account of its name.
    pub fn client(&self, name: &str) -> PodBuilder {
        self.pod(name, &["sleep", "infinity"])
    }

    /// A pod that runs a program, with an account of its name.
    pub fn pod(&self, name: &str, command: &[&str]) -> PodBuilder {
        PodBuilder {
            place: self.clone(),
            name: name.to_owned(),
            metadata: json!({ "name": name, "labels": { "app": name } }),
            spec: json!({ "serviceAccountName": name, "terminationGracePeriodSeconds": 1 }),
            container: container(&self.cluster.apps, command),
            service: None,
        }
    }

    /// A Service of pods with a label: (name, port, port of the pods).
    pub async fn service(
        &self,
        name: &str,
        label: (&str, &str),
        ports: &[(&str, u16, u16)],
    ) -> Result<()> {
        let mut object = service(name, ports);
        object["spec"]["selector"] = json!({ (label.0): label.1 });
        self.cluster.apply_object(&self.name, object).await?;
        Ok(())
    }

    /// A Deployment of our server with its account and Service; waits for all replicas.
    pub async fn deployment(&self, name: &str, replicas: u32) -> Result<()> {
        self.account(name).await?;
        self.cluster
            .apply_object(
                &self.name,
                service(name, &[("http", 80, 8080), ("echo", 9000, 9000)]),
            )
            .await?;
        let mut server = self.server(name);
        server.spec["terminationGracePeriodSeconds"] = json!(10);
        let template = server.template();
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
            "spec": {
                "replicas": replicas, "selector": { "matchLabels": { "app": name } }, "template": template,
                "strategy": { "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
            },
        });
        self.cluster.apply_object(&self.name, object).await?;
        self.cluster
            .mesh()
            .rolled_out_in::<k8s_openapi::api::apps::v1::Deployment>(&self.name, name)
            .await
    }

    /// The pods with a label `app`.
    pub async fn pods_of(&self, app: &str) -> Result<Vec<Pod>> {
        let pods = self.cluster.pods(&self.name, &format!("app={app}")).await?;
        pods.iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .map(|pod| Pod::of(&self.cluster, pod))
            .collect()
    }

    /// A container of the test image, for objects that a test writes itself.
    pub fn container(&self, command: &[&str]) -> Value {
        container(&self.cluster.apps, command)
    }

    /// The volumes that every container of ours mounts from.
    pub fn volumes(&self) -> Value {
        volumes()
    }

    /// Makes a service account.
    pub async fn account(&self, name: &str) -> Result<()> {
        let object =
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } });
        self.cluster
            .apply_object(&self.name, object)
            .await
            .map(drop)
    }

    /// Asks for its removal; nobody waits.
    pub async fn leave(&self) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.cluster.client.clone());
        api.delete(&self.name, &DeleteParams::background().grace_period(0))
            .await?;
        Ok(())
    }

    /// The SPIFFE identity of an account here.
    pub fn identity(&self, account: &str) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{account}", self.name)
    }

    /// Replaces the pods of a Deployment one by one, as `kubectl rollout restart` does; waits until it is done.
    pub async fn restart(&self, deployment: &str) -> Result<()> {
        self.cluster
            .mesh()
            .restart_in::<k8s_openapi::api::apps::v1::Deployment>(&self.name, deployment)
            .await
    }

    /// Waits until a Deployment has all its pods.
    pub async fn all_ready(&self, deployment: &str) -> Result<()> {
        self.cluster
            .mesh()
            .rolled_out_in::<k8s_openapi::api::apps::v1::Deployment>(&self.name, deployment)
            .await
    }

    /// Labels a pod.
    pub async fn label_pod(&self, pod: &Pod, key: &str, value: Option<&str>) -> Result<()> {
        let patch = json!({ "metadata": { "labels": { key: value } } });
        pod.api()
            .patch(&pod.name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }
}

/// A pod that is to be.
pub struct PodBuilder {
    place: Place,
    name: String,
    metadata: Value,
    /// Its specification, for what has no word here.
    pub spec: Value,
    /// Its container.
    pub container: Value,
    service: Option<Value>,
}

impl PodBuilder {
    /// On this node.
    pub fn on(mut self, node: &Node) -> Self {
        self.spec["nodeName"] = json!(node.name);
        self
    }

    /// With another account than that of its name.
    pub fn account(mut self, name: &str) -> Self {
        self.spec["serviceAccountName"] = json!(name);
        self
    }

    /// With a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.metadata["labels"][key] = json!(value);
        self
    }

    /// With an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.metadata["annotations"][key] = json!(value);
        self
    }

    /// With another readiness probe.
    pub fn readiness(mut self, probe: Value) -> Self {
        self.container["readinessProbe"] = probe;
        self
    }

    /// In the node's network.
    pub fn host_network(mut self) -> Self {
        self.spec["hostNetwork"] = json!(true);
        self.spec["dnsPolicy"] = json!("ClusterFirstWithHostNet");
        self
    }

    /// With no Service.
    pub fn without_service(mut self) -> Self {
        self.service = None;
        self
    }

    /// As the template of a Deployment or the like.
    pub fn template(mut self) -> Value {
        self.complete();
        json!({ "metadata": { "labels": self.metadata["labels"], "annotations": self.metadata["annotations"] }, "spec": self.spec })
    }

    /// Creates it and waits until it is ready.
    pub async fn start(self) -> Result<Pod> {
        let (place, name) = (self.place.clone(), self.name.clone());
        self.create().await?;
        Pod::ready(&place.cluster, &place.name, &name).await
    }

    /// Creates it.
    pub async fn create(mut self) -> Result<()> {
        self.complete();
        if let Some(account) = self.spec["serviceAccountName"].as_str() {
            self.place.account(account).await?;
        }
        if let Some(service) = self.service.take() {
            self.place
                .cluster
                .apply_object(&self.place.name, service)
                .await?;
        }
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": self.metadata, "spec": self.spec });
        self.place
            .cluster
            .apply_object(&self.place.name, pod)
            .await
            .map(drop)
    }

    fn complete(&mut self) {
        self.spec["containers"] = json!([self.container]);
        self.spec["volumes"] = volumes();
    }
}

/// A container of the test image.
pub fn container(image: &str, command: &[&str]) -> Value {
    json!({
        "name": "app", "image": image, "imagePullPolicy": "Never", "command": command,
        "volumeMounts": [{ "name": "e2e", "mountPath": "/opt/e2e", "readOnly": true }],
    })
}

/// Our own programs, from the node.
pub fn volumes() -> Value {
    json!([{ "name": "e2e", "hostPath": { "path": "/opt/e2e" } }])
}

fn service(name: &str, ports: &[(&str, u16, u16)]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port, target)| json!({ "name": name, "port": port, "targetPort": target }))
        .collect();
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": { "selector": { "app": name }, "ports": ports } })
}
