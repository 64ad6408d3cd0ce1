//! Connections that are not HTTP.

use std::time::Instant;

use waypoint::report::{Flag, TcpReport};

use super::scene::{Scene, logged};

fn begin(scene: &Scene) -> TcpReport {
    let mut report = scene.reports.connection(&scene.caller(), Instant::now());
    report.service(&scene.service, 5432);
    report
}

#[test]
fn a_connection_is_opened_moves_bytes_and_is_closed() {
    let scene = Scene::new();
    let lines = logged(|| {
        let mut report = begin(&scene);
        report.tried(&scene.endpoint, ([10, 0, 1, 7], 5432).into(), None);
        report.opened();
        report.moved(100, 20);
        assert_eq!(
            scene.total("istio_tcp_sent_bytes_total"),
            100.0,
            "while it is open"
        );
        report.moved(1, 2);
    });
    let total = |name: &str| scene.total(&format!("istio_tcp_{name}_total"));
    let found = [
        "connections_opened",
        "connections_closed",
        "sent_bytes",
        "received_bytes",
        "connections_failed",
    ]
    .map(total);
    assert_eq!(found, [1.0, 1.0, 101.0, 22.0, 0.0]);
    let (labels, _) = &scene.series("istio_tcp_connections_closed_total")[0];
    assert_eq!(
        (&*labels["request_protocol"], &*labels["response_flags"]),
        ("tcp", "-")
    );
    assert!(!labels.contains_key("response_code") && !labels.contains_key("grpc_response_status"));
    assert_eq!(lines.len(), 1);
    assert!(
        lines[0].starts_with("INFO access connection complete")
            && lines[0].contains("bytes_sent=101"),
        "{lines:?}"
    );
    assert!(scene.series("istio_requests_total").is_empty());
}

#[test]
fn what_was_never_opened_has_failed() {
    let scene = Scene::new();
    let lines = logged(|| {
        let mut report = begin(&scene);
        report.flag(Flag::NoHealthyUpstream);
        report.detail("no healthy upstream");
    });
    let (labels, count) = &scene.series("istio_tcp_connections_failed_total")[0];
    assert_eq!((&*labels["response_flags"], *count), ("UH", 1.0));
    assert_eq!(scene.total("istio_tcp_connections_opened_total"), 0.0);
    assert!(lines[0].starts_with("WARN access"), "{lines:?}");
}

#[test]
fn how_it_ended_is_told_of_its_end_only() {
    let scene = Scene::new();
    let mut report = begin(&scene);
    report.opened();
    report.flag(Flag::UpstreamReset);
    drop(report);
    let flags = |name: &str| scene.series(name)[0].0["response_flags"].clone();
    assert_eq!(flags("istio_tcp_connections_opened_total"), "-");
    assert_eq!(flags("istio_tcp_connections_closed_total"), "UR");
}
