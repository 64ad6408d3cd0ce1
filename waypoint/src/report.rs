//! What is reported of a request, exactly once whatever happened: it writes itself when dropped.
//!
//! 1. a connection arrived: [`Reports::caller`], whose labels are made once;
//! 2. a request's head was read: [`Reports::request`];
//! 3. the path says what it decides and does: `service`, `routed`, `denied`, `tried`, `flag`, `detail`;
//! 4. there is an answer: [`Report::answer`] gives it a body that counts and carries the report to its end;
//! 5. dropped: the metrics (`series`), then one line in the log under target `access` (`line`).
//!
//! A report that is dropped without an answer is of a client that went away: code 0, flag DC.
//!
//! | file | part |
//! |---|---|
//! | `story` | what is known of a request, and its end |
//! | `labels`, `series`, `scrape` | Istio's metrics |
//! | `flag` | Envoy's letters for what went differently |
//! | `body` | bodies that count |
//! | `line` | the access log |
//! | `tcp` | connections of services that do not speak HTTP |
//! | `asked`, `mirrored` | who else was asked, or sent a copy, and what came of it |
//! | `trace` | which trace a request belongs to, and whether it is sampled |
//! | `told` | what is told of a service's requests, compiled |
//! | `facts`, `answering` | what expressions and formats ask of a request that has ended, goes on, is answered |
//! | `span`, `zipkin` | a request as a span |
//! | `logs`, `shape` | lines in another form, metrics with other labels |
//! | `queue`, `collector`, `send` | who gets it: what waits, in which words, and how it gets there |

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hbone::Identity;
use http::{HeaderMap, HeaderValue, StatusCode, header, request, response};
use mesh::{Service, Snapshot, Workload};
use ops::log::LogHandle;
use ops::series::{Bounded, Bounds, Without};
use prometheus_client::registry::Registry;

use crate::authenticate::Claims;
use crate::call::random;
use crate::client::Client;
use crate::process::Metadata;

mod answering;
mod asked;
mod body;
mod collector;
mod facts;
mod flag;
mod labels;
mod line;
mod logs;
mod mirrored;
mod queue;
mod scrape;
pub mod send;
mod series;
mod shape;
mod span;
mod story;
mod tcp;
mod told;
pub mod trace;
mod zipkin;

pub use asked::{Answers, Outcome, Who};
pub use body::{Counted, Reported};
pub use collector::{Collector, Own};
pub use flag::{Flag, Flags};
pub use mirrored::Copied;
pub use queue::{Collectors, Counts, Opened, Openings, Queue, Record};
pub use shape::{Override, Shape};
pub(crate) use story::Meter;
pub use tcp::TcpReport;
pub use told::{Keeps, Line, Log, LogTo, Tag, TagValue, Told, Tracing};

use asked::Asked;
use labels::Side;
use mirrored::Mirrored;
use scrape::Scraped;
use series::{Destination, Table};
use span::attribute;
use story::{Heard, Story};
use trace::Trace;

/// Label `reporter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// A waypoint.
    Waypoint,
    /// A gateway at the mesh's edge: `source`, as Istio has it.
    Gateway,
}

impl Reporter {
    fn label(self) -> &'static str {
        match self {
            Self::Waypoint => "waypoint",
            Self::Gateway => "source",
        }
    }
}

/// Label `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP that is not gRPC.
    Http,
    /// Requests of content type `application/grpc`.
    Grpc,
    /// Anything else.
    Tcp,
}

impl Protocol {
    fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }

    fn of(headers: &HeaderMap) -> Self {
        let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        match kind.and_then(|kind| kind.strip_prefix(b"application/grpc")) {
            Some([] | [b'+' | b';', ..]) => Self::Grpc,
            _ => Self::Http,
        }
    }
}

/// All reports of the process. Clones share the numbers.
#[derive(Debug, Clone)]
pub struct Reports {
    reporter: Reporter,
    table: Arc<Table>,
    collectors: Collectors,
    asked: Asked,
    mirrored: Mirrored,
    /// Where lines go that users have given a form.
    log: Option<LogHandle>,
}

impl Reports {
    /// Nothing has been reported yet.
    pub fn new(reporter: Reporter) -> Self {
        Self {
            reporter,
            table: Arc::new(Table::new(Bounds::default(), Without::default())),
            collectors: Collectors::default(),
            asked: Asked::default(),
            mirrored: Mirrored::default(),
            log: None,
        }
    }

    /// With a place for lines that users have given a form.
    pub fn into_log(mut self, log: LogHandle) -> Self {
        self.log = Some(log);
        self
    }

    /// With so many series, and without these labels. Nothing may have been reported yet.
    pub fn bounded(mut self, bounds: Bounds, without: Without) -> Self {
        self.table = Arc::new(Table::new(bounds, without));
        self
    }

    /// With those whose numbers are shown.
    pub fn to(mut self, collectors: Collectors) -> Self {
        self.collectors = collectors;
        self
    }

    /// Enters the metrics into `registry`. They hold no lock while they are printed.
    pub fn register(&self, registry: &mut Registry) {
        let table = self.table.clone();
        let bounded = Bounded::none().and("istio", move || table.figures());
        registry.register_collector(Box::new(bounded));
        registry.register_collector(Box::new(Scraped(self.table.clone())));
        registry.register_collector(Box::new(scrape::Delivered(self.collectors.clone())));
        registry.register_collector(Box::new(scrape::Consulted(self.asked.clone())));
        registry.register_collector(Box::new(scrape::Mirrors(self.mirrored.clone())));
    }

    /// What came of asking somebody; `name`: of the provider, or of the object.
    pub fn asked(&self, who: Who, name: &str) -> Arc<Answers> {
        self.asked.of(who, name)
    }

    /// What became of a copy of a request; `service`: the host name of the one that was to get it.
    pub fn mirrored(&self, service: &str, copied: Copied) {
        self.mirrored.count(service, copied);
    }

    /// Takes out the series that nobody has used for a while and that name somebody who is gone, by the mesh as of now.
    pub fn sweep(&self, mesh: &Snapshot, now: Instant) {
        self.table.sweep(mesh, now);
    }

    /// How many label sets there are; bounded.
    pub fn series(&self) -> usize {
        self.table.len()
    }

    /// Who is at the other end of a connection; its labels serve all its requests.
    pub fn caller(&self, client: Arc<Client>) -> Arc<Caller> {
        Arc::new(Caller {
            side: self.table.side(&client),
            client,
        })
    }

    /// A request's head was read.
    pub fn request(&self, caller: &Arc<Caller>, head: &request::Parts, now: Instant) -> Report {
        Report(Box::new(Story {
            reports: self.clone(),
            caller: caller.clone(),
            began: now,
            protocol: Protocol::of(&head.headers),
            asked: Heard::of(head),
            to: Destination::default(),
            port: 0,
            meant: None,
            upstream: None,
            tries: 0,
            first_byte: None,
            route: None,
            policy: None,
            flags: Flags::default(),
            detail: None,
            code: None,
            grpc: None,
            received: None,
            sent: 0,
            messages_sent: 0,
            trace: trace::told(&head.headers),
            quiet: false,
            told: None,
            metadata: Metadata::default(),
            kept: None,
        }))
    }

    /// A connection that is not HTTP.
    pub fn connection(&self, caller: &Arc<Caller>, now: Instant) -> TcpReport {
        TcpReport::new(self.clone(), caller.clone(), now)
    }
}

/// The other end of a connection, as reports have it.
#[derive(Debug)]
pub struct Caller {
    /// Who it is.
    pub client: Arc<Client>,
    side: Arc<Side>,
}

/// The record of one request.
#[derive(Debug)]
pub struct Report(Box<Story>);

impl Report {
    /// What may be asked of it while it goes on, by those who are told more than what they are shown.
    pub fn subject<'a>(
        &'a self,
        head: &'a request::Parts,
        authority: &'a str,
        destination: SocketAddr,
    ) -> impl expression::Subject + 'a {
        facts::Going {
            story: &self.0,
            head,
            authority,
            destination,
            now: std::time::SystemTime::now(),
        }
    }

    /// The same of its answer. `asked`: of its headers those that are asked for.
    pub fn answering_subject<'a>(
        &'a self,
        status: StatusCode,
        headers: &'a HeaderMap,
        asked: &'a HeaderMap,
        destination: SocketAddr,
    ) -> impl expression::Subject + 'a {
        let story = &self.0;
        answering::Answering {
            request: facts::Request {
                story,
                took: story.began.elapsed(),
                moved: story.moved(),
                ended: std::time::SystemTime::now(),
            },
            status,
            headers,
            asked,
            destination,
        }
    }

    /// It came with a good token.
    pub fn verified(&mut self, claims: &Arc<Claims>) {
        self.0.metadata.verified(claims);
    }

    /// What is said of it so far.
    pub fn said(&self) -> &Metadata {
        &self.0.metadata
    }

    /// What is said of it, for somebody who says more or is told it.
    pub fn metadata(&mut self) -> Metadata {
        self.0.metadata.shared()
    }

    /// The service and its port that it is for.
    pub fn service(&mut self, service: &Arc<Service>, port: u16) {
        self.0.to.service = Some(service.clone());
        self.0.port = port;
    }

    /// The address that the client meant.
    pub fn meant(&mut self, address: SocketAddr) {
        self.0.meant = Some(address);
    }

    /// The rule it belongs to: `kind/namespace/name/rule`.
    pub fn routed(&mut self, rule: Arc<str>) {
        self.0.route = Some(rule);
    }

    /// The policy that refused it, or would have (dry run).
    pub fn denied(&mut self, policy: Arc<str>) {
        self.0.policy = Some(policy);
    }

    /// It is sent to an endpoint: the first time, or once more.
    pub fn tried(
        &mut self,
        workload: &Arc<Workload>,
        address: SocketAddr,
        identity: Option<&Identity>,
    ) {
        self.0.tries += 1;
        self.answering(workload, address, identity);
    }

    /// Of several endpoints that were asked it is this one that counts.
    pub fn answering(
        &mut self,
        workload: &Arc<Workload>,
        address: SocketAddr,
        identity: Option<&Identity>,
    ) {
        self.0.upstream = Some(address);
        self.0.to.workload = Some(workload.clone());
        self.0.to.identity = identity.cloned();
    }

    /// Something went differently.
    pub fn flag(&mut self, flag: Flag) {
        self.0.flags = self.0.flags.with(flag);
    }

    /// Why, for a person. The first reason stays.
    pub fn detail(&mut self, why: impl Into<Cow<'static, str>>) {
        self.0.detail.get_or_insert_with(|| why.into());
    }

    /// What is told of it. Once.
    pub fn told(&mut self, told: &Arc<Told>) {
        if !told.is_plain() {
            self.0.quiet = told.line == Line::Never;
            self.0.told = Some(told.clone());
            if !told.request.is_empty() || !told.response.is_empty() || told.trailers {
                self.0.kept = Some(Box::default());
            }
        }
    }

    /// What it asks has been read: its headers, as policies and routes see them. Upstream learns with them which trace
    /// it belongs to. What is not to be collected costs a look, or of a trace that begins here the header that says so.
    pub fn heard(&mut self, headers: &mut HeaderMap) {
        let story = &mut *self.0;
        let Some(told) = story.told.as_deref() else {
            return;
        };
        if let Some(kept) = &mut story.kept {
            told.request.keep(headers, &mut kept.request);
        }
        let Some(tracing) = &told.tracing else {
            return;
        };
        let draws = [random(), random(), random(), random()];
        let trace = Trace::begin(headers, tracing.form, tracing.sampling, draws);
        // A decision that somebody else has made passes on as it is.
        if !tracing.silent && (trace.sampled() || trace.parent().is_none()) {
            trace.write(headers);
        }
        if trace.sampled() {
            story.trace = Some(trace.id());
            let kept = story.kept.get_or_insert_default();
            let state = headers.get(TRACESTATE).and_then(|it| it.to_str().ok());
            kept.state = state.map(|it| line::cut_at(it, 512).to_owned());
            kept.trace = Some(trace);
            tracing.request.keep(headers, &mut kept.request);
        }
    }

    /// The id by which logs of several proxies are found together, when this proxy made it.
    pub fn request_id(&mut self, id: HeaderValue) {
        self.0.asked.request_id = Some(id);
    }

    /// No line in the access log; the metrics count all the same.
    pub fn quiet(&mut self) {
        self.0.quiet = true;
    }

    /// The request's body, counted.
    pub fn received<B>(&mut self, body: B) -> Counted<B> {
        let meter = self.0.received.get_or_insert_default();
        Counted::new(body, meter.clone(), self.0.protocol == Protocol::Grpc)
    }

    /// What counts the request's body, if it has one.
    pub(crate) fn moving(&self) -> Option<Arc<Meter>> {
        self.0.received.clone()
    }

    /// How long it has taken so far.
    pub fn took(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// How often it was sent to an endpoint.
    pub fn tries(&self) -> u32 {
        self.0.tries
    }

    /// What is answered; the report ends with the answer's body.
    pub fn answer<B: http_body::Body>(
        mut self,
        answer: http::Response<B>,
    ) -> http::Response<Reported<B>> {
        let (head, body) = answer.into_parts();
        self.answered(&head);
        http::Response::from_parts(head, Reported::new(body, self))
    }

    /// Bytes carried after an upgrade, to the client and from it.
    pub fn carried(&mut self, sent: u64, received: u64) {
        self.0.sent += sent;
        let meter = self.0.received.get_or_insert_default();
        meter.bytes.fetch_add(received, Relaxed);
    }

    /// The answer's head, where its body is not a body: an upgrade.
    pub fn answered(&mut self, head: &response::Parts) {
        self.0.code = Some(head.status.as_u16());
        self.0.first_byte = Some(self.0.began.elapsed());
        if self.0.protocol == Protocol::Grpc {
            self.grpc_status(&head.headers);
        }
        let story = &mut *self.0;
        if let (Some(kept), Some(told)) = (&mut story.kept, &story.told) {
            told.response.keep(&head.headers, &mut kept.response);
            if let Some(tracing) = told.tracing.as_ref().filter(|_| kept.trace.is_some()) {
                tracing.response.keep(&head.headers, &mut kept.response);
            }
        }
    }

    /// The end of the answer, for who asks what it says.
    fn trailers(&mut self, trailers: &HeaderMap) {
        let story = &mut *self.0;
        let (Some(kept), Some(told)) = (&mut story.kept, &story.told) else {
            return;
        };
        let tracing = told.tracing.as_ref().filter(|_| kept.trace.is_some());
        if told.trailers || tracing.is_some_and(|it| it.trailers) {
            kept.trailers.clone_from(trailers);
        }
    }

    fn grpc_status(&mut self, headers: &HeaderMap) {
        let status = headers.get(GRPC_STATUS).map(HeaderValue::as_bytes);
        if let Some(status) = status.and_then(grpc_code) {
            self.0.grpc = Some(status);
        }
    }
}

/// A status of gRPC; what is none is not worth a series of its own.
fn grpc_code(text: &[u8]) -> Option<u16> {
    let code = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some(if code <= 16 { code } else { 2 })
}

/// Joins the logs of several proxies.
pub const REQUEST_ID: header::HeaderName = header::HeaderName::from_static("x-request-id");
const GRPC_STATUS: &str = "grpc-status";
const TRACESTATE: &str = "tracestate";
