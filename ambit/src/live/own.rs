//! Pure: which pods bring their own proxy, and whether it can be asked.

use api::k8s::labels;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use kube::ResourceExt as _;

/// How a proxy does that a pod brings itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    /// It runs.
    Runs,
    /// It does not, in words.
    Rests(&'static str),
}

/// None of a pod that brings none, or another mesh's: its node's proxy serves it, or nobody.
pub(crate) fn of(pod: &Pod) -> Option<Own> {
    // By this node agents leave the pod alone. A variable by itself is anybody's to write, also where the node's proxy serves.
    pod.annotations().get(labels::SIDECAR_STATUS)?;
    let spec = pod.spec.as_ref()?;
    if spec.host_network == Some(true) {
        // What listens on the loopback there is the node's.
        return None;
    }
    let init = spec.init_containers.iter().flatten();
    let proxy = init.chain(&spec.containers).find(|it| is_proxy(it))?;
    let status = pod.status.iter().flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    });
    let state = status
        .filter(|it: &&ContainerStatus| it.name == proxy.name)
        .find_map(|it| it.state.as_ref());
    Some(match state {
        Some(state) if state.running.is_some() => Own::Runs,
        Some(state) if state.terminated.is_some() => Own::Rests("it has ended"),
        _ => Own::Rests("it has not started"),
    })
}

fn is_proxy(container: &Container) -> bool {
    let mut variables = container.env.iter().flatten();
    variables.any(|it| it.name == MODE && it.value.as_deref() == Some(labels::DEDICATED))
}

/// For whom a ztunnel is.
const MODE: &str = "PROXY_MODE";

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod as the control plane's webhook leaves it, whose proxy does so.
    pub(crate) fn injected(namespace: &str, name: &str, ip: &str, state: Value) -> Pod {
        let proxy = json!({ "name": "istio-proxy", "restartPolicy": "Always",
            "env": [{ "name": "PROXY_MODE", "value": "dedicated" }] });
        serde_json::from_value(json!({
            "metadata": { "namespace": namespace, "name": name, "annotations": { "sidecar.istio.io/status": "{}" } },
            "spec": { "nodeName": "node-1", "containers": [{ "name": "app" }],
                "initContainers": [{ "name": "istio-init" }, proxy] },
            "status": { "podIPs": [{ "ip": ip }],
                "containerStatuses": [{ "name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": { "running": {} } }],
                "initContainerStatuses": [{ "name": "istio-proxy", "image": "", "imageID": "", "ready": true,
                    "restartCount": 0, "state": state }] },
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_brings_its_own_proxy_if_it_has_one_that_is_for_it_alone_and_node_agents_leave_it_alone()
     {
        let pod = || injected("shop", "own", "10.0.0.9", json!({ "running": {} }));
        assert_eq!(of(&pod()), Some(Own::Runs));

        let mut by_hand = pod();
        let spec = by_hand.spec.as_mut().unwrap();
        let proxy = spec.init_containers.take().unwrap().pop().unwrap();
        spec.containers.push(Container {
            name: "app".into(),
            ..proxy
        });
        assert_eq!(
            of(&by_hand),
            Some(Own::Runs),
            "under any name, in either list"
        );

        let mut served = pod();
        served.metadata.annotations = None;
        assert_eq!(
            of(&served),
            None,
            "the node's proxy serves it, whatever it says"
        );
        let mut of_the_node = pod();
        of_the_node.spec.as_mut().unwrap().host_network = Some(true);
        assert_eq!(of(&of_the_node), None, "the loopback is the node's");
        let mut of_another_mesh = pod();
        let containers = of_another_mesh.spec.as_mut().unwrap();
        for container in containers.init_containers.iter_mut().flatten() {
            container.env = None;
        }
        assert_eq!(
            of(&of_another_mesh),
            None,
            "its proxy does not know our questions"
        );
    }

    #[test]
    fn a_proxy_that_does_not_run_cannot_be_asked() {
        let with = |state| of(&injected("shop", "own", "10.0.0.9", state));
        let waits = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        let ended = json!({ "terminated": { "exitCode": 0 } });
        assert_eq!(with(waits), Some(Own::Rests("it has not started")));
        assert_eq!(with(ended), Some(Own::Rests("it has ended")));
        let mut unheard_of = injected("shop", "own", "10.0.0.9", json!({ "running": {} }));
        unheard_of.status = None;
        assert_eq!(of(&unheard_of), Some(Own::Rests("it has not started")));
    }
}
