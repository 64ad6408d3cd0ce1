//! How much is carried at a time, and what is refused when that is too much.
//!
//! | what | bound | unless it is said |
//! |---|---|---|
//! | connections of all pods | `AMBIT_MAX_CONNECTIONS` | half of the descriptors, and what fits into the memory |
//! | connections of one pod | `AMBIT_MAX_CONNECTIONS_PER_WORKLOAD` | half of those |
//! | handshakes under way | `AMBIT_MAX_HANDSHAKES`, half of them one pod's | a quarter of the connections, 4,096 at most |
//! | descriptors | `RLIMIT_NOFILE`, less a reserve | |
//! | memory, this process's or all of its container's | `AMBIT_MAX_MEMORY` | nine tenths of the container's |
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

mod figures;
mod full;
mod most;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use ops::memory;

use crate::config::Config;
pub(crate) use full::Full;
use full::Kind;
use most::{BYTES_PER_CONNECTION, Most, half};

/// How much there is at this node, how much there may be, and how often it was too much. Clones share the numbers.
#[derive(Debug, Clone)]
pub struct Bounds(Arc<Node>);

#[derive(Debug)]
struct Node {
    most: Most,
    connections: Level,
    handshakes: Level,
    /// Bytes, as it was last measured, and how many connections there were then.
    memory: AtomicU64,
    measured_with: AtomicUsize,
    memory_is_near: AtomicBool,
    /// The newest connection's.
    descriptor: AtomicU64,
    descriptors_are_near: AtomicBool,
    refused: [AtomicU64; Kind::ALL.len()],
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
            measured_with: AtomicUsize::new(0),
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
        let memory = node.memory();
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
            let used = tokio::task::spawn_blocking(memory::used).await;
            self.measured(used.ok().flatten().unwrap_or(0));
        }
    }

    fn measured(&self, memory: u64) {
        let node = &*self.0;
        node.memory.store(memory, Relaxed);
        node.measured_with.store(node.connections.now(), Relaxed);
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

impl Node {
    /// Bytes: as last measured, and what the connections may take that have come since. Many come within a second.
    fn memory(&self) -> u64 {
        let measured_with = self.measured_with.load(Relaxed);
        let since = self.connections.now().saturating_sub(measured_with) as u64;
        let memory = self.memory.load(Relaxed);
        memory.saturating_add(since.saturating_mul(BYTES_PER_CONNECTION))
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

/// Memory is looked at so often.
const LOOK: Duration = Duration::from_secs(1);
