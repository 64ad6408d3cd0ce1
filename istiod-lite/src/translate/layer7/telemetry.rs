//! Telemetry: what is reported of requests, and to whom.
//!
//! One object becomes one resource of a rank: the mesh's, its namespace's, or that of what it is attached to. The
//! proxy lays them over each other. A waypoint is a server: what is for clients alone is left out.

use std::collections::BTreeMap;

use api::k8s::istio::telemetry::{
    AccessLogging, CustomTag, MetricsOverride, Mode, ModeMatch, ProviderRef, TagOperation,
    TelemetrySpec, Tracing,
};
use api::waypoint as wire;

use super::provider;

/// Of a spec, without its targets and rank; and what of it has no effect.
pub fn telemetry(spec: &TelemetrySpec) -> (wire::Telemetry, Vec<String>) {
    let mut faults = Vec::new();
    let logging = spec.access_logging.iter();
    let logging: Vec<_> = logging.filter(|it| is_ours(it.matches.as_ref())).collect();
    let tracing = spec.tracing.iter().find(|it| is_ours(it.matches.as_ref()));
    let metrics = spec.metrics.iter().flat_map(|it| {
        let elsewhere = names(&it.providers).any(|name| name != "prometheus");
        if elsewhere {
            faults.push("metrics.providers: only prometheus gets metrics".to_owned());
        }
        &it.overrides
    });
    let metrics: Vec<_> = metrics.filter_map(metric).collect();
    let made = wire::Telemetry {
        access_log: access_log(&logging),
        tracing: tracing.map(|it| self::tracing(it, &mut faults)),
        metrics,
        ..wire::Telemetry::default()
    };
    (made, faults)
}

fn is_ours(matches: Option<&ModeMatch>) -> bool {
    matches.is_none_or(|it| it.mode != Mode::Client)
}

fn names(providers: &[ProviderRef]) -> impl Iterator<Item = &str> {
    providers.iter().map(|it| it.name.as_str())
}

fn keys(providers: &[ProviderRef]) -> Vec<String> {
    names(providers).map(provider::key).collect()
}

/// Entries add up; one that is disabled takes away what it names, or all.
fn access_log(entries: &[&AccessLogging]) -> Option<wire::AccessLog> {
    if entries.is_empty() {
        return None;
    }
    let mut log = wire::AccessLog::default();
    let (off, on): (Vec<&AccessLogging>, Vec<_>) = entries
        .iter()
        .copied()
        .partition(|it| it.disabled == Some(true));
    let gone = |key: &String| off.iter().any(|it| keys(&it.providers).contains(key));
    for entry in &on {
        let keys = keys(&entry.providers).into_iter();
        log.providers.extend(keys.filter(|key| !gone(key)));
        if let Some(filter) = &entry.filter {
            log.filter.clone_from(&filter.expression);
        }
    }
    log.disabled = on.is_empty();
    Some(log)
}

fn tracing(it: &Tracing, faults: &mut Vec<String>) -> wire::Tracing {
    let mut tags = BTreeMap::new();
    for (name, tag) in &it.custom_tags {
        match value(tag) {
            Some(value) => {
                tags.insert(name.clone(), value);
            }
            None => faults.push(format!(
                "tracing.customTags.{name} has no effect: only literal and header are read"
            )),
        }
    }
    wire::Tracing {
        disabled: it.disable_span_reporting == Some(true),
        sampling: it.random_sampling_percentage,
        providers: keys(&it.providers),
        tags,
    }
}

fn value(tag: &CustomTag) -> Option<String> {
    let literal = tag.literal.as_ref().map(|it| it.value.clone());
    let header = tag.header.as_ref().map(|it| {
        let name = it.name.to_ascii_lowercase();
        let (name, otherwise) = (quoted(&name), quoted(&it.default_value));
        format!("${{{name} in request.headers ? request.headers[{name}] : {otherwise}}}")
    });
    literal.or(header)
}

/// A text in CEL.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn metric(it: &MetricsOverride) -> Option<wire::MetricOverride> {
    let matches = it.matches.clone().unwrap_or_default();
    if matches.mode == Some(Mode::Client) {
        return None;
    }
    let metric = matches.metric.as_deref().unwrap_or_default();
    let (set, remove): (Vec<_>, Vec<_>) = it
        .tag_overrides
        .iter()
        .partition(|(_, it)| it.operation == TagOperation::Upsert);
    let set = set.into_iter();
    Some(wire::MetricOverride {
        metric: matches
            .custom_metric
            .unwrap_or_else(|| named(metric).to_owned()),
        disabled: it.disabled == Some(true),
        set: set
            .map(|(label, it)| (label.clone(), it.value.clone()))
            .collect(),
        remove: remove.into_iter().map(|(label, _)| label.clone()).collect(),
    })
}

/// Istio's word for a metric, as it is exported; empty for all.
fn named(word: &str) -> &str {
    match word {
        "REQUEST_COUNT" => "istio_requests_total",
        "REQUEST_DURATION" => "istio_request_duration_milliseconds",
        "REQUEST_SIZE" => "istio_request_bytes",
        "RESPONSE_SIZE" => "istio_response_bytes",
        "TCP_OPENED_CONNECTIONS" => "istio_tcp_connections_opened_total",
        "TCP_CLOSED_CONNECTIONS" => "istio_tcp_connections_closed_total",
        "TCP_SENT_BYTES" => "istio_tcp_sent_bytes_total",
        "TCP_RECEIVED_BYTES" => "istio_tcp_received_bytes_total",
        "GRPC_REQUEST_MESSAGES" => "istio_request_messages_total",
        "GRPC_RESPONSE_MESSAGES" => "istio_response_messages_total",
        "ALL_METRICS" => "",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (wire::Telemetry, Vec<String>) {
        telemetry(&serde_saphyr::from_str(text).expect("a spec"))
    }

    #[test]
    fn logs_metrics_and_traces_are_told_as_they_are_for_servers() {
        let (made, faults) = read(
            "accessLogging:
- providers: [{name: file}]
  filter: {expression: response.code >= 400}
- match: {mode: CLIENT}
  disabled: true
tracing:
- providers: [{name: otel}]
  randomSamplingPercentage: 7.5
  customTags:
    team: {literal: {value: shop}}
    who: {header: {name: X-User, defaultValue: nobody}}
    home: {environment: {name: HOME}}
metrics:
- providers: [{name: prometheus}]
  overrides:
  - match: {metric: REQUEST_COUNT, mode: SERVER}
    tagOverrides: {host: {value: request.host}, source_app: {operation: REMOVE}}
  - match: {metric: REQUEST_SIZE, mode: CLIENT}
    disabled: true
",
        );
        let log = made.access_log.expect("a log");
        assert_eq!(log.providers, ["provider/file"]);
        assert_eq!(
            (log.disabled, log.filter.as_str()),
            (false, "response.code >= 400")
        );
        let tracing = made.tracing.expect("tracing");
        assert_eq!(tracing.sampling, Some(7.5));
        assert_eq!(tracing.tags["team"], "shop");
        assert_eq!(
            tracing.tags["who"],
            "${\"x-user\" in request.headers ? request.headers[\"x-user\"] : \"nobody\"}"
        );
        let [count] = made.metrics.as_slice() else {
            unreachable!("one is for servers")
        };
        assert_eq!(count.metric, "istio_requests_total");
        assert_eq!(count.set["host"], "request.host");
        assert_eq!(count.remove, ["source_app"]);
        assert!(
            faults.len() == 1 && faults[0].contains("home"),
            "{faults:?}"
        );
    }

    #[test]
    fn a_log_that_is_disabled_is_off_and_what_is_not_named_stays_unsaid() {
        let (made, _) = read("accessLogging: [{disabled: true}]");
        assert!(made.access_log.is_some_and(|it| it.disabled));
        assert_eq!(made.tracing, None);
        let (made, _) = read("tracing: [{disableSpanReporting: true}]");
        assert_eq!(made.access_log, None);
        assert!(made.tracing.is_some_and(|it| it.disabled));
    }
}
