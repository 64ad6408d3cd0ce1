//! `ambit waypoint generate|apply|list|delete|status`: Gateways of class `istio-waypoint`, and what the control plane
//! runs for them.

mod apply;

use std::collections::HashMap;

use anyhow::{Context as _, bail};
use api::k8s::labels;
use clap::{Args, Subcommand};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, oneshot};
use kube::{Api, Client, ResourceExt as _};
use serde::Serialize;

use crate::Outcome;
use crate::cluster::{Access, is_missing};
use crate::output::{self, Format, columns, say};

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print what asks for a waypoint, and ask nobody.
    Generate(apply::Wanted),
    /// Ask for a waypoint, or change one.
    Apply(apply::Apply),
    /// Waypoints, of one namespace or of all.
    List(List),
    /// The same, with reasons.
    Status(List),
    /// Remove waypoints.
    Delete(Delete),
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
    revision: String,
    traffic: String,
    /// Pods that are ready, of how many; none if nothing runs for it.
    ready: Option<String>,
    /// `True`, `False`, `Unknown`
    programmed: String,
    reason: String,
    message: String,
}

impl Command {
    pub(crate) async fn run(&self, access: &Access) -> anyhow::Result<Outcome> {
        if let Self::Generate(wanted) = self {
            return wanted.print();
        }
        let client = access.connect().await?;
        if oneshot::pinned_kind(&client, &gateway()).await.is_err() {
            bail!(
                "this cluster has no Gateway API; install its custom resources first (standard channel, v1)"
            );
        }
        match self {
            Self::Generate(wanted) => wanted.print(),
            Self::Apply(apply) => apply.run(&client).await,
            Self::List(list) => list.run(&client, false).await,
            Self::Status(list) => list.run(&client, true).await,
            Self::Delete(delete) => delete.run(&client).await,
        }
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
            let mut head = vec!["NAMESPACE", "NAME", "REVISION", "TRAFFIC TYPE", "READY"];
            head.push("PROGRAMMED");
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
            self.revision.clone(),
            self.traffic.clone(),
            self.ready.clone().unwrap_or_else(|| "-".into()),
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
    let ready = ready(client, namespace).await?;
    let waypoints = found.iter().filter(|gateway| is_waypoint(gateway));
    let with_pods = |gateway| {
        let row = row(gateway);
        let pods = ready.get(&(row.namespace.clone(), row.name.clone()));
        Row {
            ready: pods.map(|pods| format!("{}/{}", pods.ready, pods.wanted)),
            ..row
        }
    };
    Ok(waypoints.map(with_pods).collect())
}

/// The pods of a waypoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pods {
    /// That are ready.
    pub(crate) ready: i32,
    /// That there should be.
    pub(crate) wanted: i32,
}

/// By namespace and name of the Gateway.
pub(crate) async fn ready(
    client: &Client,
    namespace: Option<&str>,
) -> anyhow::Result<HashMap<(String, String), Pods>> {
    let deployments: Api<Deployment> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let selector = format!("{}={}", labels::GATEWAY_MANAGED, labels::MANAGED_WAYPOINT);
    let found = deployments
        .list(&ListParams::default().labels(&selector))
        .await
        .context("cannot list Deployments")?;
    let of = |deployment: &Deployment| {
        let gateway = deployment.labels().get(labels::GATEWAY_NAME)?.clone();
        let spec = deployment.spec.as_ref();
        let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let status = deployment.status.as_ref();
        let ready = status.and_then(|it| it.ready_replicas).unwrap_or(0);
        let namespace = deployment.namespace().unwrap_or_default();
        Some(((namespace, gateway), Pods { ready, wanted }))
    };
    Ok(found.iter().filter_map(of).collect())
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
        revision: gateway
            .labels()
            .get(REVISION)
            .cloned()
            .unwrap_or_else(|| "default".into()),
        ready: None,
        traffic: gateway
            .labels()
            .get(labels::WAYPOINT_FOR)
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
/// (L) on Gateway: the control plane that looks after it.
const REVISION: &str = "istio.io/rev";
