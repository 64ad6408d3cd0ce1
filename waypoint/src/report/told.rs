//! What is told of a service's requests, and by what of them: compiled, shared by all of them.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};

use super::queue::Queue;
use super::trace::Form;

/// What is told.
#[derive(Debug, Default)]
pub struct Told {
    /// Whether each has a line in the log, as we write it.
    pub line: Line,
    /// Spans.
    pub tracing: Option<Tracing>,
}

/// Which requests have a line, as we write it.
#[derive(Debug, Default, Clone, PartialEq)]
pub enum Line {
    /// All.
    #[default]
    Each,
    /// None.
    Never,
}

impl Line {
    /// For an operator.
    pub fn shown(&self) -> &'static str {
        match self {
            Self::Each => "each",
            Self::Never => "never",
        }
    }
}

impl Told {
    /// Whether there is nothing to be told but the line that each has: then nothing is kept for it.
    pub fn is_plain(&self) -> bool {
        self.line == Line::Each && self.tracing.is_none()
    }
}

/// Who gets spans, of which requests, and what is in them.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// Of new traces, in percent.
    pub sampling: f64,
    /// Who gets them. None: traces are passed on, and nobody is told.
    pub collector: Option<Arc<Queue>>,
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
    /// Headers that the tags need.
    pub headers: Box<[HeaderName]>,
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
}

/// The named ones of a head's headers.
pub(super) fn kept(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in names {
        for value in headers.get_all(name) {
            kept.append(name, value.clone());
        }
    }
    kept
}
