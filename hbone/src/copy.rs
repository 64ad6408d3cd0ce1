//! Bytes both ways between a socket and a tunnel, or between two sockets.
//!
//! Each direction is a small state machine; both live in one future that holds no buffer while
//! nothing moves:
//!
//! * up: read from the socket into memory sized by what came last (2 to 128 KiB), hand it to the
//!   tunnel as it is, wait for credit;
//! * down: take chunks from the tunnel, write them with one gathered call, and only then return
//!   their credit.
//!
//! Between a TCP socket and a tunnel of our own engine both are shorter: the engine reads the socket to
//! where it seals ([`Up::poll_pump`]), and writes to it what it opens as long as nothing waits before
//! ([`Reader::goes_to`]); what the socket does not take comes down the usual way.
//!
//! Such a copy, and one between two sockets, can be frozen and gone on with elsewhere
//! ([`crate::handover`]): it stops between two steps, and what it holds is written down.
//!
//! An end of one direction ends only that direction. An error ends both: a reset of the tunnel
//! becomes a reset of the socket and the other way round, so that cut-off data never looks complete.

mod pieces;
mod waiting;

use std::{
    fmt,
    io::{self, Read},
    ops::Deref,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::net::TcpStream;

use self::{pieces::Pieces, waiting::Waiting};
use crate::{
    handover::sign::Standing,
    limits::Engine,
    own::{App, PAYLOAD, Parked, Pumped, RECORDS, SharedApp, Stuck},
    socket::Socket,
    tunnel::{Reader, Tunnel, TunnelError, Writer},
    turn,
};

pub use crate::splice::{Splicing, TcpPair, tcp_both_ways};

/// The most that is read before there is a tunnel, in bytes: what a client says first is seldom more.
const FIRST: usize = 2 << 10;
/// Reads by the engine before others of its thread have their turn: half a megabyte at most.
const PUMPS: usize = 4;
/// Chunks taken from the tunnel before the socket is tried.
const TAKE: usize = 32;

/// Bytes moved so far; read them at any time.
#[derive(Debug, Default)]
pub struct Counters {
    /// From the socket into the tunnel (or from the first socket to the second).
    pub sent: AtomicU64,
    /// From the tunnel to the socket (or from the second socket to the first).
    pub received: Arc<AtomicU64>,
}

impl Counters {
    /// Of a copy that has moved so much elsewhere.
    pub fn of(sent: u64, received: u64) -> Self {
        Self {
            sent: AtomicU64::new(sent),
            received: Arc::new(AtomicU64::new(received)),
        }
    }

    /// (sent, received)
    pub fn moved(&self) -> (u64, u64) {
        let [sent, received] = [&self.sent, &*self.received].map(|n| n.load(Ordering::Relaxed));
        (sent, received)
    }
}

/// How one direction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HalfEnd {
    /// The sender said that it is done, and all it sent was delivered.
    Finished,
    /// The socket failed.
    Socket(io::ErrorKind),
    /// The tunnel failed.
    Tunnel(TunnelError),
    /// The other direction failed first.
    CutOff,
    /// It has not: somebody else goes on with both directions ([`crate::handover`]).
    HandedOver,
}

/// How both directions ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Socket to tunnel (or first socket to second).
    pub sent: HalfEnd,
    /// Tunnel to socket (or second socket to first).
    pub received: HalfEnd,
}

impl Ended {
    /// What whoever copied says who may not touch it any more.
    pub(crate) const HANDED_OVER: Self = Self {
        sent: HalfEnd::HandedOver,
        received: HalfEnd::HandedOver,
    };

    /// True when it has not ended, but goes on elsewhere: there is nothing to report.
    pub fn handed_over(&self) -> bool {
        *self == Self::HANDED_OVER
    }

    /// True when both directions were finished by their senders.
    pub fn clean(&self) -> bool {
        self.sent == HalfEnd::Finished && self.received == HalfEnd::Finished
    }

    /// The first failure, if there was one.
    pub fn error(&self) -> Option<&HalfEnd> {
        [&self.sent, &self.received]
            .into_iter()
            .find(|end| matches!(end, HalfEnd::Socket(_) | HalfEnd::Tunnel(_)))
    }
}

impl fmt::Display for HalfEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("finished"),
            Self::Socket(kind) => write!(f, "{kind}"),
            Self::Tunnel(error) => write!(f, "{error}"),
            Self::CutOff => f.write_str("cut off"),
            Self::HandedOver => f.write_str("handed over"),
        }
    }
}

/// Copies until both directions have ended, and says how. Cancelling it resets both ends.
pub fn both_ways<S, C>(socket: S, tunnel: Tunnel, counters: C) -> BothWays<S, C>
where
    S: Socket,
    C: Deref<Target = Counters> + Unpin,
{
    socket.tune();
    let ahead = tunnel.ahead() as u64;
    counters.sent.fetch_add(ahead, Ordering::Relaxed);
    if tunnel.engine() != Engine::Own {
        return BothWays::by(Copier::Alone(Copy::new(socket, tunnel, None)), counters);
    }
    let copier = match socket.into_tcp() {
        Ok(tcp) => {
            let app = Arc::new(App::new(tcp, counters.received.clone()));
            let socket = SharedApp(app.clone());
            Copier::Shared(Copy::new(socket, tunnel, Some(app)))
        }
        Err(socket) => Copier::Alone(Copy::new(socket, tunnel, None)),
    };
    BothWays::by(copier, counters)
}

/// A copy under way ([`both_ways`]). No async function: such a one keeps what it is given twice, and this lives as long as
/// its connection.
#[must_use = "nothing moves before it is polled"]
pub struct BothWays<S: Socket, C> {
    copier: Copier<S>,
    counters: C,
}

/// Who moves the bytes.
enum Copier<S: Socket> {
    /// The engine has a share in it.
    Shared(Copy<SharedApp>),
    Alone(Copy<S>),
}

impl<S: Socket, C> BothWays<S, C> {
    fn by(copier: Copier<S>, counters: C) -> Self {
        Self { copier, counters }
    }
}

impl<S: Socket, C: Deref<Target = Counters> + Unpin> Future for BothWays<S, C> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self { copier, counters } = &mut *self;
        match copier {
            Copier::Shared(copy) => copy.poll_to_end(cx, counters),
            Copier::Alone(copy) => copy.poll_to_end(cx, counters),
        }
    }
}

impl<S: Socket, C> fmt::Debug for BothWays<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BothWays").finish_non_exhaustive()
    }
}

/// The beginning of what an app has said before its tunnel is there; nothing, if it has not said anything yet. That
/// it is done already it will say again.
///
/// # Errors
/// Its connection has failed: nobody may take its end for one in order from now on.
pub(crate) fn said(app: &TcpStream) -> io::Result<Vec<u8>> {
    let mut room = [0; FIRST];
    // The runtime may not have heard yet that there is something. Behind a read that it knows nothing of it is
    // told of whatever comes later, and at worst looks once in vain.
    match (&*SockRef::from(app)).read(&mut room) {
        Ok(n) => Ok(room[..n].to_vec()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Goes on with a copy that was frozen, whose directions had ended like this, if they had.
pub(crate) fn go_on<C>(
    app: App,
    tunnel: Tunnel,
    (up, down): (Option<HalfEnd>, Option<HalfEnd>),
    counters: C,
) -> BothWays<TcpStream, C> {
    let app = Arc::new(app);
    let mut copy = Copy::new(SharedApp(app.clone()), tunnel, Some(app));
    copy.up.socket_dead = matches!(down, Some(HalfEnd::Socket(_)));
    (copy.up.end, copy.down.end) = (up, down);
    BothWays::by(Copier::Shared(copy), counters)
}

struct Copy<S: Socket> {
    socket: S,
    up: Up,
    down: Down,
    cancelled: bool,
    /// With which the engine tells it to stop.
    waker: Option<Waker>,
}

impl<S: Socket> Drop for Copy<S> {
    fn drop(&mut self) {
        // When all that the tunnel brought is with the kernel, a reset could only destroy it.
        let abort = self.down.end != Some(HalfEnd::Finished);
        if let (Some(app), Some(half)) = (&self.up.app, self.up.writer.own()) {
            // The engine knows whether socket and stream are still ours to end.
            return half.give_up(app, abort, self.cancelled);
        }
        if abort {
            self.socket.abort();
        }
        // Otherwise what the app has sent is still delivered before the engine ends or resets the
        // stream, which it does when the halves are dropped.
        if self.cancelled {
            self.up.writer.reset();
        }
    }
}

impl<S: Socket> Copy<S> {
    /// With the socket of the app where the engine may use it by itself.
    fn new(socket: S, tunnel: Tunnel, app: Option<Arc<App>>) -> Self {
        let (mut reader, writer) = tunnel.split();
        if let Some(app) = &app {
            reader.goes_to(app);
        }
        Self {
            socket,
            up: Up::new(writer, app),
            down: Down::new(reader),
            cancelled: true,
            waker: None,
        }
    }

    fn poll_to_end(&mut self, cx: &mut Context<'_>, counters: &Counters) -> Poll<Ended> {
        let ended = ready!(self.poll(cx, counters));
        self.cancelled = false;
        Poll::Ready(ended)
    }

    /// A failure ends the other direction too, with two exceptions in which the other side may have
    /// said all it had to say and only refuses to listen, so that the rest of it must be delivered:
    /// the tunnel takes no more (then the app still gets what the tunnel has for it), and the app
    /// takes no more (then the tunnel still gets what the app left in the socket).
    fn poll(&mut self, cx: &mut Context<'_>, counters: &Counters) -> Poll<Ended> {
        if !ready!(self.poll_ours(cx, counters)) {
            return Poll::Ready(Ended::HANDED_OVER);
        }
        if self.down.end.is_none() {
            self.down.end = ready_now(self.down.poll(cx, &mut self.socket, &counters.received));
            self.up.socket_dead = matches!(self.down.end, Some(HalfEnd::Socket(_)));
        }
        if self.up.end.is_none() {
            self.up.end = ready_now(self.up.poll(cx, &mut self.socket, &counters.sent));
        }
        let (sent, received) = match (self.up.end.clone(), self.down.end.clone()) {
            (Some(sent), Some(received)) => (sent, received),
            (Some(sent @ HalfEnd::Socket(_)), None) => (sent, HalfEnd::CutOff),
            (None, Some(received @ HalfEnd::Tunnel(_))) => (HalfEnd::CutOff, received),
            _ => return Poll::Pending,
        };
        Poll::Ready(Ended { sent, received })
    }
}

impl<S: Socket> Copy<S> {
    /// Ready when bytes may be moved, or false when somebody else moves them now. Told to stop, it says what
    /// it holds, and keeps it.
    fn poll_ours(&mut self, cx: &mut Context<'_>, counters: &Counters) -> Poll<bool> {
        let (Some(_), Some(half)) = (&self.up.app, self.up.writer.own()) else {
            return Poll::Ready(true); // nobody can freeze it
        };
        if !self.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            half.attend(cx);
            self.waker = Some(cx.waker().clone());
        }
        loop {
            match half.standing() {
                Standing::Here => return Poll::Ready(true),
                Standing::Given => return Poll::Ready(false),
                Standing::Away => ready!(half.poll_here(cx)),
                Standing::Stopping => {
                    half.park(Parked {
                        up: self.up.end.clone(),
                        down: self.down.end.clone(),
                        moved: counters.moved(),
                        waiting: self.down.waiting.all(),
                    });
                    if half.standing() == Standing::Stopping {
                        return Poll::Pending; // the waker is known
                    }
                }
            }
        }
    }
}

fn ready_now<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Socket to tunnel.
struct Up {
    writer: Writer,
    /// What is read where the engine does not read by itself.
    pieces: Option<Box<Pieces>>,
    /// A write to the socket has failed: its end of file is no orderly end.
    socket_dead: bool,
    /// What the engine reads by itself.
    app: Option<Arc<App>>,
    /// Records that are read at once.
    records: usize,
    end: Option<HalfEnd>,
}

impl Up {
    fn new(writer: Writer, app: Option<Arc<App>>) -> Self {
        Self {
            writer,
            pieces: app.is_none().then(Box::default),
            app,
            records: 1,
            socket_dead: false,
            end: None,
        }
    }

    fn poll<S: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        count: &AtomicU64,
    ) -> Poll<HalfEnd> {
        if let Some(app) = self.app.clone() {
            return self.poll_pump(cx, &app, count);
        }
        loop {
            let pieces = self.pieces.get_or_insert_default();
            if !pieces.chunk.is_empty()
                && let Err(error) = ready!(self.writer.poll_send(cx, &mut pieces.chunk))
            {
                return Poll::Ready(HalfEnd::Tunnel(error));
            }
            match pieces.poll_fill(cx, socket) {
                Poll::Ready(Ok(0)) => {
                    pieces.buffer = BytesMut::new();
                    return Poll::Ready(self.finish());
                }
                Poll::Ready(Ok(n)) => {
                    count.fetch_add(n as u64, Ordering::Relaxed);
                    pieces.chunk = pieces.buffer.split().freeze();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(HalfEnd::Socket(error.kind())),
                // Nothing to send: only now is a reset by the peer worth asking for.
                Poll::Pending => return self.writer.poll_closed(cx).map(HalfEnd::Tunnel),
            }
        }
    }

    /// The socket has nothing more.
    fn finish(&mut self) -> HalfEnd {
        let broken = self.app.as_ref().is_some_and(|app| app.broken().is_some());
        if self.socket_dead || broken {
            return HalfEnd::Socket(io::ErrorKind::ConnectionReset);
        }
        let ended = self.writer.shutdown();
        ended.map_or_else(HalfEnd::Tunnel, |()| HalfEnd::Finished)
    }

    /// The engine reads the socket by itself.
    fn poll_pump(&mut self, cx: &mut Context<'_>, app: &App, count: &AtomicU64) -> Poll<HalfEnd> {
        for _ in 0..PUMPS {
            match app.poll_readable(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(HalfEnd::Socket(error.kind())),
                Poll::Pending => return self.writer.poll_closed(cx).map(HalfEnd::Tunnel),
            }
            let Some(half) = self.writer.pump() else {
                return Poll::Ready(HalfEnd::Tunnel(TunnelError::Ended));
            };
            match ready!(half.pump(cx, app, self.records, !self.socket_dead)) {
                Ok(Pumped::Last(n)) => {
                    count.fetch_add(n as u64, Ordering::Relaxed);
                    self.writer.has_ended();
                    return Poll::Ready(HalfEnd::Finished);
                }
                Ok(Pumped::Moved(n, all)) => {
                    count.fetch_add(n as u64, Ordering::Relaxed);
                    if all {
                        self.records = RECORDS;
                    } else if n < PAYLOAD / 4 {
                        self.records = 1;
                    }
                }
                Ok(Pumped::End) => return Poll::Ready(self.finish()),
                Ok(Pumped::Dry) => {}
                Err(Stuck::Socket(kind)) => return Poll::Ready(HalfEnd::Socket(kind)),
                Err(Stuck::Tunnel(why)) => {
                    return Poll::Ready(HalfEnd::Tunnel(self.writer.why(why)));
                }
            }
        }
        turn::over(cx)
    }
}

/// Tunnel to socket.
struct Down {
    reader: Reader,
    waiting: Waiting,
    /// The tunnel has ended.
    eof: bool,
    end: Option<HalfEnd>,
}

impl Down {
    fn new(reader: Reader) -> Self {
        Self {
            reader,
            waiting: Waiting::default(),
            eof: false,
            end: None,
        }
    }

    fn poll<S: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        count: &AtomicU64,
    ) -> Poll<HalfEnd> {
        loop {
            // What has arrived is taken even while the socket does not write: it stays within the
            // stream's window, whose credit is not returned, and small frames get packed.
            let dry = match self.take(cx) {
                Ok(dry) => dry,
                Err(error) => return Poll::Ready(HalfEnd::Tunnel(error)),
            };
            if self.waiting.is_empty() {
                // Said, also where a drop would say it: somebody may still hold a duplicate, for a moment.
                if self.eof {
                    return Pin::new(socket).poll_shutdown(cx).map(|done| match done {
                        Ok(()) => HalfEnd::Finished,
                        Err(error) => HalfEnd::Socket(error.kind()),
                    });
                }
                if dry {
                    return Poll::Pending;
                }
                continue;
            }
            match self.waiting.poll_write(cx, socket) {
                Poll::Ready(Ok(n)) => {
                    count.fetch_add(n as u64, Ordering::Relaxed);
                    self.reader.consumed(n);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(HalfEnd::Socket(error.kind())),
                Poll::Pending if dry => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }

    /// Takes some chunks. True when the tunnel has no more for now.
    fn take(&mut self, cx: &mut Context<'_>) -> Result<bool, TunnelError> {
        for _ in 0..TAKE {
            if self.eof {
                return Ok(true);
            }
            match self.reader.poll_chunk(cx, self.waiting.is_empty()) {
                Poll::Ready(Some(chunk)) => self.waiting.push(chunk?),
                Poll::Ready(None) => self.eof = true,
                Poll::Pending => return Ok(true),
            }
        }
        Ok(false)
    }
}
