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
    /// Calls, too: whoever wrote the rule says that they may be repeated.
    calls: bool,
}

/// More of them at once than this are an attack on one's own app.
const MOST: u32 = 8;

impl Hedge {
    /// Of a message; None if it asks for no further request.
    pub fn compile(wire: &wire::Hedge) -> Option<Self> {
        let hedge = Self {
            after: Duration::from_millis(wire.after),
            at_most: wire.at_most.min(MOST),
            calls: wire.calls,
        };
        (hedge.at_most > 0 && wire.after > 0).then_some(hedge)
    }

    /// Whether a request can be made twice without harm.
    pub fn suits(&self, method: &Method) -> bool {
        self.calls || method.is_idempotent()
    }

    /// Whether what has a body is made twice, if it is kept and all of it is there.
    pub fn keeps(&self) -> bool {
        self.calls
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
            (Outcome::Answered { status, grpc }, None) => {
                !status.is_server_error() && !grpc.is_some_and(is_fault)
            }
            _ => false,
        }
    }
}

/// Of a server, as 5xx is: unknown, deadline exceeded, unimplemented, internal, unavailable, data loss.
fn is_fault(code: u32) -> bool {
    matches!(code, 2 | 4 | 12 | 13 | 14 | 15)
}
