//! Chunks of a tunnel that wait for a socket, in order, and packed where they are small.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};

use crate::socket::Socket;

/// Chunks written by one gathered call.
const GATHER: usize = 32;
/// Chunks below this size are packed together when they have to wait, so that a slow reader of small
/// frames does not keep each frame's own allocation alive.
const PACK: usize = 1 << 10;

/// Chunks that wait for the socket. An idle connection holds no queue.
#[derive(Default)]
pub(super) struct Waiting(Option<Box<Queue>>);

#[derive(Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    /// Small chunks packed together, behind all of `chunks`.
    packed: BytesMut,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// All of it, in order.
    pub(super) fn all(&self) -> Vec<Bytes> {
        self.0.as_ref().map_or_else(Vec::new, |queue| queue.all())
    }

    /// One more, which is never empty.
    pub(super) fn push(&mut self, chunk: Bytes) {
        self.0.get_or_insert_default().push(chunk);
    }

    /// Writes what the socket takes; there must be something.
    pub(super) fn poll_write<S: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
    ) -> Poll<io::Result<usize>> {
        let Some(queue) = &mut self.0 else {
            return Poll::Ready(Ok(0));
        };
        let written = ready!(queue.poll_write(cx, socket));
        if queue.is_empty() {
            self.0 = None;
        }
        Poll::Ready(written)
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.packed.is_empty()
    }

    fn all(&self) -> Vec<Bytes> {
        let mut all: Vec<_> = self.chunks.iter().cloned().collect();
        if !self.packed.is_empty() {
            all.push(Bytes::copy_from_slice(&self.packed));
        }
        all
    }

    fn push(&mut self, chunk: Bytes) {
        if chunk.len() < PACK && self.chunks.len() >= GATHER {
            self.packed.extend_from_slice(&chunk);
            return;
        }
        self.unpack();
        self.chunks.push_back(chunk);
    }

    fn unpack(&mut self) {
        if !self.packed.is_empty() {
            self.chunks.push_back(self.packed.split().freeze());
        }
    }

    fn poll_write<S: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
    ) -> Poll<io::Result<usize>> {
        if self.chunks.is_empty() {
            self.unpack();
        }
        let written = if self.chunks.len() == 1 {
            ready!(Pin::new(socket).poll_write(cx, &self.chunks[0]))?
        } else {
            let mut slices = [IoSlice::new(&[]); GATHER];
            let n = self.chunks.len().min(GATHER);
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                *slice = IoSlice::new(chunk);
            }
            ready!(Pin::new(socket).poll_write_vectored(cx, &slices[..n]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(written))
    }

    fn advance(&mut self, mut n: usize) {
        while n > 0 {
            let Some(first) = self.chunks.front_mut() else {
                return;
            };
            let step = n.min(first.len());
            first.advance(step);
            n -= step;
            if first.is_empty() {
                self.chunks.pop_front();
            }
        }
    }
}
