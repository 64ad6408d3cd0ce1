//! The API server, and what is made in it.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::PATIENCE;

pub(crate) const SYSTEM: &str = "istio-system";

/// The API server, and what is made in it.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) kubeconfig: String,
}

impl Cluster {
    pub(crate) async fn open() -> Self {
        let kubeconfig = std::env::var("AMBIT_TEST_KUBECONFIG").expect("AMBIT_TEST_KUBECONFIG");
        let connection = istiod_lite::cluster::connect(Some(Path::new(&kubeconfig)));
        let client = connection.await.unwrap().client;
        let cluster = Self { client, kubeconfig };
        cluster
            .ensure::<Namespace>(None, json!({"metadata": {"name": SYSTEM}}))
            .await;
        cluster
    }

    /// Makes it, unless it is there.
    pub(crate) async fn ensure<K>(&self, namespace: Option<&str>, object: Value) -> K
    where
        K: kube::Resource<DynamicType = ()>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug
            + serde::Serialize,
        Api<K>: In<K>,
    {
        let api = <Api<K> as In<K>>::within(self.client.clone(), namespace);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let object: K = serde_json::from_value(object).unwrap();
        match api.create(&PostParams::default(), &object).await {
            Ok(made) => made,
            Err(kube::Error::Api(status)) if status.code == 409 => api.get(&name).await.unwrap(),
            Err(error) => panic!("{name}: {error}"),
        }
    }

    /// A running pod; returns its uid.
    pub(crate) async fn pod(
        &self,
        namespace: &str,
        name: &str,
        account: &str,
        node: &str,
        ip: &str,
    ) -> String {
        let pod = json!({
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": account},
                "annotations": {"ambient.istio.io/redirection": "enabled"}},
            "spec": {"serviceAccountName": account, "nodeName": node,
                "automountServiceAccountToken": false,
                "containers": [{"name": "app", "image": "none",
                    "env": [{"name": "SOME", "value": "thing of the usual length"}],
                    "ports": [{"name": "http", "containerPort": 8080}]}]}});
        let made: Pod = self.ensure(Some(namespace), pod).await;
        self.status(namespace, name, ip, true).await;
        made.metadata.uid.unwrap()
    }

    pub(crate) async fn status(&self, namespace: &str, name: &str, ip: &str, ready: bool) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let ready = if ready { "True" } else { "False" };
        let patch = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": ready}]}});
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    pub(crate) async fn account(&self, namespace: &str, name: &str) {
        let account = json!({"metadata": {"name": name, "namespace": namespace}});
        self.ensure::<ServiceAccount>(Some(namespace), account)
            .await;
    }

    /// A token as the kubelet gets it.
    pub(crate) async fn token(
        &self,
        namespace: &str,
        account: &str,
        pod: Option<(&str, &str)>,
        audience: &str,
    ) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.into()]),
                expiration_seconds: Some(3600),
                bound_object_ref: pod.map(|(name, uid)| BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(name.into()),
                    uid: Some(uid.into()),
                }),
            }),
            ..TokenRequest::default()
        };
        let plain = PostParams::default();
        let made = accounts.create_token_request(account, &plain, &request);
        made.await.unwrap().status.unwrap().token.unwrap()
    }

    pub(crate) async fn roots(&self) -> Vec<u8> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
        let told = async {
            loop {
                if let Ok(map) = maps.get("istio-ca-root-cert").await
                    && let Some(roots) = map.data.and_then(|mut data| data.remove("root-cert.pem"))
                {
                    return roots.into_bytes();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let told = tokio::time::timeout(2 * PATIENCE, told).await;
        told.expect("the mesh's roots are told nobody")
    }
}

/// Kinds with and without namespaces look alike to [`Cluster::ensure`].
pub(crate) trait In<K> {
    fn within(client: Client, namespace: Option<&str>) -> Api<K>;
}

macro_rules! namespaced {
    ($($kind:ty),*) => {$(
        impl In<$kind> for Api<$kind> {
            fn within(client: Client, namespace: Option<&str>) -> Api<$kind> {
                Api::namespaced(client, namespace.unwrap())
            }
        }
    )*};
}
namespaced!(Pod, ServiceAccount);

macro_rules! cluster_wide {
    ($($kind:ty),*) => {$(
        impl In<$kind> for Api<$kind> {
            fn within(client: Client, _: Option<&str>) -> Api<$kind> {
                Api::all(client)
            }
        }
    )*};
}
cluster_wide!(Namespace, Node);
