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

/// Under any other name, or with another label, a dashboard shows nothing and an alert is silent.
#[test]
fn every_family_of_istios_has_its_name_and_labels() {
    let mut registry = Registry::new("pilot", "test");
    let metrics = Metrics::register(&mut registry);
    let of = Of {
        r#type: Resource::wds,
    };
    metrics.connected_as("1.0").inc();
    metrics.push_seconds.get_or_create(&of).observe(0.1);
    metrics.response_bytes.get_or_create(&of).observe(100.0);
    metrics.expired_nonces.get_or_create(&of).increment();
    let trigger = Trigger { r#type: "config" };
    metrics.push_triggers.get_or_create(&trigger).increment();
    let failure = Failure { error: "ttl" };
    metrics.sign_errors.get_or_create(&failure).increment();
    metrics.object_event(Some(Kind::Pod), "add");
    metrics.object_event(Some(Kind::AuthorizationPolicy), "add");
    let text = registry.text().unwrap();
    for beginning in [
        "pilot_info{version=\"",
        "pilot_xds{version=\"1.0\"} 1",
        "pilot_xds_pushes{type=\"wds\"} 0",
        "pilot_xds_push_time_count{type=\"wds\"} 1",
        "pilot_xds_config_size_bytes_count{type=\"wds\"} 1",
        "pilot_proxy_convergence_time_count 0",
        "pilot_debounce_time_count 0",
        "pilot_pushcontext_init_seconds_count 0",
        "pilot_push_triggers{type=\"config\"} 1",
        "pilot_k8s_reg_events{type=\"Pod\",event=\"add\"} 1",
        "pilot_k8s_cfg_events{type=\"AuthorizationPolicy\",event=\"add\"} 1",
        "pilot_total_xds_rejects{type=\"wds\"} 0",
        "pilot_total_xds_internal_errors 0",
        "pilot_xds_expired_nonce{type=\"wds\"} 1",
        "pilot_services 0",
        "citadel_server_csr_count 0",
        "citadel_server_success_cert_issuance_count 0",
        "citadel_server_authentication_failure_count 0",
        "citadel_server_csr_parsing_err_count 0",
        "citadel_server_id_extraction_err_count 0",
        "citadel_server_csr_sign_err_count{error=\"ttl\"} 1",
        "citadel_server_root_cert_expiry_timestamp ",
        "citadel_server_root_cert_expiry_seconds ",
        "citadel_server_cert_chain_expiry_timestamp ",
        "citadel_server_cert_chain_expiry_seconds ",
        "sidecar_injection_requests_total 0",
        "sidecar_injection_success_total 0",
        "sidecar_injection_skip_total 0",
        "sidecar_injection_failure_total 0",
    ] {
        assert!(
            text.lines().any(|found| found.starts_with(beginning)),
            "{beginning} is missing in\n{text}"
        );
    }
}

#[test]
fn however_many_versions_proxies_say_they_are_the_series_are_few() {
    let mut registry = Registry::new("pilot", "test");
    let metrics = Metrics::register(&mut registry);
    metrics.connected_as("").inc();
    let longest = "9".repeat(LONGEST_VERSION);
    for odd in ["a b", "\"} 1\n", "\u{fc}", &format!("{longest}9")] {
        metrics.connected_as(odd).inc();
    }
    metrics.connected_as(&longest).inc();
    for number in 0..1000 {
        metrics.connected_as(&format!("1.{number}")).inc();
    }
    // One that has a series keeps it.
    metrics.connected_as("1.0").inc();
    let text = registry.text().unwrap();
    let series = text.lines().filter(|line| line.starts_with("pilot_xds{"));
    assert_eq!(series.count(), MOST_VERSIONS + 2, "{text}");
    let others = 4 + 1000 - (MOST_VERSIONS - 1);
    for (version, count) in [
        ("unknown", 1),
        (longest.as_str(), 1),
        ("1.0", 2),
        ("other", others),
    ] {
        let line = format!("pilot_xds{{version=\"{version}\"}} {count}");
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
}
