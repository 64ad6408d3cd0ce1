//! May this connection come in? The verdict of the policies on one inbound connection, and what to do when the
//! verdict cannot be given yet.
//!
//! The connection must be among the open ones *before* it is judged here. Then no change of policies can fall between
//! judging and being known to `rejudge`: either this judgement already sees the new policies, or the next pass over
//! the open connections sees this connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh::{Connection, DeniedBy, Snapshot, SourceIdentity, Verdict, Workload};
use tokio::time::Instant;

use crate::connections::Live;
use crate::hint::Hint;
use crate::node::Node;
use crate::report::Failure;
use crate::traffic::Flag;

/// How long a connection waits for a policy that its workload names and the control plane has not sent yet. Policies
/// travel right behind the workloads that name them, so this is rarely more than milliseconds; what stays unknown
/// after it is a mistake, and is denied.
pub(crate) const HOLD: Duration = Duration::from_secs(3);

/// Why a connection may not come in, or may not stay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// The policies say so.
    #[error("connection closed due to policy rejection: {0}")]
    By(DeniedBy),
    /// The control plane took the workload away, and with it what would say which policies apply.
    #[error(
        "connection closed due to policy rejection: the control plane does not list workload {0} any more"
    )]
    UnknownWorkload(Arc<str>),
    /// It went to who is unknown, and such connections are refused by now.
    #[error(
        "connection closed: egress refused by {by}: the mesh knows nobody at {destination} (a ServiceEntry with this address and port would let it pass)"
    )]
    Egress {
        /// Where it went.
        destination: SocketAddr,
        /// The setting.
        by: Arc<str>,
    },
}

impl Failure for Denied {
    fn flag(&self) -> Flag {
        match self {
            Self::By(_) | Self::UnknownWorkload(_) => Flag::Deny,
            Self::Egress { .. } => Flag::Egress,
        }
    }

    fn hint(&self) -> Option<Hint> {
        Some(match self {
            Self::By(why) => Hint::of_denial(why),
            Self::UnknownWorkload(_) => Hint::WorkloadGone,
            Self::Egress { .. } => Hint::Egress,
        })
    }

    fn policy(&self) -> Option<&Arc<str>> {
        match self {
            Self::By(DeniedBy::Explicit(policy) | DeniedBy::UnknownPolicy(policy)) => Some(policy),
            Self::By(DeniedBy::NoAllowMatched) | Self::UnknownWorkload(_) => None,
            Self::Egress { by, .. } => Some(by),
        }
    }
}

/// Judges a connection to `workload`, waiting up to [`HOLD`] for policies that are named but not here yet.
pub(crate) async fn admit(node: &Node, workload_uid: &Arc<str>, live: &Live) -> Result<(), Denied> {
    let mut wait: Option<(Instant, tokio::sync::watch::Receiver<u64>)> = None;
    loop {
        let missing = match judge(node, workload_uid, live) {
            Judged::Allowed => return Ok(()),
            Judged::Denied(denied) => return Err(denied),
            Judged::Undecided(missing) => missing,
        };
        // Subscribed, then judged once more: a policy that came in between must not be missed.
        let Some((deadline, changed)) = &mut wait else {
            wait = Some((Instant::now() + HOLD, node.mesh.changed()));
            continue;
        };
        match tokio::time::timeout_at(*deadline, changed.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(Denied::By(DeniedBy::UnknownPolicy(missing))),
        }
    }
}

/// A verdict as the path needs it.
pub(crate) enum Judged {
    Allowed,
    Denied(Denied),
    /// This policy is named but unknown.
    Undecided(Arc<str>),
}

/// Judges a connection with the policies of now.
pub(crate) fn judge(node: &Node, workload_uid: &Arc<str>, live: &Live) -> Judged {
    let snapshot = node.mesh.load();
    let Some(workload) = snapshot.workload(workload_uid) else {
        return Judged::Denied(Denied::UnknownWorkload(workload_uid.clone()));
    };
    judge_by(&snapshot, workload, live)
}

/// Judges a connection to `workload` with the policies of `snapshot`.
pub(crate) fn judge_by(snapshot: &Snapshot, workload: &Workload, live: &Live) -> Judged {
    let connection = Connection {
        source: live.identity().map(|identity| SourceIdentity {
            trust_domain: identity.trust_domain(),
            namespace: identity.namespace(),
            service_account: identity.service_account(),
        }),
        source_ip: live.source.ip(),
        destination_ip: live.actual.ip(),
        destination_port: live.actual.port(),
    };
    let policies = snapshot.policies_of(workload);
    for dry in mesh::verdict::dry_runs(&policies, &connection) {
        tracing::debug!(
            policy = %dry.policy, action = ?dry.action, matched = dry.matched,
            src.addr = %live.source, dst.addr = %live.actual, "dry run"
        );
    }
    match mesh::judge(&policies, &connection) {
        Verdict::Allowed { by } => {
            tracing::debug!(src.addr = %live.source, dst.addr = %live.actual, policy = by.as_deref(), "allowed");
            live.allowed_by(by);
            Judged::Allowed
        }
        Verdict::Denied { by } => Judged::Denied(Denied::By(by)),
        Verdict::Undecided { missing } => Judged::Undecided(missing),
    }
}
