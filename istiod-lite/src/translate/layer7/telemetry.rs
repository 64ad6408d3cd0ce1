//! Telemetry: what is reported of requests, and to whom.
//!
//! One object becomes one resource of a rank: the mesh's, its namespace's, or that of what it is attached to. The
//! proxy lays them over each other. A waypoint is a server: what is for clients alone is left out.

use std::collections::BTreeMap;

use api::k8s::istio::telemetry::{
    AccessLogging, CustomTag, MetricsOverride, Mode, ModeMatch, NamedTag, ProviderRef,
    TagOperation, TelemetrySpec, Tracing,
};
use api::waypoint as wire;
use expression::cel::Expression;
use expression::format::Format;
use wire::span_tag::Value;

use super::provider;
use crate::world::Reports;

/// Of a spec, without its targets and rank; and what of it has no effect.
pub fn telemetry(spec: &TelemetrySpec) -> (wire::Telemetry, Vec<String>) {
    let mut faults = Vec::new();
    let logging = spec.access_logging.iter();
    let logging: Vec<_> = logging.filter(|it| is_ours(it.matches.as_ref())).collect();
    let tracing = spec.tracing.iter();
    let tracing: Vec<_> = tracing.filter(|it| is_ours(it.matches.as_ref())).collect();
    let metrics = spec.metrics.iter().flat_map(|it| {
        let elsewhere = names(&it.providers).any(|name| name != "prometheus");
        if elsewhere {
            faults.push("metrics.providers: only prometheus gets metrics".to_owned());
        }
        &it.overrides
    });
    let metrics: Vec<_> = metrics.collect();
    let metrics = metrics.into_iter();
    let metrics = metrics.filter_map(|it| metric(it, &mut faults)).collect();
    let made = wire::Telemetry {
        access_log: access_log(&logging, &mut faults),
        tracing: self::tracing(&tracing, &mut faults),
        metrics,
        ..wire::Telemetry::default()
    };
    (made, faults)
}

/// What the mesh's settings say; none if they say nothing.
pub fn defaults(reports: &Reports) -> Option<wire::Telemetry> {
    let keys = |names: &[String]| names.iter().map(|it| provider::key(it)).collect::<Vec<_>>();
    let (logging, tracing) = (keys(&reports.logging), keys(&reports.tracing));
    if logging.is_empty() && tracing.is_empty() && reports.sampling.is_none() {
        return None;
    }
    Some(wire::Telemetry {
        defaults: true,
        access_log: (!logging.is_empty()).then(|| wire::AccessLog {
            rules: vec![wire::LogRule {
                providers: logging,
                ..wire::LogRule::default()
            }],
        }),
        tracing: Some(wire::Tracing {
            sampling: reports.sampling,
            providers: tracing,
            ..wire::Tracing::default()
        }),
        ..wire::Telemetry::default()
    })
}

/// Names of those who get spans or lines.
pub fn providers(spec: &TelemetrySpec) -> impl Iterator<Item = &str> {
    let tracing = spec.tracing.iter().map(|it| &it.providers);
    let logging = spec.access_logging.iter().map(|it| &it.providers);
    tracing.chain(logging).flat_map(|it| names(it))
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

/// Which providers get lines, in the order of the object.
fn access_log(entries: &[&AccessLogging], faults: &mut Vec<String>) -> Option<wire::AccessLog> {
    if entries.is_empty() {
        return None;
    }
    let mut rule = |it: &&AccessLogging| {
        let filter = it.filter.as_ref().map(|it| it.expression.as_str());
        let read = filter.map(Expression::read);
        if let Some(Err(why)) = &read {
            faults.push(format!(
                "accessLogging.filter.expression: {why}; every request is logged"
            ));
        }
        let filter = filter.filter(|_| matches!(read, Some(Ok(_))));
        wire::LogRule {
            providers: keys(&it.providers),
            disabled: it.disabled == Some(true),
            filter: filter.unwrap_or_default().to_owned(),
        }
    };
    Some(wire::AccessLog {
        rules: entries.iter().map(&mut rule).collect(),
    })
}

/// Entries are laid over each other, as objects are.
fn tracing(entries: &[&Tracing], faults: &mut Vec<String>) -> Option<wire::Tracing> {
    let mut made = wire::Tracing::default();
    for it in entries {
        made.disabled = it.disable_span_reporting.or(made.disabled);
        made.sampling = it.random_sampling_percentage.or(made.sampling);
        made.istio_tags = it.enable_istio_tags.or(made.istio_tags);
        made.silent = it.disable_context_propagation.or(made.silent);
        if !it.providers.is_empty() {
            made.providers = keys(&it.providers);
        }
        if !it.custom_tags.is_empty() {
            let tags = it.custom_tags.iter();
            let tags = tags.filter_map(|(name, tag)| span_tag(name, tag, faults));
            made.tags = Some(wire::SpanTags {
                tags: tags.collect(),
            });
        }
    }
    (!entries.is_empty()).then_some(made)
}

fn span_tag(name: &str, tag: &CustomTag, faults: &mut Vec<String>) -> Option<wire::SpanTag> {
    let named = |it: &NamedTag| (it.name.clone(), it.default_value.clone());
    let (value, otherwise) = match tag {
        CustomTag {
            literal: Some(it), ..
        } => (Value::Literal(it.value.clone()), String::new()),
        CustomTag {
            header: Some(it), ..
        } => {
            let (name, otherwise) = named(it);
            (Value::Header(name.to_ascii_lowercase()), otherwise)
        }
        CustomTag {
            environment: Some(it),
            ..
        } => {
            let (name, otherwise) = named(it);
            (Value::Environment(name), otherwise)
        }
        CustomTag {
            formatter: Some(it),
            ..
        } => (Value::Format(it.value.clone()), String::new()),
        _ => {
            faults.push(format!(
                "tracing.customTags.{name} has no effect: it says nothing"
            ));
            return None;
        }
    };
    if let Value::Format(text) = &value
        && let Err(why) = Format::read(text)
    {
        faults.push(format!("tracing.customTags.{name} has no effect: {why}"));
        return None;
    }
    Some(wire::SpanTag {
        name: name.to_owned(),
        value: Some(value),
        otherwise,
    })
}

fn metric(it: &MetricsOverride, faults: &mut Vec<String>) -> Option<wire::MetricOverride> {
    let matches = it.matches.clone().unwrap_or_default();
    if matches.mode == Some(Mode::Client) {
        return None;
    }
    let metric = matches.metric.as_deref().unwrap_or_default();
    let (set, remove): (Vec<_>, Vec<_>) = it
        .tag_overrides
        .iter()
        .partition(|(_, it)| it.operation == TagOperation::Upsert);
    let mut said = BTreeMap::new();
    for (label, it) in set {
        let read = Expression::read(&it.value).map_err(|why| why.to_string());
        let read = read.and_then(|_| match is_label(label) {
            true => Ok(()),
            false => Err("that is no name of a label".to_owned()),
        });
        match read {
            Ok(()) => {
                said.insert(label.clone(), it.value.clone());
            }
            Err(why) => faults.push(format!(
                "metrics.overrides.tagOverrides.{label} has no effect: {why}"
            )),
        }
    }
    Some(wire::MetricOverride {
        metric: matches
            .custom_metric
            .unwrap_or_else(|| named(metric).to_owned()),
        disabled: it.disabled,
        set: said,
        remove: remove.into_iter().map(|(label, _)| label.clone()).collect(),
    })
}

/// As Prometheus has them; `le` is its own.
fn is_label(name: &str) -> bool {
    let mut letters = name.chars();
    let first = letters.next();
    first.is_some_and(|it| it.is_ascii_alphabetic() || it == '_')
        && letters.all(|it| it.is_ascii_alphanumeric() || it == '_')
        && !name.starts_with("__")
        && name.len() <= 128
        && name != "le"
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
    nothing: {}
    both: {formatter: {value: '%REQ(A)% %PROTOCOL%'}}
    wrong: {formatter: {value: '%NOBODY%'}}
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
        let [rule] = log.rules.as_slice() else {
            unreachable!("one is for servers")
        };
        assert_eq!(rule.providers, ["provider/file"]);
        assert_eq!(
            (rule.disabled, rule.filter.as_str()),
            (false, "response.code >= 400")
        );
        let tracing = made.tracing.expect("tracing");
        assert_eq!(tracing.sampling, Some(7.5));
        let tags = tracing.tags.expect("tags").tags;
        let tag = |name: &str| {
            let tag = tags.iter().find(|tag| tag.name == name);
            tag.and_then(|tag| Some((tag.value.clone()?, tag.otherwise.as_str())))
        };
        let of = |value, otherwise| Some((value, otherwise));
        assert_eq!(tag("team"), of(Value::Literal("shop".to_owned()), ""));
        let header = Value::Header("x-user".to_owned());
        assert_eq!(tag("who"), of(header, "nobody"));
        assert_eq!(tag("home"), of(Value::Environment("HOME".to_owned()), ""));
        let [count] = made.metrics.as_slice() else {
            unreachable!("one is for servers")
        };
        assert_eq!(count.metric, "istio_requests_total");
        assert_eq!(count.set["host"], "request.host");
        assert_eq!(count.remove, ["source_app"]);
        let format = Value::Format("%REQ(A)% %PROTOCOL%".to_owned());
        assert_eq!(tag("both"), of(format, ""));
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("nothing") && faults[1].contains("%NOBODY%"));
    }

    #[test]
    fn what_cannot_be_read_is_said_and_left_out() {
        let (made, faults) = read(
            "accessLogging: [{filter: {expression: response.cod == 1}}]
metrics:
- overrides:
  - tagOverrides: {ok: {value: \"'a'\"}, le: {value: \"'a'\"}, bad: {value: '1 +'}, b-c: {value: '1'}}
",
        );
        assert_eq!(
            made.access_log.map(|it| it.rules[0].filter.clone()),
            Some(String::new())
        );
        assert_eq!(made.metrics[0].set.keys().collect::<Vec<_>>(), ["ok"]);
        assert_eq!(faults.len(), 4, "{faults:?}");
        let said = "response.cod is not known; every request is logged";
        assert!(faults.iter().any(|it| it.contains(said)), "{faults:?}");
    }

    #[test]
    fn what_the_mesh_says_is_before_all_objects() {
        assert_eq!(defaults(&Reports::default()), None);
        let made = defaults(&Reports {
            tracing: vec!["otel".to_owned()],
            sampling: Some(5.0),
            ..Reports::default()
        });
        let made = made.expect("something is said");
        assert!(made.defaults && made.access_log.is_none());
        let tracing = made.tracing.expect("somebody gets spans");
        assert_eq!((tracing.disabled, tracing.sampling), (None, Some(5.0)));
        assert_eq!(tracing.providers, ["provider/otel"]);
    }

    #[test]
    fn a_log_that_is_disabled_is_off_and_what_is_not_named_stays_unsaid() {
        let (made, _) = read("accessLogging: [{disabled: true}]");
        assert!(made.access_log.is_some_and(|it| it.rules[0].disabled));
        assert_eq!(made.tracing, None);
        let (made, _) = read("tracing: [{disableSpanReporting: true}]");
        assert_eq!(made.access_log, None);
        assert_eq!(made.tracing.and_then(|it| it.disabled), Some(true));
    }
}
