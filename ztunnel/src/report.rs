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

use hbone::{Authority, Identity};
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
    known: Option<Known>,
    outcome: Outcome,
    note: Option<&'static str>,
    _open: OpenSocket,
}

/// From the moment both ends are known.
struct Known {
    ends: Ends,
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
        tracing::event!(target: "access", Level::DEBUG, src.addr = %source, dst.addr = %hop, direction = direction(reporter), "connection opened");
        Self {
            node: node.clone(),
            pod: pod.clone(),
            reporter,
            started: Instant::now(),
            source,
            hop,
            known: None,
            outcome: Outcome::Open,
            note: None,
            _open: node.traffic.socket(reporter),
        }
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
        self.known = Some(Known {
            ends: found.ends,
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
        let known = self.known.take();
        if let Some(known) = &known {
            known.entry.live().settle();
            known.series.closed(flag, flag != Flag::None);
        }
        self.write(known.as_ref(), error.as_deref());
    }
}

const ABANDONED: &str = "connection cut: its pod was removed or this proxy is stopping";

/// One access log line. A macro because a level must be a constant where the line is written.
macro_rules! line {
    ($level:expr, $message:literal, $r:expr, $k:expr, $moved:expr, $duration:expr, $error:expr) => {
        tracing::event!(
            target: "access",
            $level,
            {
                src.addr = %$r.source,
                src.workload = $k.and_then(|k| k.ends.source.as_ref()).map(|w| &*w.name),
                src.namespace = $k.and_then(Known::source_namespace),
                src.identity = $k.and_then(|k| k.series.source_principal()),
                dst.addr = %$r.hop,
                dst.hbone_addr = $k.and_then(|k| k.tunnelled.as_ref()).map(tracing::field::display),
                dst.service = $k.and_then(|k| k.ends.service.as_ref()).map(|s| &*s.hostname),
                dst.workload = $k.and_then(|k| k.ends.destination.as_ref()).map(|w| &*w.name),
                dst.namespace = $k.and_then(|k| k.ends.destination.as_ref()).map(|w| &*w.namespace),
                dst.identity = $k.and_then(|k| k.series.destination_principal()),
                direction = direction($r.reporter),
                bytes_sent = $moved.map(|moved: (u64, u64)| moved.0),
                bytes_recv = $moved.map(|moved: (u64, u64)| moved.1),
                duration = $duration,
                path = $k.filter(|k| k.joined).map(|_| "in-process"),
                note = $r.note,
                error = $error,
            },
            $message
        )
    };
}

impl Report {
    fn write(&self, known: Option<&Known>, error: Option<&str>) {
        let Some(known) = known else {
            line!(
                Level::WARN,
                "connection failed",
                self,
                None::<&Known>,
                None,
                None::<&str>,
                error
            );
            return;
        };
        let moved = Some(known.entry.live().moved());
        let duration = format!("{}ms", self.started.elapsed().as_millis());
        let duration = Some(duration.as_str());
        match error {
            None => line!(
                Level::INFO,
                "connection complete",
                self,
                Some(known),
                moved,
                duration,
                error
            ),
            Some(_) => line!(
                Level::ERROR,
                "connection complete",
                self,
                Some(known),
                moved,
                duration,
                error
            ),
        }
    }
}

impl Known {
    fn source_namespace(&self) -> Option<&str> {
        let ends = &self.ends;
        let proven = ends.source_identity.as_ref().map(Identity::namespace);
        ends.source
            .as_ref()
            .map(|workload| &*workload.namespace)
            .or(proven)
    }
}

fn direction(reporter: Reporter) -> &'static str {
    match reporter {
        Reporter::Source => "outbound",
        Reporter::Destination => "inbound",
    }
}
