//! Connections leave: stopped, offered, and given away or taken back.
//!
//! ```text
//!  running ─ freeze ─▶ stopped ─ offer ─▶ outstanding ─┬ the successor took the right ─▶ forgotten
//!     ▲                   │ cannot be sent             └ we did (refused, silent, gone) ─┐
//!     └───────────────────┴──────────────────────────────────────────────────────────────┘
//! ```
//! What the successor says only tells when to look: it is the right (`right`) that decides.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use hbone::handover::{Freezer, Frozen, Kind, NotFrozen};
use tokio::runtime::Handle;

use super::channel::{Channel, Trouble};
use super::counts::Outcome;
use super::memory::Memory;
use super::message::{FDS, Message, Offer, SOCKETS, STATE};
use super::right::Right;
use super::told::{Account, PodName, Told, Way};
use crate::connections::{Carrier, Live};
use crate::node::Node;
use crate::pod::Pod;

/// How long a connection may take to come to where it can be cut; it goes on meanwhile.
const FREEZE: Duration = Duration::from_millis(50);
/// How long the successor may leave a connection standing. Peers wait four times as long for an answer to a PING.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// Connections offered and not answered. Each stands still meanwhile.
const WINDOW: usize = 8;
/// Bytes of state of these together.
const OUTSTANDING: u64 = 64 << 20;
/// Times a connection is offered before it is left to end here.
const TRIES: u32 = 30;

/// What there is to hand over.
pub(super) struct Candidate {
    pub(super) freezer: Freezer,
    pub(super) pod: Arc<Pod>,
    /// Of a tunnel that arrived, also one without streams.
    pub(super) way: Way,
    /// Its connections, by their streams' numbers.
    lives: Vec<(u32, Arc<Live>)>,
    /// The other end of a joined connection.
    there: Option<Arc<Live>>,
}

/// Everything that came of it so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Handed over.
    pub(super) given: usize,
    /// Connections (with their tunnels) that stay, and why, by how often they were tried.
    stays: HashMap<u64, (u32, String)>,
}

/// A conversation of offers.
pub(super) struct Pass<'a> {
    pub(super) node: &'a Arc<Node>,
    pub(super) runtime: &'a Handle,
    pub(super) channel: &'a Channel,
    pub(super) tally: &'a mut Tally,
    pub(super) next: &'a mut u64,
    outstanding: VecDeque<Outstanding>,
}

/// Offered and not decided.
struct Outstanding {
    offer: Offer,
    frozen: Frozen,
    right: Right,
    memory: Memory,
    lives: Vec<Arc<Live>>,
}

/// Why a connection was not offered.
#[derive(Debug, thiserror::Error)]
enum NotOffered {
    #[error(transparent)]
    NotFrozen(#[from] NotFrozen),
    #[error("a stream of it is in nobody's hands just now")]
    Unaccounted,
    #[error("it is too large")]
    TooLarge,
    #[error("no memory or descriptor for it: {0}")]
    Io(#[from] io::Error),
}

impl NotOffered {
    /// It will never be another.
    fn is_final(&self) -> bool {
        let Self::NotFrozen(why) = self else {
            return matches!(self, Self::TooLarge);
        };
        matches!(
            why,
            NotFrozen::Engine | NotFrozen::Socket | NotFrozen::Inside
        )
    }
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        node: &'a Arc<Node>,
        runtime: &'a Handle,
        channel: &'a Channel,
        tally: &'a mut Tally,
        next: &'a mut u64,
    ) -> Self {
        let outstanding = VecDeque::new();
        Self {
            node,
            runtime,
            channel,
            tally,
            next,
            outstanding,
        }
    }

    /// Offers all of `candidates`. However it ends, each is decided.
    pub(super) fn run(
        mut self,
        candidates: Vec<Candidate>,
        stop: impl Fn() -> bool,
    ) -> Result<(), Trouble> {
        for candidate in candidates {
            if stop() {
                break;
            }
            self.make_room()?;
            match self.prepare(&candidate) {
                Ok(prepared) => self.offer(prepared)?,
                Err(NotOffered::NotFrozen(NotFrozen::Over)) => {}
                Err(why) => self
                    .tally
                    .stayed(candidate.freezer.id(), why.is_final(), &why),
            }
        }
        while !self.outstanding.is_empty() {
            self.hear(ANSWER)?;
        }
        Ok(())
    }

    /// Hears what has been said, and waits where too much is undecided.
    fn make_room(&mut self) -> Result<(), Trouble> {
        loop {
            let bytes: u64 = self.outstanding.iter().map(|one| one.offer.state).sum();
            let full = self.outstanding.len() >= WINDOW || bytes >= OUTSTANDING;
            if self.outstanding.is_empty() {
                return Ok(());
            }
            match self.hear(if full { ANSWER } else { Duration::ZERO }) {
                Err(Trouble::Slow) if !full => return Ok(()),
                heard => heard?,
            }
        }
    }

    /// Stops a connection and writes down what belongs to it.
    fn prepare(&mut self, candidate: &Candidate) -> Result<Outstanding, NotOffered> {
        // Whether it is denied is the affair of whoever goes on with it.
        let held = Held::of(candidate.all(self.node));
        let frozen = self.runtime.block_on(candidate.freezer.freeze(FREEZE))?;
        match self.written(candidate, &frozen) {
            Ok((memory, right, lives)) => {
                lives.iter().for_each(|live| live.hold());
                held.pass_on();
                let offer = Offer {
                    id: *self.next,
                    state: memory.size(),
                    sockets: frozen.descriptors().len() as u16,
                };
                *self.next += 1;
                Ok(Outstanding {
                    offer,
                    frozen,
                    right,
                    memory,
                    lives,
                })
            }
            Err(why) => {
                frozen.take_back();
                Err(why)
            }
        }
    }

    fn written(
        &self,
        candidate: &Candidate,
        frozen: &Frozen,
    ) -> Result<(Memory, Right, Vec<Arc<Live>>), NotOffered> {
        let mut lives: Vec<(u32, Arc<Live>)> = match frozen.kind() {
            Kind::Pair => candidate.lives.clone(),
            // Streams may have come since the candidates were gathered.
            Kind::Accepted | Kind::Dialled => {
                let mut lives = streams_of(self.node, &candidate.pod, frozen.id());
                lives.retain(|(stream, _)| frozen.streams().contains(stream));
                if lives.len() != frozen.streams().len() {
                    return Err(NotOffered::Unaccounted);
                }
                lives
            }
        };
        lives.sort_by_key(|(stream, _)| *stream);
        let carried = lives.iter().map(|(stream, live)| (*stream, Told::of(live)));
        let mut way = candidate.way.clone();
        if let (Way::Joined { there, .. }, Some(live)) = (&mut way, &candidate.there) {
            **there = Told::of(live);
        }
        let account = Account {
            pod: PodName::of(&candidate.pod),
            way,
            carried: carried.collect(),
        };
        if frozen.descriptors().len() > SOCKETS {
            return Err(NotOffered::TooLarge);
        }
        let memory = Memory::of(&account.write(), frozen.bytes())?;
        if memory.size() > STATE {
            return Err(NotOffered::TooLarge);
        }
        let there = candidate.there.iter().cloned();
        let lives = lives.into_iter().map(|(_, live)| live).chain(there);
        Ok((memory, Right::new()?, lives.collect()))
    }

    fn offer(&mut self, one: Outstanding) -> Result<(), Trouble> {
        let sent = self.send(&one);
        self.outstanding.push_back(one);
        sent
    }

    fn send(&self, one: &Outstanding) -> Result<(), Trouble> {
        let first = [one.right.as_fd(), one.memory.as_fd()];
        let sockets = one.frozen.descriptors().iter().map(AsFd::as_fd);
        let all: Vec<BorrowedFd<'_>> = first.into_iter().chain(sockets).collect();
        let mut message = Message::Offer(one.offer);
        for fds in all.chunks(FDS) {
            self.channel.send(&message, fds, ANSWER)?;
            message = Message::Sockets(one.offer.id);
        }
        Ok(())
    }

    /// The next answer.
    fn hear(&mut self, patience: Duration) -> Result<(), Trouble> {
        let (message, fds) = self.channel.receive(None, Some(patience))?;
        let (id, why) = match message {
            Message::Took(id) => (id, None),
            Message::Refused(id, why) => (id, Some(why)),
            _ => return Err(Trouble::Unexpected("no answer to an offer")),
        };
        let at = self.outstanding.iter().position(|one| one.offer.id == id);
        let one = at.and_then(|at| self.outstanding.remove(at));
        match one {
            Some(one) if fds.is_empty() => {
                let why = why.as_deref().unwrap_or("it did not take it");
                decide(self.node, one, self.tally, why);
                Ok(())
            }
            Some(one) => {
                self.outstanding.push_back(one);
                Err(Trouble::Unexpected("an answer with descriptors"))
            }
            None => Err(Trouble::Unexpected("an answer to nothing")),
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        // What was answered and not heard has been decided, like everything else, by the right.
        for one in self.outstanding.drain(..) {
            decide(self.node, one, self.tally, "the successor did not answer");
        }
    }
}

/// Looks who has the right. If nobody, it is ours.
fn decide(node: &Node, one: Outstanding, tally: &mut Tally, why: &str) {
    let ours = one.right.take().unwrap_or_else(|error| {
        // It cannot be known: then nobody here goes on.
        tracing::error!(%error, "hand-over: whose a connection is cannot be known; it is left to the successor");
        false
    });
    let outcome = if ours { Outcome::Kept } else { Outcome::Given };
    node.handover.count(outcome);
    if ours {
        tally.stayed(one.frozen.id(), false, &why);
        one.frozen.take_back();
        one.lives.iter().for_each(|live| live.release());
    } else {
        tally.gave(one.frozen.id());
        // Their tasks end now, and must not report.
        one.lives.iter().for_each(|live| live.leave());
        one.frozen.forget();
    }
}

impl Tally {
    /// Whether it has been tried often enough.
    pub(super) fn is_left(&self, freezer: &Freezer) -> bool {
        let tries = self.stays.get(&freezer.id()).map_or(0, |(tries, _)| *tries);
        tries >= TRIES
    }

    fn stayed(&mut self, id: u64, is_final: bool, why: &dyn std::fmt::Display) {
        let (tries, last) = self.stays.entry(id).or_default();
        *tries = if is_final { TRIES } else { *tries + 1 };
        *last = why.to_string();
        tracing::debug!(id, tries = *tries, %why, "hand-over: a connection stays, for now");
    }

    fn gave(&mut self, id: u64) {
        self.given += 1;
        self.stays.remove(&id);
    }

    /// Reasons, and how many of those in `ids` stay for each.
    pub(super) fn reasons(&self, ids: impl Iterator<Item = u64>) -> Vec<(String, usize)> {
        let mut reasons: HashMap<&str, usize> = HashMap::new();
        for (_, why) in ids.filter_map(|id| self.stays.get(&id)) {
            *reasons.entry(why).or_default() += 1;
        }
        let mut reasons: Vec<_> = reasons
            .into_iter()
            .map(|(why, count)| (why.to_owned(), count))
            .collect();
        reasons.sort();
        reasons
    }
}

/// Lives that are held until this is dropped, or passed on.
struct Held(Vec<Arc<Live>>);

impl Held {
    fn of(lives: Vec<Arc<Live>>) -> Self {
        lives.iter().for_each(|live| live.hold());
        Self(lives)
    }

    fn pass_on(mut self) {
        self.0.clear();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.iter().for_each(|live| live.release());
    }
}

impl Candidate {
    pub(super) fn arrived(freezer: Freezer, pod: Arc<Pod>, way: Way) -> Self {
        Self {
            freezer,
            pod,
            way,
            lives: Vec::new(),
            there: None,
        }
    }

    /// What `live` goes through, if that can be told.
    pub(super) fn of(pod: &Arc<Pod>, live: &Arc<Live>) -> Option<Self> {
        let (freezer, way, there) = match live.carrier()? {
            // One that arrived is known by itself.
            Carrier::Tunnel(_, _) if live.is_inbound() => return None,
            Carrier::Tunnel(freezer, _) => (freezer, Way::Opened, None),
            Carrier::Pair(freezer) => (freezer, Way::Plain, None),
            Carrier::Joined(freezer, other, there) => {
                let there = there.upgrade()?;
                let other = PodName::of(other);
                let told = Box::new(Told::of(&there));
                (freezer, Way::Joined { other, there: told }, Some(there))
            }
        };
        Some(Self {
            freezer: freezer.clone(),
            pod: pod.clone(),
            way,
            lives: vec![(0, live.clone())],
            there,
        })
    }

    fn all(&self, node: &Node) -> Vec<Arc<Live>> {
        let lives = match self.way {
            Way::Arrived { .. } | Way::Opened => streams_of(node, &self.pod, self.freezer.id()),
            Way::Plain | Way::Joined { .. } => self.lives.clone(),
        };
        let lives = lives.into_iter().map(|(_, live)| live);
        lives.chain(self.there.clone()).collect()
    }
}

/// The connections of `pod` that are streams of the tunnel connection `id`.
fn streams_of(node: &Node, pod: &Pod, id: u64) -> Vec<(u32, Arc<Live>)> {
    let Some(of_pod) = node.connections.pod(&pod.uid) else {
        return Vec::new();
    };
    let streams = of_pod.all().into_iter().filter_map(|live| {
        let stream = match live.carrier()? {
            Carrier::Tunnel(freezer, stream) if freezer.id() == id => *stream,
            _ => return None,
        };
        Some((stream, live))
    });
    streams.collect()
}
