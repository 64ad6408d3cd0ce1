//! Pure: rate limit services, which count for all proxies together: what they are asked, and what their answers mean.
//!
//! 1. what the control plane says of one                                  ([`Counter::compile`])
//! 2. limits that a request is under enter ([`Inquiry`]), a question leaves ([`Counter::asks`])
//! 3. the answer enters, whether it passes leaves                          ([`Counter::hears`])
//!
//! It is asked over gRPC (`envoy.service.ratelimit.v3`). An answer that cannot be understood is an error: whether the
//! request passes then is for its limit to say.

use std::sync::Arc;
use std::time::Duration;

use api::rate_limit::rate_limit_descriptor::{Entry, RateLimitOverride};
use api::rate_limit::rate_limit_response::rate_limit::Unit;
use api::rate_limit::rate_limit_response::{Code, DescriptorStatus};
use api::rate_limit::{
    HeaderValue, HeaderValueOption, RateLimitDescriptor, RateLimitRequest, RateLimitResponse,
    RateLimitUnit,
};
use api::waypoint as wire;
use aws_lc_rs::digest;
use bytes::Bytes;
use http::{HeaderMap, Request};

use super::rate::Told;
use crate::permission::{Action, Change};
use crate::route::ServiceName;
use crate::service::{self, Heard};

/// Somebody who counts.
#[derive(Debug)]
pub struct Counter {
    /// Where it is.
    pub service: ServiceName,
    /// How long it may take.
    pub timeout: Duration,
}

/// What one of them is asked about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inquiry<'a> {
    /// Key of the provider.
    pub provider: &'a str,
    /// Namespace of the descriptors.
    pub domain: &'a str,
    /// Whether requests pass when it does not answer.
    pub fail_open: bool,
    /// One for each limit; the request is counted in all of them.
    pub descriptors: Vec<Descriptor<'a>>,
}

/// What is counted for one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor<'a> {
    /// Whose limit.
    pub name: &'a Arc<str>,
    /// Keys and values.
    pub entries: Vec<(String, String)>,
    /// How many; none: the service knows.
    pub limit: Option<(u32, Per)>,
}

/// A time that services count in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Per(RateLimitUnit);

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// What is left of the limit that is nearest, or what it went beyond; none where the service does not say.
    pub told: Option<Told>,
    /// It is within all of them.
    pub passes: bool,
    /// Changes of the request.
    pub request: Vec<Change>,
    /// Changes of whatever is answered.
    pub answer: Vec<Change>,
    /// Of a refusal; empty: ours.
    pub body: Bytes,
}

impl Counter {
    /// Of a message, or what is wrong with it.
    pub fn compile(wire: &wire::RateLimiter) -> Result<Self, String> {
        let service = wire.service.as_ref().ok_or("it says not who is asked")?;
        Ok(Self {
            service: ServiceName::compile(service)?,
            timeout: match wire.timeout {
                0 => TIMEOUT,
                milliseconds => Duration::from_millis(milliseconds),
            },
        })
    }

    /// What is sent to it. `about`: the request's headers.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn asks(&self, inquiry: &Inquiry<'_>, about: &HeaderMap) -> Result<Request<Bytes>, String> {
        let descriptors = inquiry.descriptors.iter().map(Descriptor::wire);
        let question = service::framed(&RateLimitRequest {
            domain: inquiry.domain.to_owned(),
            descriptors: descriptors.collect(),
            hits_addend: 1,
        })?;
        let call = service::call(&self.service, METHOD, about, Some(self.timeout));
        let call = call.body(question);
        call.map_err(|why| format!("it cannot be asked: {why}"))
    }

    /// What its answer means.
    ///
    /// # Errors
    /// Nothing that could be followed.
    pub fn hears(&self, inquiry: &Inquiry<'_>, heard: &Heard<'_>) -> Result<Counted, String> {
        let answer: RateLimitResponse = service::one(heard)?;
        let passes = match answer.overall_code() {
            Code::Ok => true,
            Code::OverLimit => false,
            Code::Unknown => return Err("its answer says nothing".to_owned()),
        };
        Ok(Counted {
            told: told(inquiry, &answer.statuses, passes),
            passes,
            // One that the client sent beside it would be believed.
            request: changes(&answer.request_headers_to_add, Action::Set)?,
            answer: changes(&answer.response_headers_to_add, Action::Append)?,
            body: answer.raw_body.into(),
        })
    }
}

impl Descriptor<'_> {
    fn wire(&self) -> RateLimitDescriptor {
        let entry = |(key, value): &(String, String)| Entry {
            key: key.clone(),
            value: short(value),
        };
        RateLimitDescriptor {
            entries: self.entries.iter().map(entry).collect(),
            limit: self.limit.map(|(requests, Per(unit))| RateLimitOverride {
                requests_per_unit: requests,
                unit: unit.into(),
            }),
        }
    }
}

impl Per {
    /// Of a window; none if services do not count in it.
    pub(super) fn of(window: Duration) -> Option<Self> {
        let units = [
            (1, RateLimitUnit::Second),
            (60, RateLimitUnit::Minute),
            (3_600, RateLimitUnit::Hour),
            (86_400, RateLimitUnit::Day),
        ];
        let mut units = units.into_iter();
        units
            .find(|(seconds, _)| window == Duration::from_secs(*seconds))
            .map(|(_, unit)| Self(unit))
    }
}

/// Who asks decides what a value is, but not how much the service has to remember of it.
fn short(value: &str) -> String {
    if value.len() <= LONGEST {
        return value.to_owned();
    }
    let mut text = "sha256:".to_owned();
    for byte in digest::digest(&digest::SHA256, value.as_bytes()).as_ref() {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Of the limits that were asked about: the one with the least left; of a refusal, the one that refuses for longest.
fn told(inquiry: &Inquiry<'_>, statuses: &[DescriptorStatus], passes: bool) -> Option<Told> {
    let about = inquiry.descriptors.iter().zip(statuses);
    let told = about.filter_map(|(descriptor, status)| {
        let limit = status.current_limit.as_ref()?;
        let refused = status.code() == Code::OverLimit;
        let window = window(limit.unit());
        let after = status.duration_until_reset.as_ref();
        let after = after.and_then(|after| Duration::try_from(*after).ok());
        let told = Told {
            name: descriptor.name.clone(),
            requests: limit.requests_per_unit.into(),
            window,
            left: status.limit_remaining.into(),
            after: after.unwrap_or(window),
            refused,
        };
        (refused != passes).then_some(told)
    });
    match passes {
        true => told.min_by_key(|told| told.left),
        false => told.max_by_key(|told| told.after),
    }
}

fn window(unit: Unit) -> Duration {
    Duration::from_secs(match unit {
        Unit::Unknown | Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 3_600,
        Unit::Day => 86_400,
        Unit::Week => 7 * 86_400,
        Unit::Month => 30 * 86_400,
        Unit::Year => 365 * 86_400,
    })
}

fn changes(headers: &[HeaderValue], action: Action) -> Result<Vec<Change>, String> {
    let read = headers.iter().map(|header| {
        let option = HeaderValueOption {
            header: Some(header.clone()),
            ..HeaderValueOption::default()
        };
        Change::read(&option, action)
    });
    read.filter_map(Result::transpose).collect()
}

/// Where nothing else is said.
const TIMEOUT: Duration = Duration::from_millis(100);
/// Bytes of a value as it is; longer ones are told by their digests.
const LONGEST: usize = 256;
const METHOD: &str = "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
