//! One report per connection per end, exactly once whatever happened: it writes itself when dropped.
//!
//! 1. made when the connection is accepted, with what the sockets say;
//! 2. `ends` when it is known who talks to whom: from here it counts in the metrics and is listed as open;
//! 3. `completed` or `failed`; a report dropped without either says that the connection was abandoned (pod removed,
//!    proxy stopping);
//! 4. dropped: metrics, then one line in the log under target `access`, in Istio's format and field order.
//!
//! A report that another process began goes on at 3 ([`Report::resumed`]); one that another process goes on with says
//! nothing here.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use hbone::Authority;
use tracing::Level;

use crate::connections::{Bytes, Entry, Live, Protocol, Story};
use crate::handover::Told;
use crate::headers::Baggage;
use crate::node::Node;
use crate::pod::Pod;
use crate::traffic::{Ends, Flag, Reporter, Series};

/// A reason why a connection failed, as logs and metrics want it.
pub(crate) trait Failure: fmt::Display {
    /// Label `response_flags`.
    fn flag(&self) -> Flag;
}

/// The record of one connection at one of its ends.
pub(crate) struct Report {
    node: Arc<Node>,
    pod: Arc<Pod>,
    known: Known,
    outcome: Outcome,
    /// Endpoints that failed before the present one, and how the last of them did.
    failed_before: (u8, Flag),
}

/// Small, because it is kept as long as a connection is open: what is known early goes where all is known.
enum Known {
    /// Not yet, or not all.
    Early(Box<Early>),
    /// Both ends: it is among the open connections.
    Both { joined: bool, entry: Entry },
}

/// What is known of a connection from the start.
struct Early {
    reporter: Reporter,
    started: Instant,
    source: SocketAddr,
    hop: SocketAddr,
    ends: Ends,
}

enum Outcome {
    /// Neither completed nor failed yet.
    Open,
    Completed,
    Failed(Box<(Flag, String)>),
}

/// Who and where the two ends are, once known.
pub(crate) struct Whereabouts<'a> {
    pub(crate) ends: Ends,
    /// What the source said of itself (`baggage`); used for labels where its workload is not known.
    pub(crate) said: Option<&'a str>,
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
            target: ops::log::ACCESS,
            Level::DEBUG,
            { src.addr = %source, dst.addr = %hop, direction = direction(reporter) },
            "connection opened"
        );
        let early = Early {
            reporter,
            started: Instant::now(),
            source,
            hop,
            ends: Ends::default(),
        };
        Self::begun(node, pod, early)
    }

    fn begun(node: &Arc<Node>, pod: &Arc<Pod>, early: Early) -> Self {
        node.traffic.socket_opened(early.reporter);
        Self {
            node: node.clone(),
            pod: pod.clone(),
            known: Known::Early(Box::new(early)),
            outcome: Outcome::Open,
            failed_before: (0, Flag::None),
        }
    }

    /// The endpoint of [`Report::ends`] was of no use; another one is tried.
    pub(crate) fn another(&mut self, why: Flag) {
        self.failed_before = (self.failed_before.0.saturating_add(1), why);
    }

    /// What is known of the ends before it is known whether there will be a connection at all: a refusal on the way
    /// there is counted as failed under these.
    pub(crate) fn between(&mut self, between: Ends) {
        if let Known::Early(early) = &mut self.known {
            early.ends = between;
        }
    }

    /// It is known who talks to whom. Counts the connection as opened and enters it among the open ones.
    pub(crate) fn ends(&mut self, mut found: Whereabouts<'_>) -> Arc<Live> {
        let joined = found.joined.is_some();
        let bytes = found.joined.take().unwrap_or_default();
        if let Known::Both { entry, .. } = &self.known {
            // Each endpoint that was tried is counted as opened and as closed; the connection fails at most once.
            entry.live().series().closed(self.failed_before.1);
        }
        let live = self.enter(found, joined, bytes);
        live.series().opened();
        live
    }

    fn enter(&mut self, found: Whereabouts<'_>, joined: bool, bytes: Bytes) -> Arc<Live> {
        let said = found.said.filter(|_| found.ends.source.is_none());
        let reporter = self.known.reporter();
        let shared = self
            .node
            .traffic
            .between(reporter, found.ends, said.map(Baggage::parse));
        let (ends, series) = shared;
        let story = Story {
            started: self.known.started(),
            hop: found.hop,
            ends,
            said: said.map(Box::from),
            tunnelled: found.tunnelled,
            note: OnceLock::new(),
        };
        let live = Live::new(
            reporter,
            found.protocol,
            (self.known.source(), found.original, found.actual),
            story,
            series,
            bytes,
        );
        let entry = self
            .node
            .connections
            .enter(&self.pod.uid, self.pod.workload_uid(), live);
        let live = entry.live().clone();
        self.known = Known::Both { joined, entry };
        live
    }

    /// Goes on with a report that another process began; what had moved by then is in `bytes`. What was opened there
    /// is not counted as opened again.
    pub(crate) fn resumed(
        node: &Arc<Node>,
        pod: &Arc<Pod>,
        told: &Told,
        joined: bool,
        bytes: Bytes,
    ) -> (Self, Arc<Live>) {
        let now = Instant::now();
        let early = Early {
            reporter: told.reporter,
            started: now.checked_sub(told.age).unwrap_or(now),
            source: told.source,
            hop: told.hop,
            ends: Ends::default(),
        };
        let mut report = Self::begun(node, pod, early);
        let ends = told.ends.found_in(&node.mesh.load());
        let found = Whereabouts {
            ends,
            said: told.said.as_deref(),
            protocol: told.protocol,
            hop: told.hop,
            tunnelled: told.tunnelled.clone(),
            original: told.original,
            actual: told.actual,
            joined: None,
        };
        let live = report.enter(found, joined, bytes);
        if let Some(note) = &told.note {
            report.note(note.clone());
        }
        live.settled_elsewhere();
        (report, live)
    }

    /// Something worth knowing that did not end the connection.
    pub(crate) fn note(&mut self, note: impl Into<Cow<'static, str>>) {
        if let Known::Both { entry, .. } = &self.known {
            let _ = entry.live().story.note.set(Box::new(note.into()));
        }
    }

    /// Both directions ended as they should.
    pub(crate) fn completed(&mut self) {
        self.outcome = Outcome::Completed;
    }

    /// It was refused, could not be carried, or broke. The first reason stays.
    pub(crate) fn failed(&mut self, why: &dyn Failure) {
        if matches!(self.outcome, Outcome::Open) {
            self.outcome = Outcome::Failed(Box::new((why.flag(), why.to_string())));
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.node.traffic.socket_closed(self.known.reporter());
        let (flag, error) = match std::mem::replace(&mut self.outcome, Outcome::Completed) {
            Outcome::Completed => (Flag::None, None),
            Outcome::Failed(failed) => (failed.0, Some(failed.1)),
            Outcome::Open => (Flag::None, Some(ABANDONED.to_owned())),
        };
        let series = match &self.known {
            Known::Both { entry, .. } => {
                let live = entry.live();
                live.settle();
                if live.has_left() {
                    return;
                }
                live.series().closed(flag);
                live.series().clone()
            }
            Known::Early(early) => self.node.traffic.series(early.reporter, &early.ends, None),
        };
        if flag != Flag::None {
            series.failed(flag);
        }
        self.write(&series, error.as_deref());
    }
}

const ABANDONED: &str = "connection cut: its pod was removed or this proxy is stopping";

/// One access log line. A macro because a level must be a constant where the line is written.
macro_rules! line {
    ($level:expr, $message:literal, $report:expr, $series:expr, $error:expr) => {{
        let (report, series): (&Report, &Series) = ($report, $series);
        let (hop, ends) = report.known.whereabouts();
        let live = report.known.live();
        let moved = live.map(|live| live.moved());
        tracing::event!(
            target: ops::log::ACCESS,
            $level,
            {
                src.addr = %report.known.source(),
                src.workload = ends.source.as_ref().map(|workload| workload.name()),
                src.namespace = ends.source.as_ref().map(|workload| &*workload.namespace),
                src.identity = series.source_principal(),
                dst.addr = %hop,
                dst.hbone_addr = live.and_then(|live| live.story.tunnelled.as_ref()).map(tracing::field::display),
                dst.service = ends.service.as_ref().map(|service| &*service.hostname),
                dst.workload = ends.destination.as_ref().map(|workload| workload.name()),
                dst.namespace = ends.destination.as_ref().map(|workload| &*workload.namespace),
                dst.identity = series.destination_principal(),
                direction = direction(report.known.reporter()),
                bytes_sent = moved.map(|moved| moved.0),
                bytes_recv = moved.map(|moved| moved.1),
                duration = live.map(|_| format!("{}ms", report.known.started().elapsed().as_millis())).as_deref(),
                tries = (report.failed_before.0 > 0).then_some(report.failed_before.0 + 1),
                path = matches!(report.known, Known::Both { joined: true, .. }).then_some("in-process"),
                note = live.and_then(|live| live.story.note.get()).map(|note| &***note),
                error = $error,
            },
            $message
        )
    }};
}

impl Report {
    fn write(&self, series: &Series, error: Option<&str>) {
        match (self.known.live(), error) {
            (None, _) => line!(Level::WARN, "connection failed", self, series, error),
            (_, None) => line!(Level::INFO, "connection complete", self, series, error),
            (_, Some(_)) => line!(Level::ERROR, "connection complete", self, series, error),
        }
    }
}

impl Known {
    fn whereabouts(&self) -> (SocketAddr, &Ends) {
        match self {
            Self::Early(early) => (early.hop, &early.ends),
            Self::Both { entry, .. } => (entry.live().story.hop, &entry.live().story.ends),
        }
    }

    fn reporter(&self) -> Reporter {
        match self {
            Self::Early(early) => early.reporter,
            Self::Both { entry, .. } => entry.live().reporter,
        }
    }

    fn started(&self) -> Instant {
        match self {
            Self::Early(early) => early.started,
            Self::Both { entry, .. } => entry.live().story.started,
        }
    }

    fn source(&self) -> SocketAddr {
        match self {
            Self::Early(early) => early.source,
            Self::Both { entry, .. } => entry.live().source,
        }
    }

    fn live(&self) -> Option<&Arc<Live>> {
        match self {
            Self::Early(_) => None,
            Self::Both { entry, .. } => Some(entry.live()),
        }
    }
}

fn direction(reporter: Reporter) -> &'static str {
    match reporter {
        Reporter::Source => "outbound",
        Reporter::Destination => "inbound",
    }
}
