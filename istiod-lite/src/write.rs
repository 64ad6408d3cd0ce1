//! What the control plane writes into the cluster, each by one replica at a time.
//!
//! ```text
//!  Lease ── elect ──► leader: roots      ConfigMaps in every namespace
//!                             status     conditions of what users wrote
//!                             classes    GatewayClasses that are ours
//!                             deploy     waypoints: what makes them run
//!                             addresses  automatic addresses of ServiceEntries
//!                             taint      nodes whose agent is ready
//!                             webhook    the certificate admission is verified by
//! ```
//!
//! Every replica serves; who writes is decided by Leases with Istio's names, so that an istiod of
//! Istio's beside us never writes the same objects at the same time.

mod addresses;
mod classes;
mod deploy;
mod elect;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod follow;
mod lease;
mod queue;
mod roots;
pub mod status;
mod taint;
mod webhook;

use std::pin::Pin;
use std::str::FromStr as _;
use std::sync::Arc;

use api::k8s::server::chain;
use kube::Api;
use ops::drain::Drain;
use tokio::sync::watch;

use crate::ca::Authority;
use crate::cluster::{Connection, Health, Kinds};
use crate::deploy::{Chart, Notes, Pattern};
use crate::metrics::{LeaseName, Metrics};

/// ConfigMap with the roots, in every namespace; Istio's name.
pub(crate) const ROOTS_NAME: &str = "istio-ca-root-cert";
/// The ConfigMap with what was revoked.
pub(crate) const CRL_NAME: &str = "istio-ca-crl";
/// Its key.
pub(crate) const ROOTS_KEY: &str = "root-cert.pem";

/// What of the writing is to be chosen.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// Name of this replica among those that share the writing; unique.
    #[arg(long, default_value = "istiod", env = "POD_NAME")]
    pub pod_name: String,
    /// Secret with the signer, as cert-manager writes it (`tls.crt`, `tls.key`, `ca.crt`) or under
    /// Istio's names. By default `cacerts` if there is one, else `istio-ca-secret`, which is made.
    #[arg(long, value_name = "NAME", env = "CA_SECRET")]
    pub ca_secret: Option<String>,
    /// Take taint `cni.istio.io/not-ready` off nodes whose node agent is ready.
    #[arg(long, env = "PILOT_ENABLE_NODE_UNTAINT_CONTROLLERS")]
    pub untaint_nodes: bool,
    /// ValidatingWebhookConfiguration to keep our root certificate in; none where this is empty.
    #[arg(
        long,
        default_value = "istio-validator-istio-system",
        env = "VALIDATION_WEBHOOK_CONFIG_NAME"
    )]
    pub validation_webhook: String,
    /// MutatingWebhookConfiguration to keep it in too; none where this is empty.
    #[arg(
        long,
        default_value = "istio-sidecar-injector-istio-system",
        env = "INJECTION_WEBHOOK_CONFIG_NAME"
    )]
    pub injection_webhook: String,
    /// Image of waypoints. Without it none is deployed.
    #[arg(long, value_name = "IMAGE", env = "AMBIT_WAYPOINT_IMAGE")]
    pub waypoint_image: Option<String>,
    /// How waypoints are deployed, JSON: what the chart has under `global.waypoint`.
    #[arg(long, value_name = "JSON", env = "AMBIT_WAYPOINT", value_parser = Chart::from_str)]
    pub waypoint: Option<Chart>,
}

/// What the writers stand on.
#[derive(Clone)]
pub struct Ground {
    /// The API server.
    pub connection: Connection,
    /// Where failures are reported.
    pub health: Health,
    /// The kinds that are defined in the cluster.
    pub kinds: watch::Receiver<Kinds>,
    /// Our own namespace: of Leases and Secrets.
    pub namespace: String,
    /// What to write.
    pub flags: Flags,
    /// Whose roots are told.
    pub authority: Arc<Authority>,
    /// What statuses should say.
    pub statuses: watch::Receiver<status::Book>,
    /// How waypoints are deployed; none are if this control plane was not told.
    pub waypoints: Option<Arc<Pattern>>,
    /// What became of their deployments, for their statuses.
    pub notes: watch::Sender<Notes>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Spawns every writer into `drain`; they end with it and hand their Leases back.
pub fn start(ground: Ground, drain: &Drain) {
    let untaint = ground.flags.untaint_nodes;
    let flags = &ground.flags;
    let webhook = !(flags.validation_webhook.is_empty() && flags.injection_webhook.is_empty());
    let me = identity(&ground.flags.pod_name);
    let by = |name, write: fn(Ground) -> Writer| {
        let ballot = elect::Ballot {
            leases: Api::namespaced(ground.connection.client.clone(), &ground.namespace),
            name,
            me: me.clone(),
        };
        let (connection, health) = (ground.connection.clone(), ground.health.clone());
        let stop = drain.accepting().clone();
        let leading = ground
            .metrics
            .leading
            .get_or_create_owned(&LeaseName { lease: name });
        leading.set(0);
        let told = move |leads: bool| {
            leading.set(i64::from(leads));
        };
        let ground = ground.clone();
        let write = move || write(ground.clone());
        drain.spawn(elect::lead(ballot, connection, health, stop, told, write));
    };
    by("istio-namespace-controller-election", |ground| {
        Box::pin(roots::write(ground))
    });
    by("istio-status-leader", |ground| {
        Box::pin(status::write(status::Part::Mesh, ground))
    });
    by("istio-gateway-status-leader", |ground| {
        Box::pin(async move {
            let statuses = status::write(status::Part::Gateways, ground.clone());
            // By the same Lease: what became of a deployment is said in its Gateway's status.
            let deployed = async {
                if let Some(pattern) = ground.waypoints.clone() {
                    let notes = ground.notes.clone();
                    deploy::write(ground.clone(), pattern, notes).await;
                }
            };
            tokio::join!(statuses, deployed, classes::write(ground.clone()));
        })
    });
    by("istio-ip-autoallocate", |ground| {
        Box::pin(addresses::write(ground))
    });
    if webhook {
        by("istio-leader", |ground| Box::pin(webhook::write(ground)));
    }
    if untaint {
        by("istio-node-untaint", |ground| {
            Box::pin(taint::write(ground))
        });
    }
}

/// What runs while we lead.
type Writer = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A failed request in one line: what the API server said, or why it could not be asked.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} {}", status.code, status.message.trim()),
        other => chain(other),
    }
}

/// A name that no other process has, nor this pod after a restart.
fn identity(pod: &str) -> String {
    let mut random = [0_u8; 4];
    // Without randomness the process's number must do.
    let _ = aws_lc_rs::rand::fill(&mut random);
    let number = u32::from_be_bytes(random) ^ std::process::id();
    format!("{pod}_{number:08x}")
}

#[cfg(test)]
mod tests;
