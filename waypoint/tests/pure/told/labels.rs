//! Labels of metrics.

use api::waypoint as wire;

use super::said::{Said, pass, sampled};
use crate::report::scene::{Scene, logged};

fn other(metric: &str, set: &[(&str, &str)], remove: &[&str]) -> wire::MetricOverride {
    let set = set.iter();
    wire::MetricOverride {
        metric: metric.to_owned(),
        disabled: None,
        set: set
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
            .collect(),
        remove: remove.iter().map(|it| (*it).to_owned()).collect(),
    }
}

#[test]
fn labels_are_set_and_removed_by_metric() {
    let mut said = Said::new();
    said.telemetry(
        "near",
        wire::Telemetry {
            metrics: vec![
                other(
                    "istio_requests_total",
                    &[
                        ("who", "request.headers['x-user']"),
                        ("path", "request.url_path"),
                        ("none", "request.referer"),
                        ("response_code", "string(response.code / 100) + 'xx'"),
                    ],
                    &["source_principal"],
                ),
                other("", &[], &["response_flags", "source_workload"]),
                wire::MetricOverride {
                    metric: "istio_request_bytes".to_owned(),
                    disabled: Some(true),
                    ..Default::default()
                },
            ],
            ..Default::default()
        },
    );
    let mut scene = Scene::new();
    logged(|| {
        pass(&scene, &said.told(), &sampled());
        scene.client.workload = Some(crate::report::scene::workload("other", "front"));
        pass(&scene, &said.told(), &sampled());
    });
    let requests = scene.series("istio_requests_total");
    assert_eq!(requests.len(), 2, "by canonical service: {requests:?}");
    let (labels, _) = &requests[0];
    for (name, expected) in [
        ("who", Some("anna")),
        ("path", Some("/cart")),
        ("none", Some("unknown")),
        ("response_code", Some("4xx")),
        ("source_principal", None),
        ("response_flags", None),
        ("source_workload", None),
        ("reporter", Some("waypoint")),
    ] {
        assert_eq!(labels.get(name).map(String::as_str), expected, "{name}");
    }
    let durations = scene.series("istio_request_duration_milliseconds_count");
    assert!(
        durations
            .iter()
            .all(|(labels, _)| labels.contains_key("source_principal")
                && !labels.contains_key("who")
                && !labels.contains_key("response_flags"))
    );
    assert!(scene.series("istio_request_bytes_count").is_empty());
}

#[test]
fn what_nothing_tells_apart_any_more_is_one_series() {
    let mut said = Said::new();
    said.telemetry(
        "near",
        wire::Telemetry {
            metrics: vec![other(
                "",
                &[],
                &["source_workload", "source_canonical_service", "source_app"],
            )],
            ..Default::default()
        },
    );
    let mut scene = Scene::new();
    logged(|| {
        pass(&scene, &said.told(), &sampled());
        scene.client.workload = Some(crate::report::scene::workload("other", "front"));
        pass(&scene, &said.told(), &sampled());
    });
    let requests = scene.series("istio_requests_total");
    assert_eq!(
        requests.iter().map(|(_, count)| *count).collect::<Vec<_>>(),
        [2.0]
    );
    let durations = scene.series("istio_request_duration_milliseconds_count");
    assert_eq!(
        durations
            .iter()
            .map(|(_, count)| *count)
            .collect::<Vec<_>>(),
        [2.0]
    );
}
