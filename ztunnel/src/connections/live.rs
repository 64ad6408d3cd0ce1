//! One open connection, seen from one of its ends: what policies judge, what its bytes are counted by, what its report
//! will say, what carries it, and which process goes on with it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use hbone::handover::Freezer;
use hbone::{Authority, Counters, Identity};
use mesh::GatewayAddress;
use tokio::sync::Notify;

use super::Protocol;
use crate::admit::Denied;
use crate::pod::Pod;
use crate::traffic::{Ends, Reporter, Series};

/// One open connection, seen from one of its ends.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) reporter: Reporter,
    pub(crate) protocol: Protocol,
    /// The client as this end sees it.
    pub(crate) source: SocketAddr,
    /// What the client asked for.
    pub(crate) original: SocketAddr,
    /// Where this end carries it to.
    pub(crate) actual: SocketAddr,
    series: Arc<Series>,
    bytes: Bytes,
    /// Bytes already in the metrics, (sent, received).
    settled: (AtomicU64, AtomicU64),
    /// Not yet judged by `rejudge`, only on arrival.
    pub(crate) fresh: AtomicBool,
    denied: OnceLock<Box<Denied>>,
    /// The policy that let it in, the last time it was judged; none where no policy had to.
    allowed_by: Mutex<Option<Arc<str>>>,
    cut: Notify,
    pub(crate) story: Story,
    carrier: OnceLock<Carrier>,
    /// Stopped, until it is decided which process goes on with it.
    held: AtomicBool,
    /// Another process goes on with it, and reports.
    left: AtomicBool,
}

/// What is said of a connection at its end.
#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) started: Instant,
    /// `dst.addr`.
    pub(crate) hop: SocketAddr,
    /// Shared by all connections between them.
    pub(crate) ends: Arc<Ends>,
    /// Nobody was known at the other end when it was opened.
    pub(crate) outside: bool,
    /// What the source said of itself, where nothing else is known of it.
    pub(crate) said: Option<Box<str>>,
    /// `dst.hbone_addr`.
    pub(crate) tunnelled: Option<Authority>,
    /// The waypoint that is at one of its ends.
    pub(crate) waypoint: Option<Arc<GatewayAddress>>,
    pub(crate) note: OnceLock<Box<Cow<'static, str>>>,
}

/// What its bytes go through.
#[derive(Debug)]
pub(crate) enum Carrier {
    /// A tunnel, as the stream of this number.
    Tunnel(Freezer, u32),
    /// Two sockets.
    Pair(Freezer),
    /// Two sockets, of which the other is that of a pod of this node.
    Joined(Freezer, Arc<Pod>, Weak<Live>),
}

/// Where this end's byte counts are kept.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// The copy loop counts here.
    Own(Counters),
    /// A joined connection is copied once and seen from two ends: what one sent the other received.
    MirrorOf(Arc<Live>),
}

impl Default for Bytes {
    fn default() -> Self {
        Self::Own(Counters::default())
    }
}

/// What a copy counts into, as long as it is under way.
pub(crate) struct Counting(Arc<Live>);

impl Deref for Counting {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        self.0.counters()
    }
}

impl Live {
    pub(crate) fn new(
        reporter: Reporter,
        protocol: Protocol,
        (source, original, actual): (SocketAddr, SocketAddr, SocketAddr),
        story: Story,
        series: Arc<Series>,
        bytes: Bytes,
    ) -> Self {
        let (denied, allowed_by, cut, carrier, held, left) = Default::default();
        let fresh = AtomicBool::new(true);
        Self {
            reporter,
            protocol,
            source,
            original,
            actual,
            series,
            bytes,
            settled: <(AtomicU64, AtomicU64)>::default(),
            fresh,
            denied,
            allowed_by,
            cut,
            story,
            carrier,
            held,
            left,
        }
    }

    /// What moved before it came here is in the metrics of the process that had it.
    pub(crate) fn settled_elsewhere(&self) {
        let (sent, received) = self.moved();
        self.settled.0.store(sent, Relaxed);
        self.settled.1.store(received, Relaxed);
    }

    /// The metrics it counts in.
    pub(crate) fn series(&self) -> &Arc<Series> {
        &self.series
    }

    /// It is copied by this from now on.
    pub(crate) fn carried_by(&self, carrier: Carrier) {
        let _ = self.carrier.set(carrier);
    }

    /// What copies it, when it is being copied.
    pub(crate) fn carrier(&self) -> Option<&Carrier> {
        self.carrier.get()
    }

    /// It came to its pod.
    pub(crate) fn is_inbound(&self) -> bool {
        self.reporter == Reporter::Destination
    }

    /// It leaves for where nobody was known.
    pub(crate) fn goes_out(&self) -> bool {
        !self.is_inbound() && self.story.outside
    }

    /// It has stopped, and it is not decided which process goes on with it: whether it is denied is that one's affair.
    pub(crate) fn hold(&self) {
        self.held.store(true, SeqCst);
    }

    /// It goes on here.
    pub(crate) fn release(&self) {
        self.held.store(false, SeqCst);
        self.cut.notify_one();
    }

    /// Another process goes on with it: nothing is to be said of it here.
    pub(crate) fn leave(&self) {
        self.left.store(true, SeqCst);
    }

    /// See [`Live::leave`].
    pub(crate) fn has_left(&self) -> bool {
        self.left.load(SeqCst)
    }

    /// It was judged, and this policy lets it in; none if none had to.
    pub(crate) fn allowed_by(&self, policy: Option<Arc<str>>) {
        *self.allower() = policy;
    }

    /// The policy that let it in.
    pub(crate) fn policy(&self) -> Option<Arc<str>> {
        self.allower().clone()
    }

    fn allower(&self) -> MutexGuard<'_, Option<Arc<str>>> {
        self.allowed_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection because a policy now denies it. The first reason stays.
    pub(crate) fn cut(&self, reason: Denied) {
        if self.denied.set(Box::new(reason)).is_ok() {
            self.cut.notify_one();
        }
    }

    /// Waits until a policy turns against this connection. Cancel safe.
    pub(crate) async fn denied(&self) -> Denied {
        loop {
            if let Some(denied) = self.denied.get()
                && !self.held.load(SeqCst)
            {
                return (**denied).clone();
            }
            self.cut.notified().await;
        }
    }

    /// The client's proven identity, none for plaintext. What policies judge.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.story.ends.source_identity.as_ref()
    }

    /// `spiffe://…` of the client; empty for plaintext.
    pub(crate) fn principal(&self) -> &str {
        self.series.source_principal().unwrap_or_default()
    }

    /// What the copy loop counts into. A mirror has no loop of its own and gives its original's.
    pub(crate) fn counters(&self) -> &Counters {
        match &self.bytes {
            Bytes::Own(counters) => counters,
            Bytes::MirrorOf(other) => other.counters(),
        }
    }

    /// The same for a copy that outlives whoever starts it.
    pub(crate) fn counting(self: &Arc<Self>) -> Counting {
        Counting(self.clone())
    }

    /// (sent, received) by this end's workload.
    pub(crate) fn moved(&self) -> (u64, u64) {
        match &self.bytes {
            Bytes::Own(counters) => (counters.sent.load(Relaxed), counters.received.load(Relaxed)),
            Bytes::MirrorOf(other) => {
                let (sent, received) = other.moved();
                (received, sent)
            }
        }
    }

    /// Adds to the metrics what moved since the last time. Safe to run twice at once: `fetch_max` gives each byte to
    /// exactly one of the callers.
    pub(crate) fn settle(&self) {
        let (sent, received) = self.moved();
        let new_sent = sent.saturating_sub(self.settled.0.fetch_max(sent, Relaxed));
        let new_received = received.saturating_sub(self.settled.1.fetch_max(received, Relaxed));
        self.series.moved(new_sent, new_received);
    }
}
