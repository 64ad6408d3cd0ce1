//! The facts, as the API server and the control plane tell them.

use std::collections::BTreeMap;

use anyhow::Context as _;
use api::k8s::labels;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::discovery::oneshot;
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize;

use super::{is_captured, trouble, version_of};
use crate::cluster::is_missing;
use crate::install::Progress;
use crate::membership::{self, Membership};
use crate::parts::Part;
use crate::proxy;
use crate::waypoint::{Pods, ready};

/// All that [`super::judge`] knows.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Parts that exist, with what their controllers say.
    pub(super) parts: BTreeMap<Part, PartFacts>,
    /// Pods of the parts.
    pub(super) pods: Vec<PodFacts>,
    /// Names of the nodes that are Ready.
    pub(super) nodes: Vec<NodeFacts>,
    /// What each replica of the control plane says about its proxies; a replica that did not answer
    /// says why.
    pub(super) replicas: BTreeMap<String, Result<Vec<ProxySync>, String>>,
    /// Namespaces with pods that are, or should be, in the mesh.
    pub(super) namespaces: Vec<NamespaceFacts>,
    /// Objects whose conditions say that something is not as their author meant.
    pub(super) conditions: Vec<ConditionFacts>,
    /// Gateways of a class that nobody has defined.
    pub(super) strays: Vec<StrayFacts>,
    /// Waypoints by `namespace/name`, with their pods.
    pub(super) waypoints: BTreeMap<String, Pods>,
}

/// A Deployment or DaemonSet.
#[derive(Debug)]
pub(super) struct PartFacts {
    pub(super) progress: Progress,
    pub(super) version: Option<String>,
    /// Labels of the nodes that it is for.
    pub(super) nodes: BTreeMap<String, String>,
}

/// One pod of a part.
#[derive(Debug)]
pub(super) struct PodFacts {
    pub(super) part: Part,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) ready: bool,
    pub(super) restarts: i32,
    pub(super) version: Option<String>,
    pub(super) trouble: Option<String>,
}

/// One node.
#[derive(Debug)]
pub(super) struct NodeFacts {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) ready: bool,
    /// Whether it still carries the taint of a node whose agent never came.
    pub(super) tainted: bool,
}

/// One namespace.
#[derive(Debug)]
pub(crate) struct NamespaceFacts {
    pub(crate) name: String,
    /// Its label enrols its pods.
    pub(crate) enrolled: bool,
    /// Pods whose traffic is captured.
    pub(crate) captured: usize,
    /// Pods that should be captured and are not, by name.
    pub(crate) waiting: Vec<String>,
    /// Captured pods that should not be any more.
    pub(crate) lingering: Vec<String>,
    /// Pods the mesh leaves alone: host network, own choice, sidecar.
    pub(crate) outside: usize,
}

/// A condition that is not as its author meant.
#[derive(Debug)]
pub(super) struct ConditionFacts {
    pub(super) object: String,
    pub(super) kind: String,
    pub(super) condition: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

/// A Gateway that nobody looks after.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StrayFacts {
    pub(super) object: String,
    pub(super) class: String,
}

/// A proxy, as `/debug/syncz` of a replica shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ProxySync {
    /// `<pod>.<namespace>`
    pub(super) proxy: String,
    #[serde(default)]
    pub(super) types: BTreeMap<String, TypeSync>,
}

/// One type of resource at one proxy.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TypeSync {
    /// `SYNCED`, `PENDING`, `REJECTED`
    pub(super) state: String,
    #[serde(default)]
    pub(super) rejected: Option<String>,
}

/// Asks for all of it.
pub(super) async fn facts(client: &Client, system: &str) -> anyhow::Result<Facts> {
    let mut facts = Facts {
        parts: parts(client, system).await?,
        nodes: nodes(client).await?,
        ..Facts::default()
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), system);
    for part in Part::ALL {
        let found = pods
            .list(&ListParams::default().labels(part.selector()))
            .await
            .context("cannot list Pods")?;
        facts.pods.extend(pods_of(part, &found.items));
    }
    let replicas = facts
        .pods
        .iter()
        .filter(|pod| pod.part == Part::Istiod && pod.ready);
    for name in replicas.map(|pod| pod.name.clone()).collect::<Vec<_>>() {
        let answer = proxy::ask(client, system, &name, 15014, "/debug/syncz").await;
        let answer =
            answer.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
        facts.replicas.insert(name, answer);
    }
    facts.namespaces = namespaces(client, system).await?;
    judged(client, &mut facts).await?;
    let waypoints = ready(client, None).await?.into_iter();
    facts.waypoints = waypoints
        .map(|((namespace, name), pods)| (format!("{namespace}/{name}"), pods))
        .collect();
    Ok(facts)
}

async fn parts(client: &Client, system: &str) -> anyhow::Result<BTreeMap<Part, PartFacts>> {
    let mut parts = BTreeMap::new();
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), system);
    match deployments.get(Part::Istiod.name()).await {
        Ok(found) => {
            let version = found
                .spec
                .as_ref()
                .and_then(|spec| version_of(&spec.template));
            let facts = PartFacts {
                progress: Progress::of_deployment(&found),
                version,
                nodes: BTreeMap::new(),
            };
            parts.insert(Part::Istiod, facts);
        }
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(error).context("cannot read the control plane's Deployment"),
    }
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), system);
    for part in Part::ALL.into_iter().filter(|part| part.on_every_node()) {
        match sets.get(part.name()).await {
            Ok(found) => {
                let version = found
                    .spec
                    .as_ref()
                    .and_then(|spec| version_of(&spec.template));
                let facts = PartFacts {
                    progress: Progress::of_daemon_set(&found),
                    version,
                    nodes: nodes_of(&found),
                };
                parts.insert(part, facts);
            }
            Err(error) if is_missing(&error) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read DaemonSet {part}"));
            }
        }
    }
    Ok(parts)
}

/// What its template asks of a node.
fn nodes_of(set: &DaemonSet) -> BTreeMap<String, String> {
    let template = set.spec.as_ref().map(|spec| &spec.template);
    let pod = template.and_then(|template| template.spec.as_ref());
    pod.and_then(|pod| pod.node_selector.clone())
        .unwrap_or_default()
}

async fn nodes(client: &Client) -> anyhow::Result<Vec<NodeFacts>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes
        .list(&ListParams::default())
        .await
        .context("cannot list Nodes")?;
    Ok(nodes.iter().map(node_facts).collect())
}

fn node_facts(node: &Node) -> NodeFacts {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let taints = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten());
    NodeFacts {
        name: node.name_any(),
        labels: node.labels().clone(),
        ready: conditions
            .into_iter()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
        tainted: taints.into_iter().any(|taint| taint.key == NOT_READY_TAINT),
    }
}

/// Those that are for something: what a node evicted, or ended before it went down, stays in the API server for days after its
/// successor is there.
fn pods_of(part: Part, pods: &[Pod]) -> impl Iterator<Item = PodFacts> {
    let there = pods.iter().filter(|pod| !is_over(pod));
    there.map(move |pod| pod_facts(part, pod))
}

fn pod_facts(part: Part, pod: &Pod) -> PodFacts {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let image = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.containers.first()?.image.clone());
    PodFacts {
        part,
        name: pod.name_any(),
        node: pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default(),
        ready: conditions
            .into_iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
        restarts: containers
            .into_iter()
            .flatten()
            .map(|container| container.restart_count)
            .sum(),
        version: pod
            .labels()
            .get("app.kubernetes.io/version")
            .cloned()
            .or_else(|| super::tag(&image?)),
        trouble: trouble(pod),
    }
}

async fn namespaces(client: &Client, system: &str) -> anyhow::Result<Vec<NamespaceFacts>> {
    let all: Api<Namespace> = Api::all(client.clone());
    let all = all
        .list(&ListParams::default())
        .await
        .context("cannot list Namespaces")?;
    let pods: Api<Pod> = Api::all(client.clone());
    let pods = pods
        .list(&ListParams::default())
        .await
        .context("cannot list Pods")?;
    let mut by_namespace: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for pod in pods {
        by_namespace
            .entry(pod.namespace().unwrap_or_default())
            .or_default()
            .push(pod);
    }
    let membership = membership::find(client, system).await?;
    let mut found = Vec::new();
    for namespace in all
        .iter()
        .filter(|namespace| namespace.name_any() != system)
    {
        let pods = by_namespace
            .remove(&namespace.name_any())
            .unwrap_or_default();
        found.push(namespace_facts(&membership, namespace, &pods));
    }
    found.retain(|n| n.enrolled || n.captured > 0 || !n.waiting.is_empty());
    Ok(found)
}

/// Counts the pods of one namespace.
pub(crate) fn namespace_facts(
    membership: &Membership,
    namespace: &Namespace,
    pods: &[Pod],
) -> NamespaceFacts {
    let mut facts = NamespaceFacts {
        name: namespace.name_any(),
        enrolled: membership.enrols(namespace),
        captured: 0,
        waiting: Vec::new(),
        lingering: Vec::new(),
        outside: 0,
    };
    let there = pods.iter().filter(|pod| !is_over(pod) && has_a_node(pod));
    for pod in there {
        let belongs = membership.wants(namespace, pod);
        let brings_its_own = pod.annotations().contains_key(labels::SIDECAR_STATUS);
        match (belongs, is_captured(pod.annotations())) {
            (true, true) => facts.captured += 1,
            (false, true) if brings_its_own => facts.captured += 1,
            (true, false) => facts.waiting.push(pod.name_any()),
            (false, true) => facts.lingering.push(pod.name_any()),
            (false, false) => facts.outside += 1,
        }
    }
    facts
}

/// One that waits for a node speaks to nobody, and there is no agent yet that could enrol it.
fn has_a_node(pod: &Pod) -> bool {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    node.is_some_and(|name| !name.is_empty())
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What the objects of the mesh say of themselves, and which Gateways have no class.
async fn judged(client: &Client, facts: &mut Facts) -> anyhow::Result<()> {
    let (mut gateways, mut classes) = (Vec::new(), Vec::new());
    for (group, version, kind) in JUDGED {
        let gvk = GroupVersionKind::gvk(group, version, kind);
        // A kind that the cluster does not have has no objects.
        let Ok((resource, _)) = oneshot::pinned_kind(client, &gvk).await else {
            continue;
        };
        let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let objects = objects.list(&ListParams::default()).await;
        let objects = objects
            .with_context(|| format!("cannot list {kind}"))?
            .items;
        match kind {
            // Whose they are is known when all of both are.
            "Gateway" => gateways = objects,
            "GatewayClass" => classes = objects,
            _ => {
                let found = objects.iter().flat_map(|it| conditions_of(kind, it));
                facts.conditions.extend(found);
            }
        }
    }
    facts.conditions.extend(of_ours(&gateways, &classes));
    let classes: Vec<String> = classes.iter().map(|class| class.name_any()).collect();
    facts.strays = strays(&gateways, &classes);
    Ok(())
}

/// What the Gateways and classes say that this mesh looks after; of others' it is for their controllers to tell.
fn of_ours(gateways: &[DynamicObject], classes: &[DynamicObject]) -> Vec<ConditionFacts> {
    let mut found = Vec::new();
    for gateway in gateways {
        if is_ours(&class_of(gateway), classes) {
            found.extend(conditions_of("Gateway", gateway));
        }
    }
    for class in classes {
        if is_ours(&class.name_any(), classes) {
            found.extend(conditions_of("GatewayClass", class));
        }
    }
    found
}

/// By the controller that the class names; some are ours without an object.
fn is_ours(class: &str, classes: &[DynamicObject]) -> bool {
    match classes.iter().find(|it| it.name_any() == class) {
        Some(object) => {
            let controller = object.data.pointer("/spec/controllerName");
            let controller = controller.and_then(|it| it.as_str());
            controller.is_some_and(|it| CONTROLLERS.contains(&it))
        }
        None => BUILT_IN_CLASSES.contains(&class),
    }
}

fn class_of(gateway: &DynamicObject) -> String {
    let class = gateway.data.pointer("/spec/gatewayClassName");
    class
        .and_then(|it| it.as_str())
        .unwrap_or_default()
        .to_owned()
}

/// The Gateways whose class is neither among `classes` nor there without an object.
fn strays(gateways: &[DynamicObject], classes: &[String]) -> Vec<StrayFacts> {
    let of = gateways.iter().map(|it| StrayFacts {
        object: title(it),
        class: class_of(it),
    });
    of.filter(|it| !classes.contains(&it.class) && !BUILT_IN_CLASSES.contains(&it.class.as_str()))
        .collect()
}

fn title(object: &DynamicObject) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

fn conditions_of(kind: &str, object: &DynamicObject) -> Vec<ConditionFacts> {
    let list = object
        .data
        .pointer("/status/conditions")
        .and_then(|list| list.as_array());
    let text = |condition: &serde_json::Value, key: &str| {
        condition[key].as_str().unwrap_or_default().to_owned()
    };
    let condition = |condition: &serde_json::Value| ConditionFacts {
        object: title(object),
        kind: kind.to_owned(),
        condition: text(condition, "type"),
        status: text(condition, "status"),
        reason: text(condition, "reason"),
        message: text(condition, "message"),
    };
    let all = list.into_iter().flatten().map(condition);
    // A Service is everybody's: balancers of clouds write onto it too, some of them what is good when false.
    all.filter(|it| kind != "Service" || OURS.iter().any(|ours| it.condition.starts_with(ours)))
        .collect()
}

/// Kinds whose conditions the control plane writes.
const JUDGED: [(&str, &str, &str); 14] = [
    ("security.istio.io", "v1", "AuthorizationPolicy"),
    ("security.istio.io", "v1", "PeerAuthentication"),
    ("security.istio.io", "v1", "RequestAuthentication"),
    ("telemetry.istio.io", "v1", "Telemetry"),
    ("networking.istio.io", "v1", "ServiceEntry"),
    ("networking.istio.io", "v1", "WorkloadEntry"),
    ("networking.istio.io", "v1", "DestinationRule"),
    ("networking.istio.io", "v1", "VirtualService"),
    ("ambit.io", "v1alpha1", "RateLimitPolicy"),
    ("ambit.io", "v1alpha1", "QuotaPolicy"),
    ("ambit.io", "v1alpha1", "ExternalProcessor"),
    ("gateway.networking.k8s.io", "v1", "Gateway"),
    ("gateway.networking.k8s.io", "v1", "GatewayClass"),
    ("", "v1", "Service"),
];

/// How conditions begin that this mesh writes onto objects of others' kinds.
const OURS: [&str; 2] = ["istio.io/", "ambit.io/"];

/// By whom Gateways are looked after that are ours.
const CONTROLLERS: [&str; 3] = [
    "istio.io/mesh-controller",
    "istio.io/eastwest-controller",
    "istio.io/unmanaged-gateway",
];

/// Classes that need no GatewayClass.
const BUILT_IN_CLASSES: [&str; 3] = ["istio-waypoint", "istio-east-west", "istio-remote"];

/// Taint of a node whose agent has not been ready yet.
const NOT_READY_TAINT: &str = "cni.istio.io/not-ready";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A refused policy that nobody is told of would be taken for one in force.
    #[test]
    fn every_kind_of_ours_that_the_control_plane_writes_conditions_on_is_looked_at() {
        let manifest = include_str!("../../../manifests/ambit.yaml");
        let objects: Vec<serde_json::Value> = manifest
            .split("\n---\n")
            .map(|text| serde_saphyr::from_str(text).unwrap_or_default())
            .collect();
        let of = |kind: &str| {
            let kind = kind.to_owned();
            objects.iter().filter(move |it| it["kind"] == kind.as_str())
        };
        let rules = of("ClusterRole").flat_map(|role| role["rules"].as_array().unwrap());
        let written = rules.filter(|rule| rule["verbs"].to_string().contains("patch"));
        let written: Vec<&str> = written
            .flat_map(|rule| rule["resources"].as_array().unwrap())
            .filter_map(|resource| resource.as_str()?.strip_suffix("/status"))
            .collect();
        let mut looked_at = 0;
        for definition in of("CustomResourceDefinition") {
            let spec = &definition["spec"];
            if !written.contains(&spec["names"]["plural"].as_str().unwrap()) {
                continue;
            }
            let versions = spec["versions"].as_array().unwrap();
            let judged = JUDGED.iter().any(|(group, version, kind)| {
                spec["group"] == *group
                    && spec["names"]["kind"] == *kind
                    && versions.iter().any(|it| it["name"] == *version)
            });
            assert!(judged, "{}", definition["metadata"]["name"]);
            looked_at += 1;
        }
        assert!(looked_at >= 11, "{looked_at}");
    }

    #[test]
    fn a_pod_that_brings_its_own_proxy_is_in_the_mesh_whatever_its_namespace_says() {
        let pod = |annotations: serde_json::Value| -> Pod {
            let metadata = json!({ "name": "p", "annotations": annotations });
            let spec = json!({ "nodeName": "n1", "containers": [] });
            serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
        };
        let own =
            json!({ "sidecar.istio.io/status": "{}", "ambient.istio.io/redirection": "enabled" });
        let theirs = json!({ "sidecar.istio.io/status": "{}" });
        let pods = [pod(own), pod(theirs), pod(json!({}))];
        for mode in ["dedicated", "ambient"] {
            let metadata = json!({ "name": "shop", "labels": { "istio.io/dataplane-mode": mode } });
            let namespace = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
            let facts = namespace_facts(&Membership::default(), &namespace, &pods);
            assert_eq!((facts.captured, facts.lingering.len()), (1, 0), "{mode}");
        }
    }

    #[test]
    fn what_other_controllers_say_of_their_objects_is_not_for_the_mesh_to_tell() {
        let object = |kind: &str, name: &str, spec: serde_json::Value, condition: &str| {
            let condition = json!({ "type": condition, "status": "False" });
            let object = json!({
                "apiVersion": "v1", "kind": kind, "metadata": { "name": name },
                "spec": spec, "status": { "conditions": [condition] },
            });
            serde_json::from_value::<DynamicObject>(object).unwrap()
        };
        let class = |name: &str, controller: &str| {
            object(
                "GatewayClass",
                name,
                json!({ "controllerName": controller }),
                "Accepted",
            )
        };
        let gateway = |name: &str, class: &str| {
            object(
                "Gateway",
                name,
                json!({ "gatewayClassName": class }),
                "Programmed",
            )
        };
        let classes = [
            class("edge", "example.com/gateways"),
            class("istio", "istio.io/gateway-controller"),
            class("way", "istio.io/mesh-controller"),
        ];
        let gateways = [
            gateway("door", "edge"),
            gateway("theirs", "istio"),
            gateway("ours", "way"),
            gateway("built-in", "istio-waypoint"),
            gateway("stray", "typo"),
        ];
        let found = of_ours(&gateways, &classes);
        let found: Vec<&str> = found.iter().map(|it| it.object.as_str()).collect();
        assert_eq!(found, ["ours", "built-in", "way"]);

        let said = |condition: &str| {
            let service = object("Service", "web", json!({}), condition);
            conditions_of("Service", &service).len()
        };
        assert_eq!(said("istio.io/WaypointBound"), 1);
        assert_eq!(said("ambit.io/WaypointOnly"), 1);
        assert_eq!(said("LoadBalancerPortsError"), 0);
    }

    #[test]
    fn a_gateway_is_a_stray_where_nobody_defined_its_class() {
        let gateway = |name: &str, class: &str| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": { "name": name, "namespace": "a" }, "spec": { "gatewayClassName": class },
            }))
            .unwrap()
        };
        let all = [
            gateway("ours", "istio-waypoint"),
            gateway("theirs", "other"),
            gateway("nobodys", "typo"),
        ];
        let found = strays(&all, &["other".to_owned()]);
        let stray = StrayFacts {
            object: "a/nobodys".into(),
            class: "typo".into(),
        };
        assert_eq!(found, [stray]);
    }

    #[test]
    fn a_pod_that_was_evicted_is_no_part_that_is_not_ready() {
        let pod = |name: &str, phase: &str| -> Pod {
            let status = json!({ "phase": phase, "reason": "Evicted" });
            serde_json::from_value(json!({ "metadata": { "name": name }, "status": status }))
                .unwrap()
        };
        let pods = [
            pod("istiod-1", "Running"),
            pod("istiod-2", "Failed"),
            pod("istiod-3", "Succeeded"),
            pod("istiod-4", "Pending"),
        ];
        let names: Vec<String> = pods_of(Part::Istiod, &pods).map(|it| it.name).collect();
        assert_eq!(names, ["istiod-1", "istiod-4"]);
    }
}
