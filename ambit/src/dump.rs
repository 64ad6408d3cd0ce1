//! `ambit dump`: a directory with what a person needs who helps from afar. Secrets are never read.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use api::k8s::labels;
use api::k8s::objects::Kind;
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams, LogParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, oneshot};
use kube::error::DiscoveryError;
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use crate::Outcome;
use crate::cluster::{Access, is_missing};
use crate::output::say;
use crate::parts::Part;
use crate::proxy;

/// Flags of `dump`.
#[derive(Debug, Args)]
pub(crate) struct Dump {
    /// Directory to write into; it must not exist yet.
    #[arg(long, default_value = "ambit-dump", value_name = "DIR")]
    to: PathBuf,
    /// Lines of each log.
    #[arg(long, default_value_t = 5000, value_name = "LINES")]
    tail: i64,
}

impl Dump {
    pub(crate) async fn run(&self, access: &Access) -> anyhow::Result<Outcome> {
        let client = access.connect().await?;
        std::fs::create_dir(&self.to).with_context(|| self.to.display().to_string())?;
        let mut missing = Vec::new();
        for (group, version, kind) in KINDS {
            match objects(&client, &self.to, group, version, kind).await {
                Ok(true) => {}
                Ok(false) => missing.push(format!("{kind}: the cluster has no such kind")),
                Err(error) => missing.push(format!("{kind}: {error:#}")),
            }
        }
        for part in Part::ALL {
            say(&format!("* {part}"));
            let pods: Api<Pod> = Api::namespaced(client.clone(), &access.system);
            for pod in pods
                .list(&ListParams::default().labels(part.selector()))
                .await?
            {
                let place = (access.system.as_str(), pod.name_any());
                missing.extend(self.pod(&client, place, doors(part), "").await?);
            }
        }
        missing.extend(self.waypoints(&client).await?);
        for line in &missing {
            say(&format!("! {line}"));
        }
        write(&self.to, "missing.txt", &missing.join("\n"))?;
        say(&format!("written to {}", self.to.display()));
        Ok(Outcome::Well)
    }

    /// Those of every namespace; answers what could not be had.
    async fn waypoints(&self, client: &Client) -> anyhow::Result<Vec<String>> {
        let mut missing = Vec::new();
        let all: Api<Pod> = Api::all(client.clone());
        let managed = labels::managed();
        let found = all.list(&ListParams::default().labels(&managed)).await?;
        if !found.items.is_empty() {
            say("* waypoints");
        }
        for pod in found {
            let namespace = pod.namespace().unwrap_or_default();
            let place = (namespace.as_str(), pod.name_any());
            let prefix = format!("{namespace}.");
            missing.extend(self.pod(client, place, &WAYPOINT, &prefix).await?);
        }
        Ok(missing)
    }

    /// Logs and doors of one pod, into files whose names begin with `prefix`; answers what could not be had.
    async fn pod(
        &self,
        client: &Client,
        (system, name): (&str, String),
        doors: &[Door],
        prefix: &str,
    ) -> anyhow::Result<Vec<String>> {
        let name = name.as_str();
        let mut missing = Vec::new();
        let pods: Api<Pod> = Api::namespaced(client.clone(), system);
        for previous in [false, true] {
            let params = LogParams {
                previous,
                tail_lines: Some(self.tail),
                ..LogParams::default()
            };
            let suffix = if previous { ".previous.log" } else { ".log" };
            match pods.logs(name, &params).await {
                Ok(log) => write(&self.to, &format!("{prefix}{name}{suffix}"), &log)?,
                // A pod that never restarted has no previous log.
                Err(_) if previous => {}
                Err(error) => missing.push(format!("log of {name}: {error}")),
            }
        }
        for (port, path, inside) in doors {
            let answer = if *inside {
                proxy::ask_inside(client, system, name, *port, path, proxy::LARGEST)
                    .await
                    .map_err(|error| format!("{error:#}"))
            } else {
                proxy::ask(client, system, name, *port, path).await
            };
            let file = format!(
                "{prefix}{name}.{}",
                path.trim_start_matches('/').replace('/', "-")
            );
            match answer {
                Ok(text) => write(&self.to, &file, &text)?,
                Err(why) => missing.push(format!("{path} of {name}: {why}")),
            }
        }
        Ok(missing)
    }
}

/// A port and a path worth keeping, and whether it listens on loopback alone.
type Door = (u16, &'static str, bool);

const WAYPOINT: [Door; 2] = [(15000, "/config_dump", true), (15020, "/metrics", false)];

fn doors(part: Part) -> &'static [Door] {
    match part {
        Part::Istiod => &[
            (15014, "/version", false),
            (15014, "/metrics", false),
            (15014, "/debug/syncz", false),
            (15014, "/debug/catalogz", false),
            (15014, "/debug/faultz", false),
        ],
        Part::Agent => &[(15014, "/metrics", false), (8000, "/readyz", false)],
        Part::Ztunnel => &[
            (15000, "/config_dump", true),
            (15000, "/connections", true),
            (15020, "/metrics", false),
        ],
    }
}

/// Writes all objects of a kind; answers whether there is such a kind.
async fn objects(
    client: &Client,
    to: &Path,
    group: &str,
    version: &str,
    kind: &str,
) -> anyhow::Result<bool> {
    let Some(resource) = served(client, group, version, kind).await? else {
        return Ok(false);
    };
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut list = objects.list(&ListParams::default()).await?;
    for object in &mut list.items {
        object.metadata.managed_fields = None;
        // It repeats the whole object, variables and all.
        object.annotations_mut().remove(LAST_APPLIED);
        blank_variables(&mut object.data);
    }
    write(
        to,
        &format!("{}.yaml", resource.plural),
        &serde_saphyr::to_string(&list.items)?,
    )?;
    Ok(true)
}

/// A kind as the cluster has it: in this version, else in another one that the mesh reads. Gateway API's routes were alpha for
/// long, and are it still on many clusters.
async fn served(
    client: &Client,
    group: &str,
    version: &str,
    kind: &str,
) -> anyhow::Result<Option<ApiResource>> {
    for version in versions(group, version, kind) {
        let gvk = GroupVersionKind::gvk(group, version, kind);
        match oneshot::pinned_kind(client, &gvk).await {
            Ok((resource, _)) => return Ok(Some(resource)),
            Err(kube::Error::Discovery(DiscoveryError::MissingKind(_))) => {}
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// The versions to ask for, the best first. Pure.
fn versions<'a>(group: &str, version: &'a str, kind: &str) -> Vec<&'a str> {
    let read = kind.parse::<Kind>().map(Kind::api_versions);
    let read = read.unwrap_or_default().iter();
    let of_group = read.filter_map(|it| it.strip_prefix(group)?.strip_prefix('/'));
    let others = of_group.filter(|it| *it != version);
    std::iter::once(version).chain(others).collect()
}

/// Values of environment variables are nobody's business: many hold passwords.
fn blank_variables(data: &mut Value) {
    match data {
        Value::Object(fields) => {
            for (name, field) in fields {
                if let ("env", Value::Array(variables)) = (name.as_str(), &mut *field) {
                    for variable in variables.iter_mut().filter_map(Value::as_object_mut) {
                        variable.remove("value");
                    }
                }
                blank_variables(field);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(blank_variables),
        _ => {}
    }
}

fn write(to: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = to.join(name);
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}

/// Where `kubectl apply` keeps what it was given.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Objects that the mesh reads, and those it consists of. Secrets are none of them.
const KINDS: [(&str, &str, &str); 33] = [
    ("apps", "v1", "Deployment"),
    ("coordination.k8s.io", "v1", "Lease"),
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
    ),
    ("", "v1", "Node"),
    ("", "v1", "Namespace"),
    ("", "v1", "Pod"),
    ("", "v1", "Service"),
    ("discovery.k8s.io", "v1", "EndpointSlice"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
    ("apps", "v1", "DaemonSet"),
    ("security.istio.io", "v1", "AuthorizationPolicy"),
    ("security.istio.io", "v1", "PeerAuthentication"),
    ("security.istio.io", "v1", "RequestAuthentication"),
    ("telemetry.istio.io", "v1", "Telemetry"),
    ("networking.istio.io", "v1", "ServiceEntry"),
    ("networking.istio.io", "v1", "WorkloadEntry"),
    ("networking.istio.io", "v1", "WorkloadGroup"),
    ("networking.istio.io", "v1", "DestinationRule"),
    ("networking.istio.io", "v1", "VirtualService"),
    ("ambit.io", "v1alpha1", "RateLimitPolicy"),
    ("ambit.io", "v1alpha1", "QuotaPolicy"),
    ("ambit.io", "v1alpha1", "ExternalProcessor"),
    ("gateway.networking.k8s.io", "v1", "Gateway"),
    ("gateway.networking.k8s.io", "v1", "GatewayClass"),
    ("gateway.networking.k8s.io", "v1", "HTTPRoute"),
    ("gateway.networking.k8s.io", "v1", "GRPCRoute"),
    ("gateway.networking.k8s.io", "v1", "TCPRoute"),
    ("gateway.networking.k8s.io", "v1", "TLSRoute"),
    ("gateway.networking.k8s.io", "v1", "ReferenceGrant"),
    ("gateway.networking.k8s.io", "v1", "BackendTLSPolicy"),
    (
        "gateway.networking.x-k8s.io",
        "v1alpha1",
        "XBackendTrafficPolicy",
    ),
    ("events.k8s.io", "v1", "Event"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_that_the_mesh_brings_is_among_those_that_are_dumped() {
        let manifest = include_str!("../../manifests/ambit.yaml");
        let mut found = 0;
        for text in manifest.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(text).unwrap_or_default();
            if object["kind"] != "CustomResourceDefinition" {
                continue;
            }
            let spec = &object["spec"];
            let versions = spec["versions"].as_array().unwrap();
            let dumped = KINDS.iter().any(|(group, version, kind)| {
                spec["group"] == *group
                    && spec["names"]["kind"] == *kind
                    && versions.iter().any(|it| it["name"] == *version)
            });
            assert!(dumped, "{}", object["metadata"]["name"]);
            found += 1;
        }
        assert!(found >= 12, "{found}");
    }

    #[test]
    fn every_kind_that_the_mesh_reads_is_among_those_that_are_dumped() {
        // Secrets are never read, ConfigMaps are mostly others', and of ServiceAccounts nothing is read on a cluster.
        let left_out = [Kind::Secret, Kind::ConfigMap, Kind::ServiceAccount];
        let read = Kind::ALL.into_iter();
        for kind in read.filter(|kind| !left_out.contains(kind)) {
            let dumped = KINDS.iter().any(|(group, version, name)| {
                let written = format!("{group}/{version}");
                let written = written.trim_start_matches('/');
                *name == kind.name() && kind.api_versions().contains(&written)
            });
            assert!(dumped, "{kind}");
        }
    }

    #[test]
    fn a_kind_is_asked_for_in_each_version_that_the_mesh_reads() {
        let gateway = "gateway.networking.k8s.io";
        for (group, version, kind, expected) in [
            (gateway, "v1", "TCPRoute", "v1 v1alpha3 v1alpha2"),
            (gateway, "v1", "ReferenceGrant", "v1 v1beta1"),
            ("", "v1", "Pod", "v1"),
            ("apps", "v1", "DaemonSet", "v1"),
        ] {
            let asked_for = versions(group, version, kind);
            assert_eq!(asked_for.join(" "), expected, "{kind}");
        }
    }

    #[test]
    fn values_of_variables_are_left_out_wherever_they_stand() {
        let mut pod = json!({ "spec": { "containers": [
            { "env": [{ "name": "PASSWORD", "value": "secret" }, { "name": "REF", "valueFrom": { "x": 1 } }] },
        ] } });
        blank_variables(&mut pod);
        assert!(!pod.to_string().contains("secret"));
        assert_eq!(pod["spec"]["containers"][0]["env"][1]["valueFrom"]["x"], 1);
    }
}
