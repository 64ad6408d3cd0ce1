//! `ambit waypoint apply|list|delete|status`: Gateways of class `istio-waypoint`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use api::k8s::labels;
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, oneshot};
use kube::{Api, Client, ResourceExt as _};
use serde::Serialize;
use serde_json::json;

use crate::Outcome;
use crate::cluster::{Access, is_missing};
use crate::output::{self, Format, columns, say};
use crate::parts::FIELD_MANAGER;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask for a waypoint, or change one.
    Apply(Apply),
    /// Waypoints, of one namespace or of all.
    List(List),
    /// The same, with reasons.
    Status(List),
    /// Remove waypoints.
    Delete(Delete),
}

/// Flags of `apply`.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Its name.
    #[arg(long, default_value = "waypoint")]
    name: String,
    /// Traffic to what passes it.
    #[arg(long = "for", value_enum, default_value_t = For::Service)]
    traffic: For,
    /// Send the traffic of the whole namespace through it, once it runs.
    #[arg(long)]
    enroll_namespace: bool,
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

/// Flags of `list` and `status`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// The namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Flags of `delete`.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Their namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Their names.
    #[arg(required_unless_present = "all")]
    names: Vec<String>,
    /// Every waypoint of the namespace.
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

/// A waypoint.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    name: String,
    traffic: String,
    /// `True`, `False`, `Unknown`
    programmed: String,
    reason: String,
    message: String,
}

impl Command {
    pub(crate) async fn run(&self, access: &Access) -> anyhow::Result<Outcome> {
        let client = access.connect().await?;
        if oneshot::pinned_kind(&client, &gateway()).await.is_err() {
            bail!(
                "this cluster has no Gateway API; install its custom resources first (standard channel, v1)"
            );
        }
        match self {
            Self::Apply(apply) => apply.run(&client).await,
            Self::List(list) => list.run(&client, false).await,
            Self::Status(list) => list.run(&client, true).await,
            Self::Delete(delete) => delete.run(&client).await,
        }
    }
}

impl Apply {
    async fn run(&self, client: &Client) -> anyhow::Result<Outcome> {
        let gateways = gateways(client, Some(&self.namespace));
        let wanted = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": { "istio.io/waypoint-for": self.traffic.label() },
            },
            "spec": {
                "gatewayClassName": CLASS,
                "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
            },
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = gateways
            .patch(&self.name, &params, &Patch::Apply(&wanted))
            .await;
        let applied =
            applied.with_context(|| format!("Gateway {}/{}", self.namespace, self.name))?;
        say(&format!(
            "* waypoint {}/{} is asked for",
            self.namespace, self.name
        ));
        let timeout = if self.wait { self.waypoint_timeout } else { 0 };
        let row = self.programmed(&gateways, applied, timeout).await?;
        let runs = row.programmed == "True";
        if !runs {
            say(&format!("! it does not run: {}", row.why()));
        }
        if self.enroll_namespace {
            if !runs && !self.force {
                bail!(
                    "namespace {} was not enrolled: while its waypoint does not run, its traffic would be refused (--force enrols all the same)",
                    self.namespace
                );
            }
            let patch = json!({ "metadata": { "labels": { labels::USE_WAYPOINT: self.name } } });
            let namespaces: Api<Namespace> = Api::all(client.clone());
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER.into()),
                ..PatchParams::default()
            };
            namespaces
                .patch(&self.namespace, &params, &Patch::Merge(&patch))
                .await?;
            say(&format!(
                "* traffic to namespace {} passes waypoint {}",
                self.namespace, self.name
            ));
        }
        Ok(if runs || !self.wait {
            Outcome::Well
        } else {
            Outcome::Wrong
        })
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
            row = self::row(&gateways.get(&self.name).await?);
        }
        Ok(row)
    }
}

impl List {
    async fn run(&self, client: &Client, reasons: bool) -> anyhow::Result<Outcome> {
        let rows = rows(
            client,
            (!self.all_namespaces).then_some(self.namespace.as_str()),
        )
        .await?;
        if rows.is_empty() && self.output == Format::Table {
            say("no waypoints");
        }
        output::print(self.output, &rows, |rows| {
            if rows.is_empty() {
                return String::new();
            }
            let mut head = vec!["NAMESPACE", "NAME", "TRAFFIC TYPE", "PROGRAMMED"];
            if reasons {
                head.extend(["REASON", "MESSAGE"]);
            }
            columns(&head, rows.iter().map(|row| row.cells(reasons)))
        })?;
        let all_run = rows.iter().all(|row| row.programmed == "True");
        Ok(if all_run || !reasons {
            Outcome::Well
        } else {
            Outcome::Wrong
        })
    }
}

impl Delete {
    async fn run(&self, client: &Client) -> anyhow::Result<Outcome> {
        let gateways = gateways(client, Some(&self.namespace));
        let names = if self.all {
            rows(client, Some(&self.namespace))
                .await?
                .into_iter()
                .map(|row| row.name)
                .collect()
        } else {
            self.names.clone()
        };
        for name in names {
            let found = match gateways.get(&name).await {
                Err(error) if is_missing(&error) => {
                    bail!("there is no waypoint {}/{name}", self.namespace)
                }
                found => found?,
            };
            if !is_waypoint(&found) {
                bail!(
                    "Gateway {}/{name} is no waypoint; kubectl deletes it",
                    self.namespace
                );
            }
            gateways.delete(&name, &DeleteParams::default()).await?;
            say(&format!(
                "- waypoint {}/{name}; what is labelled istio.io/use-waypoint={name} is refused until the label goes",
                self.namespace
            ));
        }
        Ok(Outcome::Well)
    }
}

impl Row {
    fn why(&self) -> String {
        match (self.reason.is_empty(), self.message.is_empty()) {
            (true, true) => "the control plane has said nothing about it yet".into(),
            (false, true) => self.reason.clone(),
            _ => format!("{} ({})", self.message, self.reason),
        }
    }

    fn cells(&self, reasons: bool) -> Vec<String> {
        let mut cells = vec![
            self.namespace.clone(),
            self.name.clone(),
            self.traffic.clone(),
            self.programmed.clone(),
        ];
        if reasons {
            cells.extend([self.reason.clone(), self.message.clone()]);
        }
        cells
    }
}

async fn rows(client: &Client, namespace: Option<&str>) -> anyhow::Result<Vec<Row>> {
    let found = gateways(client, namespace)
        .list(&ListParams::default())
        .await
        .context("cannot list Gateways")?;
    Ok(found
        .iter()
        .filter(|gateway| is_waypoint(gateway))
        .map(row)
        .collect())
}

fn is_waypoint(gateway: &DynamicObject) -> bool {
    gateway
        .data
        .pointer("/spec/gatewayClassName")
        .is_some_and(|class| class == CLASS)
}

fn row(gateway: &DynamicObject) -> Row {
    let conditions = gateway
        .data
        .pointer("/status/conditions")
        .and_then(|list| list.as_array());
    let programmed = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Programmed");
    let text = |key: &str| {
        programmed
            .and_then(|c| c[key].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let status = text("status");
    Row {
        namespace: gateway.namespace().unwrap_or_default(),
        name: gateway.name_any(),
        traffic: gateway
            .labels()
            .get("istio.io/waypoint-for")
            .cloned()
            .unwrap_or_else(|| "service".into()),
        programmed: if status.is_empty() {
            "Unknown".into()
        } else {
            status
        },
        reason: text("reason"),
        message: text("message"),
    }
}

fn gateway() -> GroupVersionKind {
    GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "Gateway")
}

fn gateways(client: &Client, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&gateway());
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Class of waypoints.
const CLASS: &str = "istio-waypoint";
