//! The node agent hands over the node's pods (ZDS), one request at a time.
//!
//! ```text
//!  connect ─ Hello ─▶ snapshot: (Add | Keep | Del)* ─ SnapshotSent ─▶ news: (Add | Del)*
//!     ▲                                                                │ agent gone, or an error
//!     └──────────────── 10 ms … 15 s; pods are served on ◀─────────────┘
//! ```
//! Each request is answered before the next is read, with an empty text or with what went wrong. A
//! pod whose proxy cannot start is answered at once and tried again every 5 s by ourselves: it
//! never holds up another pod. A request of a kind that this version does not know is answered with that, and the conversation
//! goes on; but then the agent may have named pods in words that we do not understand, so no pod is taken out of service for
//! not having been named. While the agent is away we report not ready, as the contract has it: a
//! pod that comes meanwhile would not be served.

pub(crate) mod packet;
mod roster;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use api::zds;
use api::zds::workload_request::Payload;
use ops::drain::Drain;
use ops::ready::Gate;
use prost::Message;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use crate::config::Mode;
use crate::dns::Dns;
use crate::keeper::Keeper;
use crate::metrics::PodMetrics;
use crate::netns::{Netns, NetnsId, Options};
use crate::node::Node;
use crate::pod::{Pod, StartError};
use packet::{LARGEST, Packet, Packets};
pub use roster::{Description, Listed, Roster};

/// The client of the node agent.
pub struct Agent {
    node: Arc<Node>,
    dns: Option<Arc<Dns>>,
    keeper: Keeper,
    roster: Roster,
    metrics: PodMetrics,
    gate: Gate,
    drain: Drain,
    pending: BTreeMap<Arc<str>, Waiting>,
}

/// A pod whose proxy could not start yet.
struct Waiting {
    pod: Description,
    netns: Arc<OwnedFd>,
    failures: u32,
}

/// Why a conversation with the agent ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot reach the node agent: {0}")]
    Connect(io::Error),
    #[error("the node agent closed the connection")]
    Closed,
    #[error("connection to the node agent: {0}")]
    Io(#[from] io::Error),
    #[error("the node agent broke the protocol: {0}")]
    Protocol(Violation),
    #[error("this proxy is stopping")]
    Stopping,
}

/// What an agent must not do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Violation {
    #[error("a message is larger than {LARGEST} bytes")]
    Truncated,
    #[error("a message cannot be decoded")]
    Undecodable,
    #[error("a message without content")]
    Empty,
    #[error("an added pod without workload_info")]
    NoInfo,
    #[error("expected {expected} file descriptor(s), got {got}")]
    Descriptors { expected: usize, got: usize },
    #[error("keep after the snapshot was complete")]
    LateKeep,
    #[error("a second end of the snapshot")]
    SecondSnapshot,
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
enum NotDone {
    #[error("failure to start proxy : {0}")]
    Add(#[from] AddError),
    #[error("a message of a kind this version does not know")]
    Unknown,
}

/// Why a pod is not served.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Its namespace cannot be entered.
    #[error("network namespace: {0}")]
    Netns(io::Error),
    /// Its listeners cannot be opened.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Agent {
    /// A client that serves what it is given on `node`. `gate` opens while the agent's pods are
    /// known and served.
    pub fn new(
        node: Arc<Node>,
        dns: Option<Arc<Dns>>,
        metrics: PodMetrics,
        gate: Gate,
        drain: Drain,
    ) -> Self {
        Self {
            node,
            dns,
            keeper: Keeper::default(),
            roster: Roster::default(),
            metrics,
            gate,
            drain,
            pending: BTreeMap::new(),
        }
    }

    /// Listeners are kept, and may have been before.
    pub fn kept_by(mut self, keeper: Keeper) -> Self {
        self.keeper = keeper;
        self
    }

    /// The pods of this node, for the admin door.
    pub fn roster(&self) -> Roster {
        self.roster.clone()
    }

    /// Serves one workload, that of the configuration, in the network namespace of this process. Nobody hands over others.
    ///
    /// # Errors
    /// When a listener cannot be opened: the workload's connections are refused then, for the rules lead nowhere.
    pub fn serve_own(&mut self) -> Result<(), AddError> {
        let config = &self.node.config;
        let workload = Description {
            name: config.pod_name.clone(),
            namespace: config.pod_namespace.clone(),
            service_account: config.service_account.clone(),
        };
        let uid: Arc<str> = format!("{}/{}", workload.namespace, workload.name).into();
        let netns = File::open("/proc/self/ns/net").map_err(AddError::Netns)?;
        self.start(&uid, &workload, &netns.into())?;
        self.show(&Snapshot {
            complete: true,
            ..Snapshot::default()
        });
        Ok(())
    }

    /// Talks to the agent until this proxy stops; a dedicated one has none, and waits for that.
    pub async fn run(mut self) {
        if self.node.config.mode == Mode::Dedicated {
            return self.drain.accepting().cancelled().await;
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let mut snapshot = Snapshot::default();
            let ended = self.converse(&mut snapshot).await;
            self.gate.close();
            match ended {
                Ended::Stopping => return,
                Ended::Protocol(_) => tracing::error!(error = %ended, "zds"),
                _ => tracing::info!(error = %ended, "zds"),
            }
            if snapshot.complete {
                pause = FIRST_PAUSE;
            }
            if self.wait(pause).await.is_break() {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Sleeps between conversations, going on with pods that wait.
    async fn wait(&mut self, pause: Duration) -> std::ops::ControlFlow<()> {
        let mut retries = retries();
        let sleep = sleep(pause);
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                () = self.drain.accepting().cancelled() => return std::ops::ControlFlow::Break(()),
                () = &mut sleep => return std::ops::ControlFlow::Continue(()),
                _ = retries.tick() => self.retry(),
            }
        }
    }

    /// One conversation, from connect to its end.
    async fn converse(&mut self, snapshot: &mut Snapshot) -> Ended {
        let agent = match Packets::connect(&self.node.config.inpod_uds) {
            Ok(agent) => agent,
            Err(error) => return Ended::Connect(error),
        };
        let hello = zds::ZdsHello {
            version: zds::Version::V1.into(),
        };
        if let Err(error) = agent.send(&hello.encode_to_vec()).await {
            return Ended::Io(error);
        }
        let mut retries = retries();
        loop {
            let packet = tokio::select! {
                () = self.drain.accepting().cancelled() => return Ended::Stopping,
                packet = agent.receive() => packet,
                _ = retries.tick() => {
                    self.retry();
                    self.show(snapshot);
                    continue;
                }
            };
            let packet = match packet {
                Ok(Some(packet)) => packet,
                Ok(None) => return Ended::Closed,
                Err(error) => return Ended::Io(error),
            };
            let outcome = self.take(packet, snapshot);
            self.show(snapshot);
            let (error, violation) = match outcome {
                Ok(None) => (String::new(), None),
                Ok(Some(error)) => (error.to_string(), None),
                Err(violation) => (violation.to_string(), Some(violation)),
            };
            if let Err(error) = agent.send(&ack(error)).await {
                return Ended::Io(error);
            }
            if let Some(violation) = violation {
                return Ended::Protocol(violation);
            }
        }
    }

    /// One request. `Ok(Some)`: it was not done, e.g. a pod is not served (yet); `Err`: the conversation is over.
    fn take(
        &mut self,
        packet: Packet,
        snapshot: &mut Snapshot,
    ) -> Result<Option<NotDone>, Violation> {
        let Some((payload, netns)) = understand(packet)? else {
            snapshot.misunderstood();
            return Ok(Some(NotDone::Unknown));
        };
        match (payload, netns) {
            (Payload::Add(add), Some(netns)) => {
                let info = add.workload_info.ok_or(Violation::NoInfo)?;
                let pod = Description {
                    name: info.name,
                    namespace: info.namespace,
                    service_account: info.service_account,
                };
                let uid: Arc<str> = add.uid.into();
                snapshot.named(&uid);
                let added = self.add(uid, pod, Arc::new(netns), 0);
                return Ok(added.err().map(NotDone::Add));
            }
            (Payload::Add(_), None) => {
                return Err(Violation::Descriptors {
                    expected: 1,
                    got: 0,
                });
            }
            (Payload::Keep(keep), _) => {
                if snapshot.complete {
                    return Err(Violation::LateKeep);
                }
                snapshot.named(&keep.uid.into());
            }
            (Payload::Del(del), _) => {
                snapshot.unnamed(&del.uid);
                self.pending.remove(&*del.uid);
                self.roster.forget_pending(&del.uid);
                self.keeper.forget(&del.uid);
                if snapshot.complete {
                    self.remove(&del.uid);
                }
            }
            (Payload::SnapshotSent(_), _) => {
                match snapshot.finish()? {
                    Some(kept) => self.only(&kept),
                    None => {
                        tracing::warn!(
                            "zds: the node agent speaks of things that this version does not know; pods that it did not name stay"
                        );
                    }
                }
                let (up, pending) = self.roster.counts();
                tracing::info!(pods = up, pending, "zds: the node's pods are known");
            }
        }
        Ok(None)
    }

    /// The agent has named all pods that there are.
    fn only(&mut self, named: &BTreeSet<Arc<str>>) {
        self.pending
            .retain(|uid, _| named.contains(uid) || forget(&self.roster, uid));
        for uid in self.roster.not_in(named) {
            self.remove(&uid);
        }
        self.keeper.only(named);
    }

    /// Serves a pod; on failure it waits for [`Agent::retry`].
    fn add(
        &mut self,
        uid: Arc<str>,
        pod: Description,
        netns: Arc<OwnedFd>,
        failures: u32,
    ) -> Result<(), AddError> {
        let started = self.start(&uid, &pod, &netns);
        match &started {
            Ok(()) => {
                self.pending.remove(&uid);
                self.roster.forget_pending(&uid);
            }
            Err(error) => {
                tracing::warn!(uid = %uid, pod = %pod.name, namespace = %pod.namespace, %error, "the pod is not served; trying again every {} s", RETRY.as_secs());
                self.roster.set_pending(uid.clone(), pod.clone());
                self.pending.insert(
                    uid,
                    Waiting {
                        pod,
                        netns,
                        failures: failures + 1,
                    },
                );
            }
        }
        started
    }

    fn start(
        &mut self,
        uid: &Arc<str>,
        pod: &Description,
        netns: &OwnedFd,
    ) -> Result<(), AddError> {
        use std::os::fd::AsFd;
        let id = NetnsId::of(netns.as_fd()).map_err(AddError::Netns)?;
        match self.roster.up(uid) {
            Some(running) if running.netns.id() == id => return Ok(()),
            // Same pod, other namespace: the sandbox was made anew, the old one carries nothing.
            Some(_) => self.remove(uid),
            None => {}
        }
        let netns = netns
            .try_clone()
            .and_then(|fd| Netns::new(fd, Options::of(&self.node.config)))
            .map_err(AddError::Netns)?;
        let proxy = Pod::new(
            uid.clone(),
            &pod.name,
            &pod.namespace,
            &pod.service_account,
            netns,
            self.drain.child(),
        );
        proxy.start(&self.node, self.dns.as_ref(), &self.keeper)?;
        tracing::info!(uid = %uid, pod = %pod.name, namespace = %pod.namespace, "pod served");
        self.roster.set_up(proxy);
        self.metrics.started.inc();
        Ok(())
    }

    /// Takes a pod out of service; its connections drain beside everything else.
    fn remove(&mut self, uid: &str) {
        let Some(pod) = self.roster.set_draining(uid) else {
            return;
        };
        self.metrics.stopped.inc();
        let (roster, node) = (self.roster.clone(), self.node.clone());
        tokio::spawn(async move {
            let drained = pod.stop(&node, node.config.drain_deadline()).await;
            tracing::info!(uid = %pod.uid, pod = %pod.name, namespace = %pod.namespace, ?drained, "pod no longer served");
            roster.gone(&pod);
        });
    }

    fn retry(&mut self) {
        for (uid, waiting) in std::mem::take(&mut self.pending) {
            let _ = self.add(uid, waiting.pod, waiting.netns, waiting.failures);
        }
    }

    fn show(&self, snapshot: &Snapshot) {
        let (up, pending) = self.roster.counts();
        self.metrics
            .active
            .set(i64::try_from(up).unwrap_or(i64::MAX));
        self.metrics
            .pending
            .set(i64::try_from(pending).unwrap_or(i64::MAX));
        // A pod that keeps failing must not hold up the node's roll-out for ever.
        let patience = self
            .pending
            .values()
            .any(|waiting| waiting.failures <= PATIENCE);
        if snapshot.complete && !patience {
            self.gate.open();
        } else {
            self.gate.close();
        }
    }
}

/// Which pods a snapshot has named so far.
#[derive(Debug, Default)]
struct Snapshot {
    named: BTreeSet<Arc<str>>,
    /// Something in it was of a kind that we do not know.
    in_part: bool,
    complete: bool,
}

impl Snapshot {
    fn named(&mut self, uid: &Arc<str>) {
        if !self.complete {
            self.named.insert(uid.clone());
        }
    }

    fn unnamed(&mut self, uid: &str) {
        self.named.remove(uid);
    }

    fn misunderstood(&mut self) {
        self.in_part |= !self.complete;
    }

    /// All pods that there are; none if it cannot be told which those are.
    fn finish(&mut self) -> Result<Option<BTreeSet<Arc<str>>>, Violation> {
        if self.complete {
            return Err(Violation::SecondSnapshot);
        }
        self.complete = true;
        let named = std::mem::take(&mut self.named);
        Ok((!self.in_part).then_some(named))
    }
}

/// The request in a packet, with the descriptor that belongs to it. None where it is of a kind that we do not know; whatever
/// descriptors came with it are closed.
fn understand(packet: Packet) -> Result<Option<(Payload, Option<OwnedFd>)>, Violation> {
    if packet.truncated {
        return Err(Violation::Truncated);
    }
    if packet.bytes.is_empty() {
        return Err(Violation::Empty);
    }
    let request =
        zds::WorkloadRequest::decode(&*packet.bytes).map_err(|_| Violation::Undecodable)?;
    let Some(payload) = request.payload else {
        return Ok(None);
    };
    let expected = usize::from(matches!(payload, Payload::Add(_)));
    if packet.fds.len() != expected {
        return Err(Violation::Descriptors {
            expected,
            got: packet.fds.len(),
        });
    }
    Ok(Some((payload, packet.fds.into_iter().next())))
}

fn ack(mut error: String) -> Vec<u8> {
    // The agent reads with a small buffer too: a text that does not fit is worse than a short one.
    let end = error.floor_char_boundary(LONGEST_ERROR);
    error.truncate(end);
    let ack = zds::workload_response::Payload::Ack(zds::Ack { error });
    zds::WorkloadResponse { payload: Some(ack) }.encode_to_vec()
}

fn forget(roster: &Roster, uid: &str) -> bool {
    roster.forget_pending(uid);
    false
}

fn retries() -> tokio::time::Interval {
    let mut interval = interval_at(Instant::now() + RETRY, RETRY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_secs(5);
/// Failures of a pod for which we report not ready: with [`RETRY`], about ten seconds.
const PATIENCE: u32 = 3;
const LONGEST_ERROR: usize = 900;
