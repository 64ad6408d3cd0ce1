//! The two halves of a stream, as tunnels hold them. What a dropped half leaves is cleared up by the
//! other, or by the drop of both: a stream that has not ended is then reset.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::{App, Parked, Pumped, Shared, Stuck};
use crate::{
    client::Connect, engine::client::Unanswered, frames::StreamId, handover::sign::Standing,
    incoming::ResponseHeaders, tunnel::TunnelError,
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

/// Asks for a tunnel (with a `path`, for datagrams) and waits for the answer. Of what its app has said `first`, so much has been sent then.
pub(crate) async fn ask(
    shared: &Arc<Shared>,
    connect: &Connect,
    path: Option<&str>,
    first: &[u8],
) -> Result<(u16, Receiving, Sending, usize), Unanswered> {
    let opening = |cx: &mut Context<'_>| shared.with(|state| state.open(connect, path, first, cx));
    // A connection that is frozen takes no more streams, whatever becomes of it.
    let away = || Poll::Ready(Err(Unanswered::Lost("it is being handed over".into())));
    let (stream, sent) = poll_fn(|cx| opening(cx).unwrap_or_else(away)).await?;
    let (receiving, sending) = halves(shared, stream);
    // None is frozen while an answer is waited for.
    let answered =
        |cx: &mut Context<'_>| shared.with(|state| state.poll_answer(stream, cx, sent > 0));
    let status = poll_fn(|cx| answered(cx).unwrap_or(Poll::Pending)).await?;
    Ok((status, receiving, sending, sent))
}

/// Whether the peer carries datagrams too; none, of one that is frozen, and of one that has ended before the peer said.
pub(crate) async fn takes_datagrams(shared: &Arc<Shared>) -> Option<bool> {
    let asked = |cx: &mut Context<'_>| shared.with(|state| state.poll_datagrams(cx));
    poll_fn(|cx| asked(cx).unwrap_or(Poll::Ready(None))).await
}

impl Receiving {
    pub(crate) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        clear: bool,
    ) -> Poll<Option<Result<Bytes, TunnelError>>> {
        self.shared
            .with(|state| state.poll_chunk(self.stream, cx, clear))
            .unwrap_or(Poll::Pending)
    }

    /// Where the bytes go in the end: the driver may write them there while nothing waits before them.
    pub(crate) fn goes_to(&mut self, app: &Arc<App>) {
        self.shared.with(|state| state.goes_to(self.stream, app));
    }

    /// Somebody reads it who cannot be stopped between two steps.
    pub(crate) fn is_inside(&mut self) {
        self.shared.with(|state| state.is_inside(self.stream));
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
        let stream = self.stream;
        self.shared
            .with_or_later(move |state| state.reader_gone(stream));
    }
}

impl Sending {
    /// Sends the first part of `bytes` and says how much, which is never nothing.
    pub(crate) fn poll_put(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, TunnelError>> {
        self.shared
            .with(|state| state.put(self.stream, cx, bytes))
            .unwrap_or(Poll::Pending)
    }

    /// Sends what the app's socket has now, and with `may_end` its end.
    pub(crate) fn pump(
        &mut self,
        cx: &mut Context<'_>,
        app: &App,
        records: usize,
        may_end: bool,
    ) -> Poll<Result<Pumped, Stuck>> {
        self.shared
            .with(|state| state.pump(self.stream, cx, app, records, may_end))
            .unwrap_or(Poll::Pending)
    }

    pub(crate) fn end(&mut self) -> Result<(), TunnelError> {
        let ended = self.shared.with(|state| state.end(self.stream));
        ended.unwrap_or(Err(TunnelError::Ended))
    }

    pub(crate) fn reset(&mut self) {
        let stream = self.stream;
        self.shared.with_or_later(move |state| {
            state.reset(stream);
            None
        });
    }

    /// The copy is given up: what is to be reset is reset, the app's socket and the stream, unless
    /// somebody else goes on with both.
    pub(crate) fn give_up(&mut self, app: &Arc<App>, abort: bool, reset: bool) {
        let (stream, app) = (self.stream, app.clone());
        self.shared.with_or_later(move |state| {
            state.give_up(stream, &app, abort, reset);
            Some(app)
        });
    }

    pub(crate) fn standing(&self) -> Standing {
        self.shared.standing()
    }

    /// Whoever copies wants to hear when it has to stop. How it stands now.
    pub(crate) fn attend(&self, cx: &Context<'_>) -> Standing {
        self.shared
            .with(|state| state.attend(self.stream, cx.waker()));
        self.shared.standing()
    }

    /// What whoever copies holds, who does nothing more until the standing changes.
    pub(crate) fn park(&self, parked: Parked) {
        self.shared.with(|state| state.park(self.stream, parked));
    }

    /// Ready when the connection is not frozen.
    pub(crate) fn poll_here(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.poll_here(cx)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<TunnelError> {
        self.shared
            .with(|state| state.poll_closed(self.stream, cx))
            .unwrap_or(Poll::Pending)
    }

    pub(crate) fn respond(
        &mut self,
        status: u16,
        headers: &ResponseHeaders,
        end: bool,
    ) -> Result<(), TunnelError> {
        self.shared
            .with(|state| state.respond(self.stream, status, headers, end))
            .unwrap_or(Err(TunnelError::Ended))
    }

    pub(crate) fn id(&self) -> u32 {
        self.stream.0
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let stream = self.stream;
        self.shared.with_or_later(move |state| {
            state.writer_gone(stream);
            None
        });
    }
}
