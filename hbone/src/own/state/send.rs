//! What leaves: each writer seals what it has and writes the socket itself.

use std::{
    mem,
    task::{Context, Poll},
};

use super::{End, Phase, State, keep};
use crate::{
    frames::{self, Code, StreamId},
    limits::DATA,
    own::{
        flow::Direction,
        output::{Output, SEALED},
    },
    records::{MOST, RecordError},
    tunnel::TunnelError,
};

impl State {
    /// Seals control frames and writes what the socket takes, under the driver's waker.
    pub(crate) fn flush(&mut self) {
        if matches!(self.phase, Phase::Open) {
            self.seal_control();
        }
        if self.output.unsent() == 0 {
            return;
        }
        let mut cx = Context::from_waker(&self.driver);
        let written = self.output.poll_write(&mut *self.io, &mut cx);
        if let Poll::Ready(Err(error)) = written {
            return self.lost(&error.to_string());
        }
        self.call_up();
    }

    fn seal_control(&mut self) {
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
    /// in the output: one that has lost interest must not hold up those behind it.
    fn call_up(&mut self) {
        let free = SEALED.saturating_sub(self.output.unsent());
        let most = if free == SEALED {
            self.line.len()
        } else {
            free / DATA
        };
        for stream in self.line.drain(..most.min(self.line.len())) {
            if let Some(flow) = self.flows.get_mut(&stream) {
                flow.in_line = false;
                self.awake.extend(flow.writer.take());
            }
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
        let Some(flow) = self.flows.get_mut(&stream) else {
            return Poll::Ready(Err(TunnelError::Ended));
        };
        match &flow.sending {
            Direction::Open => {}
            Direction::Ended => return Poll::Ready(Err(TunnelError::Ended)),
            Direction::Failed(why) => return Poll::Ready(Err(why.clone())),
        }
        let room = self.mux.room(stream);
        if room == 0 || self.output.full(bytes.len()) {
            if room == 0 {
                self.mux.wait(stream);
            } else if !mem::replace(&mut flow.in_line, true) {
                self.line.push_back(stream);
            }
            keep(&mut flow.writer, cx, &mut self.awake);
            return Poll::Pending;
        }
        let n = fit(bytes.len().min(room));
        let Some(head) = self.mux.data(stream, n, false) else {
            return Poll::Ready(Err(TunnelError::Ended));
        };
        self.seal_control();
        self.sealed(|output| output.data(&head, &bytes[..n]));
        self.flush();
        Poll::Ready(Ok(n))
    }

    /// Ends our direction. What was put before is delivered before.
    pub(crate) fn end(&mut self, stream: StreamId) -> Result<(), TunnelError> {
        let flow = self.flows.get_mut(&stream).ok_or(TunnelError::Ended)?;
        if let Direction::Failed(why) = &flow.sending {
            return Err(why.clone());
        }
        flow.sending = Direction::Ended;
        if let Some(head) = self.mux.data(stream, 0, true) {
            self.seal_control();
            self.sealed(|output| output.data(&head, &[]));
        }
        self.flush();
        Ok(())
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
        let Some(flow) = self.flows.get_mut(&stream) else {
            return Poll::Ready(TunnelError::Ended);
        };
        if let Direction::Failed(why) = &flow.sending {
            return Poll::Ready(why.clone());
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
