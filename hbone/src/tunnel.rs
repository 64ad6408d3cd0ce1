//! One duplex byte stream inside a connection.
//!
//! Chunks leave in [`Tunnel::recv`], enter in [`Tunnel::send`]; each direction ends by itself
//! ([`Tunnel::shutdown`], `None` from `recv`), and a reset ends both. Credit goes back to the sender
//! only when a chunk has been consumed, so a reader that stops holds back its own stream, by at most
//! one stream window (4 MiB), and no other.
//!
//! The engine's types stay private: another engine can stand behind the same API.

use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    engine::{
        Lease,
        half::{Receiving, Sending},
    },
    handover::{Freezer, NotFrozen},
    identity::Identity,
    limits::Engine,
    own::{self, App},
    tls::TlsError,
};

/// Why a tunnel ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The stream was reset; the text says by whom, and the HTTP/2 error code's name.
    #[error("the tunnel was reset {0}")]
    Reset(String),
    /// The connection that carried the tunnel ended.
    #[error("the connection that carried the tunnel ended: {0}")]
    ConnectionLost(String),
    /// We have ended the connection that carried the tunnel: its peer is not believed any more, by lists of revoked certificates
    /// that came while it was open.
    #[error("the connection that carried the tunnel was cut: {0}")]
    Disbelieved(Box<TlsError>),
    /// The tunnel was used after its end.
    #[error("the tunnel has ended")]
    Ended,
}

impl From<TunnelError> for io::Error {
    fn from(error: TunnelError) -> Self {
        let kind = match error {
            TunnelError::Reset(_) => io::ErrorKind::ConnectionReset,
            TunnelError::ConnectionLost(_) | TunnelError::Disbelieved(_) => {
                io::ErrorKind::ConnectionAborted
            }
            TunnelError::Ended => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}

/// One duplex byte stream. Dropping it before both directions have ended resets it.
pub struct Tunnel {
    reader: Reader,
    writer: Writer,
    /// Bytes of its app that have been sent before it was there.
    ahead: usize,
}

/// The receiving half of a [`Tunnel`].
pub struct Reader {
    half: Receiving,
    /// Bytes of the last chunk, whose credit goes back with the next call of `recv`.
    owed: usize,
    lease: Arc<Lease>,
}

/// The sending half of a [`Tunnel`].
pub struct Writer {
    half: Sending,
    ended: bool,
    lease: Arc<Lease>,
}

impl Tunnel {
    pub(crate) fn new(receiving: Receiving, sending: Sending, lease: Lease) -> Self {
        let lease = Arc::new(lease);
        Self {
            reader: Reader {
                half: receiving,
                owed: 0,
                lease: lease.clone(),
            },
            writer: Writer {
                half: sending,
                ended: false,
                lease,
            },
            ahead: 0,
        }
    }

    /// One whose app has had so much sent already.
    pub(crate) fn behind(mut self, ahead: usize) -> Self {
        self.ahead = ahead;
        self
    }

    /// Bytes of its app that have been sent before it was there.
    pub(crate) fn ahead(&self) -> usize {
        self.ahead
    }

    /// One that was frozen; `ended`: nothing more can be sent.
    pub(crate) fn thawed(
        receiving: Receiving,
        sending: Sending,
        lease: Lease,
        ended: bool,
    ) -> Self {
        let mut tunnel = Self::new(receiving, sending, lease);
        tunnel.writer.ended = ended;
        tunnel
    }

    /// To freeze the connection that carries it, and all its tunnels.
    ///
    /// # Errors
    /// [`NotFrozen::Engine`].
    pub fn freezer(&self) -> Result<Freezer, NotFrozen> {
        let connection = self.writer.half.connection();
        connection.map(Freezer::of).ok_or(NotFrozen::Engine)
    }

    /// Its number among the tunnels of the connection.
    pub fn stream(&self) -> u32 {
        self.writer.half.id()
    }

    /// Who is at the other end of the connection: proven, not claimed.
    pub fn peer(&self) -> &Identity {
        self.writer.lease.peer()
    }

    /// What carries it.
    pub(crate) fn engine(&self) -> Engine {
        self.writer.half.engine()
    }

    /// The next bytes; `None` when the peer has ended its direction. The credit of the chunk before is
    /// returned by this call. Cancel safe.
    pub async fn recv(&mut self) -> Option<Result<Bytes, TunnelError>> {
        self.reader.recv().await
    }

    /// Returns the credit of the last chunk now, and not with the next call of [`Tunnel::recv`]: for who goes on in
    /// another way, with [`Tunnel::into_io`] or [`crate::both_ways`].
    pub fn settle(&mut self) {
        let owed = std::mem::take(&mut self.reader.owed);
        self.reader.consumed(owed);
    }

    /// Sends bytes; returns when the engine has taken them all, which it does only as fast as the peer
    /// gives credit. Not cancel safe: a cancelled send has sent an unknown part.
    ///
    /// # Errors
    /// When the tunnel was reset, its connection lost, or this direction already ended.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), TunnelError> {
        self.writer.send(bytes).await
    }

    /// Ends our direction; the other goes on.
    ///
    /// # Errors
    /// When the tunnel has been reset or its connection lost.
    pub fn shutdown(&mut self) -> Result<(), TunnelError> {
        self.writer.shutdown()
    }

    /// Ends both directions at once; the peer sees a reset (CANCEL), not an end.
    pub fn reset(mut self) {
        self.writer.reset();
    }

    /// Both halves, to be used by two tasks.
    pub fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }

    /// The tunnel as a byte stream for code that wants one, such as TLS inside the tunnel.
    pub fn into_io(mut self) -> TunnelIo {
        self.reader.half.is_inside();
        TunnelIo {
            tunnel: self,
            rest: Bytes::new(),
        }
    }
}

impl Reader {
    /// See [`Tunnel::recv`].
    pub async fn recv(&mut self) -> Option<Result<Bytes, TunnelError>> {
        poll_fn(|cx| {
            self.consumed(self.owed);
            self.owed = 0;
            let chunk = ready!(self.poll_chunk(cx, true));
            self.owed = chunk
                .as_ref()
                .and_then(|c| c.as_ref().ok())
                .map_or(0, Bytes::len);
            Poll::Ready(chunk)
        })
        .await
    }

    /// The next chunk, whose credit is returned by [`Reader::consumed`]. `clear`: all chunks before have
    /// been delivered.
    pub(crate) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        clear: bool,
    ) -> Poll<Option<Result<Bytes, TunnelError>>> {
        let chunk = self.half.poll_chunk(cx, clear);
        chunk.map(|chunk| chunk.map(|chunk| chunk.map_err(|why| self.lease.why(why))))
    }

    /// Says where the bytes go in the end: the engine may write them there by itself, and returns their
    /// credit by itself, while nothing waits before them.
    pub(crate) fn goes_to(&mut self, app: &Arc<App>) {
        self.half.goes_to(app);
    }

    /// Returns credit for `n` bytes of chunks from [`Reader::poll_chunk`].
    pub(crate) fn consumed(&mut self, n: usize) {
        if n > 0 {
            self.half.consumed(n);
        }
    }
}

impl Writer {
    /// See [`Tunnel::send`].
    ///
    /// # Errors
    /// See [`Tunnel::send`].
    pub async fn send(&mut self, mut bytes: Bytes) -> Result<(), TunnelError> {
        poll_fn(|cx| self.poll_send(cx, &mut bytes)).await
    }

    /// Hands what the peer allows of `bytes` to the engine; ready when nothing is left.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<Result<(), TunnelError>> {
        while bytes.has_remaining() {
            if self.ended {
                return Poll::Ready(Err(TunnelError::Ended));
            }
            ready!(self.half.poll_send(cx, bytes)).map_err(|why| self.lease.why(why))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Our own engine's half, which reads an app's socket by itself; none when there is nothing more to
    /// send.
    pub(crate) fn pump(&mut self) -> Option<&mut own::Sending> {
        if self.ended { None } else { self.half.own() }
    }

    /// Our own engine's half, whatever has ended.
    pub(crate) fn own(&mut self) -> Option<&mut own::Sending> {
        self.half.own()
    }

    /// Why what its engine says of it has failed.
    pub(crate) fn why(&self, seen: TunnelError) -> TunnelError {
        self.lease.why(seen)
    }

    /// Our own engine's half has ended our direction with the last bytes that it read.
    pub(crate) fn has_ended(&mut self) {
        self.ended = true;
    }

    /// Ready when the peer has reset the tunnel or the connection is lost. A half that only waits for
    /// something to send would not notice otherwise.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<TunnelError> {
        if self.ended {
            return Poll::Pending;
        }
        self.half.poll_closed(cx).map(|why| self.lease.why(why))
    }

    /// See [`Tunnel::shutdown`].
    ///
    /// # Errors
    /// See [`Tunnel::shutdown`].
    pub fn shutdown(&mut self) -> Result<(), TunnelError> {
        if !self.ended {
            self.ended = true;
            self.half.end().map_err(|why| self.lease.why(why))?;
        }
        Ok(())
    }

    /// See [`Tunnel::reset`].
    pub fn reset(&mut self) {
        self.ended = true;
        self.half.reset();
    }
}

/// A [`Tunnel`] as a byte stream.
pub struct TunnelIo {
    tunnel: Tunnel,
    rest: Bytes,
}

impl AsyncRead for TunnelIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.tunnel.reader.poll_chunk(cx, true)) {
                Some(chunk) => self.rest = chunk?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = out.remaining().min(self.rest.len());
        out.put_slice(&self.rest.split_to(n));
        self.tunnel.reader.consumed(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let writer = &mut self.tunnel.writer;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if writer.ended {
            return Poll::Ready(Err(TunnelError::Ended.into()));
        }
        let written = writer.half.poll_write(cx, bytes);
        written.map_err(|why| writer.lease.why(why).into())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.tunnel.writer.shutdown().map_err(Into::into))
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("stream", &self.writer.half.id())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("stream", &self.half.id())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("stream", &self.half.id())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TunnelIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.tunnel, f)
    }
}
