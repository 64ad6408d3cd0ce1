//! How long a request may take.

use std::time::Duration;

use api::waypoint as wire;
use http::{HeaderMap, HeaderName};

/// What a rule says of one limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Limit {
    /// Nothing: the proxy's own default holds.
    #[default]
    Unsaid,
    /// That there is none.
    Unlimited,
    /// This.
    After(Duration),
}

impl Limit {
    /// With what holds where nothing is said.
    pub fn or(self, default: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Unsaid => default,
            Self::Unlimited => None,
            Self::After(limit) => Some(limit),
        }
    }

    fn of(milliseconds: u64, unlimited: bool) -> Self {
        match (milliseconds, unlimited) {
            (_, true) => Self::Unlimited,
            (0, false) => Self::Unsaid,
            (some, false) => Self::After(Duration::from_millis(some)),
        }
    }
}

/// Limits of a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's arrival to the end of the answer.
    pub request: Limit,
    /// Each try, until the end of its answer.
    pub backend: Limit,
    /// No byte either way.
    pub idle: Limit,
}

/// Limits of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deadlines {
    /// From the request's arrival to the end of the answer.
    pub request: Option<Duration>,
    /// Each try.
    pub attempt: Option<Duration>,
    /// No byte either way.
    pub idle: Option<Duration>,
}

impl Timeouts {
    /// Of a message.
    pub fn compile(wire: Option<&wire::Timeouts>) -> Self {
        let Some(wire) = wire else {
            return Self::default();
        };
        Self {
            request: Limit::of(wire.request, wire.no_request_limit),
            backend: Limit::of(wire.backend, wire.no_backend_limit),
            idle: Limit::of(wire.idle, false),
        }
    }

    /// For one request: the rule's, else the proxy's defaults; a client's `grpc-timeout` can only shorten them, and
    /// a try is no longer than the whole. `each` is what a retry policy says of a try.
    pub fn of(
        &self,
        headers: &HeaderMap,
        defaults: Deadlines,
        each: Option<Duration>,
    ) -> Deadlines {
        let request = least(self.request.or(defaults.request), grpc_timeout(headers));
        let attempt = least(each, self.backend.or(defaults.attempt));
        Deadlines {
            request,
            attempt: attempt.map(|limit| request.map_or(limit, |whole| whole.min(limit))),
            idle: self.idle.or(defaults.idle),
        }
    }
}

fn least(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// `grpc-timeout`: at most eight digits and a unit. None if there is none, or none that can be understood.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    const NAME: HeaderName = HeaderName::from_static("grpc-timeout");
    let (unit, digits) = headers.get(NAME)?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits
        .iter()
        .fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}
