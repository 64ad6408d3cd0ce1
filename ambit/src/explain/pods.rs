//! Which pod somebody means, by the API server, and whether it brings its own proxy.

use std::net::SocketAddr;

use api::k8s::labels;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use crate::live::own::{self, Own};

/// The pod that calls, as far as the API server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    /// `namespace/name`
    pub(super) name: String,
    pub(super) node: String,
    /// The proxy that it brings itself, if it does.
    pub(super) own: Option<Own>,
    /// What of its traffic is kept from the mesh by annotations, in words.
    pub(super) kept_out: Vec<String>,
}

/// Finds it; none if nobody is called so, which need not be wrong: an address may be anybody's.
pub(super) async fn caller(client: &Client, text: &str) -> anyhow::Result<Option<Caller>> {
    if let Ok(ip) = text.parse::<std::net::IpAddr>() {
        let all: Api<Pod> = Api::all(client.clone());
        let at = ListParams::default().fields(&format!("status.podIP={ip}"));
        let found = all.list(&at).await?;
        // A pod with its node's network is not known by its address.
        let own = |pod: &&Pod| {
            pod.spec
                .as_ref()
                .is_some_and(|it| it.host_network != Some(true))
        };
        return Ok(found.iter().find(own).map(facts));
    }
    let Some((namespace, name)) = text.split_once('/') else {
        return Ok(None);
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    if let Some(pod) = pods.get_opt(name).await? {
        return Ok(Some(facts(&pod)));
    }
    let found = pods.list(&ListParams::default()).await?;
    Ok(found
        .iter()
        .filter(|pod| is_of(pod, name))
        .max_by_key(|pod| is_running(pod))
        .map(facts))
}

/// The pod that is called at `at`, where the control plane knows it by this uid: its namespace and name, and the proxy that it
/// brings itself. None if it brings none, or is nobody's of this cluster: one of another may have the same name, and has
/// another address.
pub(super) async fn called(
    client: &Client,
    uid: &str,
    at: &str,
) -> kube::Result<Option<(String, Own)>> {
    let Some((namespace, name)) = named_by(uid) else {
        return Ok(None);
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = pods.get_opt(name).await?;
    let found = found.filter(|pod| has(pod, at));
    Ok(found
        .and_then(|pod| own::of(&pod))
        .map(|own| (format!("{namespace}/{name}"), own)))
}

/// Namespace and name of a pod: uids of pods are `cluster//Pod/namespace/name`.
fn named_by(uid: &str) -> Option<(&str, &str)> {
    let (before, name) = uid.rsplit_once('/')?;
    let (kind, namespace) = before.rsplit_once('/')?;
    kind.ends_with("//Pod").then_some((namespace, name))
}

fn has(pod: &Pod, at: &str) -> bool {
    let Ok(at) = at.parse::<SocketAddr>() else {
        return false;
    };
    let addresses = pod.status.iter().flat_map(|it| it.pod_ips.iter().flatten());
    let mut read = addresses.filter_map(|it| it.ip.parse().ok());
    read.any(|ip: std::net::IpAddr| ip == at.ip())
}

/// Whether this owner made it: a StatefulSet or DaemonSet itself, a Deployment by way of a ReplicaSet.
fn is_of(pod: &Pod, owner: &str) -> bool {
    let owners = pod.owner_references();
    owners.iter().any(|by| {
        let of_deployment = by.kind == "ReplicaSet"
            && by
                .name
                .rsplit_once('-')
                .is_some_and(|(made_by, _)| made_by == owner);
        by.name == owner || of_deployment
    })
}

fn is_running(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    pod.metadata.deletion_timestamp.is_none()
        && status.and_then(|it| it.phase.as_deref()) == Some("Running")
}

fn facts(pod: &Pod) -> Caller {
    let kept = [
        labels::EXCLUDE_OUTBOUND_PORTS,
        labels::EXCLUDE_OUTBOUND_RANGES,
        labels::INCLUDE_OUTBOUND_RANGES,
    ];
    let said = |annotation: &str| {
        let value = pod.annotations().get(annotation)?;
        Some(format!("its annotation {annotation} is {value:?}"))
    };
    let spec = pod.spec.as_ref();
    Caller {
        name: format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()),
        node: spec.and_then(|it| it.node_name.clone()).unwrap_or_default(),
        own: own::of(pod),
        kept_out: kept.into_iter().filter_map(said).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, owner: serde_json::Value, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": name, "ownerReferences": [owner],
                "annotations": { "traffic.sidecar.istio.io/excludeOutboundPorts": "5432" } },
            "spec": { "nodeName": "node-1", "containers": [] },
            "status": { "phase": phase },
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_belongs_to_the_deployment_of_its_replica_set_and_to_nobody_with_a_longer_name() {
        let set = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "uid": "1" });
        let own = pod("web-5d4f-x", set, "Running");
        assert!(is_of(&own, "web") && is_of(&own, "web-5d4f") && !is_of(&own, "we"));
        let set = json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db-main", "uid": "1" });
        assert!(!is_of(&pod("db-main-0", set, "Running"), "db"));
    }

    #[test]
    fn whoever_is_called_is_a_pod_of_this_cluster_only_with_that_name_and_that_address() {
        assert_eq!(named_by("c1//Pod/shop/web-0"), Some(("shop", "web-0")));
        let machine = "c1/networking.istio.io/WorkloadEntry/shop/db-1";
        for other in [machine, "c1//Node/web-0", "web-0", ""] {
            assert_eq!(named_by(other), None, "{other}");
        }
        let pod = own::tests::injected("shop", "web-0", "fd00::9", json!({ "running": {} }));
        assert!(has(&pod, "[fd00::9]:8080"));
        for other in ["[fd00::8]:8080", "10.0.0.9:8080", "web.example:8080", ""] {
            assert!(!has(&pod, other), "{other}");
        }
        assert_eq!(facts(&pod).own, Some(Own::Runs));
    }

    #[test]
    fn what_annotations_keep_out_is_said() {
        let set = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "uid": "1" });
        let caller = facts(&pod("web-5d4f-x", set, "Running"));
        assert_eq!(
            (&*caller.name, &*caller.node),
            ("shop/web-5d4f-x", "node-1")
        );
        assert_eq!(caller.kept_out.len(), 1);
        assert!(caller.kept_out[0].contains("5432"));
    }
}
