//! What is told of a service's requests, and by what of them: compiled, shared by all of them.

use std::sync::Arc;

use expression::cel::{Expression, Names};
use expression::format::{Format, Template};
use http::{HeaderMap, HeaderName};

use super::queue::Queue;
use super::shape::Shape;
use super::trace::Form;

/// What is told.
#[derive(Debug, Default)]
pub struct Told {
    /// Which requests have a line in the log, as we write it.
    pub line: Line,
    /// Who else gets lines.
    pub logs: Box<[Log]>,
    /// Spans.
    pub tracing: Option<Tracing>,
    /// What is other about metrics.
    pub metrics: Option<Arc<Shape>>,
    /// Headers of requests that logs and metrics ask for.
    pub request: Keeps,
    /// The same of answers.
    pub response: Keeps,
    /// Whether they ask for trailers of answers.
    pub trailers: bool,
}

/// Which requests have a line, as we write it.
#[derive(Debug, Default, Clone, PartialEq)]
pub enum Line {
    /// All.
    #[default]
    Each,
    /// Those of which this holds.
    When(Expression),
    /// None.
    Never,
}

impl Line {
    /// For an operator.
    pub fn shown(&self) -> &str {
        match self {
            Self::Each => "each",
            Self::When(condition) => condition.text(),
            Self::Never => "never",
        }
    }
}

impl Told {
    /// Whether there is nothing to be told but the line that each has: then nothing is kept for it.
    pub fn is_plain(&self) -> bool {
        self.line == Line::Each
            && self.logs.is_empty()
            && self.tracing.is_none()
            && self.metrics.is_none()
    }
}

/// Lines that somebody else wants, or in another form.
#[derive(Debug)]
pub struct Log {
    /// Of which requests; none: of all.
    pub filter: Option<Expression>,
    /// Where they go.
    pub to: LogTo,
}

/// Where lines go.
#[derive(Debug)]
pub enum LogTo {
    /// Into the process's log, as texts.
    Text(Format),
    /// The same, as JSON.
    Json(Template),
    /// To a collector: body and attributes.
    Collector {
        /// The way there.
        queue: Arc<Queue>,
        /// The record's body.
        body: Format,
        /// Its attributes.
        attributes: Box<[(Box<str>, Format)]>,
    },
}

/// Who gets spans, of which requests, and what is in them.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// Of new traces, in percent.
    pub sampling: f64,
    /// Who gets them.
    pub collector: Arc<Queue>,
    /// How new traces are told upstream.
    pub form: Form,
    /// Upstream is told nothing.
    pub silent: bool,
    /// Further attributes.
    pub tags: Box<[Tag]>,
    /// `istio.*`
    pub istio_tags: bool,
    /// Bytes of a path.
    pub longest: usize,
    /// Headers of requests that the tags need.
    pub request: Keeps,
    /// The same of answers.
    pub response: Keeps,
    /// Whether they need trailers of answers.
    pub trailers: bool,
}

/// A further attribute.
#[derive(Debug, Clone, PartialEq)]
pub struct Tag {
    /// Its name.
    pub name: Box<str>,
    /// Its value.
    pub value: TagValue,
}

/// Where an attribute's value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum TagValue {
    /// Known before any request.
    Fixed(Box<str>),
    /// A header of the request, or what stands for it where there is none.
    Header(HeaderName, Option<Box<str>>),
    /// A text with operators.
    Format(Format),
}

/// Headers that are kept until a request has ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Keeps {
    some: Box<[HeaderName]>,
    all: bool,
}

impl Keeps {
    /// Those of that name; what is no name of a header is none's.
    pub fn of(names: &Names) -> Self {
        let some = names.some.iter();
        Self {
            some: some.filter_map(|name| name.parse().ok()).collect(),
            all: names.all,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.all && self.some.is_empty()
    }

    /// Those among a head's headers, into `kept`.
    pub(crate) fn keep(&self, headers: &HeaderMap, kept: &mut HeaderMap) {
        if self.all {
            kept.clone_from(headers);
            return;
        }
        for name in &self.some {
            if !kept.contains_key(name) {
                for value in headers.get_all(name) {
                    kept.append(name, value.clone());
                }
            }
        }
    }
}
