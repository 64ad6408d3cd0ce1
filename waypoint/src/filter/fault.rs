//! Trouble, on purpose: delays and aborts for a share of requests.

use std::time::Duration;

use api::waypoint as wire;
use http::{HeaderMap, StatusCode};

use super::answer::{Answer, Reason, grpc_code, is_grpc};

/// A share of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// Every request.
    pub const ALL: Self = Self {
        numerator: 1,
        denominator: 1,
    };

    /// Absent: all.
    pub fn compile(wire: Option<&wire::Fraction>) -> Result<Self, String> {
        let Some(wire) = wire else {
            return Ok(Self::ALL);
        };
        let denominator = match wire.denominator {
            0 => 100,
            some => some,
        };
        if wire.numerator > denominator {
            return Err(format!("a share of {}/{denominator}", wire.numerator));
        }
        Ok(Self {
            numerator: wire.numerator,
            denominator,
        })
    }

    /// Whether a request with this draw (64 random bits) is among them.
    pub fn holds(self, draw: u64) -> bool {
        let point = (u128::from(draw) * u128::from(self.denominator)) >> 64;
        point < u128::from(self.numerator)
    }
}

/// What happens to which share of requests.
#[derive(Debug, Clone)]
pub struct Fault {
    delay: Option<(Duration, Fraction)>,
    abort: Option<(StatusCode, Option<u32>, Fraction)>,
}

impl Fault {
    /// What is wrong with it, or the fault.
    pub fn compile(wire: &wire::Fault) -> Result<Self, String> {
        let delay = Duration::from_millis(wire.delay);
        let delayed = Fraction::compile(wire.delayed.as_ref())?;
        let aborted = Fraction::compile(wire.aborted.as_ref())?;
        let status = match (wire.status, wire.grpc_status) {
            (0, None) => None,
            (0, Some(_)) => Some(StatusCode::OK),
            (status @ 200..=599, _) => u16::try_from(status)
                .ok()
                .and_then(|status| StatusCode::from_u16(status).ok()),
            (other, _) => return Err(format!("a fault with status {other}")),
        };
        Ok(Self {
            delay: (!delay.is_zero()).then_some((delay, delayed)),
            abort: status.map(|status| (status, wire.grpc_status, aborted)),
        })
    }

    pub(super) fn delay(&self, draw: impl FnOnce() -> u64) -> Option<Duration> {
        let (delay, share) = self.delay?;
        share.holds(draw()).then_some(delay)
    }

    pub(super) fn abort(&self, headers: &HeaderMap, draw: impl FnOnce() -> u64) -> Option<Answer> {
        let (status, code, share) = self.abort?;
        if !share.holds(draw()) {
            return None;
        }
        let answer = Answer::text(status, "fault filter abort", Reason::Fault);
        Some(match code {
            Some(code) => answer.for_grpc(code),
            None if is_grpc(headers) => answer.for_grpc(grpc_code(status)),
            None => answer,
        })
    }
}
