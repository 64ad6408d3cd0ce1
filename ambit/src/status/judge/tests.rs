//! Facts of a mesh that is well, broken in one place each.

use std::collections::BTreeMap;

use super::super::collect::{
    NamespaceFacts, NodeFacts, PartFacts, PodFacts, ProxySync, StrayFacts, TypeSync,
};
use super::*;
use crate::install::Progress;

/// The label of a node that says so.
fn system(name: &str) -> BTreeMap<String, String> {
    [("kubernetes.io/os".to_owned(), name.to_owned())].into()
}

fn well() -> Facts {
    let part = || PartFacts {
        progress: Progress {
            ready: 1,
            wanted: 1,
            settled: true,
        },
        version: Some(env!("CARGO_PKG_VERSION").into()),
        nodes: system("linux"),
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
            labels: system("linux"),
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
fn a_node_that_the_mesh_is_not_for_lacks_nothing() {
    let mut facts = well();
    facts.nodes.push(NodeFacts {
        name: "w1".into(),
        labels: system("windows"),
        ready: true,
        tainted: false,
    });
    assert_eq!(report(&facts).findings, []);
    facts.nodes[1].labels = system("linux");
    assert_eq!(report(&facts).findings.len(), 2, "agent and ztunnel");
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
                    labels: system("linux"),
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
    assert!(findings[0].wrong.starts_with("2 pods") && findings[0].wrong.contains("a among them"));
}
