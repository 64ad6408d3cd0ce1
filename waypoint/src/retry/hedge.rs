//! A second request that does not wait for the first one to fail.

use std::time::Duration;

use api::waypoint as wire;
use http::Method;

use super::{Outcome, Retry};

/// When further requests are made beside one that has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hedge {
    after: Duration,
    at_most: u32,
}

/// More of them at once than this are an attack on one's own app.
const MOST: u32 = 8;

impl Hedge {
    /// Of a message; None if it asks for no further request.
    pub fn compile(wire: &wire::Hedge) -> Option<Self> {
        let hedge = Self {
            after: Duration::from_millis(wire.after),
            at_most: wire.at_most.min(MOST),
        };
        (hedge.at_most > 0 && wire.after > 0).then_some(hedge)
    }

    /// Whether a request can be made twice without harm. What has a body must be one that is kept.
    pub fn suits(method: &Method) -> bool {
        method.is_idempotent()
    }

    /// How long after the newest try began the next further one is made, if there were `further` of them.
    pub fn due(&self, further: u32) -> Option<Duration> {
        (further < self.at_most).then_some(self.after)
    }

    /// Whether this outcome of one of them is the answer, whatever the others may say. A failure is none while
    /// another may still do better.
    pub fn settles(retry: Option<&Retry>, outcome: Outcome) -> bool {
        match (outcome, retry) {
            (Outcome::Answered { .. }, Some(retry)) => !retry.concerns(outcome),
            (Outcome::Answered { status, .. }, None) => !status.is_server_error(),
            _ => false,
        }
    }
}
