//! What the facts mean. Pure: facts in, a report with findings out; each finding says what is wrong
//! and what to do about it.
//!
//! | module | finds |
//! |---|---|
//! | `parts` | what is wrong with the mesh |
//! | `objects` | what is wrong with what users wrote |

mod objects;
mod parts;
#[cfg(test)]
mod tests;

use serde::Serialize;

use super::collect::Facts;
use crate::parts::Part;
use objects::{enrolment, of_condition, stray, waypoint};
use parts::{missing_parts, nodes, pods, replicas, sync, versions};

/// What is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) parts: Vec<PartRow>,
    pub(super) pods: Vec<PodRow>,
    pub(super) namespaces: Vec<NamespaceRow>,
    pub(super) findings: Vec<Finding>,
}

/// A Deployment or DaemonSet.
#[derive(Debug, Serialize)]
pub(super) struct PartRow {
    pub(super) part: Part,
    pub(super) ready: i32,
    pub(super) wanted: i32,
    pub(super) version: String,
}

/// A pod of a part.
#[derive(Debug, Serialize)]
pub(super) struct PodRow {
    pub(super) part: Part,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) ready: bool,
    /// `synced`, `pending`, `rejected`, `not connected`; empty for parts that take no configuration.
    pub(super) sync: String,
    pub(super) restarts: i32,
    pub(super) version: String,
}

/// A namespace with pods in the mesh.
#[derive(Debug, Serialize)]
pub(super) struct NamespaceRow {
    pub(super) name: String,
    pub(super) enrolled: bool,
    pub(super) captured: usize,
    pub(super) waiting: usize,
    pub(super) outside: usize,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// About what.
    pub(super) subject: String,
    /// What is wrong.
    pub(super) wrong: String,
    /// What to do.
    pub(super) remedy: String,
}

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Traffic, enrolment or policy does not work as configured.
    Error,
    /// It works, but not for long or not as somebody thinks.
    Warning,
}

/// Judges.
pub(super) fn report(facts: &Facts) -> Report {
    let mut findings = Vec::new();
    missing_parts(facts, &mut findings);
    pods(facts, &mut findings);
    nodes(facts, &mut findings);
    replicas(facts, &mut findings);
    versions(facts, &mut findings);
    for namespace in &facts.namespaces {
        enrolment(namespace, &mut findings);
    }
    for condition in &facts.conditions {
        findings.extend(of_condition(condition));
    }
    findings.extend(facts.strays.iter().map(stray));
    findings.extend(facts.waypoints.iter().filter_map(waypoint));
    findings.sort_by(|a, b| (a.severity, &a.subject).cmp(&(b.severity, &b.subject)));
    let parts = facts.parts.iter().map(|(part, found)| PartRow {
        part: *part,
        ready: found.progress.ready,
        wanted: found.progress.wanted,
        version: found.version.clone().unwrap_or_default(),
    });
    let pods = facts.pods.iter().map(|pod| PodRow {
        part: pod.part,
        name: pod.name.clone(),
        node: pod.node.clone(),
        ready: pod.ready,
        sync: sync(facts, pod).to_owned(),
        restarts: pod.restarts,
        version: pod.version.clone().unwrap_or_default(),
    });
    let namespaces = facts.namespaces.iter().map(|namespace| NamespaceRow {
        name: namespace.name.clone(),
        enrolled: namespace.enrolled,
        captured: namespace.captured,
        waiting: namespace.waiting.len(),
        outside: namespace.outside,
    });
    Report {
        parts: parts.collect(),
        pods: pods.collect(),
        namespaces: namespaces.collect(),
        findings,
    }
}

fn error(
    subject: impl Into<String>,
    wrong: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding {
        severity: Severity::Error,
        subject: subject.into(),
        wrong: wrong.into(),
        remedy: remedy.into(),
    }
}

fn warning(
    subject: impl Into<String>,
    wrong: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding {
        severity: Severity::Warning,
        ..error(subject, wrong, remedy)
    }
}
