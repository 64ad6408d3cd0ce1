//! What is known of one request, and who is told of it when it has ended.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Version, header, request};

use super::facts::Request;
use super::flag::{Flag, Flags};
use super::labels::{Also, How};
use super::logs::{self, Written};
use super::queue::Record;
use super::series::{Destination, Moved};
use super::told::{Line, Told};
use super::trace::{Trace, TraceId};
use super::{Caller, Protocol, REQUEST_ID, Report, Reports, line, span};
use crate::process::Metadata;

#[derive(Debug)]
pub(super) struct Story {
    pub(super) reports: Reports,
    pub(super) caller: Arc<Caller>,
    pub(super) began: Instant,
    pub(super) protocol: Protocol,
    pub(super) asked: Heard,
    pub(super) to: Destination,
    pub(super) port: u16,
    /// The address that the client meant.
    pub(super) meant: Option<SocketAddr>,
    pub(super) upstream: Option<SocketAddr>,
    pub(super) tries: u32,
    pub(super) first_byte: Option<Duration>,
    pub(super) route: Option<Arc<str>>,
    pub(super) policy: Option<Arc<str>>,
    pub(super) flags: Flags,
    pub(super) detail: Option<Cow<'static, str>>,
    pub(super) code: Option<u16>,
    pub(super) grpc: Option<u16>,
    pub(super) received: Option<Arc<Meter>>,
    pub(super) sent: u64,
    pub(super) messages_sent: u64,
    pub(super) trace: Option<TraceId>,
    pub(super) quiet: bool,
    /// None: nothing but a line.
    pub(super) told: Option<Arc<Told>>,
    /// What is said of it by those who saw it.
    pub(super) metadata: Metadata,
    /// For those who are told more than the line says.
    pub(super) kept: Option<Box<Kept>>,
}

/// Of a request, because somebody is told of it.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) trace: Option<Trace>,
    /// `tracestate`, as it passes.
    pub(super) state: Option<String>,
    /// The headers that somebody asks for.
    pub(super) request: HeaderMap,
    pub(super) response: HeaderMap,
    /// Of the answer; all of them, if somebody asks for any.
    pub(super) trailers: HeaderMap,
}

/// What the client asked, before anything was changed. Reference counts, no copies.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) method: Method,
    pub(super) authority: Option<HeaderValue>,
    pub(super) host: Option<http::uri::Authority>,
    pub(super) path: Option<PathAndQuery>,
    pub(super) version: Version,
    pub(super) user_agent: Option<HeaderValue>,
    pub(super) request_id: Option<HeaderValue>,
}

impl Heard {
    pub(super) fn of(head: &request::Parts) -> Self {
        let header = |name: header::HeaderName| head.headers.get(name).cloned();
        Self {
            method: head.method.clone(),
            authority: header(header::HOST),
            host: head.uri.authority().cloned(),
            path: head.uri.path_and_query().cloned(),
            version: head.version,
            user_agent: header(header::USER_AGENT),
            request_id: header(REQUEST_ID),
        }
    }
}

/// Counts what a client sends, while the report is elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(super) bytes: AtomicU64,
    pub(super) messages: AtomicU64,
}

impl Meter {
    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let story = &mut *self.0;
        // That it was delayed, or asked of two, is no reason why it has no answer.
        if story.code.is_none() && !story.flags.are_trouble() {
            story.flags = story.flags.with(Flag::DownstreamClosed);
        }
        let (took, moved) = (story.began.elapsed(), story.moved());
        let Some(told) = story.told.take() else {
            story.count(took, moved, None);
            if !story.quiet {
                line::write(story, took, moved);
            }
            return;
        };
        story.tell(&told, took, moved);
    }
}

impl Story {
    fn count(&self, took: Duration, moved: Moved, also: Option<Also>) {
        let how = How {
            protocol: self.protocol,
            code: self.code.unwrap_or(0),
            grpc: self.grpc,
            flags: self.flags,
        };
        let (reports, caller) = (&self.reports, &self.caller);
        let table = &reports.table;
        let series = table.find(reports.reporter, caller, &self.to, how, also);
        series.request(took, moved);
    }

    /// Those who are told another thing than the line that each request has.
    fn tell(&self, told: &Told, took: Duration, moved: Moved) {
        let ended = Request {
            story: self,
            took,
            moved,
            ended: SystemTime::now(),
        };
        let also = told.metrics.as_ref().map(|shape| Also {
            values: shape.values(&ended),
            shape: shape.clone(),
        });
        self.count(took, moved, also);
        let has_line = match &told.line {
            Line::Each => true,
            Line::When(condition) => condition.holds(&ended),
            Line::Never => false,
        };
        if has_line {
            line::write(self, took, moved);
        }
        let kept = self.kept.as_deref();
        let span = kept.and_then(|kept| Some(kept.trace.as_ref()?.span()));
        let trace = self.trace.map(|id| (id, span));
        for log in &told.logs {
            if let Written::Line(line) = logs::tell(log, &ended, trace, ended.ended)
                && let Some(log) = &self.reports.log
            {
                log.line(line.as_bytes());
            }
        }
        if let Some(tracing) = &told.tracing
            && let Some(span) = span::span(&ended, tracing)
        {
            tracing.collector.put(Record::Span(Box::new(span)));
        }
    }

    pub(super) fn moved(&self) -> Moved {
        let received = self.received.as_deref();
        Moved {
            received: received.map_or(0, |meter| meter.bytes.load(Relaxed)),
            messages_received: received.map_or(0, |meter| meter.messages.load(Relaxed)),
            sent: self.sent,
            messages_sent: self.messages_sent,
        }
    }
}
