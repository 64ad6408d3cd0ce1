//! What a socket says, read in pieces that follow what comes: 2 to 128 KiB.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio_util::io::poll_read_buf;

use crate::socket::Socket;

/// First and smallest read, in bytes.
const SMALLEST: usize = 2 << 10;
/// Largest read, in bytes: fits the engine's send buffer.
const LARGEST: usize = 128 << 10;

/// What is read in pieces that follow what comes.
pub(super) struct Pieces {
    /// Read and not yet taken by the engine.
    pub(super) chunk: Bytes,
    pub(super) buffer: BytesMut,
    size: usize,
}

impl Default for Pieces {
    fn default() -> Self {
        Self {
            chunk: Bytes::new(),
            buffer: BytesMut::new(),
            size: SMALLEST,
        }
    }
}

impl Pieces {
    pub(super) fn poll_fill<S: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
    ) -> Poll<io::Result<usize>> {
        self.buffer.reserve(self.size);
        let mut room = (&mut self.buffer).limit(self.size);
        match poll_read_buf(Pin::new(socket), cx, &mut room) {
            Poll::Ready(Ok(n)) => {
                if n == self.size {
                    self.size = (n * 4).min(LARGEST);
                } else if n < self.size / 4 {
                    self.size = (self.size / 2).max(SMALLEST);
                }
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                // An idle connection holds no buffer.
                self.buffer = BytesMut::new();
                Poll::Pending
            }
        }
    }
}
