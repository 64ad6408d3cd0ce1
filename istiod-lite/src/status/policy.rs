//! Which parts of an AuthorizationPolicy are enforced, and where.

use super::waypoint::shown;
use super::{Condition, Desired};
use crate::translate::policy::{Layer4, Policy};
use api::k8s::objects::ObjectKey;

/// What was found where a policy is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The Gateway, or class, that stands before it.
    Bound(ObjectKey),
    /// It is there, but no waypoint that could enforce anything stands before it.
    NotBound(String),
    /// A Gateway, or class of them, that is there and is told of no policies; or the one that it is behind.
    NoWaypoint(String),
    /// It is not there.
    Missing(String),
    /// Nothing of that kind, or from there, can be attached to.
    Invalid(String),
}

/// The status of a policy, given what was found at each of its targets, and what keeps it from working there.
pub fn policy(policy: &Policy, found: &[Found], faults: &[String]) -> Desired {
    let condition = match policy.layer4 {
        Layer4::Elsewhere => attached(found, faults),
        Layer4::Whole => layer4(true, "Accepted", "attached to ztunnel".to_owned()),
        Layer4::Partly => layer4(
            true,
            "UnsupportedValue",
            format!(
                "ztunnel does not support HTTP attributes: {}. To have all of it enforced, attach the policy to a waypoint with targetRefs",
                policy.remarks.join("; ")
            ),
        ),
        Layer4::Closed => layer4(false, "Invalid", policy.remarks.join("; ")),
        Layer4::Not => layer4(false, "UnsupportedValue", policy.remarks.join("; ")),
    };
    Desired {
        generation: policy.generation,
        conditions: vec![condition],
        ..Desired::default()
    }
}

fn layer4(status: bool, reason: &str, message: String) -> Condition {
    Condition {
        r#type: "ZtunnelAccepted",
        status,
        reason: reason.to_owned(),
        message,
    }
}

/// Condition `WaypointAccepted`: whether somebody stands before every target who enforces it, and all of it works
/// there.
pub fn attached(found: &[Found], faults: &[String]) -> Condition {
    let mut reasons: Vec<&str> = found.iter().map(Found::reason).collect();
    reasons.extend(faults.iter().map(|_| "Invalid"));
    reasons.sort_unstable();
    reasons.dedup();
    let mut texts: Vec<String> = found.iter().map(Found::text).collect();
    texts.dedup();
    texts.extend(faults.iter().cloned());
    Condition {
        r#type: "WaypointAccepted",
        status: reasons == ["Accepted"],
        reason: match reasons.as_slice() {
            [one] => (*one).to_owned(),
            ["Accepted", "Invalid"] if !faults.is_empty() => "Invalid".to_owned(),
            _ => "PartiallyInvalid".to_owned(),
        },
        message: texts.join("; "),
    }
}

impl Found {
    fn reason(&self) -> &'static str {
        match self {
            Self::Bound(_) => "Accepted",
            Self::NotBound(_) | Self::NoWaypoint(_) => "AncestorNotBound",
            Self::Missing(_) => "TargetNotFound",
            Self::Invalid(_) => "Invalid",
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Bound(gateway) if gateway.namespace.is_empty() => {
                format!("bound to {}", gateway.name)
            }
            Self::Bound(gateway) => format!("bound to {}", shown(gateway)),
            Self::NotBound(target) => format!(
                "{target} is bound to no waypoint that is ready, so nothing enforces the policy: see its condition istio.io/WaypointBound"
            ),
            Self::NoWaypoint(target) => format!(
                "{target} is no waypoint that is told of policies from here, so nothing enforces this one: attach it to a Gateway of class istio-waypoint, or to what is behind one"
            ),
            Self::Missing(target) => format!("{target} was not found"),
            Self::Invalid(target) => format!(
                "{target} cannot be attached to: targetRefs name a Service, ServiceEntry or Gateway of the policy's namespace, or in the root namespace a GatewayClass"
            ),
        }
    }
}
