//! Who gets lines, of which requests, in which form.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::waypoint as wire;
use expression::cel::{Expression, Headers};
use expression::format::{Format, Template};
use serde_json::Value as Json;
use wire::provider::Kind as Of;

use super::Known;
use crate::report::{Collector, Line, Log, LogTo};

/// As Istio has it: the last object that names providers says which there are; each entry then adds those that it names
/// (or the one before it named), or takes them away.
pub(super) fn compile(found: &[&wire::Telemetry], known: &Known<'_>) -> (Line, Box<[Log]>) {
    let (defaults, found): (Vec<_>, Vec<_>) = found.iter().partition(|it| it.defaults);
    let rules = |all: &[&wire::Telemetry]| -> Vec<Vec<wire::LogRule>> {
        let logs = all.iter().filter_map(|it| it.access_log.as_ref());
        logs.map(|log| log.rules.clone()).collect()
    };
    let mut usual = named(rules(&defaults).iter().flatten());
    if usual.is_empty() {
        usual.push(OWN.to_owned());
    }
    let levels = rules(&found);
    let mut chosen: BTreeMap<String, String> = BTreeMap::new();
    if levels.is_empty() {
        chosen.extend(usual.into_iter().map(|key| (key, String::new())));
        return made(&chosen, known);
    }
    let mut names = levels.iter().map(|level| named(level.iter()));
    let there = names.rfind(|names| !names.is_empty());
    let there = there.unwrap_or_else(|| usual.clone());
    let mut before = usual;
    for rule in levels.iter().flatten() {
        if !rule.providers.is_empty() {
            before.clone_from(&rule.providers);
        }
        for key in before.iter().filter(|key| there.contains(key)) {
            if rule.disabled {
                chosen.remove(key);
            } else {
                chosen.insert(key.clone(), rule.filter.clone());
            }
        }
    }
    made(&chosen, known)
}

fn named<'a>(rules: impl Iterator<Item = &'a wire::LogRule>) -> Vec<String> {
    let mut names: Vec<String> = rules.flat_map(|rule| rule.providers.clone()).collect();
    names.sort();
    names.dedup();
    names
}

/// `chosen`: providers and their filters.
fn made(chosen: &BTreeMap<String, String>, known: &Known<'_>) -> (Line, Box<[Log]>) {
    let (mut line, mut logs) = (Line::Never, Vec::new());
    for (key, filter) in chosen {
        // One that nobody can read lets all pass: a line too many harms less than one that is missing.
        let filter = Expression::read(filter).ok();
        let to = match known.logs(key) {
            Some(Of::LogFile(wire)) => file(wire).ok().flatten(),
            Some(Of::LogCollector(wire)) => collector(key, wire, known),
            None if key == OWN => None,
            _ => continue,
        };
        match (to, known.logs(key)) {
            (Some(to), _) => logs.push(Log { filter, to }),
            (None, Some(Of::LogCollector(_))) => {}
            (None, _) => line = filter.map_or(Line::Each, Line::When),
        }
    }
    (line, logs.into())
}

/// Its form; none: as we write lines.
pub(super) fn file(wire: &wire::LogFile) -> Result<Option<LogTo>, String> {
    if !wire.template.is_empty() {
        let template: Json = serde_json::from_str(&wire.template)
            .map_err(|why| format!("the template is no JSON: {why}"))?;
        return Template::read(&template).map(|it| Some(LogTo::Json(it)));
    }
    if wire.json && !wire.labels.is_empty() {
        let labels = wire.labels.iter();
        let labels = labels.map(|(name, text)| (name.clone(), Json::from(text.as_str())));
        return Template::read(&Json::Object(labels.collect())).map(|it| Some(LogTo::Json(it)));
    }
    if wire.json && wire.format.is_empty() {
        let labels = ATTRIBUTES.into_iter();
        let labels = labels.map(|(name, text)| (name.to_owned(), Json::from(text)));
        return Template::read(&Json::Object(labels.collect())).map(|it| Some(LogTo::Json(it)));
    }
    if wire.format.is_empty() {
        return Ok(None);
    }
    Format::read(&wire.format).map(|it| Some(LogTo::Text(it)))
}

fn collector(key: &str, wire: &wire::LogCollector, known: &Known<'_>) -> Option<LogTo> {
    let collector = Collector::of_logs(&Arc::from(key), wire).ok()?;
    let (body, attributes) = record(wire).ok()?;
    Some(LogTo::Collector {
        queue: known.collectors.of(collector),
        body,
        attributes,
    })
}

/// Attributes of a record.
type Attributes = Box<[(Box<str>, Format)]>;

/// A record's body and attributes.
pub(super) fn record(wire: &wire::LogCollector) -> Result<(Format, Attributes), String> {
    let body = match wire.body.as_str() {
        "" => BODY,
        body => body,
    };
    let read = |(name, text): (&str, &str)| {
        let format = Format::read(text).map_err(|why| format!("{name}: {why}"))?;
        Ok((Box::from(name), format))
    };
    let attributes: Result<Vec<_>, String> = if wire.attributes.is_empty() {
        ATTRIBUTES.into_iter().map(read).collect()
    } else {
        let said = wire.attributes.iter();
        said.map(|(name, text)| read((name, text))).collect()
    };
    Ok((Format::read(body)?, attributes?.into()))
}

/// Headers that lines ask for.
pub(super) fn headers(line: &Line, logs: &[Log]) -> Headers {
    let mut asked = match line {
        Line::When(condition) => condition.headers(),
        Line::Each | Line::Never => Headers::default(),
    };
    for log in logs {
        if let Some(filter) = &log.filter {
            asked.merge(filter.headers());
        }
        match &log.to {
            LogTo::Text(format) => asked.merge(format.headers()),
            LogTo::Json(template) => asked.merge(template.headers()),
            LogTo::Collector {
                body, attributes, ..
            } => {
                asked.merge(body.headers());
                let all = attributes.iter();
                all.for_each(|(_, format)| asked.merge(format.headers()));
            }
        }
    }
    asked
}

/// The provider that Istio knows without being told: the process's own log.
const OWN: &str = "provider/envoy";

/// A line as Istio's proxies write it.
const BODY: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
    %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
    %REQUESTED_SERVER_NAME% %ROUTE_NAME%";

/// What Istio's JSON has, and what only we know: policy, both identities.
const ATTRIBUTES: [(&str, &str); 29] = [
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    (
        "upstream_service_time",
        "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    ),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("trace_id", "%TRACE_ID%"),
    ("grpc_status", "%GRPC_STATUS_NUMBER%"),
    ("policy", "%POLICY%"),
    ("source_identity", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("destination_identity", "%UPSTREAM_PEER_URI_SAN%"),
];
