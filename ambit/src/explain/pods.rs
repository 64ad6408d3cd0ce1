//! Which pod somebody means, by the API server.

use api::k8s::labels;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

/// The pod that calls, as far as the API server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    /// `namespace/name`
    pub(super) name: String,
    pub(super) node: String,
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
