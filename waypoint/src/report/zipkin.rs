//! Pure: spans as Zipkin has them (JSON of version 2).

use api::otlp;
use api::otlp::any_value::Value as Of;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::collector::Own;
use super::queue::Record;

/// A list of spans.
pub(super) fn json(records: &[Record], own: &Own, short: bool) -> Bytes {
    let spans = records.iter().filter_map(|record| match record {
        Record::Span(span) => Some(one(span, own, short)),
        Record::Line(_) => None,
    });
    Value::Array(spans.collect()).to_string().into()
}

fn one(span: &otlp::Span, own: &Own, short: bool) -> Value {
    let mut trace = hex(&span.trace_id);
    if short && trace.len() > 16 {
        trace = trace.split_off(trace.len() - 16);
    }
    let tags: Map<String, Value> = span.attributes.iter().filter_map(tag).collect();
    let (start, end) = (span.start_time_unix_nano, span.end_time_unix_nano);
    let mut shown = json!({
        "traceId": trace,
        "id": hex(&span.span_id),
        "kind": "SERVER",
        "name": span.name,
        "timestamp": start / 1_000,
        "duration": (end.saturating_sub(start) / 1_000).max(1),
        "localEndpoint": { "serviceName": own.service },
        "tags": tags,
    });
    if !span.parent_span_id.is_empty() {
        shown["parentId"] = hex(&span.parent_span_id).into();
    }
    shown
}

fn tag(attribute: &otlp::KeyValue) -> Option<(String, Value)> {
    match attribute.value.as_ref()?.value.as_ref()? {
        Of::StringValue(text) => Some((attribute.key.clone(), text.as_str().into())),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
