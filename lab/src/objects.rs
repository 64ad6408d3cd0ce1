//! Kubernetes objects as files: the directory that stands in for an API server.
//!
//! Each object is one YAML file, put in place by rename, so a reader never sees half of one.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// The configuration directory of a lab.
#[derive(Debug)]
pub(crate) struct Objects {
    dir: PathBuf,
    writes: AtomicU64,
}

impl Objects {
    pub(crate) fn create(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self {
            dir,
            writes: AtomicU64::new(0),
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes an object to `<kind>/[<namespace>/]<name>.yaml`.
    pub(crate) fn set(&self, object: &Value) -> Result<()> {
        self.put(&object_file(object), &yaml(object))
    }

    /// Removes an object, and what the status mirror says of it, as an API server would.
    pub(crate) fn remove(&self, object: &Value) -> Result<()> {
        self.take(&object_file(object))?;
        self.take(&mirror_file(object))
    }

    /// Writes a user's text to `applied/<name>.yaml`.
    pub(crate) fn apply(&self, name: &str, text: &str) -> Result<()> {
        self.put(&format!("applied/{name}.yaml"), text)
    }

    /// Takes a user's text away again.
    pub(crate) fn unapply(&self, name: &str) -> Result<()> {
        self.take(&format!("applied/{name}.yaml"))
    }

    /// What the named writers (the node agents) have put over an object's status.
    pub(crate) fn mirrored(&self, object: &Value) -> Option<String> {
        fs::read_to_string(self.dir.join(mirror_file(object))).ok()
    }

    fn put(&self, file: &str, text: &str) -> Result<()> {
        let path = self.dir.join(file);
        let parent = path.parent().context("a file without a directory")?;
        fs::create_dir_all(parent)?;
        // Readers skip names that begin with a dot.
        let draft = parent.join(format!(
            ".draft-{}",
            self.writes.fetch_add(1, Ordering::Relaxed)
        ));
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    fn take(&self, file: &str) -> Result<()> {
        let path = self.dir.join(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn object_file(object: &Value) -> String {
    let kind = text(object, "/kind").to_lowercase();
    match text(object, "/metadata/namespace") {
        "" => format!("{kind}/{}.yaml", text(object, "/metadata/name")),
        namespace => format!("{kind}/{namespace}/{}.yaml", text(object, "/metadata/name")),
    }
}

fn mirror_file(object: &Value) -> String {
    let [kind, namespace, name] =
        ["/kind", "/metadata/namespace", "/metadata/name"].map(|pointer| text(object, pointer));
    format!(".status/{kind}/{namespace}/{name}.yaml")
}

pub(crate) fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": pairs(labels) } })
}

/// `place`: `region/zone`, or nothing.
pub(crate) fn node(name: &str, addresses: &[IpAddr], place: Option<&str>) -> Value {
    let mut labels = json!({ "kubernetes.io/hostname": name });
    if let Some((region, zone)) = place.and_then(|place| place.split_once('/')) {
        labels["topology.kubernetes.io/region"] = region.into();
        labels["topology.kubernetes.io/zone"] = zone.into();
    }
    let addresses: Vec<Value> = addresses
        .iter()
        .map(|ip| json!({ "type": "InternalIP", "address": ip }))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": labels },
        "status": { "addresses": addresses },
    })
}

pub(crate) fn service_account(namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": namespace, "name": name } })
}

pub(crate) fn service(
    namespace: &str,
    name: &str,
    selector: &[(&str, &str)],
    ports: &[(&str, u16, u16)],
    addresses: &[IpAddr],
) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port, target)| json!({ "name": name, "port": port, "targetPort": target, "protocol": "TCP" }))
        .collect();
    let families: Vec<&str> = addresses
        .iter()
        .map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "type": "ClusterIP", "selector": pairs(selector), "ports": ports,
            "clusterIP": addresses.first(), "clusterIPs": addresses,
            "ipFamilies": families, "ipFamilyPolicy": if families.len() > 1 { "RequireDualStack" } else { "SingleStack" },
        },
    })
}

/// A Gateway that is a waypoint.
pub(crate) fn waypoint(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "namespace": namespace, "name": name, "labels": { "istio.io/waypoint-for": "service" } },
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    })
}

/// A Gateway that is the door of its network, for others.
pub(crate) fn east_west(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "gatewayClassName": "istio-east-west",
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE", "tls": { "mode": "Terminate" } }],
        },
    })
}

/// A pod as the scheduler leaves it: bound to a node, no address yet.
#[derive(Debug, Clone)]
pub(crate) struct PodObject {
    object: Value,
}

impl PodObject {
    pub(crate) fn new(namespace: &str, name: &str, uid: &str, account: &str, node: &str) -> Self {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "uid": uid, "creationTimestamp": now(), "labels": {}, "annotations": {} },
            "spec": { "serviceAccountName": account, "nodeName": node, "containers": [{ "name": "app", "image": "lab" }] },
            "status": { "phase": "Pending" },
        });
        Self { object }
    }

    pub(crate) fn label(&mut self, key: &str, value: &str) {
        self.object["metadata"]["labels"][key] = value.into();
    }

    pub(crate) fn labelled(&self, key: &str) -> Option<&str> {
        self.object["metadata"]["labels"]
            .get(key)
            .and_then(Value::as_str)
    }

    pub(crate) fn annotate(&mut self, key: &str, value: &str) {
        self.object["metadata"]["annotations"][key] = value.into();
    }

    /// As the kubelet reports it once the sandbox has its network and the containers run.
    pub(crate) fn running(&mut self, addresses: &[IpAddr], node: &[IpAddr], ready: bool) {
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        self.object["status"] = json!({
            "phase": "Running",
            "podIP": addresses.first(), "podIPs": ips, "hostIP": node.first(),
            "startTime": now(),
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
        });
    }

    /// As the kubelet reports it once it answers its probes.
    pub(crate) fn ready(&mut self) {
        self.object["status"]["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
    }

    /// As the API server marks it when its deletion begins.
    pub(crate) fn terminating(&mut self) {
        self.object["metadata"]["deletionTimestamp"] = now().into();
        self.object["status"]["conditions"] = json!([{ "type": "Ready", "status": "False" }]);
    }

    pub(crate) fn value(&self) -> &Value {
        &self.object
    }
}

pub(crate) fn pairs(pairs: &[(&str, &str)]) -> Value {
    Value::Object(
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), Value::from(*v)))
            .collect::<Map<_, _>>(),
    )
}

/// RFC 3339 with whole seconds, as Kubernetes writes times.
fn now() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    rfc3339(seconds)
}

/// Days to a civil date: the well-known era arithmetic (400-year cycles that begin on 1 March).
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Block-style YAML; strings as JSON strings, which YAML takes as they are.
fn yaml(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                *out += &format!("{:indent$}{}:", "", key_text(key));
                nested(value, indent + 2, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                *out += &format!("{:indent$}-", "");
                nested(item, indent + 2, out);
            }
        }
        scalar => *out += &format!("{:indent$}{scalar}\n", ""),
    }
}

fn nested(value: &Value, indent: usize, out: &mut String) {
    let empty =
        value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty);
    if !empty && (value.is_object() || value.is_array()) {
        out.push('\n');
        block(value, indent, out);
    } else {
        *out += &format!(" {value}\n");
    }
}

fn key_text(key: &str) -> String {
    let plain = key
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b));
    if plain && !key.is_empty() {
        key.to_owned()
    } else {
        Value::from(key).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_second_is_spelled_as_kubernetes_would() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_210_286), "2026-11-20T21:31:26Z");
    }

    #[test]
    fn objects_read_like_yaml_written_by_hand() {
        let service = service(
            "shop",
            "web",
            &[("app", "web")],
            &[("tcp-80", 80, 8080)],
            &["10.96.0.10".parse().unwrap()],
        );
        let text = yaml(&service);
        for line in [
            "kind: \"Service\"",
            "    app: \"web\"",
            "    -\n      name: \"tcp-80\"",
            "      targetPort: 8080",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
        assert_eq!(yaml(&json!({ "a b": {}, "c": [] })), "\"a b\": {}\nc: []\n");
    }

    #[test]
    fn a_file_is_named_after_its_object_and_leaves_with_its_mirror() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::create(dir.path().join("config")).unwrap();
        let pod = PodObject::new("shop", "web", "u", "default", "node-0");
        objects.set(pod.value()).unwrap();
        assert!(objects.dir().join("pod/shop/web.yaml").exists());
        objects
            .put(".status/Pod/shop/web.yaml", "metadata: {}")
            .unwrap();
        assert_eq!(
            objects.mirrored(pod.value()).as_deref(),
            Some("metadata: {}")
        );
        objects.remove(pod.value()).unwrap();
        assert_eq!(objects.mirrored(pod.value()), None);
        assert!(!objects.dir().join("pod/shop/web.yaml").exists());
    }
}
