//! Kubelet's probes come from the node, in the clear and without an identity: STRICT and policies would refuse them. So they
//! are led to the proxy, which is in the pod, and asks the application in kubelet's stead. Pure.
//!
//! Paths and variable are those of Istio's agent (`ISTIO_KUBE_APP_PROBERS`), so that who looks into a pod knows what they see.
//! What a command asks runs in the container, and stays as it is; what cannot be led stays as it is too, and is warned of.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::parts;

/// What the proxy is to ask when it is asked at a path.
pub(super) type Asked = BTreeMap<String, Value>;

/// Leads the probes of all containers but ours to the proxy; returns what it is to ask, with what it was told `before`.
pub(super) fn lead(pod: &mut Value, before: Asked, warnings: &mut Vec<String>) -> Asked {
    let mut asked = before;
    for list in ["/spec/containers", "/spec/initContainers"] {
        let containers = pod.pointer_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            // Init containers that end are asked nothing.
            if !parts::is_ours(container) {
                lead_one(container, &mut asked, warnings);
            }
        }
    }
    asked
}

fn lead_one(container: &mut Value, asked: &mut Asked, warnings: &mut Vec<String>) {
    let name = container["name"].as_str().unwrap_or_default().to_owned();
    let ports = container["ports"].clone();
    for (probe, end) in PROBES {
        let Some(probed) = container.get_mut(probe).and_then(Value::as_object_mut) else {
            continue;
        };
        let path = format!("/app-health/{name}/{end}");
        let led = |http: &Value| http["path"] == path.as_str() && http["port"] == parts::READINESS;
        if probed.get("httpGet").is_some_and(led) {
            continue;
        }
        match question(probed, &ports) {
            Question::Proxy(question) => {
                probed.remove("tcpSocket");
                probed.remove("grpc");
                let led = json!({"path": path, "port": parts::READINESS, "scheme": "HTTP"});
                probed.insert("httpGet".to_owned(), led);
                asked.insert(path, question);
            }
            Question::Nobody => {}
            Question::Kubelet(what) => warnings.push(format!(
                "container {name}: its {probe} ({what}) stays kubelet's own, in the clear: where only mutual TLS is let in it fails"
            )),
        }
    }
}

enum Question {
    /// The proxy can ask it.
    Proxy(Value),
    /// It asks over the network what the proxy does not ask.
    Kubelet(&'static str),
    /// It is none of the network's.
    Nobody,
}

fn question(probe: &Map<String, Value>, ports: &Value) -> Question {
    let seconds = probe.get("timeoutSeconds").cloned().unwrap_or(json!(1));
    if let Some(http) = probe.get("httpGet") {
        if http["host"].as_str().is_some_and(|host| !host.is_empty()) {
            return Question::Kubelet("of another host");
        }
        if http["scheme"]
            .as_str()
            .is_some_and(|scheme| scheme != "HTTP")
        {
            return Question::Kubelet("over TLS");
        }
        let Some(port) = number(&http["port"], ports) else {
            return Question::Kubelet("of a port without a number");
        };
        let path = http["path"].as_str().filter(|path| !path.is_empty());
        let mut get = json!({"path": path.unwrap_or("/"), "port": port});
        if let Some(headers) = http.get("httpHeaders") {
            get["httpHeaders"] = headers.clone();
        }
        return Question::Proxy(json!({"httpGet": get, "timeoutSeconds": seconds}));
    }
    if let Some(tcp) = probe.get("tcpSocket") {
        if tcp["host"].as_str().is_some_and(|host| !host.is_empty()) {
            return Question::Kubelet("of another host");
        }
        return match number(&tcp["port"], ports) {
            Some(port) => {
                Question::Proxy(json!({"tcpSocket": {"port": port}, "timeoutSeconds": seconds}))
            }
            None => Question::Kubelet("of a port without a number"),
        };
    }
    let Some(grpc) = probe.get("grpc") else {
        return Question::Nobody;
    };
    // A name is not for it to have.
    match grpc["port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
    {
        Some(port) => {
            let health = json!({"port": port, "service": grpc["service"].as_str()});
            Question::Proxy(json!({"grpc": health, "timeoutSeconds": seconds}))
        }
        None => Question::Kubelet("of a port without a number"),
    }
}

/// A port by its number, or by the name that the container gives it.
fn number(port: &Value, ports: &Value) -> Option<u16> {
    if let Some(number) = port.as_u64() {
        return u16::try_from(number).ok();
    }
    let named = port.as_str()?;
    let mut ports = ports.as_array()?.iter();
    let found = ports.find(|it| it["name"] == named);
    let number = found.map_or_else(|| named.parse().ok(), |it| it["containerPort"].as_u64())?;
    u16::try_from(number).ok()
}

/// What kubelet does by the network when a container starts or ends, which is not led anywhere.
pub(super) fn hooks(pod: &Value) -> impl Iterator<Item = String> {
    super::items(pod, "containers").flat_map(|container| {
        let name = container["name"].as_str().unwrap_or_default();
        let by_network = ["postStart", "preStop"].into_iter().filter(move |hook| {
            let hook = &container["lifecycle"][hook];
            hook["httpGet"].is_object() || hook["tcpSocket"].is_object()
        });
        by_network.map(move |hook| {
            format!("container {name}: its lifecycle.{hook} is kubelet's own call, in the clear: where only mutual TLS is let in it fails")
        })
    })
}

/// Each probe of a container, and how its path ends.
const PROBES: [(&str, &str); 3] = [
    ("livenessProbe", "livez"),
    ("readinessProbe", "readyz"),
    ("startupProbe", "startupz"),
];
