//! A connection of a service that does not speak HTTP: opened, moved, closed; one line at its end.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hbone::Identity;
use mesh::{Service, Workload};
use tracing::Level;

use super::facts::{Connection, Ends};
use super::flag::{Flag, Flags};
use super::labels::{Also, How};
use super::line::{Millis, known, principal};
use super::logs::{self, Written};
use super::series::{Destination, Series};
use super::told::{Line, Told};
use super::{Caller, Protocol, Reports};

/// The record of one connection; writes itself when dropped.
#[derive(Debug)]
pub struct TcpReport {
    reports: Reports,
    caller: Arc<Caller>,
    began: Instant,
    to: Destination,
    upstream: Option<SocketAddr>,
    port: u16,
    meant: Option<SocketAddr>,
    sni: Option<Box<str>>,
    route: Option<Arc<str>>,
    policy: Option<Arc<str>>,
    flags: Flags,
    detail: Option<Cow<'static, str>>,
    /// Where it counts since it was opened.
    open: Option<Arc<Series>>,
    sent: u64,
    received: u64,
    /// None: nothing but a line.
    told: Option<Arc<Told>>,
}

impl TcpReport {
    pub(super) fn new(reports: Reports, caller: Arc<Caller>, now: Instant) -> Self {
        Self {
            reports,
            caller,
            began: now,
            to: Destination::default(),
            upstream: None,
            port: 0,
            meant: None,
            sni: None,
            route: None,
            policy: None,
            flags: Flags::default(),
            detail: None,
            open: None,
            sent: 0,
            received: 0,
            told: None,
        }
    }

    /// What is told of it. Before it is opened.
    pub fn told(&mut self, told: &Arc<Told>) {
        if !told.is_plain() {
            self.told = Some(told.clone());
        }
    }

    /// The service and its port that it is for.
    pub fn service(&mut self, service: &Arc<Service>, port: u16) {
        self.to.service = Some(service.clone());
        self.port = port;
    }

    /// The address that the client meant.
    pub fn meant(&mut self, address: SocketAddr) {
        self.meant = Some(address);
    }

    /// The server's name that the client asks for, if it speaks TLS.
    pub fn named(&mut self, name: Option<&str>) {
        self.sni = name.map(Box::from);
    }

    /// The rule it belongs to.
    pub fn routed(&mut self, rule: Arc<str>) {
        self.route = Some(rule);
    }

    /// The policy that refused it.
    pub fn denied(&mut self, policy: Arc<str>) {
        self.policy = Some(policy);
    }

    /// Where it goes.
    pub fn tried(
        &mut self,
        workload: &Arc<Workload>,
        address: SocketAddr,
        identity: Option<&Identity>,
    ) {
        self.upstream = Some(address);
        self.to.workload = Some(workload.clone());
        self.to.identity = identity.cloned();
    }

    /// The endpoint took it: from here it counts.
    pub fn opened(&mut self) {
        let series = self.series(Flags::default());
        series.opened();
        self.open = Some(series);
    }

    /// More bytes went to the client and came from it. Cheap: may be told every now and then, or once at the end.
    pub fn moved(&mut self, sent: u64, received: u64) {
        self.sent += sent;
        self.received += received;
        if let Some(series) = &self.open {
            series.moved(sent, received);
        }
    }

    /// Something went differently.
    pub fn flag(&mut self, flag: Flag) {
        self.flags = self.flags.with(flag);
    }

    /// Why, for a person. The first reason stays.
    pub fn detail(&mut self, why: impl Into<Cow<'static, str>>) {
        self.detail.get_or_insert_with(|| why.into());
    }

    fn series(&self, flags: Flags) -> Arc<Series> {
        let how = How {
            protocol: Protocol::Tcp,
            code: 0,
            grpc: None,
            flags,
        };
        let shape = self.told.as_ref().and_then(|it| it.metrics.as_ref());
        let also = shape.map(|shape| Also {
            values: shape.values(&self.ended(self.began.elapsed())),
            shape: shape.clone(),
        });
        let (reports, caller) = (&self.reports, &self.caller);
        let table = &reports.table;
        table.find(reports.reporter, caller, &self.to, how, also)
    }

    fn ended(&self, took: Duration) -> Connection<'_> {
        Connection {
            ends: Ends {
                caller: &self.caller,
                to: &self.to,
                port: self.port,
                meant: self.meant,
                sni: self.sni.as_deref(),
                upstream: self.upstream,
                flags: self.flags,
            },
            route: self.route.as_deref(),
            policy: self.policy.as_deref(),
            detail: self.detail.as_deref(),
            took,
            sent: self.sent,
            received: self.received,
            ended: SystemTime::now(),
        }
    }

    /// Whether it has a line as we write it; others are told of it.
    fn tell(&self, told: &Told) -> bool {
        let ended = self.ended(self.began.elapsed());
        for log in &told.logs {
            if let Written::Line(line) = logs::tell(log, &ended, None, ended.ended)
                && let Some(log) = &self.reports.log
            {
                log.line(line.as_bytes());
            }
        }
        match &told.line {
            Line::Each => true,
            Line::When(condition) => condition.holds(&ended),
            Line::Never => false,
        }
    }
}

/// A macro because a level must be a constant where the line is written.
macro_rules! line {
    ($level:expr, $report:expr) => {{
        let report: &TcpReport = $report;
        let to = &report.to;
        tracing::event!(
            target: ops::log::ACCESS,
            $level,
            {
                src.addr = %report.caller.client.address,
                src.workload = known(&report.caller.side.workload),
                src.namespace = known(&report.caller.side.namespace),
                src.identity = principal(&report.caller.side),
                dst.addr = report.upstream.map(tracing::field::display),
                dst.service = to.service.as_ref().map(|service| &*service.hostname),
                dst.port = to.service.as_ref().map(|_| report.port),
                dst.workload = to.workload.as_ref().map(|workload| workload.name()),
                dst.namespace = to.workload.as_ref().map(|workload| &*workload.namespace),
                dst.identity = to.identity.as_ref().map(tracing::field::display),
                protocol = "TCP",
                flags = %report.flags,
                route = report.route.as_deref(),
                policy = report.policy.as_deref(),
                bytes_sent = report.sent,
                bytes_recv = report.received,
                duration = %Millis(report.began.elapsed()),
                detail = report.detail.as_deref(),
            },
            "connection complete"
        )
    }};
}

impl Drop for TcpReport {
    fn drop(&mut self) {
        let series = self.series(self.flags);
        if self.open.is_some() {
            series.closed();
        } else {
            series.failed();
        }
        if self.told.as_ref().is_some_and(|told| !self.tell(told)) {
            return;
        }
        if self.open.is_none() || self.flags.are_trouble() {
            line!(Level::WARN, self);
        } else {
            line!(Level::INFO, self);
        }
    }
}
