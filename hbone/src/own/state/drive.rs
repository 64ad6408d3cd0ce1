//! The driver's part: it writes what waits, reads, opens records where they lie and gives each slice to
//! the stream it belongs to.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::{Arrival, CLOGGED, Driven, End, LARGEST, Phase, Role, SMALLEST, State};
use crate::{
    engine::reason,
    frames::{Code, Event, StreamId},
    limits::Refusal,
    own::flow::{Direction, Flow},
    records::Opened,
    tunnel::TunnelError,
};

impl State {
    /// Goes on with the connection: writes, reads once, or finds that it has ended.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Driven> {
        if !self.driver.will_wake(cx.waker()) {
            let before = mem::replace(&mut self.driver, cx.waker().clone());
            self.awake.push(before);
        }
        if let Some(arrival) = self.arrivals.pop_front() {
            return Poll::Ready(Driven::Asked(arrival));
        }
        self.finish_if_done();
        self.flush();
        match &self.phase {
            Phase::Open => ready!(self.poll_read(cx)),
            Phase::Closing(end) => {
                if self.output.unsent() > 0 {
                    return Poll::Pending;
                }
                let end = end.clone();
                // Whether the peer still hears of it makes no difference any more.
                let _ = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
                self.phase = Phase::Over(end);
            }
            Phase::Over(_) => {}
        }
        if let Phase::Over(end) = &self.phase {
            return Poll::Ready(Driven::Over(end.clone()));
        }
        Poll::Ready(Driven::Read)
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
        // What came behind the handshake is here before anything is read.
        if self.output.unsent() >= CLOGGED {
            return Poll::Pending;
        }
        self.input.reserve(self.piece);
        let mut room = (&mut self.input).limit(self.piece);
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut room) {
            Poll::Ready(Ok(0)) => self.lost("the peer hung up without saying so"),
            Poll::Ready(Ok(n)) => {
                if n == self.piece {
                    self.piece = (n * 4).min(LARGEST);
                } else if n < self.piece / 4 {
                    self.piece = (self.piece / 2).max(SMALLEST);
                }
                self.open_records();
            }
            Poll::Ready(Err(error)) => self.lost(&error.to_string()),
            Poll::Pending => {
                if self.input.is_empty() {
                    // An idle connection holds no buffer.
                    self.input = BytesMut::new();
                    self.piece = SMALLEST;
                }
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Opens what has been read and gives it to whom it belongs.
    pub(crate) fn open_records(&mut self) {
        while matches!(self.phase, Phase::Open) {
            match self.opener.next(&mut self.input) {
                Ok(Opened::Incomplete { .. }) => break,
                Ok(Opened::Data { used, plain }) => {
                    let record = self.input.split_to(used).freeze();
                    self.take(record.slice(plain));
                }
                Ok(Opened::Nothing { used } | Opened::Ticket { used, .. }) => {
                    self.input.advance(used);
                }
                Ok(Opened::Update { used, answer }) => {
                    self.input.advance(used);
                    if answer {
                        self.output.answer();
                    }
                }
                Ok(Opened::Closed) => self.close(self.goodbye(), None),
                Err(error) => self.refuse(error),
            }
        }
        if self.opener.due() {
            self.sealed(|output| output.ask_for_key());
        }
        self.settle();
    }

    /// Takes plain bytes of one record.
    fn take(&mut self, plain: Bytes) {
        self.preface = self.preface.saturating_sub(plain.len());
        let (mut at, now) = (0, Instant::now());
        while at < plain.len() {
            match self.mux.take(&plain[at..], now) {
                Ok(taken) => {
                    let given = at;
                    at += taken.used;
                    if let Some(event) = taken.event {
                        self.happened(event, &plain, given);
                    }
                }
                Err(violation) => return self.violated(violation),
            }
        }
    }

    /// `given`: where in `plain` the bytes began of which the event speaks.
    fn happened(&mut self, event: Event, plain: &Bytes, given: usize) {
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
            Event::Data { stream, range, end } => {
                let chunk = plain.slice(given + range.start..given + range.end);
                self.arrived(stream, chunk, end);
            }
            Event::Reset {
                stream,
                code,
                ours: _,
            } => {
                self.fail(stream, &TunnelError::Reset(reason(code.0)), code);
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

    fn arrived(&mut self, stream: StreamId, chunk: Bytes, end: bool) {
        let Some(flow) = self.flows.get_mut(&stream) else {
            return self.mux.consumed(stream, chunk.len());
        };
        // Of a stream whose reader has gone, credit goes back with the stream.
        flow.unread += chunk.len();
        if !chunk.is_empty() && !flow.reader_gone {
            flow.push(chunk);
        }
        if end {
            flow.receiving = Direction::Ended;
        }
        self.awake.extend(flow.reader.take());
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
