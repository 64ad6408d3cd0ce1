//! Pure: an object of the API server becomes ours.
//!
//! Kubernetes' own kinds were checked by the API server, which is stricter with them than we; they
//! lose here what nobody behind the door reads (of a pod nine tenths). The mesh's own kinds come as
//! JSON and pass the same reading and the same checks as a document of a directory: a definition
//! in the cluster may be older or looser than ours.

use std::sync::Arc;

use api::k8s::aim::{Aim, aim};
use api::k8s::json;
use api::k8s::objects::{
    EndpointSlice, Kind, Namespace, Node, Object, ObjectKey, ObjectMeta, Pod, Service,
};
use k8s_openapi::api::core::v1::{Container, PodCondition, PodSpec, PodStatus};
use kube::core::{DynamicObject, PartialObjectMeta};
use serde_json::Value;

/// One object as it came in.
#[derive(Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) key: ObjectKey,
    /// `metadata.resourceVersion`: the same text, the same object.
    pub(super) version: String,
    /// The object, or what is wrong with it.
    pub(super) object: Result<Object, Vec<String>>,
    /// Of a policy in which something is wrong: whom it is about nevertheless.
    pub(super) aim: Option<Aim>,
}

/// What can come through the door.
pub(super) trait Enter: Sized {
    /// Becomes ours.
    fn enter(self, kind: Kind) -> Seen;

    /// What names it.
    fn key(&self, kind: Kind) -> ObjectKey;
}

fn key(kind: Kind, metadata: &ObjectMeta) -> ObjectKey {
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    ObjectKey::new(
        kind,
        namespace,
        metadata.name.as_deref().unwrap_or_default(),
    )
}

fn seen(kind: Kind, metadata: &mut ObjectMeta) -> (ObjectKey, String) {
    let version = metadata.resource_version.take().unwrap_or_default();
    strip(metadata);
    (key(kind, metadata), version)
}

/// Who wrote which field when, and a second copy of the object by kubectl.
fn strip(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    metadata.self_link = None;
    metadata.finalizers = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

macro_rules! enter {
    ($type:ty, $object:ident, $strip:expr) => {
        impl Enter for $type {
            fn enter(mut self, kind: Kind) -> Seen {
                let (key, version) = seen(kind, &mut self.metadata);
                let strip: fn($type) -> _ = $strip;
                let object = Ok(Object::$object(Arc::new(strip(self))));
                Seen {
                    key,
                    version,
                    object,
                    aim: None,
                }
            }

            fn key(&self, kind: Kind) -> ObjectKey {
                key(kind, &self.metadata)
            }
        }
    };
}

enter!(Service, Service, |service| Service {
    status: None,
    ..service
});
enter!(EndpointSlice, EndpointSlice, |slice| slice);
enter!(Pod, Pod, pod);
enter!(PartialObjectMeta<Namespace>, Namespace, |it| Namespace {
    metadata: it.metadata,
    ..Namespace::default()
});
enter!(PartialObjectMeta<Node>, Node, |it| Node {
    metadata: it.metadata,
    ..Node::default()
});

/// What says who a pod is, where it runs, and how it is reached.
fn pod(pod: Pod) -> Pod {
    let spec = pod.spec.map(|spec| PodSpec {
        node_name: spec.node_name,
        host_network: spec.host_network,
        service_account_name: spec.service_account_name,
        service_account: spec.service_account,
        restart_policy: spec.restart_policy,
        containers: spec.containers.into_iter().map(container).collect(),
        init_containers: spec.init_containers.map(|all| {
            // Only those that go on running beside the others have ports that count.
            let sidecars = all.into_iter().filter(|it| it.restart_policy.is_some());
            sidecars.map(container).collect()
        }),
        ..PodSpec::default()
    });
    let condition = |it: PodCondition| PodCondition {
        type_: it.type_,
        status: it.status,
        ..PodCondition::default()
    };
    let status = pod.status.map(|status| PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        host_ip: status.host_ip,
        conditions: status.conditions.map(|all| {
            let ready = all.into_iter().filter(|it| it.type_ == "Ready");
            ready.map(condition).collect()
        }),
        ..PodStatus::default()
    });
    Pod {
        metadata: pod.metadata,
        spec,
        status,
    }
}

fn container(container: Container) -> Container {
    Container {
        name: container.name,
        ports: container.ports,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}

impl Enter for DynamicObject {
    fn enter(mut self, kind: Kind) -> Seen {
        let (key, version) = seen(kind, &mut self.metadata);
        let (object, aim) = match serde_json::to_value(&self) {
            Ok(value) => {
                let object = json::read(kind, &value);
                let aim = object.is_err().then(|| aim(kind, &value)).flatten();
                (object, aim)
            }
            Err(error) => (Err(vec![error.to_string()]), aim(kind, &Value::Null)),
        };
        Seen {
            key,
            version,
            object,
            aim,
        }
    }

    fn key(&self, kind: Kind) -> ObjectKey {
        key(kind, &self.metadata)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whole() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "resourceVersion": "42",
                "labels": {"app": "web"}, "finalizers": ["x"],
                "annotations": {"ambient.istio.io/redirection": "enabled",
                    "kubectl.kubernetes.io/last-applied-configuration": "{}"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
                    "uid": "r", "controller": true}],
                "managedFields": [{"manager": "kubelet"}]},
            "spec": {"nodeName": "n1", "serviceAccountName": "web", "hostNetwork": true,
                "volumes": [{"name": "v"}],
                "initContainers": [{"name": "once", "image": "i"},
                    {"name": "side", "restartPolicy": "Always", "ports": [{"name": "m", "containerPort": 9}]}],
                "containers": [{"name": "c", "image": "i", "env": [{"name": "A"}],
                    "ports": [{"name": "http", "containerPort": 80}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True", "message": "m"},
                    {"type": "Initialized", "status": "True"}],
                "containerStatuses": []}
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_keeps_what_is_read_and_loses_the_rest() {
        let seen = whole().enter(Kind::Pod);
        assert_eq!(seen.key.to_string(), "Pod shop/web-1");
        assert_eq!(seen.version, "42");
        let Ok(Object::Pod(pod)) = seen.object else {
            panic!("no pod");
        };
        let left = serde_json::to_value(&*pod).unwrap();
        let expected = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web"},
                "annotations": {"ambient.istio.io/redirection": "enabled"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
                    "uid": "r", "controller": true}]},
            "spec": {"nodeName": "n1", "serviceAccountName": "web", "hostNetwork": true,
                "initContainers": [
                    {"name": "side", "restartPolicy": "Always", "ports": [{"name": "m", "containerPort": 9}]}],
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True"}]}
        });
        assert_eq!(left, expected);
    }

    #[test]
    fn an_object_of_the_mesh_passes_the_same_checks_as_a_document() {
        let read = |spec| {
            let object: DynamicObject = serde_json::from_value(json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "p", "namespace": "shop", "resourceVersion": "7"}, "spec": spec}))
            .unwrap();
            object.enter(Kind::AuthorizationPolicy)
        };
        let good =
            read(json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}));
        assert!(good.object.is_ok());
        assert_eq!(good.key.to_string(), "AuthorizationPolicy shop/p");
        let bad = read(json!({"action": "PERHAPS"}));
        assert_eq!(bad.key, good.key);
        assert_eq!(bad.version, "7");
        assert!(bad.object.unwrap_err()[0].contains("PERHAPS"));
        assert_eq!((good.aim, bad.aim), (None, Some(Aim::All)));
    }

    /// The same object as it comes from an API server.
    fn through_the_door(object: &Object) -> Object {
        fn again<T: Enter>(
            value: Value,
            kind: Kind,
            read: fn(Value) -> serde_json::Result<T>,
        ) -> Object {
            read(value).unwrap().enter(kind).object.unwrap()
        }
        let kind = object.kind();
        match object {
            Object::Pod(it) => again(json!(&**it), kind, serde_json::from_value::<Pod>),
            Object::Service(it) => again(json!(&**it), kind, serde_json::from_value::<Service>),
            Object::EndpointSlice(it) => {
                again(json!(&**it), kind, serde_json::from_value::<EndpointSlice>)
            }
            Object::Node(it) => again(
                json!(&**it),
                kind,
                serde_json::from_value::<PartialObjectMeta<Node>>,
            ),
            Object::Namespace(it) => again(
                json!(&**it),
                kind,
                serde_json::from_value::<PartialObjectMeta<Namespace>>,
            ),
            other => other.clone(),
        }
    }

    #[test]
    fn nothing_that_the_world_reads_is_lost_at_the_door() {
        use api::k8s::dir::Change;
        use api::k8s::yaml::{self, Parsed};

        use crate::world::{Settings, World};

        let testdata = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/wds");
        let mut pods = 0;
        for scenario in std::fs::read_dir(testdata).unwrap() {
            let path = scenario.unwrap().path().join("input.yaml");
            let Ok(text) = std::fs::read_to_string(&path) else {
                continue;
            };
            let parsed = yaml::parse(&text).into_iter();
            let objects: Vec<Object> = parsed
                .filter_map(|parsed| match parsed {
                    Parsed::Object { object, .. } => Some(object),
                    _ => None,
                })
                .collect();
            pods += objects.iter().filter(|it| it.kind() == Kind::Pod).count();
            let world = |objects: Vec<Object>| {
                let mut world = World::new(Settings::default());
                world.apply(objects.into_iter().map(Change::Set).collect());
                let mut resources: Vec<_> = world.addresses().map(|it| format!("{it:?}")).collect();
                resources.extend(world.authorizations().map(|it| format!("{it:?}")));
                resources.sort();
                (resources, world.statuses().clone())
            };
            let stripped = objects.iter().map(through_the_door).collect();
            assert_eq!(world(stripped), world(objects), "{}", path.display());
        }
        assert!(pods > 100, "{pods}");
    }
}
