//! Whose turn it is on a connection that carries one request after the other: the client's, or ours.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

/// It.
#[derive(Debug, Default)]
pub(super) struct Turns {
    serving: AtomicBool,
    /// Requests that have come; it may wrap.
    count: AtomicU32,
}

/// An answer is being made and sent.
#[derive(Debug)]
pub(super) struct Serving(Arc<Turns>);

impl Turns {
    /// A request has come.
    pub(super) fn begin(self: &Arc<Self>) -> Serving {
        self.count.fetch_add(1, Relaxed);
        self.serving.store(true, Relaxed);
        Serving(self.clone())
    }

    /// Whether it is ours.
    pub(super) fn is_serving(&self) -> bool {
        self.serving.load(Relaxed)
    }

    /// Requests that have come.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.store(false, Relaxed);
    }
}

/// An answer's body, which ends our turn.
#[derive(Debug)]
pub(super) struct Last<B> {
    pub(super) body: B,
    pub(super) _serving: Serving,
}

impl<B: Body + Unpin> Body for Last<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
