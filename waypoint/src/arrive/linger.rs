//! A client's connection as HTTP is read from it, and how it ends.
//!
//! 1. A client that sends frames which carry nothing, over and over, is cut off                       ([`Frames`])
//! 2. One that has begun a request's head must bring the rest of it; one that does not read what it asked for is given up:
//!    both would otherwise keep what they hold for as long as they like. What comes after a switch of protocols is no head.
//! 3. Over HTTP/1.1 nobody reads while an answer is made. Some is read ahead then, and kept for who reads next: a client
//!    that goes is heard of, and its request ends. What a reset means is clear. An end of its direction is what a client
//!    sends that has closed its connection, and also one that has said all and listens; nothing on the wire tells them apart.
//!    The request does: a client that has announced it as its last (`connection: close`, HTTP/1.0) keeps its word by ending,
//!    and waits for the answer. One that wanted to keep the connection and ends it has gone, as for Envoy and most servers.
//! 4. When we have said our last word and the client has not, what it still sends is taken and thrown away for a while. To
//!    drop the connection at once would be a reset, and a reset destroys what the client has not read yet.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use ops::drain::Drain;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::frames::Frames;
use super::turns::Turns;
use crate::load::Load;
use crate::upstream::Stream;

/// A connection that lingers when it is dropped after its last word.
pub(super) struct Linger<S: AsyncRead + Unpin + Send + 'static = Stream> {
    stream: Option<S>,
    drain: Drain,
    load: Load,
    reads: Reads,
    /// Since nothing of what we say is taken.
    unread: Option<Pin<Box<Sleep>>>,
    said_all: bool,
    heard_all: bool,
}

/// What is looked for in what comes.
enum Reads {
    /// HTTP/1.1: heads that do not end.
    Heads(Heads),
    /// HTTP/2: frames that carry nothing.
    Frames(Frames),
}

/// Of a connection that carries one request after the other.
struct Heads {
    turns: Arc<Turns>,
    /// Bytes came when so many requests had come: the beginning of the next one's head.
    begun: Option<u32>,
    late: Option<Pin<Box<Sleep>>>,
    ahead: Bytes,
}

impl<S: AsyncRead + Unpin + Send + 'static> Linger<S> {
    /// Over which requests come one after the other.
    pub(super) fn one(stream: S, drain: Drain, load: Load, turns: Arc<Turns>) -> Self {
        Self::new(
            stream,
            drain,
            load,
            Reads::Heads(Heads {
                turns,
                begun: None,
                late: None,
                ahead: Bytes::new(),
            }),
        )
    }

    /// Over which many come at a time.
    pub(super) fn two(stream: S, drain: Drain, load: Load) -> Self {
        Self::new(stream, drain, load, Reads::Frames(Frames::default()))
    }

    fn new(stream: S, drain: Drain, load: Load, reads: Reads) -> Self {
        Self {
            stream: Some(stream),
            drain,
            load,
            reads,
            unread: None,
            said_all: false,
            heard_all: false,
        }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut S>> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        Ok(Pin::new(self.stream.as_mut().ok_or_else(gone)?))
    }

    /// Listens for a client that goes while its answer is made. Asked with each poll of the connection: what is flushed
    /// then is mostly nothing.
    fn listen(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Reads::Heads(heads) = &mut self.reads else {
            return Ok(());
        };
        let Some(stream) = self.stream.as_mut() else {
            return Ok(());
        };
        if !heads.turns.is_serving() || !heads.ahead.is_empty() || self.heard_all {
            return Ok(());
        }
        // Much at a time: a body whose reader is slower than its client comes through here, piece by piece.
        let mut piece = [const { MaybeUninit::uninit() }; AHEAD];
        let mut read = ReadBuf::uninit(&mut piece);
        match Pin::new(stream).poll_read(cx, &mut read) {
            Poll::Pending => {}
            Poll::Ready(Err(gone)) => {
                self.heard_all = true;
                return Err(gone);
            }
            Poll::Ready(Ok(())) => {
                heads.ahead = Bytes::copy_from_slice(read.filled());
                self.heard_all = heads.ahead.is_empty();
                if self.heard_all && !heads.turns.is_last() {
                    let why = "the client ended its connection before it had its answer";
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
                }
                // The socket will not wake whoever waits for the rest of a body: it has been read here.
                cx.waker().wake_by_ref();
            }
        }
        Ok(())
    }

    fn refuse(&self, why: &'static str) -> io::Error {
        self.load.refusal(why);
        io::Error::new(io::ErrorKind::TimedOut, why)
    }
}

impl Heads {
    fn read(&mut self) {
        if self.turns.is_switched() {
            return;
        }
        if !self.turns.is_serving() && self.begun != Some(self.turns.count()) {
            self.begun = Some(self.turns.count());
            self.late = None;
        }
    }

    /// Nothing comes: whether that has been so for too long.
    fn waits(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.turns.is_serving() || self.begun != Some(self.turns.count()) {
            self.late = None;
            return Poll::Pending;
        }
        let sleep = || Box::pin(tokio::time::sleep(HEAD));
        self.late.get_or_insert_with(sleep).as_mut().poll(cx)
    }
}

impl<S: AsyncRead + Unpin + Send + 'static> AsyncRead for Linger<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (out.filled().len(), out.remaining() > 0);
        let ahead = match &mut self.reads {
            Reads::Heads(heads) if room && !heads.ahead.is_empty() => {
                let most = heads.ahead.len().min(out.remaining());
                Some(heads.ahead.split_to(most))
            }
            _ => None,
        };
        let read = match ahead {
            Some(piece) => {
                out.put_slice(&piece);
                Poll::Ready(Ok(()))
            }
            None if self.heard_all => return Poll::Ready(Ok(())),
            None => self.stream()?.poll_read(cx, out),
        };
        let this = &mut *self;
        if read.is_pending() {
            if let Reads::Heads(heads) = &mut this.reads
                && heads.waits(cx).is_ready()
            {
                return Poll::Ready(Err(this.refuse("slow_head")));
            }
            return Poll::Pending;
        }
        let read = ready!(read);
        let new = &out.filled()[before..];
        this.heard_all |= read.is_err() || room && new.is_empty();
        let flood = match &mut this.reads {
            Reads::Heads(heads) if !new.is_empty() => {
                heads.read();
                false
            }
            Reads::Heads(_) => false,
            Reads::Frames(frames) => !frames.read(new, Instant::now),
        };
        if flood {
            return Poll::Ready(Err(this.refuse("idle_frame_flood")));
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncWrite for Linger<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = self.stream()?.poll_write(cx, bytes);
        let this = &mut *self;
        if wrote.is_pending() {
            let sleep = || Box::pin(tokio::time::sleep(UNREAD));
            let unread = this.unread.get_or_insert_with(sleep);
            ready!(unread.as_mut().poll(cx));
            return Poll::Ready(Err(this.refuse("unread_answer")));
        }
        this.unread = None;
        if let (Reads::Frames(frames), Poll::Ready(Ok(wrote))) = (&mut this.reads, &wrote) {
            frames.wrote(*wrote);
        }
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.listen(cx)?;
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = ready!(self.stream()?.poll_shutdown(cx));
        self.said_all |= shut.is_ok();
        Poll::Ready(shut)
    }
}

impl<S: AsyncRead + Unpin + Send + 'static> Drop for Linger<S> {
    fn drop(&mut self) {
        let stream = self.stream.take();
        let Some(mut stream) = stream.filter(|_| self.said_all && !self.heard_all) else {
            return;
        };
        let now = self.drain.now().clone();
        self.drain.spawn(async move {
            let mut thrown_away = [0; 2048];
            let listening = async { while let Ok(1..) = stream.read(&mut thrown_away).await {} };
            let listening = tokio::time::timeout(PATIENCE, listening);
            now.run_until_cancelled(listening).await;
        });
    }
}

/// A client that has read an end answers with its own within a round trip.
const PATIENCE: Duration = Duration::from_secs(5);
/// That is read before somebody wants it.
const AHEAD: usize = 16 * 1024;
/// From a head's first bytes to its end, where it comes in pieces.
pub(super) const HEAD: Duration = Duration::from_secs(60);
/// In which a client takes nothing of what it asked for.
pub(super) const UNREAD: Duration = Duration::from_secs(300);
