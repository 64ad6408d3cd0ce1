//! A connection of a service that does not speak HTTP: opened, moved, closed; one line at its end.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use hbone::Identity;
use mesh::{Service, Workload};
use tracing::Level;

use super::flag::{Flag, Flags};
use super::labels::How;
use super::line::{Millis, known, principal};
use super::series::{Destination, Series};
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
    route: Option<Arc<str>>,
    policy: Option<Arc<str>>,
    flags: Flags,
    detail: Option<Cow<'static, str>>,
    /// Where it counts since it was opened.
    open: Option<Arc<Series>>,
    sent: u64,
    received: u64,
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
            route: None,
            policy: None,
            flags: Flags::default(),
            detail: None,
            open: None,
            sent: 0,
            received: 0,
        }
    }

    /// The service and its port that it is for.
    pub fn service(&mut self, service: &Arc<Service>, port: u16) {
        self.to.service = Some(service.clone());
        self.port = port;
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
        let reports = &self.reports;
        reports
            .table
            .find(reports.reporter, &self.caller, &self.to, how)
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
        if self.open.is_none() || self.flags.are_trouble() {
            line!(Level::WARN, self);
        } else {
            line!(Level::INFO, self);
        }
    }
}
