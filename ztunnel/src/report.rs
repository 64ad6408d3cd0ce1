//! One report per connection per end, exactly once whatever happened: it writes itself when dropped.
//!
//! 1. made when the connection is accepted, with what the sockets say;
//! 2. `ends` when it is known who talks to whom: from here it counts in the metrics and is listed as open;
//! 3. `completed` or `failed`; a report dropped without either says that the connection was abandoned (pod removed,
//!    proxy stopping);
//! 4. dropped: metrics, then one line in the log under target `access`, in Istio's format and field order. Ours stand
//!    between `duration` and `error`; what went wrong comes with a hint ([`Hint`]) of what to do about it.
//!
//! A report that another process began goes on at 3 ([`Report::resumed`]); one that another process goes on with says
//! nothing here.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use hbone::Authority;
use mesh::{GatewayAddress, GatewayTarget, Snapshot};
use tracing::Level;

use crate::arrival;
use crate::connections::{Bytes, Entry, Live, Protocol, Story};
use crate::handover::Told;
use crate::headers::Baggage;
use crate::hint::Hint;
use crate::node::Node;
use crate::pod::Pod;
use crate::traffic::{Ends, Flag, Reporter, Series};

/// A reason why a connection failed, as logs and metrics want it.
pub(crate) trait Failure: fmt::Display {
    /// Label `response_flags`.
    fn flag(&self) -> Flag;

    /// What a person can do about it; none where it is the peers' own affair.
    fn hint(&self) -> Option<Hint>;

    /// The policy, or the setting, that decided.
    fn policy(&self) -> Option<&Arc<str>> {
        None
    }
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
    /// It is a flow of UDP.
    datagrams: bool,
}

enum Outcome {
    /// Neither completed nor failed yet.
    Open,
    Completed,
    Failed(Box<Why>),
}

/// How a connection failed.
struct Why {
    flag: Flag,
    error: Cow<'static, str>,
    hint: Option<Hint>,
    policy: Option<Arc<str>>,
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
            datagrams: false,
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

    /// It is a flow of UDP that is reported. To be said first.
    pub(crate) fn of_datagrams(mut self) -> Self {
        if let Known::Early(early) = &mut self.known {
            early.datagrams = true;
        }
        self
    }

    /// The endpoint of [`Report::ends`] was of no use; another one is tried.
    pub(crate) fn another(&mut self, why: &dyn Failure) {
        self.failed_before = (self.failed_before.0.saturating_add(1), why.flag());
        self.count_revoked(why.hint());
    }

    /// By the hint and not by the flag, which is also that of an end that hears that it was revoked itself: whoever does not
    /// believe the other one counts.
    fn count_revoked(&self, hint: Option<Hint>) {
        if hint == Some(Hint::Revoked) {
            self.node.traffic.revoked(self.known.reporter());
        }
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
        let outside = found.ends.destination.is_none() && found.ends.service.is_none();
        let live = self.enter(found, outside, (joined, bytes));
        live.series().opened();
        live
    }

    fn enter(
        &mut self,
        found: Whereabouts<'_>,
        outside: bool,
        (joined, bytes): (bool, Bytes),
    ) -> Arc<Live> {
        let said = found.said.filter(|_| found.ends.source.is_none());
        let reporter = self.known.reporter();
        let shared = self.node.traffic.between(
            reporter,
            found.ends,
            said.map(Baggage::parse),
            found.protocol == Protocol::Udp,
        );
        let (ends, series) = shared;
        let waypoint = match found.protocol {
            Protocol::Hbone => waypoint(&self.node.mesh.load(), reporter, &ends, found.original),
            Protocol::Tcp | Protocol::Udp => None,
        };
        let story = Story {
            started: self.known.started(),
            hop: found.hop,
            ends,
            outside,
            said: said.map(Box::from),
            tunnelled: found.tunnelled,
            waypoint,
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
            datagrams: false,
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
        // As it was when it was opened: who is not known here (yet) is not outside for that.
        let outside = told.ends.destination.is_none() && told.ends.service.is_none();
        let live = report.enter(found, outside, (joined, bytes));
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
            self.outcome = Outcome::Failed(Box::new(Why {
                flag: why.flag(),
                error: why.to_string().into(),
                hint: why.hint(),
                policy: why.policy().cloned(),
            }));
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.node.traffic.socket_closed(self.known.reporter());
        let failed = match std::mem::replace(&mut self.outcome, Outcome::Completed) {
            Outcome::Completed => None,
            Outcome::Failed(failed) => Some(*failed),
            Outcome::Open => Some(Why {
                flag: Flag::None,
                error: ABANDONED.into(),
                hint: Some(Hint::PodGoing),
                policy: None,
            }),
        };
        let flag = failed.as_ref().map_or(Flag::None, |why| why.flag);
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
            Known::Early(early) => {
                let (traffic, ends) = (&self.node.traffic, early.ends.clone());
                traffic
                    .between(early.reporter, ends, None, early.datagrams)
                    .1
            }
        };
        if flag != Flag::None {
            series.failed(flag);
        }
        self.count_revoked(failed.as_ref().and_then(|why| why.hint));
        self.write(&series, failed.as_ref());
    }
}

const ABANDONED: &str = "connection cut: its pod was removed or this proxy is stopping";

/// One access log line. A macro because a level must be a constant where the line is written.
macro_rules! line {
    ($level:expr, $message:literal, $report:expr, $series:expr, $failed:expr) => {{
        let (report, series, failed): (&Report, &Series, Option<&Why>) = ($report, $series, $failed);
        let flag = failed.map(|why| why.flag).filter(|flag| *flag != Flag::None);
        let allowed_by = report.known.live().and_then(|live| live.policy());
        let decided_by = failed.and_then(|why| why.policy.as_deref()).or(allowed_by.as_deref());
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
                protocol = report.known.is_datagrams().then_some("udp"),
                bytes_sent = moved.map(|moved| moved.0),
                bytes_recv = moved.map(|moved| moved.1),
                duration = live.map(|_| format!("{}ms", report.known.started().elapsed().as_millis())).as_deref(),
                tries = (report.failed_before.0 > 0).then_some(report.failed_before.0 + 1),
                waypoint = live.and_then(|live| live.story.waypoint.as_deref()).map(|it| tracing::field::display(Name(it))),
                policy = decided_by,
                response_flags = flag.map(Flag::label),
                path = matches!(report.known, Known::Both { joined: true, .. }).then_some("in-process"),
                note = live.and_then(|live| live.story.note.get()).map(|note| &***note),
                hint = failed.and_then(|why| why.hint).map(Hint::text),
                error = failed.map(|why| &*why.error),
            },
            $message
        )
    }};
}

impl Report {
    fn write(&self, series: &Series, failed: Option<&Why>) {
        match (self.known.live(), failed) {
            (None, _) => line!(Level::WARN, "connection failed", self, series, failed),
            (_, None) => line!(Level::INFO, "connection complete", self, series, failed),
            (_, Some(_)) => line!(Level::ERROR, "connection complete", self, series, failed),
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

    fn is_datagrams(&self) -> bool {
        match self {
            Self::Early(early) => early.datagrams,
            Self::Both { entry, .. } => entry.live().protocol == Protocol::Udp,
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

/// The waypoint at the other end, seen from who calls it; at the end of who is called by it, the one that calls.
fn waypoint(
    snapshot: &Snapshot,
    reporter: Reporter,
    ends: &Ends,
    original: SocketAddr,
) -> Option<Arc<GatewayAddress>> {
    let (other, own) = match reporter {
        Reporter::Source => (ends.destination.as_ref()?, ends.source.as_ref()?),
        Reporter::Destination => (ends.source.as_ref()?, ends.destination.as_ref()?),
    };
    let of_service = ends.service.as_ref().into_iter().flat_map(|service| {
        let weighted = service.weighted_waypoints.iter();
        service
            .waypoint
            .iter()
            .chain(weighted.map(|(waypoint, _)| waypoint))
    });
    let of_workload = match reporter {
        // Whoever was called by a workload's own address: another one answers for it.
        Reporter::Source if ends.service.is_none() => snapshot
            .workload_at(&own.network, original.ip())
            .and_then(|called| called.waypoint.as_ref()),
        Reporter::Source => None,
        Reporter::Destination => own.waypoint.as_ref(),
    };
    of_service
        .chain(of_workload)
        .find(|waypoint| arrival::leads_to(snapshot, other, waypoint))
        .cloned()
}

/// `namespace/host`, or the address by which it is known.
pub(crate) struct Name<'a>(pub(crate) &'a GatewayAddress);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.target {
            GatewayTarget::Host(host) => fmt::Display::fmt(host, f),
            GatewayTarget::Address(_, ip) => fmt::Display::fmt(ip, f),
        }
    }
}
