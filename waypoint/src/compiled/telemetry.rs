//! What is told of a service's requests: Telemetry objects, the nearer ones laid over those of the mesh, and these over
//! what the mesh's settings say.
//!
//! | part | of several |
//! |---|---|
//! | traces | each field for itself, the nearest counts |
//! | logs | the nearest that names providers says which; disabled ones are taken away (`logs`) |
//! | metrics | each metric and label for itself, the nearest counts |

mod logs;

use std::sync::Arc;

use api::waypoint as wire;
use expression::cel::{Expression, Headers};
use expression::format::Format;
use http::HeaderName;
use wire::provider::Kind as Of;
use wire::resource::Kind;
use wire::span_tag::Value;
use wire::trace_collector::Protocol;

use crate::report::trace::Form;
use crate::report::{
    Collector, Collectors, Keeps, Override, Queue, Shape, Tag, TagValue, Told, Tracing,
};
use crate::state::{Held, Resources};

/// `all`: everything that is said of a service.
pub(super) fn compile(all: &[&Arc<Held>], said: &Resources, collectors: &Collectors) -> Arc<Told> {
    let mut found: Vec<(&Held, &wire::Telemetry)> = all
        .iter()
        .filter_map(|held| match &held.resource.kind {
            Some(Kind::Telemetry(telemetry)) => Some((&***held, telemetry)),
            _ => None,
        })
        .collect();
    // Of equals the oldest comes last, and stays.
    found.sort_by_key(|(held, telemetry)| {
        let origin = held.resource.origin.as_ref();
        let created = origin.map_or(0, |origin| origin.created);
        (
            !telemetry.defaults,
            telemetry.rank,
            std::cmp::Reverse((created, held.key.clone())),
        )
    });
    let found: Vec<&wire::Telemetry> = found.into_iter().map(|(_, it)| it).collect();
    let known = Known { said, collectors };
    let (line, logs) = logs::compile(&found, &known);
    let metrics = shape(&found);
    let mut asked = metrics.as_ref().map(Shape::headers).unwrap_or_default();
    asked.merge(logs::headers(&line, &logs));
    Arc::new(Told {
        line,
        logs,
        tracing: tracing(&found, &known),
        metrics: metrics.map(Arc::new),
        request: Keeps::of(&asked.request),
        response: Keeps::of(&asked.response),
        trailers: asked.trailers,
    })
}

/// Who reports can be handed to.
struct Known<'a> {
    said: &'a Resources,
    collectors: &'a Collectors,
}

impl Known<'_> {
    fn provider(&self, key: &str) -> Option<(&Arc<str>, &Of)> {
        let held = self.said.get(key)?;
        match &held.resource.kind {
            Some(Kind::Provider(provider)) => Some((&held.key, provider.kind.as_ref()?)),
            _ => None,
        }
    }

    /// Who gets lines.
    fn logs(&self, key: &str) -> Option<&Of> {
        self.provider(key).map(|(_, of)| of)
    }

    fn traces(&self, key: &str) -> Option<(Arc<Queue>, &wire::TraceCollector)> {
        let (key, Of::TraceCollector(wire)) = self.provider(key)? else {
            return None;
        };
        let collector = Collector::of_traces(key, wire).ok()?;
        Some((self.collectors.of(collector), wire))
    }
}

/// What is wrong with a provider that reports are handed to.
pub(super) fn check(provider: &wire::Provider) -> Result<(), String> {
    let key = Arc::from("");
    match &provider.kind {
        Some(Of::TraceCollector(it)) => Collector::of_traces(&key, it).map(drop),
        Some(Of::LogCollector(it)) => {
            Collector::of_logs(&key, it)?;
            logs::record(it).map(drop)
        }
        Some(Of::LogFile(it)) => logs::file(it).map(drop),
        _ => Ok(()),
    }
}

/// What is wrong with a Telemetry object, as far as the proxy reads it.
pub(super) fn check_said(telemetry: &wire::Telemetry) -> Result<(), String> {
    let rules = telemetry.access_log.iter().flat_map(|it| &it.rules);
    for rule in rules.filter(|it| !it.filter.is_empty()) {
        let read = Expression::read(&rule.filter);
        read.map_err(|why| format!("filter {:?}: {why}", rule.filter))?;
    }
    Ok(())
}

/// What is other about metrics. An expression that cannot be read is left out, which the object's status says.
fn shape(found: &[&wire::Telemetry]) -> Option<Shape> {
    Shape::of(found.iter().flat_map(|it| &it.metrics).map(|it| {
        Override {
            metric: &it.metric,
            disabled: it.disabled,
            set: it
                .set
                .iter()
                .filter_map(|(label, value)| Some((label.as_str(), Expression::read(value).ok()?)))
                .collect(),
            removed: it.remove.iter().map(String::as_str).collect(),
        }
    }))
}

fn tracing(found: &[&wire::Telemetry], known: &Known<'_>) -> Option<Tracing> {
    let mut laid = wire::Tracing::default();
    for it in found.iter().filter_map(|it| it.tracing.as_ref()) {
        laid.disabled = it.disabled.or(laid.disabled);
        laid.sampling = it.sampling.or(laid.sampling);
        laid.istio_tags = it.istio_tags.or(laid.istio_tags);
        laid.silent = it.silent.or(laid.silent);
        if !it.providers.is_empty() {
            laid.providers.clone_from(&it.providers);
        }
        if it.tags.is_some() {
            laid.tags.clone_from(&it.tags);
        }
    }
    if laid.disabled == Some(true) {
        return None;
    }
    // As Istio has it: one of them, the first; without one nobody traces.
    let (collector, wire) = known.traces(laid.providers.first()?)?;
    let tags = laid.tags.iter().flat_map(|it| &it.tags);
    let tags: Box<[Tag]> = tags.filter_map(tag).collect();
    let asked = asked(&tags);
    Some(Tracing {
        sampling: laid.sampling.unwrap_or(USUAL),
        form: match wire.protocol() {
            Protocol::Zipkin => Form::B3Headers,
            _ => Form::W3c,
        },
        silent: laid.silent == Some(true),
        istio_tags: laid.istio_tags != Some(false),
        longest: match wire.longest_tag {
            0 => 256,
            longest => usize::try_from(longest.min(MOST)).unwrap_or(256),
        },
        request: Keeps::of(&asked.request),
        response: Keeps::of(&asked.response),
        trailers: asked.trailers,
        tags,
        collector,
    })
}

/// Headers that tags ask for.
fn asked(tags: &[Tag]) -> Headers {
    let mut asked = Headers::default();
    for tag in tags {
        match &tag.value {
            TagValue::Fixed(_) => {}
            TagValue::Header(name, _) => asked.request.some.push(name.as_str().into()),
            TagValue::Format(format) => asked.merge(format.headers()),
        }
    }
    asked
}

fn tag(wire: &wire::SpanTag) -> Option<Tag> {
    let otherwise = Some(wire.otherwise.as_str()).filter(|text| !text.is_empty());
    let value = match wire.value.as_ref()? {
        Value::Literal(text) => TagValue::Fixed(text.as_str().into()),
        Value::Header(name) => {
            let name = HeaderName::try_from(name).ok()?;
            TagValue::Header(name, otherwise.map(Box::from))
        }
        Value::Environment(name) => {
            let value = std::env::var(name).ok();
            TagValue::Fixed(value.as_deref().or(otherwise)?.into())
        }
        Value::Format(text) => TagValue::Format(Format::read(text).ok()?),
    };
    Some(Tag {
        name: wire.name.as_str().into(),
        value,
    })
}

/// Percent of new traces, where nothing says: Istio's.
const USUAL: f64 = 1.0;
/// Bytes of a tag, whatever is asked for.
const MOST: u32 = 4_096;
