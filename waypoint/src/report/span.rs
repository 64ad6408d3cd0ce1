//! Pure: a request that has ended, as a span with the fields that Istio's have.

use std::time::SystemTime;

use api::otlp;
use api::otlp::any_value::Value;
use expression::Moment;
use expression::format::Now;
use http::Version;

use super::Story;
use super::facts::Request;
use super::line::{cut_at, text};
use super::told::{TagValue, Tracing};

/// The span of a request.
pub(super) fn span(ended: &Request<'_>, tracing: &Tracing) -> Option<otlp::Span> {
    let story = ended.story;
    let kept = story.kept.as_deref()?;
    let trace = kept.trace.as_ref().filter(|trace| trace.sampled())?;
    let end = nanos(ended.ended);
    let parent = trace.parent();
    Some(otlp::Span {
        trace_id: trace.id().0.to_be_bytes().to_vec(),
        span_id: trace.span().0.to_be_bytes().to_vec(),
        trace_state: kept.state.clone().unwrap_or_default(),
        parent_span_id: parent.map_or_else(Vec::new, |it| it.0.to_be_bytes().to_vec()),
        name: name(story),
        kind: otlp::span::SpanKind::Server.into(),
        start_time_unix_nano: end.saturating_sub(ended.took.as_nanos() as u64),
        end_time_unix_nano: end,
        attributes: attributes(ended, tracing),
        status: Some(status(story)),
        flags: 1,
    })
}

/// `host:port/*`, as Istio names what a route is for.
fn name(story: &Story) -> String {
    match &story.to.service {
        Some(service) => format!("{}:{}/*", service.hostname, story.port),
        None => story.asked.host().unwrap_or("unknown").to_owned(),
    }
}

fn status(story: &Story) -> otlp::Status {
    use otlp::status::StatusCode;
    let failed = story.code.is_none_or(|code| code >= 500)
        || story.grpc.is_some_and(|code| code != 0)
        || story.flags.are_trouble();
    let code = if failed {
        StatusCode::Error
    } else {
        StatusCode::Unset
    };
    otlp::Status {
        message: match failed {
            true => story.detail.as_deref().unwrap_or_default().to_owned(),
            false => String::new(),
        },
        code: code.into(),
    }
}

fn attributes(ended: &Request<'_>, tracing: &Tracing) -> Vec<otlp::KeyValue> {
    let (story, moved) = (ended.story, ended.moved);
    let (asked, caller) = (&story.asked, &story.caller);
    let mut all = Vec::with_capacity(40);
    let mut say = |name: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            all.push(attribute(name, value));
        }
    };
    let host = asked.host().unwrap_or_default();
    let path = asked.path.as_ref().map_or("/", |path| path.as_str());
    let url = format!("http://{host}{}", cut_at(path, tracing.longest));
    say("component", Some("proxy"));
    say("http.url", Some(&url));
    say("http.method", Some(asked.method.as_str()));
    say("http.protocol", Some(version(asked.version)));
    say("user_agent", asked.user_agent.as_ref().and_then(text));
    say(
        "guid:x-request-id",
        asked.request_id.as_ref().and_then(text),
    );
    say(
        "peer.address",
        Some(&caller.client.address.ip().to_string()),
    );
    say("response_flags", Some(&story.flags.to_string()));
    say(
        "http.status_code",
        story.code.map(|it| it.to_string()).as_deref(),
    );
    say(
        "grpc.status_code",
        story.grpc.map(|it| it.to_string()).as_deref(),
    );
    say("request_size", Some(&moved.received.to_string()));
    say("response_size", Some(&moved.sent.to_string()));
    upstream(story, &mut say);
    say("ambit.route", story.route.as_deref());
    say("ambit.policy", story.policy.as_deref());
    say("ambit.detail", story.detail.as_deref());
    if story.code.is_none_or(|code| code >= 500) || story.flags.are_trouble() {
        say("error", Some("true"));
    }
    if tracing.istio_tags {
        istio(story, &mut say);
    }
    tags(ended, tracing, &mut say);
    all
}

/// Where it went.
fn upstream(story: &Story, say: &mut impl FnMut(&str, Option<&str>)) {
    if let Some(service) = &story.to.service {
        let cluster = format!("inbound-vip|{}|http|{}", story.port, service.hostname);
        say("upstream_cluster", Some(&cluster));
        say("upstream_cluster.name", Some(&cluster));
        say("destination.service", Some(&service.hostname));
    }
    say(
        "upstream_address",
        story.upstream.map(|it| it.to_string()).as_deref(),
    );
    if story.tries > 1 {
        say("retry.count", Some(&(story.tries - 1).to_string()));
    }
}

/// Both ends, as Istio says them.
fn istio(story: &Story, say: &mut impl FnMut(&str, Option<&str>)) {
    let source = &story.caller.side;
    say("istio.source_workload", Some(&source.workload));
    say("istio.source_namespace", Some(&source.namespace));
    say(
        "istio.source_canonical_service",
        Some(&source.canonical_service),
    );
    say(
        "istio.source_canonical_revision",
        Some(&source.canonical_revision),
    );
    say("istio.source_principal", Some(&source.principal));
    if let Some(to) = &story.to.workload {
        say("istio.destination_workload", Some(&to.workload_name));
        say("istio.canonical_service", Some(&to.canonical_name));
        say("istio.canonical_revision", Some(&to.canonical_revision));
        say("istio.namespace", Some(&to.namespace));
        say("istio.cluster_id", Some(&to.cluster));
    } else if let Some(service) = &story.to.service {
        say("istio.namespace", Some(&service.namespace));
    }
    if let Some(identity) = &story.to.identity {
        say("istio.mesh_id", Some(identity.trust_domain()));
    }
}

fn tags(ended: &Request<'_>, tracing: &Tracing, say: &mut impl FnMut(&str, Option<&str>)) {
    let Some(kept) = ended.story.kept.as_deref() else {
        return;
    };
    for tag in &tracing.tags {
        match &tag.value {
            TagValue::Fixed(value) => say(&tag.name, Some(value)),
            TagValue::Header(name, otherwise) => {
                let found = kept.request.get(name).and_then(text);
                say(&tag.name, found.or(otherwise.as_deref()));
            }
            TagValue::Format(format) => {
                let now = Now {
                    time: Moment(super::facts::nanos(ended.ended)),
                    hostname: "-",
                };
                let text = format.text(ended, now);
                say(&tag.name, Some(cut_at(&text, LONGEST)));
            }
        }
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// One that is a text.
pub(super) fn attribute(name: &str, value: impl Into<String>) -> otlp::KeyValue {
    otlp::KeyValue {
        key: name.to_owned(),
        value: Some(otlp::AnyValue {
            value: Some(Value::StringValue(value.into())),
        }),
    }
}

/// One that is a number.
pub(super) fn number(name: &str, value: i64) -> otlp::KeyValue {
    otlp::KeyValue {
        key: name.to_owned(),
        value: Some(otlp::AnyValue {
            value: Some(Value::IntValue(value)),
        }),
    }
}

/// Bytes of a tag.
const LONGEST: usize = 1_024;

/// Since 1970.
pub(super) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
