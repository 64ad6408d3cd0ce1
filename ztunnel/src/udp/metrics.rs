//! What of UDP is counted for the whole node: few series, whatever workloads there are. Bytes and flows by who talks to
//! whom are in the `istio_tcp_*` families with `request_protocol="udp"`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Counters = Family<[(&'static str, &'static str); 1], Counter>;

/// Clones share the counters.
#[derive(Debug, Clone)]
pub struct UdpMetrics {
    flows: Counters,
    open: Gauge,
    datagrams: Counters,
    /// Of `datagrams`: counted with each of them.
    sent: Counter,
    received: Counter,
    lost: Counters,
}

impl Default for UdpMetrics {
    fn default() -> Self {
        let datagrams = Counters::default();
        let counter = |direction| datagrams.get_or_create(&[("direction", direction)]).clone();
        Self {
            flows: Counters::default(),
            open: Gauge::default(),
            sent: counter("sent"),
            received: counter("received"),
            datagrams,
            lost: Counters::default(),
        }
    }
}

/// What became of a flow.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// It left in a tunnel.
    Tunnel,
    /// It left as it is.
    Plain,
    /// It came in a tunnel.
    Arrived,
    /// It came as it is.
    ArrivedPlain,
    /// It was not carried.
    Refused,
}

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lost {
    /// As many wait as may.
    Queue,
    /// There are as many flows as there may be.
    Flows,
    /// Its flow is refused.
    Refused,
    /// It is too large for where it goes.
    TooLarge,
    /// Nobody listens there.
    Closed,
    /// The kernel did not take it.
    Kernel,
}

/// Seen from the app at this end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moved {
    Sent,
    Received,
}

impl UdpMetrics {
    /// Enters them into `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let Self {
            flows,
            open,
            datagrams,
            lost,
            ..
        } = self.clone();
        registry.register(
            "ambit_udp_flows",
            "Flows of UDP, by what became of them",
            flows,
        );
        registry.register(
            "ambit_udp_flows_open",
            "Flows of UDP that are open now",
            open,
        );
        registry.register(
            "ambit_udp_datagrams",
            "Datagrams that apps of this node sent and received",
            datagrams,
        );
        registry.register(
            "ambit_udp_dropped",
            "Datagrams that were not delivered, by reason",
            lost,
        );
    }

    pub(super) fn flow(&self, way: Way) {
        let way = match way {
            Way::Tunnel => "tunnel",
            Way::Plain => "plain",
            Way::Arrived => "arrived",
            Way::ArrivedPlain => "arrived_plain",
            Way::Refused => "refused",
        };
        self.flows.get_or_create(&[("way", way)]).inc();
    }

    pub(super) fn lost(&self, why: Lost) {
        let reason = match why {
            Lost::Queue => "queue",
            Lost::Flows => "flows",
            Lost::Refused => "refused",
            Lost::TooLarge => "too_large",
            Lost::Closed => "closed",
            Lost::Kernel => "kernel",
        };
        self.lost.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn moved(&self, moved: Moved) {
        match moved {
            Moved::Sent => self.sent.inc(),
            Moved::Received => self.received.inc(),
        };
    }

    /// One more is open, until what is given back is dropped.
    pub(super) fn opened(&self) -> Open {
        self.open.inc();
        Open(self.open.clone())
    }
}

/// A flow that is open.
pub(super) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
