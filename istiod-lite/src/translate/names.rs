//! The names under which telemetry shows a workload.

use api::k8s::labels;

use super::{Labels, value};

/// Canonical name: what people call the application.
pub fn canonical(labels: &Labels, workload: &str) -> String {
    [labels::CANONICAL_NAME, labels::APP_NAME, labels::APP]
        .into_iter()
        .find_map(|label| value(labels, label))
        .unwrap_or(workload)
        .to_owned()
}

/// Canonical revision: which version of it.
pub fn revision(labels: &Labels) -> String {
    [
        labels::CANONICAL_REVISION,
        labels::APP_VERSION,
        labels::VERSION,
    ]
    .into_iter()
    .find_map(|label| value(labels, label))
    .unwrap_or("latest")
    .to_owned()
}
