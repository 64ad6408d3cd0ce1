//! Findings about what belongs to users: their namespaces and the objects they wrote.

use super::super::collect::{ConditionFacts, NamespaceFacts, StrayFacts};
use super::{Finding, Severity, error, warning};
use crate::waypoint::Pods;
use api::k8s::labels::GATEWAY_NAME;

/// Pods that are not where their labels want them.
pub(super) fn enrolment(namespace: &NamespaceFacts, findings: &mut Vec<Finding>) {
    if let Some(first) = namespace.waiting.first() {
        let wrong = format!(
            "{} pods should be in the mesh and are not, {first} among them",
            namespace.waiting.len()
        );
        let remedy = "they talk in the clear: the node agent's log on their node says why";
        findings.push(error(
            format!("namespace {}", namespace.name),
            wrong,
            remedy,
        ));
    }
    if let Some(first) = namespace.lingering.first() {
        let wrong = format!(
            "{} pods are still captured though no label wants it, {first} among them",
            namespace.lingering.len()
        );
        let remedy = "the node agent's log on their node says why";
        findings.push(warning(
            format!("namespace {}", namespace.name),
            wrong,
            remedy,
        ));
    }
}

/// What a condition says that its object's author must know. Conditions are of two kinds: those
/// that are good when true, and `…Missing`, which is good when false.
pub(super) fn of_condition(found: &ConditionFacts) -> Option<Finding> {
    let bad_when_true = found.condition.ends_with("Missing");
    let bad = if bad_when_true {
        found.status == "True"
    } else {
        found.status == "False"
    };
    let partly = found.status == "True"
        && matches!(
            found.reason.as_str(),
            "UnsupportedValue" | "PartiallyInvalid"
        );
    if !bad && !partly {
        return None;
    }
    let subject = format!("{} {}", found.kind, found.object);
    let wrong = format!(
        "{}={} {}: {}",
        found.condition, found.status, found.reason, found.message
    );
    let remedy = match (found.kind.as_str(), found.condition.as_str()) {
        ("Gateway", _) => "ambit waypoint status shows its pods; mend what is named",
        (_, "istio.io/WaypointBound") => {
            "traffic to it is refused until its waypoint runs; remove the label istio.io/use-waypoint to go without"
        }
        (_, "ambit.io/WaypointOnly") => {
            "it is refused to everybody: name a waypoint that runs, or remove the label ambit.io/waypoint-only"
        }
        ("AuthorizationPolicy", _) if partly => {
            "the rest of the policy is enforced; use a waypoint for what is named"
        }
        ("AuthorizationPolicy", _) => {
            "it is not enforced by ztunnel as written; mend what is named"
        }
        _ => "mend what is named; the last good version stays in force",
    };
    let severity = if partly {
        Severity::Warning
    } else {
        Severity::Error
    };
    Some(Finding {
        severity,
        ..error(subject, wrong, remedy)
    })
}

/// A Gateway of nobody's class.
pub(super) fn stray(found: &StrayFacts) -> Finding {
    warning(
        format!("Gateway {}", found.object),
        format!("is of class {:?}, which nobody has defined", found.class),
        "nothing will listen there: kubectl get gatewayclass names the classes there are; istio-waypoint is this mesh's",
    )
}

/// A waypoint that lacks pods.
pub(super) fn waypoint((name, pods): (&String, &Pods)) -> Option<Finding> {
    if pods.ready >= pods.wanted {
        return None;
    }
    let wrong = format!("{} of {} pods are ready", pods.ready, pods.wanted);
    let (namespace, gateway) = name.split_once('/').unwrap_or(("", name));
    let remedy = format!(
        "kubectl -n {namespace} describe pods -l {GATEWAY_NAME}={gateway} says what they wait for{}",
        if pods.ready == 0 {
            "; until then what names it is refused"
        } else {
            ""
        }
    );
    let subject = format!("waypoint {name}");
    Some(if pods.ready == 0 {
        error(subject, wrong, remedy)
    } else {
        warning(subject, wrong, remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waypoint_without_pods_is_an_error_and_one_with_some_a_warning() {
        let found = |ready| {
            let pods = Pods { ready, wanted: 2 };
            waypoint((&"shop/waypoint".to_owned(), &pods)).map(|it| it.severity)
        };
        assert_eq!(found(0), Some(Severity::Error));
        assert_eq!(found(1), Some(Severity::Warning));
        assert_eq!(found(2), None);
    }

    #[test]
    fn conditions_count_by_what_their_name_means() {
        let condition = |name: &str, status: &str, reason: &str| ConditionFacts {
            object: "a/p".into(),
            kind: "AuthorizationPolicy".into(),
            condition: name.into(),
            status: status.into(),
            reason: reason.into(),
            message: String::new(),
        };
        let cases = [
            (condition("ZtunnelAccepted", "True", "Accepted"), None),
            (
                condition("ZtunnelAccepted", "True", "UnsupportedValue"),
                Some(Severity::Warning),
            ),
            (
                condition("ZtunnelAccepted", "False", "UnsupportedValue"),
                Some(Severity::Error),
            ),
            (
                condition("istio.io/WaypointMissing", "True", "x"),
                Some(Severity::Error),
            ),
            (condition("istio.io/WaypointMissing", "False", "x"), None),
        ];
        for (found, expected) in cases {
            assert_eq!(
                of_condition(&found).map(|f| f.severity),
                expected,
                "{found:?}"
            );
        }
    }
}
