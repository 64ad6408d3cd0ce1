//! The two halves of a stream, as tunnels hold them. What a dropped half leaves is cleared up by the
//! other, or by the drop of both: a stream that has not ended is then reset.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::{App, Pumped, Shared, Stuck};
use crate::{
    client::Connect, engine::client::Unanswered, frames::StreamId, incoming::ResponseHeaders,
    tunnel::TunnelError,
};

/// What the peer sends.
pub(crate) struct Receiving {
    shared: Arc<Shared>,
    stream: StreamId,
}

/// What we send.
pub(crate) struct Sending {
    shared: Arc<Shared>,
    stream: StreamId,
}

/// Both halves of a stream that the state knows; once for each stream.
pub(crate) fn halves(shared: &Arc<Shared>, stream: StreamId) -> (Receiving, Sending) {
    let receiving = Receiving {
        shared: shared.clone(),
        stream,
    };
    let sending = Sending {
        shared: shared.clone(),
        stream,
    };
    (receiving, sending)
}

/// Asks for a tunnel and waits for the answer.
pub(crate) async fn ask(
    shared: &Arc<Shared>,
    connect: &Connect,
) -> Result<(u16, Receiving, Sending), Unanswered> {
    let stream = poll_fn(|cx| shared.with(|state| state.open(connect, cx))).await?;
    let (receiving, sending) = halves(shared, stream);
    let status = poll_fn(|cx| shared.with(|state| state.poll_answer(stream, cx))).await?;
    Ok((status, receiving, sending))
}

impl Receiving {
    pub(crate) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        clear: bool,
    ) -> Poll<Option<Result<Bytes, TunnelError>>> {
        self.shared
            .with(|state| state.poll_chunk(self.stream, cx, clear))
    }

    /// Where the bytes go in the end: the driver may write them there while nothing waits before them.
    pub(crate) fn goes_to(&mut self, app: &Arc<App>) {
        self.shared.with(|state| state.goes_to(self.stream, app));
    }

    pub(crate) fn consumed(&mut self, n: usize) {
        self.shared.with(|state| state.consumed(self.stream, n));
    }

    pub(crate) fn id(&self) -> u32 {
        self.stream.0
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // The socket is let go of when nothing is locked.
        drop(self.shared.with(|state| state.reader_gone(self.stream)));
    }
}

impl Sending {
    /// Sends the first part of `bytes` and says how much, which is never nothing.
    pub(crate) fn poll_put(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, TunnelError>> {
        self.shared.with(|state| state.put(self.stream, cx, bytes))
    }

    /// Sends what the app's socket has now.
    pub(crate) fn pump(
        &mut self,
        cx: &mut Context<'_>,
        app: &App,
        records: usize,
    ) -> Poll<Result<Pumped, Stuck>> {
        self.shared
            .with(|state| state.pump(self.stream, cx, app, records))
    }

    pub(crate) fn end(&mut self) -> Result<(), TunnelError> {
        self.shared.with(|state| state.end(self.stream))
    }

    pub(crate) fn reset(&mut self) {
        self.shared.with(|state| state.reset(self.stream));
    }

    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<TunnelError> {
        self.shared.with(|state| state.poll_closed(self.stream, cx))
    }

    pub(crate) fn respond(
        &mut self,
        status: u16,
        headers: &ResponseHeaders,
        end: bool,
    ) -> Result<(), TunnelError> {
        self.shared
            .with(|state| state.respond(self.stream, status, headers, end))
    }

    pub(crate) fn id(&self) -> u32 {
        self.stream.0
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.shared.with(|state| state.writer_gone(self.stream));
    }
}
