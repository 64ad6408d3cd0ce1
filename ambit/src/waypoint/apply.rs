//! `ambit waypoint apply|generate`: a Gateway asks for a waypoint, and a namespace's label sends traffic through it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use api::k8s::labels;
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use super::{CLASS, REVISION, Row, gateways, is_waypoint, row};
use crate::Outcome;
use crate::cluster::is_missing;
use crate::output::{self, say};
use crate::parts::FIELD_MANAGER;

/// What waypoint.
#[derive(Debug, Args)]
pub(crate) struct Wanted {
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Its name.
    #[arg(long, default_value = "waypoint")]
    name: String,
    /// Traffic to what passes it.
    #[arg(long = "for", value_enum, default_value_t = For::Service)]
    traffic: For,
    /// The control plane that shall look after it, where there are several.
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
}

/// Flags of `apply`.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    wanted: Wanted,
    /// Send the traffic of the whole namespace through it, once it runs.
    #[arg(long)]
    enroll_namespace: bool,
    /// Enrol the namespace although another waypoint takes its traffic.
    #[arg(long, requires = "enroll_namespace")]
    overwrite: bool,
    /// Enrol the namespace although the waypoint does not run: its traffic is refused until it does.
    #[arg(long, requires = "enroll_namespace")]
    force: bool,
    /// Wait until it runs.
    #[arg(long)]
    wait: bool,
    /// How long, seconds.
    #[arg(long, default_value_t = 90, value_name = "SECONDS")]
    waypoint_timeout: u64,
}

/// `istio.io/waypoint-for`
#[derive(Debug, Clone, Copy, ValueEnum)]
enum For {
    Service,
    Workload,
    All,
    None,
}

impl For {
    fn label(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

impl Wanted {
    pub(super) fn print(&self) -> anyhow::Result<Outcome> {
        output::text(&serde_saphyr::to_string(&self.gateway())?)?;
        Ok(Outcome::Well)
    }

    fn gateway(&self) -> Value {
        let mut all = json!({ (labels::WAYPOINT_FOR): self.traffic.label() });
        if let Some(revision) = &self.revision {
            all[REVISION] = revision.as_str().into();
        }
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": { "name": self.name, "namespace": self.namespace, "labels": all },
            "spec": {
                "gatewayClassName": CLASS,
                "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
            },
        })
    }
}

impl Apply {
    pub(super) async fn run(&self, client: &Client) -> anyhow::Result<Outcome> {
        let Wanted {
            namespace, name, ..
        } = &self.wanted;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        if self.enroll_namespace {
            self.free(&namespaces).await?;
        }
        let gateways = gateways(client, Some(namespace));
        let found = gateways.get_opt(name).await;
        let found = found.with_context(|| format!("Gateway {namespace}/{name}"))?;
        if let Some(why) = found.as_ref().and_then(in_the_way) {
            bail!("{why}");
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = gateways
            .patch(name, &params, &Patch::Apply(&self.wanted.gateway()))
            .await;
        let applied = applied.with_context(|| format!("Gateway {namespace}/{name}"))?;
        say(&format!("* waypoint {namespace}/{name} is asked for"));
        // Who enrols a namespace has it refused its traffic unless the waypoint runs first.
        let waits = self.wait || self.enroll_namespace && !self.force;
        let timeout = if waits { self.waypoint_timeout } else { 0 };
        let row = self.programmed(&gateways, applied, timeout).await?;
        let runs = row.programmed == "True";
        if runs {
            say(&format!("* waypoint {namespace}/{name} runs"));
        } else {
            say(&format!("! it does not run yet: {}", row.why()));
        }
        if self.enroll_namespace {
            if !runs && !self.force {
                bail!(
                    "namespace {namespace} was not enrolled: while its waypoint does not run, its traffic would be refused (--force enrols all the same)"
                );
            }
            let patch = json!({ "metadata": { "labels": { (labels::USE_WAYPOINT): name } } });
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER.into()),
                ..PatchParams::default()
            };
            namespaces
                .patch(namespace, &params, &Patch::Merge(&patch))
                .await?;
            say(&format!(
                "* traffic to namespace {namespace} passes waypoint {name}"
            ));
        }
        Ok(if runs || !self.wait {
            Outcome::Well
        } else {
            Outcome::Wrong
        })
    }

    /// Refuses a namespace that is not there, or whose traffic passes another waypoint.
    async fn free(&self, namespaces: &Api<Namespace>) -> anyhow::Result<()> {
        let Wanted {
            namespace, name, ..
        } = &self.wanted;
        let found = match namespaces.get(namespace).await {
            Err(error) if is_missing(&error) => bail!("there is no namespace {namespace}"),
            found => found?,
        };
        match found.labels().get(labels::USE_WAYPOINT) {
            Some(other) if other != name && !self.overwrite => bail!(
                "traffic to namespace {namespace} passes waypoint {other} already (--overwrite sends it through {name} instead)"
            ),
            _ => Ok(()),
        }
    }

    async fn programmed(
        &self,
        gateways: &Api<DynamicObject>,
        applied: DynamicObject,
        timeout: u64,
    ) -> anyhow::Result<Row> {
        let begun = Instant::now();
        let mut row = row(&applied);
        while row.programmed != "True" && begun.elapsed() < Duration::from_secs(timeout) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            row = self::row(&gateways.get(&self.wanted.name).await?);
        }
        Ok(row)
    }
}

/// Why a Gateway that is there is not made a waypoint: with its class it would lose who looks after it, and its addresses.
fn in_the_way(found: &DynamicObject) -> Option<String> {
    let namespace = found.namespace().unwrap_or_default();
    let name = found.name_any();
    (!is_waypoint(found)).then(|| {
        format!("Gateway {namespace}/{name} is there and is no waypoint; choose another --name")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_of_another_class_is_not_made_a_waypoint() {
        let gateway = |class: &str| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": { "name": "door", "namespace": "shop" }, "spec": { "gatewayClassName": class },
            }))
            .unwrap()
        };
        assert_eq!(in_the_way(&gateway(CLASS)), None);
        let why = in_the_way(&gateway("nginx")).unwrap();
        assert!(why.contains("shop/door") && why.contains("--name"), "{why}");
    }

    #[test]
    fn what_is_generated_is_what_is_applied() {
        let wanted = Wanted {
            namespace: "shop".into(),
            name: "door".into(),
            traffic: For::All,
            revision: Some("canary".into()),
        };
        let gateway = wanted.gateway();
        assert_eq!(gateway["metadata"]["labels"][labels::WAYPOINT_FOR], "all");
        assert_eq!(gateway["metadata"]["labels"]["istio.io/rev"], "canary");
        assert_eq!(gateway["spec"]["listeners"][0]["protocol"], "HBONE");
    }
}
