//! What leaves: each writer seals what it has and writes the socket itself; where the thread writes by turns
//! (`own/late`), it leaves what is small to the end of the turn.

use std::{
    io, mem,
    task::{Context, Poll},
};

use super::{End, Phase, State, keep};
use crate::{
    frames::{self, Code, StreamId},
    limits::DATA,
    own::{
        flow::Direction,
        late,
        output::{Output, SMALL},
    },
    records::{MOST, RecordError},
    tunnel::TunnelError,
};

/// More than this does not wait for the end of the turn: it is worth a write.
const TOGETHER: usize = 64 << 10;

/// Whether what is to be sent waits for the end of a thread's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// It is written at once.
    No,
    /// Whoever takes this step lists the connection.
    Asked,
    /// It is in a thread's list.
    Listed,
}

impl State {
    /// Sends what there is: at once, or at the end of the thread's turn.
    pub(crate) fn flush(&mut self) {
        let waiting = self.mux.out().len() + self.output.unsent();
        if waiting == 0 || waiting >= TOGETHER.min(self.output.most()) || !self.may_wait() {
            return self.write_now();
        }
        if self.late == Late::No {
            self.late = Late::Asked;
        }
    }

    /// The thread comes back to this connection before its turn ends.
    fn may_wait(&self) -> bool {
        matches!(self.phase, Phase::Open) && self.freezing.is_none() && late::is_here()
    }

    /// Somebody will write what there is, and soon.
    pub(super) fn is_late(&self) -> bool {
        self.late == Late::Listed && matches!(self.phase, Phase::Open) && self.freezing.is_none()
    }

    /// The connection has to be listed, by whoever asks.
    pub(crate) fn is_to_be_listed(&mut self) -> bool {
        let asked = self.late == Late::Asked;
        if asked {
            self.late = Late::Listed;
        }
        asked
    }

    /// No list counts any more.
    pub(crate) fn is_not_listed(&mut self) {
        self.late = Late::No;
    }

    /// It is in no list any more: writes.
    pub(crate) fn write_late(&mut self) {
        self.late = Late::No;
        self.write_now();
    }

    /// Seals control frames and writes what the socket takes, under the driver's waker.
    pub(crate) fn write_now(&mut self) {
        if matches!(self.phase, Phase::Open) {
            self.seal_control();
        }
        if self.output.unsent() == 0 {
            return;
        }
        let mut cx = Context::from_waker(&self.driver);
        let written = self.output.poll_write(&mut *self.io, &mut cx);
        if let Poll::Ready(Err(error)) = written {
            return self.hung_up(&error);
        }
        self.call_up();
    }

    /// The socket takes nothing more. What the peer has said before it went is still to be read, and then its
    /// end.
    pub(super) fn hung_up(&mut self, error: &io::Error) {
        self.output.give_up();
        if !matches!(self.phase, Phase::Open) {
            return self.lost(&error.to_string());
        }
        let why = TunnelError::ConnectionLost(error.to_string());
        let open = self.flows.values_mut().filter(|f| f.sending.is_open());
        for flow in open {
            flow.sending = Direction::because(why.clone());
            self.awake.extend(flow.writer.take());
        }
        self.awake.push(self.driver.clone());
    }

    pub(super) fn seal_control(&mut self) {
        if !self.mux.out().is_empty() {
            let sealed = self.output.control(self.mux.out());
            self.check(sealed);
        }
    }

    pub(super) fn sealed(&mut self, seal: impl FnOnce(&mut Output) -> Result<(), RecordError>) {
        let sealed = seal(&mut self.output);
        self.check(sealed);
    }

    /// Sealing fails only when the cryptography library does.
    fn check(&mut self, sealed: Result<(), RecordError>) {
        if let Err(error) = sealed {
            self.lost(&error.to_string());
        }
    }

    /// Those who have waited longest may go on, as many as there is room for; all, when nothing waits
    /// in the output: one that has lost interest must not hold up those behind it. Each keeps its place until it
    /// has had its turn: not all who are called find room.
    fn call_up(&mut self) {
        let unsent = self.output.unsent();
        let most = match unsent {
            0 => self.line.len(),
            _ => self.output.most().saturating_sub(unsent) / DATA,
        };
        let waiting = self.line.iter().filter_map(|stream| {
            let flow = self.flows.get_mut(stream)?;
            flow.writer.take()
        });
        self.awake.extend(waiting.take(most));
    }

    /// The stream has to wait for room in the output.
    pub(super) fn stand_in_line(&mut self, stream: StreamId, cx: &Context<'_>) {
        if let Some(flow) = self.flows.get_mut(&stream) {
            if !mem::replace(&mut flow.in_line, true) {
                self.line.push_back(stream);
            }
            keep(&mut flow.writer, cx, &mut self.awake);
        }
    }

    /// It has had its turn, or has nothing to send any more.
    pub(super) fn leave_line(&mut self, stream: StreamId) {
        let flow = self.flows.get_mut(&stream);
        if !flow.is_some_and(|flow| mem::take(&mut flow.in_line)) {
            return;
        }
        if self.line.front() == Some(&stream) {
            self.line.pop_front();
        } else {
            self.line.retain(|waiting| *waiting != stream);
        }
    }

    /// The stream has to wait until the peer allows more.
    pub(super) fn wait_for_credit(&mut self, stream: StreamId, cx: &Context<'_>) {
        self.mux.wait(stream);
        if let Some(flow) = self.flows.get_mut(&stream) {
            keep(&mut flow.writer, cx, &mut self.awake);
        }
    }

    pub(super) fn wake_those_with_credit(&mut self) {
        while let Some(stream) = self.mux.ready() {
            if let Some(flow) = self.flows.get_mut(&stream) {
                self.awake.extend(flow.writer.take());
            }
        }
    }

    /// Sends the first part of `bytes`, as much as peer and socket allow now, which is never nothing.
    pub(crate) fn put(
        &mut self,
        stream: StreamId,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, TunnelError>> {
        let Some(flow) = self.flows.get(&stream) else {
            return Poll::Ready(Err(TunnelError::Ended));
        };
        match &flow.sending {
            Direction::Open => {}
            Direction::Ended => return Poll::Ready(Err(TunnelError::Ended)),
            Direction::Failed(why) => return Poll::Ready(Err((**why).clone())),
        }
        let room = self.mux.room(stream);
        if room > 0 && self.output.full(bytes.len()) {
            self.stand_in_line(stream, cx);
            return Poll::Pending;
        }
        self.leave_line(stream);
        if room == 0 {
            self.wait_for_credit(stream, cx);
            return Poll::Pending;
        }
        let n = fit(bytes.len().min(room).min(self.output.most()));
        let Some(head) = self.mux.data(stream, n, false) else {
            return Poll::Ready(Err(TunnelError::Ended));
        };
        self.say(&head, &bytes[..n]);
        Poll::Ready(Ok(n))
    }

    /// Ends our direction. What was put before is delivered before.
    pub(crate) fn end(&mut self, stream: StreamId) -> Result<(), TunnelError> {
        let flow = self.flows.get_mut(&stream).ok_or(TunnelError::Ended)?;
        if let Direction::Failed(why) = &flow.sending {
            return Err((**why).clone());
        }
        flow.sending = Direction::Ended;
        if let Some(head) = self.mux.data(stream, 0, true) {
            self.say(&head, &[]);
        }
        Ok(())
    }

    /// Sends one DATA frame. What is small becomes one record with what others say in the same turn.
    fn say(&mut self, head: &[u8; frames::HEAD], payload: &[u8]) {
        if payload.len() <= SMALL && self.may_wait() {
            let out = self.mux.out();
            out.extend_from_slice(head);
            out.extend_from_slice(payload);
        } else {
            self.seal_control();
            self.sealed(|output| output.data(head, payload));
        }
        self.flush();
    }

    /// Ends both directions with CANCEL.
    pub(crate) fn reset(&mut self, stream: StreamId) {
        if let Some(flow) = self.flows.get_mut(&stream) {
            flow.fail(&TunnelError::Ended);
            self.awake.extend(flow.reader.take());
            self.mux.reset(stream, Code::CANCEL);
        }
        self.flush();
    }

    pub(crate) fn poll_closed(
        &mut self,
        stream: StreamId,
        cx: &mut Context<'_>,
    ) -> Poll<TunnelError> {
        self.leave_line(stream);
        let Some(flow) = self.flows.get_mut(&stream) else {
            return Poll::Ready(TunnelError::Ended);
        };
        if let Direction::Failed(why) = &flow.sending {
            return Poll::Ready((**why).clone());
        }
        keep(&mut flow.writer, cx, &mut self.awake);
        Poll::Pending
    }

    /// An answer to our PING has come; false when none can come any more. Last words that nobody reads
    /// count as a PING without an answer.
    pub(crate) fn pong(&mut self) -> Poll<bool> {
        if matches!(self.phase, Phase::Over(_)) {
            return Poll::Ready(false);
        }
        match mem::take(&mut self.pong) {
            true => Poll::Ready(true),
            false => Poll::Pending,
        }
    }

    /// Sends a PING; false when the connection is over.
    pub(crate) fn ping(&mut self) -> bool {
        self.pong = false;
        self.mux.ping(*b"ambit hb");
        self.flush();
        !matches!(self.phase, Phase::Over(_))
    }

    /// No more streams; it ends when the open ones have ended.
    pub(crate) fn drain(&mut self) {
        self.mux.go_away(Code::NO_ERROR);
        self.flush();
    }

    /// Says why, and ends.
    pub(crate) fn cut_off(&mut self, code: u32) {
        self.mux.go_away(Code(code));
        self.close(End::Closed, None);
        self.flush();
    }

    /// Bytes that should be able to lie unread.
    pub(crate) fn wanted(&self) -> u64 {
        self.mux.most_wanted()
    }

    pub(crate) fn widen(&mut self, window: u32) {
        self.mux.grow(window);
    }
}

/// How much of `n` bytes to put into one frame: several frames of moderate size take turns with other
/// streams, one huge one would not; and one that just fits a record with its head needs no second.
fn fit(n: usize) -> usize {
    const WITH_HEAD: usize = MOST - frames::HEAD;
    if (WITH_HEAD..=MOST).contains(&n) {
        WITH_HEAD
    } else {
        n.min(DATA)
    }
}
