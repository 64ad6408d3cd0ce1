//! Whether a request is made again, and when.
//!
//! What became of one try enters, a wait or nothing leaves ([`Retry::again`]). Beside it stand who may be asked
//! first, so that retries do not feed a fire ([`Budget`]), and a second request that does not wait for the first one
//! to fail ([`Hedge`]). All of it is pure: time and draws enter.

mod budget;
mod hedge;

use std::time::Duration;

use api::waypoint as wire;
use http::StatusCode;

pub use budget::Budget;
pub use hedge::Hedge;

/// What became of one try, as far as it can still be undone: nothing of an answer has gone to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The head of an answer; `grpc` where it has `grpc-status` already.
    Answered {
        /// Its status.
        status: StatusCode,
        /// What gRPC says of it.
        grpc: Option<u32>,
    },
    /// No connection: the app has seen nothing.
    ConnectFailure,
    /// The peer said that it has not begun (REFUSED_STREAM, GOAWAY before the stream): the app has seen nothing.
    RefusedStream,
    /// The connection or stream ended before there was an answer.
    Reset,
    /// The time for one try passed.
    Timeout,
    /// As many requests wait for its service's connections as may: one more try would be one more of them.
    Overflow,
}

/// When a rule's requests are made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    attempts: u32,
    codes: Box<[u16]>,
    grpc_codes: Box<[u32]>,
    on: On,
    first: Duration,
    longest: Duration,
    /// Longest that one try may take.
    pub each: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct On {
    connect_failure: bool,
    reset: bool,
    refused_stream: bool,
    gateway_error: bool,
    server_error: bool,
    conflict: bool,
}

/// The first wait where none is said.
const FIRST: Duration = Duration::from_millis(25);
/// More tries than this of one request help nobody.
const MOST: u32 = 100;

impl Retry {
    /// What is wrong with it, or the policy.
    pub fn compile(wire: &wire::Retry) -> Result<Self, String> {
        let code = |code: &u32| match u16::try_from(*code) {
            Ok(code @ 100..=599) => Ok(code),
            _ => Err(format!("a retry of status {code}")),
        };
        let milliseconds = |number: u64, default: Duration| match number {
            0 => default,
            some => Duration::from_millis(some),
        };
        let first = milliseconds(wire.backoff, FIRST);
        let each = Duration::from_millis(wire.try_timeout);
        Ok(Self {
            attempts: wire.attempts.min(MOST),
            codes: wire.codes.iter().map(code).collect::<Result<_, _>>()?,
            grpc_codes: wire.grpc_codes.as_slice().into(),
            on: On {
                connect_failure: wire.connect_failure,
                reset: wire.reset,
                refused_stream: wire.refused_stream,
                gateway_error: wire.gateway_error,
                server_error: wire.server_error,
                conflict: wire.retriable_4xx,
            },
            first,
            longest: milliseconds(wire.backoff_limit, first.saturating_mul(10)).max(first),
            each: (!each.is_zero()).then_some(each),
        })
    }

    /// How long to wait before the next try; None: this was the last, its outcome is the answer.
    ///
    /// `made`: tries so far, the first included. `left`: until the request's own deadline. `draw`: 64 random bits.
    pub fn again(
        &self,
        made: u32,
        outcome: Outcome,
        left: Option<Duration>,
        draw: u64,
    ) -> Option<Duration> {
        if made > self.attempts || !self.concerns(outcome) {
            return None;
        }
        let wait = self.wait(made, draw);
        left.is_none_or(|left| wait < left).then_some(wait)
    }

    /// Whether such an outcome is one that is tried again.
    pub fn concerns(&self, outcome: Outcome) -> bool {
        let On {
            connect_failure,
            reset,
            refused_stream,
            gateway_error,
            server_error,
            conflict,
        } = self.on;
        // Who asks for 5xx means apps that fail, and one that says nothing fails.
        let failed = gateway_error || server_error;
        match outcome {
            Outcome::ConnectFailure => connect_failure || failed,
            Outcome::RefusedStream => refused_stream || reset || failed,
            Outcome::Reset => reset || failed,
            // No answer is no answer, whether the connection has ended or the time (Envoy's `reset`, GEP-1731).
            Outcome::Timeout => reset || failed || self.codes.contains(&504),
            Outcome::Overflow => false,
            Outcome::Answered { status, grpc } => {
                let status = status.as_u16();
                self.codes.contains(&status)
                    || (server_error && status >= 500)
                    || (gateway_error && matches!(status, 502..=504))
                    || (conflict && status == 409)
                    || grpc.is_some_and(|code| self.grpc_codes.contains(&code))
            }
        }
    }

    /// Doubles with each try up to the longest; up to half of it more, so that clients who failed together do not come
    /// back together. Never less than what the user asked for.
    fn wait(&self, made: u32, draw: u64) -> Duration {
        let doubled = 1u32.checked_shl(made.saturating_sub(1)).unwrap_or(u32::MAX);
        let step = self.first.saturating_mul(doubled).min(self.longest);
        let more = u64::try_from(step.as_nanos() / 2).unwrap_or(u64::MAX);
        let more = (u128::from(draw) * u128::from(more)) >> 64;
        step.saturating_add(Duration::from_nanos(more as u64))
    }
}
