//! Reads ahead of TLS.
//!
//! rustls asks its socket for 4 KiB at a time, four system calls for each full record. This layer
//! sits between them: while data keeps coming it reads in growing pieces, up to 256 KiB a call, and
//! serves TLS from memory; when the socket runs dry the memory is given back, so that an idle
//! connection holds none. Small reads go straight through.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// A piece this small goes straight into the caller's buffer.
const SMALL: usize = 4 << 10;
/// The largest piece: beyond it the memory no longer stays in the second-level cache.
const LARGEST: usize = 256 << 10;

/// An I/O object that is read in pieces that fit its traffic.
#[derive(Debug)]
pub(crate) struct ReadAhead<T> {
    io: T,
    buffer: BytesMut,
    /// Size of the next piece.
    piece: usize,
}

impl<T> ReadAhead<T> {
    pub(crate) fn new(io: T) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            piece: SMALL,
        }
    }

    fn serve(&mut self, out: &mut ReadBuf<'_>) {
        let n = out.remaining().min(self.buffer.len());
        out.put_slice(&self.buffer[..n]);
        self.buffer.advance(n);
    }

    /// The next piece after one of `got` bytes into room for `room`.
    fn adapt(&mut self, got: usize, room: usize) {
        if got == room {
            self.piece = (room * 2).clamp(SMALL, LARGEST);
        } else if got < room / 4 {
            self.piece = (room / 2).max(SMALL);
        }
    }

    /// The socket is dry: an idle connection holds no buffer.
    fn rest(&mut self) {
        self.buffer = BytesMut::new();
        self.piece = SMALL;
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.buffer.is_empty() {
            this.serve(out);
            return Poll::Ready(Ok(()));
        }
        let (before, room) = (out.filled().len(), out.remaining());
        if this.piece <= SMALL || room >= this.piece {
            let polled = Pin::new(&mut this.io).poll_read(cx, out);
            match &polled {
                Poll::Ready(Ok(())) => this.adapt(out.filled().len() - before, room),
                Poll::Ready(Err(_)) => {}
                Poll::Pending => this.rest(),
            }
            return polled;
        }
        let room = this.piece;
        this.buffer.reserve(room);
        let polled = poll_read_buf(
            Pin::new(&mut this.io),
            cx,
            &mut (&mut this.buffer).limit(room),
        );
        match polled {
            Poll::Ready(Ok(got)) => {
                this.adapt(got, room);
                this.serve(out);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                this.rest();
                Poll::Pending
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_arrive_whole_and_idle_memory_is_returned() {
        let (mut far, near) = tokio::io::duplex(1 << 20);
        let mut near = ReadAhead::new(near);
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        far.write_all(&sent).await.unwrap();
        let (mut got, mut piece) = (Vec::new(), [0u8; 4096]);
        let mut grew = false;
        while got.len() < sent.len() {
            let n = near.read(&mut piece).await.unwrap();
            got.extend_from_slice(&piece[..n]);
            grew |= near.piece > SMALL;
        }
        assert_eq!(got, sent);
        assert!(grew, "large traffic is read in large pieces");
        let idle =
            tokio::time::timeout(std::time::Duration::from_millis(1), near.read(&mut piece)).await;
        assert!(idle.is_err());
        assert_eq!(near.buffer.capacity(), 0);
    }
}
