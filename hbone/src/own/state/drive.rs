//! The driver's part: it writes what waits, reads, opens records where they lie and gives each piece to
//! the stream it belongs to: to its app's socket, as many pieces as stand together with one call, or else
//! to its reader.

use std::{
    io::IoSlice,
    mem,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};

use super::{Arrival, CLOGGED, Driven, End, Phase, Role, State};
use crate::{
    engine::{reason, reset},
    farewell::{self, farewell},
    frames::{Code, Event, StreamId},
    limits::Refusal,
    own::{
        flow::{Direction, Flow},
        scratch::{self, LEFT, READ, Scratch},
    },
    records::Opened,
    tunnel::TunnelError,
};

/// Pieces written to an app's socket by one call.
const GATHER: usize = 32;
/// How long a peer may take to hang up when all is said: it has to read it first.
const PARTING: Duration = Duration::from_secs(10);

/// Pieces of one stream that came one behind the other.
struct Run {
    stream: StreamId,
    pieces: Vec<Range<usize>>,
}

impl State {
    /// Goes on with the connection: writes, reads once, or finds that it has ended.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Driven> {
        if !self.driver.will_wake(cx.waker()) {
            let before = mem::replace(&mut self.driver, cx.waker().clone());
            self.awake.push(before);
        }
        if self.freezing.is_none()
            && let Some(arrival) = self.arrivals.pop_front()
        {
            return Poll::Ready(Driven::Asked(arrival));
        }
        self.finish_if_done();
        match self.is_late() {
            true => self.flush(),
            false => self.write_now(),
        }
        match &self.phase {
            // What comes now is for whoever goes on with it, and that may be somebody else.
            Phase::Open if self.stopping() => return Poll::Pending,
            Phase::Open => ready!(self.poll_read(cx)),
            Phase::Closing(end) => {
                if self.output.unsent() > 0 {
                    return Poll::Pending;
                }
                let end = end.clone();
                if self.parting.is_none() {
                    // Whether the peer still hears of it makes no difference any more.
                    let _ = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
                }
                let in_order = end == End::Closed && self.mux.done();
                if in_order && !ready!(self.poll_parted(cx)) {
                    return Poll::Ready(Driven::Read);
                }
                self.phase = Phase::Over(end);
                self.leave_to_read();
            }
            Phase::Over(_) => {}
        }
        if let Phase::Over(end) = &self.phase {
            return Poll::Ready(Driven::Over(end.clone()));
        }
        Poll::Ready(Driven::Read)
    }

    /// Reads once, and throws away what comes; true when the peer has hung up too, or takes too long. The last that streams
    /// have said may still be with the kernel, and a socket that is closed is reset by whatever the peer says to it (RFC 1122,
    /// 4.2.2.13), such as that it has read some of just that: the rest would be lost.
    fn poll_parted(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let late = self.parting.get_or_insert_with(|| Box::pin(sleep(PARTING)));
        if late.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        scratch::with(|scratch| {
            let mut room = ReadBuf::new(&mut scratch.bytes[LEFT..LEFT + READ]);
            let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut room));
            Poll::Ready(read.is_err() || room.filled().is_empty())
        })
    }

    /// A client that was cut off may be in the middle of saying something: its socket is closed when it has read why, and not
    /// by a reset. One that ends in order has been waited for.
    fn leave_to_read(&mut self) {
        let cut = matches!(self.phase, Phase::Over(End::Violated(..))) || !self.mux.done();
        if self.role == Role::Server && cut {
            let io = mem::replace(&mut self.io, Box::new(tokio::io::empty()));
            farewell(io, tokio::time::Instant::now() + farewell::LONGEST);
        }
    }

    /// A client's preface has come (on a server's connection).
    pub(crate) fn greeted(&self) -> bool {
        // As many bytes as a preface has may have been something else.
        let other = match &self.phase {
            Phase::Closing(end) | Phase::Over(end) => {
                matches!(end, End::Violated(Refusal::Preface, _))
            }
            Phase::Open => false,
        };
        self.preface == 0 && !other
    }

    /// The driver has gone, and nobody will take its place.
    pub(crate) fn abandon(&mut self) {
        self.write_late();
        self.lost("nobody drives it any more");
        let driver = mem::replace(&mut self.driver, Waker::noop().clone());
        self.awake.push(driver);
    }

    fn finish_if_done(&mut self) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        if self.unwanted && self.flows.is_empty() {
            self.mux.go_away(Code::NO_ERROR);
        }
        if self.mux.done() {
            self.close(self.goodbye(), None);
        }
    }

    /// What an end in order is to be called.
    fn goodbye(&self) -> End {
        match self.accused {
            Some(code) => End::Accused(reason(code.0)),
            None => End::Closed,
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.output.unsent() >= CLOGGED {
            return Poll::Pending;
        }
        scratch::with(|scratch| {
            // What is left of the read before goes in front of this one.
            let start = LEFT - self.input.len();
            let mut room = ReadBuf::new(&mut scratch.bytes[LEFT..LEFT + self.batch.read()]);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut room)) {
                Ok(()) if room.filled().is_empty() => {
                    self.write_late();
                    self.lost("the peer hung up without saying so");
                }
                Ok(()) => {
                    let end = LEFT + room.filled().len();
                    scratch.bytes[start..LEFT].copy_from_slice(&self.input);
                    self.open_records(scratch, start..end);
                }
                Err(error) => self.lost(&error.to_string()),
            }
            Poll::Ready(())
        })
    }

    /// Opens what came behind the handshake. Nobody waits for any of it yet.
    pub(crate) fn open_first(&mut self) {
        let mut first = Scratch {
            bytes: mem::take(&mut self.input),
            ..Scratch::default()
        };
        let all = 0..first.bytes.len();
        self.open_records(&mut first, all);
    }

    /// Opens what has been read and gives it to whom it belongs; keeps what is no whole record yet.
    fn open_records(&mut self, scratch: &mut Scratch, mut unopened: Range<usize>) {
        let now = Instant::now();
        if !unopened.is_empty() {
            self.heard = Some(now);
        }
        let mut run = Run {
            stream: StreamId::CONNECTION,
            pieces: mem::take(&mut scratch.pieces),
        };
        while matches!(self.phase, Phase::Open) {
            let at = unopened.start;
            match self.opener.next(&mut scratch.bytes[unopened.clone()]) {
                Ok(Opened::Incomplete { .. }) => break,
                Ok(Opened::Data { used, plain }) => {
                    unopened.start += used;
                    let plain = at + plain.start..at + plain.end;
                    self.take(&scratch.bytes, plain, now, &mut run);
                }
                Ok(Opened::Nothing { used } | Opened::Ticket { used, .. }) => {
                    unopened.start += used;
                }
                Ok(Opened::Update { used, answer }) => {
                    unopened.start += used;
                    if answer {
                        self.output.answer();
                    }
                }
                Ok(Opened::Closed) => {
                    self.arrived(&scratch.bytes, &mut run);
                    self.close(self.goodbye(), None);
                }
                Err(error) => {
                    self.arrived(&scratch.bytes, &mut run);
                    self.refuse(error);
                }
            }
        }
        self.arrived(&scratch.bytes, &mut run);
        scratch.pieces = run.pieces;
        self.keep_unopened(&scratch.bytes[unopened]);
        if self.opener.due() {
            self.sealed(|output| output.ask_for_key());
        }
        self.settle();
    }

    fn keep_unopened(&mut self, bytes: &[u8]) {
        self.input.clear();
        if bytes.is_empty() || !matches!(self.phase, Phase::Open) {
            // An idle connection holds no buffer.
            self.input = Vec::new();
        } else {
            self.input.extend_from_slice(bytes);
        }
    }

    /// Takes plain bytes of one record: those at `plain`.
    fn take(&mut self, bytes: &[u8], plain: Range<usize>, now: Instant, run: &mut Run) {
        self.preface = self.preface.saturating_sub(plain.len());
        let mut at = plain.start;
        while at < plain.end {
            match self.mux.take(&bytes[at..plain.end], now) {
                Ok(taken) => {
                    let given = at;
                    at += taken.used;
                    match taken.event {
                        Some(Event::Data { stream, range, end }) => {
                            let piece = given + range.start..given + range.end;
                            self.data(bytes, run, stream, piece, end);
                        }
                        Some(event) => {
                            // Each stream hears in order.
                            self.arrived(bytes, run);
                            self.happened(event);
                        }
                        None => {}
                    }
                }
                Err(violation) => {
                    self.arrived(bytes, run);
                    return self.violated(violation);
                }
            }
        }
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Request { stream, head, end } => {
                let mut flow = Flow::new();
                if end {
                    flow.receiving = Direction::Ended;
                }
                self.flows.insert(stream, flow);
                self.arrivals.push_back(Arrival { stream, head });
            }
            Event::Response { stream, head, end } => {
                if let Some(flow) = self.flows.get_mut(&stream) {
                    flow.answer = Some(head.status);
                    if end {
                        flow.receiving = Direction::Ended;
                    }
                    self.awake.extend(flow.reader.take());
                }
            }
            // Has come another way.
            Event::Data { .. } => {}
            Event::Reset { stream, code, ours } => {
                self.fail(stream, &TunnelError::Reset(reset(ours, code.0)), code)
            }
            Event::Capacity { .. } => self.wake_those_with_credit(),
            Event::GoAway { last, code } => {
                self.gauge.goes_away();
                if code != Code::NO_ERROR {
                    self.accused = Some(code);
                }
                let unseen: Vec<_> = self.flows.keys().copied().filter(|id| *id > last).collect();
                if self.role == Role::Client {
                    let why = TunnelError::ConnectionLost("the peer takes no more streams".into());
                    for stream in unseen {
                        self.fail(stream, &why, Code::REFUSED_STREAM);
                    }
                }
                self.awake.append(&mut self.openers);
            }
            Event::Pong { .. } => self.pong = true,
            Event::SettingsAcknowledged => {}
            Event::Refused { kind, .. } => self.gauge.refused(kind),
        }
    }

    /// One more piece of a stream.
    fn data(
        &mut self,
        bytes: &[u8],
        run: &mut Run,
        stream: StreamId,
        piece: Range<usize>,
        end: bool,
    ) {
        if run.stream != stream || run.pieces.len() == GATHER {
            self.arrived(bytes, run);
            run.stream = stream;
        }
        if !piece.is_empty() {
            run.pieces.push(piece);
        }
        if end {
            self.arrived(bytes, run);
            if let Some(flow) = self.flows.get_mut(&stream) {
                flow.receiving = Direction::Ended;
                self.awake.extend(flow.reader.take());
            }
        }
    }

    /// Gives the pieces that stand together to their stream.
    fn arrived(&mut self, bytes: &[u8], run: &mut Run) {
        let total = run.pieces.iter().map(Range::len).sum();
        if total == 0 {
            return;
        }
        let stream = run.stream;
        let Some(flow) = self.flows.get_mut(&stream) else {
            run.pieces.clear();
            return self.mux.consumed(stream, total);
        };
        let mut slices = [IoSlice::new(&[]); GATHER];
        for (slice, piece) in slices.iter_mut().zip(&run.pieces) {
            *slice = IoSlice::new(&bytes[piece.clone()]);
        }
        let delivered = flow.deliver(&slices[..run.pieces.len()]);
        // Of a stream whose reader has gone, credit goes back with the stream.
        flow.unread += total - delivered;
        if delivered < total && !flow.reader_gone {
            let mut gone = delivered;
            for piece in &run.pieces {
                let skip = gone.min(piece.len());
                gone -= skip;
                if skip < piece.len() {
                    flow.push(&bytes[piece.start + skip..piece.end]);
                }
            }
            self.awake.extend(flow.reader.take());
        }
        if delivered > 0 {
            self.mux.consumed(stream, delivered);
        }
        run.pieces.clear();
    }

    fn fail(&mut self, stream: StreamId, why: &TunnelError, code: Code) {
        if let Some(flow) = self.flows.get_mut(&stream) {
            flow.fail(why);
            flow.unseen = code == Code::REFUSED_STREAM;
            self.awake.extend(flow.reader.take());
            self.awake.extend(flow.writer.take());
        }
    }
}
