//! Pure: lines for those who want them in another form than ours.

use std::sync::OnceLock;
use std::time::SystemTime;

use api::otlp;
use expression::format::{Format, Now};
use expression::{Moment, Subject, Value};
use serde_json::Value as Json;

use super::facts::nanos;
use super::queue::Record;
use super::span::{attribute, number};
use super::told::{Log, LogTo};
use super::trace::{SpanId, TraceId};

/// What becomes of a line.
pub(super) enum Written {
    /// It goes into the process's log.
    Line(String),
    /// It has been handed over, or nobody wants it.
    Done,
}

/// Tells one log of one request.
pub(super) fn tell(
    log: &Log,
    subject: &dyn Subject,
    trace: Option<(TraceId, Option<SpanId>)>,
    ended: SystemTime,
) -> Written {
    if log
        .filter
        .as_ref()
        .is_some_and(|filter| !filter.holds(subject))
    {
        return Written::Done;
    }
    let now = Now {
        time: Moment(nanos(ended)),
        hostname: hostname(),
    };
    match &log.to {
        LogTo::Text(format) => {
            let mut line = format.text(subject, now);
            if !line.ends_with('\n') {
                line.push('\n');
            }
            Written::Line(line)
        }
        LogTo::Json(template) => Written::Line(format!("{}\n", template.json(subject, now))),
        LogTo::Collector {
            queue,
            body,
            attributes,
        } => {
            let record = record(subject, body, attributes, trace, now);
            queue.put(Record::Line(Box::new(record)));
            Written::Done
        }
    }
}

fn record(
    subject: &dyn Subject,
    body: &Format,
    attributes: &[(Box<str>, Format)],
    trace: Option<(TraceId, Option<SpanId>)>,
    now: Now<'_>,
) -> otlp::LogRecord {
    let began = match subject.attribute(expression::Attribute::Time) {
        Value::Time(nanos) => u64::try_from(nanos).unwrap_or(0),
        _ => 0,
    };
    let all = attributes
        .iter()
        .filter_map(|(name, format)| match format.json(subject, now) {
            Json::Null => None,
            Json::String(text) => Some(attribute(name, text)),
            Json::Number(it) => Some(number(name, it.as_i64()?)),
            other => Some(attribute(name, other.to_string())),
        });
    let text = body.text(subject, now);
    otlp::LogRecord {
        time_unix_nano: began,
        observed_time_unix_nano: u64::try_from(now.time.0).unwrap_or(0),
        severity_number: otlp::SeverityNumber::Info.into(),
        severity_text: "INFO".to_owned(),
        body: Some(otlp::AnyValue {
            value: Some(otlp::any_value::Value::StringValue(
                text.trim_end().to_owned(),
            )),
        }),
        attributes: all.collect(),
        flags: u32::from(matches!(trace, Some((_, Some(_))))),
        trace_id: trace.map_or_else(Vec::new, |(id, _)| id.0.to_be_bytes().to_vec()),
        span_id: match trace {
            Some((_, Some(span))) => span.0.to_be_bytes().to_vec(),
            _ => Vec::new(),
        },
    }
}

fn hostname() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let name = nix::unistd::gethostname().ok();
        let name = name.and_then(|it| it.into_string().ok());
        name.unwrap_or_else(|| "-".to_owned())
    })
}
