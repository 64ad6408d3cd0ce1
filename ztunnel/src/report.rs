//! One report per connection per end, exactly once whatever happened: it writes itself when dropped.
//!
//! 1. made when the connection is accepted, with what the sockets say;
//! 2. `ends` when it is known who talks to whom: from here it counts in the metrics and is listed as open;
//! 3. `completed` or `failed`; a report dropped without either says that the connection was abandoned (pod removed,
//!    proxy stopping);
//! 4. dropped: metrics, then one line in the log under target `access`, in Istio's format and field order.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use hbone::Authority;
use tracing::Level;

use crate::connections::{Bytes, Entry, Live, Protocol};
use crate::headers::Baggage;
use crate::node::Node;
use crate::pod::Pod;
use crate::traffic::{Ends, Flag, OpenSocket, Reporter, Series};

/// A reason why a connection failed, as logs and metrics want it.
pub(crate) trait Failure: fmt::Display {
    /// Label `response_flags`.
    fn flag(&self) -> Flag;
}

/// The record of one connection at one of its ends.
pub(crate) struct Report {
    node: Arc<Node>,
    pod: Arc<Pod>,
    reporter: Reporter,
    started: Instant,
    source: SocketAddr,
    hop: SocketAddr,
    ends: Ends,
    opened: Option<Opened>,
    outcome: Outcome,
    note: Option<&'static str>,
    _open: OpenSocket,
}

/// From the moment both ends are known.
struct Opened {
    series: Arc<Series>,
    tunnelled: Option<Authority>,
    joined: bool,
    entry: Entry,
}

enum Outcome {
    /// Neither completed nor failed yet.
    Open,
    Completed,
    Failed(Flag, String),
}

/// Who and where the two ends are, once known.
pub(crate) struct Whereabouts<'a> {
    pub(crate) ends: Ends,
    /// What the source said of itself; used for labels where its workload is not known.
    pub(crate) said: Option<Baggage<'a>>,
    pub(crate) protocol: Protocol,
    /// `dst.addr`: where this end connects to, or where it was connected to.
    pub(crate) hop: SocketAddr,
    /// What the CONNECT asked for: `dst.hbone_addr`.
    pub(crate) tunnelled: Option<Authority>,
    /// What the client asked for, and where it is carried to (`/config_dump`).
    pub(crate) original: SocketAddr,
    pub(crate) actual: SocketAddr,
    /// The other end of a connection joined in process, which does the copying.
    pub(crate) joined: Option<Bytes>,
}

impl Report {
    /// A connection was accepted: `hop` is where it was going as far as the sockets tell.
    pub(crate) fn new(
        node: &Arc<Node>,
        pod: &Arc<Pod>,
        reporter: Reporter,
        source: SocketAddr,
        hop: SocketAddr,
    ) -> Self {
        tracing::event!(
            target: "access",
            Level::DEBUG,
            { src.addr = %source, dst.addr = %hop, direction = direction(reporter) },
            "connection opened"
        );
        Self {
            node: node.clone(),
            pod: pod.clone(),
            reporter,
            started: Instant::now(),
            source,
            hop,
            ends: Ends::default(),
            opened: None,
            outcome: Outcome::Open,
            note: None,
            _open: node.traffic.socket(reporter),
        }
    }

    /// What is known of the ends before it is known whether there will be a connection at all: a refusal on the way
    /// there is counted as failed under these.
    pub(crate) fn between(&mut self, ends: Ends) {
        self.ends = ends;
    }

    /// It is known who talks to whom. Counts the connection as opened and enters it among the open ones.
    pub(crate) fn ends(&mut self, found: Whereabouts<'_>) -> Arc<Live> {
        let series = self
            .node
            .traffic
            .series(self.reporter, &found.ends, found.said);
        series.opened();
        let joined = found.joined.is_some();
        let live = Live::new(
            self.reporter,
            found.protocol,
            (self.source, found.original, found.actual),
            found.ends.source_identity.clone(),
            series.clone(),
            found.joined.unwrap_or_default(),
        );
        let entry = self
            .node
            .connections
            .enter(&self.pod.uid, self.pod.workload_uid(), live);
        let live = entry.live().clone();
        self.hop = found.hop;
        self.ends = found.ends;
        self.opened = Some(Opened {
            series,
            tunnelled: found.tunnelled,
            joined,
            entry,
        });
        live
    }

    /// Something worth knowing that did not end the connection.
    pub(crate) fn note(&mut self, note: &'static str) {
        self.note = Some(note);
    }

    /// Both directions ended as they should.
    pub(crate) fn completed(&mut self) {
        self.outcome = Outcome::Completed;
    }

    /// It was refused, could not be carried, or broke. The first reason stays.
    pub(crate) fn failed(&mut self, why: &dyn Failure) {
        if matches!(self.outcome, Outcome::Open) {
            self.outcome = Outcome::Failed(why.flag(), why.to_string());
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let (flag, error) = match std::mem::replace(&mut self.outcome, Outcome::Completed) {
            Outcome::Completed => (Flag::None, None),
            Outcome::Failed(flag, why) => (flag, Some(why)),
            Outcome::Open => (Flag::None, Some(ABANDONED.to_owned())),
        };
        let opened = self.opened.take();
        let series = match &opened {
            Some(opened) => {
                opened.entry.live().settle();
                opened.series.closed(flag);
                opened.series.clone()
            }
            None => self.node.traffic.series(self.reporter, &self.ends, None),
        };
        if flag != Flag::None {
            series.failed(flag);
        }
        self.write(&series, opened.as_ref(), error.as_deref());
    }
}

const ABANDONED: &str = "connection cut: its pod was removed or this proxy is stopping";

/// One access log line. A macro because a level must be a constant where the line is written.
macro_rules! line {
    ($level:expr, $message:literal, $report:expr, $series:expr, $opened:expr, $error:expr) => {{
        let (report, series, opened): (&Report, &Series, Option<&Opened>) = ($report, $series, $opened);
        let moved = opened.map(|opened| opened.entry.live().moved());
        tracing::event!(
            target: "access",
            $level,
            {
                src.addr = %report.source,
                src.workload = report.ends.source.as_ref().map(|workload| &*workload.name),
                src.namespace = report.ends.source.as_ref().map(|workload| &*workload.namespace),
                src.identity = series.source_principal(),
                dst.addr = %report.hop,
                dst.hbone_addr = opened.and_then(|opened| opened.tunnelled.as_ref()).map(tracing::field::display),
                dst.service = report.ends.service.as_ref().map(|service| &*service.hostname),
                dst.workload = report.ends.destination.as_ref().map(|workload| &*workload.name),
                dst.namespace = report.ends.destination.as_ref().map(|workload| &*workload.namespace),
                dst.identity = series.destination_principal(),
                direction = direction(report.reporter),
                bytes_sent = moved.map(|moved| moved.0),
                bytes_recv = moved.map(|moved| moved.1),
                duration = opened.map(|_| format!("{}ms", report.started.elapsed().as_millis())).as_deref(),
                path = opened.filter(|opened| opened.joined).map(|_| "in-process"),
                note = report.note,
                error = $error,
            },
            $message
        )
    }};
}

impl Report {
    fn write(&self, series: &Series, opened: Option<&Opened>, error: Option<&str>) {
        match (opened, error) {
            (None, _) => line!(
                Level::WARN,
                "connection failed",
                self,
                series,
                opened,
                error
            ),
            (_, None) => line!(
                Level::INFO,
                "connection complete",
                self,
                series,
                opened,
                error
            ),
            (_, Some(_)) => line!(
                Level::ERROR,
                "connection complete",
                self,
                series,
                opened,
                error
            ),
        }
    }
}

fn direction(reporter: Reporter) -> &'static str {
    match reporter {
        Reporter::Source => "outbound",
        Reporter::Destination => "inbound",
    }
}
