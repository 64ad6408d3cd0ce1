//! Streams begin, are read and end.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use super::{Phase, Role, State, keep};
use crate::{
    client::Connect,
    engine::client::Unanswered,
    frames::{Code, NotOpened, StreamId},
    incoming::ResponseHeaders,
    own::{
        app::App,
        flow::{Direction, Flow},
    },
    tunnel::TunnelError,
};

/// Silence after which a peer may have gone unheard (a crash that nothing was sent for): a request that carries
/// an app's bytes cannot be made again, so such a peer gets one without.
const SILENT: Duration = Duration::from_millis(300);

impl State {
    /// Asks for a tunnel, with a `path` for datagrams. What its app has said `first` goes along, all of it or nothing;
    /// says how much. Whether the peer has acted upon it is not known then before there is an answer.
    pub(crate) fn open(
        &mut self,
        connect: &Connect,
        path: Option<&str>,
        first: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(StreamId, usize), Unanswered>> {
        if let Phase::Closing(end) | Phase::Over(end) = &self.phase {
            return Poll::Ready(Err(Unanswered::Lost(end.words().to_owned())));
        }
        if self.freezing.is_some() {
            let words = "it is being handed over".to_owned();
            return Poll::Ready(Err(Unanswered::Lost(words)));
        }
        match self.mux.open_as(connect, path) {
            Ok(stream) => {
                self.flows.insert(stream, Flow::new());
                let sent = self.send_along(stream, first);
                self.flush();
                Poll::Ready(Ok((stream, sent)))
            }
            Err(NotOpened::Full) => {
                if !self.openers.iter().any(|w| w.will_wake(cx.waker())) {
                    self.openers.push(cx.waker().clone());
                }
                Poll::Pending
            }
            Err(NotOpened::GoingAway) => {
                let words = "the peer takes no more streams".to_owned();
                Poll::Ready(Err(Unanswered::Lost(words)))
            }
            Err(NotOpened::Malformed(what)) => Poll::Ready(Err(Unanswered::Malformed(what))),
        }
    }

    /// Whether the peer carries datagrams too, which it says with the first that it says; none, if it never will.
    pub(crate) fn poll_datagrams(&mut self, cx: &mut Context<'_>) -> Poll<Option<bool>> {
        match (&self.phase, self.mux.takes_datagrams()) {
            (_, Some(takes)) => Poll::Ready(Some(takes)),
            (Phase::Open, None) => {
                // Woken with all that comes.
                if !self.openers.iter().any(|w| w.will_wake(cx.waker())) {
                    self.openers.push(cx.waker().clone());
                }
                Poll::Pending
            }
            _ => Poll::Ready(None),
        }
    }

    /// The peer has been heard of just now, and so is there to take what is said to it.
    pub(crate) fn is_lively(&self) -> bool {
        self.heard.is_some_and(|at| at.elapsed() < SILENT)
    }

    /// Puts an app's first bytes behind the request for its tunnel, into the same record.
    fn send_along(&mut self, stream: StreamId, first: &[u8]) -> usize {
        let n = first.len();
        if n == 0 || n > self.mux.room(stream) || self.output.full(n) {
            return 0;
        }
        let Some(head) = self.mux.data(stream, n, false) else {
            return 0;
        };
        let out = self.mux.out();
        out.extend_from_slice(&head);
        out.extend_from_slice(first);
        n
    }

    /// With `sent` the peer has been told more than the request.
    pub(crate) fn poll_answer(
        &mut self,
        stream: StreamId,
        cx: &mut Context<'_>,
        sent: bool,
    ) -> Poll<Result<u16, Unanswered>> {
        let Some(flow) = self.flows.get_mut(&stream) else {
            let words = "it was closed".to_owned();
            return Poll::Ready(Err(match sent {
                true => Unanswered::Cut(words),
                false => Unanswered::Lost(words),
            }));
        };
        if let Some(status) = flow.answer {
            return Poll::Ready(Ok(status));
        }
        let Direction::Failed(why) = &flow.receiving else {
            keep(&mut flow.reader, cx, &mut self.awake);
            return Poll::Pending;
        };
        Poll::Ready(Err(match &**why {
            TunnelError::Reset(words) if flow.unseen => Unanswered::Unseen(words.clone()),
            TunnelError::Reset(words) => Unanswered::Reset(words.clone()),
            why if sent && !flow.unseen => Unanswered::Cut(why.to_string()),
            why => Unanswered::Lost(why.to_string()),
        }))
    }

    pub(crate) fn respond(
        &mut self,
        stream: StreamId,
        status: u16,
        headers: &ResponseHeaders,
        end: bool,
    ) -> Result<(), TunnelError> {
        let flow = self.flows.get_mut(&stream).ok_or(TunnelError::Ended)?;
        if let Direction::Failed(why) = &flow.sending {
            return Err((**why).clone());
        }
        if self.mux.respond(stream, status, headers, end).is_err() {
            return Err(TunnelError::Ended);
        }
        if end {
            flow.sending = Direction::Ended;
        }
        self.flush();
        Ok(())
    }

    /// The next chunk. When there is none, `clear` says that the reader has none left either, so that
    /// what comes next may go where the stream goes to.
    pub(crate) fn poll_chunk(
        &mut self,
        stream: StreamId,
        cx: &mut Context<'_>,
        clear: bool,
    ) -> Poll<Option<Result<Bytes, TunnelError>>> {
        let Some(flow) = self.flows.get_mut(&stream) else {
            return Poll::Ready(None);
        };
        if let Some(chunk) = flow.pop() {
            return Poll::Ready(Some(Ok(chunk)));
        }
        match &flow.receiving {
            Direction::Ended => Poll::Ready(None),
            Direction::Failed(why) => Poll::Ready(Some(Err((**why).clone()))),
            Direction::Open => {
                flow.clear = clear;
                keep(&mut flow.reader, cx, &mut self.awake);
                Poll::Pending
            }
        }
    }

    pub(crate) fn goes_to(&mut self, stream: StreamId, app: &Arc<App>) {
        if let Some(flow) = self.flows.get_mut(&stream) {
            flow.app = Some(app.clone());
            self.stir();
        }
    }

    pub(crate) fn consumed(&mut self, stream: StreamId, n: usize) {
        if let Some(flow) = self.flows.get_mut(&stream) {
            let n = n.min(flow.unread);
            flow.unread -= n;
            self.mux.consumed(stream, n);
            self.flush();
        }
    }

    /// Gives back the socket that the stream went to: dropping it may drop wakers.
    #[must_use]
    pub(crate) fn reader_gone(&mut self, stream: StreamId) -> Option<Arc<App>> {
        let flow = self.flows.get_mut(&stream)?;
        let app = flow.app.take();
        flow.reader_gone = true;
        flow.parked = None;
        flow.discard();
        self.awake.extend(flow.reader.take());
        self.awake.extend(flow.copier.take());
        self.let_go(stream);
        app
    }

    pub(crate) fn writer_gone(&mut self, stream: StreamId) {
        if let Some(flow) = self.flows.get_mut(&stream) {
            flow.writer_gone = true;
            self.awake.extend(flow.writer.take());
            self.let_go(stream);
        }
    }

    /// Forgets a stream that nobody holds any more, and resets it if it has not ended.
    fn let_go(&mut self, stream: StreamId) {
        let Some(flow) = self.flows.get(&stream) else {
            return;
        };
        if !flow.reader_gone || !flow.writer_gone {
            return;
        }
        // A server that has said all it has to say wants no more to be sent to it (RFC 9113, 8.1).
        let answered = self.role == Role::Server && flow.sending == Direction::Ended;
        let open = flow.receiving.is_open() || flow.sending.is_open();
        let unread = flow.unread;
        self.leave_line(stream);
        self.flows.remove(&stream);
        self.mux.consumed(stream, unread);
        if open {
            let code = if answered {
                Code::NO_ERROR
            } else {
                Code::CANCEL
            };
            self.mux.reset(stream, code);
        }
        self.settle();
        self.flush();
    }

    /// After streams have ended: whoever waited for that may go on.
    pub(super) fn settle(&mut self) {
        if !self.openers.is_empty() && self.mux.streams() < self.mux.most() {
            self.awake.append(&mut self.openers);
        }
        if self.mux.done() || self.unwanted && self.flows.is_empty() {
            self.awake.push(self.driver.clone());
        }
        self.stir();
    }

    /// Nobody will open another stream.
    pub(crate) fn unwanted(&mut self) {
        self.unwanted = true;
        self.settle();
    }

    pub(crate) fn places(&self) -> usize {
        match self.freezing {
            Some(_) => 0,
            None => self.mux.most(),
        }
    }

    pub(crate) fn stalled(&self) -> bool {
        self.mux.stalled()
    }
}
