//! One request or connection as one line of the log, under target `access`.

use std::fmt;
use std::time::Duration;

use http::{HeaderValue, Version};
use tracing::Level;

use super::labels::UNKNOWN;
use super::series::Moved;
use super::{Protocol, Side, Story};

/// A macro because a level must be a constant where the line is written.
macro_rules! line {
    ($level:expr, $story:expr, $took:expr, $moved:expr) => {{
        let (story, moved): (&Story, Moved) = ($story, $moved);
        let (asked, to) = (&story.asked, &story.to);
        tracing::event!(
            target: ops::log::ACCESS,
            $level,
            {
                src.addr = %story.caller.client.address,
                src.workload = known(&story.caller.side.workload),
                src.namespace = known(&story.caller.side.namespace),
                src.identity = principal(&story.caller.side),
                dst.addr = story.upstream.map(tracing::field::display),
                dst.service = to.service.as_ref().map(|service| &*service.hostname),
                dst.port = to.service.as_ref().map(|_| story.port),
                dst.workload = to.workload.as_ref().map(|workload| workload.name()),
                dst.namespace = to.workload.as_ref().map(|workload| &*workload.namespace),
                dst.identity = to.identity.as_ref().map(tracing::field::display),
                method = asked.method.as_str(),
                host = asked.host(),
                path = asked.path.as_ref().map(|path| cut(path.as_str())),
                protocol = protocol(story.protocol, asked.version),
                code = story.code.unwrap_or(0),
                grpc_status = story.grpc,
                flags = %story.flags,
                route = story.route.as_deref(),
                policy = story.policy.as_deref(),
                bytes_sent = moved.sent,
                bytes_recv = moved.received,
                duration = %Millis($took),
                first_byte = story.first_byte.map(|after| tracing::field::display(Millis(after))),
                tries = (story.tries > 1).then_some(story.tries),
                user_agent = asked.user_agent.as_ref().and_then(text),
                request_id = asked.request_id.as_ref().and_then(text),
                trace_id = story.trace.map(tracing::field::display),
                detail = story.detail.as_deref(),
            },
            "request complete"
        )
    }};
}

/// What failed is a warning: the flags say whose fault it is. What was refused is one as well.
pub(super) fn write(story: &Story, took: Duration, moved: Moved) {
    let refused = story.detail.is_some() && story.code.is_some_and(|code| code >= 400);
    if story.flags.are_trouble() || story.policy.is_some() || refused {
        line!(Level::WARN, story, took, moved);
    } else {
        line!(Level::INFO, story, took, moved);
    }
}

impl super::Heard {
    pub(super) fn host(&self) -> Option<&str> {
        let authority = self.host.as_ref().map(http::uri::Authority::as_str);
        authority.or_else(|| self.authority.as_ref().and_then(text))
    }
}

pub(super) fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(cut)
}

pub(super) fn known(label: &str) -> Option<&str> {
    Some(label).filter(|label| *label != UNKNOWN)
}

pub(super) fn principal(side: &Side) -> Option<&str> {
    known(&side.principal)
}

pub(super) fn protocol(kind: Protocol, version: Version) -> &'static str {
    match (kind, version) {
        (Protocol::Grpc, _) => "gRPC",
        (_, Version::HTTP_10) => "HTTP/1.0",
        (_, Version::HTTP_2) => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// A line must stay a line that a reader's buffer takes.
fn cut(text: &str) -> &str {
    cut_at(text, LONGEST)
}

/// At most that many bytes.
pub(super) fn cut_at(text: &str, longest: usize) -> &str {
    &text[..text.floor_char_boundary(longest)]
}

const LONGEST: usize = 1024;

/// `0.4ms` below ten, `12ms` above.
pub(super) struct Millis(pub(super) Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            0..10 => write!(f, "{:.1}ms", self.0.as_secs_f64() * 1e3),
            millis => write!(f, "{millis}ms"),
        }
    }
}
