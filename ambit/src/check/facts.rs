//! What the API server tells about the cluster.

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{ListParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::oneshot;
use kube::{Api, Client, ResourceExt as _};

use super::idle;
use crate::parts::is_ours;

/// All that [`super::judge`] knows.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// `major.minor` of the API server, as numbers.
    pub(super) version: (u32, u32),
    /// Each node.
    pub(super) nodes: Vec<NodeFacts>,
    /// What an installation does and this caller may not.
    pub(super) forbidden: Vec<String>,
    /// Workloads of other meshes: `kind namespace/name`.
    pub(super) other_meshes: Vec<String>,
    /// A mesh of ours is there.
    pub(super) ours: bool,
    /// DaemonSets of network plugins by name.
    pub(super) plugins: Vec<String>,
    /// `data` of ConfigMap kube-system/cilium-config, if it is there.
    pub(super) cilium: Option<std::collections::BTreeMap<String, String>>,
    /// All NetworkPolicies.
    pub(super) policies: Vec<NetworkPolicy>,
    /// Whether the Gateway API is there.
    pub(super) gateway_api: bool,
    /// Objects of Istio's that would have no effect.
    pub(super) idle: Vec<idle::Found>,
    /// Pods with annotations that would have none.
    pub(super) annotated: Vec<idle::Annotated>,
}

/// A node.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeFacts {
    pub(super) name: String,
    /// `linux`, `windows`
    pub(super) system: String,
    /// `6.1.0-28-amd64`
    pub(super) kernel: String,
    /// `amd64`, `arm64`
    pub(super) architecture: String,
    /// `containerd://1.7.2`
    pub(super) runtime: String,
    pub(super) ready: bool,
}

/// Asks for all of it.
pub(super) async fn collect(client: &Client, system: &str) -> anyhow::Result<Facts> {
    let version = client
        .apiserver_version()
        .await
        .context("cannot read the API server's version")?;
    let digits = |text: &str| {
        text.chars()
            .take_while(char::is_ascii_digit)
            .collect::<String>()
            .parse()
            .unwrap_or(0)
    };
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes
        .list(&ListParams::default())
        .await
        .context("cannot list Nodes")?;
    let policies: Api<NetworkPolicy> = Api::all(client.clone());
    let policies = policies
        .list(&ListParams::default())
        .await
        .context("cannot list NetworkPolicies")?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let cilium = maps
        .get_opt("cilium-config")
        .await
        .context("cannot read ConfigMaps of kube-system")?;
    let gateways = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "Gateway");
    let mut facts = Facts {
        version: (digits(&version.major), digits(&version.minor)),
        nodes: nodes.iter().map(node).collect(),
        forbidden: forbidden(client, system).await?,
        cilium: cilium.and_then(|map| map.data),
        policies: policies.items,
        gateway_api: oneshot::pinned_kind(client, &gateways).await.is_ok(),
        idle: idle::collect(client).await?,
        annotated: idle::annotated(client).await?,
        ..Facts::default()
    };
    workloads(client, &mut facts).await?;
    Ok(facts)
}

fn node(node: &Node) -> NodeFacts {
    let status = node.status.clone().unwrap_or_default();
    let info = status.node_info.unwrap_or_default();
    NodeFacts {
        name: node.name_any(),
        system: info.operating_system,
        kernel: info.kernel_version,
        architecture: info.architecture,
        runtime: info.container_runtime_version,
        ready: status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
    }
}

/// Deployments and DaemonSets by which a mesh or a network plugin is known.
async fn workloads(client: &Client, facts: &mut Facts) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::all(client.clone());
    for found in deployments
        .list(&ListParams::default())
        .await
        .context("cannot list Deployments")?
    {
        let name = found.name_any();
        let mesh = found.labels().get("app").is_some_and(|app| app == "istiod")
            || MESHES.contains(&name.as_str());
        if !mesh {
            continue;
        }
        if found
            .spec
            .as_ref()
            .is_some_and(|spec| is_ours(&spec.template))
        {
            facts.ours = true;
        } else {
            facts.other_meshes.push(format!(
                "Deployment {}/{name}",
                found.namespace().unwrap_or_default()
            ));
        }
    }
    let sets: Api<DaemonSet> = Api::all(client.clone());
    for found in sets
        .list(&ListParams::default())
        .await
        .context("cannot list DaemonSets")?
    {
        let name = found.name_any();
        if PLUGINS.contains(&name.as_str()) {
            facts.plugins.push(name);
        }
    }
    Ok(())
}

/// What installing needs and the caller lacks.
async fn forbidden(client: &Client, system: &str) -> anyhow::Result<Vec<String>> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut forbidden = Vec::new();
    for (verb, group, resource, namespaced) in NEEDED {
        let attributes = ResourceAttributes {
            verb: Some(verb.into()),
            group: Some(group.into()),
            resource: Some(resource.into()),
            namespace: namespaced.then(|| system.to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..Default::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = reviews
            .create(&PostParams::default(), &review)
            .await
            .context("cannot ask for own rights")?;
        if !answer.status.is_some_and(|status| status.allowed) {
            forbidden.push(format!("{verb} {resource}"));
        }
    }
    Ok(forbidden)
}

const NEEDED: [(&str, &str, &str, bool); 14] = [
    ("create", "rbac.authorization.k8s.io", "roles", true),
    ("create", "rbac.authorization.k8s.io", "rolebindings", true),
    ("create", "", "serviceaccounts", true),
    ("create", "", "services", true),
    ("create", "", "configmaps", true),
    ("create", "policy", "poddisruptionbudgets", true),
    ("create", "", "namespaces", false),
    (
        "create",
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        false,
    ),
    ("create", "rbac.authorization.k8s.io", "clusterroles", false),
    (
        "create",
        "rbac.authorization.k8s.io",
        "clusterrolebindings",
        false,
    ),
    (
        "create",
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        false,
    ),
    (
        "create",
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        false,
    ),
    ("create", "apps", "daemonsets", true),
    ("create", "apps", "deployments", true),
];

/// Control planes of other meshes.
const MESHES: [&str; 5] = [
    "istiod",
    "linkerd-destination",
    "consul-connect-injector",
    "kuma-control-plane",
    "osm-controller",
];

/// Network plugins, by the DaemonSet they run as.
const PLUGINS: [&str; 9] = [
    "cilium",
    "calico-node",
    "aws-node",
    "kube-flannel-ds",
    "weave-net",
    "kindnet",
    "antrea-agent",
    "azure-cni",
    "anetd",
];
