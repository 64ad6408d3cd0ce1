//! One connection, as all who use it share it.
//!
//! ```text
//!  socket ─read─▶ scratch ─opener─▶ plain ─mux─▶ app's socket, or flows ─▶ readers   (the driver: State::drive)
//!  socket ◀─write─ output ◀─sealer─ mux.out, DATA ◀── writers                         (each writer: State::put)
//!  socket ◀─write─ sealer ─ scratch ◀─read─ app's socket                              (the same: State::pump)
//! ```
//!
//! The driver reads, opens records where they lie and writes what they hold to the app's socket, if the
//! stream has one and nothing waits before it; what is left waits for the stream's reader. A writer seals
//! what it has, or what its app's socket has, and writes the socket itself, under the driver's waker:
//! when the socket takes no more, it is the driver that goes on. So nothing waits for another task.
//!
//! Wakers are never used or dropped in here, but collected in `awake`: what they do might want the lock.

mod drive;
mod freeze;
mod pump;
mod send;
mod streams;
mod written;

pub(crate) use self::{
    freeze::Turn,
    pump::{Pumped, Stuck},
    written::{Thawing, ThawingCopy, ThawingFlow},
};

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Waker},
    time::Instant,
};

use tokio::time::Sleep;

use self::{freeze::Freezing, send::Late};
use super::{
    flow::Flow,
    output::{Io, Output, SEALED},
    scratch::Batch,
};
use crate::{
    frames::{Code, Mux, RequestHead, StreamId, Violation},
    gauge::Gauge,
    limits::Refusal,
    records::{Opener, RecordError},
    socket::piece,
    tls::{Alert, handshake::Established},
    tunnel::TunnelError,
};

/// Beyond this many bytes that the socket does not take, nothing more is read: answers to the peer's
/// frames are all that makes it so many.
const CLOGGED: usize = 4 * SEALED;
/// Length of a client's preface.
const PREFACE: usize = 24;

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// In order.
    Closed,
    /// The bytes stopped.
    Lost(String),
    /// The peer did what it must not, in TLS or in HTTP/2.
    Violated(Refusal, String),
    /// The peer said that we did.
    Accused(String),
    /// Somebody else goes on with it.
    HandedOver,
}

impl End {
    pub(crate) fn words(&self) -> &str {
        match self {
            Self::Closed => "it was closed",
            Self::HandedOver => "it was handed over",
            Self::Lost(words) | Self::Violated(_, words) | Self::Accused(words) => words,
        }
    }
}

/// `Open → Closing → Over`; what is lost is over at once.
#[derive(Debug)]
enum Phase {
    Open,
    /// Last words are in the output; when they are written, and the peer has heard them, it is over.
    Closing(End),
    Over(End),
}

/// A request that nobody has seen yet.
pub(crate) struct Arrival {
    pub(crate) stream: StreamId,
    pub(crate) head: RequestHead,
}

/// What the driver came to.
pub(crate) enum Driven {
    /// Something was read; there may be more.
    Read,
    /// A request.
    Asked(Arrival),
    /// The end.
    Over(End),
}

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

pub(crate) struct State {
    role: Role,
    io: Box<dyn Io>,
    opener: Opener,
    output: Output,
    batch: Batch,
    mux: Mux,
    /// Read and not opened yet: less than a record.
    input: Vec<u8>,
    /// Plain bytes of a client's preface that are still to come.
    preface: usize,
    /// When the peer was last heard of, if it ever was.
    heard: Option<Instant>,
    flows: HashMap<StreamId, Flow, BuildHasherDefault<ById>>,
    arrivals: VecDeque<Arrival>,
    /// Streams that wait for room in the output, the longest waiting first.
    line: VecDeque<StreamId>,
    /// Those who wait for a place for one more stream.
    openers: Vec<Waker>,
    /// Whoever drives; nobody at first.
    driver: Waker,
    phase: Phase,
    /// All is said, and the peer has so long to hang up as well (`Closing`).
    parting: Option<Pin<Box<Sleep>>>,
    /// What the peer accused us of when it said goodbye.
    accused: Option<Code>,
    /// Nobody will open another stream (client).
    unwanted: bool,
    /// An answer to our PING has come.
    pong: bool,
    gauge: Arc<Gauge>,
    late: Late,
    /// Somebody wants to freeze it.
    freezing: Option<Freezing>,
    pub(crate) awake: Vec<Waker>,
}

impl State {
    pub(crate) fn new(
        role: Role,
        io: Box<dyn Io>,
        established: Established,
        mux: Mux,
        gauge: Arc<Gauge>,
    ) -> Self {
        Self {
            role,
            batch: batch(&*io),
            io,
            opener: established.opener,
            output: Output::new(established.sealer, established.unsent),
            mux,
            input: established.unread,
            preface: if role == Role::Server { PREFACE } else { 0 },
            heard: None,
            flows: HashMap::default(),
            arrivals: VecDeque::new(),
            line: VecDeque::new(),
            openers: Vec::new(),
            driver: Waker::noop().clone(),
            phase: Phase::Open,
            parting: None,
            accused: None,
            unwanted: false,
            pong: false,
            gauge,
            late: Late::No,
            freezing: None,
            awake: Vec::new(),
        }
    }
}

/// How much of a bulk goes to this socket at once.
fn batch(io: &dyn Io) -> Batch {
    Batch::of(io.tcp().and_then(piece))
}

/// Ends.
impl State {
    /// HTTP/2 was violated; its GOAWAY is in the mux.
    fn violated(&mut self, why: Violation) {
        self.gauge.saw_flood(why.refusal);
        self.close(End::Violated(why.refusal, why.to_string()), None);
    }

    /// TLS was violated.
    fn refuse(&mut self, error: RecordError) {
        match error {
            RecordError::Alert(alert) => {
                // It says so in place of its first frame: our handshake was over before it had looked at our certificate.
                if self.role == Role::Client && !self.mux.is_greeted() {
                    self.gauge.saw_refusal(Alert(alert));
                }
                self.lost(&error.to_string());
            }
            _ => self.close(
                End::Violated(Refusal::Protocol, error.to_string()),
                error.alert(),
            ),
        }
    }

    /// Says last words and lets nothing more in or out.
    pub(crate) fn close(&mut self, end: End, alert: Option<u8>) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        self.fail_all(&end);
        let said = self
            .output
            .control(self.mux.out())
            .and_then(|()| self.output.last_words(alert));
        self.phase = match said {
            Ok(()) => Phase::Closing(end),
            Err(_) => Phase::Over(end),
        };
        self.awake.push(self.driver.clone());
    }

    /// The socket is of no use any more.
    fn lost(&mut self, words: &str) {
        if matches!(self.phase, Phase::Over(_)) {
            return;
        }
        let end = match mem::replace(&mut self.phase, Phase::Open) {
            Phase::Closing(end) => end,
            _ => End::Lost(words.to_owned()),
        };
        self.fail_all(&end);
        self.phase = Phase::Over(end);
        self.io = Box::new(tokio::io::empty());
        self.input = Vec::new();
        self.awake.push(self.driver.clone());
    }

    fn fail_all(&mut self, end: &End) {
        let why = TunnelError::ConnectionLost(end.words().to_owned());
        for flow in self.flows.values_mut() {
            flow.fail(&why);
            self.awake.extend(flow.reader.take());
            self.awake.extend(flow.writer.take());
        }
        self.line.clear();
        self.awake.append(&mut self.openers);
        self.stir();
        // Nobody has seen these, and nobody is to be troubled with them any more.
        for arrival in self.arrivals.drain(..) {
            self.flows.remove(&arrival.stream);
        }
    }
}

/// Remembers who waits.
fn keep(place: &mut Option<Waker>, cx: &Context<'_>, awake: &mut Vec<Waker>) {
    if place.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
        awake.extend(place.replace(cx.waker().clone()));
    }
}

/// Stream numbers are counted up by two, and there are 200 at most: they need no better hash.
#[derive(Default)]
pub(crate) struct ById(u64);

impl Hasher for ById {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u32(&mut self, id: u32) {
        // Both ends of the word are looked at; an odd factor spreads the number over it.
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
