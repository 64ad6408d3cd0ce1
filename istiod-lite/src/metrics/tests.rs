//! Of what is counted, as it is read.

use super::*;

#[test]
fn names_are_istios_and_a_count_is_written_without_a_suffix() {
    let mut registry = Registry::new("pilot", "test");
    let metrics = Metrics::register(&mut registry);
    metrics.csrs.increment();
    metrics
        .pushes
        .get_or_create(&Of {
            r#type: Resource::wads,
        })
        .increment();
    metrics.expiries((2_000_000_000, 1_900_000_000));
    let text = registry.text().unwrap();
    for line in [
        "citadel_server_csr_count 1",
        "pilot_xds_pushes{type=\"wads\"} 1",
        "citadel_server_root_cert_expiry_timestamp 2000000000",
        "pilot_services 0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is missing in\n{text}"
        );
    }
    let suffixed = |line: &&str| line.contains("_total ") || line.contains("_total{");
    let mut suffixed = text.lines().filter(suffixed);
    // Those alone have it in Istio's names too.
    let theirs = |line: &str| {
        line.trim_start_matches("# HELP ")
            .trim_start_matches("# TYPE ")
            .starts_with("sidecar_injection_")
    };
    assert!(suffixed.all(theirs), "{text}");
}
