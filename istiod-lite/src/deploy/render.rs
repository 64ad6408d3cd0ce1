//! The objects that make a waypoint run. They have no times and no random names: the same order and the same pattern
//! give the same objects, so that applying them again changes nothing.

use api::k8s::labels;
use serde_json::{Map, Value, json};

use super::order::REVISION;
use super::{Order, Pattern, Piece, PieceKind, Role};
use crate::translate::listener::HBONE;

/// What the waypoint consists of, before parameters are laid over it, in the order in which it is made.
pub fn render(order: &Order, pattern: &Pattern) -> Vec<Piece> {
    let of = |kind, object| Piece { kind, object };
    let mut pieces = vec![
        of(PieceKind::ServiceAccount, account(order)),
        of(PieceKind::Service, service(order)),
        of(PieceKind::Deployment, deployment(order, pattern)),
    ];
    let chart = &pattern.chart;
    if chart.pod_disruption_budget.enabled {
        let budget = budget(order, &chart.pod_disruption_budget.max_unavailable);
        pieces.push(of(PieceKind::PodDisruptionBudget, budget));
    }
    if chart.autoscaling.enabled {
        let autoscaler = autoscaler(order, pattern);
        pieces.push(of(PieceKind::HorizontalPodAutoscaler, autoscaler));
    }
    pieces
}

/// One that is not made unless asked for, with nothing said but what it is about.
pub(super) fn asked_for(kind: PieceKind, order: &Order, pattern: &Pattern) -> Option<Piece> {
    let object = match kind {
        PieceKind::PodDisruptionBudget => budget(order, &1.into()),
        PieceKind::HorizontalPodAutoscaler => autoscaler(order, pattern),
        _ => return None,
    };
    Some(Piece { kind, object })
}

fn account(order: &Order) -> Value {
    whole(PieceKind::ServiceAccount, order, &order.account, json!({}))
}

fn service(order: &Order) -> Value {
    let mut service = whole(
        PieceKind::Service,
        order,
        &order.called,
        json!({"spec": {
            "type": order.service_type.as_deref().unwrap_or(match order.role {
                Role::Waypoint => "ClusterIP",
                // Whom it is for is elsewhere.
                Role::EastWest => "LoadBalancer",
            }),
            "ipFamilyPolicy": "PreferDualStack",
            "selector": selector(order),
            "ports": [
                {"name": "status-port", "port": STATUS, "targetPort": STATUS, "protocol": "TCP", "appProtocol": "tcp"},
                {"name": port_name(&order.listener), "port": HBONE.0, "targetPort": HBONE.0, "protocol": "TCP", "appProtocol": "hbone"},
            ],
        }}),
    );
    // Any pod will do, and a near one costs less; a service that says otherwise for itself is not meant.
    let near = ("networking.istio.io/traffic-distribution", "PreferClose");
    service["metadata"]["annotations"][near.0] = near.1.into();
    service
}

fn deployment(order: &Order, pattern: &Pattern) -> Value {
    let chart = &pattern.chart;
    let mut spec = json!({
        "selector": {"matchLabels": selector(order)},
        // One more before one less: requests always have somewhere to go.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {"metadata": pod_metadata(order, pattern), "spec": pod(order, pattern)},
    });
    if !chart.autoscaling.enabled {
        spec["replicas"] = chart.replicas.into();
    }
    whole(
        PieceKind::Deployment,
        order,
        &order.called,
        json!({"spec": spec}),
    )
}

fn pod_metadata(order: &Order, pattern: &Pattern) -> Value {
    let chart = &pattern.chart;
    let mut annotations = texts(&order.annotations);
    if chart.prometheus_annotations {
        let where_to = [
            ("prometheus.io/scrape", "true"),
            ("prometheus.io/port", "15020"),
            ("prometheus.io/path", "/stats/prometheus"),
        ];
        annotations.extend(where_to.map(|(key, value)| (key.to_owned(), value.into())));
    }
    annotations.extend(texts(&chart.pod_annotations));
    let container = ("kubectl.kubernetes.io/default-container", CONTAINER);
    annotations.insert(container.0.to_owned(), container.1.into());
    let mut all = texts(&order.labels);
    all.extend(texts(&chart.pod_labels));
    all.extend(ours(order));
    let own = [
        // Nobody captures it, and nobody need: it speaks HBONE itself.
        (labels::DATAPLANE_MODE, labels::NONE),
        (labels::TUNNEL, labels::TUNNEL_HTTP),
        ("sidecar.istio.io/inject", "false"),
        (labels::CANONICAL_NAME, &order.called),
        (labels::CANONICAL_REVISION, "latest"),
        (REVISION, &pattern.mesh.revision),
    ];
    all.extend(own.map(|(key, value)| (key.to_owned(), value.into())));
    json!({"labels": all, "annotations": annotations})
}

fn pod(order: &Order, pattern: &Pattern) -> Value {
    let chart = &pattern.chart;
    let mut pod = json!({
        "serviceAccountName": order.account,
        // It asks the API server nothing.
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": chart.termination_grace_period_seconds,
        "topologySpreadConstraints": spread(order, pattern),
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(order, pattern)],
        "volumes": [
            {"name": "istiod-ca-cert", "configMap": {"name": crate::write::ROOTS_NAME}},
            // A mesh without the list revokes nobody.
            {"name": "istio-ca-crl", "configMap": {"name": crate::write::CRL_NAME, "optional": true}},
            {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": {
                "audience": crate::token::AUDIENCE, "expirationSeconds": 43200, "path": "istio-token",
            }}]}},
        ],
    });
    let mut say = |field: &str, value: Value, empty: bool| {
        if !empty {
            pod[field] = value;
        }
    };
    let secrets = &chart.image_pull_secrets;
    say(
        "imagePullSecrets",
        secrets.clone().into(),
        secrets.is_empty(),
    );
    let nodes = &chart.node_selector;
    say("nodeSelector", nodes.clone().into(), nodes.is_empty());
    say(
        "tolerations",
        chart.tolerations.clone().into(),
        chart.tolerations.is_empty(),
    );
    let affinity = &chart.affinity;
    say("affinity", affinity.clone().into(), affinity.is_empty());
    let priority = &chart.priority_class_name;
    say(
        "priorityClassName",
        priority.as_str().into(),
        priority.is_empty(),
    );
    pod
}

fn spread(order: &Order, pattern: &Pattern) -> Value {
    let mut wished = pattern.chart.topology_spread_constraints.clone();
    for constraint in &mut wished {
        // Said of all waypoints, it is meant of each one's own pods.
        if let Some(constraint) = constraint.as_object_mut() {
            let own = json!({"matchLabels": selector(order)});
            constraint.entry("labelSelector").or_insert(own);
        }
    }
    if !wished.is_empty() {
        return wished.into();
    }
    let over = |topology: &str| {
        json!({
            "topologyKey": topology, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(order)},
            // Else pods of an old template count, and the new ones gather where those are not.
            "matchLabelKeys": ["pod-template-hash"],
        })
    };
    json!([over("kubernetes.io/hostname"), over(labels::ZONE)])
}

fn container(order: &Order, pattern: &Pattern) -> Value {
    let chart = &pattern.chart;
    let probe = |every: u32, failures: u32| {
        json!({
            "httpGet": {"path": "/healthz/ready", "port": STATUS},
            "periodSeconds": every, "timeoutSeconds": 2, "failureThreshold": failures,
        })
    };
    let mut container = json!({
        "name": CONTAINER,
        "image": chart.image,
        "args": ["proxy", match order.role {
            Role::Waypoint => "waypoint",
            Role::EastWest => "east-west",
        }],
        "env": environment(order, pattern),
        "ports": [
            {"name": "hbone", "containerPort": HBONE.0, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS, "protocol": "TCP"},
            {"name": "status-port", "containerPort": STATUS, "protocol": "TCP"},
        ],
        // Ready within a second of being so, at its start; afterwards it is asked more rarely.
        "startupProbe": probe(1, 60),
        "readinessProbe": probe(5, 3),
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "privileged": false,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio", "readOnly": true},
            {"name": "istio-ca-crl", "mountPath": "/var/run/secrets/istio-crl", "readOnly": true},
            {"name": "istio-token", "mountPath": "/var/run/secrets/tokens", "readOnly": true},
        ],
    });
    if let Some(policy) = &chart.image_pull_policy {
        container["imagePullPolicy"] = policy.as_str().into();
    }
    if !chart.resources.is_null() {
        container["resources"] = chart.resources.clone();
    }
    container
}

fn environment(order: &Order, pattern: &Pattern) -> Vec<Value> {
    let (chart, mesh) = (&pattern.chart, &pattern.mesh);
    let control_plane = format!("https://istiod.{}.svc:15012", mesh.namespace);
    let grace = chart.termination_grace_period_seconds.to_string();
    let said = [
        ("XDS_ADDRESS", control_plane.as_str()),
        ("GATEWAY_NAME", &order.name),
        ("CLUSTER_ID", &mesh.cluster),
        ("CLUSTER_DOMAIN", &mesh.domain),
        ("TRUST_DOMAIN", &mesh.trust_domain),
        ("NETWORK", &chart.network),
        ("CRL_PATH", "/var/run/secrets/istio-crl/ca-crl.pem"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", &grace),
        ("RUST_LOG", &chart.log_level),
        ("LOG_FORMAT", &chart.log_format),
    ];
    let known = [
        ("NODE_NAME", "spec.nodeName"),
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("INSTANCE_IP", "status.podIPs"),
        ("SERVICE_ACCOUNT", "spec.serviceAccountName"),
    ];
    let names = mesh.trust_domains();
    let names = names
        .iter()
        .map(|all| ("AMBIT_TRUST_DOMAINS", all.as_str()));
    let said = said.into_iter().chain(names);
    let said = said.map(|(name, value)| json!({"name": name, "value": value}));
    let known = known
        .map(|(name, path)| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}));
    let further = chart
        .env
        .iter()
        .map(|(name, value)| json!({"name": name, "value": text(value)}));
    let mut environment: Vec<Value> = said.collect();
    environment.extend(known);
    // What the chart's owner says wins; twice the same name is refused by the API server.
    for one in further {
        environment.retain(|it| it["name"] != one["name"]);
        environment.push(one);
    }
    environment
}

fn budget(order: &Order, max_unavailable: &Value) -> Value {
    whole(
        PieceKind::PodDisruptionBudget,
        order,
        &order.called,
        json!({"spec": {
            "maxUnavailable": max_unavailable, "selector": {"matchLabels": selector(order)},
        }}),
    )
}

fn autoscaler(order: &Order, pattern: &Pattern) -> Value {
    let by = &pattern.chart.autoscaling;
    whole(
        PieceKind::HorizontalPodAutoscaler,
        order,
        &order.called,
        json!({"spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": order.called},
            "minReplicas": by.min_replicas, "maxReplicas": by.max_replicas,
            "metrics": [{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": by.target_cpu},
            }}],
        }}),
    )
}

/// With what all of them have: name, owner, labels. The garbage collector takes them away with the Gateway.
fn whole(kind: PieceKind, order: &Order, name: &str, mut object: Value) -> Value {
    let mut all = texts(&order.labels);
    all.extend(ours(order));
    object["apiVersion"] = kind.resource().api_version.into();
    object["kind"] = kind.name().into();
    object["metadata"] = json!({
        "name": name,
        "namespace": order.namespace,
        "labels": all,
        "annotations": texts(&order.annotations),
        "ownerReferences": [{
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "name": order.name, "uid": order.uid, "controller": true,
        }],
    });
    object
}

/// By which everything of a waypoint is found; nobody's wish replaces them.
fn ours(order: &Order) -> Map<String, Value> {
    Map::from_iter([
        (labels::GATEWAY_NAME.to_owned(), order.name.as_str().into()),
        (CLASS.to_owned(), order.class.as_str().into()),
        (
            labels::GATEWAY_MANAGED.to_owned(),
            match order.role {
                Role::Waypoint => labels::MANAGED_WAYPOINT,
                Role::EastWest => labels::MANAGED_EAST_WEST,
            }
            .into(),
        ),
    ])
}

fn selector(order: &Order) -> Value {
    json!({ (labels::GATEWAY_NAME): order.name })
}

/// As port names may be: letters, digits and dashes, at most 63.
fn port_name(listener: &str) -> String {
    listener.replace('.', "-").chars().take(63).collect()
}

fn texts<'a>(from: impl IntoIterator<Item = (&'a String, &'a String)>) -> Map<String, Value> {
    let pairs = from.into_iter();
    pairs
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect()
}

/// Environment is text, whatever a person wrote in YAML.
fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// (L) on what was made for a Gateway: its class.
const CLASS: &str = "gateway.networking.k8s.io/gateway-class-name";
const CONTAINER: &str = "istio-proxy";
const METRICS: u16 = 15020;
const STATUS: u16 = 15021;
/// Packet rules of hosts know the mesh's proxies by it.
const USER: u32 = 1337;
