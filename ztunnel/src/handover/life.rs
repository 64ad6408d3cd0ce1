//! One thread's life: first the successor of whoever is there, then the elder of whoever comes.
//!
//! ```text
//!  start ─┬─ an elder is there ─ registered ─ takes what it is offered ─┐ the elder is gone
//!    ▲    └─ nobody, or one that was not here before us ────────────────┴▶ elder: its door is open
//!    │                 a successor registers ◀─┐      │ SIGTERM
//!    └─ one comes that was here before us ─────┤      │
//!                                              └──────┴──▶ hands over, in passes, until nothing is left or time is over
//! ```
//! The last two are of one that died while its keeper held its listeners: it is back, and we had taken its door.
//! Who is told to stop while its elder is still there has a successor of its own by now: it opens its door at once and hands over what
//! it has.
//! It waits and it says little: a thread of its own costs less than care that it disturbs no packet.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use hbone::handover;
use ops::ready::Gate;
use tokio::runtime::Handle;

use super::adopt::{Arrival, Refusal};
use super::channel::{Bell, Channel, Trouble};
use super::counts::Outcome;
use super::door::Door;
use super::memory::Memory;
use super::message::{Hello, Message, Offer, PROTOCOL};
use super::pass::{ANSWER, Candidate, Pass, Tally};
use super::right::Right;
use super::told::{Account, Way};
use super::{Named, Registered, Stage};
use crate::agent::Roster;
use crate::config::engine_name;
use crate::node::Node;
use crate::pod::HANDSHAKE;

/// How long the other side may take to say who it is.
const HELLO: Duration = Duration::from_secs(2);
/// Pause before one asks again who was turned away.
const AGAIN: Duration = Duration::from_secs(1);
/// How often an elder looks whether its door still has the name. It has, unless two opened theirs at the same moment.
const LOOK: Duration = Duration::from_secs(10);
/// Pauses between two passes.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// What is kept of the time to end, so that no connection is undecided when it is over; a third where that is less.
const RESERVE: Duration = Duration::from_secs(6);
/// From when on peers are told to open no more streams on what has not gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything the thread needs.
pub(super) struct Life {
    pub(super) node: Arc<Node>,
    pub(super) roster: Roster,
    pub(super) runtime: Handle,
    pub(super) folder: PathBuf,
    pub(super) bell: Arc<Bell>,
    pub(super) registered: Registered,
    pub(super) named: Named,
    /// [`Hello::since`].
    pub(super) since: u64,
    /// Opens when it is known whether there is an elder.
    pub(super) gate: Gate,
}

impl Life {
    pub(super) fn live(self) {
        loop {
            let waiting = self.succeed();
            // Told to stop before the elder has gone: what has come here by then goes to the next one, as from any elder.
            if self.bell.has_rung() && self.has_nothing() {
                return self.over();
            }
            let door = match self.open() {
                Ok(door) => door,
                Err(error) => {
                    tracing::warn!(folder = %self.folder.display(), %error, "hand-over: no door; an upgrade will drain connections instead of handing them over");
                    return self.over();
                }
            };
            // Hung up on when there is a door to knock at.
            drop(waiting);
            if self.await_successor(&door) {
                self.hand_over(door);
                return self.over();
            }
        }
    }

    fn open(&self) -> std::io::Result<Door> {
        let door = Door::open(&self.folder)?;
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        *named = Some(door.name().clone());
        Ok(door)
    }

    /// Nothing is open here that could be handed over.
    fn has_nothing(&self) -> bool {
        self.node.connections.open() == 0 && self.node.handover.arrivals().is_empty()
    }

    fn over(&self) {
        self.node.handover.enter(Stage::Over);
        self.gate.open();
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            layout: handover::VERSION.into(),
            since: self.since,
            leaves: self.bell.has_rung(),
            engine: engine_name(self.node.config.engine).into(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    // ---- the successor's part

    /// Until there is no elder, or this process stops. Gives the channel to one that has a door and was not here before us:
    /// it waits for ours.
    fn succeed(&self) -> Option<Channel> {
        let mut turned = String::new();
        while !self.bell.has_rung() {
            let channel = match Channel::connect(&self.folder) {
                Ok(channel) => channel,
                Err(Trouble::Io(error)) if is_nobody(&error) => break,
                // It has a successor, and as many as may wait at its door do: it is there all the same.
                Err(Trouble::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.gate.open();
                    self.bell.wait(AGAIN);
                    continue;
                }
                Err(why) => {
                    tracing::warn!(%why, "hand-over: cannot reach an elder");
                    break;
                }
            };
            match self.register(&channel) {
                Ok(elder) => {
                    tracing::info!(
                        version = elder.version,
                        engine = elder.engine,
                        "hand-over: registered with the ztunnel that serves"
                    );
                    self.gate.open();
                    let ended = self.take_all(&channel);
                    tracing::info!(%ended, "hand-over: the conversation with the elder ended");
                }
                Err(Turned::Younger) => {
                    tracing::info!(
                        "hand-over: the ztunnel that is to succeed us is there; it registers with us"
                    );
                    self.gate.open();
                    return Some(channel);
                }
                Err(why) => {
                    // Said once, however often it is tried.
                    let before = std::mem::replace(&mut turned, why.to_string());
                    if turned != before {
                        tracing::info!(%why, "hand-over: not registered with the ztunnel that serves");
                    }
                    self.gate.open();
                    self.bell.wait(AGAIN);
                }
            }
        }
        self.gate.open();
        None
    }

    fn register(&self, channel: &Channel) -> Result<Hello, Turned> {
        let ours = self.hello();
        channel.send(&Message::Hello(ours.clone()), &[], HELLO)?;
        match channel.receive(Some(&self.bell), Some(HELLO))? {
            (Message::Hello(theirs), fds) if fds.is_empty() => {
                ours.agrees(&theirs)?;
                match theirs.gives_to(&ours) {
                    true => Ok(theirs),
                    false => Err(Turned::Younger),
                }
            }
            (Message::Busy, _) => Err(Turned::Busy),
            _ => Err(Trouble::Unexpected("no answer to a hello").into()),
        }
    }

    /// Takes what is offered, until the elder goes.
    fn take_all(&self, channel: &Channel) -> Trouble {
        let mut taken = 0_usize;
        let why = loop {
            match self.take_one(channel) {
                Ok(true) => taken += 1,
                Ok(false) => {}
                Err(why) => break why,
            }
        };
        if taken > 0 {
            tracing::info!(connections = taken, "hand-over: taken over");
        }
        why
    }

    fn take_one(&self, channel: &Channel) -> Result<bool, Trouble> {
        let (message, mut fds) = channel.receive(Some(&self.bell), None)?;
        let Message::Offer(offer) = message else {
            return Err(Trouble::Unexpected("no offer"));
        };
        let all = 2 + usize::from(offer.sockets);
        while fds.len() < all {
            match channel.receive(Some(&self.bell), Some(ANSWER))? {
                (Message::Sockets(id), more) if id == offer.id && !more.is_empty() => {
                    fds.extend(more);
                }
                _ => return Err(Trouble::Unexpected("no sockets of the offer")),
            }
        }
        if fds.len() > all {
            return Err(Trouble::Unexpected("more sockets than were offered"));
        }
        let (answer, took) = match self.take(offer, fds) {
            Ok(true) => (Message::Took(offer.id), true),
            // The elder has taken it back, and waits for nothing.
            Ok(false) => return Ok(false),
            Err(why) => {
                self.node.handover.count(Outcome::Refused);
                tracing::debug!(id = offer.id, %why, "hand-over: a connection is refused");
                (Message::Refused(offer.id, why.to_string()), false)
            }
        };
        match channel.send(&answer, &[], ANSWER) {
            // What an elder that was killed has offered is still to be read.
            Ok(()) | Err(Trouble::Gone) => Ok(took),
            Err(why) => Err(why),
        }
    }

    /// Looks at everything, then takes the right, then goes on.
    fn take(&self, offer: Offer, fds: Vec<std::os::fd::OwnedFd>) -> Result<bool, Refusal> {
        let mut fds = fds.into_iter();
        let (Some(right), Some(memory)) = (fds.next(), fds.next()) else {
            return Err(Refusal::Inconsistent);
        };
        let right = Right::received(right)?;
        let (account, frozen) = Memory::received(memory, offer.state)?.read()?;
        // Before all else that may be wrong: it overwrites what it was given.
        let taken = handover::Taken::read(frozen, fds.collect())?;
        let account = Account::read(&account)?;
        let adoption = Arrival::of(account, taken).check(&self.node, &self.roster)?;
        if !right.take()? {
            return Ok(false);
        }
        let gone_on = adoption.go_on(&self.node);
        let outcome = gone_on.as_ref().map_or(Outcome::Lost, |()| Outcome::Taken);
        self.node.handover.count(outcome);
        if let Err(error) = gone_on {
            // Nobody else will: it is lost, as if it had broken here.
            tracing::error!(%error, "hand-over: a connection was taken over and could not be gone on with");
        }
        Ok(true)
    }

    // ---- the elder's part

    /// Whoever knocks first and stays is the successor. True when this process is told to stop; false when another is the
    /// elder, at whose door we are to knock.
    fn await_successor(&self, door: &Door) -> bool {
        let bell = Some(&*self.bell);
        loop {
            let admitted = match door.accept(bell, Some(LOOK)) {
                Ok(channel) => self.admit(channel, bell),
                Err(Trouble::Slow) if door.name().is_ours() => continue,
                Err(Trouble::Slow) => return false,
                Err(why) => Err(why),
            };
            match admitted {
                Ok(None) => {}
                Ok(Some(elder)) => {
                    tracing::info!(
                        "hand-over: the ztunnel that was here before us is back; we register with it"
                    );
                    // It hangs up when its door is open.
                    let waited = elder.wait(&self.bell, HELLO);
                    return matches!(waited, Err(Trouble::Stopped));
                }
                Err(Trouble::Stopped) => return true,
                Err(why) => {
                    tracing::warn!(%why, "hand-over: somebody knocked and was not let in");
                    self.bell.wait(PAUSES.0);
                }
            }
        }
    }

    /// Lets one who knocked be the successor, unless there is one. Gives it back when it was here before us.
    fn admit(&self, channel: Channel, bell: Option<&Bell>) -> Result<Option<Channel>, Trouble> {
        let (Message::Hello(theirs), _) = channel.receive(bell, Some(HELLO))? else {
            return Err(Trouble::Unexpected("no hello"));
        };
        let ours = self.hello();
        if ours.agrees(&theirs).is_ok() && !ours.gives_to(&theirs) {
            channel.send(&Message::Hello(ours), &[], HELLO)?;
            return Ok(Some(channel));
        }
        if self.registered.is_alive() {
            channel.send(&Message::Busy, &[], HELLO)?;
            return Ok(None);
        }
        channel.send(&Message::Hello(ours.clone()), &[], HELLO)?;
        match ours.agrees(&theirs) {
            Ok(()) => {
                tracing::info!(
                    version = theirs.version,
                    engine = theirs.engine,
                    "hand-over: a successor has registered"
                );
                self.registered.set(channel);
            }
            Err(why) => {
                tracing::warn!(%why, "hand-over: a successor that nothing can be handed to")
            }
        }
        Ok(None)
    }

    /// Until the time is over. A successor may still come, and when one is lost, another.
    fn hand_over(&self, mut door: Door) {
        let start = Instant::now();
        let deadline = self.node.config.drain_deadline();
        let end = start + deadline - RESERVE.min(deadline / 3);
        let (mut tally, mut next) = (Tally::default(), 0);
        while Instant::now() < end {
            let Some(channel) = self.registered.alive() else {
                self.node.handover.enter(Stage::Over);
                let left = end.saturating_duration_since(Instant::now());
                // Whoever comes is welcome: we leave, and it stays.
                let admitted = door.accept(None, Some(left.min(AGAIN)));
                match admitted.and_then(|channel| self.admit(channel, None)) {
                    // A successor that left too took the name over, and along: the next one would not find us.
                    Err(Trouble::Slow) if door.name().is_nobodys() => {
                        if let Ok(again) = self.open() {
                            door = again;
                        }
                    }
                    Ok(_) | Err(Trouble::Slow) => {}
                    Err(why) => {
                        tracing::warn!(%why, "hand-over: somebody knocked and was not let in");
                        // Where there is no descriptor for him he goes on knocking.
                        #[allow(clippy::disallowed_methods)]
                        // a thread of its own, which blocks anyway
                        std::thread::sleep(PAUSES.0);
                    }
                }
                continue;
            };
            if let Err(why) = self.passes(&channel, (start, end), &mut tally, &mut next) {
                tracing::warn!(%why, given = tally.given, "hand-over: the successor is lost; what it has not taken goes on here");
                self.registered.clear();
            }
        }
    }

    fn passes(
        &self,
        channel: &Channel,
        (start, end): (Instant, Instant),
        tally: &mut Tally,
        next: &mut u64,
    ) -> Result<(), Trouble> {
        let (mut pause, never) = (PAUSES.0, Bell::new()?);
        let mut said = false;
        loop {
            let candidates = self.candidates();
            let ids: Vec<u64> = candidates.iter().map(|one| one.freezer.id()).collect();
            let mut open = candidates;
            open.retain(|one| !tally.is_left(&one.freezer));
            let (before, left) = (tally.given, open.len());
            let over = || Instant::now() >= end;
            let pass = Pass::new(&self.node, &self.runtime, channel, tally, next);
            pass.run(open, over)?;
            let elapsed = start.elapsed();
            let quiet = left == 0 && elapsed > 2 * HANDSHAKE;
            if !said && (quiet || elapsed > PATIENCE) {
                said = true;
                // What is here now ends here, or goes later: its peers open no more streams on it.
                self.node.handover.enter(Stage::Over);
                let stay = tally.reasons(ids.into_iter());
                tracing::info!(
                    given = tally.given,
                    ?stay,
                    "hand-over: connections have gone to the successor"
                );
            }
            if over() {
                return Ok(());
            }
            pause = match tally.given > before {
                true => PAUSES.0,
                false => (pause * 2).min(PAUSES.1),
            };
            let left = end.saturating_duration_since(Instant::now());
            match channel.wait(&never, pause.min(left)) {
                Err(Trouble::Slow) => {}
                Err(why) => return Err(why),
                Ok(()) if channel.is_alive() => {
                    return Err(Trouble::Unexpected("an answer to nothing"));
                }
                Ok(()) => return Err(Trouble::Gone),
            }
        }
    }

    /// Everything that could be handed over, pod by pod, and what cannot just now behind the rest.
    fn candidates(&self) -> Vec<Candidate> {
        let mut all: HashMap<u64, Candidate> = HashMap::new();
        for (freezer, pod, peer, local) in self.node.handover.arrivals() {
            let way = Way::Arrived { peer, local };
            all.insert(freezer.id(), Candidate::arrived(freezer, pod, way));
        }
        for (uid, of_pod) in self.node.connections.pods() {
            let Some(pod) = self.roster.up(&uid) else {
                continue;
            };
            let lives = of_pod.all();
            let found = lives.iter().filter_map(|live| Candidate::of(&pod, live));
            for candidate in found {
                all.entry(candidate.freezer.id()).or_insert(candidate);
            }
        }
        let mut all: Vec<Candidate> = all.into_values().collect();
        // Whoever has to be waited for comes last: a peer of many requests that nobody can answer must not use up the time of
        // all others.
        all.sort_by_cached_key(|one| {
            let freezer = &one.freezer;
            (freezer.is_busy(), one.pod.uid.clone(), freezer.id())
        });
        all
    }
}

/// Why a successor was not registered.
#[derive(Debug, thiserror::Error)]
enum Turned {
    #[error("another successor is registered")]
    Busy,
    #[error("it was not here before us")]
    Younger,
    #[error(transparent)]
    Trouble(#[from] Trouble),
    #[error(transparent)]
    Disagreement(#[from] super::message::Disagreement),
}

fn is_nobody(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused)
}
