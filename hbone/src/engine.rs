//! What both sides of an HTTP/2 connection need beside the engine itself: keepalive, and the count of
//! streams with what they share; and the seam behind which an engine stands (`half`, `server`, `client`).

pub(crate) mod client;
pub(crate) mod half;
pub(crate) mod server;

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::{
    gauge::Gauge,
    identity::Identity,
    own,
    room::{Reserve, Room},
    tls::TlsError,
    tunnel::TunnelError,
};

/// What an error of the engine means to whoever reads the log.
pub(crate) fn words(error: &h2::Error) -> String {
    match error.get_io().map(io::Error::kind) {
        // The TLS library's own text here is a link to its manual.
        Some(io::ErrorKind::UnexpectedEof) => "the peer hung up without saying so".to_owned(),
        _ => error.to_string(),
    }
}

/// What an error code of HTTP/2 means to whoever reads the log.
pub(crate) fn reason(code: u32) -> String {
    h2::Reason::from(code).to_string()
}

/// By whom a stream was reset, and why.
pub(crate) fn reset(ours: bool, code: u32) -> String {
    let reason = reason(code);
    match ours {
        true => format!("by us, for the peer broke a rule: {reason}"),
        false => format!("by the peer: {reason}"),
    }
}

/// PING frames of a connection, in whichever engine carries it.
pub(crate) enum Pinging {
    /// Of the `h2` crate.
    H2(h2::PingPong),
    /// Of our own engine.
    Own(Arc<own::Shared>),
}

impl Pinging {
    /// False when the connection is ending: whoever polls it will see.
    fn send(&mut self) -> bool {
        match self {
            Self::H2(ping) => ping.send_ping(h2::Ping::opaque()).is_ok(),
            // One that is frozen is not asked; what is asked just then is not noticed.
            Self::Own(shared) => shared.with(own::State::ping).unwrap_or(true),
        }
    }

    /// Ready when the answer has come; false when the connection is ending.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match self {
            Self::H2(ping) => ping.poll_pong(cx).map(|pong| pong.is_ok()),
            // The task that asks is the one that drives: it asks again after each read.
            Self::Own(shared) => shared.with(own::State::pong).unwrap_or(Poll::Pending),
        }
    }
}

/// Sends a PING when its time has come and notices when no answer comes.
pub(crate) struct Pinger {
    ping: Option<Pinging>,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    every: Duration,
    answer: Duration,
}

impl Pinger {
    pub(crate) fn new(ping: Option<Pinging>, every: Duration, answer: Duration) -> Self {
        Self {
            ping,
            timer: Box::pin(tokio::time::sleep(every)),
            waiting: false,
            every,
            answer,
        }
    }

    /// Ready when the peer is taken for dead.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ping) = &mut self.ping else {
            return Poll::Pending;
        };
        loop {
            if self.waiting {
                match ping.poll_answer(cx) {
                    Poll::Ready(true) => {
                        self.waiting = false;
                        self.timer.as_mut().reset(Instant::now() + self.every);
                    }
                    Poll::Ready(false) => return Poll::Pending,
                    Poll::Pending => return self.timer.as_mut().poll(cx),
                }
            } else {
                std::task::ready!(self.timer.as_mut().poll(cx));
                if !ping.send() {
                    return Poll::Pending;
                }
                self.waiting = true;
                self.timer.as_mut().reset(Instant::now() + self.answer);
            }
        }
    }
}

/// A connection that was frozen and goes on here: what whoever drives it needs. Dropped, it is over.
pub(crate) struct Thawed {
    pub(crate) driver: own::Driver,
    pub(crate) occupancy: Arc<Occupancy>,
    pub(crate) gauge: Arc<Gauge>,
}

impl Thawed {
    /// Its pings begin anew.
    pub(crate) fn pinger(&self, every: Duration, answer: Duration) -> Pinger {
        let ping = Pinging::Own(self.driver.0.clone());
        Pinger::new(Some(ping), every, answer)
    }
}

/// Streams open on a connection, whether it takes more, and when the last one ended.
#[derive(Debug)]
pub(crate) struct Occupancy {
    /// Who is at the other end; here because every tunnel of the connection points here anyway.
    peer: Identity,
    /// The count; [`CLOSED`] is set when no more streams may be opened.
    streams: AtomicUsize,
    /// Milliseconds from `born` to the last end of a stream.
    last_used: AtomicU64,
    born: Instant,
    /// Here because it may go back only when connection and tunnels have all ended.
    room: Room,
    /// Why the peer is not believed any more.
    disbelieved: OnceLock<Box<TlsError>>,
}

const CLOSED: usize = 1 << (usize::BITS - 1);

impl Occupancy {
    pub(crate) fn new(peer: Identity, reserve: Reserve) -> Arc<Self> {
        Self::with_room(peer, Room::new(reserve))
    }

    /// Of a connection whose window has grown by `grown` bytes already.
    pub(crate) fn thawed(peer: Identity, reserve: Reserve, grown: u32) -> Arc<Self> {
        Self::with_room(peer, Room::thawed(reserve, grown))
    }

    fn with_room(peer: Identity, room: Room) -> Arc<Self> {
        Arc::new(Self {
            peer,
            streams: AtomicUsize::new(0),
            last_used: AtomicU64::new(0),
            born: Instant::now(),
            room,
            disbelieved: OnceLock::new(),
        })
    }

    /// The connection window that is wanted, if it must and can grow.
    pub(crate) fn grow(&self, wanted: u64) -> Option<u32> {
        self.room.grow(wanted)
    }

    /// Takes one stream's place if fewer than `most` are taken and the connection is open.
    pub(crate) fn lease(self: &Arc<Self>, most: usize) -> Option<Lease> {
        let more = |now: usize| (now & CLOSED == 0 && now < most).then_some(now + 1);
        self.streams
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()
            .map(|_| Lease(self.clone()))
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Acquire) & !CLOSED
    }

    pub(crate) fn closed(&self) -> bool {
        self.streams.load(Ordering::Acquire) & CLOSED != 0
    }

    /// No more streams; those that are open go on.
    pub(crate) fn close(&self) {
        self.streams.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// The connection is about to be ended, because its peer is not believed any more: so its tunnels will say.
    pub(crate) fn disbelieve(&self, why: TlsError) {
        let _ = self.disbelieved.set(Box::new(why));
        self.close();
    }

    pub(crate) fn disbelieved(&self) -> Option<&TlsError> {
        self.disbelieved.get().map(|why| &**why)
    }

    /// Closes if no stream is open, in one step with [`Occupancy::lease`].
    pub(crate) fn close_if_unused(&self) -> bool {
        self.streams
            .compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// When the last stream ended (or the connection began).
    pub(crate) fn last_used(&self) -> Instant {
        self.born + Duration::from_millis(self.last_used.load(Ordering::Relaxed))
    }
}

/// One stream's place on a connection, given back on drop.
#[derive(Debug)]
pub(crate) struct Lease(Arc<Occupancy>);

impl Lease {
    pub(crate) fn peer(&self) -> &Identity {
        &self.0.peer
    }

    /// Why a tunnel failed: where we have ended its connection, that is the reason, and not what it looks like to the engine.
    pub(crate) fn why(&self, seen: TunnelError) -> TunnelError {
        let disbelieved = self.0.disbelieved.get();
        disbelieved.map_or(seen, |why| TunnelError::Disbelieved(why.clone()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last_used.store(now, Ordering::Relaxed);
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_connection_gives_no_place_and_a_used_one_does_not_close() {
        let occupancy = Occupancy::new(Identity::new("td", "ns", "sa").unwrap(), Reserve::of(0));
        let lease = occupancy.lease(1).unwrap();
        assert!(occupancy.lease(1).is_none());
        assert!(!occupancy.close_if_unused());
        drop(lease);
        assert!(occupancy.close_if_unused());
        assert!(occupancy.lease(1).is_none());
        assert_eq!(occupancy.streams(), 0);
    }
}
