//! What is put into a pod: an init container that lays the packet rules, a sidecar that is the proxy, what both read.
//!
//! Both come before everything that the pod has: no instruction of an application runs before the rules are there, and none
//! before the proxy serves. As a sidecar (an init container that goes on) the proxy ends after all others, and keeps no Job
//! from ending.

use api::k8s::labels;
use serde_json::{Value, json};

use super::capture::Capture;
use super::probes::Asked;
use super::{Injector, Refused, annotation, items};

impl Injector {
    /// Puts everything into `pod`.
    pub(super) fn put(
        &self,
        pod: &mut Value,
        capture: &Capture,
        asked: &Asked,
    ) -> Result<(), Refused> {
        let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64();
        let containers = [
            self.rules(capture),
            self.proxy(capture, asked, grace.unwrap_or(GRACE)),
        ];
        let spec = map(pod, "spec")?;
        list(spec, "initContainers")?.splice(0..0, containers);
        list(spec, "volumes")?.extend(volumes());
        if !self.chart.image_pull_secrets.is_empty() {
            let secrets = list(spec, "imagePullSecrets")?;
            let missing = self.chart.image_pull_secrets.iter();
            let missing: Vec<Value> = missing
                .filter(|it| !secrets.contains(it))
                .cloned()
                .collect();
            secrets.extend(missing);
        }
        self.annotate(pod)
    }

    fn annotate(&self, pod: &mut Value) -> Result<(), Refused> {
        let monitored = pod["metadata"]["annotations"]
            .as_object()
            .is_some_and(|all| all.keys().any(|name| name.starts_with("prometheus.io/")));
        let status = json!({
            "initContainers": [RULES, PROXY],
            "containers": null,
            "volumes": VOLUMES,
            "imagePullSecrets": null,
            "revision": self.mesh.revision,
        });
        let mut said = vec![
            (labels::SIDECAR_STATUS, status.to_string()),
            // Elsewhere the node's agent says so, when it has laid the rules; here nothing of the pod runs before they are.
            (labels::REDIRECTION, labels::REDIRECTION_ENABLED.to_owned()),
        ];
        if self.chart.prometheus_annotations && !monitored {
            said.push(("prometheus.io/scrape", "true".to_owned()));
            said.push(("prometheus.io/port", METRICS.to_string()));
            said.push(("prometheus.io/path", "/metrics".to_owned()));
        }
        let annotations = map(map(pod, "metadata")?, "annotations")?;
        for (name, value) in said {
            annotations[name] = value.into();
        }
        Ok(())
    }

    /// The packet rules. They stay when it has ended, and when the proxy has.
    fn rules(&self, capture: &Capture) -> Value {
        let doors = [METRICS, READINESS];
        let said = [
            ("RUST_LOG", self.chart.log_level.as_str()),
            ("LOG_FORMAT", &self.chart.log_format),
        ];
        let container = json!({
            "name": RULES,
            "image": self.images.capture,
            "args": capture.arguments(&doors, self.chart.dns_capture),
            "env": said.map(|(name, value)| json!({"name": name, "value": value})),
            "securityContext": security(&["NET_ADMIN"], 0),
        });
        self.with_resources(container)
    }

    fn proxy(&self, capture: &Capture, asked: &Asked, grace: u64) -> Value {
        let probe = |every: u32, failures: u32| {
            json!({
                "httpGet": {"path": "/healthz/ready", "port": READINESS, "scheme": "HTTP"},
                "periodSeconds": every, "timeoutSeconds": 3, "failureThreshold": failures,
            })
        };
        // NET_RAW: marks and foreign source addresses of its sockets. It enters no namespace but the one it is in.
        let capabilities: &[&str] = match self.chart.net_admin {
            true => &["NET_ADMIN", "NET_RAW"],
            false => &["NET_RAW"],
        };
        let container = json!({
            "name": PROXY,
            "image": self.images.proxy,
            "restartPolicy": "Always",
            "args": ["proxy", "ztunnel"],
            "env": self.environment(capture, asked, grace),
            // Applications wait for it: as long as it takes for a control plane to come back, when that is away.
            "startupProbe": probe(1, 600),
            "readinessProbe": probe(5, 3),
            "securityContext": security(capabilities, GROUP),
            "volumeMounts": [
                {"name": VOLUMES[0], "mountPath": "/var/run/secrets/istio", "readOnly": true},
                {"name": VOLUMES[1], "mountPath": "/var/run/secrets/istio-crl", "readOnly": true},
                {"name": VOLUMES[2], "mountPath": "/var/run/secrets/tokens", "readOnly": true},
            ],
        });
        self.with_resources(container)
    }

    fn with_resources(&self, mut container: Value) -> Value {
        if let Some(policy) = &self.chart.image_pull_policy {
            container["imagePullPolicy"] = policy.as_str().into();
        }
        if !self.chart.resources.is_null() {
            container["resources"] = self.chart.resources.clone();
        }
        container
    }

    fn environment(&self, capture: &Capture, asked: &Asked, grace: u64) -> Vec<Value> {
        let (chart, mesh) = (&self.chart, &self.mesh);
        let of_the_pod = [
            ("POD_NAME", "metadata.name"),
            ("POD_NAMESPACE", "metadata.namespace"),
            ("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            ("INSTANCE_IP", "status.podIPs"),
        ];
        let mut environment: Vec<Value> = of_the_pod
            .iter()
            .map(|(name, path)| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}))
            .collect();
        let mut say = |name: &str, value: String| {
            environment.push(json!({"name": name, "value": value}));
        };
        say(MODE, labels::DEDICATED.to_owned());
        let workload = "$(POD_NAMESPACE)/$(POD_NAME)/$(SERVICE_ACCOUNT)";
        say("PROXY_WORKLOAD_INFO", workload.to_owned());
        say(
            "XDS_ADDRESS",
            format!("https://istiod.{}.svc:15012", mesh.namespace),
        );
        say("CLUSTER_ID", mesh.cluster.clone());
        say("CLUSTER_DOMAIN", mesh.domain.clone());
        if let Some(names) = mesh.trust_domains() {
            say("AMBIT_TRUST_DOMAINS", names);
        }
        say("NETWORK", chart.network.clone());
        say(
            "CRL_PATH",
            "/var/run/secrets/istio-crl/ca-crl.pem".to_owned(),
        );
        say("TERMINATION_GRACE_PERIOD_SECONDS", grace.to_string());
        say("ZTUNNEL_WORKER_THREADS", text(&chart.worker_threads));
        say("RUST_LOG", chart.log_level.clone());
        say("LOG_FORMAT", chart.log_format.clone());
        if !capture.dns(chart.dns_capture) {
            say("ISTIO_META_DNS_CAPTURE", "false".to_owned());
        }
        if !asked.is_empty() {
            say(ASKED, json!(asked).to_string());
        }
        // A name that is there twice would be refused by the API server.
        for (name, value) in &chart.env {
            environment.retain(|it| it["name"] != name.as_str());
            environment.push(json!({"name": name, "value": text(value)}));
        }
        environment
    }
}

/// Whether what is put in is there. Istio's sidecars have the same annotation and the same name, and are left alone.
pub(super) fn are_in(pod: &Value) -> bool {
    annotation(pod, labels::SIDECAR_STATUS).is_some() && proxy_in(pod).is_some()
}

fn proxy_in(pod: &Value) -> Option<&Value> {
    let dedicated = json!({"name": MODE, "value": labels::DEDICATED});
    let ours = |it: &&Value| {
        let variables = it["env"].as_array();
        it["name"] == PROXY && variables.is_some_and(|them| them.contains(&dedicated))
    };
    items(pod, "initContainers").find(ours)
}

/// Whether a container is one of those that are put in.
pub(super) fn is_ours(container: &Value) -> bool {
    [RULES, PROXY].iter().any(|name| container["name"] == *name)
}

/// What the proxy of a pod was told to ask.
pub(super) fn asked_in(pod: &Value) -> Asked {
    let variables = proxy_in(pod).and_then(|proxy| proxy["env"].as_array());
    let mut variables = variables.into_iter().flatten();
    let told = variables.find(|it| it["name"] == ASKED);
    let told = told.and_then(|it| it["value"].as_str());
    told.and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// Tells the proxy of a pod what to ask, instead of what it was told.
pub(super) fn ask(pod: &mut Value, asked: &Asked) {
    let init = pod.pointer_mut("/spec/initContainers");
    let mut init = init.and_then(Value::as_array_mut).into_iter().flatten();
    let proxy = init.find(|it| it["name"] == PROXY);
    let variables = proxy.and_then(|proxy| proxy.get_mut("env"));
    if let Some(variables) = variables.and_then(Value::as_array_mut) {
        variables.retain(|it| it["name"] != ASKED);
        variables.push(json!({"name": ASKED, "value": json!(asked).to_string()}));
    }
}

/// Whether the names that we give are nobody's.
pub(super) fn free(pod: &Value) -> Result<(), Refused> {
    let ours: [(&'static str, &[&'static str]); 3] = [
        ("containers", &[RULES, PROXY]),
        ("initContainers", &[RULES, PROXY]),
        ("volumes", &VOLUMES),
    ];
    for (list, names) in ours {
        let taken = |name: &&&'static str| items(pod, list).any(|it| it["name"] == **name);
        if let Some(name) = names.iter().find(taken) {
            return Err(Refused::Taken { list, name });
        }
    }
    Ok(())
}

/// What says that it listens where the proxy does.
pub(super) fn crowded(pod: &Value) -> Vec<String> {
    let containers = items(pod, "containers").chain(items(pod, "initContainers"));
    let ports = containers.flat_map(|container| {
        let ports = container["ports"].as_array().into_iter().flatten();
        ports.map(move |port| (&container["name"], &port["containerPort"]))
    });
    let both = ports.filter(|(_, port)| port.as_u64().is_some_and(|it| PORTS.contains(&it)));
    both.map(|(name, port)| {
        let name = name.as_str().unwrap_or_default();
        format!(
            "container {name}: port {port} is the mesh's proxy's, one of the two will not start"
        )
    })
    .collect()
}

fn volumes() -> [Value; 3] {
    [
        json!({"name": VOLUMES[0], "configMap": {"name": crate::write::ROOTS_NAME}}),
        // A mesh without the list revokes nobody.
        json!({"name": VOLUMES[1], "configMap": {"name": crate::write::CRL_NAME, "optional": true}}),
        json!({"name": VOLUMES[2], "projected": {"sources": [{"serviceAccountToken": {
            "audience": crate::token::AUDIENCE, "expirationSeconds": 43200, "path": "istio-token",
        }}]}}),
    ]
}

/// User 0, for capabilities are nobody else's; nothing of it but these.
fn security(capabilities: &[&str], group: u32) -> Value {
    json!({
        "runAsUser": 0, "runAsGroup": group, "runAsNonRoot": false, "privileged": false,
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": capabilities},
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// The list `name` in `of`, made if it is not there.
fn list<'a>(of: &'a mut Value, name: &str) -> Result<&'a mut Vec<Value>, Refused> {
    let list = member(of, name).and_then(|it| {
        if it.is_null() {
            *it = json!([]);
        }
        it.as_array_mut()
    });
    list.ok_or(Refused::NoPod)
}

/// The map `name` in `of`, made if it is not there.
fn map<'a>(of: &'a mut Value, name: &str) -> Result<&'a mut Value, Refused> {
    let map = member(of, name).map(|it| {
        if it.is_null() {
            *it = json!({});
        }
        it
    });
    map.filter(|it| it.is_object()).ok_or(Refused::NoPod)
}

fn member<'a>(of: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    Some(of.as_object_mut()?.entry(name).or_insert(Value::Null))
}

/// Environment is text, whatever a person wrote in YAML.
fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// Istio's name of the init container that lays packet rules.
const RULES: &str = "istio-init";
/// Istio's name of the proxy's container, which tools ask for by it.
const PROXY: &str = "istio-proxy";
/// Roots, who was revoked, the pod's own token.
const VOLUMES: [&str; 3] = ["istiod-ca-cert", "istio-ca-crl", "istio-token"];
/// For whom a proxy is.
const MODE: &str = "PROXY_MODE";
/// What the proxy is to ask in kubelet's stead.
const ASKED: &str = "ISTIO_KUBE_APP_PROBERS";
const METRICS: u16 = 15020;
/// Where kubelet asks the proxy how it does, and how the applications do.
pub(super) const READINESS: u16 = 15021;
/// Where the proxy listens in the pod: admin, captured connections, tunnels, metrics, readiness, names.
const PORTS: [u64; 7] = [15000, 15001, 15006, 15008, 15020, 15021, 15053];
/// Packet rules of hosts know the mesh's proxies by it.
const GROUP: u32 = 1337;
/// Seconds that Kubernetes gives pods that say nothing.
const GRACE: u64 = 30;
