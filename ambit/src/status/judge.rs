//! What the facts mean. Pure: facts in, a report with findings out; each finding says what is wrong
//! and what to do about it.

use serde::Serialize;

use super::collect::{ConditionFacts, Facts, NamespaceFacts, PodFacts};
use crate::parts::Part;

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
    for stray in &facts.strays {
        findings.push(warning(
            format!("Gateway {}", stray.object),
            format!("is of class {:?}, which nobody has defined", stray.class),
            "nothing will listen there: kubectl get gatewayclass names the classes there are; istio-waypoint is this mesh's",
        ));
    }
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

fn missing_parts(facts: &Facts, findings: &mut Vec<Finding>) {
    if facts.parts.is_empty() {
        findings.push(error(
            "mesh",
            "no part of it is on this cluster",
            "ambit install",
        ));
        return;
    }
    for part in Part::ALL {
        if !facts.parts.contains_key(&part) {
            findings.push(error(
                part.name(),
                "is not installed",
                "ambit install puts it back",
            ));
        }
    }
}

fn pods(facts: &Facts, findings: &mut Vec<Finding>) {
    for pod in &facts.pods {
        if !pod.ready {
            let wrong = pod.trouble.clone().unwrap_or_else(|| "is not ready".into());
            findings.push(error(
                &pod.name,
                wrong,
                format!("kubectl logs of {}, and its events", pod.name),
            ));
        } else if pod.restarts >= MANY_RESTARTS {
            let wrong = format!("restarted {} times", pod.restarts);
            findings.push(warning(
                &pod.name,
                wrong,
                format!("kubectl logs --previous of {}", pod.name),
            ));
        }
    }
}

fn nodes(facts: &Facts, findings: &mut Vec<Finding>) {
    for node in &facts.nodes {
        for part in Part::ALL
            .into_iter()
            .filter(|part| part.on_every_node() && facts.parts.contains_key(part))
        {
            if node.ready
                && !facts
                    .pods
                    .iter()
                    .any(|pod| pod.part == part && pod.node == node.name)
            {
                let wrong = format!("runs no {part}");
                let remedy = match part {
                    Part::Agent => {
                        "its new pods cannot join the mesh: look for taints the DaemonSet does not tolerate"
                    }
                    _ => {
                        "its enrolled pods have no network: look for taints the DaemonSet does not tolerate"
                    }
                };
                findings.push(error(format!("node {}", node.name), wrong, remedy));
            }
        }
        if node.tainted && node.ready {
            let wrong = "keeps the taint cni.istio.io/not-ready";
            findings.push(warning(
                format!("node {}", node.name),
                wrong,
                "its node agent has not become ready, or the control plane may not change nodes",
            ));
        }
    }
}

fn replicas(facts: &Facts, findings: &mut Vec<Finding>) {
    for (name, answer) in &facts.replicas {
        match answer {
            Err(why) => findings.push(warning(
                name,
                format!("does not tell which proxies it serves: {why}"),
                "sync states below may be missing; may the API server reach pods on port 15014?",
            )),
            Ok(proxies) => {
                for proxy in proxies {
                    for (kind, state) in &proxy.types {
                        if let Some(rejected) = &state.rejected {
                            let kind = kind.rsplit('.').next().unwrap_or(kind);
                            findings.push(error(
                                &proxy.proxy,
                                format!("refused {kind} configuration: {rejected}"),
                                "the last good one stays in force; mend the object it names",
                            ));
                        }
                    }
                }
            }
        }
    }
    let answered = facts.replicas.values().any(Result::is_ok);
    for pod in facts
        .pods
        .iter()
        .filter(|pod| pod.part == Part::Ztunnel && pod.ready)
    {
        if answered && sync(facts, pod) == "not connected" {
            findings.push(error(
                &pod.name,
                "is connected to no replica of the control plane",
                "it serves what it knows and learns nothing new: its log says why it cannot connect",
            ));
        }
    }
}

/// Whether `pod` has all of its configuration.
fn sync(facts: &Facts, pod: &PodFacts) -> &'static str {
    if pod.part != Part::Ztunnel || !facts.replicas.values().any(Result::is_ok) {
        return "";
    }
    let mine = |proxy: &str| proxy.split('.').next() == Some(pod.name.as_str());
    let lists = facts.replicas.values().flatten();
    let Some(proxy) = lists.flatten().find(|proxy| mine(&proxy.proxy)) else {
        return "not connected";
    };
    let states: Vec<&str> = proxy
        .types
        .values()
        .map(|state| state.state.as_str())
        .collect();
    match states.as_slice() {
        [] => "pending",
        _ if states.contains(&"REJECTED") => "rejected",
        _ if states.iter().all(|state| *state == "SYNCED") => "synced",
        _ => "pending",
    }
}

fn versions(facts: &Facts, findings: &mut Vec<Finding>) {
    let ours = env!("CARGO_PKG_VERSION");
    for (part, found) in &facts.parts {
        let Some(version) = &found.version else {
            continue;
        };
        let old = facts
            .pods
            .iter()
            .filter(|pod| pod.part == *part && pod.version.as_ref() != Some(version))
            .count();
        if old > 0 {
            let wrong = format!("{old} of its pods run another version than {version}");
            findings.push(warning(
                part.name(),
                wrong,
                "a roll-out is under way or stuck: kubectl rollout status",
            ));
        }
        if version != ours {
            let wrong = format!("is version {version}, this program is {ours}");
            findings.push(warning(
                part.name(),
                wrong,
                "ambit upgrade, or the ambit of that version",
            ));
        }
    }
}

fn enrolment(namespace: &NamespaceFacts, findings: &mut Vec<Finding>) {
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
fn of_condition(found: &ConditionFacts) -> Option<Finding> {
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
        ("Gateway", "Programmed") => "this version runs no waypoints and gateways yet",
        (_, "istio.io/WaypointBound") => {
            "traffic to it is refused until its waypoint runs; remove the label istio.io/use-waypoint to go without"
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

/// More than a start with a late control plane explains.
const MANY_RESTARTS: i32 = 5;

#[cfg(test)]
mod tests {
    use super::super::collect::{NodeFacts, PartFacts, ProxySync, StrayFacts, TypeSync};
    use super::*;
    use crate::install::Progress;

    fn well() -> Facts {
        let part = || PartFacts {
            progress: Progress {
                ready: 1,
                wanted: 1,
                settled: true,
            },
            version: Some(env!("CARGO_PKG_VERSION").into()),
        };
        let pod = |part: Part, name: &str| PodFacts {
            part,
            name: name.into(),
            node: "n1".into(),
            ready: true,
            restarts: 0,
            version: Some(env!("CARGO_PKG_VERSION").into()),
            trouble: None,
        };
        let synced = TypeSync {
            state: "SYNCED".into(),
            rejected: None,
        };
        let proxy = ProxySync {
            proxy: "ztunnel-1.istio-system".into(),
            types: [("a.Address".to_owned(), synced)].into(),
        };
        Facts {
            parts: Part::ALL.into_iter().map(|p| (p, part())).collect(),
            pods: vec![
                pod(Part::Istiod, "istiod-1"),
                pod(Part::Agent, "agent-1"),
                pod(Part::Ztunnel, "ztunnel-1"),
            ],
            nodes: vec![NodeFacts {
                name: "n1".into(),
                ready: true,
                tainted: false,
            }],
            replicas: [("istiod-1".to_owned(), Ok(vec![proxy]))].into(),
            ..Facts::default()
        }
    }

    #[test]
    fn a_mesh_that_is_well_has_no_findings() {
        let report = report(&well());
        assert_eq!(report.findings, []);
        assert_eq!(
            report
                .pods
                .iter()
                .map(|pod| pod.sync.as_str())
                .collect::<Vec<_>>(),
            ["", "", "synced"]
        );
    }

    #[test]
    fn each_fault_is_named_with_its_subject() {
        type Break = fn(&mut Facts);
        let cases: [(Break, Severity, &str); 10] = [
            (
                |f| {
                    f.parts.clear();
                    f.pods.clear();
                },
                Severity::Error,
                "mesh",
            ),
            (
                |f| {
                    f.parts.remove(&Part::Agent);
                    f.pods.remove(1);
                },
                Severity::Error,
                "istio-cni-node",
            ),
            (|f| f.pods[2].ready = false, Severity::Error, "ztunnel-1"),
            (|f| f.pods[0].restarts = 9, Severity::Warning, "istiod-1"),
            (
                |f| {
                    f.nodes.push(NodeFacts {
                        name: "n2".into(),
                        ready: true,
                        tainted: false,
                    })
                },
                Severity::Error,
                "node n2",
            ),
            (|f| f.nodes[0].tainted = true, Severity::Warning, "node n1"),
            (
                |f| {
                    f.replicas.insert("istiod-1".into(), Ok(vec![]));
                },
                Severity::Error,
                "ztunnel-1",
            ),
            (
                |f| {
                    f.replicas.insert("istiod-1".into(), Err("no".into()));
                },
                Severity::Warning,
                "istiod-1",
            ),
            (
                |f| {
                    f.strays.push(StrayFacts {
                        object: "a/g".into(),
                        class: "typo".into(),
                    })
                },
                Severity::Warning,
                "Gateway a/g",
            ),
            (
                |f| f.pods[1].version = Some("0".into()),
                Severity::Warning,
                "istio-cni-node",
            ),
        ];
        for (number, (breaks, severity, subject)) in cases.into_iter().enumerate() {
            let mut facts = well();
            breaks(&mut facts);
            let findings = report(&facts).findings;
            let found = findings
                .iter()
                .find(|f| f.severity == severity && f.subject == subject);
            assert!(
                found.is_some_and(|f| !f.remedy.is_empty()),
                "case {number}: {findings:?}"
            );
        }
    }

    #[test]
    fn a_refused_configuration_is_told_in_the_words_of_the_proxy() {
        let mut facts = well();
        let refused = TypeSync {
            state: "REJECTED".into(),
            rejected: Some("ns/p: bad address".into()),
        };
        let proxy = ProxySync {
            proxy: "ztunnel-1.istio-system".into(),
            types: [("x.Authorization".to_owned(), refused)].into(),
        };
        facts.replicas.insert("istiod-1".into(), Ok(vec![proxy]));
        let report = report(&facts);
        assert!(
            report.findings[0]
                .wrong
                .contains("Authorization configuration: ns/p: bad address")
        );
        assert_eq!(report.pods[2].sync, "rejected");
    }

    #[test]
    fn a_pod_in_the_clear_is_an_error_and_one_still_captured_a_warning() {
        let mut facts = well();
        facts.namespaces.push(NamespaceFacts {
            name: "shop".into(),
            enrolled: true,
            captured: 1,
            waiting: vec!["a".into(), "b".into()],
            lingering: vec!["c".into()],
            outside: 0,
        });
        let findings = report(&facts).findings;
        let seen: Vec<_> = findings
            .iter()
            .map(|f| (f.severity, f.subject.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (Severity::Error, "namespace shop"),
                (Severity::Warning, "namespace shop")
            ]
        );
        assert!(
            findings[0].wrong.starts_with("2 pods") && findings[0].wrong.contains("a among them")
        );
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
