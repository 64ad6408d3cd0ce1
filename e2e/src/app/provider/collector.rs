//! What is told of requests is counted, under keys that a test can ask for.
//!
//! A span counts under `span:PATH`, the path of its request, and once more for each of its attributes under `span:PATH:NAME=VALUE`; a line of a
//! log under `line:TEXT` and `line:TEXT:NAME=VALUE`.

use api::otlp::{
    AnyValue, ExportLogsServiceRequest, ExportTraceServiceRequest, KeyValue, any_value::Value,
};
use http::Uri;
use prost::Message;

use crate::serve::Seen;

/// Nothing is said to it.
pub(super) fn spans(seen: &Seen, message: &[u8]) -> Option<Vec<u8>> {
    let told = ExportTraceServiceRequest::decode(message).ok()?;
    let all = told
        .resource_spans
        .into_iter()
        .flat_map(|of| of.scope_spans);
    for span in all.flat_map(|of| of.spans) {
        let url = span.attributes.iter().find(|it| it.key == "http.url");
        let url: Uri = shown(url?.value.as_ref()).parse().ok()?;
        enter(seen, &format!("span:{}", url.path()), &span.attributes);
    }
    Some(Vec::new())
}

/// The same.
pub(super) fn lines(seen: &Seen, message: &[u8]) -> Option<Vec<u8>> {
    let told = ExportLogsServiceRequest::decode(message).ok()?;
    let all = told.resource_logs.into_iter().flat_map(|of| of.scope_logs);
    for line in all.flat_map(|of| of.log_records) {
        let text = shown(line.body.as_ref());
        enter(seen, &format!("line:{text}"), &line.attributes);
    }
    Some(Vec::new())
}

fn enter(seen: &Seen, what: &str, attributes: &[KeyValue]) {
    seen.add(what, 1);
    for attribute in attributes {
        let value = shown(attribute.value.as_ref());
        seen.add(&format!("{what}:{}={value}", attribute.key), 1);
    }
}

fn shown(value: Option<&AnyValue>) -> String {
    match value.and_then(|it| it.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(yes)) => yes.to_string(),
        _ => String::new(),
    }
}
