//! Answers over HTTP/2 that their client does not take.
//!
//! A stream whose window stays shut holds what has come of its answer, and the connection that it comes over. Nobody asks
//! the answer's body for more then, so the body cannot tell; the task that carries it can: it was handed a frame and is
//! waiting, and not for the app. Such a stream is reset after a while. One that waits for the app waits as long as it likes.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::time::{Instant, Sleep};

use crate::load::Load;

/// Spawns the streams of a connection, each with an eye on it.
#[derive(Debug, Clone)]
pub(super) struct Streams(pub(super) Load);

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(watched(stream, self.0.clone()));
    }
}

thread_local! {
    /// Whether the task that is polled has more of an answer to give, and how often that was said on this thread.
    static HANDED: Cell<(bool, u64)> = const { Cell::new((false, 0)) };
}

/// There is more of an answer to give, if its client takes it; or there is not, for now.
pub(super) fn hand(more: bool) {
    HANDED.set((more, HANDED.get().1.wrapping_add(1)));
}

/// A stream's task, which ends when its client has taken nothing for too long.
async fn watched(stream: impl Future, load: Load) {
    let mut stream = pin!(stream);
    let (mut handed, mut late) = (false, None::<Pin<Box<Sleep>>>);
    poll_fn(|cx| {
        let (_, before) = HANDED.get();
        HANDED.set((handed, before));
        let polled = stream.as_mut().poll(cx);
        let now;
        (handed, now) = HANDED.get();
        if polled.is_ready() {
            return Poll::Ready(());
        }
        if !handed {
            return Poll::Pending;
        }
        let late = late.get_or_insert_with(|| Box::pin(tokio::time::sleep(SHUT)));
        if now != before {
            late.as_mut().reset(Instant::now() + SHUT);
        }
        ready!(late.as_mut().poll(cx));
        load.refusal("unread_answer");
        Poll::Ready(())
    })
    .await;
}

/// An answer's body, which says when it was asked.
#[derive(Debug)]
pub(super) struct Asked<B>(pub(super) B);

impl<B: Body + Unpin> Body for Asked<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.0).poll_frame(cx);
        hand(matches!(polled, Poll::Ready(Some(Ok(_)))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// In which a client takes nothing of an answer: a person may have looked away, a machine has not.
pub(super) const SHUT: Duration = Duration::from_secs(300);
