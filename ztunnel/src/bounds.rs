//! How much is carried at a time, and what is refused when that is too much.
//!
//! | what | bound | unless it is said |
//! |---|---|---|
//! | connections of all pods | `AMBIT_MAX_CONNECTIONS` | half of the descriptors, and what fits into the memory |
//! | connections of one pod | `AMBIT_MAX_CONNECTIONS_PER_WORKLOAD` | half of those |
//! | handshakes under way | `AMBIT_MAX_HANDSHAKES`, half of them one pod's | a quarter of the connections, 4,096 at most |
//! | descriptors | `RLIMIT_NOFILE`, less a reserve | |
//! | memory | `AMBIT_MAX_MEMORY` | nine tenths of the container's |
//!
//! Whoever is one too many is refused before anything was spent on it: reset at once, or answered 503 where it came in a
//! tunnel that stands. It is told in the log and counted. What is open goes on, and others of the node are served: no
//! pod can take more than half.
//!
//! A connection counts at each pod that it belongs to: when a pod's socket or a tunnel is accepted, and for each tunnel's
//! stream that comes to the pod.
//!
//! The number of a descriptor says how many are taken: the kernel gives the lowest that is free. So the last of them stay
//! for those who need them most (the control plane, certificates, the second half of a connection that was let in), and
//! nobody has to count.

use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use ops::memory;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::config::Config;
use crate::hint::Hint;
use crate::report::Failure;
use crate::traffic::Flag;

/// How much there is at this node, how much there may be, and how often it was too much. Clones share the numbers.
#[derive(Debug, Clone)]
pub struct Bounds(Arc<Node>);

#[derive(Debug)]
struct Node {
    most: Most,
    connections: Level,
    handshakes: Level,
    /// Bytes, as it was last measured.
    memory: AtomicU64,
    memory_is_near: AtomicBool,
    /// The newest connection's.
    descriptor: AtomicU64,
    descriptors_are_near: AtomicBool,
    refused: [AtomicU64; Kind::ALL.len()],
}

/// How much there may be.
#[derive(Debug, Clone, Copy)]
struct Most {
    connections: usize,
    connections_of_one: usize,
    handshakes: usize,
    /// Descriptors that connections may have; those beyond are for other things.
    descriptors: u64,
    memory: u64,
}

/// What one pod has of it.
#[derive(Debug, Default)]
pub(crate) struct Part {
    connections: Level,
    handshakes: Level,
    /// Bytes of datagrams that wait ([`crate::udp`]).
    pub(crate) datagrams: Arc<AtomicUsize>,
}

/// How many there are of something, and whether it was said that there are nearly too many.
#[derive(Debug, Default)]
struct Level {
    now: AtomicUsize,
    near: AtomicBool,
}

/// A place among the others, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    node: Arc<Node>,
    part: Arc<Part>,
    of: Of,
}

/// What there is a place for.
#[derive(Debug, Clone, Copy)]
enum Of {
    Connections,
    Handshakes,
}

/// Why somebody new is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error(
        "refused: {0} connections of this pod are open, as many as one may have (AMBIT_MAX_CONNECTIONS_PER_WORKLOAD of ztunnel)"
    )]
    OfOne(usize),
    #[error(
        "refused: {0} connections of this node's pods are open, as many as there may be (AMBIT_MAX_CONNECTIONS of ztunnel)"
    )]
    Connections(usize),
    #[error(
        "refused: {0} handshakes with this pod are under way, as many as with one there may be (half of AMBIT_MAX_HANDSHAKES of ztunnel)"
    )]
    HandshakesOfOne(usize),
    #[error(
        "refused: {0} handshakes are under way at this node, as many as there may be (AMBIT_MAX_HANDSHAKES of ztunnel)"
    )]
    Handshakes(usize),
    #[error(
        "refused: {0} file descriptors of ztunnel are taken, and the rest is reserved (RLIMIT_NOFILE of its container)"
    )]
    Descriptors(u64),
    #[error(
        "refused: ztunnel has {0} bytes of memory, more than it takes on new connections with (AMBIT_MAX_MEMORY, or the container's limit)"
    )]
    Memory(u64),
}

/// The same as a label.
#[derive(Debug, Clone, Copy)]
enum Kind {
    OfOne,
    Connections,
    HandshakesOfOne,
    Handshakes,
    Descriptors,
    Memory,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::OfOne,
        Self::Connections,
        Self::HandshakesOfOne,
        Self::Handshakes,
        Self::Descriptors,
        Self::Memory,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::OfOne => "connections_of_workload",
            Self::Connections => "connections",
            Self::HandshakesOfOne => "handshakes_of_workload",
            Self::Handshakes => "handshakes",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
        }
    }
}

impl Full {
    fn kind(self) -> Kind {
        match self {
            Self::OfOne(_) => Kind::OfOne,
            Self::Connections(_) => Kind::Connections,
            Self::HandshakesOfOne(_) => Kind::HandshakesOfOne,
            Self::Handshakes(_) => Kind::Handshakes,
            Self::Descriptors(_) => Kind::Descriptors,
            Self::Memory(_) => Kind::Memory,
        }
    }
}

impl Failure for Full {
    fn flag(&self) -> Flag {
        Flag::Overload
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::Full)
    }
}

/// What a node's memory is enough for, as far as it can be said beforehand: a connection that is idle takes a third of it.
const BYTES_PER_CONNECTION: u64 = 32 << 10;
/// As many as two threads bring to an end within their time.
const HANDSHAKES: usize = 4096;
/// Descriptors for other things than connections of pods.
const RESERVE: std::ops::RangeInclusive<u64> = 16..=4096;
/// Memory is looked at so often.
const LOOK: Duration = Duration::from_secs(1);

impl Most {
    /// As the operator said, and otherwise as `descriptors` and `memory` of the container allow.
    fn of(config: &Config, descriptors: u64, container: Option<u64>) -> Self {
        let reserve = (descriptors / 16).clamp(*RESERVE.start(), *RESERVE.end());
        let descriptors = descriptors.saturating_sub(reserve).max(1);
        let memory = config.max_memory.or(container.map(memory::enough));
        let memory = memory.unwrap_or(u64::MAX);
        let fit = (descriptors / 2).min(memory / BYTES_PER_CONNECTION).max(2);
        let connections = config
            .max_connections
            .unwrap_or_else(|| usize::try_from(fit).unwrap_or(usize::MAX));
        Self {
            connections,
            connections_of_one: config
                .max_connections_per_workload
                .unwrap_or_else(|| half(connections)),
            handshakes: config
                .max_handshakes
                .unwrap_or_else(|| connections.div_ceil(4).min(HANDSHAKES)),
            descriptors,
            memory,
        }
    }
}

/// What one pod may have of it.
fn half(most: usize) -> usize {
    most.div_ceil(2)
}

/// It is said when there is so much.
fn near(most: u64) -> u64 {
    most - most / 10
}

/// And once more only after there was no more than this.
fn far(most: u64) -> u64 {
    most - most / 4
}

impl Bounds {
    /// Nothing yet, within what the operator and the container allow.
    pub(crate) fn new(config: &Config) -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        Self::within(Most::of(config, descriptors, memory::limit()))
    }

    fn within(most: Most) -> Self {
        Self(Arc::new(Node {
            most,
            connections: Level::default(),
            handshakes: Level::default(),
            memory: AtomicU64::new(0),
            memory_is_near: AtomicBool::new(false),
            descriptor: AtomicU64::new(0),
            descriptors_are_near: AtomicBool::new(false),
            refused: Default::default(),
        }))
    }

    /// Room for one connection more of a pod; `socket`: the one that it came with.
    pub(crate) fn connection(
        &self,
        part: &Arc<Part>,
        socket: Option<RawFd>,
    ) -> Result<Share, Full> {
        let node = &*self.0;
        let memory = node.memory.load(Relaxed);
        if memory > node.most.memory {
            return Err(self.no(Full::Memory(memory)));
        }
        if let Some(number) = socket.and_then(|number| u64::try_from(number).ok()) {
            node.descriptor.store(number, Relaxed);
            if number >= node.most.descriptors {
                return Err(self.no(Full::Descriptors(number)));
            }
        }
        let share = self.adopted(part);
        let (of_one, of_all) = (part.connections.now(), node.connections.now());
        let full = if of_one > node.most.connections_of_one {
            Full::OfOne(of_one - 1)
        } else if of_all > node.most.connections {
            Full::Connections(of_all - 1)
        } else {
            return Ok(share);
        };
        Err(self.no(full))
    }

    /// The same for one that was let in elsewhere: it counts, whether there is room or not.
    pub(crate) fn adopted(&self, part: &Arc<Part>) -> Share {
        self.enter(part, Of::Connections)
    }

    /// Room for one handshake more with a pod.
    pub(crate) fn handshake(&self, part: &Arc<Part>) -> Result<Share, Full> {
        let node = &*self.0;
        let share = self.enter(part, Of::Handshakes);
        let (of_one, of_all) = (part.handshakes.now(), node.handshakes.now());
        let full = if of_one > half(node.most.handshakes) {
            Full::HandshakesOfOne(of_one - 1)
        } else if of_all > node.most.handshakes {
            Full::Handshakes(of_all - 1)
        } else {
            return Ok(share);
        };
        Err(self.no(full))
    }

    /// Looks after memory, and says when there is not much left of something. Never ends.
    pub(crate) async fn watch(&self) {
        let mut looks = tokio::time::interval(LOOK);
        loop {
            looks.tick().await;
            self.measured(memory::resident().unwrap_or(0));
        }
    }

    fn measured(&self, memory: u64) {
        let node = &*self.0;
        node.memory.store(memory, Relaxed);
        let most = node.most.memory;
        if is_news(&node.memory_is_near, memory, most) {
            tracing::warn!(
                memory,
                most,
                "memory is nearly used up; beyond it new connections are refused (AMBIT_MAX_MEMORY, or the container's limit)"
            );
        }
        let (number, most) = (node.descriptor.load(Relaxed), node.most.descriptors);
        if is_news(&node.descriptors_are_near, number, most) {
            tracing::warn!(
                descriptors = number,
                most,
                "file descriptors are nearly used up; beyond them new connections are refused (RLIMIT_NOFILE)"
            );
        }
    }

    fn enter(&self, part: &Arc<Part>, of: Of) -> Share {
        let node = &*self.0;
        let (most, most_of_one) = match of {
            Of::Connections => (node.most.connections, node.most.connections_of_one),
            Of::Handshakes => (node.most.handshakes, half(node.most.handshakes)),
        };
        if of.at(&node.connections, &node.handshakes).enter(most) {
            tracing::warn!(
                most,
                "{of} at this node are nearly as many as there may be; beyond that new ones are refused"
            );
        }
        if of
            .at(&part.connections, &part.handshakes)
            .enter(most_of_one)
        {
            tracing::warn!(
                most = most_of_one,
                "{of} of a pod are nearly as many as one may have; beyond that new ones are refused"
            );
        }
        Share {
            node: self.0.clone(),
            part: part.clone(),
            of,
        }
    }

    fn no(&self, why: Full) -> Full {
        self.0.refused[why.kind() as usize].fetch_add(1, Relaxed);
        why
    }
}

impl Of {
    fn at<'a>(self, connections: &'a Level, handshakes: &'a Level) -> &'a Level {
        match self {
            Self::Connections => connections,
            Self::Handshakes => handshakes,
        }
    }
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "connections",
            Self::Handshakes => "handshakes",
        })
    }
}

impl Level {
    fn now(&self) -> usize {
        self.now.load(Relaxed)
    }

    /// One more. True if it is to be said that there are nearly as many as there may be.
    fn enter(&self, most: usize) -> bool {
        let now = self.now.fetch_add(1, Relaxed) + 1;
        is_news(&self.near, now as u64, most as u64)
    }

    fn leave(&self) {
        self.now.fetch_sub(1, Relaxed);
    }
}

/// There is nearly as much as there may be, for the first time since there was clearly less.
fn is_news(said: &AtomicBool, now: u64, most: u64) -> bool {
    // Read first: it is written once in a while, and looked at with every connection.
    if now < near(most) {
        if now <= far(most) && said.load(Relaxed) {
            said.store(false, Relaxed);
        }
        return false;
    }
    !said.load(Relaxed) && !said.swap(true, Relaxed)
}

impl Drop for Share {
    fn drop(&mut self) {
        let (node, part) = (&self.node, &self.part);
        self.of.at(&node.connections, &node.handshakes).leave();
        self.of.at(&part.connections, &part.handshakes).leave();
    }
}

impl Collector for Bounds {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let node = &*self.0;
        let most = node.most;
        let levels: [(&str, u64, u64); 4] = [
            (
                "connections",
                node.connections.now() as u64,
                most.connections as u64,
            ),
            (
                "handshakes",
                node.handshakes.now() as u64,
                most.handshakes as u64,
            ),
            (
                "descriptors",
                node.descriptor.load(Relaxed),
                most.descriptors,
            ),
            ("memory", node.memory.load(Relaxed), most.memory),
        ];
        let mut family = encoder.encode_descriptor(
            "ambit_limit_used",
            "How much there is of what is bounded; descriptors and memory when last looked at, memory in bytes",
            None,
            MetricType::Gauge,
        )?;
        for (what, now, _) in levels {
            let now = i64::try_from(now).unwrap_or(i64::MAX);
            family
                .encode_family(&[("what", what)])?
                .encode_gauge(&now)?;
        }
        let mut family = encoder.encode_descriptor(
            "ambit_limit",
            "How much there may be before new connections are refused",
            None,
            MetricType::Gauge,
        )?;
        let of_one = most.connections_of_one as u64;
        let bounds = levels.map(|(what, _, most)| (what, most));
        for (what, most) in bounds
            .into_iter()
            .chain([("connections_of_workload", of_one)])
        {
            // None, where memory has no bound.
            if let Ok(most) = i64::try_from(most) {
                family
                    .encode_family(&[("what", what)])?
                    .encode_gauge(&most)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "ambit_overload_refused",
            "Connections, tunnels and handshakes that there was no room for",
            None,
            MetricType::Counter,
        )?;
        for (kind, count) in Kind::ALL.iter().zip(&node.refused) {
            family
                .encode_family(&[("what", kind.label())])?
                .encode_counter::<NoLabelSet, u64, u64>(&count.load(Relaxed), None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
