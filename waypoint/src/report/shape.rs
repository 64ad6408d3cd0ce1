//! What is other about the metrics of some requests: left out, labels removed, labels with values of their own.

use std::hash::{Hash, Hasher};

use expression::Subject;
use expression::cel::{Expression, Headers};

/// For each metric what is other about it.
#[derive(Debug, Default)]
pub struct Shape {
    /// By metric, in the order of [`METRICS`].
    changes: Vec<Change>,
    /// What labels' values are worked out by.
    values: Vec<Expression>,
}

/// What is other about one metric.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Change {
    pub(super) disabled: bool,
    pub(super) removed: Vec<Box<str>>,
    /// Labels, and which of the values is theirs.
    pub(super) set: Vec<(Box<str>, usize)>,
}

/// One that makes sense of an override.
#[derive(Debug, Clone, Default)]
pub struct Override<'a> {
    /// As it is exported; "": all.
    pub metric: &'a str,
    /// Not shown; none: as before.
    pub disabled: Option<bool>,
    /// Labels and their expressions.
    pub set: Vec<(&'a str, Expression)>,
    /// Labels that are not shown.
    pub removed: Vec<&'a str>,
}

impl Shape {
    /// Overrides laid over each other; none if nothing is other.
    pub fn of<'a>(overrides: impl Iterator<Item = Override<'a>>) -> Option<Self> {
        let mut shape = Self {
            changes: vec![Change::default(); METRICS.len()],
            values: Vec::new(),
        };
        for it in overrides {
            let set = it.set.into_iter().filter_map(|(label, value)| {
                let known = shape.values.iter().position(|it| *it == value);
                let at = match known {
                    Some(at) => at,
                    None if shape.values.len() >= MOST => return None,
                    None => {
                        shape.values.push(value);
                        shape.values.len() - 1
                    }
                };
                Some((label, at))
            });
            let set: Vec<(&str, usize)> = set.collect();
            for (name, change) in METRICS.iter().zip(&mut shape.changes) {
                if it.metric.is_empty() || it.metric == *name {
                    change.lay(it.disabled, &set, &it.removed);
                }
            }
        }
        let other = shape.changes.iter().any(|it| *it != Change::default());
        other.then_some(shape)
    }

    pub(super) fn change(&self, metric: usize) -> Option<&Change> {
        self.changes.get(metric)
    }

    /// The values of one request. What yields nothing is `unknown`, as Istio has it.
    pub(super) fn values(&self, subject: &dyn Subject) -> Box<[Box<str>]> {
        let values = self.values.iter().map(|it| match it.value(subject) {
            Ok(value) => {
                let text = value.to_string();
                text[..text.floor_char_boundary(LONGEST)].into()
            }
            Err(_) => "unknown".into(),
        });
        values.collect()
    }

    /// Headers that the values ask for.
    pub fn headers(&self) -> Headers {
        let mut headers = Headers::default();
        self.values
            .iter()
            .for_each(|it| headers.merge(it.headers()));
        headers
    }
}

impl Change {
    fn lay(&mut self, disabled: Option<bool>, set: &[(&str, usize)], removed: &[&str]) {
        self.disabled = disabled.unwrap_or(self.disabled);
        for (label, at) in set {
            self.set.retain(|(it, _)| **it != **label);
            self.removed.retain(|it| **it != **label);
            self.set.push(((*label).into(), *at));
        }
        for label in removed {
            self.set.retain(|(it, _)| **it != **label);
            if !self.removed.iter().any(|it| **it == **label) {
                self.removed.push((*label).into());
            }
        }
    }
}

/// Compiled again, the same is the same: its series go on.
impl PartialEq for Shape {
    fn eq(&self, other: &Self) -> bool {
        self.changes == other.changes && self.values == other.values
    }
}

impl Eq for Shape {}

impl Hash for Shape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.changes.hash(state);
        self.values.iter().for_each(|it| it.text().hash(state));
    }
}

/// As they are exported.
pub(super) const METRICS: [&str; 11] = [
    "istio_requests_total",
    "istio_request_messages_total",
    "istio_response_messages_total",
    "istio_request_duration_milliseconds",
    "istio_request_bytes",
    "istio_response_bytes",
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_sent_bytes_total",
    "istio_tcp_received_bytes_total",
    "istio_tcp_connections_failed_total",
];
/// Values that are worked out for each request.
const MOST: usize = 32;
/// Bytes of a value.
const LONGEST: usize = 253;
