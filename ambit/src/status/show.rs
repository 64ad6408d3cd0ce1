//! The report, for a person.

use super::judge::{Report, Severity};
use crate::output::columns;

/// Tables, then what is wrong; good news in one line.
pub(super) fn table(report: &Report) -> String {
    let mut text = String::new();
    if !report.parts.is_empty() {
        text += &parts(report);
    }
    if !report.namespaces.is_empty() {
        text += &namespaces(report);
    }
    if report.findings.is_empty() {
        text.push_str("nothing is wrong\n");
    }
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Error => "ERROR",
            Severity::Warning => "warning",
        };
        text += &format!(
            "{severity}: {} {}\n    {}\n",
            finding.subject, finding.wrong, finding.remedy
        );
    }
    text
}

fn parts(report: &Report) -> String {
    let mut text = columns(
        &["PART", "READY", "VERSION"],
        report.parts.iter().map(|row| {
            vec![
                row.part.to_string(),
                format!("{}/{}", row.ready, row.wanted),
                row.version.clone(),
            ]
        }),
    );
    text.push('\n');
    text += &columns(
        &["NODE", "POD", "READY", "SYNC", "RESTARTS", "VERSION"],
        report.pods.iter().map(|row| {
            let ready = if row.ready { "yes" } else { "NO" };
            vec![
                row.node.clone(),
                row.name.clone(),
                ready.into(),
                dash(&row.sync),
                row.restarts.to_string(),
                row.version.clone(),
            ]
        }),
    );
    text.push('\n');
    text
}

fn namespaces(report: &Report) -> String {
    let mut text = columns(
        &["NAMESPACE", "ENROLLED", "CAPTURED", "WAITING", "OUTSIDE"],
        report.namespaces.iter().map(|row| {
            let enrolled = if row.enrolled { "yes" } else { "no" };
            vec![
                row.name.clone(),
                enrolled.into(),
                row.captured.to_string(),
                row.waiting.to_string(),
                row.outside.to_string(),
            ]
        }),
    );
    text.push('\n');
    text
}

fn dash(text: &str) -> String {
    if text.is_empty() {
        "-".into()
    } else {
        text.into()
    }
}
