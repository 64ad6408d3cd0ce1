//! What is told of a service's requests: Telemetry objects, the nearer ones laid over those of the mesh, and these over
//! what the mesh's settings say.
//!
//! | part | of several |
//! |---|---|
//! | traces | each field for itself, the nearest counts |

use std::sync::Arc;

use api::waypoint as wire;
use http::HeaderName;
use wire::provider::Kind as Of;
use wire::resource::Kind;
use wire::span_tag::Value;
use wire::trace_collector::Protocol;

use crate::report::trace::Form;
use crate::report::{Collector, Collectors, Line, Queue, Tag, TagValue, Told, Tracing};
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
    Arc::new(Told {
        line: line(&found),
        tracing: tracing(&found, &known),
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
        Some(Of::LogCollector(it)) => Collector::of_logs(&key, it).map(drop),
        _ => Ok(()),
    }
}

fn line(found: &[&wire::Telemetry]) -> Line {
    let mut line = Line::Each;
    for rule in found
        .iter()
        .filter_map(|it| it.access_log.as_ref())
        .flat_map(|log| &log.rules)
    {
        line = if rule.disabled {
            Line::Never
        } else {
            Line::Each
        };
    }
    line
}

fn tracing(found: &[&wire::Telemetry], known: &Known<'_>) -> Option<Tracing> {
    let mut laid = wire::Tracing::default();
    let mut any = false;
    for it in found.iter().filter_map(|it| it.tracing.as_ref()) {
        any = true;
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
    if !any || laid.disabled == Some(true) {
        return None;
    }
    // As Istio has it: one of them, the first.
    let collector = laid.providers.first().and_then(|key| known.traces(key));
    let wire = collector.as_ref().map(|(_, wire)| *wire);
    let tags: Box<[Tag]> = laid.tags.iter().flat_map(|it| &it.tags).filter_map(tag).collect();
    Some(Tracing {
        sampling: laid.sampling.unwrap_or(USUAL),
        form: match wire.map(wire::TraceCollector::protocol) {
            Some(Protocol::Zipkin) => Form::B3Headers,
            _ => Form::W3c,
        },
        silent: laid.silent == Some(true),
        istio_tags: laid.istio_tags != Some(false),
        longest: match wire.map_or(0, |it| it.longest_tag) {
            0 => 256,
            longest => usize::try_from(longest.min(MOST)).unwrap_or(256),
        },
        headers: headers(&tags),
        tags,
        collector: collector.map(|(queue, _)| queue),
    })
}

fn headers(tags: &[Tag]) -> Box<[HeaderName]> {
    let names = tags.iter().filter_map(|tag| match &tag.value {
        TagValue::Header(name, _) => Some(name.clone()),
        TagValue::Fixed(_) => None,
    });
    names.collect()
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
        Value::Format(_) => return None,
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
