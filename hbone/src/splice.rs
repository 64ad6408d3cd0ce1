//! Bytes both ways between two sockets of this machine.
//!
//! Each direction begins with plain reads and writes through the stack, which is cheapest for small
//! messages. When reads come full one after the other it is bulk: a pipe is taken and the kernel moves
//! pages from socket to socket (`splice(2)`), so that no byte is copied through this process. When the
//! pieces get small again the pipe is given back. Ends and errors mean the same as in [`crate::copy`].

mod written;

use std::{
    fmt, io,
    mem::MaybeUninit,
    ops::Deref,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

pub(crate) use self::written::Thawing;
use self::written::written;
use crate::{
    copy::{Counters, Ended, HalfEnd},
    handover::{Freezer, brake::Brake, sign::Standing},
    own,
    socket::Socket,
    turn,
};

/// One read through the stack.
const READ: usize = 16 << 10;
/// What a pipe is asked to hold, and so the most one call moves. Unprivileged users may get less.
const PIPE: usize = 1 << 20;
/// Moved in one direction, in bytes, before others of the thread have their turn: a fraction of a millisecond.
const TURN: usize = 1 << 20;
/// Full reads in a row that count as bulk.
const BULK_AFTER: u8 = 3;
/// Small pieces in a row that end it.
const SMALL_AFTER: u8 = 8;
/// Pipes kept for the next bulk transfer: two descriptors each.
const SPARE_PIPES: usize = 32;

/// Copies until both directions have ended, and says how. Cancelling it resets both sockets.
pub async fn tcp_both_ways(a: TcpStream, b: TcpStream, counters: &Counters) -> Ended {
    TcpPair::new(a, b).both_ways(counters).await
}

/// Two sockets that are to be copied to each other. Dropped before that has ended, both are reset.
pub struct TcpPair {
    id: u64,
    /// Bytes that were moved before: (sent, received).
    moved: (u64, u64),
    pair: Pair,
}

struct Pair {
    a: TcpStream,
    b: TcpStream,
    there: Direction,
    back: Direction,
    abort: bool,
    brake: Arc<Brake>,
    /// With which it is told to stop.
    waker: Option<Waker>,
}

impl TcpPair {
    /// Two sockets that nothing has been read from yet.
    pub fn new(a: TcpStream, b: TcpStream) -> Self {
        // No delay as in every relay, but as much in the kernel as it likes: nothing else waits behind it.
        for socket in [&a, &b] {
            let _ = socket.set_nodelay(true);
        }
        Self::going_on(a, b, [Direction::default(), Direction::default()], (0, 0))
    }

    fn going_on(
        a: TcpStream,
        b: TcpStream,
        [there, back]: [Direction; 2],
        moved: (u64, u64),
    ) -> Self {
        let pair = Pair {
            a,
            b,
            there,
            back,
            abort: true,
            brake: Arc::default(),
            waker: None,
        };
        Self {
            id: own::number(),
            moved,
            pair,
        }
    }

    /// To freeze it.
    pub fn freezer(&self) -> Freezer {
        Freezer::of_pair(self.id, &self.pair.brake)
    }

    /// Bytes (sent, received) that it had moved when it was frozen: for [`Counters::of`].
    pub fn moved(&self) -> (u64, u64) {
        self.moved
    }

    /// Copies until both directions have ended, and says how. Cancelling it resets both sockets.
    pub fn both_ways<C: Deref<Target = Counters> + Unpin>(self, counters: C) -> Splicing<C> {
        Splicing {
            pair: self.pair,
            counters,
        }
    }
}

/// A copy between two sockets under way ([`TcpPair::both_ways`]); kept once, as [`crate::BothWays`] is.
#[must_use = "nothing moves before it is polled"]
pub struct Splicing<C> {
    pair: Pair,
    counters: C,
}

impl<C: Deref<Target = Counters> + Unpin> Future for Splicing<C> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self { pair, counters } = &mut *self;
        let ended = ready!(pair.poll(cx, counters));
        pair.abort = !ended.clean();
        Poll::Ready(ended)
    }
}

impl<C> fmt::Debug for Splicing<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Splicing").finish_non_exhaustive()
    }
}

impl fmt::Debug for TcpPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpPair({})", self.id)
    }
}

impl Pair {
    fn poll(&mut self, cx: &mut Context<'_>, counters: &Counters) -> Poll<Ended> {
        if !ready!(self.poll_ours(cx, counters)) {
            return Poll::Ready(Ended::HANDED_OVER);
        }
        self.there
            .poll(cx, &mut self.a, &mut self.b, &counters.sent);
        // A far socket that takes no more has said so once, and ends now as if it were done; but what it sent
        // before must still arrive.
        self.back.source_dead |= self.there.refused;
        self.back
            .poll(cx, &mut self.b, &mut self.a, &counters.received);
        if self.back.refused && self.there.end.is_none() {
            self.there.source_dead = true;
            self.there
                .poll(cx, &mut self.a, &mut self.b, &counters.sent);
        }
        let (sent, received) = match (self.there.end.clone(), self.back.end.clone()) {
            (Some(sent), Some(received)) => (sent, received),
            (Some(sent @ HalfEnd::Socket(_)), None) if !self.there.refused => {
                (sent, HalfEnd::CutOff)
            }
            (None, Some(received @ HalfEnd::Socket(_))) if !self.back.refused => {
                (HalfEnd::CutOff, received)
            }
            _ => return Poll::Pending,
        };
        Poll::Ready(Ended { sent, received })
    }

    /// Ready when bytes may be moved, or false when somebody else moves them now. Told to stop, it writes
    /// down what it holds, and keeps it.
    fn poll_ours(&mut self, cx: &mut Context<'_>, counters: &Counters) -> Poll<bool> {
        if !self.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            self.brake.attend(cx);
            self.waker = Some(cx.waker().clone());
        }
        match self.brake.standing() {
            Standing::Here => return Poll::Ready(true),
            Standing::Given => return Poll::Ready(false),
            Standing::Away => return Poll::Pending,
            Standing::Stopping => {}
        }
        // What is in a pipe has been read and not written yet.
        for direction in [&mut self.there, &mut self.back] {
            if let Err(error) = direction.empty_pipe() {
                // Bytes may be lost: it is over, and whoever freezes hears so when it is dropped.
                direction.end = Some(HalfEnd::Socket(error.kind()));
                return Poll::Ready(true);
            }
        }
        self.brake
            .park(|| written([&self.a, &self.b], [&self.there, &self.back], counters));
        Poll::Pending
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Whoever freezes it knows whether the sockets are still ours to end.
        let abort = self.abort;
        self.brake.let_go(|| {
            if abort {
                self.a.abort();
                self.b.abort();
            }
        });
    }
}

/// One direction: what is on its way, and how it travels.
#[derive(Default)]
struct Direction {
    /// Read through the stack and not yet written.
    rest: Bytes,
    /// Present while the kernel does the moving.
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    in_pipe: usize,
    /// Full reads, or small pieces, in a row.
    streak: u8,
    /// It was the receiving socket that failed.
    refused: bool,
    /// Writing to the sending socket has failed: its end of file is no orderly end.
    source_dead: bool,
    end: Option<HalfEnd>,
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        count: &AtomicU64,
    ) {
        if self.end.is_none()
            && let Poll::Ready(done) = self.poll_copy(cx, from, to, count)
        {
            self.give_back();
            self.end =
                Some(done.map_or_else(|e| HalfEnd::Socket(e.kind()), |()| HalfEnd::Finished));
        }
    }

    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        count: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        let mut moved = 0;
        while moved < TURN {
            if let Err(error) = ready!(self.poll_deliver(cx, to, count)) {
                self.refused = true;
                return Poll::Ready(Err(error));
            }
            let n = if self.pipe.is_some() {
                ready!(self.poll_into_pipe(cx, from))?
            } else {
                ready!(self.poll_into_stack(cx, from, to, count))?
            };
            if n == 0 && self.source_dead {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if n == 0 {
                return Pin::new(to).poll_shutdown(cx);
            }
            moved += n;
        }
        turn::over(cx)
    }

    /// Writes what an earlier call could not.
    fn poll_deliver(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut TcpStream,
        count: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest))?;
            self.rest.advance(n);
            count.fetch_add(n as u64, Ordering::Relaxed);
        }
        while self.in_pipe > 0
            && let Some(pipe) = &self.pipe
        {
            ready!(to.poll_write_ready(cx))?;
            let moved = to.try_io(Interest::WRITABLE, || {
                Ok(splice(&pipe.read, None, &*to, None, self.in_pipe, flags())?)
            });
            match moved {
                Ok(n) => {
                    self.in_pipe -= n;
                    count.fetch_add(n as u64, Ordering::Relaxed);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Fills the pipe, which is empty: "would block" can only mean that the socket has nothing.
    fn poll_into_pipe(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        let Some(pipe) = &self.pipe else {
            return Poll::Ready(Ok(0));
        };
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || {
                Ok(splice(from, None, &pipe.write, None, PIPE, flags())?)
            }) {
                Ok(n) => {
                    self.in_pipe = n;
                    self.streak = if n < READ { self.streak + 1 } else { 0 };
                    if n > 0 && self.streak >= SMALL_AFTER {
                        self.leave_bulk()?;
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Reads a piece, and writes it at once if the other socket takes it; what it does not take waits
    /// for [`Self::poll_deliver`].
    fn poll_into_stack(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        count: &AtomicU64,
    ) -> Poll<io::Result<usize>> {
        let mut stack = [MaybeUninit::<u8>::uninit(); READ];
        let mut buffer = ReadBuf::uninit(&mut stack);
        ready!(Pin::new(from).poll_read(cx, &mut buffer))?;
        let read = buffer.filled();
        self.streak = if read.len() == READ {
            self.streak + 1
        } else {
            0
        };
        if self.streak >= BULK_AFTER {
            self.streak = 0;
            self.pipe = Pipe::take();
        }
        if read.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let written = match Pin::new(to).poll_write(cx, read) {
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(error)) => {
                self.refused = true;
                return Poll::Ready(Err(error));
            }
            Poll::Pending => 0,
        };
        count.fetch_add(written as u64, Ordering::Relaxed);
        if written < read.len() {
            self.rest = Bytes::copy_from_slice(&read[written..]);
        }
        Poll::Ready(Ok(read.len()))
    }

    /// Takes out what is in the pipe, if there is one and anything is.
    fn empty_pipe(&mut self) -> io::Result<()> {
        match self.in_pipe {
            0 => Ok(()),
            _ => self.leave_bulk(),
        }
    }

    /// Takes the last small piece out of the pipe, so that the pipe can be given back.
    fn leave_bulk(&mut self) -> io::Result<()> {
        let Some(pipe) = &self.pipe else {
            return Ok(());
        };
        let mut piece = vec![0; self.in_pipe];
        let mut have = 0;
        while have < piece.len() {
            have += nix::unistd::read(&pipe.read, &mut piece[have..])?;
        }
        self.in_pipe = 0;
        self.streak = 0;
        self.rest = piece.into();
        self.give_back();
        Ok(())
    }

    fn give_back(&mut self) {
        if let Some(pipe) = self.pipe.take()
            && self.in_pipe == 0
        {
            pipe.keep();
        }
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

/// A kernel buffer to splice through. Kept ones are empty.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

static SPARE: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());

impl Pipe {
    /// A pipe, or nothing when descriptors have run out: then bytes go through the stack.
    fn take() -> Option<Self> {
        let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.or_else(|| {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
            // A smaller pipe works too.
            let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
            Some(Self { read, write })
        })
    }

    fn keep(self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_PIPES {
            spare.push(self);
        }
    }
}
