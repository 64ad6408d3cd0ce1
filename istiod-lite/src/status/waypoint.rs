//! Whether what names a waypoint is bound to it, and what becomes of its traffic if not.

use std::collections::BTreeSet;

use super::Condition;
use crate::translate::only::Only;
use crate::translate::service_entry::{SEEN_BY_ALL, Visibility};
use crate::translate::waypoint::{Bound, CanaryProblem, Problem, Traffic};
use api::k8s::labels::{INGRESS_USE_WAYPOINT, WAYPOINT_FOR, WAYPOINT_UNREADY};
use api::k8s::objects::ObjectKey;

/// Condition `istio.io/WaypointBound` of what names a waypoint. `ingress`: what its labels say about
/// gateways, if anything.
pub fn bound(bound: &Bound, ingress: Option<bool>) -> Condition {
    let (status, reason, mut message) = match &bound.problem {
        None => {
            let attached = format!(
                "Successfully attached to waypoint {}",
                shown(&bound.gateway)
            );
            (true, "WaypointAccepted", attached)
        }
        Some(problem) => (false, reason(problem), text(problem, &bound.gateway)),
    };
    if let Some((gateway, problem)) = &bound.canary {
        message += ". Canary waypoint not attached: ";
        message += &canary(gateway, problem);
    }
    match ingress {
        Some(true) if status => message += ". Ingress traffic will traverse the waypoint",
        Some(false) if status => {
            message += &format!(
                ". Ingress traffic is not using the waypoint, set the {INGRESS_USE_WAYPOINT} label to true if desired."
            );
        }
        _ => {}
    }
    if bound.refuses() {
        message += &format!(
            ". Until it is usable its traffic is refused; label {WAYPOINT_UNREADY}=pass on the namespace lets it go without the waypoint"
        );
    }
    Condition {
        r#type: "istio.io/WaypointBound",
        status,
        reason: reason.to_owned(),
        message,
    }
}

/// Condition `ambit.io/WaypointOnly` of what demands that all comes through these waypoints.
pub fn only(only: &Only, traffic: Traffic, through: &BTreeSet<ObjectKey>) -> Condition {
    let names: Vec<String> = through.iter().map(shown).collect();
    let names = names.join(" and ");
    let (reason, mut message) = match (through.is_empty(), traffic) {
        (false, Traffic::Service) => (
            "Enforced",
            format!("The workloads that serve it refuse on its ports whatever does not come through waypoint {names}"),
        ),
        (false, Traffic::Workload) => (
            "Enforced",
            format!("It refuses whatever does not come through waypoint {names}, or through that of a service it serves"),
        ),
        (true, Traffic::Service) => (
            "NoWaypoint",
            "It names no waypoint that is ready and takes its traffic: until it does, the workloads that serve it refuse everybody on its ports".to_owned(),
        ),
        (true, Traffic::Workload) => (
            "NoWaypoint",
            "It names no waypoint that is ready and takes its traffic: until it does, it refuses whatever does not come through the waypoint of a service it serves".to_owned(),
        ),
    };
    let fault = only.fault();
    let reason = if fault.is_some() { "Invalid" } else { reason };
    if let Some(fault) = fault {
        message += ". ";
        message += &fault;
    }
    Condition {
        r#type: "ambit.io/WaypointOnly",
        status: reason == "Enforced",
        reason: reason.to_owned(),
        message,
    }
}

fn reason(problem: &Problem) -> &'static str {
    match problem {
        Problem::Missing | Problem::NotReady => "WaypointIsNotReady",
        Problem::Denied => "AttachmentDenied",
        Problem::Unsupported(_) | Problem::Unknown(..) | Problem::EastWest => {
            "UnsupportedTrafficType"
        }
    }
}

fn text(problem: &Problem, gateway: &ObjectKey) -> String {
    let gateway = shown(gateway);
    match problem {
        Problem::Missing => {
            format!("waypoint \"{gateway}\" is not ready: there is no Gateway of that name")
        }
        Problem::NotReady => format!("waypoint \"{gateway}\" is not ready"),
        Problem::EastWest => {
            format!("Gateway \"{gateway}\" is an east-west gateway, which is nobody's waypoint")
        }
        Problem::Denied => format!(
            "we are not permitted to attach to waypoint \"{gateway}\" (missing allowedRoutes?)"
        ),
        Problem::Unsupported(traffic) | Problem::Unknown(traffic, _) => {
            let mut text = format!(
                "attempting to bind to traffic type \"{}\" which the waypoint \"{gateway}\" does not support",
                traffic.name()
            );
            if let Problem::Unknown(_, label) = problem {
                text += &format!(
                    ": its label {WAYPOINT_FOR} says \"{label}\", which is none of service, workload, all, none"
                );
            }
            text
        }
    }
}

fn canary(gateway: &ObjectKey, problem: &CanaryProblem) -> String {
    match problem {
        CanaryProblem::Unusable(problem) => text(problem, gateway),
        CanaryProblem::Weight => format!(
            "canary waypoint \"{}\" has an invalid weight; must be an integer in [0,100]",
            shown(gateway)
        ),
        CanaryProblem::Same => {
            format!(
                "canary waypoint \"{}\" is the waypoint itself",
                shown(gateway)
            )
        }
    }
}

/// namespace/name
pub(super) fn shown(key: &ObjectKey) -> String {
    format!("{}/{}", key.namespace, key.name)
}

/// Condition `istio.io/WaypointMissing` of a ServiceEntry whose wildcard host no waypoint tells apart.
pub fn wildcard() -> Condition {
    Condition {
        r#type: "istio.io/WaypointMissing",
        status: true,
        reason: "NoWaypointForWildcardService".to_owned(),
        message: "ServiceEntry will not apply until it is bound to a valid waypoint.".to_owned(),
    }
}

/// Condition `ambit.io/Accepted` of a ServiceEntry of which something has no effect.
pub fn seen_by_all() -> Condition {
    Condition {
        r#type: "ambit.io/Accepted",
        status: false,
        reason: "PartiallyInvalid".to_owned(),
        message: SEEN_BY_ALL.to_owned(),
    }
}

/// Condition `istio.io/VisibilityApplied` of a ServiceEntry, where the mesh has rules for it.
pub fn visibility(visibility: Visibility) -> Condition {
    let (reason, who) = match visibility {
        Visibility::Public => ("Public", "the whole mesh sees this ServiceEntry (PUBLIC)"),
        Visibility::Namespace => (
            "Namespace",
            "only its own namespace sees this ServiceEntry (NAMESPACE)",
        ),
        Visibility::None => ("None", "nobody sees this ServiceEntry (NONE)"),
    };
    Condition {
        r#type: "istio.io/VisibilityApplied",
        status: true,
        reason: reason.to_owned(),
        message: format!(
            "{who}, by the mesh's serviceEntryVisibility and the labels of its namespace."
        ),
    }
}
