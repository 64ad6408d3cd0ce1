//! The two halves of a stream, in whichever engine carries it.
//!
//! [`crate::tunnel`] speaks to these and names no engine. A half that is dropped before its direction
//! has ended leaves that to the engine: when both are gone the stream is reset (CANCEL).

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};

use super::{reset, words};
use crate::{
    limits::{DATA, Engine},
    own,
    tunnel::TunnelError,
};

/// What the peer sends.
pub(crate) enum Receiving {
    /// Of the `h2` crate.
    H2(h2::RecvStream),
    /// Of our own engine.
    Own(own::Receiving),
}

/// What we send.
pub(crate) enum Sending {
    /// Of the `h2` crate.
    H2(h2::SendStream<Bytes>),
    /// Of our own engine.
    Own(own::Sending),
}

impl Receiving {
    /// The next chunk, which is never empty; its credit stays with us until [`Receiving::consumed`].
    /// `clear`: the reader has delivered all it has been given ([`Receiving::goes_to`]).
    pub(crate) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        clear: bool,
    ) -> Poll<Option<Result<Bytes, TunnelError>>> {
        match self {
            Self::H2(stream) => loop {
                match ready!(stream.poll_data(cx)) {
                    // Bare heads carry nothing.
                    Some(Ok(chunk)) if chunk.is_empty() => {}
                    Some(chunk) => return Poll::Ready(Some(chunk.map_err(TunnelError::from))),
                    None => return Poll::Ready(None),
                }
            },
            Self::Own(half) => half.poll_chunk(cx, clear),
        }
    }

    /// Says where the bytes go in the end. Our own engine writes there by itself what it may.
    pub(crate) fn goes_to(&mut self, app: &Arc<own::App>) {
        match self {
            Self::H2(_) => {}
            Self::Own(half) => half.goes_to(app),
        }
    }

    /// Somebody reads it who cannot be stopped between two steps.
    pub(crate) fn is_inside(&mut self) {
        match self {
            Self::H2(_) => {}
            Self::Own(half) => half.is_inside(),
        }
    }

    /// Gives credit for `n` bytes back to the peer.
    pub(crate) fn consumed(&mut self, n: usize) {
        match self {
            // Fails only for more than was received; then there is nothing to return.
            Self::H2(stream) => drop(stream.flow_control().release_capacity(n)),
            Self::Own(half) => half.consumed(n),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        match self {
            Self::H2(stream) => stream.stream_id().as_u32(),
            Self::Own(half) => half.id(),
        }
    }
}

impl Sending {
    /// Sends the first part of `bytes`, as much as the peer allows now and no more than one frame, so
    /// that streams take turns. There must be something to send.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<Result<(), TunnelError>> {
        match self {
            Self::H2(stream) => {
                let room = ready!(poll_h2_room(stream, cx, bytes.len()))?;
                let piece = bytes.split_to(room.min(bytes.len()).min(DATA));
                Poll::Ready(Ok(stream.send_data(piece, false)?))
            }
            Self::Own(half) => {
                let n = ready!(half.poll_put(cx, bytes))?;
                bytes.advance(n);
                if bytes.is_empty() {
                    // An empty slice still keeps its memory.
                    *bytes = Bytes::new();
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// The same for borrowed bytes; says how many were sent.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, TunnelError>> {
        match self {
            Self::H2(stream) => {
                let wanted = bytes.len().min(DATA);
                let n = ready!(poll_h2_room(stream, cx, wanted))?.min(wanted);
                stream.send_data(Bytes::copy_from_slice(&bytes[..n]), false)?;
                Poll::Ready(Ok(n))
            }
            Self::Own(half) => half.poll_put(cx, bytes),
        }
    }

    /// Our own engine's half, which reads an app's socket by itself.
    pub(crate) fn own(&mut self) -> Option<&mut own::Sending> {
        match self {
            Self::H2(_) => None,
            Self::Own(half) => Some(half),
        }
    }

    /// The connection that carries it, if it can be frozen.
    pub(crate) fn connection(&self) -> Option<&Arc<own::Shared>> {
        match self {
            Self::H2(_) => None,
            Self::Own(half) => Some(half.shared()),
        }
    }

    /// Ends our direction.
    pub(crate) fn end(&mut self) -> Result<(), TunnelError> {
        match self {
            Self::H2(stream) => Ok(stream.send_data(Bytes::new(), true)?),
            Self::Own(half) => half.end(),
        }
    }

    /// Ends both directions with CANCEL.
    pub(crate) fn reset(&mut self) {
        match self {
            Self::H2(stream) => stream.send_reset(h2::Reason::CANCEL),
            Self::Own(half) => half.reset(),
        }
    }

    /// Ready when the peer has reset the stream or the connection is lost.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<TunnelError> {
        match self {
            Self::H2(stream) => stream.poll_reset(cx).map(|outcome| match outcome {
                Ok(reason) => TunnelError::Reset(reset(false, reason.into())),
                Err(error) => error.into(),
            }),
            Self::Own(half) => half.poll_closed(cx),
        }
    }

    pub(crate) fn engine(&self) -> Engine {
        match self {
            Self::H2(_) => Engine::H2,
            Self::Own(_) => Engine::Own,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        match self {
            Self::H2(stream) => stream.stream_id().as_u32(),
            Self::Own(half) => half.id(),
        }
    }
}

/// How much of `wanted` may be sent now, which is never nothing.
fn poll_h2_room(
    stream: &mut h2::SendStream<Bytes>,
    cx: &mut Context<'_>,
    wanted: usize,
) -> Poll<Result<usize, TunnelError>> {
    stream.reserve_capacity(wanted);
    loop {
        let room = match stream.capacity() {
            0 => match ready!(stream.poll_capacity(cx)) {
                Some(room) => room?,
                None => return Poll::Ready(Err(why_closed(stream, cx))),
            },
            room => room,
        };
        // Nothing: a notice that came to nothing, because the peer took the credit back at once. The
        // engine of today keeps such notices to itself; it has not always. A frame without bytes
        // would count as abuse, and a write of none as the end.
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
    }
}

fn why_closed(stream: &mut h2::SendStream<Bytes>, cx: &mut Context<'_>) -> TunnelError {
    match stream.poll_reset(cx) {
        Poll::Ready(Ok(reason)) => TunnelError::Reset(reset(false, reason.into())),
        Poll::Ready(Err(error)) => error.into(),
        Poll::Pending => TunnelError::Ended,
    }
}

impl From<h2::Error> for TunnelError {
    fn from(error: h2::Error) -> Self {
        if let (true, Some(code)) = (error.is_reset(), error.reason()) {
            return Self::Reset(reset(error.is_library(), code.into()));
        }
        if error.is_go_away() || error.is_io() || error.is_library() {
            return Self::ConnectionLost(words(&error));
        }
        Self::Ended
    }
}
